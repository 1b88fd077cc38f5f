"""Time and memory of a piece of work on a device: pure functions over device tables.

Three fidelities. ``profiled``: this workload ran on this device at a few micro-batch sizes (as a whole, or layer by
layer), and a curve through the measured points gives the time of any other. ``calibrated``: a roofline per operator
whose efficiencies were measured with other work. ``datasheet``: the same over the catalog's figures alone.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..results.errors import InputError
from ..results.record import Fidelity
from . import roofline
from .curve import Curve, Line, fit_curve, fit_line, non_decreasing
from .device import (
    Device,
    LayerProfile,
    Profile,
    ProfilePoint,
    Saturation,
    WakePoint,
)
from .roofline import LEAST_S, Identity, Indivisible, Part, Recompute, Split
from .workload import Workload, at

if TYPE_CHECKING:
    from .plan import Stage

__all__ = [
    "Curve", "DeviceCost", "Indivisible", "LEAST_S", "Line", "Recompute", "StageTime", "TensorCollectives",
    "datasheet_cost", "device_cost", "fit_curve", "fit_line",
    "largest_micro_batch", "layer_backward_s", "peak_memory_bytes", "profiled_cost", "stage_time",
    "tensor_collectives", "update_s", "without_sizes",
]  # fmt: skip

Pass = Literal["forward_s", "backward_s"]

MODEL_VERSION = "3"
"""Version of the cost model and the engine; part of a simulated run's identity. Raise it when predictions change."""


@dataclass(frozen=True)
class DeviceCost:
    """Times of one workload, whole, on one device, at one fidelity."""

    device: str
    fidelity: Fidelity
    forward: Line | Curve
    backward: Line | Curve
    optimizer_s: float
    waking: tuple[WakePoint, ...] = ()
    """What its next work takes longer after a collective; see :mod:`.waking`."""

    def compute_s(self, samples: int) -> float:
        """Forward and backward of one micro-batch, in seconds."""
        return self.forward.at(samples) + self.backward.at(samples)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one micro-batch through a run of layers, on one device of a tensor-parallel group."""

    forward_s: float
    backward_s: float
    """With what is recomputed in it."""
    guessed_s: float
    """Of their sum, what comes from a roofline with nothing measured."""
    fidelity: Fidelity
    holds_collectives: bool = False
    """Whether the times are measured ones that contain the collectives of the tensor-parallel group."""


class TensorCollectives(NamedTuple):
    """All-reduces of a tensor-parallel group for one micro-batch: (bytes on each rank, how many of this size)."""

    forward: tuple[tuple[float, int], ...]
    backward: tuple[tuple[float, int], ...]
    """With those that recomputation repeats."""


def device_cost(device: Device, workload: Workload) -> DeviceCost:
    """The best estimate that the device's tables allow for the whole workload: profiled where it was measured."""
    return _device_cost(Identity(device), Identity(workload))


@lru_cache(maxsize=8192)
def _device_cost(device_key: Identity, workload_key: Identity) -> DeviceCost:
    device, workload = device_key.value, workload_key.value
    assert isinstance(device, Device)
    assert isinstance(workload, Workload)
    if (profile := profile_of(device, workload)) is not None:
        found = profiled_cost(device.name, profile, device.slowdown)
        return found if workload.trainable_parameters else replace(found, optimizer_s=0.0)  # as update_s() has it
    if layer_profile_of(device, workload) is not None:
        return _summed_cost(device, workload)
    return datasheet_cost(device, workload)


def profile_of(device: Device, workload: Workload) -> Profile | None:
    """The device's measured profile, if it is one of this workload."""
    found = device.profile
    return found if found is not None and found.workload == workload.key else None


def layer_profile_of(device: Device, workload: Workload) -> LayerProfile | None:
    """The device's profile by layers, if it is one of this workload: same model, layers, sequence length and dtype.

    Names of models are compared without case: published tables write OPT-350M.
    """
    found = device.layer_profile
    if found is None or len(found.points[0].forward_s) != len(workload.layers):
        return None
    ran = (found.model.casefold(), found.sequence_length, found.dtype)
    return found if ran == (workload.model.name.casefold(), workload.sequence_length, workload.dtype) else None


def profiled_cost(name: str, profile: Profile, slowdown: float = 1.0) -> DeviceCost:
    """Times from a measured profile."""
    return DeviceCost(
        device=name,
        fidelity="profiled",
        forward=fit_curve([(point.micro_batch, slowdown * point.forward_s) for point in profile.points]),
        backward=fit_curve([(point.micro_batch, slowdown * point.backward_s) for point in profile.points]),
        optimizer_s=slowdown * (profile.optimizer_s + profile.rest_s),
        waking=tuple(profile.waking_at(slowdown)),
    )


