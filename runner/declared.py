"""Lanes declared by hand, in a file or within a scenario: the hosts that they are on, the cores that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..results.errors import InputError
from ..sim.checking import validate
from ..sim.device import Wire
from ..sim.spec import inside, parse_file
from ..sim.workload import Name, NonNegative, Spec
from .devices import NamedLane, available_cpus, gpu_names, mark_shared, require_capabilities


class DeclaredLane(NamedLane):
    """A lane as people write it."""

    cores: list[Annotated[int, Field(ge=0, le=65_535)]] = Field(default_factory=list)
    """Which of the cores that this process may use, counted from 0: in place of ``cpus``, whose numbers differ from
    host to host."""


class MadeHost(Spec):
    """A host that is made of namespaces, for lanes that should not share one: its links are shaped."""

    name: Name
    lanes: Annotated[list[Name], Field(min_length=1, max_length=64)]
    link_mbit_per_s: NonNegative = 0.0
    """Each of its lanes' way to its switch; 0: not held back."""
    link_latency_us: NonNegative = 0.0
    uplink_mbit_per_s: NonNegative = 0.0
    """Its way to the other hosts."""
    uplink_latency_us: NonNegative = 0.0

    def wire(self) -> Wire:
        """How each of its lanes is joined to the others."""
        return Wire(host=self.name, **self.model_dump(exclude={"name", "lanes"}))


class LaneFile(Spec):
    """Lanes, and the hosts that they are on; without hosts all are on this one, over loopback."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    lanes: Annotated[list[DeclaredLane], Field(min_length=1, max_length=64)]
    hosts: Annotated[list[MadeHost], Field(max_length=64)] = Field(default_factory=list)


def read_lanes(file: Path) -> list[NamedLane]:
    """Lanes declared in a TOML file.

    Raises:
        InputError: as in :func:`lanes_from`.
    """
    return lanes_from(read_lane_file(file))


def read_lane_file(file: Path) -> LaneFile:
    """A lane file as it stands, which need not fit this host.

    Raises:
        InputError: bad file.
    """
    return validate(LaneFile, parse_file(file), str(file))


def declared(document: dict[str, Any], folder: Path | None) -> tuple[str, LaneFile] | None:
    """The lanes that a scenario declares, with a name for where: the file's, or "inline"; None for ``"auto"``.

    Raises:
        InputError: ``cluster.lanes`` is neither "auto" nor a lane file's name nor a list of lanes, or these are bad.
    """
    cluster = document.get("cluster")
    lanes = cluster.get("lanes", "auto") if isinstance(cluster, dict) else "auto"
    if lanes == "auto":
        return None
    if isinstance(lanes, str):
        file = inside(folder, lanes, "cluster.lanes")
        return file.stem, read_lane_file(file)
    if not isinstance(lanes, list) or not isinstance(cluster, dict):
        raise InputError("cluster.lanes", f"is {lanes!r}", 'use "auto", the name of a lane file, or [[cluster.lanes]]')
    inline = {"lanes": lanes, "hosts": cluster.get("hosts", [])}
    return "inline", validate(LaneFile, inline, "cluster.lanes", prefix="cluster.")


def lanes_from(found: LaneFile, where: str = "") -> list[NamedLane]:
    """The lanes as this host can have them: cores by their numbers here, wires of their hosts, who shares a core.

    Args:
        found: as declared.
        where: stands before the paths of errors (``cluster.``).

    Raises:
        InputError: two lanes of one name, a core or GPU that this host does not have, a lane on no host or on two, or
            something that this host cannot give, with the reason.
    """
    wires = _wires(found, where)
    lanes = []
    for index, lane in enumerate(found.lanes):
        path = f"{where}lanes.{index}"
        if sum(each.name == lane.name for each in found.lanes) > 1:
            raise InputError(f"{path}.name", f"{lane.name!r} is used twice", "give each lane its own name")
        values = {**lane.model_dump(exclude={"cores"}), "cpus": _cpus(lane, path)}
        values["wire"] = wires.get(lane.name, lane.wire).model_dump()
        lanes.append(NamedLane.model_validate(values))
        if not lane.machine and lane.torch_device.startswith("cuda") and _gpu_number(lane) >= len(gpu_names()):
            raise InputError(f"{path}.torch_device", f"no {lane.torch_device} here", "`steelyard devices` lists")
    require_capabilities(lanes, f"{where}lanes")
    return mark_shared(lanes)


def _cpus(lane: DeclaredLane, path: str) -> list[int]:
    """The numbers of a lane's cores on this host."""
    here = available_cpus()
    if lane.machine:
        return lane.cpus  # that machine says whether it has them
    if lane.cores and lane.cpus:
        raise InputError(f"{path}.cores", "stands beside cpus", "say which cores in one way")
    absent = [core for core in lane.cores if core >= len(here)]
    if absent:
        raise InputError(f"{path}.cores", f"there is no core {absent[0]}", f"this process may use {len(here)}")
    missing = sorted(set(lane.cpus) - set(here))
    if missing:
        raise InputError(f"{path}.cpus", f"core {missing[0]} is not available", f"cores: {here}")
    return [here[core] for core in lane.cores] or lane.cpus


def _wires(found: LaneFile, where: str) -> dict[str, Wire]:
    """Per lane the wire that its host gives it."""
    wires: dict[str, Wire] = {}
    known = {lane.name for lane in found.lanes}
    for index, host in enumerate(found.hosts):
        for number, name in enumerate(host.lanes):
            path = f"{where}hosts.{index}.lanes.{number}"
            if name not in known:
                raise InputError(path, f"there is no lane {name!r}", f"lanes: {', '.join(sorted(known))}")
            if name in wires:
                raise InputError(path, f"{name!r} is on two hosts", "name each lane once")
            wires[name] = host.wire()
    homeless = [lane.name for lane in found.lanes if lane.name not in wires]
    if wires and homeless:
        raise InputError(f"{where}hosts", f"lane {homeless[0]!r} is on none", "where there are hosts, each has one")
    return wires


def _gpu_number(lane: NamedLane) -> int:
    _, _, number = lane.torch_device.partition(":")
    return int(number or 0)
