"""The exact min-max split of a batch over unequal devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import DeviceView, View
from ._base import Choice, canonical, capacities, figures
from .apportion import min_max
from .curves import Steps

ALL_SUBSETS_UP_TO = 8


@dataclass(frozen=True, kw_only=True)
class Makespan:
    """Split the batch so that the slowest device finishes as early as any integer split allows, within memory."""

    name: ClassVar[str] = "makespan"
    source: ClassVar[str] = "min-max apportionment: the next sample goes to whoever finishes earliest with it"

    leave_out: Annotated[bool, Choice(False, True)] = True
    """Compare sets of participants too: the all-reduce changes with them."""

    def allocate(self, view: View) -> Plan:
        """The split with the least estimated step time, the all-reduce included.

        Exact for each set of participants (see :func:`.apportion.min_max`); over all sets up to eight devices, beyond
        that over sets of the k fastest and sets of whole machines.
        """
        view = canonical(view)
        capacities(view)
        everybody = tuple(range(len(view.devices)))
        if not self.leave_out:
            split = min_max_split(view.devices, view.global_batch)
            assert split is not None, "capacities() has judged"
            return view.plan(split)
        kinds = [figures(device) for device in view.devices]
        ranks = [kinds.index(kind) for kind in kinds]
        found = [_candidate(view, chosen) for chosen in _participants(view)]
        candidates = [each for each in found if each is not None]
        # Equal times are decided by what the devices are, not by their places.
        _, chosen, split = min(candidates, key=lambda each: (each[0], [ranks[i] for i in each[1]], each[2]))
        samples = dict(zip(chosen, split, strict=True))
        return view.plan([samples.get(i, 0) for i in everybody])


Candidate = tuple[float, tuple[int, ...], list[int]]
"""Estimated step time; places of the participants; their samples."""


def _candidate(view: View, chosen: tuple[int, ...]) -> Candidate | None:
    """The best split in which each of the chosen has a sample; None where that does not fit."""
    devices = [view.devices[i] for i in chosen]
    split = min_max_split(devices, view.global_batch, least=1)
    if split is None:
        return None
    busy = max(device.step_s(samples) for device, samples in zip(devices, split, strict=True))
    total = busy + view.sync_s([device.name for device in devices])
    return total, chosen, split


def min_max_split(devices: Sequence[DeviceView], batch: int, least: int = 0) -> list[int] | None:
    """Samples per device with the least maximum of ``step_s``; None where the batch does not fit.

    See :func:`.apportion.min_max`: exact also where a step takes less time for more samples; ties go to the earlier
    device.

    Args:
        devices: who takes part.
        batch: samples in all.
        least: samples that each must have.
    """
    return min_max(Steps(devices, batch), batch, least)


def _participants(view: View) -> Iterator[tuple[int, ...]]:
    """Sets of devices by place, each once; the view is canonical: the fastest come first.

    Of more than a few devices: the k fastest, and whole machines, since links between machines are what a set saves.
    """
    count = len(view.devices)
    if count <= ALL_SUBSETS_UP_TO:
        yield from _all_sets(count)
        return
    seen: set[tuple[int, ...]] = set()
    for chosen in itertools.chain(_fastest(count), _machines(view)):
        if chosen not in seen:
            seen.add(chosen)
            yield chosen


def _all_sets(count: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, count + 1):
        yield from itertools.combinations(range(count), size)


def _fastest(count: int) -> Iterator[tuple[int, ...]]:
    size = 1
    while size < count:
        yield tuple(range(size))
        size = max(size + 1, size * 5 // 4)
    yield tuple(range(count))


def _machines(view: View) -> Iterator[tuple[int, ...]]:
    """All sets of a few machines; of many, those with the k fastest devices."""
    places: dict[int, list[int]] = {}
    for place, device in enumerate(view.devices):
        places.setdefault(view.cluster.node_of[device.name], []).append(place)
    machines = list(places.values())
    count = len(machines)
    sets = _fastest(count) if count > ALL_SUBSETS_UP_TO else _all_sets(count)
    for chosen in sets:
        yield tuple(sorted(place for machine in chosen for place in machines[machine]))