def datasheet_cost(device: Device, workload: Workload) -> DeviceCost:
    """Times of the whole workload from the device's figures: a roofline per operator."""
    passes = roofline.layers_s(device, workload, Part(0, len(workload.layers)))
    return DeviceCost(
        device=device.name,
        fidelity=roofline_fidelity(device),
        forward=passes.forward,
        backward=passes.backward,
        optimizer_s=roofline.optimizer_s(device, workload, workload.trainable_parameters),
    )


def roofline_fidelity(device: Device) -> Fidelity:
    """What a roofline over the device's figures is worth: calibrated where its efficiencies were measured."""
    shares = (device.compute_efficiency, device.memory_efficiency)
    return "calibrated" if all(isinstance(each, Saturation) and each.fitted_to for each in shares) else "datasheet"


def stage_time(
    device: Device,
    workload: Workload,
    first: int,
    last: int,
    samples: int,
    *,
    tensor_degree: int = 1,
    sequence_parallel: bool = False,
    recompute: Recompute = "none",
) -> StageTime:
    """Times of one micro-batch through layers ``[first, last)`` on one device of a tensor-parallel group.

    From the profile of the layers if there is one, else from that of the whole workload (scaled by what the roofline
    says of these layers), else from the roofline.

    Args:
        device: its figures and profiles; ``slowdown`` counts.
        workload: gives layers, sequence length and dtype.
        first: number of the first layer.
        last: one past the last.
        samples: of the micro-batch; 0 takes no time.
        tensor_degree: devices that share each layer.
        sequence_parallel: whether they divide along the sequence what is not divided otherwise.
        recompute: what the backward pass computes a second time.

    Raises:
        Indivisible: the degree does not divide one of the layers.
    """
    part = Part(first, last, Split(tensor_degree, sequence_parallel))
    return _stage_time(roofline.kind_of(device), Identity(workload), part, samples, recompute)


def time_of(device: Device, workload: Workload, stage: Stage, samples: int, tensor_degree: int) -> StageTime:
    """:func:`stage_time` of a plan's stage, as the stage says how it is divided and what is computed again."""
    return stage_time(
        device,
        workload,
        stage.first,
        stage.last,
        samples,
        tensor_degree=tensor_degree,
        sequence_parallel=stage.sequence_parallel,
        recompute=stage.recompute,
    )


def layer_backward_s(
    device: Device,
    workload: Workload,
    layer: int,
    samples: int,
    *,
    tensor_degree: int = 1,
    sequence_parallel: bool = False,
    recompute: Recompute = "none",
) -> float:
    """Seconds of one layer's backward pass: :func:`stage_time` of that layer alone."""
    part = Part(layer, layer + 1, Split(tensor_degree, sequence_parallel))
    return _stage_time(roofline.kind_of(device), Identity(workload), part, samples, recompute).backward_s


@lru_cache(maxsize=65536)
def _stage_time(
    device_key: Identity, workload_key: Identity, part: Part, samples: int, recompute: Recompute
) -> StageTime:
    device, workload = device_key.value, workload_key.value
    assert isinstance(device, Device)
    assert isinstance(workload, Workload)
    guess = roofline.layers_s(device, workload, part)
    times = _without_recompute(device, workload, part, samples)
    if samples == 0:
        return StageTime(0.0, 0.0, 0.0, times.fidelity, times.holds_collectives)
    if recompute == "none":
        return times
    if recompute == "full":
        inner = _recomputed(workload, part)
        if inner is None:
            return times
        repeated = times if inner == part else _without_recompute(device, workload, inner, samples)
        return _with_again(times, repeated.forward_s, measured=repeated.guessed_s == 0)
    # What is computed again is no layer of its own: the roofline's share of the forward pass.
    again = guess.selective.at(samples) * times.forward_s / guess.forward.at(samples)
    return _with_again(times, again, measured=times.fidelity == "calibrated")


def _recomputed(workload: Workload, part: Part) -> Part | None:
    """What full recomputation repeats: all but the loss, whose backward pass follows its forward pass at once."""
    last = part.last
    while last > part.first and any(op.kind == "loss" for op in workload.layers[last - 1].forward):
        last -= 1
    return part._replace(last=last) if last > part.first else None


