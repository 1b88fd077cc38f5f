"""Machines as the simulator sees them: the made hosts of lanes, and the links between and within them."""

from __future__ import annotations

from collections.abc import Sequence

from ...sim.device import Device, Link, Node
from ..devices import NamedLane

LOOPBACK = Link(
    name="loopback", latency_us=50, bandwidth_gb_per_s=1, source={"all": "unused: collectives are measured"}
)
SHAPED = {"all": "as set by tc; the token bucket counts Ethernet's headers too"}
PAYLOAD = 0.957
"""Share of a shaped rate that reaches TCP's user: 1448 of 1514 bytes in a frame (95.7 of 100 Mbit/s measured)."""
UNHELD = LOOPBACK.bandwidth_gb_per_s * 8e3
"""Mbit/s of a wire that is not held back: that of loopback, which it is as fast as."""


def machines(lanes: Sequence[NamedLane], devices: Sequence[Device]) -> tuple[list[Node], Link | None]:
    """One machine, or one for each made host with its own way to the others; and the network between them."""
    several = len({lane.machine for lane in lanes}) > 1
    places = [lane.wire.host or (f"machine{lane.machine}" if several else "") for lane in lanes]
    hosts = list(dict.fromkeys(places))
    if hosts == [""]:
        return [Node(name="host", devices=list(devices), link=LOOPBACK)], None
    nodes = []
    for host in hosts:
        own = [number for number, place in enumerate(places) if place == host]
        wire = lanes[own[0]].wire
        link = shaped_link(f"{host}-link", wire.link_mbit_per_s, wire.link_latency_us)
        uplink = shaped_link(f"{host}-uplink", wire.uplink_mbit_per_s, wire.uplink_latency_us)
        nodes.append(Node(name=host, devices=[devices[number] for number in own], link=link, network=uplink))
    return nodes, shaped_link("core", 0.0, 0.0)


def shaped_link(name: str, rate_mbit_per_s: float, latency_us: float) -> Link:
    """A wire as a link: what ``tc`` holds it to, and loopback's latency beside its own."""
    return Link(
        name=name,
        latency_us=LOOPBACK.latency_us + latency_us,
        bandwidth_gb_per_s=(rate_mbit_per_s or UNHELD) / 8e3,
        efficiency=PAYLOAD if rate_mbit_per_s else 1.0,
        source=SHAPED if rate_mbit_per_s else LOOPBACK.source,
    )
