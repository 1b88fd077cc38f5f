"""Waking, measured: how much slower a lane's step is after it was blocked in a collective.

Lanes step together, with the all-reduce between steps, at sizes that make one of them come last: it is blocked for the
collective alone, the others until it comes. What their work then takes is held against steps of the same size without
any collective, from the same launch. A point knows its step's size, and is held out with it from plans that use that.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..sim.curve import non_decreasing
from ..sim.device import WakePoint
from .blocks import spent_s
from .launch import LaunchResult, Task

LARGE, SMALL = 0.7, 0.2
"""Places among the calibrated sizes: of the lane that is to come last, and of the others."""
STEPS = 10
WARMUP = 2
LEAST_S = 1e-4
"""Waits whose medians are closer than this are one."""


def waking_tasks(sizes: Sequence[int], lanes: int) -> list[Task]:
    """Blocks in which each lane in turn comes last, and one in which all have as much to do."""
    if lanes < 2:
        return []
    large, small = (sorted(sizes)[int(place * (len(sizes) - 1))] for place in (LARGE, SMALL))
    dealt = [[large if lane == last else small for lane in range(lanes)] for last in range(lanes)]
    dealt.append([large] * lanes)
    return [
        {
            "op": "block",
            "index": number,
            "round": 0,
            "sizes": [[size] for size in own],
            "ranks": list(range(lanes)),
            "steps": STEPS,
            "warmup": WARMUP,
            "offset": 0,
        }
        for number, own in enumerate(dealt)
    ]


def waking_points(results: Sequence[LaunchResult], rank: int) -> list[WakePoint]:
    """One lane's table: of every kind of block the median over launches, never falling with the wait.

    What not every launch shows is noise and counts as none: a table of luck would make every prediction worse.
    """
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for launch in results:
        plain = plain_s(launch, rank)
        for task, answer in launch.of("block", rank):
            size = task["sizes"][rank][0]
            if size in plain:
                blocked, work = after_collectives(answer)
                found.setdefault((task["index"], size), []).append((blocked, work - plain[size]))
    middles = sorted(
        (median(b for b, _ in each), _shown([e for _, e in each]), size) for (_, size), each in found.items()
    )
    apart = [each for number, each in enumerate(middles) if not number or each[0] - middles[number - 1][0] > LEAST_S]
    extras = non_decreasing([extra for _, extra, _ in apart])
    return [
        WakePoint(blocked_s=blocked, extra_s=extra, micro_batch=size)
        for (blocked, _, size), extra in zip(apart, extras, strict=True)
    ]


def _shown(extras: Sequence[float]) -> float:
    """The median of what launches found to take longer, where every one did; else 0, as luck is no rule."""
    return median(extras) if min(extras) > 0 else 0.0


def plain_s(launch: LaunchResult, rank: int) -> dict[int, float]:
    """Per calibrated size, the median seconds of a step without any collective, optimizer included."""
    found: dict[int, list[float]] = {}
    for task, answer in launch.of("profile", rank):
        steps = [spent_s(step, "forward", "backward", "optimizer") for step in answer["steps"]]
        found.setdefault(task["micro_batch"], []).append(median(steps))
    return {size: median(each) for size, each in found.items()}


def after_collectives(answer: Task) -> tuple[float, float]:
    """Median seconds blocked in a collective, and of the work from its end until the next one is entered."""
    blocked, work = [], []
    for before, after in zip(answer["steps"], answer["steps"][1:], strict=False):
        collective = next(each for each in before if each[0] == "communication")
        blocked.append(collective[3] - collective[2])
        work.append(spent_s(before, "optimizer") + spent_s(after, "forward", "backward"))
    return median(blocked), median(work)
