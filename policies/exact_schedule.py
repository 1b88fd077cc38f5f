"""The exact placement of a small graph: branch and bound over all devices and orders. Plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .list_schedules import in_order
from .tasks import Slot, Tasks, Timetable

MOST = 1_000_000
"""Partial timetables that are looked at before the search gives up its proof."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    table: Timetable | None
    """The best timetable; None where none is better than what was known."""
    value: float
    """What it is worth, by the judge; else the known value."""
    proven: bool
    """Whether nothing is better by more than the share that was allowed."""


Judge = Callable[[Timetable], float]
Fits = Callable[[Sequence[int], int], bool]


def makespan(table: Timetable) -> float:
    """The judge of plain schedules."""
    return table.makespan_s


def whatever(devices: Sequence[int], task: int) -> bool:
    """Room is all that counts."""
    return True


def best_timetable(
    tasks: Tasks,
    judge: Judge = makespan,
    *,
    fits: Fits = whatever,
    updates: Sequence[Sequence[float]] = (),
    known: float = math.inf,
    within: float = 0.0,
    alike: Sequence[int] = (),
    most: int = MOST,
) -> Found:
    """The timetable with the least value, of all devices and orders in which each task begins as soon as it can.

    Depth first: tasks are put behind each other in the order in which they begin, so that each timetable is met once.
    A partial one is given up when a way through it, or the work that is left, takes as long as the best value.

    Args:
        tasks: few; time grows exponentially with them.
        judge: never less than the makespan, nor than a way and the updates of its first device; infinite where a
            timetable will not do.
        fits: told the device of each task (-1: none yet) and the task that came last; where it says no, no timetable
            will do that these devices are a part of.
        updates: per task and device, seconds that the judge adds to every way which begins on the device that has the
            task; 0 by default.
        known: a value that is to be beaten.
        within: share of the best value; what is better by less is not looked for.
        alike: per device, a number that devices share which can be exchanged; none by default.
        most: partial timetables to look at.
    """
    search = _Search(tasks, judge, fits, updates)
    search.alike, search.share = alike or tasks.devices, 1 - within
    search.best, search.nodes = known, most
    search.go(Slot(0.0, 0.0, -1))
    return Found(search.table, search.best, search.nodes > 0)


Row = list[float]


class _Child(NamedTuple):
    """A task that may be put next, on some device."""

    bound: float
    slot: Slot
    device: int
    reach: Row
    """Per device, the longest way from a task there to this one's end."""


