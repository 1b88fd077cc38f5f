"""Stationary: whether the steps of a block have stopped getting faster, and whether a launch stayed as it was.

The first steps of a block are slower than what follows: another plan left the caches to itself, kernels and buffers are
made anew. How many there are depends on the plan and the host, so they are counted and not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

MOST_WARMUP = 12
"""Warm-up steps of a block, at most: past that the block is measured as it is, and says so."""
STILL_FALLING = 0.05
"""A step that is so much faster than all before it shows that the warm-up goes on."""
DRIFTING_Z = 3.0
"""Geweke's score from which on the early and the late part of a launch differ."""
EARLY, LATE = 0.2, 0.5
"""Shares of a launch that Geweke (1992, recalled) compares."""


def settled(times: Sequence[float]) -> bool:
    """Whether the latest of some consecutive steps is no longer faster than every one before it, by over 5 %.

    A warm-up falls; noise goes up and down. The first step that breaks the fall ends it, so a block that is steady from
    its start costs two steps.
    """
    return len(times) > 1 and times[-1] >= (1 - STILL_FALLING) * min(times[:-1])


def warming(times: Sequence[float], least: int, most: int = MOST_WARMUP) -> bool:
    """Whether another warm-up step is due after those that took ``times``: ``least`` always are, ``most`` never passed.

    Args:
        times: seconds of each warm-up step so far.
        least: warm-up steps that the scenario asks for.
        most: the bound.
    """
    if len(times) < least:
        return True
    return len(times) < max(least, most) and least > 1 and not settled(times)


def geweke(times: Sequence[float]) -> float:
    """Geweke's score of a series: early mean less late mean, over the standard error of the difference.

    Steps are taken as independent, which they are not quite: it is a warning, no test. 0 where there are too few.
    """
    early, late = times[: int(len(times) * EARLY)], times[int(len(times) * (1 - LATE)) :]
    if len(early) < 2 or len(late) < 2:
        return 0.0
    spread = _variance(early) / len(early) + _variance(late) / len(late)
    difference = sum(early) / len(early) - sum(late) / len(late)
    if spread == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / math.sqrt(spread)


def drifting(blocks: Sequence[Sequence[float]]) -> bool:
    """Whether the blocks of a plan within a launch, in the order measured, tell of a host that changed meanwhile.

    Each block counts with its median: the luck of one step is no drift.
    """
    return abs(geweke([median(block) for block in blocks if block])) > DRIFTING_Z


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((each - mean) ** 2 for each in values) / (len(values) - 1)
