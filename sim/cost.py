"""Time and memory of a piece of work on a device: pure functions over device tables.

Two fidelities live here. ``profiled``: this workload ran on this device at a few micro-batch sizes, and a curve through
the measured points gives the time of any other. ``datasheet``: a roofline per operator over the catalog's figures.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..results.errors import InputError
from ..results.record import Fidelity
from .device import Cluster, CollectivePoint, CollectiveTable, Device, EfficiencyStep, Link, Profile, ProfilePoint
from .workload import OPTIMIZER_STATES, Operator, Workload, at

MODEL_VERSION = "1"
"""Version of the cost model and the engine; part of a simulated run's identity. Raise it when predictions change."""


LEAST_S = 1e-12
"""Nothing takes less: rates divide by times, and a model without operators, launched for free, would take none."""


@dataclass(frozen=True, slots=True)
class Line:
    """An affine time: ``fixed_s + per_sample_s * samples`` (seconds)."""

    fixed_s: float
    per_sample_s: float

    def at(self, samples: float) -> float:
        """Seconds for so many samples."""
        return self.fixed_s + self.per_sample_s * samples


@dataclass(frozen=True, slots=True)
class Curve:
    """Time against micro-batch size, piecewise affine through points, the outer pieces continued."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, samples: float) -> float:
        """Seconds for so many samples."""
        index = min(max(bisect.bisect_left(self.sizes, samples), 1), len(self.sizes) - 1)
        x0, x1 = self.sizes[index - 1], self.sizes[index]
        y0, y1 = self.seconds[index - 1], self.seconds[index]
        if samples == x1:  # exactly: rounding must not make the next size cheaper
            return y1
        return max(y0 + (y1 - y0) * (samples - x0) / (x1 - x0), min(self.seconds) * 1e-3)


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """Affine fit with relative weights and both coefficients kept at or above zero.

    Relative weights: a fit of seconds alone would give the small sizes away (physics: fit relative errors).
    """
    least = min(seconds)
    weights = [(least / y) ** 2 for y in seconds]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, sizes, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, seconds, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, sizes, strict=True))
    joint = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, sizes, seconds, strict=True))
    slope = joint / spread if spread > 0 else 0.0
    fixed = mean_y - slope * mean_x
    if slope <= 0:
        return Line(mean_y, 0.0)
    if fixed < 0:  # through the origin instead
        squares = sum(w * x * x for w, x in zip(weights, sizes, strict=True))
        return Line(0.0, sum(w * x * y for w, x, y in zip(weights, sizes, seconds, strict=True)) / squares)
    return Line(fixed, slope)


def fit_curve(points: Sequence[tuple[int, float]]) -> Line | Curve:
    """The affine fit, or the curve through the points where that predicts left-out points better.

    Both are judged by the mean relative error of leaving out each inner point in turn; the curve must win by a quarter,
    since noise alone favours neither. Times are made non-decreasing first (larger batches never take less).
    """
    ordered = sorted(points)
    sizes = [size for size, _ in ordered]
    seconds = list(_non_decreasing([value for _, value in ordered]))
    line = fit_line(sizes, seconds)
    if len(ordered) < 5:
        return line
    errors_line, errors_curve = [], []
    for out in range(1, len(ordered) - 1):
        kept_x = sizes[:out] + sizes[out + 1 :]
        kept_y = seconds[:out] + seconds[out + 1 :]
        errors_line.append(abs(fit_line(kept_x, kept_y).at(sizes[out]) / seconds[out] - 1))
        errors_curve.append(abs(Curve(tuple(kept_x), tuple(kept_y)).at(sizes[out]) / seconds[out] - 1))
    gain = 0.75 * sum(errors_line) - sum(errors_curve)
    return Curve(tuple(sizes), tuple(seconds)) if gain > 1e-9 else line  # not for a rounding of exact points


def _non_decreasing(values: Sequence[float]) -> Iterable[float]:
    """Pool adjacent violators: the closest non-decreasing sequence in least squares."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    for value, count in blocks:
        yield from [value] * count


