"""Strategies: pure functions from the trials so far to the next recipe, or None to stop."""
