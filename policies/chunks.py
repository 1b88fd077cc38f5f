"""Chunks: a plan's pipelines interleaved, each device holding several runs of layers instead of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from ..sim.plan import Plan, Stage
from ..sim.roofline import Recompute
from .grid import equal_cuts
from .shapes import RECOMPUTE, Foundry, Seat

CHUNKS = (2, 3, 4, 6, 8)
"""Runs of layers per device that are tried."""
PARTS = 8
STEPS: tuple[tuple[Recompute, int], ...] = (
    ("none", 0),
    *(("selective", part) for part in range(1, PARTS + 1)),
    *(("full", part) for part in range(1, PARTS + 1)),
)
"""What the first devices recompute at least, and how many eighths of the devices these are: the least first."""
TICKS = 1e6
"""Parts into which the time of a layer is cut, since the cuts are made by whole numbers."""


def interleaved(foundry: Foundry, plan: Plan, fits: Callable[[Plan], bool]) -> Iterator[Plan]:
    """The plan with interleaved 1F1B (Narayanan et al. 2021) for all numbers of chunks with which it fits.

    For pipelines of like devices whose micro-batches come in whole rounds. The layers are cut anew, by time. More
    micro-batches are in flight than without chunks, most on the first devices: these recompute more, as many as must.

    Args:
        foundry: knows layers and devices.
        plan: of several stages, 1F1B.
        fits: whether a plan is valid.
    """
    depths = {len(pipeline.stages) for pipeline in plan.pipelines}
    depth = max(depths)
    whole = all(len(pipeline.micro_batches) % depth == 0 for pipeline in plan.pipelines)
    if len(depths) > 1 or depth < 2 or plan.schedule != "1f1b" or not whole or len(foundry.kinds) > 1:
        return
    for chunks in CHUNKS:
        if depth * chunks <= foundry.layers:
            bounds = equal_cuts(_ticks(foundry, plan), depth * chunks)
            dealt = (_dealt(plan, bounds, more, depth * part // PARTS) for more, part in STEPS)
            yield from itertools.islice(filter(fits, dealt), 1)


def _ticks(foundry: Foundry, plan: Plan) -> list[int]:
    """Times of the layers for the largest micro-batch of the first pipeline, in whole parts of the longest."""
    first = plan.pipelines[0]
    stage, size = first.stages[0], max(first.micro_batches)
    seat = Seat(0, len(stage.replicas[0].devices))
    times = [foundry.stage_s(seat, size, stage.recompute, layer, layer + 1) for layer in range(foundry.layers)]
    return [max(1, round(each / max(times) * TICKS)) for each in times]


def _dealt(plan: Plan, bounds: Sequence[int], more: Recompute, first: int) -> Plan:
    """Runs of layers dealt round each pipeline's devices, recomputed as before, or on the first devices more."""
    pipelines = []
    for pipeline in plan.pipelines:
        stages: list[Stage] = []
        for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
            place = number % len(pipeline.stages)
            held = pipeline.stages[place]
            way = max(held.recompute, more, key=RECOMPUTE.index) if place < first else held.recompute
            stages.append(held.model_copy(update={"first": begin, "last": end, "recompute": way}))
        pipelines.append(pipeline.model_copy(update={"stages": stages}))
    return plan.model_copy(update={"pipelines": pipelines, "schedule": "interleaved"})
