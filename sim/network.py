"""Network: seconds and resources of transfers and collectives, by formula or by what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from ..results.errors import InputError
from .collectives import Algorithm, Backend, Shape, ends, fastest, shapes_of
from .device import Cluster, CollectiveKind, CollectiveTable
from .measured import Curve, Like, Own, Straight
from .roofline import Identity
from .topology import Port, Topology, like

Fidelity = Literal["datasheet", "calibrated", "profiled"]
MOST_USES = 2_000_000
"""Entries of all remembered collectives together; a search over a large cluster asks for ever new groups."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the engine plays: a latency, and then bytes that flow over resources."""

    latency_s: float
    """Paid once, occupies nothing."""
    volume_bytes: float
    """Flows after that. Of a measured collective: as many as take the measured time, so that what a link loses to its
    protocol counts as load."""
    uses: tuple[tuple[int, float], ...]
    """(resource, weight): each byte of the volume crosses the resource ``weight`` times."""
    alone_s: float
    """Seconds when nobody else is there: latency_s + volume_bytes * max(weight / capacity)."""
    fidelity: Fidelity
    """``profiled``: measured over exactly these devices; ``calibrated``: over other or like ones; else a formula."""


NOTHING = Transfer(0.0, 0.0, (), 0.0, "profiled")
"""What a device sends to itself."""


def network_of(cluster: Cluster) -> Network:
    """The network of a cluster; the same object for the same cluster."""
    return _network_of(Identity(cluster))


@lru_cache(maxsize=16)
def _network_of(key: Identity) -> Network:
    assert isinstance(key.value, Cluster)
    return Network(key.value)


@dataclass(frozen=True, slots=True)
class _Way:
    """One collective over certain devices: its shapes, what was measured of it, and the sizes asked for so far."""

    shapes: tuple[Shape, ...] = ()
    measured: Own | Like | None = None
    slowdown: float = 1.0
    known: dict[float, Transfer] = field(default_factory=dict)

    def transfer(self, size_bytes: float) -> Transfer:
        found = self.known.get(size_bytes)
        if found is None:
            found = self.known[size_bytes] = self._slowed(self._transfer(size_bytes)) if self.shapes else NOTHING
        return found

    def _slowed(self, found: Transfer) -> Transfer:
        if self.slowdown == 1.0:
            return found
        factor = self.slowdown
        return replace(
            found,
            latency_s=factor * found.latency_s,
            volume_bytes=factor * found.volume_bytes,
            alone_s=factor * found.alone_s,
        )

    def _transfer(self, size_bytes: float) -> Transfer:
        chosen = fastest(self.shapes, size_bytes)
        if self.measured is None:
            # What the busiest resource works is volume; what one waits beside that is latency.
            alone = chosen.seconds(size_bytes)
            latency = max(0.0, alone - size_bytes * chosen.peak)
            return Transfer(latency, float(size_bytes), chosen.uses, alone, "datasheet")
        alone = self.measured.seconds(size_bytes)
        latency = min(alone, self.measured.least_s)
        return Transfer(latency, (alone - latency) / chosen.peak, chosen.uses, alone, self.measured.fidelity)


