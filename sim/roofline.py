"""Roofline: times of layers where nothing was measured, from a device's figures (Williams et al. 2009)."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from .curve import Curve, non_decreasing
from .device import Device, Efficiency, EfficiencyStep, Saturation
from .workload import OPTIMIZER_STATES, Layer, Model, Operator, Workload, at

LEAST_S = 1e-12
"""Nothing takes less: rates divide by times, and a model without operators, launched for free, would take none."""

Recompute = Literal["none", "selective", "full"]


class Indivisible(ValueError):
    """A layer that a tensor-parallel group of this degree cannot divide.

    Attributes:
        layer: its number in the model.
        problem: what is wrong, without the path: the caller knows where the plan asks for it.
        mend: what would help.
    """

    def __init__(self, layer: int, problem: str, mend: str) -> None:
        self.layer, self.problem, self.mend = layer, problem, mend
        super().__init__(f"{problem} ({mend})")


class Identity:
    """Hashes a value by identity, so that a cache needs no deep hash; keeps it alive, so that the id stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value


@dataclass(frozen=True, slots=True)
class Split:
    """How a layer's work is divided over the devices of a replica."""

    degree: int = 1
    sequence_parallel: bool = False

    def part(self, divided: float) -> float:
        """Share of the work that one device does, when tensor parallelism divides the share ``divided`` of it."""
        return divided / self.degree + (1 - divided) / (self.degree if self.sequence_parallel else 1)

    def weights(self, divided: float) -> float:
        """The same of the weights: sequence parallelism divides none."""
        return divided / self.degree + 1 - divided


WHOLE = Split()


class Part(NamedTuple):
    """A run of layers ``[first, last)`` as one device of a group does it."""

    first: int
    last: int
    split: Split = WHOLE

    def of_degree(self, degree: int) -> Part:
        """The same layers in a group of another size."""
        return self._replace(split=replace(self.split, degree=degree))


@dataclass(frozen=True, slots=True)
class Passes:
    """Seconds of layers against the samples of a micro-batch."""

    forward: Curve
    backward: Curve
    """Without recomputation."""
    selective: Curve
    """What selective recomputation adds to the backward pass."""


def kind_of(device: Device) -> Identity:
    """The first device that was seen with the same figures: devices that differ in name only share their times."""
    return _kind(Identity(device))


@lru_cache(maxsize=8192)
def _kind(key: Identity) -> Identity:
    device = key.value
    assert isinstance(device, Device)
    return _first_of(_figures(device), key)


_FIRSTS: dict[tuple[object, ...], Identity] = {}


def _first_of(figures: tuple[object, ...], key: Identity) -> Identity:
    if len(_FIRSTS) > 8192:
        _FIRSTS.clear()
    return _FIRSTS.setdefault(figures, key)


def _figures(device: Device) -> tuple[object, ...]:
    """All that decides a device's times. Profiles by identity: the entry keeps them alive."""
    return (
        tuple(sorted(device.peak_tflops.items())),
        device.memory_bandwidth_gb_per_s,
        device.launch_overhead_us,
        device.dispatch_us,
        _key(device.compute_efficiency),
        _key(device.memory_efficiency),
        device.slowdown,
        Identity(device.profile),
        Identity(device.layer_profile),
    )


def _key(efficiency: Efficiency) -> tuple[object, ...]:
    if isinstance(efficiency, Saturation):
        return efficiency.best, efficiency.half_us, efficiency.fitted_to
    return tuple((step.at_least, step.share) for step in efficiency)


def layers_s(device: Device, workload: Workload, part: Part) -> Passes:
    """Times of a run of layers on one device of a group.

    The roofline is evaluated at powers of two up to the batch and curves drawn through them, made non-decreasing:
    where an efficiency table is steep, a larger operator would take less time than a smaller one.

    Raises:
        Indivisible: the degree does not divide a layer.
    """
    return _layers_s(kind_of(device), Identity(workload), part)


@lru_cache(maxsize=16384)
def _layers_s(device: Identity, workload: Identity, part: Part) -> Passes:
    assert isinstance(workload.value, Workload)
    numbers, _ = classes(Identity(workload.value.model))
    _require_divisible(workload.value, part)
    counted = sorted(Counter(numbers[part.first : part.last]).items())
    each = [(_class_s(device, workload, number, part.split), count) for number, count in counted]
    sizes = powers(workload.value.global_batch)

    def total(parts: Sequence[tuple[Curve, int]]) -> Curve:
        return Curve(sizes, tuple(sum(count * c.seconds[i] for c, count in parts) for i in range(len(sizes))))

    return Passes(
        total([(passes.forward, count) for passes, count in each]),
        total([(passes.backward, count) for passes, count in each]),
        total([(passes.selective, count) for passes, count in each]),
    )


@lru_cache(maxsize=256)
def classes(model: Identity) -> tuple[tuple[int, ...], tuple[Layer, ...]]:
    """Per layer the number of its class, and one layer of each: layers of a class differ in their names only."""
    assert isinstance(model.value, Model)
    seen: dict[str, int] = {}
    members: list[Layer] = []
    numbers = []
    for layer in model.value.layers:
        number = seen.setdefault(layer.model_dump_json(exclude={"name", "inputs", "tied_with"}), len(seen))
        if number == len(members):
            members.append(layer)
        numbers.append(number)
    return tuple(numbers), tuple(members)


