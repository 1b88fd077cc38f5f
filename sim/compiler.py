"""Compiler: a plan and its scenario become the program that the engine runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from ..results.record import Fidelity
from . import cost, memory
from .crowding import paired
from .device import CollectiveKind, Device
from .fold import crowded, even, images, meeting, on_links_of, together
from .memory import Group, groups, pieces
from .network import NOTHING, Transfer, network_of
from .plan import Plan, Stage
from .program import Beside, Gather, Job, Loader, Program, Send, Sync, Worker
from .pull import pooled
from .roofline import LEAST_S
from .schedule import deal_samples
from .spec import Scenario
from .staging import with_staging
from .waking import with_waking


@dataclass(slots=True)
class Place:
    """A replica of a stage while the program is being put together."""

    pipeline: int
    stage: int
    replica: int
    worker: int
    chunk: int
    copies: tuple[tuple[str, ...], ...]
    """The devices, and those of each place that this one stands for."""
    samples: tuple[int, ...]
    """Per micro-batch."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of its own devices."""
        return self.copies[0]


def compile_plan(scenario: Scenario, plan: Plan, *, apart: bool = False, folded: bool = False) -> Program:
    """Put a checked plan's program together.

    Args:
        scenario: whose devices and links the plan uses.
        plan: as :meth:`Plan.check` accepts it.
        apart: whether every device is a member of its own (noise makes equal devices differ).
        folded: whether one of the pipelines that are images of each other stands for all of them (without noise).
    """
    if plan.dispatch == "pull":
        return replace(_Compiler(scenario, pooled(plan), apart=True, folded=False).program(), pulled=True)
    devices = scenario.cluster.by_name
    return with_waking(with_staging(_compiled(scenario, plan, apart=apart, folded=folded), devices), devices)


def _compiled(scenario: Scenario, plan: Plan, *, apart: bool, folded: bool) -> Program:
    compiler = _Compiler(scenario, plan, apart=apart, folded=folded)
    program = compiler.program()
    if not program.stands_for:
        return program
    copies = [place.copies for place in compiler.places]
    met = not compiler.crowded or together(program, copies, compiler.network)
    # Images that share a loader take turns.
    if program.loaders or not met or not even(program, copies, compiler.network):
        return _Compiler(scenario, plan, apart=apart, folded=False).program()
    return on_links_of(program, copies, compiler.network)


Run = tuple[int, int, list[Place]]
"""Layers from the first (included) to the last (not), and the places that hold them."""


