"""Shape: the regular plans that training frameworks can be told to run, and where a plan is not one of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from ...sim.memory import groups, positions
from ...sim.plan import Pipeline, Plan, Replica, Stage
from ...sim.schedule import Kind

Recompute = Literal["none", "selective", "full"]

BUCKET_MIB = 100.0
"""What a plan says where nobody set it; frameworks that cannot be told keep to their own."""


class Problem(NamedTuple):
    """What of a plan a framework cannot be told, by the path in the plan (or of the scenario)."""

    path: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A regular plan: pipelines that are cut alike, on groups of one size; the numbers that frameworks ask for."""

    groups: tuple[tuple[tuple[str, ...], ...], ...]
    """Per pipeline, per worker (who holds every so-manyth stage), the devices of the tensor-parallel group."""
    cuts: tuple[int, ...]
    """Bounds of the stages: the first layer of each, and the number of layers."""
    sizes: tuple[tuple[int, ...], ...]
    """Per pipeline, its micro-batches in samples."""
    schedule: Kind = "gpipe"
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    zero: int = 0
    overlap: bool = True
    bucket_mib: float = BUCKET_MIB

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The shape of a regular plan (one without an answer of :func:`irregular`), in its canonical form."""
        plan = canonical(plan)
        first = plan.pipelines[0].stages[0]
        return cls(
            groups=tuple(tuple(tuple(group.devices) for group in groups(pipeline)) for pipeline in plan.pipelines),
            cuts=cuts_of(plan.pipelines[0]),
            sizes=tuple(tuple(pipeline.micro_batches) for pipeline in plan.pipelines),
            schedule=plan.schedule,
            recompute=first.recompute,
            sequence_parallel=first.sequence_parallel,
            zero=plan.zero,
            overlap=plan.overlap,
            bucket_mib=plan.bucket_mib,
        )

    @property
    def data(self) -> int:
        """Pipelines side by side."""
        return len(self.groups)

    @property
    def pipeline(self) -> int:
        """Workers of a pipeline."""
        return len(self.groups[0])

    @property
    def tensor(self) -> int:
        """Devices of a tensor-parallel group."""
        return len(self.groups[0][0])

    @property
    def chunks(self) -> int:
        """Stages per worker."""
        return (len(self.cuts) - 1) // self.pipeline

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch, where all are equal."""
        return self.sizes[0][0]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a pipeline, where all have equally many."""
        return len(self.sizes[0])

    @property
    def global_batch(self) -> int:
        """Samples per step."""
        return sum(map(sum, self.sizes))

    def plan(self) -> Plan:
        """The plan of this shape, in canonical form."""
        return canonical(
            Plan(
                pipelines=[
                    Pipeline(stages=self._stages(workers), micro_batches=list(sizes))
                    for workers, sizes in zip(self.groups, self.sizes, strict=True)
                ],
                schedule=self.schedule,
                zero=self.zero,
                overlap=self.overlap,
                bucket_mib=self.bucket_mib,
            )
        )

    def _stages(self, workers: Sequence[Sequence[str]]) -> list[Stage]:
        return [
            Stage(
                first=first,
                last=last,
                replicas=[Replica(devices=list(workers[number % len(workers)]))],
                recompute=self.recompute,
                sequence_parallel=self.sequence_parallel,
            )
            for number, (first, last) in enumerate(itertools.pairwise(self.cuts))
        ]


def cuts_of(pipeline: Pipeline) -> tuple[int, ...]:
    """First layers of a pipeline's stages, and the number of layers."""
    return (*(stage.first for stage in pipeline.stages), pipeline.stages[-1].last)


def canonical(plan: Plan) -> Plan:
    """The plan without what has no effect in it, so that plans that run the same are equal.

    A single stage has no schedule; a group of one device does not divide sequences; where every layer is held once,
    nothing is sharded and nothing synchronised.
    """
    plan = plan.normalize()
    stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
    update: dict[str, object] = {"pipelines": [_without_sequences(pipeline) for pipeline in plan.pipelines]}
    if all(len(pipeline.stages) == 1 for pipeline in plan.pipelines):
        update["schedule"] = "gpipe"
    if len(plan.pipelines) == 1 and all(len(stage.replicas) == 1 for stage in stages):
        update |= {"zero": 0, "state_shares": None, "sync_every": 1, "overlap": True, "bucket_mib": BUCKET_MIB}
    return plan.model_copy(update=update)