def backwards_s(device: Device, workload: Workload) -> list[tuple[float, ...]]:
    """Per class of layers (see :func:`classes`), seconds of the backward pass at :func:`powers` of samples."""
    kind, key = kind_of(device), Identity(workload)
    count = len(classes(Identity(workload.model))[1])
    return [_class_s(kind, key, number, WHOLE).backward.seconds for number in range(count)]


@lru_cache(maxsize=65536)
def _class_s(device_key: Identity, workload_key: Identity, number: int, split: Split) -> Passes:
    device, workload = device_key.value, workload_key.value
    assert isinstance(device, Device)
    assert isinstance(workload, Workload)
    layer = classes(Identity(workload.model))[1][number]
    sizes, tokens = powers(workload.global_batch), workload.sequence_length
    again = Operator(kind="attention", kernels=0, flops=layer.selective_flops, elements=[0.0])

    def curve(operators: Sequence[Operator], least: float) -> Curve:
        seconds = [layer_s(operators, device, workload, size, split) for size in sizes]
        return Curve(sizes, tuple(non_decreasing([max(each, least) * device.slowdown for each in seconds])))

    repeated = [again] if at(layer.selective_flops, tokens) > 0 else []
    return Passes(curve(layer.forward, LEAST_S), curve(layer.backward, LEAST_S), curve(repeated, 0.0))


def layer_s(operators: Sequence[Operator], device: Device, workload: Workload, samples: float, split: Split) -> float:
    """Seconds of a layer's forward or backward pass: what its operators take, or the host to issue their kernels."""
    host_s = sum(op.kernels for op in operators) * device.dispatch_us * 1e-6
    return max(sum(operator_s(op, device, workload, samples, split) for op in operators), host_s)


def operator_s(op: Operator, device: Device, workload: Workload, samples: float, split: Split = WHOLE) -> float:
    """max(F / (P e_F(F)), Q / (B e_B(Q))) + launch overhead."""
    part = split.part(op.divided)
    flops = part * samples * at(op.flops, workload.sequence_length)
    weights = split.weights(op.divided) * op.weight_elements
    moved = workload.element_bytes * (part * samples * at(op.elements, workload.sequence_length) + weights)
    compute = busy_s(flops, device.peak(workload.dtype), device.compute_efficiency, op.kernels)
    memory = busy_s(moved, device.memory_bandwidth, device.memory_efficiency, op.kernels)
    return max(compute, memory) + op.kernels * device.launch_overhead_us * 1e-6


def busy_s(work: float, rate: float, efficiency: Efficiency, kernels: int = 1) -> float:
    """Seconds of so much work (FLOPs or bytes, in equal kernels) at a peak rate that it reaches only in part."""
    if not work:
        return 0.0
    if isinstance(efficiency, Saturation):
        return (work / rate + kernels * efficiency.half_s) / efficiency.best
    return work / (rate * share(efficiency, work))


def share(table: Sequence[EfficiencyStep], size: float) -> float:
    """Share of the peak that an operator of this size reaches: interpolated in log size between the table's steps.

    The steps alone would make a larger batch take less time at each boundary.
    """
    ordered = sorted(table, key=lambda step: step.at_least)
    if size <= ordered[0].at_least or len(ordered) == 1:
        return ordered[0].share
    if size >= ordered[-1].at_least:
        return ordered[-1].share
    index = bisect.bisect_right([step.at_least for step in ordered], size)
    low, high = ordered[index - 1], ordered[index]
    start = max(low.at_least, high.at_least * 1e-3)
    if size <= start:
        return low.share
    return low.share + (high.share - low.share) * math.log(size / start) / math.log(high.at_least / start)


def optimizer_s(device: Device, workload: Workload, parameters: float) -> float:
    """The optimizer step is memory traffic: gradient, weights and states read, weights and states written.

    16-bit training updates fp32 master weights, and writes the 16-bit ones beside them.
    """
    weights = 2 * workload.element_bytes if workload.element_bytes >= 4 else 8 + workload.element_bytes
    states = 8 * OPTIMIZER_STATES[workload.optimizer]
    moved = parameters * (workload.element_bytes + weights + states)
    traffic = busy_s(moved, device.memory_bandwidth, device.memory_efficiency)
    return (traffic + device.launch_overhead_us * 1e-6) * device.slowdown


def powers(limit: int) -> tuple[int, ...]:
    """Powers of two from 1 to the first that reaches ``limit``; two at least."""
    sizes = [1]
    while sizes[-1] < limit:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes) if len(sizes) > 1 else (1, 2)


def _require_divisible(workload: Workload, part: Part) -> None:
    degree = part.split.degree
    if degree == 1:
        return
    for number in range(part.first, part.last):
        layer = workload.layers[number]
        if layer.tensor is None:
            problem = f"layer {layer.name!r} cannot be divided over {degree} devices: how is not known"
            raise Indivisible(number, problem, "give each of its replicas one device, or describe layer.tensor")
        if layer.tensor.divisor % degree:
            problem = f"layer {layer.name!r} cannot be divided over {degree} devices"
            raise Indivisible(number, problem, f"the degree must divide {layer.tensor.divisor}")
