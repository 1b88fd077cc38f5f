"""Chaos: train under faults drawn at random, and prove that nothing was lost, changed or left behind."""
