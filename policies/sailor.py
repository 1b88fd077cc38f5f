"""Sailor's way of searching: stage by stage, which kinds of devices hold its replicas, over what the others leave."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, permutations
from typing import Annotated, ClassVar, NamedTuple

from ..sim.plan import Pipeline, Plan, micro_batches
from ..sim.view import View
from ._base import Range
from .aims import OBJECTIVE, Aim, aimed
from .fleet import Roster, staged
from .hybrid import Judge, Judged, best_of
from .shapes import Foundry, Held, Kind, Seat

Counts = tuple[int, ...]
"""Of each kind: replicas of a stage, or devices that are left."""


@dataclass(frozen=True, kw_only=True)
class Sailor:
    """Equal cuts and equal pipelines, whose stages mix kinds of devices as a dynamic programme over the stages says.

    For every depth and micro-batch the layers are cut into stages of equally many, the larger ones last. Each kind gets
    one tensor-parallel degree per stage: the least that fits in memory, and with one kind only (or for the slower ones
    of several) twice that as long as it pays. Then, for every number of replicas that changes the count of
    micro-batches, the programme goes through the stages: some replicas on one kind, the others on another, and the best
    way to do the rest with the devices that are left. Replicas of a stage never span regions (here: what is below one
    switch of the core); the next stage stays in the region as long as there is room. The step is the way through all
    stages, one turn of the slowest stage for each further micro-batch, and the longest gradient all-reduce.

    Paper: Strati et al. 2025, Sailor: Automating Distributed Training over Dynamic, Heterogeneous, and Geo-distributed
    Clusters (arXiv 2504.17096).
    """

    name: ClassVar[str] = "sailor"
    source: ClassVar[str] = (
        "Sailor, Strati et al. 2025 (arXiv 2504.17096): the abstract, and the planner's code (planner.cpp, "
        "planner_utils.cpp of eth-easl/sailor) were read; its simulator was not"
    )
    rigid: ClassVar[bool] = True

    deepest: Annotated[int, Range(1, 128, log=True)] = 32
    """Most stages that are tried."""
    speedup: Annotated[float, Range(1.0, 2.0)] = 1.5
    """How much twice as many devices must quicken a stage's layers to share them."""
    closely: Annotated[int, Range(1, 64, log=True)] = 8
    """Configurations that are looked at closely, the best by the programme first."""
    aim: Annotated[str, Aim()] = OBJECTIVE
    """What the plan is to be best at; by default what the scenario's objective says."""

    def allocate(self, view: View) -> Plan:
        """The best by the close estimate of those that the programme puts first.

        Raises:
            Infeasible: nothing fits in memory, nothing found keeps the objective's floor and budget, or the objective
                is none of :data:`.aims.KNOWN`.
        """
        view = aimed(view, self.aim)
        judge, foundry = Judge(view), Foundry(view)
        ranked = sorted(self._configurations(judge, foundry), key=lambda each: (each.value, each.step_s))
        plans = (plan for each in ranked for plan in [each.plan(foundry)] if plan is not None and judge.fits(plan))
        found: list[Judged] = []
        for plan in plans:
            found.append((plan, judge.estimator.of(plan)))
            if len(found) >= self.closely and any(judge.allows(estimate) for _, estimate in found):
                break
        return best_of(judge, foundry, found)[0]

    def _configurations(self, judge: Judge, foundry: Foundry) -> Iterator[Configuration]:
        regions = regions_of(foundry)
        for depth in range(1, min(foundry.layers, len(foundry.view.devices), self.deepest) + 1):
            for size in foundry.sizes():
                table = Table.of(foundry, depth, size, self.speedup)
                if table is None:
                    break
                for order in _orders(regions):
                    yield from self._replicated(judge, table, order)

    @staticmethod
    def _replicated(judge: Judge, table: Table, order: Sequence[Region]) -> Iterator[Configuration]:
        """One configuration per number of replicas, from the most down (for cost: up), as long as that helps."""
        best = math.inf
        for replicas in _replicas(table, order, upward=judge.saves):
            found = Programme(table, order, replicas).best()
            if found is None:
                continue
            value = found.step_s * (found.usd_per_hour if judge.saves else 1.0)
            if value >= best and not judge.bounded:
                break
            best = min(best, value)
            yield Configuration(table, tuple(order), replicas, found, value)


