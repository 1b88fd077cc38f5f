"""Surroundings: what tells devices of equal times apart, their other figures, machines, links and measured tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from ..sim.device import Cluster, CollectiveTable, Link

T = TypeVar("T", bound=Hashable)
Key = tuple[object, ...]
NOTHING = -1
"""The number of what is not there, or counts for nothing."""


def surroundings(cluster: Cluster, ranks: Mapping[str, int]) -> dict[str, Key]:
    """Per device, a sort key that says where it is: equal keys mean places that are images of each other.

    Args:
        cluster: nodes, links, switches and measured collectives.
        ranks: per device, a number by its own figures; equal figures, equal numbers. Devices without one count for
            nothing.
    """
    ways = {switch.name: (link_key(switch.uplink), switch.parent) for switch in cluster.switches}
    facts = _facts(cluster)
    found: dict[str, Key] = {}
    for node in cluster.nodes:
        inside = tuple(sorted(ranks[device.name] for device in node.devices if device.name in ranks))
        path: list[Key] = []
        switch = node.switch
        while switch is not None:
            figures, switch = ways[switch]
            path.append(figures)
        speed = (node.loader_samples_per_s is not None, node.loader_samples_per_s or 0.0)
        here = (*link_key(node.link), link_key(node.network), node.nics, tuple(path), speed, inside)
        for device in node.devices:
            if device.name in ranks:
                found[device.name] = (facts[cluster.kinds[device.name]], here)
    if cluster.switches or cluster.collectives or any(node.nics > 1 for node in cluster.nodes):
        return _refined(cluster, numbered({name: (ranks[name], *found[name]) for name in found}))
    return found


def link_key(link: Link | None) -> Key:
    """What distinguishes a link: those with more bandwidth first."""
    if link is None:
        return ()
    return (-link.bandwidth, -link.reverse_bandwidth, link.latency_s, link.shared)


def numbered(keys: Mapping[T, Key]) -> dict[T, int]:
    """Whole numbers in the order of the keys, equal ones for equal keys."""
    places = {key: place for place, key in enumerate(sorted(set(keys.values())))}
    return {each: places[key] for each, key in keys.items()}


def _facts(cluster: Cluster) -> dict[int, str]:
    """Per kind of device all that is known of it; a view of it shows times and sizes, and no price."""
    kinds, by_name = cluster.kinds, cluster.by_name
    examples = {kind: name for name, kind in kinds.items()}
    if len(examples) == 1:
        return dict.fromkeys(examples, "")
    return {kind: by_name[name].model_dump_json(exclude={"name"}) for kind, name in examples.items()}


def _refined(cluster: Cluster, numbers: Mapping[str, int]) -> dict[str, Key]:
    """Numbers of devices, told apart by who is beside them until nothing more is.

    Beside a device are those on its adapter, in its machine, below its switch and the switches above, and in the tables
    that it is in: the refinement of colours (Weisfeiler and Leman 1968).
    """
    tables = numbered({place: _measured(table) for place, table in enumerate(cluster.collectives)})
    switches = numbered({switch.name: link_key(switch.uplink) for switch in cluster.switches})
    before, now = 0, len({*numbers.values()}) + len({*switches.values()})
    while now > before:
        adapters, measured = _adapters(cluster, numbers), _companies(cluster, tables, numbers)
        machines = _machines(cluster, switches, adapters)
        keys = {name: (numbers[name], adapters[name], measured.get(name, ())) for name in numbers}
        numbers = numbered({name: (*key, machines[cluster.node_of[name]]) for name, key in keys.items()})
        switches = _switches(cluster, switches, machines)
        before, now = now, len({*numbers.values()}) + len({*switches.values()})
    return {name: (number,) for name, number in numbers.items()}


def _adapters(cluster: Cluster, numbers: Mapping[str, int]) -> dict[str, Key]:
    """Per device, the numbers of those on its adapter: devices are dealt to the adapters in order."""
    found: dict[str, Key] = {}
    for node in cluster.nodes:
        groups: dict[int, list[str]] = {}
        for place, device in enumerate(node.devices):
            if device.name in numbers:
                groups.setdefault(place * node.nics // len(node.devices), []).append(device.name)
        for names in groups.values():
            found.update(dict.fromkeys(names, tuple(sorted(numbers[name] for name in names))))
    return found


def _machines(cluster: Cluster, switches: Mapping[str, int], adapters: Mapping[str, Key]) -> dict[int, int]:
    """Per machine, a number by its switch and what is on its adapters."""
    inside = [
        sorted(adapters[device.name] for device in node.devices if device.name in adapters) for node in cluster.nodes
    ]
    above = [NOTHING if node.switch is None else switches[node.switch] for node in cluster.nodes]
    return numbered({place: (above[place], tuple(held)) for place, held in enumerate(inside)})


def _switches(cluster: Cluster, switches: Mapping[str, int], machines: Mapping[int, int]) -> dict[str, int]:
    """Per switch, a number by the one that it had, what is below it, and the switch above."""
    below: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in switches}
    for place, node in enumerate(cluster.nodes):
        if node.switch is not None:
            below[node.switch][0].append(machines[place])
    for switch in cluster.switches:
        if switch.parent is not None:
            below[switch.parent][1].append(switches[switch.name])
    above = {each.name: NOTHING if each.parent is None else switches[each.parent] for each in cluster.switches}
    return numbered(
        {name: (switches[name], *(tuple(sorted(each)) for each in below[name]), above[name]) for name in switches}
    )


def _measured(table: CollectiveTable) -> Key:
    """What a table says, but for whom."""
    return table.kind, table.backend, tuple((point.bytes, point.seconds) for point in table.points)


def _companies(cluster: Cluster, tables: Mapping[int, int], numbers: Mapping[str, int]) -> dict[str, Key]:
    """Per device, the tables that it is in, each with the numbers of all that are."""
    found: dict[str, list[tuple[int, Key]]] = {}
    for place, table in enumerate(cluster.collectives):
        company = tuple(sorted(numbers.get(name, NOTHING) for name in table.devices))
        for name in table.devices:
            found.setdefault(name, []).append((tables[place], company))
    return {name: tuple(sorted(each)) for name, each in found.items()}
