"""Suites: many replays, each predicted before it is measured, judged together."""
