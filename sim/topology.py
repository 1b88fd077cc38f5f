"""Topology: what a transfer can queue for (device ports, adapters, uplinks), and the way between two devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .device import Cluster, Link, Node, Switch

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Machine:
    """A node as the network sees it."""

    name: str
    devices: tuple[str, ...]
    link: Link
    network: Link | None
    """What its adapters are; None: it is alone."""
    nics: int
    switch: str | None
    on_medium: bool
    """Whether its network is the cluster's and shared: one medium for all such machines."""

    @classmethod
    def of(cls, node: Node, network: Link | None) -> Machine:
        """The machine of a node in a cluster with this network."""
        own = node.network or network
        names = tuple(device.name for device in node.devices)
        medium = node.network is None and network is not None and network.shared
        return cls(node.name, names, node.link, own, node.nics, node.switch, medium)


class Port(NamedTuple):
    """Where a device meets the network: numbers of resources."""

    machine: int
    place: int
    """Number of the device within the machine."""
    send: int
    """Its own way out, within the machine."""
    receive: int
    nic: int
    """Number of its adapter within the machine."""
    nic_send: int
    """The adapter's way out; -1 for a machine that is alone."""
    nic_receive: int
    number: int
    """Of the device, machine by machine."""


class Topology:
    """The resources of a cluster, numbered, and routes over them.

    A transfer within a machine crosses the sender's way out and the receiver's way in, or the machine's one bus. A
    transfer between machines crosses adapters and the uplinks below the lowest switch that both sides share (the
    network's core carries everything), and **not** the links inside the machines: adapters reach the devices' memory
    beside them. It pays half of each adapter's latency, and the latency of every uplink.
    """

    def __init__(self, machines: Sequence[Machine], switches: Sequence[Switch] = ()) -> None:
        self.machines = machines
        self._capacities: list[float] = []
        self._labels: list[tuple[str, str, str]] = []
        self._medium: int | None = None
        self._last: tuple[Link | None, tuple[float, float]] = (None, (0.0, 0.0))
        self.uplinks = {
            switch.name: self._both_ways(switch.name, "uplink", (" up", " down"), switch.uplink) for switch in switches
        }
        self._latencies = {switch.name: switch.uplink.latency_s for switch in switches}
        parents = {switch.name: switch.parent for switch in switches}
        self.ways = [_way_up(machine.switch, parents) for machine in machines]
        """Per machine the switches above it, the nearest first."""
        self.ports: dict[str, Port] = {}
        for number, machine in enumerate(machines):
            self._plug_in(number, machine)

    @classmethod
    def of(cls, cluster: Cluster) -> Topology:
        """The topology of a cluster."""
        return cls([Machine.of(node, cluster.network) for node in cluster.nodes], cluster.switches)

    @property
    def capacities(self) -> Sequence[float]:
        """Bytes per second of each resource."""
        return self._capacities

    @cached_property
    def below(self) -> dict[str, tuple[int, ...]]:
        """Per switch, the machines below it."""
        found: dict[str, list[int]] = {}
        for number, way in enumerate(self.ways):
            for name in way:
                found.setdefault(name, []).append(number)
        return {name: tuple(machines) for name, machines in found.items()}

    @cached_property
    def table(self) -> Ints:
        """Per device, by its number: machine, send, receive, nic_send, nic_receive, nic."""
        rows = [
            (port.machine, port.send, port.receive, port.nic_send, port.nic_receive, port.nic)
            for port in self.ports.values()
        ]
        return np.array(rows)

    @cached_property
    def switches(self) -> Ints:
        """Per machine the numbers of the switches above it, the nearest first; -1 where there are no more."""
        numbers = {name: number for number, name in enumerate(self.uplinks)}
        levels = max(map(len, self.ways))
        return np.array(
            [[numbers[name] for name in way] + [-1] * (levels - len(way)) for way in self.ways], dtype=np.int64
        )

    @cached_property
    def links(self) -> Ints:
        """Per device, by its number, the resources that its messages may cross; -1 where there is none."""
        uplinks = np.array([*self.uplinks.values(), (-1, -1)])[self.switches[self.table[:, 0]]]
        return np.concatenate([self.table[:, 1:5], uplinks.reshape(len(self.table), -1)], axis=1)

    @cached_property
    def latencies(self) -> tuple[list[float], list[float]]:
        """Seconds of latency of each machine's inner link, and of its network's."""
        inner = [machine.link.latency_s for machine in self.machines]
        return inner, [0.0 if machine.network is None else machine.network.latency_s for machine in self.machines]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each resource is, for reports: ``old: nic 0 out``, ``rack-1: uplink up``, ``a100-3: nvlink-3 in``."""
        return tuple(f"{owner}: {what}{way}" for owner, what, way in self._labels)

    def route(self, source: Port, target: Port) -> tuple[float, tuple[int, ...]]:
        """Seconds of latency and the resources on the way from one device to another, each of them once."""
        if source.machine == target.machine:
            latency = self.machines[source.machine].link.latency_s
            ends = (source.send, target.receive)
            return latency, ends if ends[0] != ends[1] else ends[:1]
        here, there = self.machines[source.machine].network, self.machines[target.machine].network
        assert here is not None, "a cluster of several nodes has a network"
        assert there is not None, "a cluster of several nodes has a network"
        latency = (here.latency_s + there.latency_s) / 2
        up, down = self.ways[source.machine], self.ways[target.machine]
        if up == down:
            ends = (source.nic_send, target.nic_receive)
            return latency, ends if ends[0] != ends[1] else ends[:1]
        shared = set(up) & set(down)
        climbed = [name for name in up if name not in shared]
        descended = [name for name in reversed(down) if name not in shared]
        latency += sum(self._latencies[name] for name in (*climbed, *descended))
        crossed = [source.nic_send, *(self.uplinks[name][0] for name in climbed)]
        crossed += [*(self.uplinks[name][1] for name in descended), target.nic_receive]
        return latency, tuple(dict.fromkeys(crossed))

    def by_machine(self, ports: Sequence[Port]) -> list[list[Port]]:
        """Ports grouped by machine; machines of one switch stand together, so that a ring leaves it once."""
        groups: dict[int, list[Port]] = {}
        for port in ports:
            groups.setdefault(port.machine, []).append(port)
        for group in groups.values():
            if len(group) > 1:
                group.sort(key=lambda port: port.place)
        if not self.uplinks:
            return [groups[number] for number in sorted(groups)]
        return [groups[number] for number in sorted(groups, key=lambda number: (self.ways[number][::-1], number))]

    def _plug_in(self, number: int, machine: Machine) -> None:
        count, link = len(machine.devices), machine.link
        bus = self._add(machine.name, link.name, link.bandwidth) if link.shared else None
        nics = {index * machine.nics // count: (-1, -1) for index in range(count)}
        if machine.network is not None and len(self.machines) > 1:
            nics = dict(zip(nics, self._adapters(machine, machine.network, list(nics)), strict=True))
        for index, name in enumerate(machine.devices):
            nic = index * machine.nics // count
            own = (bus, bus) if bus is not None else self._both_ways(name, link.name, (" out", " in"), link)
            self.ports[name] = Port(number, index, own[0], own[1], nic, *nics[nic], len(self.ports))

    def _adapters(self, machine: Machine, network: Link, numbers: Sequence[int]) -> list[tuple[int, int]]:
        if machine.on_medium:
            if self._medium is None:
                self._medium = self._add("network", network.name, network.bandwidth)
            return [(self._medium, self._medium)] * len(numbers)
        return [self._both_ways(machine.name, f"nic {nic}", (" out", " in"), network) for nic in numbers]

    def _both_ways(self, owner: str, what: str, ways: tuple[str, str], link: Link) -> tuple[int, int]:
        """Two resources, or one where the link is shared by both directions."""
        if link.shared:
            only = self._add(owner, what, link.bandwidth)
            return only, only
        first = len(self._capacities)
        self._labels += ((owner, what, ways[0]), (owner, what, ways[1]))
        self._capacities += self._speeds(link)
        return first, first + 1

    def _speeds(self, link: Link) -> tuple[float, float]:
        """Both directions of a link; machines mostly share a few link objects."""
        if link is not self._last[0]:
            self._last = link, (link.bandwidth, link.reverse_bandwidth)
        return self._last[1]

    def _add(self, owner: str, what: str, capacity: float) -> int:
        self._labels.append((owner, what, ""))
        self._capacities.append(capacity)
        return len(self._capacities) - 1


def like(machine: Machine, ranks: int, nodes: int) -> tuple[Topology, list[Port]]:
    """A topology of ``nodes`` machines like this one on one switch, and ports for ``ranks`` on it, equally dealt."""
    dealt = [(ranks + nodes - 1 - number) // nodes for number in range(nodes)]
    machines = []
    for number, count in enumerate(dealt):
        devices = tuple(f"{number}-{place}" for place in range(max(count, len(machine.devices))))
        machines.append(replace(machine, name=str(number), devices=devices, switch=None))
    topology = Topology(machines)
    return topology, [
        topology.ports[name] for each, count in zip(machines, dealt, strict=True) for name in each.devices[:count]
    ]


def _way_up(switch: str | None, parents: dict[str, str | None]) -> tuple[str, ...]:
    way: list[str] = []
    while switch is not None:
        way.append(switch)
        switch = parents[switch]
    return tuple(way)
