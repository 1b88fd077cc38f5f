"""Line: when the stages of one pipeline are done, by the recurrence over their pieces; nobody else on its links."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .schedule import Piece

Way = tuple[bool, int, int]
"""A message's direction (whether of a backward pass), its source and its target: numbers of stages."""
ARRIVED, DONE, FREE = range(3)
"""A message is there; a piece is done; its worker has nothing more to do with it. In this order, if at once."""


@dataclass(frozen=True, slots=True)
class Piecework:
    """A pipeline as the recurrence needs it."""

    orders: Sequence[tuple[Piece, ...]]
    """Per worker, its pieces in order."""
    stages: Sequence[tuple[int, ...]]
    """Per worker, the stages that its chunks are."""
    jobs: Sequence[Mapping[int, tuple[float, float]]]
    """Per stage, forward and backward seconds by the size of the micro-batch."""
    messages: Mapping[Way, Mapping[int, tuple[float, float]]]
    """Per way, by size: seconds that a message keeps it busy, and its latency."""
    sizes: Sequence[int]
    """Samples of each micro-batch."""
    sender_waits: bool = False
    """Whether a worker does nothing else while it sends."""
    links: Mapping[Way, Sequence[int]] = field(default_factory=dict)
    """What messages cross; those that cross the same link take turns. A way without an entry is one of its own."""


def ends_of(work: Piecework) -> list[float]:
    """Per stage, when its last backward pass ends.

    1F1B as in Narayanan et al. 2019: a piece begins when its worker is free and its inputs have arrived; a message
    begins when the piece is done and its way is free, in the order in which messages are ready.
    """
    return _Line(work).run()


class _Line:
    """Clocks of the workers and of the links, and what is still to come."""

    def __init__(self, work: Piecework) -> None:
        self.work = work
        self.feeding = _inputs(work)
        self.places = [0] * len(work.orders)
        self.idle = [True] * len(work.orders)
        self.missing: dict[tuple[bool, int, int], int] = {}
        self.free: dict[object, float] = {}
        self.ends = [0.0] * len(work.jobs)
        self.worker_of = {stage: worker for worker, stages in enumerate(work.stages) for stage in stages}
        self.events: list[tuple[float, int, int, bool, int]] = []
        """Time, what happens, stage, whether backward, micro-batch."""

    def run(self) -> list[float]:
        """Play all pieces, and say when each stage's last backward pass ends."""
        for worker in range(len(self.places)):
            self._next(worker, 0.0)
        while self.events:
            now, what, stage, backward, number = heapq.heappop(self.events)
            if what == DONE:
                self._sent(now, stage, backward, number)
            elif what == ARRIVED:
                key = backward, stage, number
                self.missing[key] = self.missing.get(key, len(self.feeding[backward][stage])) - 1
            else:
                self.idle[self.worker_of[stage]] = True
            if self.idle[self.worker_of[stage]]:
                self._next(self.worker_of[stage], now)
        return self.ends

    def _next(self, worker: int, now: float) -> None:
        """Begin the worker's next piece, if all that it reads is there."""
        order, place = self.work.orders[worker], self.places[worker]
        if place == len(order):
            return
        backward, chunk, number = order[place]
        stage = self.work.stages[worker][chunk]
        feeding = self.feeding[backward][stage]
        if feeding and self.missing.get((backward, stage, number), len(feeding)):
            return
        self.places[worker], self.idle[worker] = place + 1, False
        end = now + self.work.jobs[stage][self.work.sizes[number]][backward]
        heapq.heappush(self.events, (end, DONE, stage, backward, number))

    def _sent(self, now: float, stage: int, backward: bool, number: int) -> None:
        """Send what others read of a piece that is done; the worker is free again, if it need not wait for that."""
        work, until = self.work, now
        for other in self.feeding[not backward][stage]:
            way = backward, stage, other
            busy, latency = work.messages[way][work.sizes[number]]
            links: Sequence[object] = work.links.get(way) or (way,)
            sent = max(until if work.sender_waits else now, *(self.free.get(link, 0.0) for link in links)) + busy
            self.free.update(dict.fromkeys(links, sent))
            heapq.heappush(self.events, (sent + latency, ARRIVED, other, backward, number))
            until = sent if work.sender_waits else until
        if backward:
            self.ends[stage] = until
        heapq.heappush(self.events, (until, FREE, stage, backward, number))


def _inputs(work: Piecework) -> tuple[list[list[int]], list[list[int]]]:
    """Per stage, those that its forward pass waits for, and those that its backward pass does."""
    forward: list[list[int]] = [[] for _ in work.jobs]
    backward: list[list[int]] = [[] for _ in work.jobs]
    for back, source, target in work.messages:
        (backward if back else forward)[target].append(source)
    return forward, backward