def _with_again(times: StageTime, again_s: float, *, measured: bool) -> StageTime:
    guessed_s = times.guessed_s + (0.0 if measured else again_s)
    return replace(times, backward_s=times.backward_s + again_s, guessed_s=guessed_s)


def _without_recompute(device: Device, workload: Workload, part: Part, samples: int) -> StageTime:
    """From the best source that there is."""
    if (layers := layer_profile_of(device, workload)) is not None:
        return _from_layers(device, workload, layers, part, samples)
    if (profile := profile_of(device, workload)) is not None:
        return _from_whole(device, workload, profile, part, samples)
    guess, fidelity = roofline.layers_s(device, workload, part), roofline_fidelity(device)
    forward_s, backward_s = guess.forward.at(samples), guess.backward.at(samples)
    return StageTime(forward_s, backward_s, forward_s + backward_s if fidelity == "datasheet" else 0.0, fidelity)


def _from_whole(device: Device, workload: Workload, profile: Profile, part: Part, samples: int) -> StageTime:
    """The measured times of the whole workload, times the roofline's share of the part that is asked for."""
    measured = profiled_cost(device.name, profile, device.slowdown)
    forward_s, backward_s = measured.forward.at(samples), measured.backward.at(samples)
    if part.last - part.first == len(workload.layers) and part.split.degree == 1:
        return StageTime(forward_s, backward_s, 0.0, "profiled")
    guess = roofline.layers_s(device, workload, part)
    whole = roofline.layers_s(device, workload, Part(0, len(workload.layers)))
    forward_s *= guess.forward.at(samples) / whole.forward.at(samples)
    backward_s *= guess.backward.at(samples) / whole.backward.at(samples)
    return StageTime(forward_s, backward_s, forward_s + backward_s, "profiled")


def _from_layers(device: Device, workload: Workload, profile: LayerProfile, part: Part, samples: int) -> StageTime:
    """The sum of the layers' measured times; of another tensor degree, scaled by what the roofline says of both."""
    measured = _degrees(Identity(profile))
    degree = _nearest_degree(measured, part.split.degree)
    guess = roofline.layers_s(device, workload, part)
    near = guess if degree == part.split.degree else roofline.layers_s(device, workload, part.of_degree(degree))
    forward_s = _measured_at(profile, "forward_s", part.of_degree(degree), samples, near.forward)
    backward_s = _measured_at(profile, "backward_s", part.of_degree(degree), samples, near.backward)
    guessed = degree != part.split.degree or measured[degree] < 2
    if degree != part.split.degree:
        forward_s *= guess.forward.at(samples) / near.forward.at(samples)
        backward_s *= guess.backward.at(samples) / near.backward.at(samples)
    forward_s, backward_s = forward_s * device.slowdown, backward_s * device.slowdown
    holds = profile.tensor_collectives and degree > 1
    unsure_s = (forward_s + backward_s) * (1.0 if guessed else profile.guessed_share)
    return StageTime(forward_s, backward_s, unsure_s, profile.fidelity, holds)


def _nearest_degree(measured: Mapping[int, int], degree: int) -> int:
    return degree if degree in measured else min(sorted(measured), key=lambda each: abs(math.log(each / degree)))


@lru_cache(maxsize=1024)
def _degrees(key: Identity) -> Mapping[int, int]:
    """The tensor degrees that were measured, each with the number of its points."""
    assert isinstance(key.value, LayerProfile)
    return Counter(point.tensor_degree for point in key.value.points)


def _measured_at(profile: LayerProfile, field: Pass, part: Part, samples: int, guess: Curve) -> float:
    """Through the measured points; a single one says how far the roofline is off, at every size."""
    found = _measured(Identity(profile), field, part.split.degree, part.first, part.last)
    if len(found.sizes) == 1:
        return found.seconds[0] * guess.at(samples) / guess.at(found.sizes[0])
    return found.at(samples)


@lru_cache(maxsize=16384)
def _measured(key: Identity, field: Pass, degree: int, first: int, last: int) -> Curve:
    """The sums of some layers' measured seconds."""
    sizes, layers = _layer_seconds(key, degree, field)
    return Curve(sizes, tuple(sum(layer[number] for layer in layers[first:last]) for number in range(len(sizes))))


@lru_cache(maxsize=1024)
def _layer_seconds(key: Identity, degree: int, field: Pass) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """The micro-batches that were measured at a tensor degree, and per layer its seconds at each, never falling."""
    assert isinstance(key.value, LayerProfile)
    points = sorted((p for p in key.value.points if p.tensor_degree == degree), key=lambda point: point.micro_batch)
    rows = zip(*(getattr(point, field) for point in points), strict=True)
    return tuple(point.micro_batch for point in points), tuple(tuple(non_decreasing(row)) for row in rows)


