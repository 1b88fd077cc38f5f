"""A measured row as the product sees it: the scenario and the plan, under a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from ...sim import engine, spec
from ...sim.decoder import LOGIT_ACCESSES
from ...sim.device import Cluster, CollectiveTable, Device, LayerProfile, Link, Node, Saturation
from ...sim.plan import Pipeline, Plan, Replica, Stage
from ...sim.spec import Scenario
from ...sim.workload import Model, Workload
from .rows import INNER_LINKS, ModelNumbers, StepRow, device_of, per_node_of


class Figures(NamedTuple):
    """What is calibrated of a device and its host: fields of :class:`Calibration`."""

    compute_best: float
    """With what the cluster sustains of it."""
    compute_half_us: float
    memory_best: float
    dispatch_us: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The free parameters: what the catalog does not say of a device, its host and its network.

    The first five are shared by all clusters, models and devices; the last two are one figure per cluster.
    """

    compute_best: float = 0.8
    """Share of the peak that a very large matrix product reaches."""
    compute_half_us: float = 40.0
    """A product that takes so long at the peak reaches half of that share."""
    memory_best: float = 0.85
    """Share of the memory's bandwidth that large passes reach."""
    dispatch_us: float = 35.0
    """Time of the host per kernel, hidden behind the device's work where that is longer."""
    logit_accesses: float = LOGIT_ACCESSES
    """Elements that the loss reads and writes per logit."""
    sustained: Mapping[str, float] = field(default_factory=dict)
    """Per cluster, share of ``compute_best`` that its devices sustain under their power limit."""
    network: Mapping[str, float] = field(default_factory=dict)
    """Per cluster, share of the nominal bandwidth that its network between machines reaches."""

    def device(self, name: str, cluster: str) -> Device:
        """A catalog device with the calibrated efficiencies."""
        return calibrated(name, self.figures(cluster))

    def figures(self, cluster: str) -> Figures:
        """What devices of a cluster get of it."""
        best = min(1.0, self.compute_best * self.sustained.get(cluster, 1.0))
        return Figures(best, self.compute_half_us, self.memory_best, self.dispatch_us)

    def link(self, name: str, cluster: str) -> Link:
        """A catalog link between machines, with the calibrated efficiency."""
        return _link(name).model_copy(update={"efficiency": self.network.get(cluster, 1.0)})


@lru_cache(maxsize=1024)
def calibrated(name: str, figures: Figures) -> Device:
    """A catalog device with calibrated efficiencies."""
    fitted = "training steps of other plans and models"
    return device_of(name).model_copy(
        update={
            "compute_efficiency": Saturation(
                best=figures.compute_best, half_us=figures.compute_half_us, fitted_to=fitted
            ),
            "memory_efficiency": Saturation(best=figures.memory_best, fitted_to=fitted),
            "dispatch_us": figures.dispatch_us,
        }
    )


@dataclass(frozen=True, slots=True)
class World:
    """What was measured beside the steps: collectives of like ranks, and layers per device type."""

    tables: tuple[CollectiveTable, ...] = ()
    tables_link: str = ""
    """The link inside the machines that the tables were measured on."""
    profiles: Mapping[str, LayerProfile] = field(default_factory=dict)
    """By the catalog name of the device."""


Places = tuple[tuple[tuple[str, ...], ...], ...]
"""Names of devices per stage and pipeline."""


def scenario_of(row: StepRow, calibration: Calibration, world: World) -> Scenario:
    """The row's cluster and workload. Devices fill machines of their type in Megatron's order of ranks."""
    return Scenario(
        name=f"line {row.line}",
        cluster=_cluster(row, calibration, world),
        workload=workload_of(row, calibration),
        sampling=spec.Sampling(launches=1, steps=3),
    )


