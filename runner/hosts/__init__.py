"""More than one machine: one process on each, of which the first drives and the others serve their lanes."""
