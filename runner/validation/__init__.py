"""The parts of validate(): published measurements as rows, cases, a fit, and scores."""
