"""Stages: what every run of layers takes on every kind of device, as arrays, for policies that cut a model.

One :class:`Chain` is one way to run a pipeline: its micro-batches, schedule and recomputation. Devices of one kind in
one machine are one :class:`Label`: which of them does what is no decision.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..sim import footprint
from ..sim.device import Device
from ..sim.memory import BUFFERS
from ..sim.network import Network, Transfer, network_of
from ..sim.noise import Floats
from ..sim.roofline import Identity, Recompute
from ..sim.times import LayerTimes, layer_times
from ..sim.view import View
from ..sim.workload import OPTIMIZER_STATES, Workload, at
from ._neighbours import neighbours

Flags = NDArray[np.bool_]
NOBODY = -1
"""The label of what comes after the last stage."""
ROUNDING = 1e-12
"""Relative difference of equal sums; a stage that fills its device to this is left to nobody."""


class Label(NamedTuple):
    """Devices that differ in their names only: equal figures, in one machine, in tables of equal measurements."""

    device: Device
    names: tuple[str, ...]


def labels_of(view: View) -> tuple[Label, ...]:
    """The devices of a view by kind and machine, in the order of :func:`neighbours`."""
    by_name, kinds, measured = view.cluster.by_name, view.cluster.kinds, _measured(view)
    found = []
    for names in neighbours(view):
        for _, alike in itertools.groupby(names, key=lambda name: kinds[name]):
            like = sorted(alike, key=measured.__getitem__)
            members = [tuple(each) for _, each in itertools.groupby(like, key=measured.__getitem__)]
            found += [Label(by_name[each[0]], each) for each in members]
    return tuple(found)


def _measured(view: View) -> dict[str, list[str]]:
    """Per device, what was measured over it and others: that tells apart devices of equal figures."""
    found: dict[str, list[str]] = {device.name: [] for device in view.devices}
    for table in view.cluster.collectives:
        for name in found.keys() & set(table.devices):
            found[name].append(table.model_dump_json(exclude={"devices"}))
    return {name: sorted(tables) for name, tables in found.items()}


class Room(NamedTuple):
    """Bytes of stages [i, j), as arrays over (i, j): the terms of :func:`steelyard.sim.memory.peak`."""

    states: Floats
    """Weights, gradients and optimizer states, with copies of tied layers that are elsewhere."""
    kept: Floats
    """Per sample, from its forward to its backward pass."""
    buffers: Floats
    """Per sample of the largest micro-batch: of recomputation, and received from other stages (of what skips stages:
    once per reader, which is the most)."""
    crossing: Floats
    """Per bound, elements of a sample that are made before it and read after it."""

    def need(self, in_flight: int, largest: int) -> Floats:
        """Bytes with so many samples in flight, in micro-batches of at most ``largest``."""
        return self.states + in_flight * self.kept + largest * self.buffers


def room_of(workload: Workload, recompute: Recompute) -> Room:
    """The bytes of every stage of a workload."""
    return _room(Identity(workload), recompute)


@lru_cache(maxsize=64)
def _room(key: Identity, recompute: Recompute) -> Room:
    workload = key.value
    assert isinstance(workload, Workload)
    sources = footprint.sources(workload)
    chain = all(each == tuple(range(number)[-1:]) for number, each in enumerate(sources))
    received, crossing = _received_of_chain(workload) if chain else _received(workload, sources)
    buffers = _recomputed(workload, recompute) + BUFFERS * workload.element_bytes * received
    return Room(_states(workload), _kept(workload, recompute, chain), buffers, crossing)


def _between(values: Sequence[float]) -> Floats:
    """Sums of values [i, j)."""
    sums = np.concatenate(([0.0], np.cumsum(np.array(values, dtype=float))))
    return np.asarray(np.maximum(sums[None, :] - sums[:, None], 0.0), dtype=np.float64)


def _states(workload: Workload) -> Floats:
    element, count = workload.element_bytes, len(workload.layers)
    optimizer = 4 * OPTIMIZER_STATES[workload.optimizer] + (4 if element < 4 else 0)
    each = [footprint.parameters(workload, number, number + 1, 1) for number in range(count)]
    sizes = [element * parameters + (element + optimizer) * trainable for parameters, trainable in each]
    found = _between(sizes)
    first, last = np.arange(count + 1)[:, None], np.arange(count + 1)[None, :]
    for target in dict.fromkeys(target for _, target in footprint.ties(workload)):
        tied = [number for number, other in footprint.ties(workload) if other == target]
        near = np.any([(first <= number) & (number < last) for number in tied], axis=0)
        found += sizes[target] * (near & ~((first <= target) & (target < last)))
    return found


def _kept(workload: Workload, recompute: Recompute, chain: bool) -> Floats:
    count = len(workload.layers)
    if chain:  # what a layer keeps does not depend on who else is in its stage
        cuts = [footprint.Cut(number, number + 1, 1, recompute) for number in range(count)]
        return _between([footprint.kept_bytes(workload, cut) for cut in cuts])
    found = np.zeros((count + 1, count + 1))
    for first, last in itertools.combinations(range(count + 1), 2):
        found[first, last] = footprint.kept_bytes(workload, footprint.Cut(first, last, 1, recompute))
    return found


def _recomputed(workload: Workload, recompute: Recompute) -> Floats:
    """The most that any layer of a stage gives back."""
    count = len(workload.layers)
    cuts = [footprint.Cut(number, number + 1, 1, recompute) for number in range(count)]
    each = np.array([footprint.recomputed_bytes(workload, cut) for cut in cuts])
    found = np.zeros((count + 1, count + 1))
    for first in range(count):
        found[first, first + 1 :] = np.maximum.accumulate(each[first:])
    return found


def _outputs(workload: Workload) -> list[float]:
    return [at(layer.output_elements, workload.sequence_length) for layer in workload.layers]


def _received_of_chain(workload: Workload) -> tuple[Floats, Floats]:
    crossing = np.array([0.0, *_outputs(workload)])
    crossing[-1] = 0.0
    return crossing[:, None] + crossing[None, :], crossing


def _received(workload: Workload, sources: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
    count, outputs = len(sources), _outputs(workload)
    readers: list[list[int]] = [[] for _ in range(count)]
    for reader, feeding in enumerate(sources):
        for source in feeding:
            readers[source].append(reader)
    received = np.zeros((count + 1, count + 1))
    for first, last in itertools.combinations(range(count + 1), 2):
        inputs = {source for layer in range(first, last) for source in sources[layer] if source < first}
        gradients = sum(outputs[layer] * sum(each >= last for each in readers[layer]) for layer in range(first, last))
        received[first, last] = sum(outputs[source] for source in sorted(inputs)) + gradients
    crossing = [
        sum(outputs[layer] for layer in range(bound) if any(each >= bound for each in readers[layer]))
        for bound in range(count + 1)
    ]
    return received, np.array(crossing)


class Ways(NamedTuple):
    """Messages between two labels, per bound: seconds alone, and of those how long the link is busy."""

    forward_s: Floats
    forward_busy_s: Floats
    backward_s: Floats
    backward_busy_s: Floats

    @property
    def both_s(self) -> Floats:
        """Activations there and gradients back."""
        return self.forward_s + self.backward_s


class Spans(NamedTuple):
    """Stages by their numbers of layers (the first row has one) and first layers; infinite beyond the last layer."""

    adds: Floats
    """Seconds that a stage adds to a pass."""
    load: Floats
    """And its load on the bottleneck."""
    least_load: Floats
    """The least load of any stage of so many layers."""


class Chain:
    """Costs of every stage on every label for one list of micro-batches, schedule and recomputation.

    Args:
        view: its cluster and workload.
        labels: the devices.
        sizes: of the micro-batches, the larger first; of two sizes at most.
        schedule: ``1f1b`` or ``gpipe``.
        recompute: of all stages.
        message_share: of a stage's messages with the next one, what counts as its load with 1F1B.
    """

    def __init__(
        self,
        view: View,
        labels: tuple[Label, ...],
        sizes: Sequence[int],
        *,
        schedule: str,
        recompute: Recompute,
        message_share: float = 1.0,
    ) -> None:
        self.view, self.labels, self.sizes, self.schedule, self.recompute = view, labels, sizes, schedule, recompute
        self.message_share = message_share
        self.workload = view.workload
        self.layers = len(self.workload.layers)
        self.room = room_of(self.workload, recompute)
        self._fits: dict[tuple[int, int], Flags] = {}
        self._stages: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        self._ways: dict[tuple[int, int, int], Ways] = {}
        self._spans: dict[tuple[int, int], Spans] = {}
        self._fits_spans: dict[tuple[int, int], Flags] = {}

    def loaded(self, message_share: float) -> Chain:
        """The same with another load of messages; what is known of ways and memory is shared."""
        other = copy.copy(self)
        other.message_share, other._stages, other._spans = message_share, {}, {}
        return other

    @property
    def count(self) -> int:
        """Micro-batches of a step."""
        return len(self.sizes)

    @cached_property
    def shares(self) -> tuple[tuple[int, float], ...]:
        """Sizes of micro-batches, and which share of them have each."""
        distinct = dict.fromkeys(self.sizes)
        return tuple((size, sum(each == size for each in self.sizes) / self.count) for size in distinct)

    @cached_property
    def network(self) -> Network:
        """Of the cluster."""
        return network_of(self.view.cluster)

    def times(self, label: int, size: int) -> LayerTimes:
        """Seconds of the layers for one micro-batch."""
        return layer_times(self.labels[label].device, self.workload, size, 1, self.recompute)

    def passes(self, label: int) -> Floats:
        """Forward and backward seconds of stages [i, j), of a mean micro-batch."""
        parts = [share * self.times(label, size).passes for size, share in self.shares]
        return np.asarray(sum(parts[1:], parts[0]), dtype=np.float64)

    def ways(self, label: int, behind: int, size: int) -> Ways:
        """Messages between a stage on one label and the next on another."""
        key = (label, behind, size)
        if key not in self._ways:
            self._ways[key] = self._between(label, behind, size)
        return self._ways[key]

    def reduce_s(self, label: int, other: int, size_bytes: float) -> float:
        """Seconds of an all-reduce between a device of one label and one of another."""
        return self.network.collective("all_reduce", self._pair(label, other), size_bytes).alone_s

    def _pair(self, label: int, behind: int) -> tuple[str, str]:
        """A device of each of two labels; not the same one twice, where there are others."""
        here, there = self.labels[label].names[0], self.labels[behind].names[0]
        if label == behind:  # one of its other devices; one of its own kind alone stands for ways that are all alike
            others = (*self.labels[label].names[1:], *(each.names[0] for each in self.labels if each.names[0] != here))
            there = next(iter(others), here)
        return here, there

    def _between(self, label: int, behind: int, size: int) -> Ways:
        here, there = self._pair(label, behind)
        volumes, places = np.unique(self.room.crossing * size * self.workload.element_bytes, return_inverse=True)

        def seconds(source: str, target: str) -> tuple[Floats, Floats]:
            sent: list[Transfer] = [self.network.point_to_point(source, target, each) for each in volumes.tolist()]
            alone = np.array([each.alone_s for each in sent])
            return alone[places], (alone - np.array([each.latency_s for each in sent]))[places]

        return Ways(*seconds(here, there), *seconds(there, here))

    @cached_property
    def apart(self) -> bool:
        """Whether it matters which label a stage sends to: some links, or ways to use them, are unlike others."""
        pairs = [(one, other) for one in range(len(self.labels)) for other in range(len(self.labels))]
        size = self.sizes[0]
        known = {
            tuple(each.tobytes() for each in self.ways(*pair, size))
            for pair in pairs
            if pair[0] != pair[1] or len(self.labels[pair[0]].names) > 1
        }
        return len(known) > 1 or len({self.overlaps(label) for label in range(len(self.labels))}) > 1

    def overlaps(self, label: int) -> bool:
        """Whether its devices compute while they send."""
        return self.labels[label].device.overlapping

    def stage(self, label: int, behind: int) -> tuple[Floats, Floats]:
        """Of stages [i, j) with ``behind`` next: seconds that they add to a pass, and their load on the bottleneck.

        A stage adds its passes and its messages with the next one. With 1F1B that is its load, too: neighbours wait for
        each other's messages in every turn (in a long run of like stages for all of them, about a single slow link for
        half: ``message_share``). With GPipe messages flow beside the passes, and the longer of the two is the load.
        """
        key = (label, behind)
        if key not in self._stages:
            passes = np.where(np.tri(self.layers + 1, dtype=bool), np.inf, self.passes(label))
            self._stages[key] = (passes, passes) if behind == NOBODY else self._with_messages(passes, label, behind)
        return self._stages[key]

    def _with_messages(self, passes: Floats, label: int, behind: int) -> tuple[Floats, Floats]:
        ways = [(share, self.ways(label, behind, size)) for size, share in self.shares]
        sends = sum(share * each.both_s for share, each in ways)
        total = passes + sends
        if not (self.overlaps(label) and self.overlaps(behind)):
            return total, total
        if self.schedule == "1f1b":
            return total, passes + self.message_share * sends
        busy = sum(share * (each.forward_busy_s + each.backward_busy_s) for share, each in ways)
        return total, np.maximum(passes, busy)

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        """By the number of a stage's layers and its first one, where it ends; those beyond the last end there."""
        found: NDArray[np.intp] = np.arange(1, self.layers + 1)[:, None] + np.arange(self.layers + 1)
        return np.asarray(np.minimum(found, self.layers), dtype=np.intp)

    def _by_length(self, table: Floats) -> Floats:
        """Entries of stages [i, j) by their numbers of layers and first ones; infinite beyond the last layer."""
        return np.where(self._inside, table.take(self._entries), np.inf)

    @cached_property
    def _entries(self) -> NDArray[np.intp]:
        """By the number of layers and the first one, the place of a stage in a table [i, j) that is read in a row."""
        return np.asarray(np.arange(self.layers + 1) * (self.layers + 1) + self.ends, dtype=np.intp)

    @cached_property
    def _inside(self) -> Flags:
        """By the number of layers and the first one, whether a stage ends with the last layer at the latest."""
        return np.arange(1, self.layers + 1)[:, None] + np.arange(self.layers + 1) <= self.layers

    def spans(self, label: int, behind: int) -> Spans:
        """What :meth:`stage` says, by the number of layers."""
        key = (label, behind)
        if key not in self._spans:
            adds, load = self.stage(label, behind)
            every = self._by_length(adds)
            loads = every if load is adds else self._by_length(load)
            self._spans[key] = Spans(every, loads, loads.min(axis=1))
        return self._spans[key]

    def fits_spans(self, label: int, behind: int) -> Flags:
        """What :meth:`fits` says, by the number of layers, up to the most that fit anywhere."""
        key = (label, self._in_flight(behind))
        if key not in self._fits_spans:
            fits = self.fits(label, behind).take(self._entries) & self._inside
            most = np.flatnonzero(fits.any(axis=1))
            self._fits_spans[key] = fits[: int(most[-1]) + 1 if len(most) else 0]
        return self._fits_spans[key]

    @cached_property
    def least_sum_s(self) -> float:
        """No pipeline passes a micro-batch through all layers in less: each layer on the device fastest with it."""
        times = np.array([np.diff(self.passes(label)[0]) for label in range(len(self.labels))])
        return float(times.min(axis=0).sum()) * (1 - 1e-9)

    def fits(self, label: int, behind: int) -> Flags:
        """Whether stages [i, j) fit on a label with so many stages behind them."""
        key = (label, self._in_flight(behind))
        if key not in self._fits:
            room = self.labels[label].device.memory_bytes * (1 - ROUNDING)
            found = self.room.need(key[1], self.sizes[0]) <= room
            # A pipeline of one stage accumulates, whatever the schedule.
            found[0, -1] = self.room.need(self.sizes[0], self.sizes[0])[0, -1] <= room
            self._fits[key] = found
        return self._fits[key]

    def _in_flight(self, behind: int) -> int:
        """Samples in flight with so many stages behind."""
        return self._sums[-1 if self.schedule == "gpipe" else min(behind, self.count - 1)]

    @cached_property
    def _sums(self) -> list[int]:
        return list(itertools.accumulate(self.sizes))
