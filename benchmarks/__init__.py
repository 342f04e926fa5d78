"""Timed and repeated comparisons: `python -m benchmarks.<name>`."""
