"""Neighbours: the devices machine by machine, and the machines switch by switch, in an order that figures decide."""

from __future__ import annotations

from collections.abc import Mapping

from ..sim.device import Cluster, Node
from ..sim.view import View
from .ranking import ranks
from .surroundings import Key, link_key, surroundings


def neighbours(view: View) -> list[list[str]]:
    """Names of the devices of each machine: who shares a switch, or a measured table, is next to each other.

    Names and the order of nodes and devices in the cluster decide only between what is alike: the fastest machines
    come first, then those with the better links.
    """
    rank_of = dict(zip((device.name for device in view.devices), ranks(view), strict=True))
    return arranged(view.cluster, rank_of, surroundings(view.cluster, rank_of))


def places(cluster: Cluster, rank_of: Mapping[str, int], around: Mapping[str, Key]) -> Mapping[str, int]:
    """Per device, a number by which those in like places are neighbours."""
    if not cluster.switches and not cluster.collectives:
        return cluster.node_of  # alike but for the machine: any order of the machines will do
    found = (name for machine in arranged(cluster, rank_of, around) for name in machine)
    return {name: place for place, name in enumerate(found)}


def arranged(cluster: Cluster, rank_of: Mapping[str, int], around: Mapping[str, Key]) -> list[list[str]]:
    """What :func:`neighbours` says, of the devices that have a rank.

    Args:
        cluster: machines, switches and measured tables.
        rank_of: per device, its place by its own figures.
        around: per device, what :func:`surroundings` says.
    """
    shared, node_of = _tables_of(cluster), cluster.node_of
    keys: dict[str, Key] = {name: (rank, around[name], shared.get(name, ())) for name, rank in rank_of.items()}
    machines: dict[int, list[str]] = {}
    for name in sorted(keys, key=keys.__getitem__):
        machines.setdefault(node_of[name], []).append(name)
    of_machine: dict[int, Key] = {
        number: ([rank_of[name] for name in names], _ways(cluster.nodes[number]), [keys[name][1:] for name in names])
        for number, names in machines.items()
    }
    return [machines[number] for number in _below(None, _children(cluster, of_machine), of_machine)]


def _ways(node: Node) -> Key:
    """What distinguishes the links of a machine: those with more bandwidth first."""
    return link_key(node.link), node.network is not None, link_key(node.network), node.nics


def _tables_of(cluster: Cluster) -> dict[str, Key]:
    """Per device, the numbers of the measured tables that it is in: equal ones only for those in the same tables."""
    found: dict[str, Key] = {}
    tables = sorted(cluster.collectives, key=lambda table: table.model_dump_json(exclude={"devices"}))
    for number, table in enumerate(tables):
        for name in table.devices:
            found[name] = (*found.get(name, ()), number)
    return found


Children = dict[str | None, list[int | str]]


def _children(cluster: Cluster, machines: Mapping[int, Key]) -> Children:
    """Per switch (None: the network's core), the numbers of the machines and the names of the switches below it."""
    found: Children = {}
    for number in sorted(machines):
        found.setdefault(cluster.nodes[number].switch, []).append(number)
    for switch in cluster.switches:
        found.setdefault(switch.parent, []).append(switch.name)
    return found


def _below(switch: str | None, children: Children, keys: Mapping[int, Key]) -> list[int]:
    """The machines below a switch, those of each switch side by side; groups in the order of their machines."""
    groups = [[each] if isinstance(each, int) else _below(each, children, keys) for each in children.get(switch, [])]
    groups.sort(key=lambda group: [keys[number] for number in group])
    return [number for group in groups for number in group]
