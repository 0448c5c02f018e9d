"""A generated catalogue with generated audio."""
