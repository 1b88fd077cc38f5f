"""Measurements that were made elsewhere: step times of logs and traces as measured runs."""
