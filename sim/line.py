"""Line: when the stages of one pipeline are done, by the recurrence over their pieces; nobody else on its links."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .schedule import Piece

Way = tuple[bool, int, int]
"""A message's direction (whether of a backward pass), its source and its target: numbers of stages."""
ARRIVED, THROUGH, DONE = range(3)
"""A message is there; the last of it has left its links; a piece is done. In this order, if at once."""


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
    """What messages cross: those on the same link share it. A way without an entry is one of its own."""


def ends_of(work: Piecework) -> list[float]:
    """Per stage, when its last backward pass ends.

    1F1B as in Narayanan et al. 2019: a piece begins when its worker is free and its inputs have arrived; a message
    begins when the piece is done and the one before it on its way is through. Each message on a link gets an equal part
    of it.
    """
    return _Line(work).run()


@dataclass(slots=True)
class _Message:
    """On its way: what is left of it, and since when at which pace."""

    way: Way
    number: int
    left_s: float
    latency_s: float
    links: Sequence[int]
    since: float = 0.0
    pace: float = 1.0
    version: int = 0


class _Line:
    """Clocks of the workers, messages under way, and what is still to come."""

    def __init__(self, work: Piecework) -> None:
        self.work = work
        self.feeding = _inputs(work)
        self.places = [0] * len(work.orders)
        self.idle = [True] * len(work.orders)
        self.owed = [0] * len(work.orders)
        """Messages that a worker that waits for them still sends."""
        self.missing: dict[tuple[bool, int, int], int] = {}
        users = Counter(link for links in work.links.values() for link in links)
        self.shared = {way: [link for link in links if users[link] > 1] for way, links in work.links.items()}
        """Per way, its links that other ways cross as well: on the others a message is alone."""
        self.waiting: dict[Way, deque[_Message]] = {}
        self.under_way: dict[int, list[_Message]] = {}
        self.ends = [0.0] * len(work.jobs)
        self.worker_of = {stage: worker for worker, stages in enumerate(work.stages) for stage in stages}
        self.events: list[tuple[float, int, int, int, _Message | Piece | None]] = []
        """Time, what happens, at which worker (of a message: the count of its paces), a counter, and to what."""
        self.count = 0

    def run(self) -> list[float]:
        """Play all pieces, and say when each stage's last backward pass ends."""
        for worker in range(len(self.places)):
            self._next(worker, 0.0)
        while self.events:
            now, what, place, _, which = heapq.heappop(self.events)
            if what == THROUGH:
                assert isinstance(which, _Message)
                if place == which.version:
                    self._through(now, which)
                continue
            if what == DONE:
                assert isinstance(which, Piece)
                self._done(now, place, which)
            elif what == ARRIVED:
                assert isinstance(which, _Message)
                backward, _, stage = which.way
                key = backward, stage, which.number
                self.missing[key] = self.missing.get(key, len(self.feeding[backward][stage])) - 1
            if self.idle[place]:
                self._next(place, now)
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
        self._at(end, DONE, worker, order[place])

    def _at(self, when: float, what: int, place: int, which: _Message | Piece | None) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, what, place, self.count, which))

    def _done(self, now: float, worker: int, piece: Piece) -> None:
        """Send what others read of a piece that is done."""
        stage = self.work.stages[worker][piece.chunk]
        readers = self.feeding[not piece.backward][stage]
        self.owed[worker] = len(readers) if self.work.sender_waits else 0
        self.idle[worker] = not self.owed[worker]
        if piece.backward:
            self.ends[stage] = now
        for other in readers:
            way = piece.backward, stage, other
            busy, latency = self.work.messages[way][self.work.sizes[piece.micro_batch]]
            message = _Message(way, piece.micro_batch, busy, latency, self.shared.get(way, ()))
            queue = self.waiting.setdefault(way, deque())
            queue.append(message)
            if len(queue) == 1:
                self._go(now, message)

    def _go(self, now: float, message: _Message) -> None:
        """A message begins; those on its links go slower from now on."""
        message.since = now
        if not message.links:
            self._at(now + message.left_s, THROUGH, message.version, message)
            return
        for link in message.links:
            self.under_way.setdefault(link, []).append(message)
        self._repace(now, message)

    def _through(self, now: float, message: _Message) -> None:
        """A message is through, with its latency to come; the next on its way begins, the others go faster."""
        for link in message.links:
            self.under_way[link].remove(message)
        self._at(now + message.latency_s, ARRIVED, self.worker_of[message.way[2]], message)
        queue = self.waiting[message.way]
        queue.popleft()
        message.version = -1
        self._repace(now, message)
        if queue:
            self._go(now, queue[0])
        if self.work.sender_waits:
            self._released(now, message.way)

    def _released(self, now: float, way: Way) -> None:
        """A worker that waits for its messages has sent one; after the last it goes on."""
        backward, stage, _ = way
        worker = self.worker_of[stage]
        self.owed[worker] -= 1
        if not self.owed[worker]:
            self.idle[worker] = True
            if backward:
                self.ends[stage] = now
            self._next(worker, now)

    def _repace(self, now: float, changed: _Message) -> None:
        """The pace of all that share a link with a message: an equal part of the fullest of their links."""
        for message in {id(each): each for link in changed.links for each in self.under_way[link]}.values():
            message.left_s -= (now - message.since) * message.pace
            message.pace = 1 / max(len(self.under_way[link]) for link in message.links)
            message.since, message.version = now, message.version + 1
            self._at(now + max(message.left_s, 0.0) / message.pace, THROUGH, message.version, message)


def _inputs(work: Piecework) -> tuple[list[list[int]], list[list[int]]]:
    """Per stage, those that its forward pass waits for, and those that its backward pass does."""
    forward: list[list[int]] = [[] for _ in work.jobs]
    backward: list[list[int]] = [[] for _ in work.jobs]
    for back, source, target in work.messages:
        (backward if back else forward)[target].append(source)
    return forward, backward