def _without_sequences(pipeline: Pipeline) -> Pipeline:
    stages = [
        stage.model_copy(update={"sequence_parallel": False})
        if all(len(replica.devices) == 1 for replica in stage.replicas)
        else stage
        for stage in pipeline.stages
    ]
    return pipeline.model_copy(update={"stages": stages})


# ---- what is not regular ----


def irregular(plan: Plan) -> Iterator[Problem]:
    """What of a (canonical) plan none of the frameworks can be told: all of them run one shape on every rank."""
    first = plan.pipelines[0]
    for index, pipeline in enumerate(plan.pipelines):
        where = f"pipelines.{index}"
        if cuts_of(pipeline) != cuts_of(first):
            yield Problem(
                f"{where}.stages", f"are cut at {_row(cuts_of(pipeline))}, pipelines.0 at {_row(cuts_of(first))}"
            )
        if pipeline.order is not None:
            yield Problem(f"{where}.order", "is given; stages are taken in the order of the layers")
        yield from _irregular_stages(plan, pipeline, where)
        yield from _irregular_places(plan, pipeline, where)
    for field, only in (("sync_every", 1), ("dispatch", "static"), ("deal", "count")):
        if getattr(plan, field) != only:
            yield Problem(field, f"is {getattr(plan, field)}; only {only} can be asked for")
    if plan.state_shares is not None and len(set(plan.state_shares.values())) > 1:
        yield Problem("state_shares", "are unequal; every rank holds an equal share")


def _irregular_stages(plan: Plan, pipeline: Pipeline, where: str) -> Iterator[Problem]:
    model = plan.pipelines[0].stages[0]
    degree = len(model.replicas[0].devices)
    for number, stage in enumerate(pipeline.stages):
        here = f"{where}.stages.{number}"
        if len(stage.replicas) > 1:
            yield Problem(
                f"{here}.replicas", f"are {len(stage.replicas)}; a stage of a pipeline has one group of ranks"
            )
        if len(stage.replicas[0].devices) != degree:
            found = len(stage.replicas[0].devices)
            yield Problem(f"{here}.replicas.0.devices", f"are {found}, those of pipelines.0.stages.0 {degree}")
        if stage.recompute != model.recompute:
            yield Problem(f"{here}.recompute", f"is {stage.recompute}, that of pipelines.0.stages.0 {model.recompute}")
        if stage.sequence_parallel != model.sequence_parallel:
            yield Problem(f"{here}.sequence_parallel", "differs from that of pipelines.0.stages.0")


def _irregular_places(plan: Plan, pipeline: Pipeline, where: str) -> Iterator[Problem]:
    """Whether the stages go round the workers, every one as often; and equally many workers in each pipeline."""
    places = positions(pipeline)
    workers = max(places) + 1
    if workers == 1 and len(places) > 1:
        yield Problem(f"{where}.stages", f"are {len(places)} on the same devices; let them be one")
    elif places != [number % workers for number in range(len(places))] or len(places) % workers:
        yield Problem(f"{where}.stages", "do not go round their devices, each as often")
    elif workers != max(positions(plan.pipelines[0])) + 1:
        yield Problem(f"{where}.stages", f"are on {workers} groups, those of pipelines.0 on other numbers of them")


def uneven(plan: Plan) -> Iterator[Problem]:
    """Micro-batches that are not all of one size, or not equally many in each pipeline."""
    first = plan.pipelines[0].micro_batches
    for index, pipeline in enumerate(plan.pipelines):
        sizes = pipeline.micro_batches
        if len(sizes) != len(first) or set(sizes) != {first[0]}:
            yield Problem(
                f"pipelines.{index}.micro_batches", f"are {_row(sizes)}; every rank takes equally many, of one size"
            )


def unsharded_elements(shape: Shape, element_bytes: int) -> int | None:
    """Elements of a gradient bucket; None where the plan's bucket is no whole number of them."""
    exact = shape.bucket_mib * 2**20 / element_bytes
    return int(exact) if exact >= 1 and exact == int(exact) else None


def _row(numbers: Sequence[int]) -> str:
    shown = "+".join(map(str, numbers[:12])) if len(numbers) <= 12 else "+".join(map(str, numbers[:11])) + "+..."
    return shown