def workload_of(row: StepRow, calibration: Calibration) -> Workload:
    """The row's model, batch and dtype."""
    training: dict[str, Any] = {"global_batch": row.global_batch, "dtype": row.dtype}
    model = _model(row.model, calibration.logit_accesses)
    return Workload(model=model, sequence_length=row.model.sequence_length, **training)


@lru_cache(maxsize=256)
def _model(numbers: ModelNumbers, logit_accesses: float) -> Model:
    return numbers.model(logit_accesses=logit_accesses)


def places_of(row: StepRow) -> Places:
    """Names of the devices: of each type numbered by stage, then pipeline, then tensor-parallel rank."""
    used: dict[str, int] = {}
    places = []
    for types, degrees in zip(row.types, row.degrees, strict=True):
        stage = []
        for name, degree in zip(types, degrees, strict=True):
            first = used.get(name, 0)
            used[name] = first + degree
            stage.append(tuple(f"{name}/{number}" for number in range(first, first + degree)))
        places.append(tuple(stage))
    return tuple(places)


def plan_of(row: StepRow) -> Plan:
    """The row's plan."""
    places = places_of(row)
    bounds = [sum(row.layers[:stage]) for stage in range(row.stages + 1)]

    def stage_of(stage: int, pipeline: int) -> Stage:
        fields: dict[str, Any] = {"first": bounds[stage], "last": bounds[stage + 1], "recompute": row.recompute}
        return Stage(replicas=[Replica(devices=list(places[stage][pipeline]))], **fields)

    sizes = [row.micro_batch] * row.micro_batches
    pipelines = [
        Pipeline(stages=[stage_of(stage, number) for stage in range(row.stages)], micro_batches=sizes)
        for number in range(row.pipelines)
    ]
    how: dict[str, Any] = {"schedule": row.schedule, "zero": row.zero}
    return Plan(pipelines=pipelines, overlap=False, **how)


def _cluster(row: StepRow, calibration: Calibration, world: World) -> Cluster:
    counts: dict[str, int] = {}
    for types, degrees in zip(row.types, row.degrees, strict=True):
        for name, degree in zip(types, degrees, strict=True):
            counts[name] = counts.get(name, 0) + degree
    nodes = [node for name, count in counts.items() for node in _nodes(row, name, count, calibration, world)]
    # Of one machine only: what was measured between machines belongs to that network, not to this row's.
    same_link = {_inner_link(name) for name in counts} == {world.tables_link}
    tables = [table for table in world.tables if table.nodes == 1] if same_link else []
    return Cluster(nodes=nodes, network=calibration.link(row.network, row.cluster), collectives=tables)


def _nodes(row: StepRow, name: str, count: int, calibration: Calibration, world: World) -> list[Node]:
    size = per_node_of(row, name)
    base = calibration.device(name, row.cluster)
    profile = world.profiles.get(name)
    if profile is not None and row.model.name == profile.model:
        base = base.model_copy(update={"layer_profile": profile.model_copy(update={"dtype": row.dtype})})
    devices = [base.model_copy(update={"name": f"{name}/{number}"}) for number in range(count)]
    link = _link(_inner_link(name))
    return [
        Node(name=f"{name}-{first // size}", devices=devices[first : first + size], link=link, nics=row.nics or size)
        for first in range(0, count, size)
    ]


def _inner_link(name: str) -> str:
    return INNER_LINKS.get(name, "pcie-3")


@lru_cache(maxsize=64)
def _link(name: str) -> Link:
    return spec.load_link(name)


def predict(row: StepRow, calibration: Calibration, world: World) -> float:
    """Seconds of a step, by the engine: what a user's own simulation would say."""
    scenario, plan = scenario_of(row, calibration, world), plan_of(row)
    launches = engine.run_launches(scenario, plan, seed=0, launches=1, record=False)
    return engine.step_durations(launches)[-1]


def predictions(rows: Sequence[StepRow], calibration: Calibration, world: World) -> list[float]:
    """:func:`predict` for several rows."""
    return [predict(row, calibration, world) for row in rows]
