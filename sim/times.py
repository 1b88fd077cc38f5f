"""Times: seconds of every layer of a workload on one kind of device, as arrays, so that sums give any stage.

Planners weigh thousands of stages; :func:`~steelyard.sim.cost.stage_time` judges one at a time. What it says of a
stage is the sum of what it says of the stage's layers, but for these cases (:attr:`LayerTimes.additive` is false):

- A profile by layers with a single micro-batch size at the degree, or of another degree only: the roofline then scales
  the stage as a whole. Both ways lie between the smallest and the largest scale of the stage's layers.
- The same profile with selective recomputation, whose share of the forward pass is the roofline's of the whole stage.
- The same profile below its smallest micro-batch: no layer may take nothing, so the sum is never less.
- Full recomputation where other layers follow the loss: a stage repeats the loss unless it ends with it, the table
  never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from . import cost
from .device import Device
from .noise import Floats
from .roofline import Identity, Recompute, Split, classes, kind_of
from .workload import Workload


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Seconds of one micro-batch through each layer, on one device of a tensor-parallel group."""

    forward_s: Floats
    backward_s: Floats
    """With what is recomputed in it."""
    optimizer_s: Floats
    """Each layer's part of one update of all layers (see :attr:`updates` for what a stage's own update takes)."""
    additive: bool
    """Whether a stage takes the sum of its layers, to a rounding."""
    holds_collectives: bool
    """Whether the times are measured ones that contain the collectives of the tensor-parallel group."""
    device: Device
    workload: Workload
    degree: int

    @cached_property
    def forward_sums(self) -> Floats:
        """Running sums from 0: layers [i, j) take ``forward_sums[j] - forward_sums[i]``."""
        return _sums(self.forward_s)

    @cached_property
    def backward_sums(self) -> Floats:
        """The same of the backward pass."""
        return _sums(self.backward_s)

    @cached_property
    def optimizer_sums(self) -> Floats:
        """The same of the optimizer: an estimate, since a small update reaches less of the bandwidth than a large."""
        return _sums(self.optimizer_s)

    @cached_property
    def passes(self) -> Floats:
        """Entry [i, j]: forward and backward seconds of layers [i, j); 0 where j <= i."""
        both = self.forward_sums + self.backward_sums
        return np.triu(both[None, :] - both[:, None])

    @cached_property
    def updates(self) -> Floats:
        """Entry [i, j]: seconds of :func:`~steelyard.sim.cost.update_s` for layers [i, j); 0 where j <= i."""
        return _updates(self.device, self.workload, self.degree)

    def stage(self, first: int, last: int) -> tuple[float, float]:
        """Forward and backward seconds of layers ``[first, last)``."""
        forward, backward = self.forward_sums, self.backward_sums
        return float(forward[last] - forward[first]), float(backward[last] - backward[first])


def layer_times(
    device: Device,
    workload: Workload,
    micro_batch: int,
    degree: int = 1,
    recompute: Recompute = "none",
    *,
    sequence_parallel: bool = False,
) -> LayerTimes:
    """The times of all layers; devices that differ in name only share them.

    Args:
        device: its figures and profiles; ``slowdown`` counts.
        workload: gives layers, sequence length and dtype.
        micro_batch: samples.
        degree: devices that share each layer.
        recompute: what the backward pass computes a second time.
        sequence_parallel: whether they divide along the sequence what is not divided otherwise.

    Raises:
        Indivisible: the degree does not divide one of the layers.
    """
    how = _How(micro_batch, Split(degree, sequence_parallel), recompute)
    return _layer_times(kind_of(device), Identity(workload), how)


class _How(NamedTuple):
    """All that decides the times but the device and the workload."""

    micro_batch: int
    split: Split
    recompute: Recompute


@lru_cache(maxsize=4096)
def _layer_times(device_key: Identity, workload_key: Identity, how: _How) -> LayerTimes:
    device, workload = device_key.value, workload_key.value
    assert isinstance(device, Device)
    assert isinstance(workload, Workload)

    def of(layer: int) -> cost.StageTime:
        return cost.stage_time(
            device,
            workload,
            layer,
            layer + 1,
            how.micro_batch,
            tensor_degree=how.split.degree,
            sequence_parallel=how.split.sequence_parallel,
            recompute=how.recompute,
        )

    alike = _alike(device, workload)
    known = {first: of(first) for first in dict.fromkeys(alike)}
    times = [known[first] for first in alike]
    return LayerTimes(
        forward_s=np.array([each.forward_s for each in times]),
        backward_s=np.array([each.backward_s for each in times]),
        optimizer_s=_optimizer_s(device, workload, how.split.degree),
        additive=_additive(device, workload, how),
        holds_collectives=times[0].holds_collectives,
        device=device,
        workload=workload,
        degree=how.split.degree,
    )


def _alike(device: Device, workload: Workload) -> list[int]:
    """Per layer, the first one that takes as long on this device."""
    if cost.layer_profile_of(device, workload) is not None:
        return list(range(len(workload.layers)))
    numbers, _ = classes(Identity(workload.model))
    firsts: dict[int, int] = {}
    return [firsts.setdefault(number, layer) for layer, number in enumerate(numbers)]


def _additive(device: Device, workload: Workload, how: _How) -> bool:
    if how.recompute == "full" and _loss_within(workload):
        return False
    profile = cost.layer_profile_of(device, workload)
    if profile is None:
        return True
    sizes = [point.micro_batch for point in profile.points if point.tensor_degree == how.split.degree]
    return len(sizes) > 1 and how.micro_batch >= min(sizes) and how.recompute != "selective"


def _loss_within(workload: Workload) -> bool:
    """Whether any layer without a loss follows one with it."""
    losses = [any(operator.kind == "loss" for operator in layer.forward) for layer in workload.layers]
    return any(before and not after for before, after in pairwise(losses))


def _optimizer_s(device: Device, workload: Workload, degree: int) -> Floats:
    """The whole model's update, in proportion to what the layers' parameters (else: measured updates) are."""
    last = len(workload.layers)
    if cost.layer_profile_of(device, workload) is None:
        parts = np.array([workload.shard_parameters(layer, layer + 1, degree) for layer in range(last)], dtype=float)
    else:
        alone = [cost.update_s(device, workload, layer, layer + 1, tensor_degree=degree) for layer in range(last)]
        parts = np.array(alone)
    whole = cost.update_s(device, workload, 0, last, tensor_degree=degree)
    total = float(parts.sum())
    return parts * (whole / total) if total > 0 else np.full(last, whole / last)


@lru_cache(maxsize=512)
def _updates_of(device_key: Identity, workload_key: Identity, degree: int) -> Floats:
    device, workload = device_key.value, workload_key.value
    assert isinstance(device, Device)
    assert isinstance(workload, Workload)
    count = len(workload.layers)
    found = np.zeros((count + 1, count + 1))
    known: dict[object, float] = {}
    measured = cost.layer_profile_of(device, workload) is not None
    for first in range(count):
        for last in range(first + 1, count + 1):
            # Without times of single layers, the parameters alone decide: most stages of a model have equals.
            key: object = (first, last) if measured else workload.shard_parameters(first, last, degree)
            if key not in known:
                known[key] = cost.update_s(device, workload, first, last, tensor_degree=degree)
            found[first, last] = known[key]
    return found


def _updates(device: Device, workload: Workload, degree: int) -> Floats:
    return _updates_of(kind_of(device), Identity(workload), degree)


def _sums(values: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values)))
