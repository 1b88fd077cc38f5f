"""Fitting the calibration to measured steps, and the two baselines that it must beat on the same rows.

The fit needs thousands of step times, so it uses the closed form of a pipeline (physics: 1F1B with equal stages) over
the same rooflines and the same network as the engine; scores are the engine's own (:func:`.cases.predict`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sim import cost, roofline
from ...sim.compiler import compile_plan
from ...sim.decoder import LOGIT_ACCESSES
from ...sim.device import CollectiveKind
from ...sim.network import Transfer, network_of
from ...sim.roofline import Identity, Split
from ...sim.spec import Scenario
from ...sim.workload import Dtype, Layer, Workload, at
from .cases import Calibration, Figures, World, calibrated, places_of, plan_of, scenario_of
from .rows import ModelNumbers, StepRow, device_of, per_node_of

Vector = NDArray[np.float64]

SHARED = ("compute_best", "compute_half_us", "memory_best", "dispatch_us", "logit_accesses")
BOUNDS: Mapping[str, tuple[float, float]] = {
    "compute_best": (0.2, 1.0),
    "compute_half_us": (0.1, 1e3),
    "memory_best": (0.2, 1.0),
    "dispatch_us": (0.1, 1e3),
    "logit_accesses": (1.0, 300.0),
    "sustained": (0.3, 1.5),
    "network": (0.02, 1.0),
}
"""Shares are at most 1; the others are far from what is plausible."""
SUSPECT = 0.5
"""Share of the step above which an all-reduce holds something else: a wait, a first connection."""
TOLERANCE = 0.03
"""Relative error from which a row counts as an outlier to the fit: its weight falls."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Seconds on links that do not depend on what is fitted, but for the network's share of its bandwidth."""

    fixed_s: float = 0.0
    flow_s: float = 0.0
    """At the nominal bandwidth of the network between machines."""

    def at(self, share: float) -> float:
        """Seconds at a share of the network's bandwidth."""
        return self.fixed_s + self.flow_s / share

    def plus(self, other: Wire, times: float = 1.0) -> Wire:
        """Both, one after the other."""
        return Wire(self.fixed_s + times * other.fixed_s, self.flow_s + times * other.flow_s)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCase:
    """What the seconds of layers depend on beside what is fitted.

    The fit asks for millions of them: made by :func:`_layer_case`, equal ones are one object, and told by identity.
    """

    device: str
    model: ModelNumbers
    workload: Workload
    """For sequence length and dtype; the layers are those of :func:`_layers`."""
    degree: int
    micro_batch: int
    repeated: bool
    """Whether the backward pass repeats the forward pass."""


@lru_cache(maxsize=4096)
def _layer_case(
    device: str, model: ModelNumbers, *, dtype: Dtype, degree: int, micro_batch: int, repeated: bool
) -> LayerCase:
    length, one = model.sequence_length, model.model(layers=1)
    workload = Workload(model=one, global_batch=micro_batch, sequence_length=length, dtype=dtype)
    return LayerCase(device, model, workload, degree, micro_batch, repeated)


@dataclass(frozen=True, slots=True)
class StageCase:
    """One stage of a row."""

    layers: LayerCase
    device: str
    degree: int
    first: int
    last: int
    forward: Wire
    backward: Wire
    """Collectives of the tensor-parallel group for one micro-batch."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row with all that the fit does not change."""

    row: StepRow
    scenario: Scenario
    stages: tuple[StageCase, ...]
    messages: tuple[Wire, ...]
    """Between each stage and the next, per micro-batch and direction."""
    sync: Wire
    profiled: bool
    """Whether every device has a profile of the row's model."""

    @property
    def synced_s(self) -> float:
        """Measured seconds of the gradients' all-reduce, where it is one between pipelines; else 0."""
        row = self.row
        return row.gradient_all_reduce_s or 0.0 if row.pipelines > 1 and not self.suspect else 0.0

    @property
    def suspect(self) -> bool:
        """Whether the all-reduce takes so much of the step that something else must be in it."""
        return (self.row.gradient_all_reduce_s or 0.0) > SUSPECT * self.row.step_time_s


def case_of(row: StepRow, world: World) -> Case:
    """What the fit needs to know of a row."""
    scenario = scenario_of(row, Calibration(), world)
    stages = tuple(_stage_case(row, scenario, stage) for stage in range(row.stages))
    messages = _messages(row, scenario)
    syncs = [_sync(row, scenario, stage) for stage in range(row.stages)]
    workload = scenario.workload
    profiled = all(cost.layer_profile_of(device, workload) is not None for device in scenario.cluster.devices)
    return Case(row, scenario, stages, messages, max(syncs, key=lambda wire: wire.at(1.0)), profiled)


