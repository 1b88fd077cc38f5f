"""Estimate: the noiseless step of any plan in milliseconds, for planners that weigh dozens of them.

Pipelines that differ in nothing but the names of their devices are computed once, by the recurrence over their pieces
of work; many equal micro-batches are computed as few, and the rest follow at the pace of the last ones. Transfers are
taken to be alone on their links, and the synchronisations of different runs of layers too; both make an estimate at
most too low. The engine (:mod:`.engine`) says what really comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from . import cost
from .crowding import Crowds, Lane
from .device import CollectiveKind, Link, Node
from .energy import HOUR_S, MILLION
from .line import Piecework, Way, ends_of
from .memory import groups, pieces, positions
from .network import network_of
from .plan import Pipeline, Plan, Stage
from .reductions import Line, Part, Reductions
from .schedule import deal_samples
from .times import layer_times
from .view import View

KEPT = 4
"""So many micro-batches per worker (and one more) of a run of equal ones are computed."""


@dataclass(frozen=True)
class Estimate:
    """What a plan is thought to take."""

    step_s: float
    usd_per_million_samples: float | None
    """None where a device in use has no price."""
    energy_j: float | None
    """Joules of a step of the devices in use; None where one names no power."""


def step_s(view: View, plan: Plan) -> float:
    """Estimated seconds of a step of a valid plan, without noise."""
    return Estimator(view).of(plan).step_s


def machine_figures(node: Node) -> tuple[object, ...]:
    """What distinguishes the links of a machine, as a key."""
    return link_figures(node.link), node.network and link_figures(node.network), node.nics, node.switch


def link_figures(link: Link) -> tuple[float, ...]:
    """What distinguishes a link, as a key: those with more bandwidth first."""
    return -link.bandwidth, -link.reverse_bandwidth, link.latency_s, float(link.shared)


class Estimator:
    """Estimates plans for one view; remembers what several plans have in common."""

    def __init__(self, view: View) -> None:
        self.view, self.workload = view, view.workload
        self.network = network_of(view.cluster)
        self.devices, self.kinds, self.node_of = view.cluster.by_name, view.cluster.kinds, view.cluster.node_of
        figures = [machine_figures(node) for node in view.cluster.nodes]
        first: dict[object, int] = {}
        self.machine = [first.setdefault(each, number) for number, each in enumerate(figures)]
        self.crowds = Crowds(self.network, self.workload)
        self._jobs: dict[object, tuple[float, float]] = {}
        self._own: dict[object, float] = {}
        self._last: tuple[Plan, list[Line]] | None = None
        self.reductions = Reductions(view, self._rest_s)

    def of(self, plan: Plan) -> Estimate:
        """The estimate of a valid plan."""
        lines = self._lines(plan)
        synced = self.reductions.synchronised(plan, lines)
        updates = {
            (n, s): self._update_s(plan, lines, n, s) for n, line in enumerate(lines) for s in range(len(line.ends))
        }
        updated: dict[tuple[int, int], float] = {}
        for (n, s), seconds in updates.items():
            place = n, positions(lines[n].first)[s]
            updated[place] = updated.get(place, 0.0) + seconds
        clock = max(synced[n, place] + seconds for (n, place), seconds in updated.items())
        if not plan.zero:  # whoever updates quickly begins the next step earlier
            both = max(synced.values()) - max(max(line.ends) for line in lines)
            own = (max(lines[n].ends) + seconds for (n, _), seconds in updated.items())
            clock = min(clock, both + max(own))
        gathered_s = self.reductions.gathered_s(plan, lines)
        sent = {part: each + gathered_s for part, each in self.reductions.exposed_s(lines, synced).items()}
        return self._priced(plan, lines, updates, sent, max(clock + gathered_s, self._loading_s(plan)))

    # Pipelines

    def _lines(self, plan: Plan) -> list[Line]:
        """Its pipelines by class; known where the plan before had the very same ones."""
        if self._last is not None:
            last, lines = self._last
            if plan.pipelines is last.pipelines and (plan.schedule, plan.zero) == (last.schedule, last.zero):
                return lines
        lines = self._computed_lines(plan)
        self._last = plan, lines
        return lines

    def _computed_lines(self, plan: Plan) -> list[Line]:
        found: dict[object, list[int]] = {}
        for number, pipeline in enumerate(plan.pipelines):
            found.setdefault(self._key(pipeline), []).append(number)
        lanes = self.crowds.lanes(plan)
        return [self._line(plan, numbers, lanes) for numbers in found.values()]

    def _key(self, pipeline: Pipeline) -> object:
        """Equal for pipelines on like devices, which are joined by like links."""
        local: dict[int, int] = {}
        node = self.node_of
        return tuple(pipeline.micro_batches), tuple(
            (
                (stage.first, stage.last, stage.recompute, stage.sequence_parallel, replica.share),
                tuple(
                    (self.kinds[n], local.setdefault(node[n], len(local)), self.machine[node[n]])
                    for n in replica.devices
                ),
            )
            for stage in pipeline.stages
            for replica in stage.replicas
        )

    def _line(self, plan: Plan, numbers: Sequence[int], every: Sequence[Mapping[Way, Lane]]) -> Line:
        pipelines = tuple(plan.pipelines[number] for number in numbers)
        lanes = _slowest(every[number] for number in numbers)
        pipeline = pipelines[0]
        ends = self._last_ends(plan, pipeline, lanes)
        busy = []
        for number in range(len(pipeline.stages)):
            jobs = [self._job_s(plan, pipeline, number, size) for size in Counter(pipeline.micro_batches)]
            counts = Counter(pipeline.micro_batches).values()
            busy.append(sum(count * sum(job) for count, job in zip(counts, jobs, strict=True)))
        return Line(pipelines, tuple(ends), tuple(busy))

    def _last_ends(self, plan: Plan, pipeline: Pipeline, lanes: Mapping[Way, Lane]) -> list[float]:
        """When the last backward pass of each stage ends."""
        workers = max(positions(pipeline)) + 1
        kept, left = _shortened(pipeline.micro_batches, KEPT * workers)
        first = ends = self._ends(plan, pipeline, kept, lanes)
        for size, more in left:
            if more:  # the pace of this run: what its last micro-batches add
                fewer = _without(kept, size, workers)
                pace = (max(first) - max(self._ends(plan, pipeline, fewer, lanes))) / workers
                ends = [end + pace * more for end in ends]
        return ends

    def _ends(self, plan: Plan, pipeline: Pipeline, sizes: list[int], lanes: Mapping[Way, Lane]) -> list[float]:
        """When the last backward pass of each stage ends, for so many micro-batches of some sizes."""
        short = pipeline.model_copy(update={"micro_batches": sizes})
        found = groups(short)
        first = {group.position: group for group in reversed(found)}
        edges = self.workload.stage_edges(tuple(stage.first for stage in pipeline.stages))
        waits = any(not self.devices[name].overlapping for name in pipeline.devices)
        work = Piecework(
            orders=[pieces(plan, short, first[place]) for place in range(len(first))],
            stages=[first[place].stages for place in range(len(first))],
            jobs=[
                {size: self._job_s(plan, pipeline, s, size) for size in set(sizes)} for s in range(len(pipeline.stages))
            ],
            messages={
                (backward, *ends): {
                    size: self._message(pipeline, *ends, size * edge.elements, lanes[backward, *ends].factor)
                    for size in set(sizes)
                }
                for edge in edges
                for backward, ends in ((False, (edge.source, edge.target)), (True, (edge.target, edge.source)))
            },
            sizes=sizes,
            sender_waits=waits,
            links={way: lane.links for way, lane in lanes.items()},
        )
        return ends_of(work)

    def _job_s(self, plan: Plan, pipeline: Pipeline, number: int, size: int) -> tuple[float, float]:
        """Forward and backward seconds of a micro-batch through a stage: its slowest replica."""
        stage = pipeline.stages[number]
        dealt = deal_samples(size, [replica.share for replica in stage.replicas])
        found = [
            self._replica_s(stage, replica.devices, samples)
            for replica, samples in zip(stage.replicas, dealt, strict=True)
            if samples
        ]
        forward, backward = max(each[0] for each in found), max(each[1] for each in found)
        return self._with_gathers(plan, stage, forward, backward) if plan.zero == 3 else (forward, backward)

    def _replica_s(self, stage: Stage, devices: Sequence[str], samples: int) -> tuple[float, float]:
        kinds = {self.kinds[name]: name for name in devices}
        where = (
            tuple(self.machine[self.node_of[name]] for name in devices),
            len({self.node_of[name] for name in devices}),
        )
        cut = stage.first, stage.last, stage.recompute, stage.sequence_parallel
        key = cut, samples, tuple(sorted(kinds)), len(devices), where if len(devices) > 1 else None
        if key not in self._jobs:
            self._jobs[key] = self._measure(stage, list(kinds.values()), devices, samples)
        return self._jobs[key]

    def _measure(self, stage: Stage, kinds: list[str], devices: Sequence[str], samples: int) -> tuple[float, float]:
        times = [cost.time_of(self.devices[name], self.workload, stage, samples, len(devices)) for name in kinds]
        forward, backward = max(each.forward_s for each in times), max(each.backward_s for each in times)
        if len(devices) == 1 or times[0].holds_collectives:
            return forward, backward
        sent = cost.tensor_collectives(self.workload, stage.first, stage.last, samples, recompute=stage.recompute)
        sums: tuple[CollectiveKind, ...] = (
            ("reduce_scatter", "all_gather") if stage.sequence_parallel else ("all_reduce",)
        )
        more = [
            sum(count * self.network.collective(kind, devices, size).alone_s for size, count in each for kind in sums)
            for each in sent
        ]
        return forward + more[0], backward + more[1]

    def _message(
        self, pipeline: Pipeline, source: int, target: int, elements: float, factor: float
    ) -> tuple[float, float]:
        """Seconds that a message keeps its way busy, and its latency: rank i sends its part to rank i."""
        here, there = (pipeline.stages[number].replicas[0].devices for number in (source, target))
        if here == there:
            return 0.0, 0.0
        size = elements * self.workload.element_bytes / max(len(here), len(there))
        transfer = self.network.point_to_point(here[0], there[0], size)
        return (transfer.alone_s - transfer.latency_s) * factor, transfer.latency_s

    # After the pipelines

    def _rest_s(self, pipeline: Pipeline, number: int, layer: int) -> float:
        """How long the last backward pass of a stage goes on after a layer's: its layers, one by one."""
        stage, size = pipeline.stages[number], pipeline.micro_batches[-1]
        dealt = deal_samples(size, [replica.share for replica in stage.replicas])
        return max(
            self._backward_s(stage, name, samples, len(replica.devices), layer) if samples else 0.0
            for replica, samples in zip(stage.replicas, dealt, strict=True)
            for name in {self.kinds[name]: name for name in replica.devices}.values()
        )

    def _backward_s(self, stage: Stage, name: str, samples: int, degree: int, layer: int) -> float:
        """Seconds of a stage's backward pass before a layer, on a device, its group's collectives left out."""
        device, cut = self.devices[name], stage.sequence_parallel
        sums = layer_times(device, self.workload, samples, degree, stage.recompute, sequence_parallel=cut).backward_sums
        return float(sums[layer] - sums[stage.first])

    def _update_s(self, plan: Plan, lines: Sequence[Line], n: int, s: int) -> float:
        """The optimizer step of a stage's slowest device."""
        stage = lines[n].first.stages[s]
        kinds = {
            self.kinds[name]: (name, len(replica.devices)) for replica in stage.replicas for name in replica.devices
        }
        runs = [(stage.first, stage.last, [(n, s)])]
        if plan.zero:
            runs = [run for run in self.reductions.segments(lines) if stage.first <= run[0] < stage.last]
        degree = len(stage.replicas[0].devices)
        total = 0.0
        for first, last, holders in runs:
            peers = [
                part for part in holders if len(lines[part[0]].first.stages[part[1]].replicas[0].devices) == degree
            ]
            share = 1 / max(self.reductions.count(lines, peers), 1) if plan.zero else 1.0
            total += max(
                cost.update_s(self.devices[name], self.workload, first, last, tensor_degree=count, share=share)
                for name, count in kinds.values()
            )
        return total

    def _with_gathers(self, plan: Plan, stage: Stage, forward: float, backward: float) -> tuple[float, float]:
        """ZeRO 3: the first layer's weights are waited for, the others flow beside the work."""
        groups = [
            replica.devices
            for pipeline in plan.pipelines
            for each in pipeline.stages
            if each.first == stage.first
            for replica in each.replicas
        ]
        degree = len(stage.replicas[0].devices)
        size = self.workload.shard_parameters(stage.first, stage.last, degree) * self.workload.element_bytes
        gather, scatter = (
            self.reductions.over(groups, kind, size).seconds for kind in ("all_gather", "reduce_scatter")
        )
        layers, both = stage.last - stage.first, gather + scatter
        return max(forward + gather / layers, gather), max(backward + both / layers, both)

    # The whole

    def _loading_s(self, plan: Plan) -> float:
        """Seconds that the slowest input pipeline takes to deliver a step's samples."""
        slowest = 0.0
        for number, node in enumerate(self.view.cluster.nodes):
            if node.loader_samples_per_s is not None:
                fed = [p.samples for p in plan.pipelines if self.node_of[p.devices[0]] == number]
                slowest = max(slowest, sum(fed) / node.loader_samples_per_s)
        return slowest

    def _worked_s(self, plan: Plan, line: Line, number: int) -> dict[str, float]:
        """Seconds of a step that each device of a stage works: less than its stage, where it waits for slower peers.

        What a tensor-parallel group sends counts as far as a device takes power for it.
        """
        pipeline, stage = line.first, line.first.stages[number]
        names = [name for replica in stage.replicas for name in replica.devices]
        alone = all(len(replica.devices) == 1 for replica in stage.replicas)
        if alone and plan.zero < 3 and len({self.kinds[name] for name in names}) == 1:
            return dict.fromkeys(names, line.busy_s[number])
        worked = dict.fromkeys(names, 0.0)
        for size, count in Counter(pipeline.micro_batches).items():
            dealt = deal_samples(size, [replica.share for replica in stage.replicas])
            for replica, samples in zip(stage.replicas, dealt, strict=True):
                if samples:
                    together = sum(self._replica_s(stage, replica.devices, samples))
                    own = {name: self._own_s(stage, name, samples, len(replica.devices)) for name in replica.devices}
                    sent = max(together - max(own.values()), 0.0)
                    for name, seconds in own.items():
                        worked[name] += count * (seconds + self.devices[name].communication_power_share * sent)
        return worked

    def _own_s(self, stage: Stage, name: str, samples: int, degree: int) -> float:
        """Forward and backward seconds of a device in a group of so many, its group's collectives left out."""
        key = stage.first, stage.last, stage.recompute, stage.sequence_parallel, samples, degree, self.kinds[name]
        if key not in self._own:
            times = cost.time_of(self.devices[name], self.workload, stage, samples, degree)
            self._own[key] = times.forward_s + times.backward_s
        return self._own[key]

    def _priced(
        self,
        plan: Plan,
        lines: Sequence[Line],
        updates: Mapping[Part, float],
        sent: Mapping[Part, float],
        total: float,
    ) -> Estimate:
        """Money and joules of a step that takes so long; what is left out need not be rented."""
        usd: float | None = 0.0
        joules: float | None = 0.0
        for n, line in enumerate(lines):
            busy: dict[str, float] = {}
            for s, place in enumerate(positions(line.first)):
                for name, seconds in self._worked_s(plan, line, s).items():
                    first = sent[n, place] * self.devices[name].communication_power_share
                    busy[name] = busy.get(name, first) + seconds + updates[n, s]
            for name, seconds in busy.items():
                device, count = self.devices[name], len(line.pipelines)
                price = device.price_usd_per_hour
                usd = None if usd is None or price is None else usd + count * price
                if device.idle_w is None or device.max_w is None:
                    joules = None
                elif joules is not None:
                    joules += count * (device.idle_w * total + (device.max_w - device.idle_w) * min(seconds, total))
        samples = self.workload.global_batch
        return Estimate(total, usd if usd is None else usd / HOUR_S * total / samples * MILLION, joules)


def _slowest(lanes: Iterable[Mapping[Way, Lane]]) -> dict[Way, Lane]:
    """Per way, of like pipelines, the lane that is most crowded."""
    found: dict[Way, Lane] = {}
    for each in lanes:
        for way, lane in each.items():
            if way not in found or lane.factor > found[way].factor:
                found[way] = lane
    return found


def _shortened(sizes: Sequence[int], most: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Micro-batches with runs of equal ones cut to ``most`` entries, and per run its size and how many were cut."""
    kept, left = [], []
    for size, count in Counter(sizes).items():
        kept += [size] * min(count, most)
        left.append((size, max(0, count - most)))
    return kept, left


def _without(sizes: list[int], size: int, count: int) -> list[int]:
    """The list with so many entries of a size less."""
    place = sizes.index(size)
    return sizes[:place] + sizes[place + count :]
