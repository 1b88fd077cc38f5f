"""Intervals: what the members of a group measured in a step, as rows of a run's events.

A member tells when it computed, and when it was in a collective. What lies between is told by its peers' segments: a
stage that has nothing to do until its neighbour is done stands in the pipeline's bubble; from then until it begins,
the data is on its way. A collective begins when the last of those who share weights with the member has entered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Segments = Sequence[Sequence[Any]]
"""Of one member and step: kind, micro-batch, start, end, own seconds, stage."""
Moments = dict[tuple[str, int, int, int], float]
"""When the pass of a micro-batch (kind, pipeline, stage, number) was over."""


def step_rows(
    segments: Mapping[int, Segments], task: Mapping[str, Any], since: Mapping[int, float] | None = None
) -> Iterator[Row]:
    """One step's intervals, ``device`` being the rank.

    Args:
        segments: of each rank that takes part.
        task: the block's task: with a ``program``, or plain data parallelism.
        since: when each rank ended the step before; None: the step is the first, and begins with its own segments.
    """
    program = task.get("program")
    place, sharing = _places(segments, program)
    entered = {rank: each[2] for rank, own in segments.items() for each in own if each[0] == "communication"}
    over: Moments = {
        (kind, place[rank][0], stage, number): end
        for rank, own in segments.items()
        for kind, number, _, end, _, stage in own
        if kind in ("forward", "backward")
    }
    for rank, own in segments.items():
        cursor = since[rank] if since is not None else own[0][2]
        last_entry = max((entered[peer] for peer in sharing[rank] if peer in entered), default=0.0)
        for kind, number, start, end, _, stage in own:
            common = {"device": rank, "pipeline": place[rank][0], "micro_batch": number, "stage": stage}
            if program is not None:
                yield from _gap(cursor, start, _ready(over, kind, place[rank], stage, number), common)
            if kind == "communication":
                last = min(max(last_entry, start), end) if number == -1 else start
                yield {**common, "micro_batch": -1, "kind": "wait", "start_s": start, "end_s": last}
                start = last  # noqa: PLW2901 - what is left of it
            yield {**common, "micro_batch": max(number, -1), "kind": kind, "start_s": start, "end_s": end}
            cursor = end


def _places(
    ranks: Iterable[int], program: Mapping[str, Any] | None
) -> tuple[dict[int, tuple[int, int]], dict[int, set[int]]]:
    """Per rank, its pipeline and how many stages that has (0: data parallelism), and who holds some layer with it."""
    if program is None:
        place = {rank: (number, 0) for number, rank in enumerate(ranks)}
        return place, {rank: set(place) for rank in place}
    place = {
        stage["rank"]: (number, len(pipeline["stages"]))
        for number, pipeline in enumerate(program["pipelines"])
        for stage in pipeline["stages"]
    }
    return place, _sharing(program)


def _sharing(program: Mapping[str, Any]) -> dict[int, set[int]]:
    """Per rank, those that hold some layer with it."""
    stages = [stage for pipeline in program["pipelines"] for stage in pipeline["stages"]]
    found: dict[int, set[int]] = {stage["rank"]: set() for stage in stages}
    for one in stages:
        for other in stages:
            if one["first"] < other["last"] and other["first"] < one["last"]:
                found[one["rank"]].add(other["rank"])
    return found


def _ready(over: Moments, kind: str, place: tuple[int, int], stage: int, number: int) -> float | None:
    """When what a pass waits for was there; None: it waits for nobody's pass."""
    pipeline, _ = place
    if kind == "forward":
        return over.get(("forward", pipeline, stage - 1, number))
    if kind == "backward":
        return over.get(("backward", pipeline, stage + 1, number))
    return None


def _gap(cursor: float, start: float, ready: float | None, common: Row) -> Iterator[Row]:
    """What a member did between two segments: it waited for a neighbour's pass, then for its data."""
    if start <= cursor:
        return
    moved = cursor if ready is None else min(max(ready, cursor), start)
    if moved > cursor:
        yield {**common, "kind": "bubble", "start_s": cursor, "end_s": moved}
    if start > moved:
        yield {**common, "kind": "communication", "start_s": moved, "end_s": start}
