"""Keys: what attention sees of the devices, as logarithms without units, and what its query sees of the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..sim.noise import Floats
from ..sim.view import DeviceView, View
from ._base import canonical, capacities

Whole = NDArray[np.int64]

KEYS = ("peak", "bandwidth", "memory", "one", "whole", "link", "gain", "price", "power")
"""Columns of :attr:`Keys.values`; the load, which changes from round to round, is not among them."""
CONTEXT = ("bias", "samples per device", "devices", "synchronisation", "fixed share", "spread")
"""Entries of :attr:`Keys.context`."""
SHARP, LEAST_GAIN = 10.0, -3.0
"""The key ``gain`` is ten times the logarithm, as a tenth more time is much; no less than this."""
BALANCING = 6
"""Rounds in which the sets that ``gain`` compares are balanced."""
LEAST = 1e-12
"""Shares below are nothing: their logarithm would be."""
REFILLS = 4
"""Times that what some device cannot hold is dealt to the others."""
FAR = 3.0
"""The context stays within plus and minus this: clusters were never seen further out."""


@dataclass(frozen=True, eq=False)
class Table:
    """Estimated step times and room of some devices; amounts have the devices along their last axis."""

    batch: int
    sizes: Floats
    """Samples that :attr:`seconds` are tabulated at, from 1 to the batch."""
    seconds: Floats
    """(devices, sizes)."""
    capacity: Floats
    """Most samples of each; 0 where the model does not fit."""

    @classmethod
    def of(cls, view: View) -> Table:
        """The step times of a view's devices, two sizes an octave; like devices are asked once."""
        batch = view.global_batch
        steps = math.ceil(2 * math.log2(batch)) if batch > 1 else 0
        sizes = sorted({min(batch, round(2 ** (step / 2))) for step in range(steps + 1)} | {1, max(batch, 2)})
        known: dict[object, list[float]] = {}
        for device in view.devices:
            if _kind(device) not in known:
                known[_kind(device)] = [device.step_s(size) for size in sizes]
        seconds = np.maximum(np.array([known[_kind(device)] for device in view.devices]), 1e-30)
        capacity = np.array([float(min(device.capacity, batch)) for device in view.devices])
        return cls(batch, np.array(sizes, dtype=np.float64), seconds, capacity)

    def at(self, amounts: Floats) -> Floats:
        """Step times for so many samples each (fractions too), piecewise affine; below one sample, those of one."""
        place = np.clip(np.searchsorted(self.sizes, amounts, side="right") - 1, 0, len(self.sizes) - 2)
        rows = np.arange(len(self.seconds))
        low, high = self.seconds[rows, place], self.seconds[rows, place + 1]
        part = (amounts - self.sizes[place]) / (self.sizes[place + 1] - self.sizes[place])
        return np.asarray(low + np.clip(part, 0.0, 1.0) * (high - low), dtype=np.float64)

    def speeds(self, amounts: Floats) -> Floats:
        """Samples per second at some loads."""
        amounts = np.maximum(amounts, LEAST * self.batch)
        return np.asarray(amounts / self.at(amounts), dtype=np.float64)

    def held(self, shares: Floats) -> Floats:
        """Samples of each device at some shares of the batch; what one cannot hold goes to the others likewise."""
        amounts = np.minimum(shares * self.batch, self.capacity)
        for _ in range(REFILLS):
            weights = np.where(amounts < self.capacity, np.maximum(shares, LEAST), 0.0)
            left = np.maximum(self.batch - amounts.sum(axis=-1, keepdims=True), 0.0)
            total = np.maximum(weights.sum(axis=-1, keepdims=True), LEAST)
            amounts = np.minimum(amounts + left * weights / total, self.capacity)
        return np.asarray(amounts, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Keys:
    """One row per device, in an order that figures decide; every logarithm is relative to the mean of open devices."""

    view: View
    """With the devices in that order."""
    table: Table
    values: Floats
    """(devices, :data:`KEYS`): logarithms of peak FLOP/s, memory bandwidth, memory beside the states, speed with one
    sample, speed with as many samples as it may hold, bandwidth of its links; what it saves the step against what its
    synchronisation costs (0, or below 0 where it costs more); price, power (zero where not all have a figure)."""
    context: Floats
    """Of the work and the cluster as a whole, see :data:`CONTEXT`: without units too."""
    mask: Floats
    """0, or -inf where the model does not fit."""
    groups: Whole
    """Per device, the first of the sets 0, 1, 2, ... that it is in; each set holds the one before."""
    syncs_s: Floats
    """All-reduce over each set."""

    @classmethod
    def of(cls, view: View) -> Keys:
        """What a view says.

        Raises:
            Infeasible: the batch does not fit.
        """
        capacities(view)
        view = canonical(view)
        table = Table.of(view)
        open_ = table.capacity > 0
        groups, syncs_s, gains = _chosen_sets(view, table)
        most = np.maximum(table.capacity, 1.0)
        columns = [
            *_figures(view),
            np.log(table.speeds(np.ones(len(most)))),
            np.log(table.speeds(most)),
            np.log(_links(view)),
            gains,
            _logs([view.cluster.by_name[device.name].price_usd_per_hour for device in view.devices]),
            _logs([view.cluster.by_name[device.name].max_w for device in view.devices]),
        ]
        values = np.column_stack(columns)
        means = values[open_].mean(axis=0)
        means[KEYS.index("gain")] = 0.0
        return cls(
            view=view,
            table=table,
            values=np.where(open_[:, None], values - means, 0.0),
            context=_context(table, open_, float(syncs_s[-1])),
            mask=np.where(open_, 0.0, -math.inf),
            groups=groups,
            syncs_s=syncs_s,
        )

    def load(self, amounts: Floats) -> Floats:
        """The key that changes: log of the speed at the present load, relative to the mean of open devices."""
        speeds, open_ = np.log(self.table.speeds(amounts)), np.isfinite(self.mask)
        return np.where(open_, speeds - speeds[open_].mean(), 0.0)

    def equal(self) -> Floats:
        """Samples of each device at equal shares: where the rounds start."""
        open_ = np.isfinite(self.mask)
        return self.table.held(open_ / open_.sum())


def _kind(device: DeviceView) -> tuple[object, ...]:
    """All that distinguishes a device but its name."""
    cost = device.cost
    room = (device.memory_bytes, device.capacity, device.largest_micro_batch)
    return (cost.forward, cost.backward, cost.optimizer_s, device.peak_flops, device.memory_bandwidth, *room)


def _links(view: View) -> Floats:
    """Bytes per second of each device to the others: of its machine's link, or of its way out if that is narrower."""
    cluster = view.cluster
    found = []
    for device in view.devices:
        node = cluster.nodes[cluster.node_of[device.name]]
        way = node.network or cluster.network if len(cluster.nodes) > 1 else None
        found.append(min(node.link.bandwidth, way.bandwidth) if way else node.link.bandwidth)
    return np.array(found)


def _figures(view: View) -> tuple[Floats, ...]:
    states = view.workload.state_bytes
    return (
        np.log([device.peak_flops for device in view.devices]),
        np.log([device.memory_bandwidth for device in view.devices]),
        np.log([max(device.memory_bytes - states, 1.0) for device in view.devices]),
    )


def _chosen_sets(view: View, table: Table) -> tuple[Whole, Floats, Floats]:
    """Of two ways to nest sets of devices, the one with the faster best set: groups, all-reduces, gains.

    The first are the fastest devices; the second are whole machines, those that are fastest together first: what is in
    one machine is synchronised over its own link.
    """
    places = range(len(view.devices))
    fastest = _Sets.of(view, table, list(places), list(places))
    machine_of = [view.cluster.node_of[device.name] for device in view.devices]
    speeds: dict[int, float] = {}
    for machine, speed in zip(machine_of, view.speeds, strict=True):
        speeds[machine] = speeds.get(machine, 0.0) + speed
    order = sorted(places, key=lambda place: (-speeds[machine_of[place]], machine_of.index(machine_of[place]), place))
    whole = _Sets.of(view, table, order, [machine_of[place] for place in order])
    best = min(fastest, whole, key=lambda each: float(each.costs.min()))
    return best.groups, best.syncs_s, best.gains


@dataclass(frozen=True, eq=False)
class _Sets:
    """Nested sets of devices, and the step that each gives."""

    groups: Whole
    """Per device, the first set that it is in."""
    syncs_s: Floats
    costs: Floats
    """Estimated step of each set; infinite where the batch does not fit."""

    @classmethod
    def of(cls, view: View, table: Table, order: Sequence[int], units: Sequence[int]) -> _Sets:
        """Sets of the first 1, 2, 3, ... units of an order (beyond eight, every so often): devices, or machines."""
        number = np.cumsum([0] + [units[i] != units[i - 1] for i in range(1, len(units))])
        ends, count = [1], int(number[-1]) + 1
        while ends[-1] < count:
            ends.append(min(count, max(ends[-1] + 1, ends[-1] * 5 // 4)))
        first = np.searchsorted(np.array(ends), number, side="right")
        groups = np.zeros(len(order), dtype=np.int64)
        groups[list(order)] = first
        last = np.searchsorted(first, np.arange(len(ends)), side="right")
        names = [view.devices[place].name for place in order]
        syncs_s = np.array([view.sync_s(names[:end]) for end in last])
        return cls(groups, syncs_s, _costs(table, groups, syncs_s))

    @property
    def gains(self) -> Floats:
        """Per device, log of the best step without it and all after it over the best with it; 0 where above 0."""
        best_with = np.minimum.accumulate(self.costs[::-1])[::-1]
        best_without = np.minimum.accumulate(np.array([math.inf, *self.costs[:-1]]))
        gains = SHARP * np.log(best_without / best_with)
        return np.asarray(np.clip(gains, LEAST_GAIN, 0.0)[self.groups], dtype=np.float64)


def _costs(table: Table, groups: Whole, syncs_s: Floats) -> Floats:
    """The step of each set: its slowest device once some rounds have balanced the load, and the all-reduce."""
    inside = (groups[None, :] <= np.arange(len(syncs_s))[:, None]) & (table.capacity > 0)
    amounts = table.held(inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)) * inside
    for _ in range(BALANCING):
        speeds = table.speeds(amounts) * inside
        amounts = table.held(speeds / np.maximum(speeds.sum(axis=1, keepdims=True), 1e-300)) * inside
    busy = (table.at(amounts) * inside).max(axis=1)
    fits = (table.capacity * inside).sum(axis=1) >= table.batch
    return np.asarray(np.where(fits, busy + syncs_s, math.inf), dtype=np.float64)


def _logs(values: Sequence[float | None]) -> Floats:
    """Logarithms; zeros where not every device has a figure."""
    if any(value is None for value in values):
        return np.zeros(len(values))
    return np.asarray(np.log(np.maximum(np.array(values, dtype=np.float64), 1e-9)), dtype=np.float64)


def _context(table: Table, open_: NDArray[np.bool_], sync_s: float) -> Floats:
    """The entries of :data:`CONTEXT`, each of the order of 1."""
    count = int(open_.sum())
    share = table.batch / count
    speeds = table.speeds(np.full(len(open_), max(1.0, share)))[open_]
    compute_s = table.batch / float(speeds.sum())
    fixed = float(np.log(speeds * table.seconds[open_, 0]).mean())
    found = [1.0, math.log(share) / 4, math.log(count) / 4, math.log(sync_s / compute_s + 0.01) / 4, fixed / 2]
    entries = np.clip([*found, float(np.log(speeds).std())], -FAR, FAR)
    return np.asarray(entries, dtype=np.float64)
