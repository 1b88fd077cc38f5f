"""A room for each lane of a launch: its groups, its namespace, and the words that start a worker in there."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...results.errors import InputError
from ...sim.device import GIB
from ..devices import NamedLane
from ..symptoms import MemoryGroup
from .capabilities import Host, this_host
from .groups import Controller, Group, make_group, sweep
from .holder import NetworkError, held
from .owner import Owner
from .warden import warden
from .wiring import LANE_END, is_wired, layout


@dataclass(frozen=True)
class Room:
    """Where one lane's worker runs; an empty one is the host as it is."""

    lane: NamedLane
    groups: Sequence[Group] = ()
    network: int = 0
    """Number of a process in the lane's namespace; 0: the host's own network."""
    interface: str = ""
    """Interface for collectives; empty: loopback."""
    paced: bool = False
    """Whether the worker is to be slowed under way."""

    @property
    def prefix(self) -> list[str]:
        """Words before the worker's command."""
        if not self.groups and not self.network:
            return []
        room = {"procs": [str(group.procs) for group in self.groups], "network": self.network}
        return [sys.executable, "-m", "steelyard.runner.isolation.enter", json.dumps(room)]

    @property
    def document(self) -> dict[str, Any]:
        """What the worker must know: the file that tells how long its quota has throttled it, over how many cores.

        Of a worker that is to be slowed, also whose quota to lower for that, and from what.
        """
        group = self._limiting("cpu")
        found = {"cpu_stat": str(group.path / "cpu.stat") if group else "", "cores": self.lane.core_count}
        if group is None or not self.paced:
            return found
        share = {"quota_cores": self.lane.quota_cores, "period_us": self.lane.cpu_period_us}
        return {**found, "pace": {"version": group.place.version, "limited": self.lane.cpu_share < 1, **share}}

    @property
    def memory(self) -> MemoryGroup | None:
        """The group that limits the lane's memory; None: the lane has no limit of its own."""
        group = self._limiting("memory")
        return MemoryGroup(group.kills_file, group.oom_kills()) if group else None

    @property
    def quota(self) -> Path | None:
        """The folder of the group that limits the lane's processor time; None: it has none of its own."""
        group = self._limiting("cpu")
        return group.path if group else None

    def _limiting(self, controller: Controller) -> Group | None:
        return next((group for group in self.groups if group.place.controller == controller), None)


@contextmanager
def rooms(
    lanes: Sequence[NamedLane], host: Host | None = None, *, interface: str = "", paced: Collection[str] = ()
) -> Iterator[list[Room]]:
    """A room for each lane, for as long as the context lasts; nothing is left of them, whatever happens.

    Lanes that ask for nothing cost nothing, and those on other machines have their room there. What an earlier driver
    left when it was killed is removed first. Lanes that are on no wire use ``interface`` for collectives. Those
    that are ``paced`` get a group for their processor time where this host has any, so that they can be slowed by it.

    Raises:
        InputError: a lane asks for what this host cannot give.
    """
    if not any(asks(lane) or lane.name in paced for lane in lanes):
        yield [Room(lane, interface=interface) for lane in lanes]
        return
    host = host or this_host()
    refuse_unavailable(lanes, host)
    with ExitStack() as stack:
        sweep(host.places)
        groups = [_groups(lane, index, host, stack, lane.name in paced) for index, lane in enumerate(lanes)]
        stack.enter_context(warden([group for own in groups for group in own]))
        pids = [0] * len(lanes)
        if is_wired(lanes):
            assert host.network is not None, "refused above"
            try:
                pids = stack.enter_context(held(layout(lanes), host.network))
            except NetworkError as error:
                raise InputError("cluster.hosts", f"the network cannot be built: {error}", "change them") from error
        interface = LANE_END if is_wired(lanes) else interface
        yield [
            Room(lane, own, pid, interface, lane.name in paced)
            for lane, own, pid in zip(lanes, groups, pids, strict=True)
        ]


def asks(lane: NamedLane) -> bool:
    """Whether a lane needs anything beyond affinity and instruction sets."""
    return not lane.machine and bool(lane.cpu_share < 1 or lane.memory_limit_gib or lane.wire.host)


def refuse_unavailable(lanes: Sequence[NamedLane], host: Host, where: str = "cluster.lanes") -> None:
    """Say which lane asks for what this host does not have, and why it has not.

    Raises:
        InputError: one does.
    """
    for index, lane in enumerate(lanes):
        for key, wanted, name in _wants(lane) if not lane.machine else ():
            found = host.capability(name)
            if wanted and not found.available:
                path = f"{where}.{index}.{key}"
                raise InputError(path, f"this host has no {found.title}: {found.reason}", f"leave {key} out")


def _wants(lane: NamedLane) -> Iterator[tuple[str, bool, str]]:
    """Keys of a lane, whether it uses them, and the capability that they need."""
    wire = lane.wire
    yield "cpus", bool(lane.cpus), "affinity"
    yield "cpu_share", lane.cpu_share < 1, "cpu_quota"
    yield "memory_limit_gib", lane.memory_limit_gib > 0, "memory_limit"
    yield "wire.host", bool(wire.host), "namespaces"
    yield "wire.link_mbit_per_s", wire.link_mbit_per_s > 0, "link_rate"
    yield "wire.uplink_mbit_per_s", wire.uplink_mbit_per_s > 0, "link_rate"
    yield "wire.link_latency_us", wire.link_latency_us > 0, "link_latency"
    yield "wire.uplink_latency_us", wire.uplink_latency_us > 0, "link_latency"


def _groups(lane: NamedLane, index: int, host: Host, stack: ExitStack, paced: bool) -> list[Group]:
    """The groups of one lane, which the stack removes."""
    if lane.machine or not (asks(lane) or paced):
        return []
    name = Owner.here().name()
    found = []
    for place in host.places:
        values: dict[str, str] = {}
        if place.controller == "cpu" and lane.cpu_share < 1:
            values = place.quota(lane.quota_cores, lane.cpu_period_us)
        elif place.controller == "cpu" and paced:
            values = place.no_quota()
        elif place.controller == "memory" and lane.memory_limit_gib:
            values = place.limit(round(lane.memory_limit_gib * GIB))
        if not values:
            continue
        try:
            found.append(make_group(place, name, values))
        except OSError as error:
            problem = f"the kernel refuses {values}: {error.strerror}"
            raise InputError(f"cluster.lanes.{index}", problem, "change its quota or limit") from error
        stack.callback(found[-1].remove)
    return found