@dataclass(frozen=True, eq=False)
class Region:
    """Devices below one switch of the core, or on none: of each kind, its machines."""

    kinds: tuple[Kind, ...]

    @property
    def counts(self) -> Counts:
        """Devices of each kind."""
        return tuple(kind.count for kind in self.kinds)


def regions_of(foundry: Foundry) -> list[Region]:
    """The regions of a view's cluster, the largest first."""
    cluster = foundry.view.cluster
    parents = {switch.name: switch.parent for switch in cluster.switches}

    def top(name: str) -> str | None:
        switch = cluster.nodes[cluster.node_of[name]].switch
        while switch is not None and parents[switch] is not None:
            switch = parents[switch]
        return switch

    tops = dict.fromkeys(top(names[0]) for kind in foundry.kinds for names in kind.machines)
    found = [
        Region(
            tuple(
                Kind(kind.number, kind.device, tuple(names for names in kind.machines if top(names[0]) == each))
                for kind in foundry.kinds
            )
        )
        for each in tops
    ]
    return sorted(found, key=lambda region: (-sum(region.counts), [-count for count in region.counts]))


MANY = 3
"""Regions up to which all orders are tried; more are taken by their size."""


def _orders(regions: Sequence[Region]) -> Iterator[tuple[Region, ...]]:
    """Regions that a pipeline goes through, one after the other; those that are alike are not told apart."""
    if len(regions) > MANY:
        yield from (tuple(regions[:count]) for count in range(1, len(regions) + 1))
        return
    every = (order for count in range(1, len(regions) + 1) for order in permutations(regions, count))
    yield from {tuple(region.counts for region in order): order for order in reversed(list(every))}.values()


