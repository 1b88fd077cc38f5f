"""The exact min-max split of a batch over unequal devices."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import DeviceView, View
from ._base import Choice, canonical, capacities, figures

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

        Exact for non-decreasing device times; over all sets of participants up to eight devices, beyond that over some
        sets of the k fastest.
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

    Deals sample by sample to the device that would finish earliest with it, which is exact for non-decreasing times
    (an exchange argument); ties go to the earlier device.

    Args:
        devices: who takes part.
        batch: samples in all.
        least: samples that each must have.
    """
    if not least * len(devices) <= batch <= sum(device.capacity for device in devices):
        return None
    if min(device.capacity for device in devices) < least:
        return None
    given = _head_start(devices, batch, least)
    heap = [(device.step_s(given[i] + 1), i) for i, device in enumerate(devices) if given[i] < device.capacity]
    heapq.heapify(heap)
    for _ in range(batch - sum(given)):
        _, i = heapq.heappop(heap)
        given[i] += 1
        if given[i] < devices[i].capacity:
            heapq.heappush(heap, (devices[i].step_s(given[i] + 1), i))
    return given


def _head_start(devices: Sequence[DeviceView], batch: int, least: int) -> list[int]:
    """A state that dealing sample by sample passes through: all that finishes within some time is dealt.

    The time is bisected until few samples are left, so that a large batch costs no more than a small one.
    """
    given = [least] * len(devices)
    low, high = 0.0, max(device.step_s(min(batch, device.capacity)) for device in devices)
    for _ in range(60):
        if batch - sum(given) <= 4 * len(devices):
            break
        middle = (low + high) / 2
        within = [max(least, device.most_within(middle)) for device in devices]
        if sum(within) <= batch:
            low, given = middle, within
        else:
            high = middle
    return given


def _participants(view: View) -> Iterator[tuple[int, ...]]:
    """Sets of devices by place; the view is canonical: the fastest come first."""
    count = len(view.devices)
    if count <= ALL_SUBSETS_UP_TO:
        for size in range(1, count + 1):
            yield from itertools.combinations(range(count), size)
        return
    size = 1
    while size < count:
        yield tuple(range(size))
        size = max(size + 1, size * 5 // 4)
    yield tuple(range(count))