def _messages(row: StepRow, scenario: Scenario) -> tuple[Wire, ...]:
    """Per cut the slowest message of a micro-batch, as the engine would send it."""
    program = compile_plan(scenario, plan_of(row), folded=True)
    wires = [Wire()] * (row.stages - 1)
    for worker in program.workers:
        for chunk, stage in enumerate(worker.stages):
            for send in worker.jobs[0][chunk][0].sends:
                to = program.workers[send.target].devices[0]
                found = _as_wire(scenario, send.transfer, (worker.devices[0], to))
                wires[stage] = max(wires[stage], found, key=lambda wire: wire.at(1.0))
    return tuple(wires)


def _stage_case(row: StepRow, scenario: Scenario, stage: int) -> StageCase:
    first = sum(row.layers[:stage])
    last = first + row.layers[stage]
    group = places_of(row)[stage][0]
    recompute = plan_of(row).pipelines[0].stages[stage].recompute
    sizes = cost.tensor_collectives(scenario.workload, first, last, row.micro_batch, recompute=recompute)
    wires = []
    for part in sizes:
        wire = Wire()
        for size, count in part:
            wire = wire.plus(_wire(scenario, "all_reduce", group, size), count)
        wires.append(wire if len(group) > 1 and not _in_profile(row, scenario, group[0]) else Wire())
    device = row.types[stage][0]
    layers = _layer_case(
        device,
        row.model,
        dtype=scenario.workload.dtype,
        degree=len(group),
        micro_batch=row.micro_batch,
        repeated=row.recompute == "full",
    )
    return StageCase(layers, device, len(group), first, last, wires[0], wires[1])


def _in_profile(row: StepRow, scenario: Scenario, name: str) -> bool:
    """Whether measured times hold the collectives of the tensor-parallel group."""
    profile = cost.layer_profile_of(scenario.cluster.by_name[name], scenario.workload)
    return profile is not None and profile.tensor_collectives


def _sync(row: StepRow, scenario: Scenario, stage: int) -> Wire:
    groups = places_of(row)[stage]
    first = sum(row.layers[:stage])
    elements = scenario.workload.shard_parameters(first, first + row.layers[stage], len(groups[0]))
    ring = tuple(group[0] for group in groups)
    crowd = max(1.0, len(groups[0]) / (row.nics or per_node_of(row, row.types[stage][0])))
    return _wire(scenario, "all_reduce", ring, elements * scenario.workload.element_bytes, crowd)


def _wire(scenario: Scenario, kind: CollectiveKind, names: Sequence[str], size: float, crowd: float = 1.0) -> Wire:
    """One transfer; ``crowd`` of them share the adapters."""
    if len(set(names)) < 2:
        return Wire()
    return _as_wire(scenario, network_of(scenario.cluster).collective(kind, names, size), names, crowd)


def _as_wire(scenario: Scenario, transfer: Transfer, names: Sequence[str], crowd: float = 1.0) -> Wire:
    if len({scenario.cluster.node_of[name] for name in names}) == 1:
        return Wire(fixed_s=transfer.alone_s)
    return Wire(fixed_s=transfer.latency_s, flow_s=(transfer.alone_s - transfer.latency_s) * crowd)


def step_s(case: Case, calibration: Calibration, known: dict[Any, Any]) -> float:
    """Seconds of a step by the closed form; ``known`` remembers stages of equal work under this calibration."""
    row = case.row
    share = calibration.network.get(row.cluster, 1.0)
    forward, backward = [], []
    for stage in case.stages:
        times = _stage_s(case, stage, calibration, known)
        forward.append(times[0] + stage.forward.at(share))
        backward.append(times[1] + stage.backward.at(share))
    update = max(_update_s(case, stage, calibration, known) for stage in case.stages)
    message = max((wire.at(share) for wire in case.messages), default=0.0)
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    period = max(both) + 2 * message * (row.stages - 1) / row.stages
    filling = sum(both) + 2 * sum(wire.at(share) for wire in case.messages)
    return (row.micro_batches - 1) * period + filling + sync_s(case, calibration) + update


def sync_s(case: Case, calibration: Calibration) -> float:
    """Seconds of the gradients' all-reduce."""
    return case.sync.at(calibration.network.get(case.row.cluster, 1.0))


