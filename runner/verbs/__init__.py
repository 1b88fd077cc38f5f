"""Verbs of the command line that have no folder of their own, by topic; what all verbs share stands beside them."""
