"""Overlap: step times where gradients are synchronised while the backward pass still runs, for any set of devices.

Bucket j flows when all devices have its gradients and bucket j - 1 is through. So the last bucket ends at the maximum
over j of (the last device's readiness for j + the buckets from j on), which is the maximum over devices of a time that
depends on that device alone: its optimizer step, its passes, and what communication adds. A device whose computing
binds has the maximum at the last bucket, one whose communication binds at an earlier one: Cannikin's two kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from ..sim import cost
from ..sim.device import Device
from ..sim.network import network_of
from ..sim.plan import Plan
from ..sim.roofline import Identity, backwards_s, classes, kind_of, powers
from ..sim.steps import Flags, Floats, Ints, Kinds, Steps
from ..sim.times import layer_times
from ..sim.view import View
from ..sim.waking import extra_s
from ..sim.workload import Workload


class Overlapped:
    """From the end of one step's buckets to that of the next, if a device were the last to be ready for all of them.

    These are :class:`~steelyard.sim.steps.Times`: the simulated step without noise is their maximum over the devices.
    What waking costs (:mod:`steelyard.sim.waking`) is in them: the last to come, who sets the pace, was blocked for the
    collective alone, which does not depend on the split.
    """

    def __init__(self, steps: Steps, rests: Rests | None, left_s: Floats, waking_s: Floats | None = None) -> None:
        self.steps, self._waking_s = steps, waking_s
        self.row_of, self.capacity = steps.row_of, steps.capacity
        self._rests = rests
        """None where nothing overlaps: one message, after the backward pass."""
        self.left_s = left_s
        """Of each bucket, the seconds that it and those after it take."""

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`~steelyard.sim.steps.Times`."""
        return np.where(samples > 0, self.steps.at(rows, samples) + self._exposed_s(rows, samples), 0.0)

    def _exposed_s(self, rows: Ints, samples: Ints) -> Floats | float:
        """What the buckets reach beyond the end of the last micro-batch's backward pass, were nobody later."""
        if not len(self.left_s):
            return 0.0
        if self._rests is None:
            return float(self.left_s[0]) + (self._waking_s[rows] if self._waking_s is not None else 0.0)
        kinds = self.steps.index[rows]
        size = samples // np.maximum(-(-samples // self._rests.kinds.largest[kinds]), 1)
        found: Floats = np.maximum((self.left_s - self._rests.at(kinds, size)).max(axis=1), 0.0)
        return found

    @property
    def rising(self) -> bool:
        """See :class:`~steelyard.sim.steps.Times`: nor does what comes of the layers above a bucket ever fall."""
        return self.steps.rising


class Rests:
    """How long a backward pass goes on after each bucket's gradients are there."""

    def __init__(self, view: View, firsts: Sequence[int]) -> None:
        self.kinds: Kinds = view.steps.kinds
        self._view = view
        self._firsts = tuple(firsts)
        """First layer of each bucket."""
        self._sizes = np.array(powers(view.global_batch))
        devices = [view.cluster.by_name[each.name] for each in self.kinds.devices]
        measured = [
            cost.profile_of(each, view.workload) is not None or cost.layer_profile_of(each, view.workload) is not None
            for each in devices
        ]
        self._measured: Flags = np.array(measured)
        nothing = np.zeros((len(self._sizes), len(self._firsts)))
        key = Identity(view.workload)
        tables = [
            nothing if known else _rooflines(kind_of(each), key, self._firsts)
            for each, known in zip(devices, measured, strict=True)
        ]
        self._seconds = np.array(tables)
        """(kinds, sizes, buckets)."""
        self._known: dict[tuple[int, int], Floats] = {}

    def at(self, kinds: Ints, sizes: Ints) -> Floats:
        """(kinds, buckets): seconds for micro-batches of some sizes."""
        high = np.minimum(np.maximum(np.searchsorted(self._sizes, sizes), 1), len(self._sizes) - 1)
        x0, x1 = self._sizes[high - 1], self._sizes[high]
        part = ((sizes - x0) / (x1 - x0))[:, None]
        y0 = self._seconds[kinds, high - 1]
        found: Floats = y0 + (self._seconds[kinds, high] - y0) * part
        for place in np.flatnonzero(self._measured[kinds]).tolist() if self._measured.any() else ():
            found[place] = self._of(int(kinds[place]), int(sizes[place]))
        return found

    def _of(self, kind: int, size: int) -> Floats:
        """Of a device that was measured: the sum of its layers' times."""
        if (kind, size) not in self._known:
            device = self._view.cluster.by_name[self.kinds.devices[kind].name]
            sums = layer_times(device, self._view.workload, size).backward_sums
            self._known[kind, size] = sums[list(self._firsts)]
        return self._known[kind, size]


