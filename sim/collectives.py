"""Collectives: what each algorithm sends over which resource, and the seconds that it takes alone.

Sizes are the whole buffer on each rank (of a gather or scatter: the gathered one). Formulas: ring (Patarasuk and Yuan
2009), double binary tree (Sanders et al. 2009; NCCL since 2.4), binomial broadcast and pairwise all-to-all (Thakur et
al. 2005).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from ..results.errors import InputError
from .device import CollectiveKind
from .topology import Port, Topology

Algorithm = Literal["ring", "tree", "hierarchical", "pairwise"]
Backend = Literal["nccl", "gloo"]
MANY = 16
"""Ports from which arrays are faster than a loop."""
Groups = Sequence[Sequence[Port]]
"""Ports by machine."""
Route = tuple[float, tuple[int, ...]]

OFFERED: Mapping[CollectiveKind, tuple[Algorithm, ...]] = {
    "all_reduce": ("ring", "tree", "hierarchical"),
    "reduce_scatter": ("ring",),
    "all_gather": ("ring",),
    "broadcast": ("ring", "tree"),
    "all_to_all": ("pairwise",),
}
RINGS = ("all_reduce", "reduce_scatter", "all_gather")
CHOSEN: Mapping[Backend, Mapping[CollectiveKind, tuple[Algorithm, ...]]] = {
    # NCCL's rings run over machines and their devices alike: measured bus bandwidth is the same on 2 machines as on 16,
    # where a hierarchical all-reduce would be twice as fast on 2. So that one is for those who ask for it.
    "nccl": {**OFFERED, "all_reduce": ("ring", "tree")},
    "gloo": {**OFFERED, "all_reduce": ("ring",), "broadcast": ("tree",)},
}
"""What a backend picks the fastest of."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One collective over certain devices, whatever its size."""

    phases: tuple[tuple[tuple[float, float], ...], ...]
    """One after the other; of each the (latency in s, seconds per byte) of its kinds of hop, the slowest of which sets
    the pace."""
    uses: tuple[tuple[int, float], ...]
    """(resource, times that each byte of the buffer crosses it)."""
    peak: float
    """The largest weight / capacity: seconds per byte that the busiest resource works."""

    def seconds(self, size_bytes: float) -> float:
        """Seconds when nobody else is there."""
        return sum(max(latency + size_bytes * slope for latency, slope in hops) for hops in self.phases)


class Crossings:
    """How often one phase crosses each resource, and the latencies on the way."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self.times: dict[int, float] = {}
        self._behind: dict[float, set[int]] = {}
        for latency, resources in routes:
            self.add(latency, resources)

    def add(self, latency: float, resources: tuple[int, ...], times: float = 1.0) -> None:
        """Count a route that is taken so many times."""
        for resource in resources:
            self.times[resource] = self.times.get(resource, 0.0) + times
        self._behind.setdefault(latency, set()).update(resources)

    def add_ring(self, topology: Topology, order: Sequence[Port]) -> None:
        """Count the routes of a ring; without switches, by arrays."""
        if topology.uplinks or len(order) < MANY:
            for route in _circle(topology, order):
                self.add(*route)
            return
        here = topology.table[[port.number for port in order]]
        there = np.roll(here, -1, axis=0)
        within = here[:, 0] == there[:, 0]
        out, into = np.where(within, here[:, 1], here[:, 3]), np.where(within, there[:, 2], there[:, 4])
        inner, outer = (np.array(each) for each in topology.latencies)
        latencies = np.where(within, inner[here[:, 0]], (outer[here[:, 0]] + outer[there[:, 0]]) / 2)
        for latency in sorted(set(latencies.tolist())):
            alike = latencies == latency
            both = np.concatenate([out[alike], into[alike & (out != into)]])
            resources, times = np.unique(both, return_counts=True)
            for resource, count in zip(resources.tolist(), times.tolist(), strict=True):
                self.times[resource] = self.times.get(resource, 0.0) + count
            self._behind.setdefault(latency, set()).update(resources.tolist())

    def pace(self, capacities: Sequence[float], *, steps: float, share: float) -> tuple[tuple[float, float], ...]:
        """Hops of a phase of ``steps`` lock steps that sends ``share`` of the buffer along each route in all."""
        hops = []
        for latency, resources in self._behind.items():
            slowest = max((self.times[resource] / capacities[resource] for resource in resources), default=0.0)
            hops.append((steps * latency, share * slowest))
        return _undominated(hops)

    @property
    def latency(self) -> float:
        """The longest of the routes' latencies."""
        return max(self._behind, default=0.0)


def fastest(shapes: Sequence[Shape], size_bytes: float) -> Shape:
    """The shape that takes the least time at a size."""
    return shapes[0] if len(shapes) == 1 else min(shapes, key=lambda each: each.seconds(size_bytes))