class Network:
    """Transfers and collectives over one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._topology = Topology.of(cluster)
        self._backend: Backend = cluster.backend
        self._tables = cluster.collectives
        self._ways: dict[tuple[str, tuple[str, ...], str], _Way] = {}
        self._held = 0
        self._curves: dict[tuple[int, int, float], Curve] = {}
        self._sum_slowdown = {device.name: device.sum_slowdown for device in cluster.devices}
        self._launch_s = {device.name: device.launch_overhead_us * 1e-6 for device in cluster.devices}

    @property
    def names(self) -> tuple[str, ...]:
        """What each resource is, for reports: ``old: nic 0 out``, ``rack-1: uplink up``, ``a100-3: nvlink-3 in``."""
        return self._topology.names

    @property
    def capacities(self) -> Sequence[float]:
        """Bytes per second of each resource."""
        return self._topology.capacities

    @property
    def topology(self) -> Topology:
        """What transfers can queue for, and the ways between devices."""
        return self._topology

    def numbers(self, names: Iterable[str]) -> list[int]:
        """The numbers of devices in the topology's tables."""
        ports = self._topology.ports
        return [ports[name].number for name in names]

    def point_to_point(self, source: str, target: str, size_bytes: float) -> Transfer:
        """A message from one device to another: a + n b.

        Raises:
            InputError: a device that the cluster does not have.
        """
        return self.collective("point_to_point", (source, target), size_bytes)

    def collective(
        self,
        kind: CollectiveKind,
        devices: Sequence[str],
        size_bytes: float,
        *,
        algorithm: Algorithm | Literal["auto"] = "auto",
    ) -> Transfer:
        """A collective; it begins when the last of its devices is ready.

        Args:
            kind: what is done.
            devices: names; the first is the root of a broadcast and the source of a point-to-point message.
            size_bytes: the whole buffer on each rank (of a gather or scatter: the gathered one).
            algorithm: ``auto``: as measured, or the fastest that the backend picks from; else this one, by formula.

        Raises:
            InputError: a device that the cluster does not have, or an algorithm that this collective does not have.
        """
        key = (kind, tuple(devices), algorithm)
        way = self._ways.get(key)
        if way is None:
            way = self._remember(key, self._way(kind, key[1], algorithm))
        return way.transfer(size_bytes)

    def measured(self, kind: CollectiveKind, devices: Sequence[str]) -> CollectiveTable | None:
        """The table that was measured over these devices and the fewest others, if there is one."""
        wanted = set(devices)
        holding = [table for table in self._tables if table.kind == kind and wanted <= set(table.devices)]
        return min(holding, key=lambda table: len(table.devices), default=None)

    def _remember(self, key: tuple[str, tuple[str, ...], str], way: _Way) -> _Way:
        self._held += len(key[1]) + sum(len(each.uses) for each in way.shapes)
        if self._held > MOST_USES:
            self._ways.clear()
            self._held = 0
        self._ways[key] = way
        return way

    def _way(self, kind: CollectiveKind, devices: tuple[str, ...], algorithm: Algorithm | Literal["auto"]) -> _Way:
        ports = self._ports(devices)
        if len(ports) < 2:
            return _Way()
        shapes = shapes_of(self._topology, kind, ports, self._backend, algorithm)
        # A message's sender and receiver only copy; in a collective each does a part of the sums.
        slowdown = 1.0 if kind == "point_to_point" else max(self._sum_slowdown[name] for name in devices)
        return _Way(shapes, self._measured(kind, devices, ports, shapes) if algorithm == "auto" else None, slowdown)

    def _ports(self, devices: Sequence[str]) -> list[Port]:
        known = self._topology.ports
        for name in devices:
            if name not in known:
                raise InputError("devices", f"{name!r} is not in the cluster", "use the names of its nodes' devices")
        return [known[name] for name in dict.fromkeys(devices)]

    def _measured(
        self, kind: CollectiveKind, devices: Sequence[str], ports: Sequence[Port], shapes: Sequence[Shape]
    ) -> Own | Like | None:
        table = self.measured(kind, devices)
        if table is not None:
            return Own(table, len(ports))
        machines = {port.machine for port in ports}
        # Inside a machine and between machines are two worlds: neither's tables say anything of the other.
        tables: dict[int, tuple[float, int]] = {}
        for number, table in enumerate(self._tables):
            if table.ranks is None or (table.kind, table.backend) != (kind, self._backend):
                continue
            if (table.nodes > 1) == (len(machines) > 1):
                far = abs(math.log(table.nodes / len(machines)))
                tables[table.ranks] = min(tables.get(table.ranks, (far, number)), (far, number))
        if not tables:
            return None
        slowest = min(machines, key=self._speed if len(machines) > 1 else self._inner_speed)
        launch_s = max(self._launch_s[name] for name in devices)
        curves = [self._curve(tables[ranks][1], slowest, launch_s) for ranks in sorted(tables)]
        return Like(tuple(curves), math.log(len(ports)), _line(shapes, launch_s))

    def _speed(self, machine: int) -> tuple[float, float]:
        network = self._topology.machines[machine].network
        assert network is not None, "a cluster of several nodes has a network"
        return min(network.bandwidth, network.reverse_bandwidth), -network.latency_s

    def _inner_speed(self, machine: int) -> tuple[float, float]:
        link = self._topology.machines[machine].link
        return min(link.bandwidth, link.reverse_bandwidth), -link.latency_s

    def _curve(self, number: int, machine: int, launch_s: float) -> Curve:
        """A table against the formula for as many machines like this one as it was measured on."""
        key = (number, machine, launch_s)
        if key not in self._curves:
            table = self._tables[number]
            assert table.ranks is not None, "a table of like ranks"
            topology, ports = like(self._topology.machines[machine], table.ranks, table.nodes)
            shapes = shapes_of(topology, table.kind, ports, self._backend)
            self._curves[key] = Curve.of(table, _line(shapes, launch_s))
        return self._curves[key]


def _line(shapes: Sequence[Shape], launch_s: float) -> Straight:
    """What tables are set against: the formula's ends, and the launch of the kernel that a collective is."""
    latency, per_byte = ends(shapes)
    return Straight(max(latency + launch_s, 1e-9), per_byte)
