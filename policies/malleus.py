"""Malleus: pipelines of groups of like speed, re-cut around stragglers; who is too slow is suspended."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np

from ..sim import memory
from ..sim.device import Device
from ..sim.estimate import step_s
from ..sim.noise import Floats
from ..sim.plan import Pipeline, Plan, Replica, Stage
from ..sim.times import layer_times
from ..sim.view import View
from ._base import Choice, Range, canonical
from .makespan import Makespan
from .online import must_change, settled, slow_factors

Group = tuple[str, ...]
"""Devices of one machine that share every layer, the slowest last."""
Recompute = Literal["none", "full"]
MODES: tuple[tuple[int, Recompute], ...] = ((0, "none"), (1, "none"), (1, "full"))
"""ZeRO and recomputation, from the fastest to the one that takes the least memory."""
MOST_SUSPENDED = 8


@dataclass(frozen=True, kw_only=True)
class Malleus:
    """Group devices by straggling rate, divide the groups over pipelines, layers over groups and data over pipelines.

    The rates are measured. At each level the slowest part sets the pace, so that each level is a min-max problem: a
    pipeline's layers are cut so that its slowest stage is fastest, and its micro-batches follow from that. Groups that
    would only slow the others down are suspended. Degrees, numbers of pipelines and of suspended groups are compared.
    """

    name: ClassVar[str] = "malleus"
    source: ClassVar[str] = "Li et al. 2024, Malleus, arXiv 2410.13333: grouping, division, layer and data assignment"
    adaptive: ClassVar[bool] = True

    tensor: Annotated[int, Choice(1, 2, 4, 8)] = 1
    """The most devices that share a layer."""
    pipelines: Annotated[int, Choice(0, 1, 2, 4, 8)] = 0
    """How many there are; 0: as many as are best."""
    micro_batch: Annotated[int, Choice(1, 2, 4, 8, 16, 32)] = 4
    """Samples of a micro-batch, at most."""
    weight: Annotated[float, Range(0.05, 1.0)] = 0.8
    """Of the newest step in the moving average of the straggling rates."""
    hysteresis: Annotated[float, Range(0.0, 10.0)] = 1.0
    """How many times its price a change must save over the steps that are left."""
    least_gain: Annotated[float, Range(0.0, 0.5)] = 0.04
    """Share of the step that a change must save."""

    def allocate(self, view: View) -> Plan:
        """The best of the plans that fit; the plan so far where a change is not worth it.

        Raises:
            Infeasible: none fits, nor does any split of the batch over whole models.
        """
        view = canonical(view)
        slow = canonical(view.slowed(slow_factors(view, self.weight)))
        plan = self._best(slow)
        if must_change(view):  # and the step of the plan so far could not be estimated
            return plan
        return settled(view, plan, partial(step_s, slow), hysteresis=self.hysteresis, least_gain=self.least_gain)

    def _best(self, view: View) -> Plan:
        sizes = micro_batches(view, self.micro_batch)
        for zero, recompute in MODES:
            found = [Plan(pipelines=each, schedule="1f1b", zero=zero) for each in self._plans(view, sizes, recompute)]
            timed = sorted(((step_s(view, plan), place) for place, plan in enumerate(found)))
            for _, place in timed:
                if memory.check(view.workload, view.cluster.by_name, found[place]) is None:
                    return found[place]
        return Makespan().allocate(view)  # whole models, as many samples on each as its memory allows

    def _plans(self, view: View, sizes: Sequence[int], recompute: Recompute) -> Iterator[list[Pipeline]]:
        """The pipelines of every degree, number of suspended groups, and number of pipelines."""
        degree = 1
        while degree <= self.tensor:
            if degree == 1 or view.workload.indivisible(0, len(view.workload.layers), degree) is None:
                groups = groups_of(view, degree)
                for kept in range(len(groups), max(0, len(groups) - 1 - MOST_SUSPENDED), -1):
                    for count in self._counts(min(kept, len(sizes))):
                        yield _pipelines(view, groups[:kept], count, sizes, recompute)
            degree *= 2

    def _counts(self, most: int) -> list[int]:
        """Numbers of pipelines to compare: powers of two, and as many as there can be."""
        if self.pipelines:
            return [min(self.pipelines, most)]
        return sorted({most, *(2**power for power in range(most.bit_length()))} - {0})


def micro_batches(view: View, size: int) -> list[int]:
    """The batch in micro-batches of nearly equal size, larger ones first."""
    limit = min(size, view.workload.max_micro_batch or size)
    count = -(-view.global_batch // limit)
    least, over = divmod(view.global_batch, count)
    return [least + 1] * over + [least] * (count - over)


def groups_of(view: View, degree: int) -> list[Group]:
    """Devices of each machine in groups of like speed, fastest first: a straggler slows down one group only.

    What is left over of a machine is left out.
    """
    machines: dict[int, list[str]] = {}
    for device in view.devices:  # canonical: the fastest first
        machines.setdefault(view.cluster.node_of[device.name], []).append(device.name)
    places = {device.name: place for place, device in enumerate(view.devices)}
    found = [
        tuple(names[start : start + degree])
        for names in machines.values()
        for start in range(0, len(names) - degree + 1, degree)
    ]
    return sorted(found, key=lambda group: places[group[-1]])


def _pipelines(
    view: View, groups: Sequence[Group], count: int, sizes: Sequence[int], recompute: Recompute
) -> list[Pipeline]:
    """Pipelines of about equal speed: groups dealt, layers cut, micro-batches dealt by pace."""
    weights = [_speed(view, group, sizes[0], recompute) for group in groups]
    lanes: list[list[int]] = [[] for _ in range(count)]
    heap = [(0.0, lane) for lane in range(count)]
    for place, weight in enumerate(weights):
        total, lane = heapq.heappop(heap)
        lanes[lane].append(place)
        heapq.heappush(heap, (total + weight, lane))
    cuts = [_cut(view, [groups[place] for place in lane], sizes[0], recompute) for lane in lanes]
    paces = [(max(times), sum(times)) for _, times in cuts]
    dealt = _dealt(paces, sizes)
    return [Pipeline(stages=stages, micro_batches=own) for (stages, _), own in zip(cuts, dealt, strict=True) if own]


def _layers_s(view: View, group: Group, size: int, recompute: Recompute) -> Floats:
    """Seconds of one micro-batch through the first so many layers: of the slowest of the group."""
    device: Device = view.cluster.by_name[group[-1]]
    times = layer_times(device, view.workload, size, len(group), recompute)
    return times.forward_sums + times.backward_sums


def _speed(view: View, group: Group, size: int, recompute: Recompute) -> float:
    return 1.0 / max(float(_layers_s(view, group, size, recompute)[-1]), 1e-30)


def _cut(view: View, groups: Sequence[Group], size: int, recompute: Recompute) -> tuple[list[Stage], list[float]]:
    """Layers over groups in order so that the slowest stage is as fast as can be; a group may be left without any."""
    sums = [_layers_s(view, group, size, recompute) for group in groups]
    high = max(float(each[-1]) for each in sums)
    low, bounds = 0.0, _filled(sums, high)
    for _ in range(40):
        middle = (low + high) / 2
        found = _filled(sums, middle)
        if found[-1] == len(sums[0]) - 1:
            high, bounds = middle, found
        else:
            low = middle
    stages, times = [], []
    for number, group in enumerate(groups):
        first, last = bounds[number], bounds[number + 1]
        if last > first:
            stages.append(Stage(first=first, last=last, replicas=[Replica(devices=list(group))], recompute=recompute))
            times.append(float(sums[number][last] - sums[number][first]))
    return stages, times


def _filled(sums: Sequence[Floats], limit: float) -> list[int]:
    """Bounds of the stages if each takes as many layers as it can within a time."""
    bounds = [0]
    for each in sums:
        start = bounds[-1]
        reach = int(np.searchsorted(each, each[start] + limit * (1 + 1e-12), side="right")) - 1
        bounds.append(max(start, reach))
    return bounds


def _dealt(paces: Sequence[tuple[float, float]], sizes: Sequence[int]) -> list[list[int]]:
    """Micro-batches one by one to the pipeline that is through with them first: (slowest stage, all stages) of each."""
    found: list[list[int]] = [[] for _ in paces]
    heap = [(whole, lane) for lane, (_, whole) in enumerate(paces)]
    heapq.heapify(heap)
    for size in sizes:
        end, lane = heapq.heappop(heap)
        found[lane].append(size)
        heapq.heappush(heap, (end + paces[lane][0], lane))
    return found
