"""Linking: what lanes take to sum gradients and to hand each other activations, as tables of time by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median

from ..sim.device import CollectiveKind, CollectivePoint, CollectiveTable
from ..sim.measured import interpolate
from ..sim.workload import Workload, at
from .blocks import thin
from .devices import NamedLane, backend_of
from .launch import LaunchResult, Task

MOST_PAIRED = 6
"""Beyond so many lanes their pairs are not measured one by one: the table of all stands for them."""
REPEATS = 8
WORK = 2
"""Samples of the forward pass that comes before each collective, and before a message at its sender."""

SHARDING: tuple[CollectiveKind, ...] = ("reduce_scatter", "all_gather")
"""Collectives of sharded states, measured over all lanes."""


def groups_of(lanes: int) -> list[list[int]]:
    """The sets of ranks over which gradients are summed in a calibration: all, and every pair."""
    everybody = list(range(lanes))
    pairs = [list(pair) for pair in combinations(everybody, 2)] if 2 < lanes <= MOST_PAIRED else []
    return [everybody, *pairs] if lanes > 1 else []


def largest_message_bytes(workload: Workload, samples: int) -> float:
    """Bytes of the largest message between stages that a micro-batch of so many samples makes, whatever the cut."""
    widest = max(at(layer.output_elements, workload.sequence_length) for layer in workload.layers)
    return widest * workload.element_bytes * samples


def build_collective(
    workload: Workload,
    lanes: Sequence[NamedLane],
    results: Sequence[LaunchResult],
    ranks: Sequence[int],
    kind: CollectiveKind = "all_reduce",
) -> CollectiveTable:
    """The table of a collective over some lanes: from the last entry to the last exit, median of the launches' medians.

    Its noise is that of sizes near the gradients': a call that takes microseconds varies by far more of itself.
    """
    launches = [_collective_s(launch, ranks, kind) for launch in results]
    medians = {size: [median(launch[size]) for launch in launches] for size in sorted(launches[0])}
    overall = {size: median(each) for size, each in medians.items()}
    near = [size for size in overall if workload.gradient_bytes / 3 <= size <= workload.gradient_bytes * 3]
    near = near or [max(overall)]
    residuals = [
        seconds / medians[size][number] - 1
        for size in near
        for number, launch in enumerate(launches)
        for seconds in launch[size]
    ]
    return CollectiveTable(
        kind=kind,
        backend=backend_of(lane.torch_device for lane in lanes),
        devices=[lanes[rank].name for rank in ranks],
        points=[CollectivePoint(bytes=size, seconds=seconds) for size, seconds in overall.items()],
        step_residuals=thin(residuals),
        launch_residuals=[
            median(medians[size][number] / overall[size] - 1 for size in near) for number in range(len(launches))
        ],
    )


def collective_sizes(workload: Workload) -> list[int]:
    """Sizes to measure: powers of two from 16 KiB to beyond the gradients', which fall between two of them."""
    top = max(workload.gradient_bytes, 2**16)
    sizes = [2**14]
    while sizes[-1] < top:
        sizes.append(sizes[-1] * 4 if sizes[-1] * 8 < top else sizes[-1] * 2)
    return [size for size in sizes if size != workload.gradient_bytes] + [sizes[-1] * 2]


def in_steps(
    tables: Sequence[CollectiveTable], workload: Workload, results: Sequence[LaunchResult]
) -> list[CollectiveTable]:
    """Tables of all-reduces as slow as those between the passes of steps are.

    Timed apart, with a small forward pass before it, an all-reduce finds other caches and threads, and is faster than
    after a step's backward pass. The calibration's own blocks of steps tell by how much, whatever their splits are.

    Args:
        tables: timed apart; the first is of all lanes, as those blocks are.
        workload: whose gradients the blocks sum.
        results: of the calibration's launches; without such blocks the tables stay.
    """
    blocks = [each for launch in results for each in _within_steps_s(launch)]
    if not tables or not blocks:
        return list(tables)
    factor = median(map(median, blocks)) / interpolate(tables[0].points, workload.gradient_bytes)
    residuals = thin([each / median(block) - 1 for block in blocks for each in block])
    return [table.within_steps(factor, residuals) for table in tables]


def _within_steps_s(launch: LaunchResult) -> list[list[float]]:
    """Per block of steps that sum gradients over all members, each one's time from the last entry to the last exit."""
    blocks = zip(*(launch.of("block", rank) for rank in range(len(launch.answers))), strict=True)
    found = []
    for block in blocks:
        steps = zip(*(answer["steps"] for _, answer in block), strict=True)
        spans = [[each for own in step for each in own if each[0] == "communication"] for step in steps]
        whole = [step for step in spans if len(step) == len(block)]
        if whole:
            found.append([_together_s((start, end) for _, _, start, end, *_ in step) for step in whole])
    return found


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


def _collective_s(launch: LaunchResult, ranks: Sequence[int], kind: CollectiveKind) -> dict[int, list[float]]:
    """Seconds of every collective over some ranks by size: from the last one's entry to the last one's exit."""
    found: dict[int, list[float]] = {}
    for per_rank in zip(*(launch.of(kind, rank) for rank in ranks), strict=True):
        if per_rank[0][0]["ranks"] != list(ranks):
            continue
        calls = zip(*(answer["times"] for _, answer in per_rank), strict=True)
        found.setdefault(per_rank[0][0]["bytes"], []).extend(map(_together_s, calls))
    return found


def _together_s(call: Iterable[tuple[float, float]]) -> float:
    """Seconds of one collective, of whose members each entered and left it: from the last entry to the last exit."""
    entries, exits = zip(*call, strict=True)
    return float(max(exits) - max(entries))
