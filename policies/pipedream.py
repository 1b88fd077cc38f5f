"""PipeDream's planner: stages with replicas, by dynamic programming level by level of the machines' hierarchy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from ..sim.network import network_of
from ..sim.noise import Floats
from ..sim.plan import Infeasible, Pipeline, Plan, PlanError, Replica, Stage
from ..sim.spec import Scenario
from ..sim.times import layer_times
from ..sim.view import View
from ._base import Range
from ._neighbours import neighbours
from ._pipeline import evenly
from ._stages import Label, labels_of, room_of


class Level(NamedTuple):
    """One level of the hierarchy: so many components side by side, and the bytes per second between them."""

    width: int
    bandwidth: float


class Piece(NamedTuple):
    """Layers of one stage, and the devices that hold them."""

    first: int
    last: int
    devices: tuple[int, ...]
    """Numbers in the order of the hierarchy: the components of a component are neighbours."""

    @property
    def replicas(self) -> int:
        """How many devices they are."""
        return len(self.devices)


@dataclass(frozen=True, kw_only=True)
class PipeDream:
    """Cut the model into stages and give each so many replicas that the slowest is as fast as can be, level by level.

    The planner of PipeDream: with A^0(i, j) the seconds of layers i to j on one device, level k of the machines'
    hierarchy has, for m of the components of the level below,

        T^k(i, j, m) = max(A^(k-1)(i, j, all), 2 (m - 1) |w| / B_k) / m     one stage with m replicas, gradients beside
        A^k(i, j, m) = min over s and n of max(A^k(i, s, m - n), 2 |a_s| / B_k, T^k(s + 1, j, n))

    As in the paper, devices are taken to be alike within the cluster (where they are not, all as slow as the slowest),
    memory is not weighed in the choice, every mini-batch is synchronised (here a mini-batch is what one replica works
    on at once, and gradients are synchronised once a step), and only the bottleneck counts, not filling and draining
    (here the pipeline is flushed at every step's end). Machines with unequal numbers of devices make one level. The
    paper's weight stashing has no counterpart: plans are synchronous, 1F1B with a flush.

    Paper: Narayanan et al. 2019, PipeDream: Generalized Pipeline Parallelism for DNN Training (SOSP 2019), section 3.1.
    """

    name: ClassVar[str] = "pipedream"
    source: ClassVar[str] = (
        "PipeDream's partitioning algorithm (Narayanan et al. 2019, SOSP, section 3.1: recalled; "
        "its authors' optimizer_graph_hierarchical.py was read)"
    )
    rigid: ClassVar[bool] = True

    micro_batch: Annotated[int, Range(1, 65_536, log=True)] = 1
    """Samples that a replica of the widest stage works on at once; the workload's own limit holds too."""

    def allocate(self, view: View) -> Plan:
        """The stages of the programme, replicas on neighbouring devices.

        Raises:
            Infeasible: the batch is smaller than the replicas, or a stage does not fit into its device.
        """
        labels = labels_of(view)
        machines = neighbours(view)
        widths = levels(view, machines)
        limit = view.workload.max_micro_batch or view.global_batch
        if self.micro_batch < 1:
            raise Infeasible("policy.pipedream.micro_batch", f"is {self.micro_batch}", "at least 1")
        program = Program(*tables(view, labels, min(self.micro_batch, limit)), widths)
        names = [name for machine in machines for name in machine]
        plan = laid_out(view, program.stages, names, self.micro_batch)
        try:
            plan.check(Scenario(name=self.name, cluster=view.cluster, workload=view.workload))
        except PlanError as error:
            raise Infeasible(error.path, error.problem, error.mend) from error
        return plan


def levels(view: View, groups: Sequence[Sequence[str]]) -> list[Level]:
    """Devices in a machine, then machines; one level where machines have unequal numbers of devices."""
    inside = [_bandwidth(view, names[:2]) for names in groups if len(names) > 1]
    between = [_bandwidth(view, [groups[0][0], other[0]]) for other in groups[1:]]
    if len({len(names) for names in groups}) > 1:
        return [Level(sum(map(len, groups)), min(inside + between))]
    found = [Level(len(groups[0]), min(inside, default=1.0)), Level(len(groups), min(between, default=1.0))]
    return [level for level in found if level.width > 1] or [Level(1, 1.0)]


def _bandwidth(view: View, names: Sequence[str]) -> float:
    """Bytes per second of a large message."""
    size = 2.0**30
    sent = network_of(view.cluster).point_to_point(names[0], names[1], size)
    return size / max(sent.alone_s - sent.latency_s, 1e-30)


def tables(view: View, labels: Sequence[Label], micro_batch: int) -> tuple[Floats, Floats, Floats]:
    """Seconds and gradient bytes of layers [i, j), and per bound the bytes that cross it, for one micro-batch."""
    workload = view.workload
    seconds = np.max([layer_times(each.device, workload, micro_batch).passes for each in labels], axis=0)
    gradients = [workload.element_bytes * layer.trainable_parameters for layer in workload.layers]
    sums = np.concatenate(([0.0], np.cumsum(np.array(gradients, dtype=float))))
    crossing = room_of(workload, "none").crossing * micro_batch * workload.element_bytes
    return seconds, np.triu(sums[None, :] - sums[:, None]), crossing


class Program:
    """The dynamic programme over a hierarchy of levels.

    Args:
        seconds: of layers [i, j) on one device, forward and backward, of one mini-batch.
        weights: bytes of the gradients of layers [i, j).
        crossing: bytes of the activations at each bound.
        hierarchy: the levels, the innermost first.
    """

    def __init__(self, seconds: Floats, weights: Floats, crossing: Floats, hierarchy: Sequence[Level]) -> None:
        self.weights, self.crossing, self.hierarchy = weights, crossing, hierarchy
        below = np.where(np.tri(len(seconds), dtype=bool), np.inf, seconds)
        self.wholes: list[Floats] = []
        """Per level, T: one stage [i, j) with m replicas, by m - 1."""
        self.tables: list[Floats] = []
        """Per level, A: the best pipeline of [i, j) on m components, by m - 1."""
        for level in hierarchy:
            self._solve(below, level)
            below = self.tables[-1][level.width - 1]

    def _solve(self, below: Floats, level: Level) -> None:
        numbers = range(1, level.width + 1)
        whole = [np.maximum(below, 2 * (m - 1) * self.weights / level.bandwidth) / m for m in numbers]
        best: list[Floats] = []
        sends = 2 * self.crossing / level.bandwidth
        for m in numbers:
            found = whole[m - 1]
            for n in range(1, m):
                ahead = np.maximum(best[m - n - 1], sends[None, :])
                found = np.minimum(found, _joined(ahead, whole[n - 1]))
            best.append(found)
        self.wholes.append(np.array(whole))
        self.tables.append(np.array(best))

    @property
    def bottleneck_s(self) -> float:
        """Seconds of a mini-batch at the slowest stage of the best pipeline."""
        return float(self.tables[-1][-1][0, -1])

    @cached_property
    def stages(self) -> list[Piece]:
        """The stages of the best pipeline over all levels, from the first layer on."""
        everybody = range(math.prod(level.width for level in self.hierarchy))
        return list(self._pieces(len(self.hierarchy) - 1, 0, len(self.crossing) - 1, [everybody]))

    def _pieces(self, number: int, first: int, last: int, components: Sequence[range]) -> Iterator[Piece]:
        """The stages of layers [first, last), which each of some components of a level runs as its own pipeline."""
        if number < 0:
            yield Piece(first, last, tuple(component[0] for component in components))
            return
        size, taken = len(components[0]) // self.hierarchy[number].width, 0
        for begin, end, replicas in self._split(number, first, last):
            places = range(taken, taken + replicas)
            inner = [each[place * size : (place + 1) * size] for each in components for place in places]
            yield from self._pieces(number - 1, begin, end, inner)
            taken += replicas

    def _split(self, number: int, first: int, last: int) -> list[tuple[int, int, int]]:
        """Stages of one level, from the last to the first, then turned round; one stage where that is as good."""
        best, whole, level = self.tables[number], self.wholes[number], self.hierarchy[number]
        sends, m = 2 * self.crossing / level.bandwidth, level.width
        found: list[tuple[int, int, int]] = []
        while best[m - 1][first, last] < whole[m - 1][first, last]:
            choices = [
                (max(best[m - n - 1][first, cut], sends[cut], whole[n - 1][cut, last]), n, cut)
                for n in range(1, m)
                for cut in range(first + 1, last)
            ]
            _, n, cut = min(choices)
            found.append((cut, last, n))
            m, last = m - n, cut
        return [(first, last, m), *reversed(found)]


def _joined(ahead: Floats, behind: Floats) -> Floats:
    """Entry [i, j]: the least over s of the larger of ahead[i, s] and behind[s, j]."""
    return np.array([np.maximum(row[:, None], behind).min(axis=0) for row in ahead])


def laid_out(view: View, stages: Sequence[Piece], names: Sequence[str], micro_batch: int) -> Plan:
    """The plan of some stages: as many pipelines as all have replicas, or one whose stages have several.

    Raises:
        Infeasible: fewer samples than replicas.
    """
    widest = max(piece.replicas for piece in stages)
    samples, limit = view.global_batch, view.workload.max_micro_batch or view.global_batch
    if samples < widest:
        problem = f"a stage of {widest} replicas is the fastest, and there are {samples} samples"
        raise Infeasible("workload.global_batch", problem, "use a larger batch, or fewer devices")
    groups = [[names[number] for number in piece.devices] for piece in stages]
    kind = {"schedule": "1f1b"} if len(stages) > 1 else {}
    if all(piece.replicas == widest for piece in stages):
        most = min(micro_batch, limit)
        pipelines = [
            _pipeline(stages, [[group[rank]] for group in groups], evenly(part, -(-part // most)))
            for rank, part in enumerate(evenly(samples, widest))
        ]
    else:
        most = min(micro_batch * widest, limit)
        count = min(-(-samples // most), samples // widest)  # each replica of each stage has a sample of each
        sizes = evenly(samples, max(count, -(-samples // limit)))
        pipelines = [_pipeline(stages, groups, sizes)]
    return Plan.model_validate({"pipelines": pipelines, **kind})


def _pipeline(stages: Sequence[Piece], groups: Sequence[Sequence[str]], micro_batches: list[int]) -> Pipeline:
    placed = [
        Stage(
            first=piece.first,
            last=piece.last,
            replicas=[Replica(devices=[name], share=1 / len(group)) for name in group],
        )
        for piece, group in zip(stages, groups, strict=True)
    ]
    return Pipeline(stages=placed, micro_batches=micro_batches)
