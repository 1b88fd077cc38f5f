"""Nearest: the plan that a framework can run and that differs from a wanted one in the fewest respects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from ...policies.grid import equal_cuts
from ...results.errors import InputError
from ...sim.engine import objective_value
from ...sim.memory import groups, positions
from ...sim.plan import Pipeline, Plan, PlanError
from ...sim.schedule import Kind
from ...sim.spec import Objective, Scenario
from ...sim.view import Fixed
from .shape import BUCKET_MIB, Recompute, Shape, canonical, cuts_of
from .targets import Target

T = TypeVar("T")

MOST_SIMULATED = 48
"""Plans of one tier that are simulated: those that differ in equally many respects, in the order below."""
SIZES = 3
"""Micro-batch sizes that are tried: the divisors closest to what the plan has."""

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
SCHEDULES: tuple[Kind, ...] = ("1f1b", "gpipe", "interleaved")


class Nearest(NamedTuple):
    """A plan that can be run, and how it differs from the wanted one."""

    plan: Plan
    changed: list[str]
    """The respects in which it differs, as ``zero: 1 -> 2``."""
    step_s: float
    """Its simulated step time."""


def step_s(scenario: Scenario, plan: Plan) -> float:
    """The simulated median step time of a plan, in seconds, without what happens in the midst of a run."""
    still = scenario.model_copy(update={"objective": Objective(), "disturbances": [], "rebalance": None})
    launches = scenario.sampling.search_launches
    return scenario.workload.global_batch / objective_value(still, Fixed(plan), seed=scenario.seed, launches=launches)


def nearest(plan: Plan, scenario: Scenario, target: Target) -> Nearest:
    """Of the regular plans that a target can run, one that differs in the fewest respects; of those, the fastest.

    Raises:
        InputError: none of them is valid on this cluster; the reason is that of the first.
    """
    wanted = canonical(plan)
    reason: PlanError | None = None
    for tier in _tiers(wanted, scenario):
        found: list[Nearest] = []
        for candidate in tier:
            if len(found) == MOST_SIMULATED or target.problems(candidate, scenario):
                continue
            try:
                candidate.check(scenario)
            except PlanError as error:
                reason = reason or error
                continue
            found.append(Nearest(candidate, changes(wanted, candidate), step_s(scenario, candidate)))
        if found:
            return min(found, key=lambda each: each.step_s)
    why = f": {reason}" if reason is not None else ""
    raise InputError("PLAN", f"{target.name} can run no plan like it{why}", "use another target, or another plan")


def _tiers(wanted: Plan, scenario: Scenario) -> Iterator[list[Plan]]:
    """Candidates by the number of respects in which they differ, each of its plans once."""
    ranked: dict[int, list[Shape]] = {}
    for shape in dict.fromkeys(_candidates(wanted, scenario)):
        ranked.setdefault(_distance(wanted, shape), []).append(shape)
    seen: list[Plan] = []
    for _, shapes in sorted(ranked.items()):
        tier = [plan for plan in (shape.plan() for shape in shapes) if plan not in seen]
        seen += tier
        yield tier


def _distance(wanted: Plan, shape: Shape) -> int:
    """In how many respects a shape differs, as :func:`changes` counts them."""
    return len(changes(wanted, shape.plan()))


def changes(wanted: Plan, other: Plan) -> list[str]:
    """In which respects two canonical plans differ."""
    pairs = [
        ("devices", _devices(wanted), _devices(other)),
        ("stages", [cuts_of(each) for each in wanted.pipelines], [cuts_of(each) for each in other.pipelines]),
        ("micro_batches", _sizes(wanted), _sizes(other)),
        ("recompute", _of_stages(wanted, "recompute"), _of_stages(other, "recompute")),
        ("sequence_parallel", _of_stages(wanted, "sequence_parallel"), _of_stages(other, "sequence_parallel")),
        ("order", [each.order for each in wanted.pipelines], [None] * len(other.pipelines)),
    ]
    fields = ("schedule", "zero", "state_shares", "overlap", "bucket_mib", "sync_every", "dispatch", "deal")
    pairs += [(field, getattr(wanted, field), getattr(other, field)) for field in fields]
    return [f"{name}: {_short(name, before)} -> {_short(name, after)}" for name, before, after in _unlike(pairs)]


def _unlike(pairs: Sequence[tuple[str, object, object]]) -> Iterator[tuple[str, object, object]]:
    for name, before, after in pairs:
        # Rows of pipelines that are all alike are alike, however many pipelines there are.
        alike = isinstance(before, list) and isinstance(after, list) and _distinct(before) == _distinct(after)
        if before != after and not (alike and name in ("stages", "order")):
            yield name, before, after


def _distinct(values: Sequence[object]) -> list[object]:
    return [value for number, value in enumerate(values) if value not in values[:number]]


def _devices(plan: Plan) -> list[list[tuple[str, ...]]]:
    return [[group.devices for group in groups(pipeline)] for pipeline in plan.pipelines]


def _sizes(plan: Plan) -> list[list[int]]:
    return [list(pipeline.micro_batches) for pipeline in plan.pipelines]


def _of_stages(plan: Plan, field: str) -> list[object]:
    return _distinct([getattr(stage, field) for pipeline in plan.pipelines for stage in pipeline.stages])


def _short(name: str, value: object) -> str:
    """A respect in a few words."""
    if name == "devices" and isinstance(value, list):
        degrees = sorted({len(group) for workers in value for group in workers})
        depths = sorted({len(workers) for workers in value})
        return f"{len(value)} pipelines of {_or(depths)} groups of {_or(degrees)}"
    if isinstance(value, list):
        kinds = _distinct(value)
        if name in ("micro_batches", "stages"):
            shown = ", ".join("+".join(map(str, _few(each))) for each in kinds[:4])
        else:
            shown = ", ".join(map(str, kinds[:4]))
        return shown + (", ..." if len(kinds) > 4 else "")
    return "unequal" if isinstance(value, dict) else str(value)


def _few(values: object) -> list[object]:
    assert isinstance(values, list | tuple), "a row of numbers"
    return [*values[:6], "..."] if len(values) > 6 else list(values)


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


# ---- regular plans near a plan ----


def _candidates(plan: Plan, scenario: Scenario) -> Iterator[Shape]:
    """Regular plans on the plan's devices, those that keep most of it first."""
    first = plan.pipelines[0].stages[0]
    for base in _bases(plan, scenario):
        kinds = [kind for kind in _first(plan.schedule, SCHEDULES) if (kind == "interleaved") == (base.chunks > 1)]
        options = itertools.product(
            kinds if base.pipeline > 1 else kinds[:1],  # a single stage has no schedule
            _first(first.recompute, RECOMPUTE),
            [False, True] if base.tensor > 1 else [False],
            range(4) if base.data > 1 else [0],
            [True, False] if base.data > 1 else [True],
            _first(plan.bucket_mib, [BUCKET_MIB]) if base.data > 1 else [BUCKET_MIB],
        )
        for schedule, recompute, sequences, zero, overlap, bucket in options:
            yield replace(
                base,
                schedule=schedule,
                recompute=recompute,
                sequence_parallel=sequences,
                zero=zero,
                overlap=overlap,
                bucket_mib=bucket,
            )


