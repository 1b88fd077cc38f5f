"""Reductions: when each worker of a plan has its gradients, and its weights again; what shares a link takes turns."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .device import CollectiveKind
from .memory import positions
from .network import Transfer, network_of
from .noise import Floats
from .plan import Pipeline, Plan, Stage
from .view import View

Rings = tuple[tuple[str, ...], ...]
Part = tuple[int, int]
"""A pipeline's class, and a stage of it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A class of pipelines: one of them, how many there are, and when each stage's last backward pass ends."""

    pipelines: tuple[Pipeline, ...]
    ends: tuple[float, ...]
    """Per stage."""
    busy_s: tuple[float, ...]
    """Per stage: seconds of all its pieces."""

    @property
    def first(self) -> Pipeline:
        """One for all."""
        return self.pipelines[0]


@dataclass(frozen=True, slots=True)
class Load:
    """A collective: a latency, and the seconds for which each of its links is busy."""

    latency_s: float
    links: NDArray[np.intp]
    busy_s: Floats

    @property
    def seconds(self) -> float:
        """What it takes alone."""
        return self.latency_s + float(self.busy_s.max(initial=0.0))

    def scaled(self, factor: float) -> Load:
        """The same with so many times the bytes."""
        return self if factor == 1.0 else Load(self.latency_s, self.links, self.busy_s * factor)


class Loads(NamedTuple):
    """Rings of devices, and what is known of the collectives over all of them at once."""

    rings: Rings
    known: dict[tuple[CollectiveKind, float], Load]


class Reductions:
    """Collectives over the holders of runs of layers, for one view; remembers what several plans have in common."""

    def __init__(self, view: View, rest_s: Callable[[Pipeline, int, int], float]) -> None:
        """Make them for a view.

        Args:
            view: its cluster and workload.
            rest_s: how long the last backward pass of a pipeline's stage goes on after a layer's.
        """
        self.view, self.workload, self.rest_s = view, view.workload, rest_s
        self.network = network_of(view.cluster)
        self.devices = view.cluster.by_name
        self._loads: dict[Rings, Loads] = {}
        self._links = len(self.network.capacities)
        index = {layer.name: number for number, layer in enumerate(self.workload.layers)}
        self._ties = [(index[each.name], index[each.tied_with]) for each in self.workload.layers if each.tied_with]

    def segments(self, lines: Sequence[Line]) -> list[tuple[int, int, list[Part]]]:
        """Runs of layers that the same stages hold, the last layers first."""
        cuts = sorted({bound for line in lines for stage in line.first.stages for bound in (stage.first, stage.last)})
        starts = [[stage.first for stage in line.first.stages] for line in lines]
        return [
            (first, last, [(n, bisect.bisect_right(start, first) - 1) for n, start in enumerate(starts)])
            for first, last in reversed(list(pairwise(cuts)))
        ]

    def synchronised(self, plan: Plan, lines: Sequence[Line]) -> dict[Part, float]:
        """When each worker (class and position) has its gradients."""
        done: dict[Part, float] = {}
        for n, line in enumerate(lines):
            for place, end in zip(positions(line.first), line.ends, strict=True):
                done[n, place] = max(end, done.get((n, place), 0.0))
        if plan.zero == 3 or plan.sync_every > 1:
            return self._tied(lines, done)
        links, streams = np.zeros(self._links), dict[Part, float]()
        for begin, load, holders in sorted(self._reductions(plan, lines), key=itemgetter(0)):
            start = max(begin, streams.get(holders[0], 0.0))
            links[load.links] = np.maximum(links[load.links], start) + load.busy_s
            end = max(start, float(links[load.links].max(initial=0.0))) + load.latency_s
            streams[holders[0]] = end
            for n, s in holders:
                held = n, positions(lines[n].first)[s]
                done[held] = max(done[held], end)
        return self._tied(lines, done)

    @staticmethod
    def exposed_s(lines: Sequence[Line], synced: Mapping[Part, float]) -> dict[Part, float]:
        """How long each worker (class and position) only sends gradients: once the last who holds its layers is done.

        Before that it waits.
        """
        held = [
            (n, place, stage.first, stage.last, end)
            for n, line in enumerate(lines)
            for place, stage, end in zip(positions(line.first), line.first.stages, line.ends, strict=True)
        ]
        latest = np.zeros(max(last for _, _, _, last, _ in held))
        for _, _, first, last, end in held:
            latest[first:last] = np.maximum(latest[first:last], end)
        begun: dict[Part, float] = {}
        for n, place, first, last, _ in held:
            begun[n, place] = max(begun.get((n, place), 0.0), float(latest[first:last].max()))
        return {part: max(done - begun[part], 0.0) for part, done in synced.items()}

    def gathered_s(self, plan: Plan, lines: Sequence[Line]) -> float:
        """After the optimizer: the all-gather of sharded weights (ZeRO 1 and 2)."""
        if plan.zero not in (1, 2):
            return 0.0
        links, latencies = np.zeros(self._links), dict[Part, float]()
        for first, last, holders in self.segments(lines):
            if self.count(lines, holders) > 1:
                load = self._loading(plan, lines, holders)("all_gather", self._bytes(lines, (first, last), holders))
                links[load.links] += load.busy_s
                for part in holders:
                    latencies[part] = latencies.get(part, 0.0) + load.latency_s
        return float(links.max(initial=0.0)) + max(latencies.values(), default=0.0)

    def count(self, lines: Sequence[Line], holders: Iterable[Part]) -> int:
        """Replicas in all pipelines that hold some parts."""
        return sum(len(lines[n].pipelines) * len(lines[n].first.stages[s].replicas) for n, s in holders)

    def over(self, groups: Sequence[Sequence[str]], kind: CollectiveKind, size: float) -> Load:
        """A collective over groups of devices, each tensor-parallel rank in a ring of its own, all at once."""
        return self._load_over(self._loads_of(groups), kind, size)

    def _loads_of(self, groups: Sequence[Sequence[str]]) -> Loads:
        """What is known of the collectives over some groups."""
        shards = max(map(len, groups))
        rings = tuple(tuple(group[rank * len(group) // shards] for group in groups) for rank in range(shards))
        return self._loads.setdefault(rings, Loads(rings, {}))

    def _load_over(self, loads: Loads, kind: CollectiveKind, size: float) -> Load:
        if (kind, size) not in loads.known:
            transfers = [self.network.collective(kind, ring, size) for ring in loads.rings]
            loads.known[kind, size] = self._together(transfers)
        return loads.known[kind, size]

    # Parts

    def _together(self, transfers: Sequence[Transfer]) -> Load:
        latency = max(each.latency_s for each in transfers)
        volume = max(each.volume_bytes for each in transfers)
        uses = np.array([use for each in transfers for use in each.uses]).reshape(-1, 2)
        links, places = np.unique(uses[:, 0].astype(np.intp), return_inverse=True)
        weights = np.bincount(places, weights=uses[:, 1], minlength=len(links))
        capacities = np.array([self.network.capacities[link] for link in links])
        return Load(latency, links, volume * weights / capacities)

    def _tied(self, lines: Sequence[Line], done: dict[Part, float]) -> dict[Part, float]:
        """Gradients of parameters that two stages of a pipeline share: an all-reduce between these."""
        for n, line in enumerate(lines):
            places = positions(line.first)
            for low, high, size in self._shared(line.first):
                pairs = [[p.stages[s].replicas[0].devices for s in (low, high)] for p in line.pipelines]
                busy = np.zeros(self._links)
                loads = [self.over(pair, "all_reduce", size) for pair in pairs]
                for load in loads:
                    busy[load.links] += load.busy_s
                seconds = loads[0].latency_s + max(float(busy[load.links].max(initial=0.0)) for load in loads)
                end = max(done[n, places[low]], done[n, places[high]]) + seconds
                done[n, places[low]] = done[n, places[high]] = end
        return done

    def _shared(self, pipeline: Pipeline) -> Iterator[tuple[int, int, float]]:
        """Pairs of stages on different devices that hold tied layers, and the bytes that they share."""
        firsts = [stage.first for stage in pipeline.stages]
        places = positions(pipeline)
        for number, target in self._ties:
            low, high = sorted(bisect.bisect_right(firsts, layer) - 1 for layer in (number, target))
            if places[low] != places[high]:
                degree = max(len(pipeline.stages[s].replicas[0].devices) for s in (low, high))
                parameters = self.workload.shard_parameters(target, target + 1, degree)
                yield low, high, parameters * self.workload.element_bytes

    def _reductions(self, plan: Plan, lines: Sequence[Line]) -> Iterable[tuple[float, Load, list[Part]]]:
        """Of every bucket of gradients: when its last holder has it, how it is reduced, and the holders."""
        kind: CollectiveKind = "reduce_scatter" if plan.zero else "all_reduce"
        for first, last, holders in self.segments(lines):
            if self.count(lines, holders) < 2:
                continue
            beside, load = self._overlaps(plan, lines, holders), self._loading(plan, lines, holders)
            for low, high in self._buckets(plan, lines, (first, last), holders, beside=beside):
                ready = [
                    lines[n].ends[s] - (self.rest_s(lines[n].first, s, low) if beside else 0.0) for n, s in holders
                ]
                size = self._bytes(lines, (low, high), holders)
                yield max(ready), load(kind, size), holders

    def _overlaps(self, plan: Plan, lines: Sequence[Line], holders: list[Part]) -> bool:
        names = {name for n, s in holders for name in _names(lines[n].first.stages[s])}
        return plan.overlap and all(self.devices[name].overlapping for name in names)

    def _buckets(
        self, plan: Plan, lines: Sequence[Line], run: tuple[int, int], holders: list[Part], *, beside: bool
    ) -> Iterable[tuple[int, int]]:
        """Runs of layers of at least a bucket's gradients each, the last first; all in one where nothing overlaps."""
        least, high, size = plan.bucket_mib * 2**20 if beside else math.inf, run[1], 0.0
        for layer in range(run[1] - 1, run[0] - 1, -1):
            size += self._bytes(lines, (layer, layer + 1), holders)
            if size >= least or layer == run[0]:
                if size > 0:
                    yield layer, high
                high, size = layer, 0.0

    def _bytes(self, lines: Sequence[Line], run: tuple[int, int], holders: list[Part]) -> float:
        degree = max(len(replica.devices) for n, s in holders for replica in lines[n].first.stages[s].replicas)
        return self.workload.shard_parameters(*run, degree) * self.workload.element_bytes

    def _loading(
        self, plan: Plan, lines: Sequence[Line], holders: list[Part]
    ) -> Callable[[CollectiveKind, float], Load]:
        """Collectives over all holders of some layers; as slow as the largest of unequal shares makes them."""
        groups = [
            replica.devices
            for n, s in holders
            for pipeline in lines[n].pipelines
            for replica in pipeline.stages[s].replicas
        ]
        factor, loads = 1.0, self._loads_of(groups)
        if plan.state_shares is not None and plan.zero:
            factor = max(plan.state_shares.values()) * len(groups)
        return lambda kind, size: self._load_over(loads, kind, size).scaled(factor)


def _names(stage: Stage) -> Iterator[str]:
    return (name for replica in stage.replicas for name in replica.devices)
