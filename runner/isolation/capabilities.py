"""What this host can do for lanes: each thing tried once by doing it, and where it cannot be had, why not."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..devices import Offer, gpu_names
from .groups import CONTROLLERS, Place, find_place
from .holder import Mode, NetworkError, held
from .wiring import shape


@dataclass(frozen=True)
class Capability:
    """One thing that lanes may ask for."""

    name: str
    title: str
    available: bool
    reason: str
    """In a sentence: how it is had, or why it is not."""

    def row(self) -> dict[str, Any]:
        """The capability as one JSON row."""
        return {"name": self.name, "title": self.title, "available": self.available, "reason": self.reason}


@dataclass(frozen=True)
class Host:
    """The capabilities of a host, and how those that need it are had."""

    capabilities: Sequence[Capability]
    places: Sequence[Place]
    """Where control groups are made, one for each controller at most."""
    network: Mode | None
    """How namespaces are made; None: not at all."""

    def capability(self, name: str) -> Capability:
        """The capability of a name."""
        return next(each for each in self.capabilities if each.name == name)


@functools.cache
def this_host() -> Host:
    """Probe this host, once in a process: about a third of a second."""
    found = [affinity()]
    places = []
    for controller, name, title in zip(
        CONTROLLERS, ("cpu_quota", "memory_limit"), ("quota of processor time", "limit of memory"), strict=True
    ):
        place, reason = find_place(controller)
        found.append(Capability(name, title, place is not None, reason))
        places += [place] if place is not None else []
    network, reason = _network_mode()
    found.append(Capability("namespaces", "network namespaces", network is not None, reason))
    found.append(_shaping("link_rate", "links of a set bandwidth (tc tbf)", shape("probe", 100.0, 0.0), network))
    found.append(_shaping("link_latency", "links of a set latency (tc netem)", shape("probe", 0.0, 1000.0), network))
    return Host(tuple(found), tuple(places), network)


def capability_rows(offers: Sequence[Offer]) -> list[dict[str, Any]]:
    """All that lanes may ask for, as JSON rows, given what was measured of this host's candidates."""
    found = list(this_host().capabilities)
    found.insert(1, instruction_caps(offers))
    gpus = gpu_names()
    reason = ", ".join(gpus) or "no GPU, or a torch without CUDA"
    return [each.row() for each in [*found, Capability("cuda", "CUDA devices", bool(gpus), reason)]]


def instruction_caps(offers: Sequence[Offer]) -> Capability:
    """Whether holding a process to older vector instructions makes a different device here."""
    capped = [offer for offer in offers if offer.lane.cap != "full"]
    took = [f"{offer.lane.cap} ({offer.reason})" for offer in capped if offer.offered]
    refused = [offer.reason for offer in capped if not offer.offered]
    reason = "; ".join(took or refused) or "no lane was measured with one"
    return Capability("instruction_caps", "caps of vector instructions", bool(took), reason)


def affinity() -> Capability:
    """Whether a process can be pinned to cores."""
    has = hasattr(os, "sched_setaffinity")
    reason = "sched_setaffinity" if has else f"{platform.system()} does not pin processes"
    return Capability("affinity", "pinning to cores", has, reason)


def _network_mode() -> tuple[Mode | None, str]:
    if platform.system() != "Linux":
        return None, f"{platform.system()} has none"
    missing = next((name for name in ("ip", "tc") if shutil.which(name) is None), None)
    if missing is not None:
        return None, f"the command {missing} (iproute2) is not installed"
    reasons = []
    how: tuple[tuple[Mode, str], ...] = (("root", "made as root"), ("user", "made in a user namespace"))
    for mode, reason in how:
        problem = refusal(mode, PAIR)
        if not problem:
            return mode, reason
        reasons.append(problem)
    return None, reasons[-1]


PAIR = [
    ["ip", "link", "add", "bridge", "type", "bridge"],
    ["ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"],
    ["ip", "link", "set", "probe", "master", "bridge"],
    ["ip", "link", "set", "probe", "up"],
]
"""What every network of lanes has: a bridge, and a pair of virtual Ethernet ends of which one hangs on it."""


def _shaping(name: str, title: str, commands: Sequence[list[str]], network: Mode | None) -> Capability:
    if network is None:
        return Capability(name, title, False, "needs network namespaces")
    problem = refusal(network, [*PAIR, *commands])
    return Capability(
        name, title, not problem, f"the kernel refuses it: {problem}" if problem else "shaped at both ends of a wire"
    )


def refusal(mode: Mode, commands: Sequence[Sequence[str]]) -> str:
    """Why the host refuses commands in a namespace of their own; empty: it does not."""
    lane: dict[str, list[list[str]]] = {"outside": [], "inside": []}
    try:
        with held({"core": commands, "lanes": [lane]}, mode):
            return ""
    except NetworkError as error:
        return str(error)
