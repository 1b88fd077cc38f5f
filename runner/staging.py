"""Staging, measured: what a pass of a stage takes beyond its layers' time in a step of the whole model, messages too.

All lanes are stages of one pipeline, of as many layers each as the others, at a calibrated micro-batch size. No plan
that is replayed is it: its size is held out with it (:class:`~steelyard.sim.device.StagePass`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from ..sim.device import CollectiveTable, LayerProfile, StagePass
from ..sim.measured import interpolate
from ..sim.plan import PlanError
from ..sim.workload import Workload
from .execution import Program, refuse_family
from .launch import LaunchResult, Task
from .linking import largest_message_bytes

PLACE = 1
"""Among the calibrated sizes, from the smallest."""
MICRO_BATCHES_PER_STAGE = 2
TURNS, STEPS = 3, 4
SHOWN = 0.25
"""Of all turns, the share that may find no extra where there is one."""


def staging_tasks(workload: Workload, sizes: Sequence[int], lanes: int) -> list[Task]:
    """Steps of a pipeline over all lanes; none where there is one lane, or where the model cannot be cut."""
    stages = min(lanes, len(workload.layers))
    try:
        refuse_family(workload, "workload.model")
    except PlanError:
        return []
    if stages < 2:
        return []
    size = sorted(sizes)[PLACE]
    program = _pipeline(len(workload.layers), stages, [size] * (MICRO_BATCHES_PER_STAGE * stages))
    ranks = list(range(stages))
    return [{"op": "stages", "micro_batch": size, "program": program, "ranks": ranks, "turns": TURNS, "steps": STEPS}]


def message_s(workload: Workload, results: Sequence[LaunchResult], messages: Sequence[CollectiveTable]) -> float:
    """Seconds that a message of that pipeline is under way at most, by the tables of all pairs of lanes."""
    size = next((task["micro_batch"] for task in results[0].tasks if task["op"] == "stages"), 0)
    size_bytes = largest_message_bytes(workload, size)
    return max((interpolate(table.points, size_bytes) for table in messages), default=0.0) if size else 0.0


def _pipeline(layers: int, stages: int, sizes: list[int]) -> Program:
    cuts = [round(layers * number / stages) for number in range(stages + 1)]
    own = [{"first": cuts[rank], "last": cuts[rank + 1], "rank": rank, "recompute": False} for rank in range(stages)]
    return {"pipelines": [{"stages": own, "sizes": sizes, "first": 0}], "schedule": "gpipe", "zero": 0}


def stage_pass(
    results: Sequence[LaunchResult], rank: int, layers: LayerProfile, under_way_s: float = 0.0
) -> StagePass | None:
    """One lane's: what its passes take longer, and what it spends between them on messages.

    How much longer is the median over all turns of what each found; 0 where too many of them found none. Both sides are
    of the same turn: the steps of the whole model in it, and of them the part of the stage's layers by the table.

    Args:
        results: of the calibration's launches.
        rank: of the lane.
        layers: its table by layer.
        under_way_s: what :func:`message_s` says.

    Returns:
        None where the lane was no stage, or the table has no such size.
    """
    answers = [each for launch in results for each in launch.of("stages", rank)]
    if not answers or rank not in answers[0][0]["ranks"]:
        return None
    task = answers[0][0]
    point = next((each for each in layers.points if each.micro_batch == task["micro_batch"]), None)
    if point is None:
        return None
    stage = next(each for each in task["program"]["pipelines"][0]["stages"] if each["rank"] == rank)
    own = slice(stage["first"], stage["last"])
    found = []
    for way, seconds in (("forward", point.forward_s), ("backward", point.backward_s)):
        part = sum(seconds[own]) / sum(seconds)
        turns = [
            _pass_s(piped, way) - part * _pass_s(whole, way)
            for task, answer in answers
            for piped, whole in zip(*(_turns(answer[key], task["steps"]) for key in ("steps", "whole")), strict=True)
        ]
        found.append(_shown(turns) + _handling_s(results, rank, way, under_way_s))
    return StagePass(micro_batch=task["micro_batch"], forward_s=found[0], backward_s=found[1])


def _handling_s(results: Sequence[LaunchResult], rank: int, way: str, under_way_s: float) -> float:
    """Median seconds from the end of a lane's pass to the begin of its next, where it need not wait for a message.

    Taking a message that lies there and sending one off keep a processor for tenths of a millisecond. What it waits for
    messages under way is the link's, not the lane's.
    """
    gaps = [
        gap
        for launch in results
        for answers in zip(*(launch.of("stages", each) for each in range(len(launch.answers))), strict=True)
        if rank in (ranks := answers[0][0]["ranks"])
        for step in zip(*(answers[each][1]["steps"] for each in ranks), strict=True)
        for gap in _gaps(step, ranks.index(rank), way, under_way_s)
    ]
    return median(gaps) if gaps else 0.0


def _gaps(step: Sequence[Sequence[Sequence[Any]]], place: int, way: str, under_way_s: float) -> Iterator[float]:
    """Seconds before those passes of a stage whose message was there when the pass before began, or that need none.

    Args:
        step: per stage, its segments.
        place: of the stage.
        way: of the passes.
        under_way_s: how long a message is under way, of which several may be on the same link.
    """
    giver = place - 1 if way == "forward" else place + 1
    given = step[giver] if 0 <= giver < len(step) else ()
    handed: dict[int, float] = {}
    free = -math.inf
    for kind, number, _, end, *_ in given:
        if kind == way:
            handed[number] = free = max(free, end) + under_way_s
    passes = [each for each in step[place] if each[0] in ("forward", "backward")]
    for (_, _, begun, over, *_), (kind, number, start, *_) in itertools.pairwise(passes):
        if kind == way and handed.get(number, begun) <= begun:
            yield start - over


def _turns(steps: Sequence[Any], each: int) -> list[Sequence[Any]]:
    return [steps[start : start + each] for start in range(0, len(steps), each)]


def _pass_s(steps: Sequence[Sequence[Sequence[Any]]], way: str) -> float:
    """Median seconds of the passes of some steps."""
    return float(median(end - start for step in steps for kind, _, start, end, *_ in step if kind == way))


def _shown(extras: Sequence[float]) -> float:
    """Their median, where most of them are above 0: luck is no rule."""
    return median(extras) if sorted(extras)[int(SHOWN * (len(extras) - 1))] > 0 else 0.0