def _summed_cost(device: Device, workload: Workload) -> DeviceCost:
    """Times of the whole workload from the profile of its layers."""
    last, sizes = len(workload.layers), roofline.powers(workload.global_batch)
    times = [stage_time(device, workload, 0, last, size) for size in sizes]
    return DeviceCost(
        device=device.name,
        fidelity=times[0].fidelity,
        forward=Curve(sizes, tuple(each.forward_s for each in times)),
        backward=Curve(sizes, tuple(each.backward_s for each in times)),
        optimizer_s=update_s(device, workload, 0, last),
    )


def update_s(
    device: Device, workload: Workload, first: int, last: int, *, tensor_degree: int = 1, share: float = 1.0
) -> float:
    """Seconds of the optimizer step over the trainable parameters of layers ``[first, last)`` on one device.

    Of measured devices with the rest of a step (:attr:`~.device.Profile.rest_s`), which whoever updates anything has.

    Args:
        device: its figures and profiles; ``slowdown`` counts.
        workload: gives layers and optimizer.
        first: number of the first layer.
        last: one past the last.
        tensor_degree: devices that share each layer.
        share: of the parameters that this device updates (ZeRO).
    """
    parameters = workload.shard_parameters(first, last, tensor_degree)
    profile = profile_of(device, workload)
    rest_s = profile.rest_s * device.slowdown if profile is not None and parameters else 0.0
    if (layers := layer_profile_of(device, workload)) is not None:
        degree = _nearest_degree(_degrees(Identity(layers)), tensor_degree)
        scale = parameters / max(workload.shard_parameters(first, last, degree), 1)
        return rest_s + _measured_update_s(layers, degree, first, last) * scale * share * device.slowdown
    if profile is not None:
        whole_s = profile.optimizer_s * device.slowdown
        return rest_s + whole_s * parameters / max(workload.trainable_parameters, 1) * share
    return roofline.optimizer_s(device, workload, parameters * share)


def _measured_update_s(profile: LayerProfile, degree: int, first: int, last: int) -> float:
    """An update does not depend on the micro-batch: the median of what was measured at several."""
    return median(sum(point.optimizer_s[first:last]) for point in profile.points if point.tensor_degree == degree)


def tensor_collectives(
    workload: Workload, first: int, last: int, samples: int, *, recompute: Recompute = "none"
) -> TensorCollectives:
    """The all-reduces inside a tensor-parallel group for one micro-batch through layers ``[first, last)``.

    With sequence parallelism each is a reduce-scatter and an all-gather of the same size. Full recomputation repeats
    those of the forward pass; selective recomputation repeats none (attention scores need no exchange).
    """
    return _tensor_collectives(Identity(workload), first, last, samples, recompute)


@lru_cache(maxsize=16384)
def _tensor_collectives(
    workload_key: Identity, first: int, last: int, samples: int, recompute: Recompute
) -> TensorCollectives:
    workload = workload_key.value
    assert isinstance(workload, Workload)
    size = samples * workload.element_bytes
    splits = [layer.tensor for layer in workload.layers[first:last] if layer.tensor is not None]
    forward = [size * at(each, workload.sequence_length) for split in splits for each in split.forward_elements]
    backward = [size * at(each, workload.sequence_length) for split in splits for each in split.backward_elements]
    if recompute == "full":
        backward += forward
    return TensorCollectives(_counted(forward), _counted(backward))


def _counted(sizes: Sequence[float]) -> tuple[tuple[float, int], ...]:
    return tuple(sorted(Counter(size for size in sizes if size > 0).items()))


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


def without_sizes(profile: Profile, sizes: Iterable[int]) -> Profile:
    """The profile less what was measured at some micro-batch sizes: what may predict plans that use those sizes.

    Raises:
        InputError: fewer than two points are left.
    """
    held_out = set(sizes)
    kept: list[ProfilePoint] = [point for point in profile.points if point.micro_batch not in held_out]
    if len(kept) < 2:
        problem = f"has {len(kept)} points beside the held-out micro-batches {sorted(held_out)}, a line takes 2"
        raise InputError("profile.points", problem, "calibrate at more sizes")
    waking = [point for point in profile.waking if point.micro_batch not in held_out]
    return profile.model_copy(update={"points": kept, "waking": waking})
