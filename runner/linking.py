"""Linking: what lanes take to sum gradients and to hand each other activations, as tables of time by size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import median

from ..sim.device import CollectivePoint, CollectiveTable
from ..sim.workload import Workload, at
from .devices import NamedLane, backend_of
from .launch import LaunchResult, Task

MOST_PAIRED = 6
"""Beyond so many lanes their pairs are not measured one by one: the table of all stands for them."""
REPEATS = 8
WORK = 2
"""Samples of the forward pass that comes before each collective, and before a message at its sender."""


def groups_of(lanes: int) -> list[list[int]]:
    """The sets of ranks over which gradients are summed in a calibration: all, and every pair."""
    everybody = list(range(lanes))
    pairs = [list(pair) for pair in combinations(everybody, 2)] if 2 < lanes <= MOST_PAIRED else []
    return [everybody, *pairs] if lanes > 1 else []


def largest_message_bytes(workload: Workload, samples: int) -> float:
    """Bytes of the largest message between stages that a micro-batch of so many samples makes, whatever the cut."""
    widest = max(at(layer.output_elements, workload.sequence_length) for layer in workload.layers)
    return widest * workload.element_bytes * samples


def message_sizes(workload: Workload) -> list[int]:
    """Bytes of messages between stages: from a kilobyte to beyond what a global batch hands on, by factors of 4."""
    top = largest_message_bytes(workload, workload.global_batch)
    sizes = [2**10]
    while sizes[-1] < top:
        sizes.append(sizes[-1] * 4)
    return [*sizes, sizes[-1] * 4] if len(sizes) < 2 else sizes


def message_tasks(workload: Workload, lanes: int) -> list[Task]:
    """Messages of every size between every pair of lanes."""
    if not 1 < lanes <= MOST_PAIRED:
        return []
    return [
        {"op": "message", "bytes": size, "repeats": REPEATS, "work": WORK, "ranks": list(pair)}
        for pair in combinations(range(lanes), 2)
        for size in message_sizes(workload)
    ]


def build_messages(lanes: Sequence[NamedLane], results: Sequence[LaunchResult]) -> list[CollectiveTable]:
    """A table per pair of lanes: from when the sender begins until the receiver has all, in either direction."""
    launches = [_messages(launch) for launch in results]
    tables = []
    for pair in sorted({pair for pair, _ in launches[0]}):
        sizes = sorted(size for other, size in launches[0] if other == pair)
        points = [
            CollectivePoint(bytes=size, seconds=median(median(each[pair, size]) for each in launches)) for size in sizes
        ]
        tables.append(
            CollectiveTable(
                kind="point_to_point",
                backend=backend_of(lane.torch_device for lane in lanes),
                devices=[lanes[rank].name for rank in pair],
                points=points,
                source="measured",
            )
        )
    return tables


def _messages(launch: LaunchResult) -> dict[tuple[tuple[int, ...], int], list[float]]:
    """Seconds of every message, by pair and size."""
    found: dict[tuple[tuple[int, ...], int], list[float]] = {}
    for number, task in enumerate(launch.tasks):
        if task["op"] == "message":
            one, other = (launch.answers[rank][number]["moments"] for rank in task["ranks"])
            seconds = [
                (b - a) if index % 2 == 0 else (a - b) for index, (a, b) in enumerate(zip(one, other, strict=True))
            ]
            found.setdefault((tuple(task["ranks"]), task["bytes"]), []).extend(seconds)
    return found