def _first(own: T, others: Sequence[T]) -> list[T]:
    """Values with the plan's own in front."""
    return list(dict.fromkeys((own, *others)))


def _bases(plan: Plan, scenario: Scenario) -> Iterator[Shape]:
    """Ways to cut and to place: the plan's own where it is regular, else each that one of its pipelines has."""
    limit = scenario.workload.max_micro_batch
    batch = scenario.workload.global_batch
    usual = _median([size for pipeline in plan.pipelines for size in pipeline.micro_batches])
    own = [tuple(pipeline.micro_batches) for pipeline in _by_samples(plan)]
    for workers, cuts in _placements(plan, scenario):
        if len(workers) == len(own) and len(workers[0]) * len(workers[0][0]) == 1:
            yield Shape(groups=workers, cuts=cuts, sizes=tuple(own))  # unequal ones, where a framework takes them
        for data in [count for count in range(len(workers), 0, -1) if batch % count == 0][:SIZES]:
            chunks = (len(cuts) - 1) // len(workers[0])
            for size in _divisors(batch // data, usual, limit, len(workers[0]) if chunks > 1 else 1):
                sizes = ((size,) * (batch // data // size),) * data
                yield Shape(groups=workers[:data], cuts=cuts, sizes=sizes)


def _placements(
    plan: Plan, scenario: Scenario
) -> Iterator[tuple[tuple[tuple[tuple[str, ...], ...], ...], tuple[int, ...]]]:
    """Groups of devices and cuts, by the degrees that the plan's pipelines have; those with most samples first."""
    pipelines = _by_samples(plan)
    shapes = dict.fromkeys((max(positions(each)) + 1, _degree(each), cuts_of(each)) for each in pipelines)
    flat = [name for pipeline in pipelines for name in pipeline.devices]
    tried = dict.fromkeys([*shapes, *((1, 1, (0, cuts[-1])) for _, _, cuts in shapes)])
    for depth, degree, cuts in tried:
        regular = [each for each in pipelines if (max(positions(each)) + 1, _degree(each)) == (depth, degree)]
        workers = [tuple(group.devices for group in groups(each)) for each in regular if _is_plain(each, degree)]
        if len(workers) < len(pipelines):
            step = depth * degree
            chosen = [flat[start : start + step] for start in range(0, len(flat) - step + 1, step)]
            workers = [tuple(tuple(names[at : at + degree]) for at in range(0, step, degree)) for names in chosen]
        if workers:
            stages = (len(cuts) - 1) // depth * depth
            equal = equal_cuts([round(layer.forward_flops(1)) for layer in scenario.workload.layers], max(stages, 1))
            for bounds in dict.fromkeys((cuts, tuple(equal))):
                if (len(bounds) - 1) % depth == 0:
                    yield tuple(workers), bounds


def _by_samples(plan: Plan) -> list[Pipeline]:
    """The plan's pipelines, those with most samples first: where some must be left out, it is the others."""
    return sorted(plan.pipelines, key=lambda pipeline: -pipeline.samples)


def _is_plain(pipeline: Pipeline, degree: int) -> bool:
    alone = all(len(stage.replicas) == 1 and len(stage.replicas[0].devices) == degree for stage in pipeline.stages)
    return alone and pipeline.order is None


def _degree(pipeline: Pipeline) -> int:
    return len(pipeline.stages[0].replicas[0].devices)


def _divisors(samples: int, usual: int, limit: int | None, workers: int) -> list[int]:
    """Sizes of equal micro-batches of so many samples, those closest to the usual one first."""
    fits = [
        size
        for size in range(1, min(samples, limit or samples) + 1)
        if samples % size == 0 and samples // size % workers == 0
    ]
    return sorted(fits, key=lambda size: abs(math.log(size / usual)))[:SIZES]


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
