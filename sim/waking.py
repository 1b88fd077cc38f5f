"""Waking: a lane that was blocked in a collective does its next work slower than one that never stopped.

While it sleeps, a virtual processor's clock falls, its caches go to others, and the host gives its time away. Measured
on lanes: 2 to 9 ms more for the step after 20 ms of sleep, nearly whatever the step's size; so the table is of seconds,
not of a factor. On a lane that is slower than its tables they are as many times as long, as all its work is. Devices
without a table wake for nothing, which is what every datasheet's does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from .device import Device, WakePoint
from .program import Program, Worker

HALVINGS = 60
"""Of the interval of a wait, until it is known to a rounding."""


def extra_s(points: Sequence[WakePoint], blocked_s: float) -> float:
    """Seconds that the work after a collective takes longer, its member having been blocked in it for so long.

    Straight between the measured points, and from nothing at no wait to the first one; level beyond the last. Were it
    level below the first, a lane of which only its longest wait is not held out would pay for that in every step.
    """
    if not points:
        return 0.0
    ordered = sorted(points, key=lambda point: point.blocked_s)
    if blocked_s <= ordered[0].blocked_s:
        return ordered[0].extra_s * blocked_s / ordered[0].blocked_s
    for low, high in pairwise(ordered):
        if blocked_s <= high.blocked_s:
            part = (blocked_s - low.blocked_s) / (high.blocked_s - low.blocked_s)
            return low.extra_s + part * (high.extra_s - low.extra_s)
    return ordered[-1].extra_s


def extras(work_s: Sequence[float], collective_s: float, tables: Sequence[Sequence[WakePoint]]) -> list[float]:
    """What each member of a collective pays in every step, once steps repeat.

    The last to enter is blocked for the collective alone, the others until it comes: who pays for a long sleep comes
    later and sleeps less. A member's own end solves ``work + extra(end of the last - own end + collective) = own end``;
    the left side falls with the end where the table rises with the wait, so halving finds it, and the last is the one
    whose work with the least of its table is longest.

    Args:
        work_s: seconds of each member's own work in a step, never having slept.
        collective_s: how long the collective takes once all have entered.
        tables: of each member.
    """
    last_s = max(work + extra_s(points, collective_s) for work, points in zip(work_s, tables, strict=True))
    return [_extra_before(work, last_s, collective_s, points) for work, points in zip(work_s, tables, strict=True)]


def _extra_before(work_s: float, last_s: float, collective_s: float, points: Sequence[WakePoint]) -> float:
    """The extra of a member that enters by ``last_s`` at the latest."""
    low, high = 0.0, max(0.0, last_s - work_s)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if extra_s(points, last_s - work_s - middle + collective_s) > middle:
            low = middle
        else:
            high = middle
    return high if points else 0.0


def with_waking(program: Program, devices: Mapping[str, Device]) -> Program:
    """The program of plain data parallelism with what waking costs added to each worker's optimizer, its next work.

    Pipelines wait for many things at many times and are left as they are.
    """
    tables = [_table(worker, devices) for worker in program.workers]
    plain = all(worker.after and not any(job.sends for job in worker.every_job) for worker in program.workers)
    if not any(tables) or not plain or any(sync.every > 1 or sync.beside for sync in program.syncs):
        return program
    collective_s = sum(program.syncs[number].transfer.alone_s for number in program.workers[0].after)
    found = extras([_work_s(worker) for worker in program.workers], collective_s, tables)
    workers = [
        replace(worker, optimizer_s=tuple(seconds + extra for seconds in worker.optimizer_s))
        for worker, extra in zip(program.workers, found, strict=True)
    ]
    return replace(program, workers=tuple(workers))


def _work_s(worker: Worker) -> float:
    return sum(worker.job(piece).seconds for piece in worker.pieces) + max(worker.optimizer_s)


def _table(worker: Worker, devices: Mapping[str, Device]) -> Sequence[WakePoint]:
    device = devices[worker.devices[0]]
    return device.profile.waking_at(device.slowdown) if device.profile is not None else ()