def ends(shapes: Sequence[Shape]) -> tuple[float, float]:
    """Seconds of an empty buffer, and seconds per byte of an endless one, each by the shape that is fastest there."""
    latency = min(each.seconds(0.0) for each in shapes)
    return latency, min(sum(max(slope for _, slope in hops) for hops in each.phases) for each in shapes)


def shapes_of(
    topology: Topology,
    kind: CollectiveKind,
    ports: Sequence[Port],
    backend: Backend,
    algorithm: Algorithm | Literal["auto"] = "auto",
) -> tuple[Shape, ...]:
    """The ways that a backend has of doing a collective over at least two ports.

    The first port is the root of a broadcast and the source of a point-to-point message.

    Raises:
        InputError: an algorithm that this collective does not have over these ports.
    """
    if kind == "point_to_point":
        return (_message(topology, ports[0], ports[1]),)
    wanted = CHOSEN[backend][kind] if algorithm == "auto" else (algorithm,)
    groups = topology.by_machine(ports)
    channels = _channels(groups) if backend == "nccl" else 1
    around = Crossings()
    for order in _orders(groups, channels) if kind in RINGS else ():
        around.add_ring(topology, order)
    ranks = _Ranks(topology, groups, ports[0], backend, channels, around)
    made = [_shape(kind, each, ranks) for each in wanted if each in OFFERED[kind]]
    had = tuple(each for each in made if each is not None)
    if not had:
        problem = f"{algorithm!r} is no way of doing {kind} over these {len(ports)} devices"
        raise InputError("algorithm", problem, f"one of {', '.join(OFFERED[kind])}")
    return had


def _message(topology: Topology, source: Port, target: Port) -> Shape:
    """A message: a + n b."""
    latency, resources = topology.route(source, target)
    peak = 1 / min([topology.capacities[resource] for resource in resources])
    return Shape((((latency, peak),),), tuple([(resource, 1.0) for resource in resources]), peak)


@dataclass(frozen=True, slots=True)
class _Ranks:
    """Who takes part in a collective, as all its algorithms see it."""

    topology: Topology
    groups: Groups
    root: Port
    backend: Backend
    channels: int
    around: Crossings
    """The ring over all, once per channel."""


def _shape(kind: CollectiveKind, algorithm: Algorithm, among: _Ranks) -> Shape | None:
    """None where the algorithm cannot be had.

    NCCL runs a ring per adapter at once (its channels), gloo a single one. Gloo's reduce-scatter is an all-reduce.
    """
    topology, groups, channels = among.topology, among.groups, among.channels
    ranks = sum(len(group) for group in groups)
    if kind == "all_to_all":
        return _pairwise(topology, groups)
    if algorithm == "hierarchical":
        return _hierarchical(topology, groups)
    if kind == "broadcast":
        chain = algorithm == "ring"
        return _chain(topology, groups, among.root, channels) if chain else _binomial(topology, groups, among.root)
    if algorithm == "tree":
        return _double_tree(topology, groups, channels, among.around)
    rounds = 2 if kind == "all_reduce" or (kind == "reduce_scatter" and among.backend == "gloo") else 1
    return _built(topology, [(among.around, rounds * (ranks - 1), rounds * (ranks - 1) / ranks / channels)])


def _channels(groups: Groups) -> int:
    """Rings that run at once: as many as every machine has adapters for."""
    return min(len({port.nic for port in group}) for group in groups) if len(groups) > 1 else 1


def _orders(groups: Groups, channels: int) -> Iterable[list[Port]]:
    """A ring per channel, machine by machine; each enters and leaves a machine by adapters of its own."""
    for channel in range(channels):
        order: list[Port] = []
        for group in groups:
            if channels == 1:
                order += group
                continue
            nics = sorted({port.nic for port in group})
            rank = {nic: (place - channel) % len(nics) for place, nic in enumerate(nics)}
            order += sorted(group, key=lambda port: rank[port.nic])
        yield order


def _circle(topology: Topology, order: Sequence[Port]) -> Iterable[Route]:
    return (topology.route(a, b) for a, b in pairwise([*order, order[0]]))


def _built(topology: Topology, phases: Sequence[tuple[Crossings, float, float]]) -> Shape:
    """The shape of phases given as (crossings, lock steps, share of the buffer along each route)."""
    capacities = topology.capacities
    weights: dict[int, float] = {}
    for crossings, _, share in phases:
        for resource, times in crossings.times.items():
            weights[resource] = weights.get(resource, 0.0) + share * times
    return Shape(
        phases=tuple(each.pace(capacities, steps=steps, share=share) for each, steps, share in phases),
        uses=tuple(weights.items()),
        peak=max((weight / capacities[resource] for resource, weight in weights.items()), default=0.0),
    )