@dataclass(frozen=True)
class DeviceCost:
    """Times of one workload on one device, at one fidelity."""

    device: str
    fidelity: Fidelity
    forward: Line | Curve
    backward: Line | Curve
    optimizer_s: float

    def compute_s(self, samples: int) -> float:
        """Forward and backward of one micro-batch, in seconds."""
        return self.forward.at(samples) + self.backward.at(samples)


def device_cost(device: Device, workload: Workload) -> DeviceCost:
    """The best estimate that the device's tables allow: profiled where this workload was measured, else datasheet."""
    return _device_cost(_Identity(device), _Identity(workload))


class _Identity:
    """Hashes a model by identity, so that a cache needs no deep hash; keeps it alive, so that the id stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value


@lru_cache(maxsize=4096)
def _device_cost(device_key: _Identity, workload_key: _Identity) -> DeviceCost:
    device, workload = device_key.value, workload_key.value
    assert isinstance(device, Device)
    assert isinstance(workload, Workload)
    if device.profile is not None and device.profile.workload == workload.key:
        return profiled_cost(device.name, device.profile)
    return datasheet_cost(device, workload)


def profiled_cost(name: str, profile: Profile) -> DeviceCost:
    """Times from a measured profile."""
    return DeviceCost(
        device=name,
        fidelity="profiled",
        forward=fit_curve([(point.micro_batch, point.forward_s) for point in profile.points]),
        backward=fit_curve([(point.micro_batch, point.backward_s) for point in profile.points]),
        optimizer_s=profile.optimizer_s,
    )


def datasheet_cost(device: Device, workload: Workload) -> DeviceCost:
    """Times from the catalog: a roofline per operator.

    The roofline is evaluated at powers of two up to the batch and a curve drawn through them, made non-decreasing:
    where an efficiency table is steep, a larger operator would take less time than a smaller one.
    """
    sizes = _powers(workload.global_batch)
    forward = tuple(sum(_layer_s(layer.forward, device, workload, size) for layer in workload.layers) for size in sizes)
    backward = tuple(
        sum(_layer_s(layer.backward, device, workload, size) for layer in workload.layers) for size in sizes
    )
    return DeviceCost(
        device=device.name,
        fidelity="datasheet",
        forward=Curve(sizes, tuple(_non_decreasing(forward))),
        backward=Curve(sizes, tuple(_non_decreasing(backward))),
        optimizer_s=_optimizer_s(device, workload),
    )


def _powers(limit: int) -> tuple[int, ...]:
    sizes = [1]
    while sizes[-1] < limit:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes) if len(sizes) > 1 else (1, 2)


def _layer_s(operators: Sequence[Operator], device: Device, workload: Workload, samples: int) -> float:
    """Sum over operators of max(F / (P e_F(F)), Q / (B e_B(Q))) + launch overhead (Williams et al. 2009, roofline)."""
    total = 0.0
    for op in operators:
        flops = samples * at(op.flops, workload.sequence_length)
        elements = samples * at(op.elements, workload.sequence_length) + op.weight_elements
        moved = elements * workload.element_bytes
        compute = flops / (device.peak(workload.dtype) * share(device.compute_efficiency, flops)) if flops else 0.0
        memory = moved / (device.memory_bandwidth * share(device.memory_efficiency, moved)) if moved else 0.0
        total += max(compute, memory) + op.kernels * device.launch_overhead_us * 1e-6
    return max(total, LEAST_S)


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


def _optimizer_s(device: Device, workload: Workload) -> float:
    """The optimizer step is memory traffic: gradient, weights and states read, weights and states written.

    16-bit training updates fp32 master weights, and writes the 16-bit ones beside them.
    """
    weights = 2 * workload.element_bytes if workload.element_bytes >= 4 else 8 + workload.element_bytes
    states = 8 * OPTIMIZER_STATES[workload.optimizer]
    moved = workload.trainable_parameters * (workload.element_bytes + weights + states)
    return moved / (device.memory_bandwidth * share(device.memory_efficiency, moved)) + device.launch_overhead_us * 1e-6


def peak_memory_bytes(workload: Workload, micro_batch: int) -> float:
    """Bytes on a device of a data-parallel plan: weights, gradients, optimizer states, activations of one micro-batch.

    One micro-batch is alive at a time: its backward follows its forward, and gradients are accumulated in place.
    """
    return workload.state_bytes + micro_batch * workload.activation_bytes_per_sample


def largest_micro_batch(workload: Workload, device: Device) -> int:
    """The most samples that fit in one micro-batch on a device; 0 when not even the states fit."""
    # Bisection over the very formula that judges a plan: a division would differ from it by a rounding.
    return bisect.bisect_right(
        range(1, workload.global_batch + 1),
        device.memory_bytes,
        key=lambda samples: peak_memory_bytes(workload, samples),
    )


def all_reduce_s(cluster: Cluster, names: Sequence[str], size_bytes: int) -> float:
    """Seconds of an all-reduce of ``size_bytes`` on each of the named devices; 0 for a single one.

    A table measured over exactly these devices is interpolated; one measured over more of them is scaled by what each
    rank moves in a ring, (p-1)/p; else the lock-step ring over the links, 2(p-1) max_i(a_i + n / (p B_i)) (Patarasuk
    and Yuan 2009; unequal links: the slowest sets the pace).
    """
    ranks = len(names)
    if ranks < 2:
        return 0.0
    table = collective_table(cluster, names)
    if table is not None:
        moved = (ranks - 1) / ranks * len(table.devices) / (len(table.devices) - 1)
        return moved * interpolate(table.points, size_bytes)
    links = ring_links(cluster, names)
    return max(2 * (ranks - 1) * (link.latency_s + size_bytes / (ranks * link.bandwidth)) for link in links)


def collective_table(cluster: Cluster, names: Sequence[str]) -> CollectiveTable | None:
    """The table that was measured over these devices and the fewest others, if there is one."""
    wanted = set(names)
    holding = [table for table in cluster.collectives if wanted <= set(table.devices)]
    return min(holding, key=lambda table: len(table.devices), default=None)


def ring_links(cluster: Cluster, names: Sequence[str]) -> list[Link]:
    """The links that a ring over the devices uses, node by node: inner links, and the network when it leaves a node."""
    chosen = set(names)
    members = [sum(device.name in chosen for device in node.devices) for node in cluster.nodes]
    links = [node.link for node, count in zip(cluster.nodes, members, strict=True) if count > 1]
    if sum(count > 0 for count in members) > 1:
        assert cluster.network is not None, "Cluster requires a network with several nodes"
        links.append(cluster.network)
    return links


def interpolate(points: Sequence[CollectivePoint], size_bytes: int) -> float:
    """Seconds at a size: log-log between the table's points; below the first its time, above the last its rate."""
    ordered = sorted(points, key=lambda point: point.bytes)
    sizes = [point.bytes for point in ordered]
    if size_bytes <= sizes[0]:
        return ordered[0].seconds
    if size_bytes >= sizes[-1]:
        return ordered[-1].seconds * size_bytes / sizes[-1]
    index = bisect.bisect_left(sizes, size_bytes)
    low, high = ordered[index - 1], ordered[index]
    part = math.log(size_bytes / low.bytes) / math.log(high.bytes / low.bytes)
    return math.exp(math.log(low.seconds) + part * (math.log(high.seconds) - math.log(low.seconds)))


def without_sizes(profile: Profile, sizes: Iterable[int]) -> Profile:
    """The profile less the points of some micro-batch sizes: what may predict plans that use those sizes.

    Raises:
        InputError: fewer than two points are left.
    """
    held_out = set(sizes)
    kept: list[ProfilePoint] = [point for point in profile.points if point.micro_batch not in held_out]
    if len(kept) < 2:
        problem = f"has {len(kept)} points beside the held-out micro-batches {sorted(held_out)}, a line takes 2"
        raise InputError("profile.points", problem, "calibrate at more sizes")
    return profile.model_copy(update={"points": kept})