class _Search:
    """A partial timetable, which tasks are put into and taken out of, and the best whole one so far."""

    def __init__(self, tasks: Tasks, judge: Judge, fits: Fits, updates: Sequence[Sequence[float]]) -> None:
        self.tasks, self.judge, self.fits = tasks, judge, fits
        self.alike: Sequence[int] = tasks.devices
        self.share, self.best, self.nodes = 1.0, math.inf, MOST
        self.table: Timetable | None = None
        none = [0.0] * len(tasks.room)
        self.seconds = [
            [each if size <= room else math.inf for each, room in zip(row, tasks.room, strict=True)]
            for row, size in zip(tasks.seconds, tasks.sizes, strict=True)
        ]
        self.least = [min(row) for row in self.seconds]
        self.late = {
            (source, task): [
                [0.0 if here == there else tasks.transfer_s(source, task, here, there) for there in tasks.devices]
                for here in tasks.devices
            ]
            for task, inputs in enumerate(tasks.inputs)
            for source in inputs
        }
        self.updates = updates or [none] * tasks.count
        self.behind = self._behind([none] * tasks.count)
        begun = [
            self._behind([[each * (here == first) for here, each in enumerate(row)] for row in self.updates])
            for first in tasks.devices
        ]
        self.begun = [[[each[task][here] for each in begun] for here in tasks.devices] for task in range(tasks.count)]
        """Per task, its device, and the device on which a way began: the way that is left, with that one's updates."""
        # What changes:
        self.device, self.end = [-1] * tasks.count, [0.0] * tasks.count
        self.free, self.left, self.last = list(none), list(tasks.room), [-1] * len(none)
        """Per device: when it is free, its room, and the task that it does last."""
        self.added, self.way = list(none), list(none)
        """Per device: the updates of its tasks, and the longest way from a task there to the end of all."""
        self.reach: list[Row] = [[] for _ in self.device]
        self.sequence: list[int] = []

    def _behind(self, updates: Sequence[Sequence[float]]) -> list[Row]:
        """Per task and device, the longest way from its end to the end of all, each reader where its way is shortest.

        Exact times of transfers, but one reader does not know of another.
        """
        behind = [[0.0] * len(self.tasks.room) for _ in self.seconds]
        for task in reversed(range(self.tasks.count)):
            for reader in self.tasks.readers[task]:
                ways = [sum(each) for each in zip(self.seconds[reader], updates[reader], behind[reader], strict=True)]
                for device, late in enumerate(self.late[task, reader]):
                    least = min(way + each for way, each in zip(ways, late, strict=True))
                    behind[task][device] = max(behind[task][device], least)
        return behind

    def go(self, last: Slot) -> None:
        """Everything that can follow the slot that was put last."""
        if len(self.sequence) == self.tasks.count:
            self._judged()
            return
        self.nodes -= 1
        earliest = self._earliest(last.start)
        if self.nodes <= 0 or self._hopeless(earliest, last.start):
            return
        children: list[_Child] = []
        for task, moments in enumerate(earliest):
            if self.device[task] < 0 and all(self.device[source] >= 0 for source in self.tasks.inputs[task]):
                found = list(self._children(task, moments))
                if min((child.bound for child in found), default=math.inf) >= self.best * self.share:
                    return  # wherever the task goes, and whenever: later it is no better
                children += found
        for child in sorted(children):
            if child.bound >= self.best * self.share:
                break
            if (child.slot.start, child.slot.end, child.slot.task) > (last.start, last.end, last.task):
                self._put(child)

    def _judged(self) -> None:
        table = in_order(self.tasks, self.device, self.sequence)
        value = self.judge(table)
        if value < self.best:
            self.best, self.table = value, table

    def _earliest(self, now: float) -> list[Row]:
        """Per task that is not placed and device, no later than the moment at which it can begin there."""
        found: list[Row] = [[] for _ in self.seconds]
        for task, inputs in enumerate(self.tasks.inputs):
            if self.device[task] >= 0:
                continue
            moments = [max(now, free) for free in self.free]
            for source in inputs:
                here, late = self.device[source], self.late[source, task]
                if here >= 0:
                    fed = [self.end[source] + each for each in late[here]]
                else:
                    ends = [begin + own for begin, own in zip(found[source], self.seconds[source], strict=True)]
                    fed = [min(map(sum, zip(ends, column, strict=True))) for column in zip(*late, strict=True)]
                moments = [max(two) for two in zip(moments, fed, strict=True)]
            found[task] = moments
        return found

    def _hopeless(self, earliest: list[Row], now: float) -> bool:
        """Whether some task's way, or all that is left to do, ends no earlier than the best."""
        limit, work = self.best * self.share, 0.0
        for task, moments in enumerate(earliest):
            if self.device[task] >= 0:
                continue
            work += self.least[task]
            alone = [
                more + begun[here]
                for here, (more, begun) in enumerate(zip(self.updates[task], self.begun[task], strict=True))
            ]
            rest = [
                max(moment + each, other) for moment, each, other in zip(moments, self.behind[task], alone, strict=True)
            ]
            if min(map(sum, zip(self.seconds[task], rest, strict=True))) >= limit:
                return True
        return work > sum(max(limit - max(free, now), 0.0) for free in self.free)

    def _children(self, task: int, moments: Row) -> Iterator[_Child]:
        """Where a task whose inputs are placed may be put; devices that can be exchanged are tried once."""
        tried: set[int] = set()
        for device, own in enumerate(self.seconds[task]):
            unused = self.last[device] < 0
            if self.tasks.sizes[task] > self.left[device] or (unused and self.alike[device] in tried):
                continue
            tried |= {self.alike[device]} if unused else set()
            slot = self._slot(task, device, own)
            if math.isfinite(slot.end):
                reach = self._reach(task, device, own)
                ways = self._ways(task, device, reach)
                yield _Child(max(moments[device] + own + self.behind[task][device], *ways), slot, device, reach)

    def _slot(self, task: int, device: int, seconds: float) -> Slot:
        start = self.free[device]
        for source in self.tasks.inputs[task]:
            start = max(start, self.end[source] + self.late[source, task][self.device[source]][device])
        return Slot(start, start + seconds, task)

    def _reach(self, task: int, device: int, seconds: float) -> Row:
        found = [-math.inf] * len(self.free)
        found[device] = 0.0
        if self.last[device] >= 0:
            found = [max(two) for two in zip(found, self.reach[self.last[device]], strict=True)]
        for source in self.tasks.inputs[task]:
            late = self.late[source, task][self.device[source]][device]
            found = [max(here, each + late) for here, each in zip(found, self.reach[source], strict=True)]
        return [each + seconds for each in found]

    def _ways(self, task: int, device: int, reach: Row) -> Iterator[float]:
        """Per device, the longest way that began there, and the updates that it has by then.

        Of a way that goes on from the task, updates to come are counted too; of others, no update is counted twice.
        """
        for first, (way, each, added) in enumerate(zip(self.way, reach, self.added, strict=True)):
            own = self.updates[task][device] if first == device else 0.0
            yield max(way, each + self.begun[task][device][first]) + added + own

    def _put(self, child: _Child) -> None:
        """Put a task into the timetable, go on, and take it out again."""
        slot, device, way = child.slot, child.device, self.way
        before = self.free[device], self.left[device], self.last[device], self.added[device]
        rest = self.behind[slot.task][device]
        self.device[slot.task], self.end[slot.task], self.reach[slot.task] = device, slot.end, child.reach
        self.free[device], self.last[device] = slot.end, slot.task
        self.left[device] -= self.tasks.sizes[slot.task]
        self.added[device] += self.updates[slot.task][device]
        self.way = [max(here, each + rest) for here, each in zip(way, child.reach, strict=True)]
        self.sequence.append(slot.task)
        if self.fits(self.device, slot.task):
            self.go(slot)
        self.sequence.pop()
        self.free[device], self.left[device], self.last[device], self.added[device] = before
        self.device[slot.task], self.way = -1, way
