"""Scoring of the policies that change their plan, over generated runs in which devices slow down, drift and go."""
