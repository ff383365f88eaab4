"""A real browser as the place where a model runs: Chromium by its DevTools pipe, and what it is served."""
