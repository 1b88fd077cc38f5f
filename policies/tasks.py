"""Tasks: a graph of work that unequal devices may do, and a timetable of who does what when. Plain numbers only."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class NoRoomError(Exception):
    """No device has the memory left for a task."""

    def __init__(self, task: int) -> None:
        super().__init__(task)
        self.task = task


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks, numbered so that each comes after those that feed it."""

    seconds: Sequence[Sequence[float]]
    """Per task, how long it takes on each device."""
    inputs: Sequence[Sequence[int]]
    """Per task, those that feed it."""
    transfer_s: Callable[[int, int, int, int], float]
    """Seconds that a task's output takes to its reader: (task, reader, device of the task, another device)."""
    mean_transfer_s: Callable[[int, int], float]
    """The same over all pairs of different devices: (task, reader)."""
    sizes: Sequence[float]
    """Per task, what it takes of a device's room (bytes)."""
    room: Sequence[float]
    """Per device."""
    pieces: int = 1
    """Parts that follow each other through the tasks as a pipeline; times and transfers are those of all together."""

    @property
    def count(self) -> int:
        """How many tasks there are."""
        return len(self.seconds)

    @property
    def devices(self) -> range:
        """Numbers of the devices."""
        return range(len(self.room))

    @cached_property
    def readers(self) -> list[list[int]]:
        """Per task, those that it feeds."""
        found: list[list[int]] = [[] for _ in range(self.count)]
        for task, inputs in enumerate(self.inputs):
            for source in inputs:
                found[source].append(task)
        return found

    @cached_property
    def upward_ranks(self) -> list[float]:
        """Per task, its mean seconds and the longest way from it to an end (Topcuoglu et al. 2002, equation 5)."""
        ranks = [0.0] * self.count
        for task in reversed(range(self.count)):
            behind = [self.mean_transfer_s(task, reader) + ranks[reader] for reader in self.readers[task]]
            ranks[task] = math.fsum(self.seconds[task]) / len(self.devices) + max(behind, default=0.0)
        return ranks

    @cached_property
    def downward_ranks(self) -> list[float]:
        """Per task, the longest way from a beginning to it, in mean seconds (Topcuoglu et al. 2002, equation 6)."""
        ranks = [0.0] * self.count
        for task, inputs in enumerate(self.inputs):
            ways = (
                ranks[source] + math.fsum(self.seconds[source]) / len(self.devices) + self.mean_transfer_s(source, task)
                for source in inputs
            )
            ranks[task] = max(ways, default=0.0)
        return ranks


class Slot(NamedTuple):
    """When a device works on a task."""

    start: float
    end: float
    task: int


class Timetable:
    """Who does which task when, while tasks are put into it one after the other (those that feed one before it)."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.device = [-1] * tasks.count
        """Per task; -1: none yet."""
        self.slots = [Slot(0.0, 0.0, task) for task in range(tasks.count)]
        self.lanes: list[list[Slot]] = [[] for _ in tasks.devices]
        """Per device, in order of time."""
        self.left = list(tasks.room)

    @property
    def makespan_s(self) -> float:
        """When the last task is over."""
        return max(slot.end for slot in self.slots)

    @property
    def step_s(self) -> float:
        """What all pieces take: the first its way through all tasks, each other one a turn of the busiest device."""
        turns = self.tasks.pieces - 1
        if not turns:
            return self.makespan_s
        busiest = max(sum(slot.end - slot.start for slot in lane) for lane in self.lanes)
        return (self.makespan_s + turns * busiest) / self.tasks.pieces

    @property
    def sequence(self) -> list[int]:
        """All tasks in order of time: each after those that feed it, and after those before it on its device."""
        return sorted(range(self.tasks.count), key=lambda task: (self.slots[task][:2], task))

    def fits(self, task: int, device: int) -> bool:
        """Whether a device has room left for a task."""
        return self.tasks.sizes[task] <= self.left[device]

    def fitting(self, task: int) -> list[int]:
        """The devices that have room left for a task.

        Raises:
            NoRoomError: there is none.
        """
        found = [device for device in self.tasks.devices if self.fits(task, device)]
        if not found:
            raise NoRoomError(task)
        return found

    def fed_s(self, task: int, device: int) -> float:
        """When all that a task reads has come to a device."""
        moments = []
        for source in self.tasks.inputs[task]:
            here = self.device[source]
            late = 0.0 if here == device else self.tasks.transfer_s(source, task, here, device)
            moments.append(self.slots[source].end + late)
        return max(moments, default=0.0)

    def after_all_s(self, task: int, device: int) -> float:
        """The earliest start of a task after all that a device has to do so far."""
        lane = self.lanes[device]
        return max(self.fed_s(task, device), lane[-1].end if lane else 0.0)

    def between_s(self, task: int, device: int) -> float:
        """The earliest start of a task on a device, in the first gap that is long enough or after all."""
        return self.gap_s(task, device, self.fed_s(task, device))

    def gap_s(self, task: int, device: int, fed_s: float) -> float:
        """The same, where all that the task reads has come at a known moment."""
        lane, length = self.lanes[device], self.tasks.seconds[task][device]
        start = fed_s
        for slot in lane[bisect.bisect_left(lane, start, key=lambda each: each.end) :]:
            if start + length <= slot.start:
                return start
            start = max(start, slot.end)
        return start

    def put(self, task: int, device: int, start: float) -> None:
        """Let a device begin a task at a moment at which it can."""
        slot = Slot(start, start + self.tasks.seconds[task][device], task)
        self.device[task], self.slots[task] = device, slot
        bisect.insort(self.lanes[device], slot, key=lambda each: each[:2])
        self.left[device] -= self.tasks.sizes[task]