def _stage_s(case: Case, stage: StageCase, calibration: Calibration, known: dict[Any, Any]) -> tuple[float, float]:
    """Forward and backward seconds of one micro-batch, with recomputation."""
    row, workload = case.row, case.scenario.workload
    if case.profiled:
        device = next(each for each in case.scenario.cluster.devices if each.name.startswith(stage.device))
        found = cost.stage_time(device, workload, stage.first, stage.last, row.micro_batch, tensor_degree=stage.degree)
        return found.forward_s, found.backward_s
    blocks = stage.last - stage.first - (stage.first == 0) - (stage.last == len(workload.layers))
    forward_s = backward_s = 0.0
    for index, count in ((0, stage.first == 0), (1, blocks), (-1, stage.last == len(workload.layers))):
        if count:
            f, b = _layer_s(case, stage, index, calibration, known)
            forward_s, backward_s = forward_s + count * f, backward_s + count * b
    return forward_s, backward_s


def _layer_s(
    case: Case, stage: StageCase, index: int, calibration: Calibration, known: dict[Any, Any]
) -> tuple[float, float]:
    key = (stage.layers, case.row.cluster, index)
    if key not in known:
        logit_accesses = calibration.logit_accesses if index == -1 else LOGIT_ACCESSES  # only the head has logits
        known[key] = _roofline_s(stage.layers, index, calibration.figures(case.row.cluster), logit_accesses)
    found: tuple[float, float] = known[key]
    return found


@lru_cache(maxsize=2**17)
def _roofline_s(layers: LayerCase, index: int, figures: Figures, logit_accesses: float) -> tuple[float, float]:
    """Remembered beyond one calibration: a fit changes one parameter at a time, and most do not change most layers."""
    device, workload, split = calibrated(layers.device, figures), layers.workload, Split(layers.degree)
    layer = _layers(layers.model, logit_accesses)[index]
    forward_s = roofline.layer_s(layer.forward, device, workload, layers.micro_batch, split)
    backward_s = roofline.layer_s(layer.backward, device, workload, layers.micro_batch, split)
    return forward_s, backward_s + (forward_s if layers.repeated and index != -1 else 0.0)


@lru_cache(maxsize=4096)
def _layers(numbers: ModelNumbers, logit_accesses: float) -> tuple[Layer, ...]:
    """Embedding, one block, and the head."""
    return tuple(numbers.model(layers=1, logit_accesses=logit_accesses).layers)


def _update_s(case: Case, stage: StageCase, calibration: Calibration, known: dict[Any, Any]) -> float:
    workload = case.scenario.workload
    if case.profiled:
        device = next(each for each in case.scenario.cluster.devices if each.name.startswith(stage.device))
        return cost.update_s(device, workload, stage.first, stage.last, tensor_degree=stage.degree)
    parameters = workload.shard_parameters(stage.first, stage.last, stage.degree)
    return roofline.optimizer_s(calibration.device(stage.device, case.row.cluster), workload, parameters)


def fit(cases: Sequence[Case], start: Calibration | None = None) -> Calibration:
    """The calibration that makes the closed form fit best: relative errors, robust against outliers.

    Args:
        cases: training rows.
        start: where to begin; the defaults are prior values.
    """
    from scipy.optimize import least_squares

    start = start or Calibration()
    names = free_parameters(cases)
    if not names:
        return start
    low, high = (np.log([BOUNDS[name.partition("/")[0]][end] for name in names]) for end in (0, 1))
    begin = np.clip(np.log([_value(start, name) for name in names]), low + 1e-6, high - 1e-6)

    synced = [case for case in cases if case.synced_s]

    def residuals(point: Vector) -> Vector:
        calibration, known = with_values(start, names, np.exp(point)), {}  # type: tuple[Calibration, dict[Any, Any]]
        steps = [math.log(step_s(case, calibration, known) / case.row.step_time_s) for case in cases]
        return np.array(steps + [math.log(sync_s(case, calibration) / case.synced_s) for case in synced])

    found = least_squares(residuals, begin, bounds=(low, high), loss="soft_l1", f_scale=TOLERANCE, xtol=1e-4, ftol=1e-5)
    return with_values(start, names, np.exp(found.x))


def free_parameters(cases: Sequence[Case]) -> list[str]:
    """What rows can tell: the shared ones where no profile is, and those of each cluster.

    One cluster, that with the most rows, sustains what the shared parameters say.
    """
    names: list[str] = []
    guessed = [case for case in cases if not case.profiled]
    counts: dict[str, int] = {}
    for case in guessed:
        counts[case.row.cluster] = counts.get(case.row.cluster, 0) + 1
    if guessed:
        names += SHARED
        names += [f"sustained/{name}" for name in sorted(counts, key=lambda name: (-counts[name], name))[1:]]
    wide = {case.row.cluster for case in cases if len(case.scenario.cluster.nodes) > 1}
    return names + [f"network/{name}" for name in sorted(wide)]


