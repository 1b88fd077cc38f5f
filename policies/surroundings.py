"""Surroundings: what tells devices of equal times apart, their other figures, machines, links and measured tables."""

from __future__ import annotations

from collections.abc import Mapping

from ..sim.device import Cluster, Link

Key = tuple[object, ...]


def surroundings(cluster: Cluster, ranks: Mapping[str, int]) -> dict[str, Key]:
    """Per device, a sort key that says where it is: equal keys mean places that are images of each other.

    Args:
        cluster: nodes, links, switches and measured collectives.
        ranks: per device, a number by its own figures; equal figures, equal numbers. Devices without one count for
            nothing.
    """
    ways = {switch.name: (_figures(switch.uplink), switch.parent) for switch in cluster.switches}
    tables, facts = _tables(cluster, ranks), _facts(cluster)
    found: dict[str, Key] = {}
    for node in cluster.nodes:
        inside = tuple(sorted(ranks[device.name] for device in node.devices if device.name in ranks))
        path: list[Key] = []
        switch = node.switch
        while switch is not None:
            figures, switch = ways[switch]
            path.append(figures)
        speed = (node.loader_samples_per_s is not None, node.loader_samples_per_s or 0.0)
        here = (*_figures(node.link), _figures(node.network), node.nics, tuple(path), speed, inside)
        for device in node.devices:
            found[device.name] = (facts[cluster.kinds[device.name]], here, tables.get(device.name, ()))
    return found


def _facts(cluster: Cluster) -> dict[int, str]:
    """Per kind of device all that is known of it; a view of it shows times and sizes, and no price."""
    kinds, by_name = cluster.kinds, cluster.by_name
    examples = {kind: name for name, kind in kinds.items()}
    if len(examples) == 1:
        return dict.fromkeys(examples, "")
    return {kind: by_name[name].model_dump_json(exclude={"name"}) for kind, name in examples.items()}


def _tables(cluster: Cluster, ranks: Mapping[str, int]) -> dict[str, Key]:
    """Per device, what was measured over it and others: the kind, who took part, and the times."""
    found: dict[str, list[Key]] = {}
    for table in cluster.collectives:
        others = tuple(sorted(ranks.get(name, -1) for name in table.devices))
        key = (table.kind, others, tuple((point.bytes, point.seconds) for point in table.points))
        for name in table.devices:
            found.setdefault(name, []).append(key)
    return {name: tuple(sorted(keys)) for name, keys in found.items()}


def _figures(link: Link | None) -> Key:
    """What distinguishes a link: those with more bandwidth first."""
    if link is None:
        return ()
    return (-link.bandwidth, -link.reverse_bandwidth, link.latency_s, link.shared)