class _Compiler:
    """Puts a program together: places, then the jobs of each worker, then what they exchange."""

    def __init__(self, scenario: Scenario, plan: Plan, *, apart: bool, folded: bool) -> None:
        self.scenario = scenario
        self.workload = scenario.workload
        self.plan = plan.normalize()
        self.apart = apart
        self.crowded = crowded(scenario.cluster)
        self.devices = scenario.cluster.by_name
        self.network = network_of(scenario.cluster)
        self.channels: dict[tuple[int, int], int] = {}
        self.fidelities: set[Fidelity] = set()
        self.workers: list[tuple[int, Group]] = []
        self.places: list[Place] = []
        every = [[number] for number in range(len(self.plan.pipelines))]
        self.stands_for: dict[str, str] = {}
        for numbers in images(self.plan, scenario.cluster, self.network) if folded else every:
            self._place(numbers)
        self.by_stage: dict[tuple[int, int], list[Place]] = {}
        self.by_worker: list[list[Place]] = [[] for _ in self.workers]
        for place in self.places:
            self.by_stage.setdefault((place.pipeline, place.stage), []).append(place)
            self.by_worker[place.worker].append(place)
        self.segments = self._segments()

    def _place(self, numbers: list[int]) -> None:
        """The workers of a pipeline, which stands for some others too."""
        pipeline = self.plan.pipelines[numbers[0]]
        images = [self.plan.pipelines[number] for number in numbers]
        dealt: list[list[list[int]]] = []
        for each in pipeline.stages:
            shares = [replica.share for replica in each.replicas]
            of_size = {size: deal_samples(size, shares) for size in dict.fromkeys(pipeline.micro_batches)}
            dealt.append([of_size[size] for size in pipeline.micro_batches])
        for group in groups(pipeline):
            copies = tuple(tuple(each.stages[group.stages[0]].replicas[group.replicas[0]].devices) for each in images)
            for chunk, (stage, rank) in enumerate(zip(group.stages, group.replicas, strict=True)):
                samples = tuple(each[rank] for each in dealt[stage])
                self.places.append(Place(numbers[0], stage, rank, len(self.workers), chunk, copies, samples))
            self.workers.append((numbers[0], group))
            for copy in copies[1:]:
                self.stands_for.update(zip(copy, copies[0], strict=True))

    def program(self) -> Program:
        """The whole program."""
        syncs: list[Sync] = []
        beside: dict[int, list[Beside]] = {}
        after: dict[int, list[int]] = {}
        final: dict[int, list[int]] = {}
        gathers: dict[int, list[Gather]] = {}
        if self.plan.zero == 3:
            gathers = self._gathers()
        self._gradient_syncs(syncs, beside, after, final)
        self._tied_syncs(syncs, after)
        loaders = self._loaders()
        workers = []
        for index in range(len(self.workers)):
            workers.append(
                self._worker(
                    index,
                    beside=tuple(beside.get(index, ())),
                    after=tuple(after.get(index, ())),
                    final=tuple(final.get(index, ())),
                    gathers=tuple(gathers.get(index, ())),
                    loader=loaders[1].get(index),
                )
            )
        return Program(
            workers=tuple(workers),
            channels=len(self.channels),
            syncs=tuple(syncs),
            loaders=tuple(loaders[0]),
            capacities=tuple(self.network.capacities),
            sync_every=self.plan.sync_every,
            stands_for=self.stands_for,
            fidelity=next(each for each in WEAKEST_FIRST if each in self.fidelities),
        )

    def _worker(
        self,
        index: int,
        *,
        beside: tuple[Beside, ...],
        after: tuple[int, ...],
        final: tuple[int, ...],
        gathers: tuple[Gather, ...],
        loader: int | None,
    ) -> Worker:
        places = self.by_worker[index]
        number, group = self.workers[index]
        members = self._members(group.devices)
        # By the size of the whole micro-batch: which replicas of other stages have the same samples depends on it too.
        sizes = self.plan.pipelines[number].micro_batches
        distinct = list(dict.fromkeys(sizes))
        classes = {size: rank for rank, size in enumerate(distinct)}
        first = [sizes.index(size) for size in distinct]
        jobs = tuple(
            tuple(tuple(self._job(place, members, micro_batch, backward) for micro_batch in first) for place in places)
            for backward in (False, True)
        )
        return Worker(
            members=members,
            pipeline=number,
            position=group.position,
            stages=tuple(place.stage for place in places),
            pieces=pieces(self.plan, self.plan.pipelines[number], group),
            classes=tuple(classes[size] for size in sizes),
            jobs=(jobs[0], jobs[1]),
            optimizer_s=tuple(self._update_s(places, member[0]) for member in members),
            overlapping=all(self.devices[name].overlapping for name in places[0].devices),
            beside=beside,
            after=after,
            final=final,
            gathers=gathers,
            loader=loader,
            copies=len(places[0].copies),
        )

    def _members(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        if self.apart:
            return tuple((name,) for name in names)
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(self.scenario.cluster.kinds[name], []).append(name)
        return tuple(tuple(each) for each in groups.values())

    def _stage(self, place: Place) -> Stage:
        return self.plan.pipelines[place.pipeline].stages[place.stage]

    def _job(self, place: Place, members: tuple[tuple[str, ...], ...], number: int, backward: bool) -> Job:
        stage, samples = self._stage(place), place.samples[number]
        if samples == 0:
            return Job(compute_s=(0.0,) * len(members), communication_s=0.0, samples=0, held_bytes=0.0, guessed_s=0.0)
        times = [self._time(self.devices[member[0]], place, samples) for member in members]
        self.fidelities.update(each.fidelity for each in times)
        communication, guessed = (0.0, 0.0) if times[0].holds_collectives else self._tensor_s(place, samples, backward)
        seconds = [each.backward_s if backward else each.forward_s for each in times]
        share = max(each.guessed_s / max(each.forward_s + each.backward_s, LEAST_S) for each in times)
        needs, sends = self._messages(place, number, backward)
        return Job(
            compute_s=tuple(seconds),
            communication_s=communication,
            samples=samples,
            held_bytes=memory.held_per_micro_batch(self.workload, stage, samples, len(place.devices)),
            guessed_s=share * max(seconds) + guessed,
            needs=needs,
            sends=sends,
        )

    def _time(self, device: Device, place: Place, samples: int) -> cost.StageTime:
        return cost.time_of(device, self.workload, self._stage(place), samples, len(place.devices))

    def _tensor_s(self, place: Place, samples: int, backward: bool) -> tuple[float, float]:
        """Seconds of a piece's tensor-parallel collectives with nobody else on the links, and how many are guessed."""
        if len(place.devices) == 1:
            return 0.0, 0.0
        stage = self._stage(place)
        sizes = cost.tensor_collectives(self.workload, stage.first, stage.last, samples, recompute=stage.recompute)[
            backward
        ]
        kinds: tuple[CollectiveKind, ...] = (
            ("reduce_scatter", "all_gather") if stage.sequence_parallel else ("all_reduce",)
        )
        transfers = [
            (count, self.network.collective(kind, place.devices, size)) for size, count in sizes for kind in kinds
        ]
        guessed = sum(count * transfer.alone_s for count, transfer in transfers if transfer.fidelity == "datasheet")
        return sum(count * transfer.alone_s for count, transfer in transfers), guessed

    def _messages(self, place: Place, number: int, backward: bool) -> tuple[int, tuple[Send, ...]]:
        """How many messages a piece waits for, and what it sends when it is done."""
        pipeline = self.plan.pipelines[place.pipeline]
        bounds = tuple(stage.first for stage in pipeline.stages)
        forward_edges = self.workload.stage_edges(bounds)
        ahead = [(edge.target, edge.elements) for edge in forward_edges if edge.source == place.stage]
        behind = [(edge.source, edge.elements) for edge in forward_edges if edge.target == place.stage]
        sources, targets = (ahead, behind) if backward else (behind, ahead)
        needs = sum(len(self._overlaps(place, stage, number)) for stage, _ in sources)
        sends = [
            self._send(place, other, elements * samples * self.workload.element_bytes)
            for stage, elements in targets
            for other, samples in self._overlaps(place, stage, number)
        ]
        return needs, tuple(sends)

    def _overlaps(self, place: Place, stage: int, number: int) -> list[tuple[Place, int]]:
        """The replicas of another stage that hold samples of the same micro-batch, and how many of this place's."""
        own = self._range(place, number)
        found = []
        for other in self.by_stage[place.pipeline, stage]:
            low, high = self._range(other, number)
            common = min(high, own[1]) - max(low, own[0])
            if common > 0:
                found.append((other, common))
        return found

    def _range(self, place: Place, number: int) -> tuple[int, int]:
        before = sum(
            each.samples[number] for each in self.by_stage[place.pipeline, place.stage] if each.replica < place.replica
        )
        return before, before + place.samples[number]

    def _send(self, place: Place, other: Place, size_bytes: float) -> Send:
        channel = self.channels.setdefault((place.worker, other.worker), len(self.channels))
        return Send(channel, other.worker, other.chunk, self._between(place, other, size_bytes))

    def _between(self, place: Place, other: Place, size_bytes: float) -> Transfer:
        """A message between two groups: rank i sends its part of it to rank i, all at once.

        Every rank holds the whole of it, and a part each is enough: scatter/gather (Narayanan et al. 2021, section
        4.1). What the other side then gathers inside its machine is left out.
        """
        if place.devices == other.devices:
            return NOTHING
        size_bytes /= max(len(place.devices), len(other.devices))
        return self._crowd(
            (place, other),
            lambda here, there: self._merged(
                self.network.point_to_point(source, target, size_bytes) for source, target in paired(here, there)
            ),
        )

    def _crowd(self, places: Sequence[Place], transfer: Callable[..., Transfer]) -> Transfer:
        """A transfer between places, with what the same one of their images loads onto its links.

        ``transfer`` makes it from the names of the devices of each place.
        """
        own = transfer(*[place.devices for place in places])
        if not self.crowded or len(places[0].copies) == 1:
            return own
        uses = dict(own.uses)
        near = meeting(own, [place.copies for place in places], self.network)
        for copy in near:
            other = transfer(*[place.copies[copy] for place in places])
            uses.update({resource: uses[resource] + weight for resource, weight in other.uses if resource in uses})
        return self._with_uses(own, uses) if near else own

    def _with_uses(self, transfer: Transfer, uses: dict[int, float]) -> Transfer:
        """A transfer with more weight on its links, and as slow as these make it."""
        capacities = self.network.capacities
        rate = max([weight / capacities[resource] for resource, weight in uses.items()], default=0.0)
        alone_s = max(transfer.alone_s, transfer.latency_s + transfer.volume_bytes * rate)
        return replace(transfer, uses=tuple(sorted(uses.items())), alone_s=alone_s)

    def _update_s(self, places: Sequence[Place], name: str) -> float:
        """The optimizer step of a device over all its chunks."""
        return sum(
            cost.update_s(
                self.devices[name],
                self.workload,
                first,
                last,
                tensor_degree=len(place.devices),
                share=self._state_share(place, name, holders),
            )
            for place in places
            for first, last, holders in self._runs(place)
        )

    def _runs(self, place: Place) -> list[Run]:
        """The layers of a place in runs that the same places hold; one run where nothing is sharded over them."""
        stage = self._stage(place)
        if self.plan.zero == 0:
            return [(stage.first, stage.last, [place])]
        return [run for run in self.segments if stage.first <= run[0] < stage.last]

    def _state_share(self, place: Place, name: str, holders: Sequence[Place]) -> float:
        """Share of what is sharded over the holders of some layers that a device holds and updates."""
        if self.plan.zero == 0:
            return 1.0
        if self.plan.state_shares is not None:
            return self.plan.state_shares.get(name, 0.0)
        return 1 / _count(each for each in holders if len(each.devices) == len(place.devices))

    def _holds(self, place: Place, layer: int) -> bool:
        stage = self._stage(place)
        return stage.first <= layer < stage.last

    def _segments(self) -> list[Run]:
        """Runs of layers that the same places hold, the last layers first: their gradients are complete first."""
        cuts = sorted({bound for place in self.places for bound in (self._stage(place).first, self._stage(place).last)})
        return [
            (first, last, [place for place in self.places if self._holds(place, first)])
            for first, last in reversed(list(pairwise(cuts)))
        ]

    def _gradient_syncs(
        self,
        syncs: list[Sync],
        beside: dict[int, list[Beside]],
        after: dict[int, list[int]],
        final: dict[int, list[int]],
    ) -> None:
        zero = self.plan.zero
        merged: dict[tuple[tuple[str, ...], ...], list[Run]] = {}
        for first, last, holders in self.segments:
            if _count(holders) > 1:
                merged.setdefault(tuple(place.devices for place in holders), []).append((first, last, holders))
        for runs in merged.values():
            holders = runs[0][2]
            spans = [(first, last) for first, last, _ in runs]
            workers = tuple(dict.fromkeys(place.worker for place in holders))
            weights = sum(self._shard_bytes(first, last, holders) for first, last in spans)
            if weights == 0:
                continue  # frozen layers have nothing to synchronise
            if self.plan.sync_every > 1:
                self._add(syncs, final, workers, self._over(holders, "all_reduce", weights), every=self.plan.sync_every)
                continue
            if zero in (1, 2):
                transfer = scaled(self._over(holders, "all_gather", weights), self._unevenness(holders))
                self._add(syncs, final, workers, transfer)
            if zero == 3:
                continue
            kind: CollectiveKind = "reduce_scatter" if zero else "all_reduce"
            overlapped = self.plan.overlap and all(
                self.devices[name].overlapping for place in holders for name in place.devices
            )
            if not overlapped:
                transfer = scaled(self._over(holders, kind, weights), self._unevenness(holders) if zero else 1.0)
                self._add(syncs, after, workers, transfer)
                continue
            for run in runs:
                self._bucket_syncs(syncs, beside, workers, kind, run)

    def _bucket_syncs(
        self,
        syncs: list[Sync],
        beside: dict[int, list[Beside]],
        workers: tuple[int, ...],
        kind: CollectiveKind,
        run: Run,
    ) -> None:
        """A run's gradients beside the backward pass: each bucket as soon as it is complete."""
        first, last, places = run
        for low, high in self._buckets(first, last, places):
            size = self._shard_bytes(low, high, places)
            transfer = scaled(self._over(places, kind, size), self._unevenness(places) if self.plan.zero else 1.0)
            syncs.append(Sync(workers, transfer, beside=True))
            for place in places:
                rest = self._rest_s(place, low)
                beside.setdefault(place.worker, []).append(Beside(len(syncs) - 1, place.chunk, rest))

    def _add(
        self,
        syncs: list[Sync],
        where: dict[int, list[int]],
        workers: tuple[int, ...],
        transfer: Transfer,
        every: int = 1,
    ) -> None:
        syncs.append(Sync(workers, transfer, every))
        for worker in workers:
            where.setdefault(worker, []).append(len(syncs) - 1)

    def _buckets(self, first: int, last: int, holders: list[Place]) -> Iterable[tuple[int, int]]:
        """Runs of layers of at least a bucket's gradients each, the last layers first."""
        least, high, size = self.plan.bucket_mib * 2**20, last, 0.0
        for layer in range(last - 1, first - 1, -1):
            size += self._shard_bytes(layer, layer + 1, holders)
            if size >= least or layer == first:
                if size > 0:
                    yield layer, high
                high, size = layer, 0.0

    def _shard_bytes(self, first: int, last: int, holders: list[Place]) -> float:
        """Gradient bytes that one tensor-parallel rank holds of a run of layers."""
        degree = max(len(place.devices) for place in holders)
        return self.workload.shard_parameters(first, last, degree) * self.workload.element_bytes

    def _rest_s(self, place: Place, layer: int) -> float:
        """How long the backward of a place's last micro-batch still goes on after a layer's."""
        stage, samples = self._stage(place), place.samples[-1]
        if samples == 0:
            return 0.0
        return max(
            sum(
                cost.layer_backward_s(
                    self.devices[name],
                    self.workload,
                    each,
                    samples,
                    tensor_degree=len(place.devices),
                    sequence_parallel=stage.sequence_parallel,
                    recompute=stage.recompute,
                )
                for each in range(stage.first, layer)
            )
            for name in {self.scenario.cluster.kinds[name]: name for name in place.devices}.values()
        )

    def _merged(self, transfers: Iterable[Transfer]) -> Transfer:
        """Transfers of equal size that run side by side, as one: they share the links that they have in common."""
        each = list(transfers)
        if len(each) == 1:
            return each[0]
        uses: dict[int, float] = {}
        for transfer in each:
            for resource, weight in transfer.uses:
                uses[resource] = uses.get(resource, 0.0) + weight
        return self._with_uses(max(each, key=lambda transfer: transfer.alone_s), uses)

    def _over(self, holders: Sequence[Place], kind: CollectiveKind, size_bytes: float) -> Transfer:
        """A collective over places, every tensor-parallel rank in a ring of its own, all at once."""
        shards = max(len(place.devices) for place in holders)
        return self._merged(
            self.network.collective(
                kind,
                [copy[rank * len(copy) // shards] for place in holders for copy in place.copies],
                size_bytes,
            )
            for rank in range(shards)
        )

    def _unevenness(self, holders: Sequence[Place]) -> float:
        """How much longer than equal ones the largest share makes a ring of unequal chunks."""
        if self.plan.state_shares is None:
            return 1.0
        shares = (self.plan.state_shares.get(name, 0.0) for place in holders for name in place.devices)
        return max(shares) * _count(holders)

    def _gathers(self) -> dict[int, list[Gather]]:
        """ZeRO-3: per worker and chunk, how its weights come together for each piece."""
        found: dict[int, list[Gather]] = {}
        groups: dict[tuple[int, int], list[Place]] = {}
        for place in self.places:
            stage = self._stage(place)
            groups.setdefault((stage.first, stage.last), []).append(place)
        for number, ((first, last), places) in enumerate(groups.items()):
            size = self._shard_bytes(first, last, places)
            gather = scaled(self._over(places, "all_gather", size), self._unevenness(places))
            scatter = scaled(self._over(places, "reduce_scatter", size), self._unevenness(places))
            both = serial(gather, scatter)
            for place in places:
                each = Gather(number, len(places), gather, both, last - first)
                found.setdefault(place.worker, []).append(each)
        return found

    def _tied_syncs(self, syncs: list[Sync], after: dict[int, list[int]]) -> None:
        """Gradients of parameters that two stages share: an all-reduce between them, in every pipeline."""
        index = {layer.name: number for number, layer in enumerate(self.workload.layers)}
        ties = [
            (number, index[layer.tied_with])
            for number, layer in enumerate(self.workload.layers)
            if layer.tied_with is not None
        ]
        for first, second in ties:
            for pipeline in dict.fromkeys(place.pipeline for place in self.places):
                holders = [
                    place
                    for place in self.places
                    if place.pipeline == pipeline and (self._holds(place, first) or self._holds(place, second))
                ]
                workers = tuple(dict.fromkeys(place.worker for place in holders))
                stages = {place.stage for place in holders}
                if len(stages) == 2 and len(workers) > 1:
                    size = self._shard_bytes(second, second + 1, holders)
                    self._add(syncs, after, workers, self._crowd(holders, partial(self._side_by_side, size)))

    def _side_by_side(self, size_bytes: float, *groups: Sequence[str]) -> Transfer:
        """An all-reduce between groups of devices, every rank with its own likes."""
        return self._merged(
            self.network.collective("all_reduce", [group[rank] for group in groups], size_bytes)
            for rank in range(min(map(len, groups)))
        )

    def _loaders(self) -> tuple[list[Loader], dict[int, int]]:
        """The input pipelines of nodes that limit their rate, and the workers that each feeds."""
        loaders: list[Loader] = []
        fed: dict[int, int] = {}
        first = [place for place in self.places if place.stage == 0]
        for node in self.scenario.cluster.nodes:
            if node.loader_samples_per_s is None:
                continue
            names = {device.name for device in node.devices}
            here = [place for place in first if place.devices[0] in names]
            queue = sorted(
                (number, place.worker, samples)
                for place in here
                for number, samples in enumerate(place.samples)
                if samples
            )
            if queue:
                fed.update(dict.fromkeys((place.worker for place in here), len(loaders)))
                entries = tuple((worker, number, samples) for number, worker, samples in queue)
                loaders.append(Loader(node.loader_samples_per_s, entries))
        return loaders, fed


WEAKEST_FIRST: tuple[Fidelity, ...] = ("datasheet", "calibrated", "profiled", "measured")


def _count(places: Iterable[Place]) -> int:
    """Places, with those that they stand for."""
    return sum(len(place.copies) for place in places)


def scaled(transfer: Transfer, factor: float) -> Transfer:
    """The same with another volume: shards of unequal size take as long as the largest."""
    if factor == 1.0:
        return transfer
    volume = transfer.volume_bytes * factor
    alone_s = transfer.latency_s + (transfer.alone_s - transfer.latency_s) * factor
    return replace(transfer, volume_bytes=volume, alone_s=alone_s)


def serial(first: Transfer, second: Transfer) -> Transfer:
    """Two transfers over the same links, one after the other."""
    return replace(
        first,
        latency_s=first.latency_s + second.latency_s,
        volume_bytes=first.volume_bytes + second.volume_bytes,
        alone_s=first.alone_s + second.alone_s,
    )
