"""Real devices: lanes, calibration, replay, and the command line."""
