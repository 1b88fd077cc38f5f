"""The workers of a driver, as the host sees them."""

from __future__ import annotations

import os

import psutil
from steelyard.runner.chaos.leftovers import descendants


def workers(driver: int | None = None) -> list[psutil.Process]:
    """The workers of a driver (by default this very process), by rank."""
    found = []
    for each in descendants(driver or os.getpid()):
        try:
            if "steelyard.runner.worker" in (words := each.cmdline()):
                found.append((words[-1], each))
        except psutil.NoSuchProcess:
            continue
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]