def _replicas(table: Table, order: Sequence[Region], *, upward: bool) -> list[int]:
    """Numbers of replicas worth trying: the least for each count of micro-batches of a pipeline."""
    batch, size = table.foundry.view.global_batch, table.size
    most = min(batch, sum(sum(region.counts) for region in order) // table.depth)
    least: dict[int, int] = {}
    for replicas in range(1, most + 1):
        least.setdefault(-(-batch // (size * replicas)), replicas)
    return sorted(least.values(), reverse=not upward)


@dataclass(frozen=True, eq=False)
class Table:
    """What the stages of one depth and micro-batch take on each kind."""

    foundry: Foundry
    size: int
    bounds: tuple[int, ...]
    degrees: tuple[tuple[int, ...] | None, ...]
    """Per kind and stage; None: its memory does not hold every stage."""

    @classmethod
    def of(cls, foundry: Foundry, depth: int, size: int, speedup: float) -> Table | None:
        """The table; None where no kind can hold every stage."""
        share, over = divmod(foundry.layers, depth)
        bounds = [0]
        for stage in range(depth):
            bounds.append(bounds[-1] + share + (stage >= depth - over))
        several = len(foundry.kinds) > 1
        degrees = tuple(
            _degrees(foundry, kind, bounds, size, speedup=math.inf if several and not kind.number else speedup)
            for kind in foundry.kinds
        )
        return cls(foundry, size, tuple(bounds), degrees) if any(degrees) else None

    @property
    def depth(self) -> int:
        """Stages."""
        return len(self.bounds) - 1

    def degree(self, kind: int, stage: int) -> int:
        """Devices that a replica takes; 0 for a kind that is not used."""
        found = self.degrees[kind]
        return found[stage] if found else 0

    def seconds(self, kind: int, stage: int) -> float:
        """Forward and backward of a micro-batch."""
        seat = Seat(kind, self.degree(kind, stage))
        return self.foundry.stage_s(seat, self.size, "none", self.bounds[stage], self.bounds[stage + 1])

    def message_s(self, stage: int, kinds: Sequence[int], others: Sequence[int]) -> float:
        """Between a stage and the next one, one way: the slowest of the pairs of kinds."""
        if stage + 1 == self.depth:
            return 0.0
        foundry, slowest = self.foundry, 0.0
        size = self.size * foundry.crossing[self.bounds[stage + 1]] * foundry.workload.element_bytes
        for kind in kinds:
            for other in others:
                ends = foundry.kinds[kind].machines[0][0], foundry.kinds[other].machines[-1][-1]
                wide = max(self.degree(kind, stage), self.degree(other, stage + 1))
                slowest = max(slowest, foundry.network.point_to_point(*ends, size / wide).alone_s)
        return slowest

    def sync_s(self, stage: int, kinds: Sequence[int], replicas: int) -> float:
        """A ring over the replicas of a stage, by the slowest way out of a machine of these kinds."""
        if replicas == 1:
            return 0.0
        view, workload = self.foundry.view, self.foundry.workload
        size = workload.shard_parameters(self.bounds[stage], self.bounds[stage + 1], 1) * workload.element_bytes
        nodes = [view.cluster.nodes[view.cluster.node_of[self.foundry.kinds[kind].machines[0][0]]] for kind in kinds]
        links = [(node.network or view.cluster.network, node.nics) for node in nodes]
        slowest = min((link.bandwidth * nics for link, nics in links if link), default=nodes[0].link.bandwidth)
        return 2 * (replicas - 1) / replicas * size / slowest


def _degrees(
    foundry: Foundry, kind: Kind, bounds: Sequence[int], size: int, *, speedup: float
) -> tuple[int, ...] | None:
    """Of a kind, the tensor-parallel degree of each stage: the least that fits, wider where that pays."""
    found = []
    for stage in range(len(bounds) - 1):
        runs = {
            degree: Held(Seat(kind.number, degree), bounds[stage], bounds[stage + 1], "none")
            for degree in foundry.degrees(kind)
        }
        ahead = min(len(bounds) - 1 - stage, -(-foundry.view.global_batch // size))
        room = kind.device.memory_bytes
        fitting = [degree for degree, held in runs.items() if foundry.stage_bytes(held, (size, 0, 1), ahead) <= room]
        if not fitting:
            return None
        chosen, times = fitting[0], foundry.stage_seconds([runs[degree] for degree in fitting], size)
        for (before, degree), now in zip(zip(times, fitting[1:], strict=False), times[1:], strict=True):
            if before < speedup * now:
                break
            chosen = degree
        found.append(chosen)
    return tuple(found)


class Rest(NamedTuple):
    """A stage and all behind it, in the best way found: what the programme remembers."""

    step_s: float
    through_s: float
    straggler_s: float
    sync_s: float
    usd_per_hour: float
    stages: tuple[tuple[int, Counts], ...]
    """Per stage its region, and how many of its replicas each kind holds."""


@dataclass(eq=False)
class Programme:
    """The dynamic programme over the stages for one number of replicas."""

    table: Table
    regions: Sequence[Region]
    replicas: int
    known: dict[tuple[int, int, Counts], Rest | None] = field(default_factory=dict)

    def best(self) -> Rest | None:
        """The best way found to hold all stages; None where the devices do not suffice."""
        return self._from(0, 0, self.regions[0].counts)

    def _from(self, stage: int, region: int, left: Counts) -> Rest | None:
        key = stage, region, left
        if key not in self.known:
            found = [each for counts in self._mixtures(stage, left) for each in [self._with(key, counts)] if each]
            self.known[key] = min(found, key=lambda rest: (rest.step_s, rest.usd_per_hour), default=None)
        return self.known[key]

    def _with(self, where: tuple[int, int, Counts], counts: Counts) -> Rest | None:
        """A stage on some kinds, and the best rest; the next region where this one has too little for it."""
        (stage, region, left), table = where, self.table
        kinds = [kind for kind, count in enumerate(counts) if count]
        own = max(table.seconds(kind, stage) for kind in kinds)
        sync = table.sync_s(stage, kinds, self.replicas)
        spent = [count * table.degree(kind, stage) for kind, count in enumerate(counts)]
        price = sum(
            each * (kind.device.price_usd_per_hour or 0.0)
            for each, kind in zip(spent, table.foundry.kinds, strict=True)
        )
        if stage + 1 == table.depth:
            return self._rest(own, own, sync, price, ((region, counts),))
        after = tuple(
            n - count * table.degree(kind, stage) for kind, (n, count) in enumerate(zip(left, counts, strict=True))
        )
        if self._room(stage + 1, after) < self.replicas:
            region += 1
            if region == len(self.regions):
                return None
            after = self.regions[region].counts
        rest = self._from(stage + 1, region, after)
        if rest is None:
            return None
        others = [kind for kind, count in enumerate(rest.stages[0][1]) if count]
        sent = table.message_s(stage, kinds, others)
        return self._rest(
            own + 2 * sent + rest.through_s,
            max(own + sent, rest.straggler_s),
            max(sync, rest.sync_s),
            price + rest.usd_per_hour,
            ((where[1], counts), *rest.stages),
        )

    def _rest(
        self, through: float, straggler: float, sync: float, price: float, stages: tuple[tuple[int, Counts], ...]
    ) -> Rest:
        turns = -(-self.table.foundry.view.global_batch // (self.table.size * self.replicas))
        return Rest(through + (turns - 1) * straggler + sync, through, straggler, sync, price, stages)

    def _room(self, stage: int, left: Counts) -> int:
        """Replicas of a stage for which devices are left."""
        return sum(self._groups(stage, left))

    def _groups(self, stage: int, left: Counts) -> Counts:
        degrees = [self.table.degree(kind, stage) for kind in range(len(left))]
        return tuple(n // degree if degree else 0 for n, degree in zip(left, degrees, strict=True))

    def _mixtures(self, stage: int, left: Counts) -> Iterator[Counts]:
        """Ways to deal the replicas over kinds.

        Those over the same kinds are equally slow: so only one that spends as many as can be of the faster kinds, and
        one that spends as few.
        """
        groups = self._groups(stage, left)
        usable = [kind for kind, count in enumerate(groups) if count]
        for number in range(1, len(usable) + 1):
            for kinds in combinations(usable, number):
                for order in dict.fromkeys((kinds, kinds[::-1])):
                    counts = self._filled(order, groups)
                    if counts is not None:
                        yield counts

    def _filled(self, order: Sequence[int], groups: Counts) -> Counts | None:
        """At least one replica on each kind, and as many as can be on the first ones."""
        counts, open_ = [0] * len(groups), self.replicas - len(order)
        for kind in order:
            more = min(groups[kind] - 1, open_)
            counts[kind], open_ = 1 + more, open_ - more
        return tuple(counts) if not open_ and self.replicas >= len(order) else None


@dataclass(frozen=True, eq=False)
class Configuration:
    """An answer of the programme."""

    table: Table
    regions: tuple[Region, ...]
    replicas: int
    rest: Rest
    value: float
    """What is made small."""

    @property
    def step_s(self) -> float:
        """By the programme."""
        return self.rest.step_s

    def plan(self, foundry: Foundry) -> Plan | None:
        """Replica i of each stage makes pipeline i, the faster kinds first; None where machines leave no group."""
        free = [[Roster(kind) for kind in region.kinds] for region in self.regions]
        columns = []
        for stage, (region, counts) in enumerate(self.rest.stages):
            groups = []
            for kind, count in enumerate(counts):
                degree = self.table.degree(kind, stage)
                taken = list(islice(free[region][kind].groups(degree), count)) if count else []
                if len(taken) < count:
                    return None
                groups += [(Seat(kind, degree), group) for group in taken]
            columns.append(groups)
        return self._joined(foundry, columns)

    def _joined(self, foundry: Foundry, columns: Sequence[Sequence[tuple[Seat, Sequence[str]]]]) -> Plan:
        share, over = divmod(foundry.view.global_batch, self.replicas)
        bounds = self.table.bounds
        pipelines = []
        for row in range(self.replicas):
            held = [Held(column[row][0], bounds[s], bounds[s + 1], "none") for s, column in enumerate(columns)]
            stages = [staged(foundry, each, column[row][1]) for each, column in zip(held, columns, strict=True)]
            sizes = micro_batches(share + (row < over), self.table.size)
            pipelines.append(Pipeline(stages=stages, micro_batches=sizes))
        kind = {"schedule": "1f1b"} if self.table.depth > 1 else {}
        return Plan.model_validate({"pipelines": pipelines, **kind})
