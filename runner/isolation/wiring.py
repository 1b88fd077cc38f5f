"""Wires between lanes: which made host each lane is on, and the commands that shape the links between them.

Within a namespace of its own, every made host is a bridge; a lane hangs on its host's bridge by a pair of virtual
Ethernet ends, and the hosts hang on one more bridge, the core. A rate is held by a token bucket at both ends of a wire
(``tc tbf``), a latency by ``tc netem`` where the kernel has that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...sim.device import Wire
from ..devices import NamedLane

SUBNET = "10.203"
"""Addresses are of this half of a private network; nobody outside of the namespaces sees them."""
LEAST_BURST_BYTES = 32_768
BURST_S = 1e-3
"""A bucket holds what passes in so many seconds: at 1 Gbit/s, less than 128 kB holds a wire below its rate."""
QUEUE_MS = 100
"""What waits for longer is dropped, and TCP slows down."""
LANE_END = "wire"
"""The lane's own end of its wire."""

Layout = dict[str, Any]
"""What :mod:`steelyard.runner.isolation.holder` builds: ``core`` commands, and per lane its ``commands``; JSON."""


def is_wired(lanes: Sequence[NamedLane]) -> bool:
    """Whether any of the lanes is on a made host."""
    return any(lane.wire.host for lane in lanes)


def layout(lanes: Sequence[NamedLane]) -> Layout:
    """The commands that build the network of some lanes; ``PID`` in them stands for the lane's holder."""
    hosts = list(dict.fromkeys(lane.wire.host for lane in lanes))
    uplink = {lane.wire.host: lane.wire for lane in lanes}
    core = [["ip", "link", "set", "lo", "up"], *_bridge("core")]
    for number, host in enumerate(hosts):
        core += _bridge(f"host{number}")
        core += _pair(f"up{number}", f"down{number}")
        for end, bridge in ((f"up{number}", f"host{number}"), (f"down{number}", "core")):
            core += _attach(end, bridge)
            core += shape(end, uplink[host].uplink_mbit_per_s, uplink[host].uplink_latency_us)
    return {"core": core, "lanes": [_lane(rank, lane.wire, hosts) for rank, lane in enumerate(lanes)]}


def shape(end: str, rate_mbit_per_s: float, latency_us: float) -> list[list[str]]:
    """Commands that hold what leaves by one end of a wire to a rate and delay it; 0: not at all.

    The latency is that of one direction, and each wire has two ends: half of it is each end's.
    """
    commands = []
    place = "root"
    if latency_us:
        delay = f"{latency_us:.0f}us"
        commands.append(["tc", "qdisc", "add", "dev", end, "root", "handle", "1:", "netem", "delay", delay])
        place = "parent 1:"
    if rate_mbit_per_s:
        burst = max(LEAST_BURST_BYTES, round(rate_mbit_per_s * 1e6 / 8 * BURST_S * 1.05))
        bucket = ["rate", f"{round(rate_mbit_per_s * 1e3)}kbit", "burst", f"{burst}b", "latency", f"{QUEUE_MS}ms"]
        commands.append(["tc", "qdisc", "add", "dev", end, *place.split(), "tbf", *bucket])
    return commands


def _lane(rank: int, wire: Wire, hosts: Sequence[str]) -> dict[str, Any]:
    """One lane: its outer end on its host's bridge, its inner end in its own namespace."""
    outer, inner = f"lane{rank}", f"inner{rank}"
    shaped = (wire.link_mbit_per_s, wire.link_latency_us)
    outside = [
        *_pair(outer, inner),
        ["ip", "link", "set", inner, "netns", "PID"],
        *_attach(outer, f"host{hosts.index(wire.host)}"),
        *shape(outer, *shaped),
    ]
    inside = [
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "set", inner, "name", LANE_END],
        ["ip", "address", "add", f"{SUBNET}.0.{rank + 1}/16", "dev", LANE_END],
        ["ip", "link", "set", LANE_END, "up"],
        *shape(LANE_END, *shaped),
    ]
    return {"outside": outside, "inside": inside}


def _bridge(name: str) -> list[list[str]]:
    return [["ip", "link", "add", name, "type", "bridge"], ["ip", "link", "set", name, "up"]]


def _pair(one: str, other: str) -> list[list[str]]:
    return [["ip", "link", "add", one, "type", "veth", "peer", "name", other]]


def _attach(end: str, bridge: str) -> list[list[str]]:
    return [["ip", "link", "set", end, "master", bridge], ["ip", "link", "set", end, "up"]]