def _double_tree(topology: Topology, groups: Groups, channels: int, around: Crossings) -> Shape:
    """2 (sum of the levels' latencies) + 2 n b: two trees over the machines, a chain within each.

    Every byte goes up and down past every rank but the leaves of its tree, so each way of a ring is crossed twice.
    """
    inner = max((len(group) - 1) * topology.machines[group[0].machine].link.latency_s for group in groups)
    outer = Crossings()
    if len(groups) > 1:
        outer.add_ring(topology, [group[0] for group in groups])
    latency = 2 * (inner + math.ceil(math.log2(len(groups))) * outer.latency)
    plain = _built(topology, [(around, 0, 2 / channels)])
    return Shape(phases=(((latency, plain.peak),),), uses=plain.uses, peak=plain.peak)


def _hierarchical(topology: Topology, groups: Groups) -> Shape | None:
    """Reduce-scatter in each machine, all-reduces between machines (one per local rank), all-gather in each machine."""
    local, machines = len(groups[0]), len(groups)
    if machines == 1 or any(len(group) != local for group in groups):
        return None
    ordered = [sorted(group, key=lambda port: port.nic) for group in groups]
    between = Crossings(route for peers in zip(*ordered, strict=True) for route in _circle(topology, peers))
    outer = (between, 2 * (machines - 1), 2 * (machines - 1) / machines / local)
    if local == 1:
        return _built(topology, [outer])
    within = Crossings(route for group in ordered for route in _circle(topology, group))
    inner = (within, local - 1, (local - 1) / local)
    return _built(topology, [inner, outer, inner])


def _chain(topology: Topology, groups: Groups, root: Port, channels: int) -> Shape:
    """A pipelined chain from the root, as NCCL broadcasts: (p - 1) a + n b."""
    ways = Crossings()
    for order in _orders(groups, channels):
        first = order.index(root)
        for a, b in pairwise([*order[first:], *order[:first]]):
            ways.add(*topology.route(a, b))
    ranks = sum(len(group) for group in groups)
    return _built(topology, [(ways, ranks - 1, 1 / channels)])


def _binomial(topology: Topology, groups: Groups, root: Port) -> Shape:
    """ceil(log2 p) (a + n b): whoever has the buffer sends it half of its way on, the longest ways first."""
    order = [port for group in groups for port in group]
    first = order.index(root)
    order = [*order[first:], *order[:first]]
    phases = []
    stride = 1 << (len(order) - 1).bit_length() - 1
    while stride:
        senders = range(0, len(order) - stride, 2 * stride)
        phases.append((Crossings(topology.route(order[i], order[i + stride]) for i in senders), 1, 1.0))
        stride //= 2
    return _built(topology, phases)


def _pairwise(topology: Topology, groups: Groups) -> Shape:
    """(p - 1) a + (p - 1)/p n b: every rank sends its part to every other; counted per resource, not per pair."""
    ranks = sum(len(group) for group in groups)
    pairs = Crossings()
    on_medium = sum(len(group) for group in groups if topology.machines[group[0].machine].on_medium)
    below: dict[str, int] = {}
    for group in groups:
        machine = topology.machines[group[0].machine]
        local, others = len(group), ranks - len(group)
        for port in group if local > 1 else ():
            pairs.add(machine.link.latency_s, (port.send,), local - 1)
            if port.receive != port.send:
                pairs.add(machine.link.latency_s, (port.receive,), local - 1)
        for port in group if others else ():
            pairs.add(0.0, (port.nic_send,), others)
            # What comes from the same medium was counted when it was sent.
            pairs.add(0.0, (port.nic_receive,), ranks - on_medium if machine.on_medium else others)
        for switch in topology.ways[group[0].machine]:
            below[switch] = below.get(switch, 0) + local
    for switch, count in below.items():
        for uplink in topology.uplinks[switch]:
            pairs.add(0.0, (uplink,), count * (ranks - count))
    latency = max(pairs.latency, _longest(topology, groups))
    plain = _built(topology, [(pairs, 0, 1 / ranks)])
    uses = tuple((resource, weight) for resource, weight in plain.uses if weight > 0)
    return Shape(phases=((((ranks - 1) * latency, plain.peak),),), uses=uses, peak=plain.peak)


def _longest(topology: Topology, groups: Groups) -> float:
    """The longest latency between two of the machines; those with equal adapters and switches are one case."""
    cases: dict[tuple[object, ...], list[Port]] = {}
    for group in groups:
        machine = topology.machines[group[0].machine]
        known = cases.setdefault((topology.ways[group[0].machine], machine.network and machine.network.latency_s), [])
        if len(known) < 2:
            known.append(group[0])
    ends = [port for known in cases.values() for port in known]
    return max((topology.route(a, b)[0] for a in ends for b in ends if a.machine != b.machine), default=0.0)


def _undominated(hops: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The hops that are the slowest at some size."""
    kept: list[tuple[float, float]] = []
    for hop in sorted(hops, reverse=True):
        if not kept or hop[1] > kept[-1][1]:
            kept.append(hop)
    return tuple(kept)
