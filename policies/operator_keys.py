"""Keys of operators: what attention sees of a graph's operators and of the devices while they are placed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..sim.noise import Floats
from .tasks import Tasks, Timetable

KEYS = ("start", "finish", "ahead", "speed", "moved", "memory", "load", "rank")
"""What a device is to an operator: see :class:`Sight`."""
FEATURES = ("one", "urgency", "work", "volume")
"""Columns of :attr:`OperatorKeys.features`: what a query is made of."""
LEAST = 1e-6
"""Of the mean operator's seconds: an operator that takes less is taken to take this."""
FULL = 1e-3
"""The logarithm of what is left of a device's memory goes no lower."""
UNLIMITED = 1e300
"""Bytes: more room is no more than this."""
FAR = 3.0
"""Features stay within plus and minus this."""


@dataclass(frozen=True, eq=False)
class Way:
    """What lies behind each operator, as far as it is known."""

    ranks: Sequence[float]
    """Seconds from the operator's beginning to the end: the order in which operators are taken."""
    behind: Floats
    """(operators, devices): seconds from the operator's end to the end of all, if it is done on the device."""


class OperatorKeys:
    """What does not change while a graph's operators are placed; devices' room is a timetable's."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.seconds: Floats = np.array(tasks.seconds, dtype=np.float64)
        least = self.seconds.min(axis=1)
        self.scale = float(least.mean()) or float(self.seconds.mean()) or 1.0
        """Seconds of a mean operator, each on the device that is fastest with it."""
        self.fair = float(least.sum()) / len(tasks.devices) or self.scale
        """Seconds of work that a device would have if all were busy alike."""
        self.speeds = -np.log(np.maximum(self.seconds, LEAST * self.scale))
        self.sizes: Floats = np.array(tasks.sizes, dtype=np.float64)
        self.features = self._features()
        self._late: dict[tuple[int, int, int], Floats] = {}

    def _features(self) -> Floats:
        """(operators, FEATURES): one; how near the longest way it is; its time; what it hands on against its time."""
        tasks, means = self.tasks, np.maximum(self.seconds.mean(axis=1), LEAST * self.scale)
        ways = np.array(tasks.upward_ranks) + np.array(tasks.downward_ranks)
        sent = np.array(
            [
                sum(tasks.mean_transfer_s(task, reader) for reader in tasks.readers[task])
                + sum(tasks.mean_transfer_s(source, task) for source in tasks.inputs[task])
                for task in range(tasks.count)
            ]
        )
        urgency = np.log(np.maximum(ways, LEAST * self.scale) / max(float(ways.max()), LEAST * self.scale))
        columns = [np.ones(tasks.count), urgency, np.log(means / means.mean()), np.log1p(sent / means)]
        return np.asarray(np.clip(np.column_stack(columns), -FAR, FAR), dtype=np.float64)

    def late_s(self, source: int, task: int, here: int) -> Floats:
        """Per device, seconds that a source's output takes there from where the source is; 0 on the same device."""
        key = source, task, here
        if key not in self._late:
            self._late[key] = np.array(
                [
                    0.0 if there == here else self.tasks.transfer_s(source, task, here, there)
                    for there in self.tasks.devices
                ]
            )
        return self._late[key]

    def fed_s(self, table: Timetable, task: int) -> tuple[Floats, Floats]:
        """Per device, when all that a task reads has come there, and the seconds of the transfers that bring it."""
        moment, moved = np.zeros(len(self.tasks.devices)), np.zeros(len(self.tasks.devices))
        for source in self.tasks.inputs[task]:
            late = self.late_s(source, task, table.device[source])
            moment = np.maximum(moment, table.slots[source].end + late)
            moved = moved + late
        return moment, moved

    def expected(self, devices: int) -> Way:
        """The way behind each operator before anything is placed, over so many first devices.

        Ranks are HEFT's. The way from a device is the optimistic one: every reader goes where its own way is shortest,
        and another device's output takes a mean transfer.
        """
        behind = np.zeros_like(self.seconds)
        for task in reversed(range(self.tasks.count)):
            for reader in self.tasks.readers[task]:
                there = behind[reader] + self.seconds[reader]
                elsewhere = float(there[:devices].min()) + self.tasks.mean_transfer_s(task, reader)
                behind[task] = np.maximum(behind[task], np.minimum(there, elsewhere))
        return Way(self.tasks.upward_ranks, behind)

    def known(self, table: Timetable) -> Way:
        """The way behind each operator if its readers stay where a timetable has them."""
        behind, ranks = np.zeros_like(self.seconds), [0.0] * self.tasks.count
        for task in reversed(range(self.tasks.count)):
            for reader in self.tasks.readers[task]:
                late = self.late_s(task, reader, table.device[reader])  # as long there as back
                behind[task] = np.maximum(behind[task], late + ranks[reader])
            here = table.device[task]
            ranks[task] = float(self.seconds[task, here] + behind[task, here])
        return Way(ranks, behind)


