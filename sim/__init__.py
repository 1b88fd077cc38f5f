"""The world: clusters, workloads, plans, and the engine that predicts what a plan gives."""
