"""Participants: which sets of devices are worth comparing, since a synchronisation changes with who takes part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..sim.network import network_of
from ..sim.steps import Ints
from ..sim.view import View

MOST_SETS = 512
"""As many sets are all compared: those of nine unlike devices, or of two machines of sixteen equal ones each."""


def sets_of(view: View) -> list[Ints]:
    """Sets of devices by place, each once and the largest first.

    The view is canonical: the fastest come first. All sets, where they are at most :data:`MOST_SETS`; those that differ
    only in which of several like devices of a machine they hold are one. Of more, the k fastest, and whole machines,
    since links between machines are what a set saves.
    """
    machines = _by_machine(view)
    found: Iterable[Iterable[int]] = itertools.chain(_fastest(view), _machines(machines))
    if math.prod(len(each) + 1 for each in machines) <= MOST_SETS + 1:
        groups = _like(view)
        if math.prod(len(each) + 1 for each in groups) <= MOST_SETS + 1:
            found = _all_sets(groups)
    seen = dict.fromkeys(tuple(sorted(each)) for each in found)
    return [np.array(each) for each in sorted(seen, key=lambda each: (-len(each), each))]


def _by_machine(view: View) -> list[list[int]]:
    """Places of the devices of each machine."""
    places: dict[int, list[int]] = {}
    for place, device in enumerate(view.devices):
        places.setdefault(view.cluster.node_of[device.name], []).append(place)
    return list(places.values())


def _like(view: View) -> list[list[int]]:
    """Places of devices that may stand for each other: of one kind, on one adapter of one machine, in no own table."""
    rows, ports = view.steps.row_of.tolist(), network_of(view.cluster).topology.ports
    measured = {name for table in view.cluster.collectives for name in table.devices}
    groups: dict[object, list[int]] = {}
    for place, each in enumerate(view.devices):
        device, port = view.cluster.by_name[each.name], ports[each.name]
        alone = each.name if each.name in measured else ""
        figures = rows[place], device.overlapping, device.launch_overhead_us
        groups.setdefault((figures, port.machine, port.nic, alone), []).append(place)
    return list(groups.values())


def _all_sets(groups: Sequence[Sequence[int]]) -> Iterator[Iterable[int]]:
    for counts in itertools.product(*(range(len(each) + 1) for each in groups)):
        if any(counts):
            yield itertools.chain.from_iterable(each[:count] for each, count in zip(groups, counts, strict=True))


def _some(count: int, most: int) -> Iterator[int]:
    """Sizes of nested sets: small ones all, large ones every so often; and the most that can take part."""
    size = 1
    while size < count:
        yield size
        size = max(size + 1, size * 5 // 4)
    yield from {count, min(most, count)}


def _fastest(view: View) -> Iterator[Iterable[int]]:
    for size in _some(len(view.devices), view.global_batch):
        yield range(size)


def _machines(machines: Sequence[list[int]]) -> Iterator[Iterable[int]]:
    """All sets of a few machines; of many, those with the k fastest devices."""
    few = 2 ** len(machines) <= MOST_SETS
    sizes = range(1, len(machines) + 1) if few else _some(len(machines), len(machines))
    for size in sizes:
        for chosen in itertools.combinations(machines, size) if few else [machines[:size]]:
            yield itertools.chain.from_iterable(chosen)
