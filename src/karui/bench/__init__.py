"""Measuring: artifacts in processes of their own, interleaved rounds, ratios with intervals."""
