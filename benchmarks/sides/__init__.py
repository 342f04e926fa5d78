"""Our side of the comparisons: scripts that `benchmarks.paired` drives."""
