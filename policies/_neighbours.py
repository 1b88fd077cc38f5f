"""Neighbours: the devices machine by machine, and the machines switch by switch, in an order that figures decide."""

from __future__ import annotations

from ..sim.view import View
from .grid import _ranks, _ways
from .surroundings import surroundings

Key = tuple[object, ...]


def neighbours(view: View) -> list[list[str]]:
    """Names of the devices of each machine: who shares a switch, or a measured table, is next to each other.

    Names and the order of nodes and devices in the cluster decide only between what is alike: the fastest machines
    come first, then those with the better links.
    """
    ranks, shared = _ranks(view), _tables_of(view)
    around = surroundings(view.cluster, ranks)
    keys: dict[str, Key] = {name: (ranks[name], around[name], shared.get(name, ())) for name in ranks}
    machines: dict[int, list[str]] = {}
    for name in sorted(ranks, key=keys.__getitem__):
        machines.setdefault(view.cluster.node_of[name], []).append(name)
    nodes = view.cluster.nodes
    of_machine: dict[int, Key] = {
        number: ([ranks[name] for name in names], _ways(nodes[number]), [keys[name][1:] for name in names])
        for number, names in machines.items()
    }
    return [machines[number] for number in _below(None, _children(view, of_machine), of_machine)]


def _tables_of(view: View) -> dict[str, Key]:
    """Per device, the numbers of the measured tables that it is in: equal ones only for those in the same tables."""
    found: dict[str, Key] = {}
    tables = sorted(view.cluster.collectives, key=lambda table: table.model_dump_json(exclude={"devices"}))
    for number, table in enumerate(tables):
        for name in table.devices:
            found[name] = (*found.get(name, ()), number)
    return found


Children = dict[str | None, list[int | str]]


def _children(view: View, machines: dict[int, Key]) -> Children:
    """Per switch (None: the network's core), the numbers of the machines and the names of the switches below it."""
    found: Children = {}
    for number in sorted(machines):
        found.setdefault(view.cluster.nodes[number].switch, []).append(number)
    for switch in view.cluster.switches:
        found.setdefault(switch.parent, []).append(switch.name)
    return found


def _below(switch: str | None, children: Children, keys: dict[int, Key]) -> list[int]:
    """The machines below a switch, those of each switch side by side; groups in the order of their machines."""
    groups = [[each] if isinstance(each, int) else _below(each, children, keys) for each in children.get(switch, [])]
    groups.sort(key=lambda group: [keys[number] for number in group])
    return [number for group in groups for number in group]
