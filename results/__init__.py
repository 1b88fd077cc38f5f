"""Records of runs: what they hold, where they lie, how they compare."""