@lru_cache(maxsize=8192)
def _rooflines(device: Identity, workload: Identity, firsts: tuple[int, ...]) -> Floats:
    """(sizes, buckets): sums of the layers' rooflines, which are affine between the sizes."""
    assert isinstance(device.value, Device)
    assert isinstance(workload.value, Workload)
    found: Floats = np.transpose(backwards_s(device.value, workload.value)) @ _counts(workload, firsts)
    return found


@lru_cache(maxsize=256)
def _counts(workload: Identity, firsts: tuple[int, ...]) -> Floats:
    """(classes, buckets): how many layers of a class lie before each bucket."""
    assert isinstance(workload.value, Workload)
    numbers, members = classes(Identity(workload.value.model))
    each = [np.bincount(numbers[:first], minlength=len(members)) for first in firsts]
    return np.array(each, dtype=np.float64).T


class Overlaps:
    """The times of any devices of a view that work together; what they have in common is computed once.

    Args:
        view: whose devices.
        bucket_mib: least size of a message of gradients; None: nothing overlaps, one message after the backward pass.
    """

    def __init__(self, view: View, bucket_mib: float | None) -> None:
        self.view = view
        self._names = [device.name for device in view.devices]
        self._beside: Flags = np.array(
            [bucket_mib is not None and view.cluster.by_name[name].overlapping for name in self._names]
        )
        self._buckets = buckets(view.workload, bucket_mib or 0.0)
        self._network = network_of(view.cluster)

    def among(self, places: Ints) -> Overlapped:
        """The times of some of the devices, without the others."""
        steps = self.view.steps.among(places)
        names = [self._names[place] for place in places.tolist()]
        if not self._buckets or len(names) < 2:
            return Overlapped(steps, None, np.zeros(0))
        if not self._beside[places].all():
            whole_s = self._network.collective("all_reduce", names, self.view.workload.gradient_bytes).alone_s
            return Overlapped(steps, None, np.array([whole_s]), self._waking_s(steps, whole_s))
        each = [self._network.collective("all_reduce", names, size).alone_s for _, size in self._buckets]
        return Overlapped(steps, self._rests, np.cumsum(each[::-1])[::-1])

    def floor(self, devices: int) -> Overlapped:
        """What no set of at least so many devices on several machines goes below, with all of a view's devices.

        Whatever goes around by ring or tree, every machine sends 2 (p - 1)/p of each byte over its adapters; they are
        taken to be the fastest. Of collectives that were measured nothing is known.
        """
        cluster, share = self.view.cluster, 0.0
        ways = [node.network or cluster.network for node in cluster.nodes]
        if len(ways) > 1 and not cluster.collectives:
            rates = [node.nics * way.bandwidth for node, way in zip(cluster.nodes, ways, strict=True) if way]
            share = 2 * (devices - 1) / devices / max(rates)
        if not self._buckets or not self._beside.any():
            return Overlapped(self.view.steps, None, np.array([share * self.view.workload.gradient_bytes]))
        sizes = np.array([size for _, size in self._buckets])
        return Overlapped(self.view.steps, self._rests, share * np.cumsum(sizes[::-1])[::-1])

    @staticmethod
    def _waking_s(steps: Steps, blocked_s: float) -> Floats | None:
        """Per row, what waking costs whoever was blocked for the collective alone; None where nobody pays."""
        tables = [steps.kinds.devices[kind].cost.waking for kind in steps.index.tolist()]
        return np.array([extra_s(table, blocked_s) for table in tables]) if any(tables) else None

    @cached_property
    def _rests(self) -> Rests:
        return Rests(self.view, [first for first, _ in self._buckets])


def step_s(view: View, plan: Plan) -> float:
    """Seconds of a plain split's step, as simulated without noise; endless where one of its devices is gone."""
    samples, places = plan.samples(), {device.name: place for place, device in enumerate(view.devices)}
    if any(name not in places for name in samples):
        return float("inf")
    chosen = np.array([places[name] for name in samples])
    times = Overlaps(view, plan.bucket_mib if plan.overlap else None).among(chosen)
    return float(times.at(times.row_of, np.array(list(samples.values()))).max())


def buckets(workload: Workload, bucket_mib: float) -> list[tuple[int, float]]:
    """First layer and bytes of each message of gradients, the last layers first: whole layers, of at least a size."""
    found, size = [], 0.0
    for number in reversed(range(len(workload.layers))):
        size += workload.shard_parameters(number, number + 1, 1) * workload.element_bytes
        if size >= bucket_mib * 2**20 or number == 0:
            if size > 0:
                found.append((number, size))
            size = 0.0
    return found
