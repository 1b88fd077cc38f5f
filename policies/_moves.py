"""Moves: plans that differ from one in a single respect, for planners that improve what they found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ..sim.memory import positions
from ..sim.plan import Pipeline, Plan
from ._pipeline import evenly

FEW = 64
"""Pipelines up to which samples are moved between them: of more, a sample is a small part, and estimates take long."""
BUCKETS = (25.0, 50.0)
"""MiB of messages of gradients that are tried beside the plan's default."""


def rebucketed(plan: Plan) -> Iterator[Plan]:
    """Plans with smaller messages of gradients, where they flow beside the backward pass."""
    if plan.overlap and len(plan.pipelines) > 1:
        yield from (plan.model_copy(update={"bucket_mib": size}) for size in BUCKETS if size != plan.bucket_mib)


def changes(plan: Plan) -> Iterator[Plan]:
    """Plans that differ in the number of micro-batches, in one cut, or in the samples of all like pipelines."""
    yield from resized(plan)
    yield from _moved(plan)
    yield from shifted(plan)


def resized(plan: Plan) -> Iterator[Plan]:
    """Plans with fewer or more micro-batches: by one, or as many as the schedule asks for at a time."""

    def kind(pipeline: Pipeline) -> tuple[object, ...]:
        stages = tuple((stage.first, stage.last, len(stage.replicas[0].devices)) for stage in pipeline.stages)
        return stages, len(pipeline.micro_batches)

    for like in dict.fromkeys(map(kind, plan.pipelines)):
        members = [each for each in plan.pipelines if kind(each) == like]
        turn = max(positions(members[0])) + 1 if plan.schedule == "interleaved" else 1
        for step in (-turn, turn):
            count = len(members[0].micro_batches) + step
            if 0 < count <= min(each.samples for each in members):
                pipelines = [
                    each.model_copy(update={"micro_batches": evenly(each.samples, count)})
                    if kind(each) == like
                    else each
                    for each in plan.pipelines
                ]
                yield plan.model_copy(update={"pipelines": pipelines})


def shifted(plan: Plan) -> Iterator[Plan]:
    """Plans in which each pipeline of some samples gives one to those of other samples; of few pipelines only."""
    if len(plan.pipelines) > FEW:
        return
    places: dict[tuple[int, int], list[int]] = {}
    for number, pipeline in enumerate(plan.pipelines):
        places.setdefault((pipeline.samples, len(pipeline.micro_batches)), []).append(number)
    for giving, taking in itertools.permutations(places, 2):
        if giving[0] > 1:
            moved = dict.fromkeys(places[giving], -1)
            moved.update(zip(places[taking], evenly(len(places[giving]), len(places[taking])), strict=True))
            pipelines = [_dealt(each, moved.get(number, 0)) for number, each in enumerate(plan.pipelines)]
            yield plan.model_copy(update={"pipelines": pipelines})


def _dealt(pipeline: Pipeline, more: int) -> Pipeline:
    """With so many samples more, in as many micro-batches as there were, if they suffice."""
    samples = pipeline.samples + more
    sizes = evenly(samples, min(samples, len(pipeline.micro_batches))) if more else pipeline.micro_batches
    return pipeline.model_copy(update={"micro_batches": sizes})


def _moved(plan: Plan) -> Iterator[Plan]:
    """Plans that differ in one cut."""
    cuts = dict.fromkeys(tuple(stage.first for stage in pipeline.stages) for pipeline in plan.pipelines)
    for firsts in cuts:
        for place in range(1, len(firsts)):
            for step in (-1, 1):
                moved = (*firsts[:place], firsts[place] + step, *firsts[place + 1 :])
                ends = (*moved[1:], plan.pipelines[0].stages[-1].last)
                if all(a < b for a, b in zip(moved, ends, strict=True)):
                    pipelines = [_recut(each, firsts, moved, ends) for each in plan.pipelines]
                    yield plan.model_copy(update={"pipelines": pipelines})


def _recut(pipeline: Pipeline, firsts: tuple[int, ...], moved: Sequence[int], ends: Sequence[int]) -> Pipeline:
    if tuple(stage.first for stage in pipeline.stages) != firsts:
        return pipeline
    stages = [
        stage.model_copy(update={"first": first, "last": last})
        for stage, first, last in zip(pipeline.stages, moved, ends, strict=True)
    ]
    return pipeline.model_copy(update={"stages": stages})
