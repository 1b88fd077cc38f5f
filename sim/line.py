"""Line: when the stages of one pipeline are done, by the recurrence over their pieces; nothing else on the links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .schedule import Piece


@dataclass(frozen=True, slots=True)
class Piecework:
    """A pipeline as the recurrence needs it."""

    orders: Sequence[tuple[Piece, ...]]
    """Per worker, its pieces in order."""
    stages: Sequence[tuple[int, ...]]
    """Per worker, the stages that its chunks are."""
    jobs: Sequence[Mapping[int, tuple[float, float]]]
    """Per stage, forward and backward seconds by the size of the micro-batch."""
    messages: Mapping[tuple[int, int], Mapping[int, tuple[float, float]]]
    """Per edge between stages, by size: seconds that a message keeps its way busy, and its latency."""
    sizes: Sequence[int]
    """Samples of each micro-batch."""
    sender_waits: bool = False
    """Whether a worker does nothing else while it sends."""


def ends_of(work: Piecework) -> list[float]:
    """Per stage, when its last backward pass ends.

    1F1B as in Narayanan et al. 2019: a piece begins when its worker is free and its inputs have arrived; a message
    begins when the piece is done and its way is free.
    """
    feeding = _inputs(work)
    clocks, places = [0.0] * len(work.orders), [0] * len(work.orders)
    arrived: dict[tuple[bool, int, int, int], float] = {}
    free: dict[tuple[bool, int, int], float] = {}
    ends = [0.0] * len(work.jobs)
    moved = True
    while moved:
        moved = False
        for worker, order in enumerate(work.orders):
            while places[worker] < len(order):
                backward, chunk, number = order[places[worker]]
                stage = work.stages[worker][chunk]
                start = clocks[worker]
                try:
                    for other in feeding[backward][stage]:
                        start = max(start, arrived[backward, other, stage, number])
                except KeyError:
                    break
                size = work.sizes[number]
                end = start + work.jobs[stage][size][backward]
                for other in feeding[not backward][stage]:
                    edge = (other, stage) if backward else (stage, other)
                    busy, latency = work.messages[edge][size]
                    sent = max(end, free.get((backward, stage, other), 0.0)) + busy
                    free[backward, stage, other] = sent
                    arrived[backward, stage, other, number] = sent + latency
                    end = sent if work.sender_waits else end
                clocks[worker], places[worker], moved = end, places[worker] + 1, True
                if backward:
                    ends[stage] = end
    return ends


def _inputs(work: Piecework) -> tuple[list[list[int]], list[list[int]]]:
    """Per stage, those that its forward pass waits for, and those that its backward pass does."""
    forward: list[list[int]] = [[] for _ in work.jobs]
    backward: list[list[int]] = [[] for _ in work.jobs]
    for source, target in work.messages:
        forward[target].append(source)
        backward[source].append(target)
    return forward, backward