def with_values(start: Calibration, names: Sequence[str], values: Sequence[float] | Vector) -> Calibration:
    """A calibration with some of its parameters replaced."""
    changes: dict[str, Any] = {"sustained": dict(start.sustained), "network": dict(start.network)}
    for name, value in zip(names, values, strict=True):
        kind, _, cluster = name.partition("/")
        if cluster:
            changes[kind][cluster] = float(value)
        else:
            changes[kind] = float(value)
    return replace(start, **changes)


def _value(calibration: Calibration, name: str) -> float:
    kind, _, cluster = name.partition("/")
    if not cluster:
        return float(getattr(calibration, kind))
    prior = {"sustained": 0.9, "network": 0.6}[kind]
    return float(getattr(calibration, kind).get(cluster, prior))


def document(calibration: Calibration) -> dict[str, Any]:
    """The parameters as a JSON document."""
    return {each.name: _plain(getattr(calibration, each.name)) for each in fields(calibration)}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


Baseline = Callable[[Case], float]


def constant_mfu(cases: Sequence[Case]) -> Baseline:
    """Baseline: every plan reaches the same share of the peak, per cluster the median of the training rows."""
    shares: dict[str, list[float]] = {}
    for case in cases:
        shares.setdefault(case.row.cluster, []).append(_ideal_s(case) / case.row.step_time_s)
    overall = median(each for found in shares.values() for each in found)
    known = {name: median(found) for name, found in shares.items()}
    return lambda case: _ideal_s(case) / known.get(case.row.cluster, overall)


def least_squares_baseline(cases: Sequence[Case]) -> Baseline:
    """Baseline: non-negative least squares on the amounts of work that the model knows, with relative weights."""
    from scipy.optimize import nnls

    table = np.array([_amounts(case) for case in cases]) / np.array([[case.row.step_time_s] for case in cases])
    scale = np.maximum(table.max(axis=0), 1e-30)
    weights = nnls(table / scale, np.ones(len(cases)))[0] / scale
    return lambda case: float(np.dot(weights, _amounts(case)))


def _amounts(case: Case) -> tuple[float, ...]:
    return _amounts_of(Identity(case))


def _ideal_s(case: Case) -> float:
    workload = case.scenario.workload
    peak = sum(device.peak(workload.dtype) for device in case.scenario.cluster.devices)
    return workload.flops_per_sample * workload.global_batch / peak


@lru_cache(maxsize=4096)
def _amounts_of(key: Identity) -> tuple[float, ...]:
    """Per step: product, memory, host and loss work at the peak, links, messages, synchronisation, update, constant."""
    case = key.value
    assert isinstance(case, Case)
    row, slots = case.row, case.row.micro_batches + case.row.stages - 1
    if case.profiled:
        times = max(sum(_stage_s(case, stage, Calibration(), {})) for stage in case.stages)
        work = [slots * times]
    else:
        work = [slots * each for each in max(_stage_amounts(case, stage) for stage in case.stages)]
    links = max((stage.forward.plus(stage.backward) for stage in case.stages), key=lambda wire: wire.at(1.0))
    message = max((wire.at(1.0) for wire in case.messages), default=0.0)
    update = max(_update_s(case, stage, Calibration(), {}) for stage in case.stages)
    inner = [slots * links.fixed_s, slots * links.flow_s, 2 * slots * message]
    return (*work, *inner, case.sync.fixed_s, case.sync.flow_s, update, 1e-3 if row.stages else 0.0)


def _stage_amounts(case: Case, stage: StageCase) -> list[float]:
    workload, row, split = case.scenario.workload, case.row, Split(stage.degree)
    device = device_of(stage.device)
    amounts = [0.0] * 4
    for number in range(stage.first, stage.last):
        layer = workload.layers[number]
        again = layer.forward if row.recompute == "full" and number < len(workload.layers) - 1 else []
        for op in [*layer.forward, *layer.backward, *again]:
            part = split.part(op.divided) * row.micro_batch
            amounts[0] += part * at(op.flops, workload.sequence_length) / device.peak(workload.dtype)
            moved = part * at(op.elements, workload.sequence_length) + split.weights(op.divided) * op.weight_elements
            place = 3 if op.kind == "loss" else 1
            amounts[place] += moved * workload.element_bytes / device.memory_bandwidth if op.kind != "matmul" else 0.0
            amounts[2] += op.kernels * 1e-6
    return amounts
