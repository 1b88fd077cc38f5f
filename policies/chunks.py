"""Chunks: a plan's pipelines interleaved, each device holding several runs of layers instead of one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..sim.plan import Pipeline, Plan, Stage
from .grid import equal_cuts
from .shapes import Foundry, Seat

CHUNKS = (2, 3, 4, 6, 8)
"""Runs of layers per device that are tried."""
TICKS = 1e6
"""Parts into which the time of a layer is cut, since the cuts are made by whole numbers."""


def interleaved(foundry: Foundry, plan: Plan) -> Iterator[Plan]:
    """The plan with interleaved 1F1B (Narayanan et al. 2021) for all numbers of chunks that its layers allow.

    For pipelines of like devices whose micro-batches come in whole rounds. The layers are cut anew, by time.
    """
    depths = {len(pipeline.stages) for pipeline in plan.pipelines}
    depth = max(depths)
    whole = all(len(pipeline.micro_batches) % depth == 0 for pipeline in plan.pipelines)
    if len(depths) > 1 or depth < 2 or plan.schedule != "1f1b" or not whole or len(foundry.kinds) > 1:
        return
    for chunks in CHUNKS:
        if depth * chunks <= foundry.layers:
            bounds = equal_cuts(_ticks(foundry, plan), depth * chunks)
            pipelines = [_dealt(pipeline, bounds) for pipeline in plan.pipelines]
            yield plan.model_copy(update={"pipelines": pipelines, "schedule": "interleaved"})


def _ticks(foundry: Foundry, plan: Plan) -> list[int]:
    """Times of the layers for the largest micro-batch of the first pipeline, in whole parts of the longest."""
    first = plan.pipelines[0]
    stage, size = first.stages[0], max(first.micro_batches)
    seat = Seat(0, len(stage.replicas[0].devices))
    times = [foundry.stage_s(seat, size, stage.recompute, layer, layer + 1) for layer in range(foundry.layers)]
    return [max(1, round(each / max(times) * TICKS)) for each in times]


def _dealt(pipeline: Pipeline, bounds: list[int]) -> Pipeline:
    """Runs of layers dealt round the pipeline's devices, each as much recomputed as its device's stage was."""
    stages: list[Stage] = []
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        held = pipeline.stages[number % len(pipeline.stages)]
        stages.append(held.model_copy(update={"first": first, "last": last}))
    return pipeline.model_copy(update={"stages": stages})
