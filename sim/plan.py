"""Plan: the allocation, one shape for every way of dividing a job; and the only judge of its validity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from ..results.errors import InputError
from ..results.record import digest
from . import memory
from .checking import validate
from .device import Device
from .memory import groups, positions
from .schedule import Kind, deal_samples
from .spec import Scenario
from .workload import Name, Spec, Workload

Samples = Annotated[int, Field(ge=1, le=2**53)]


class PlanError(InputError):
    """The plan breaks a rule of its scenario; ``path`` names the first violation."""


class Infeasible(InputError):
    """No valid plan exists, or the policy can make none; the problem says why."""


class Replica(Spec):
    """A group of devices that work on a stage together, and its share of the stage's work."""

    devices: Annotated[list[Name], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class Stage(Spec):
    """A run of layers ``[first, last)`` and its replicas."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=1)]
    replicas: Annotated[list[Replica], Field(min_length=1)]
    recompute: Literal["none", "selective", "full"] = "none"
    sequence_parallel: bool = False
    """Whether what tensor parallelism leaves whole is divided along the sequence (Korthikanti et al. 2022)."""


class Pipeline(Spec):
    """Stages, and the sizes of the micro-batches that run through them."""

    stages: Annotated[list[Stage], Field(min_length=1)]
    micro_batches: Annotated[list[Samples], Field(min_length=1)]
    order: Annotated[list[int] | None, Field(exclude_if=lambda value: value is None)] = None
    """Numbers of the stages in the order in which devices that hold several of them take them, with gpipe and
    accumulate; the backward pass goes the other way. None: the order of the layers (and then no key of the document).
    """

    @property
    def samples(self) -> int:
        """Samples per step."""
        return sum(self.micro_batches)

    @property
    def devices(self) -> list[str]:
        """Names of the devices, each once, in order of first use."""
        return list(
            dict.fromkeys(name for stage in self.stages for replica in stage.replicas for name in replica.devices)
        )


class Plan(Spec):
    """A set of pipelines, and how they run."""

    pipelines: Annotated[list[Pipeline], Field(min_length=1)]
    schedule: Kind = "gpipe"
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    """What is sharded over the devices that hold the same layers (Rajbhandari et al. 2020): 1 optimizer states, 2 also
    gradients, 3 also weights."""
    state_shares: dict[Name, Annotated[float, Field(ge=0, le=1)]] | None = None
    """With zero: each device's share of what is sharded (Cephalo: a device with memory to spare holds more); those of
    the devices that hold the same part of a layer sum to 1. None: equal shares."""
    overlap: bool = True
    """Whether gradients are synchronised while the backward pass still runs, where the devices can."""
    bucket_mib: Annotated[float, Field(gt=0, le=1e9)] = 100.0
    """Gradients are synchronised in messages of at least this size, as the layers are done."""
    deal: Literal["count", "tokens", "cost"] = "count"
    dispatch: Literal["static", "pull"] = "static"
    sync_every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Optimizer steps between two synchronisations; above 1 the holders of a layer average its weights (local SGD)."""

    @classmethod
    def data_parallel(cls, workload: Workload, samples: Mapping[str, int]) -> Self:
        """One pipeline of one stage per device; a device with no sample is left out.

        Args:
            workload: gives the layers and the largest micro-batch.
            samples: samples per step of each device.
        """
        last, largest = len(workload.layers), workload.max_micro_batch
        pipelines = [  # validated in one go: of thousands of devices, most of the time goes into going there and back
            {
                "stages": [{"first": 0, "last": last, "replicas": [{"devices": [name]}]}],
                "micro_batches": micro_batches(count, largest),
            }
            for name, count in samples.items()
            if count > 0
        ]
        return cls.model_validate({"pipelines": pipelines})

    @classmethod
    def parse(cls, data: object) -> Self:
        """A plan from its JSON document.

        Raises:
            InputError: unknown key, wrong type, number out of range.
        """
        return validate(cls, data, "plan")

    def document(self) -> dict[str, object]:
        """The plan as a JSON document; :meth:`parse` reads it."""
        return self.model_dump(mode="json")

    @property
    def sha256(self) -> str:
        """Digest of the normalised plan: equal for plans that say the same."""
        return digest(self.normalize().document())

    def normalize(self) -> Self:
        """The canonical form: pipelines in order of their devices' names."""
        pipelines = sorted(self.pipelines, key=lambda pipeline: pipeline.devices)
        return self.model_copy(update={"pipelines": pipelines})

    def split(self) -> dict[str, int]:
        """Samples per step of each device of a data-parallel plan.

        Raises:
            PlanError: the plan is not data parallel.
        """
        self.require_data_parallel()
        return {pipeline.devices[0]: pipeline.samples for pipeline in self.pipelines}

    @property
    def is_data_parallel(self) -> bool:
        """Whether every pipeline is one device that holds the whole model."""
        return all(len(each.stages) == 1 and len(each.devices) == 1 for each in self.pipelines)

    def is_plain_split(self, workload: Workload) -> bool:
        """Whether it is data parallel as :meth:`data_parallel` makes it: nothing sharded, nothing recomputed."""
        return (
            self.is_data_parallel
            and self.dispatch == "static"
            and not self.zero
            and all(
                each.stages[0].recompute == "none"
                and sorted(each.micro_batches) == sorted(micro_batches(each.samples, workload.max_micro_batch))
                for each in self.pipelines
            )
        )

    def samples(self) -> dict[str, int]:
        """Samples per step that each device works on (every stage of a pipeline works on the same ones)."""
        found: dict[str, int] = {}
        for pipeline in self.pipelines:
            for stage in pipeline.stages:
                shares = [replica.share for replica in stage.replicas]
                dealt = [deal_samples(size, shares) for size in pipeline.micro_batches]
                for number, replica in enumerate(stage.replicas):
                    count = sum(each[number] for each in dealt)
                    found.update({name: max(count, found.get(name, 0)) for name in replica.devices})
        return found

    def require_data_parallel(self) -> None:
        """Refuse what is no plain split of the batch over devices.

        Raises:
            PlanError: several stages, replicas or devices in a pipeline, sharded states, local SGD, or pulled batches.
        """
        for index, pipeline in enumerate(self.pipelines):
            if len(pipeline.stages) > 1 or len(pipeline.devices) > 1:
                raise PlanError(
                    f"pipelines.{index}", "has several devices", "a split of the batch gives each its own model"
                )
            if pipeline.stages[0].recompute != "none":
                raise PlanError(
                    f"pipelines.{index}.stages.0.recompute", "is more than a split of the batch", "use none"
                )
        for field, only in (("zero", 0), ("dispatch", "static"), ("sync_every", 1), ("deal", "count")):
            if getattr(self, field) != only:
                raise PlanError(field, f"{getattr(self, field)!r} is more than a split of the batch", f"use {only}")

    def check(self, scenario: Scenario) -> None:
        """Judge the plan: policies, engine, runner and tests all ask here.

        Raises:
            PlanError: the first violation, by path: a layer missing or twice, samples that do not add up to the global
                batch, an unknown device or one in two pipelines, shares that do not sum to 1, memory exceeded.
        """
        devices = {device.name: device for device in scenario.cluster.devices}
        self._check_samples(scenario.workload)
        self._check_devices(devices)
        self._check_modes()
        shapes: dict[object, tuple[int, Pipeline]] = {}
        for index, pipeline in enumerate(self.pipelines):  # of those that differ in their devices only, the first
            shapes.setdefault(memory.shape(pipeline), (index, pipeline))
        for index, pipeline in shapes.values():
            _check_layers(pipeline, len(scenario.workload.layers), f"pipelines.{index}")
            _check_order(pipeline, self.schedule, f"pipelines.{index}")
            _check_turns(pipeline, scenario.workload, f"pipelines.{index}")
            _check_degrees(pipeline, scenario.workload, f"pipelines.{index}")
        if self.zero == 3:
            self._check_gathering()
        self._check_loaders(scenario)
        violation = memory.check(scenario.workload, devices, self.widest())
        if violation is not None:
            raise PlanError(*violation)

    def _check_loaders(self, scenario: Scenario) -> None:
        """An input pipeline loads what it knows will be asked for."""
        node_of, nodes = scenario.cluster.node_of, scenario.cluster.nodes
        used = [nodes[node_of[name]] for pipeline in self.pipelines for name in pipeline.devices]
        loading = next((node for node in used if node.loader_samples_per_s is not None), None)
        if self.dispatch == "pull" and loading is not None:
            problem = f"is pull, and {loading.name!r} has loader_samples_per_s: not simulated together"
            raise PlanError("dispatch", problem, "use static")

    def widest(self) -> Self:
        """The plan in which each device has the largest micro-batch that it may come to take: what memory is for."""
        if self.dispatch == "static":
            return self
        largest = max(size for pipeline in self.pipelines for size in pipeline.micro_batches)
        pipelines = [
            pipeline.model_copy(update={"micro_batches": [largest, *pipeline.micro_batches]})
            for pipeline in self.pipelines
        ]
        return self.model_copy(update={"pipelines": pipelines})

    def _check_modes(self) -> None:
        """What can be written down but not simulated, and what contradicts itself."""
        if self.deal != "count":
            problem = f"{self.deal!r} needs samples of different lengths, which workloads do not have yet"
            raise PlanError("deal", problem, "use count")
        if self.sync_every > 1 and self.zero:
            raise PlanError("sync_every", "is above 1 with sharded states", "use zero = 0 or sync_every = 1")
        if self.dispatch == "pull" and (self.zero or self.sync_every > 1 or not self.is_data_parallel):
            problem = "is pull, which needs whole models on single devices, nothing sharded, and sync_every = 1"
            raise PlanError("dispatch", problem, "use static")
        if self.state_shares is not None and not self.zero:
            raise PlanError("state_shares", "are given and zero is 0", "use zero = 1, 2 or 3, or leave them out")

    def _check_gathering(self) -> None:
        """ZeRO-3 gathers the weights of a stage for every piece: its holders must come to each together."""
        holders: dict[tuple[int, int], tuple[int, int]] = {}
        first_of: dict[int, int] = {}
        rounds = positions(self.pipelines[0])
        for index, pipeline in enumerate(self.pipelines):
            if pipeline.order != self.pipelines[0].order:
                raise PlanError(f"pipelines.{index}.order", "is not its peers', with zero = 3", "use one order for all")
            if self.schedule == "interleaved" and positions(pipeline) != rounds:
                problem = "goes round other numbers of devices than its peers, with zero = 3"
                raise PlanError(f"pipelines.{index}.stages", problem, "interleave all pipelines alike, or zero = 2")
            for number, stage in enumerate(pipeline.stages):
                where = f"pipelines.{index}.stages.{number}"
                if first_of.setdefault(stage.first, stage.last) != stage.last:
                    raise PlanError(where, "is cut otherwise than its peers, with zero = 3", "cut all pipelines alike")
                count = (len(pipeline.micro_batches), len(stage.replicas[0].devices))
                if holders.setdefault((stage.first, stage.last), count) != count:
                    problem = "has another number of micro-batches or devices than its peers, with zero = 3"
                    raise PlanError(where, problem, "use equal numbers, or zero = 2")
                shares = [replica.share for replica in stage.replicas]
                if any(0 in deal_samples(size, shares) for size in set(pipeline.micro_batches)):
                    problem = "has a replica without a sample of some micro-batch, with zero = 3"
                    raise PlanError(f"{where}.replicas", problem, "use larger micro-batches, or zero = 2")

    def _check_samples(self, workload: Workload) -> None:
        total = sum(pipeline.samples for pipeline in self.pipelines)
        if total != workload.global_batch:
            problem = f"hold {total} samples, the global batch is {workload.global_batch}"
            raise PlanError("pipelines", problem, "they must be equal")
        largest = workload.max_micro_batch
        for index, pipeline in enumerate(self.pipelines):
            if largest is not None and max(pipeline.micro_batches) > largest:
                raise PlanError(f"pipelines.{index}.micro_batches", f"has one of over {largest} samples", "split it")

    def _check_devices(self, devices: Mapping[str, Device]) -> None:
        seen: dict[str, int] = {}
        for index, pipeline in enumerate(self.pipelines):
            _check_groups(pipeline, f"pipelines.{index}")
            for name in pipeline.devices:
                if name not in devices:
                    raise PlanError(
                        f"pipelines.{index}", f"{name!r} is no device of the cluster", f"known: {_few(devices)}"
                    )
                if name in seen:
                    raise PlanError(f"pipelines.{index}", f"{name!r} is in pipeline {seen[name]} too", "use it once")
                seen[name] = index


def micro_batches(samples: int, largest: int | None) -> list[int]:
    """Cut a device's samples (1 or more) into the fewest micro-batches of at most ``largest``, larger ones first.

    The sizes differ by at most one.
    """
    count = 1 if largest is None else -(-samples // largest)
    size, over = divmod(samples, count)
    return [size + 1] * over + [size] * (count - over)


def _check_layers(pipeline: Pipeline, layers: int, path: str) -> None:
    expected = 0
    for number, stage in enumerate(pipeline.stages):
        where = f"{path}.stages.{number}"
        if stage.last <= stage.first:
            raise PlanError(where, f"is empty: layers {stage.first} to {stage.last}", "leave it out")
        if stage.first < expected:
            raise PlanError(where, f"has layers before {expected} a second time", f"let it begin at {expected}")
        if stage.first > expected:
            raise PlanError(where, f"leaves out layers {expected} to {stage.first}", f"let it begin at {expected}")
        total = sum(replica.share for replica in stage.replicas)
        if abs(total - 1) > 1e-9:
            raise PlanError(f"{where}.replicas", f"have shares that sum to {total:g}", "they must sum to 1")
        expected = stage.last
    if expected != layers:
        raise PlanError(f"{path}.stages", f"cover {expected} layers, the model has {layers}", "cover each once")


def _check_groups(pipeline: Pipeline, path: str) -> None:
    """A device belongs to one group of devices, wherever it recurs in its pipeline."""
    group_of: dict[str, tuple[str, ...]] = {}
    for number, stage in enumerate(pipeline.stages):
        here: set[str] = set()
        for rank, replica in enumerate(stage.replicas):
            where, group = f"{path}.stages.{number}.replicas.{rank}", tuple(replica.devices)
            twice = next((name for name in group if name in here or group.count(name) > 1), None)
            if twice is not None:
                raise PlanError(where, f"{twice!r} is in the stage twice", "use it once")
            here.update(group)
            other = next((name for name in group if group_of.setdefault(name, group) != group), None)
            if other is not None:
                raise PlanError(where, f"{other!r} recurs with other devices beside it", "keep a group together")


def _check_order(pipeline: Pipeline, schedule: str, path: str) -> None:
    """Whether the schedule has an order for the pipeline's stages and micro-batches.

    GPipe and accumulation have one wherever devices recur: see :func:`.schedule.order`.
    """
    places = positions(pipeline)
    workers, chunks = max(places) + 1, {len(group.stages) for group in groups(pipeline)}
    if schedule in ("gpipe", "accumulate"):
        return
    if pipeline.order is not None:
        raise PlanError(f"{path}.order", f"is given, and the schedule is {schedule}", "use gpipe, or leave it out")
    if chunks == {1}:
        if schedule == "interleaved" and workers > 1:
            raise PlanError(f"{path}.stages", "have no device that recurs, and the schedule is interleaved", "use 1f1b")
        return
    if schedule == "1f1b":
        raise PlanError(f"{path}.stages", "have devices that recur, and the schedule is 1f1b", "use interleaved")
    apart = any(len({places[stage] for stage in group.stages}) > 1 for group in groups(pipeline))
    if apart or len(chunks) > 1 or places != [number % workers for number in range(len(places))]:
        raise PlanError(f"{path}.stages", "do not go round the same devices", "repeat them in one order, as often each")
    if len(pipeline.micro_batches) % workers:
        problem = f"are {len(pipeline.micro_batches)}, no multiple of the {workers} groups of devices (interleaved)"
        raise PlanError(f"{path}.micro_batches", problem, "use a multiple")


def _check_turns(pipeline: Pipeline, workload: Workload, path: str) -> None:
    """Whether the order of the stages, where one is given, has each once and after all that it reads."""
    if pipeline.order is None:
        return
    if sorted(pipeline.order) != list(range(len(pipeline.stages))):
        raise PlanError(f"{path}.order", f"does not name each of {len(pipeline.stages)} stages once", "name each once")
    turn = {stage: number for number, stage in enumerate(pipeline.order)}
    for edge in workload.stage_edges(tuple(stage.first for stage in pipeline.stages)):
        if turn[edge.source] > turn[edge.target]:
            problem = f"has stage {edge.target} before stage {edge.source}, which it reads"
            raise PlanError(f"{path}.order", problem, "let each stage come after those that it reads")


def _check_degrees(pipeline: Pipeline, workload: Workload, path: str) -> None:
    """Whether the layers of each stage divide over its groups of devices."""
    for number, stage in enumerate(pipeline.stages):
        for rank, replica in enumerate(stage.replicas):
            degree = len(replica.devices)
            if degree > 1:
                layer = workload.indivisible(stage.first, stage.last, degree)
                if layer is not None:
                    where = f"{path}.stages.{number}.replicas.{rank}.devices"
                    parts = f"has {layer.tensor.divisor} parts" if layer.tensor else "cannot be divided"
                    mend = f"use a divisor of {layer.tensor.divisor}" if layer.tensor else "use one device"
                    raise PlanError(where, f"are {degree}, and layer {layer.name!r} {parts}", mend)


def _few(names: Mapping[str, object]) -> str:
    shown = sorted(names)[:8]
    return ", ".join(shown) + (", ..." if len(names) > 8 else "")