class Placing:
    """A timetable in the making, and what its devices have to do and to hold by now, as arrays."""

    def __init__(self, tasks: Tasks) -> None:
        self.table = Timetable(tasks)
        self.free, self.busy = np.zeros(len(tasks.devices)), np.zeros(len(tasks.devices))
        """Seconds: the end of the last task, and the sum of all."""
        self.left = np.minimum(np.array(tasks.room, dtype=np.float64), UNLIMITED)
        self.per_room = np.divide(1.0, self.left, out=np.zeros_like(self.left), where=self.left > 0)
        self.pace = 1 - 1 / tasks.pieces
        """How much the busiest device counts beside the way of the first piece."""

    def put(self, task: int, device: int, start: float) -> None:
        """Let a device begin a task at a moment at which it can."""
        self.table.put(task, device, start)
        self.free[device] = self.table.lanes[device][-1].end
        self.busy[device] += self.table.tasks.seconds[task][device]
        self.left[device] = min(self.table.left[device], UNLIMITED)


class Sight:
    """Some operators, each of whose inputs is placed, as they see the devices: (operators, devices) throughout.

    Times are counted from the earliest open one, in mean operators, as -log(1 + t): later is less.
    """

    def __init__(self, keys: OperatorKeys, placing: Placing, ready: Sequence[int], way: Way, *, gaps: bool) -> None:
        """What is seen now.

        Args:
            keys: of all operators.
            placing: who does what so far.
            ready: operators whose inputs are placed.
            way: what lies behind them.
            gaps: whether an operator may go before others, where a device waits for long enough.
        """
        self.keys, self.placing, self.ready, self.way = keys, placing, list(ready), way
        self.seconds = keys.seconds[self.ready]
        fed, self.moved = (np.array(each) for each in zip(*map(self._fed, self.ready), strict=True))
        self.starts: Floats = np.maximum(fed, placing.free)
        """Seconds at which the device can begin."""
        if gaps:
            for row, device in zip(*np.nonzero(fed < placing.free), strict=True):
                moment = placing.table.gap_s(self.ready[row], int(device), float(fed[row, device]))
                self.starts[row, device] = moment
        self.finish = self.starts + self.seconds
        self.left = placing.left - keys.sizes[self.ready][:, None]
        self.open = (self.left >= 0) & np.isfinite(self.finish)
        """False where the device is full or cannot be reached."""
        self._all = bool(self.open.all())

    def _fed(self, task: int) -> tuple[Floats, Floats]:
        return self.keys.fed_s(self.placing.table, task)

    def scores(self, queries: Floats) -> Floats:
        """Query times keys.

        Args:
            queries: (operators, :data:`KEYS`).

        Returns:
            (operators, devices); -inf where a device is not open.
        """
        total = np.zeros_like(self.starts)
        for place, key in enumerate(KEYS):
            weights = queries[:, place, None]
            if weights.any() and self._tells(key):
                total = total + weights * self.key(key)
        return total if self._all else np.where(self.open, total, -math.inf)

    def _tells(self, name: str) -> bool:
        """Whether a key can make a difference: the rank of a single operator, and the load of one piece, do not."""
        return not (name == "rank" and len(self.ready) == 1) and not (name == "load" and not self.placing.pace)

    def key(self, name: str) -> Floats:
        """One of :data:`KEYS`; 0 where a device is not open."""
        found: Floats = getattr(self, f"_{name}")()
        return found if self._all else np.where(self.open, found, 0.0)

    def _start(self) -> Floats:
        return self._later(self.starts)

    def _finish(self) -> Floats:
        return self._later(self.finish)

    def _ahead(self) -> Floats:
        """When all that is behind the operator can end."""
        return self._later(self.finish + self.way.behind[self.ready])

    def _speed(self) -> Floats:
        """Log of the operator's speed there, relative to the mean of the open devices."""
        speeds = self.keys.speeds[self.ready]
        counts = np.maximum(self.open.sum(axis=1, keepdims=True), 1)
        return np.asarray(speeds - np.where(self.open, speeds, 0.0).sum(axis=1, keepdims=True) / counts)

    def _moved(self) -> Floats:
        """Seconds of transfers to the device."""
        return np.asarray(-np.log1p(self.moved / self.keys.scale))

    def _memory(self) -> Floats:
        """Log of the share of the device's memory that is left with the operator on it."""
        return np.asarray(np.log(np.maximum(self.left * self.placing.per_room, FULL)))

    def _load(self) -> Floats:
        """What the device has to do, as far as it counts beside the way of the first of several pieces."""
        return np.asarray(-self.placing.pace * np.log1p((self.placing.busy + self.seconds) / self.keys.fair))

    def _rank(self) -> Floats:
        """How much shorter the operator's way is than the longest of those here."""
        ranks = np.array([self.way.ranks[task] for task in self.ready])
        shorter = -np.log1p((ranks.max() - ranks) / self.keys.scale)
        return np.repeat(shorter[:, None], len(self.placing.free), axis=1)

    def _later(self, moments: Floats) -> Floats:
        if not self._all:
            moments = np.where(self.open, moments, moments[self.open].min() if self.open.any() else 0.0)
        return np.asarray(-np.log1p((moments - moments.min()) / self.keys.scale))
