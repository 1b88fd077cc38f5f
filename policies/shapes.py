"""Shapes: the pipelines that could be made of a cluster: degrees, cuts, micro-batches, and what fits in memory."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, get_args

from ..sim import cost, footprint
from ..sim.device import CollectiveKind, Device
from ..sim.estimate import machine_figures
from ..sim.footprint import Cut
from ..sim.memory import BUFFERS
from ..sim.network import network_of
from ..sim.roofline import Recompute
from ..sim.times import layer_times
from ..sim.view import View
from ..sim.workload import OPTIMIZER_STATES, at
from ._neighbours import neighbours

RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
BUCKET_BYTES = 100 * 2**20
"""A plan's default message of gradients."""
NEAR = 2e-3
"""How near the slowest stage's time is to the least possible one."""
WHOLE: tuple[CollectiveKind, ...] = ("all_reduce",)
HALVES: tuple[CollectiveKind, ...] = ("reduce_scatter", "all_gather")
"""What takes the place of an all-reduce with sequence parallelism."""


@dataclass(frozen=True, eq=False)
class Kind:
    """Devices that differ in name only, on machines that do."""

    number: int
    device: Device
    machines: tuple[tuple[str, ...], ...]
    """Names of the devices of each machine, the fullest machine first."""

    @property
    def count(self) -> int:
        """Devices."""
        return sum(map(len, self.machines))

    def groups(self, degree: int) -> list[tuple[str, ...]]:
        """Groups of so many devices of one machine, machine by machine; not to be changed."""
        if degree not in self._groups:
            self._groups[degree] = [
                names[start : start + degree]
                for names in self.machines
                for start in range(0, len(names) - degree + 1, degree)
            ]
        return self._groups[degree]

    @cached_property
    def _groups(self) -> dict[int, list[tuple[str, ...]]]:
        return {}


class Seat(NamedTuple):
    """Who holds a stage: a kind of device, and how many of them."""

    kind: int
    degree: int


class Held(NamedTuple):
    """A stage of a shape."""

    seat: Seat
    first: int
    last: int
    recompute: Recompute


@dataclass(frozen=True, eq=False)
class Shape:
    """A pipeline without devices: its stages, the largest micro-batch, and its times."""

    stages: tuple[Held, ...]
    micro_batch: int
    zero: int
    fill_s: float
    """One micro-batch through all stages, forward and backward."""
    period_s: float
    """Each further one."""
    least_s: tuple[float, float]
    """The same two for a micro-batch of one sample."""
    update_s: float
    backward_s: float
    """Of the slowest stage: what a synchronisation can run beside."""

    @cached_property
    def needs(self) -> dict[int, int]:
        """Devices of each kind."""
        found: dict[int, int] = {}
        for held in self.stages:
            found[held.seat.kind] = found.get(held.seat.kind, 0) + held.seat.degree
        return found

    @property
    def width(self) -> int:
        """Devices in all."""
        return sum(self.needs.values())

    def seconds(self, samples: int) -> float:
        """Estimated seconds of so many samples, in the fewest micro-batches, as equal as they can be."""
        count = -(-samples // self.micro_batch)
        if not count:
            return 0.0
        size = samples / count
        far = (size - 1) / max(self.micro_batch - 1, 1)
        fill, period = (
            low + far * (high - low) for low, high in zip(self.least_s, (self.fill_s, self.period_s), strict=True)
        )
        return fill + (count - 1) * period + self.update_s

    def most_within(self, seconds: float, limit: int) -> int:
        """The most samples (up to a limit) that take no longer, as :meth:`seconds` has it.

        A measured step of fewer samples may take longer than one of more, and bisection then finds too few: the limit
        itself is looked at first, so that whoever has time for all of them gets all of them.
        """
        if self.seconds(limit) <= seconds:
            return limit
        return bisect.bisect_right(range(1, limit + 1), seconds, key=self.seconds)

    def rate(self, seconds: float) -> float:
        """Samples within so many seconds, fractions allowed, per device."""
        left = seconds - self.update_s
        if left < self.fill_s:
            return max(0.0, self.micro_batch * left / self.fill_s) / self.width if self.micro_batch > 1 else 0.0
        return self.micro_batch * (1 + (left - self.fill_s) / self.period_s) / self.width


class Foundry:
    """Makes shapes for one view; remembers stage times and what fits."""

    def __init__(self, view: View) -> None:
        self.view, self.workload = view, view.workload
        self.network = network_of(view.cluster)
        self.kinds = kinds_of(view)
        self.layers = len(self.workload.layers)
        self.ties = footprint.ties(self.workload)
        self.sequence = all(kind.device.layer_profile is None for kind in self.kinds)
        """Whether tensor-parallel groups divide the sequence too: less memory and less work, for the same bytes sent.

        Measured times of layers are of whatever the measurement did."""
        self._sums: dict[object, tuple[list[float], list[float]]] = {}
        self._reach: dict[object, int] = {}
        self.crossing = _crossing(self.workload.layers, footprint.sources(self.workload), self.workload.sequence_length)

    def degrees(self, kind: Kind) -> list[int]:
        """Tensor-parallel degrees within a machine that divide every layer: powers of two."""
        widest = max(map(len, kind.machines))
        powers = [2**power for power in range(widest.bit_length()) if 2**power <= widest]
        return [each for each in powers if each == 1 or not self.workload.indivisible(0, self.layers, each)]

    def divides_sequence(self, degree: int) -> bool:
        """Whether a group of so many devices divides the sequence."""
        return self.sequence and degree > 1

    def sizes(self) -> Iterator[int]:
        """Micro-batch sizes worth trying, the smallest first."""
        most = min(self.workload.max_micro_batch or self.workload.global_batch, self.workload.global_batch)
        size = 1
        while size < most:
            yield size
            size *= 2
        yield most

    def shape(self, seats: Sequence[Seat], micro_batch: int, zero: int, peers: int) -> Shape | None:
        """The shape with the least time of its slowest stage; None where the layers do not fit.

        The least period is bisected; each stage then takes as many layers as time and memory allow, recomputing no
        more than it must, which is exact because both grow with the layers.

        Args:
            seats: who holds each stage, in order.
            micro_batch: samples.
            zero: what is sharded.
            peers: at least so many devices hold the same part, and share what is sharded.
        """
        if len(seats) > self.layers:
            return None
        how = micro_batch, zero, peers if zero else 1
        high = max(self.stage_s(seat, micro_batch, "full", 0, self.layers) for seat in dict.fromkeys(seats))
        found = self._filled(seats, high, how)
        if found is None:
            return None
        low = 1 / sum(1 / self.stage_s(seat, micro_batch, "none", 0, self.layers) for seat in seats)
        best, high = found, self._slowest(found, micro_batch)
        while high - low > NEAR * high:
            middle = (low + high) / 2
            found = self._filled(seats, middle, how)
            if found is None:
                low = middle
            else:
                best, high = found, min(middle, self._slowest(found, micro_batch))
        return self._timed(tuple(best), micro_batch, zero, peers)

    def _filled(self, seats: Sequence[Seat], limit: float, how: tuple[int, int, int]) -> list[Held] | None:
        first, found = 0, []
        count = len(seats)
        for number, seat in enumerate(seats):
            most = self.layers - (count - 1 - number)
            ahead = min(count - number, -(-self.workload.global_batch // how[0]))
            last, recompute = self._furthest(seat, first, limit, how, ahead)
            last = min(last, most)
            if last <= first:
                return None
            found.append(Held(seat, first, last, recompute))
            first = last
        return found if first == self.layers else None

    def _furthest(
        self, seat: Seat, first: int, limit: float, how: tuple[int, int, int], ahead: int
    ) -> tuple[int, Recompute]:
        """How far a stage can go from a layer, and what it recomputes for that."""
        best: tuple[int, Recompute] = (first, "none")
        for recompute in RECOMPUTE:
            forward, backward = self._prefix(seat, how[0], recompute)
            start = forward[first] + backward[first]
            within = bisect.bisect_right(
                range(first + 1, self.layers + 1),
                limit * (1 + 1e-12),
                key=lambda last: forward[last] + backward[last] - start,
            )
            room = self._room(seat, first, recompute, how, ahead)
            if min(first + within, room) > best[0]:
                best = min(first + within, room), recompute
            if room >= first + within:  # time binds: recomputing more only takes more of it
                break
        return best

    def _room(self, seat: Seat, first: int, recompute: Recompute, how: tuple[int, int, int], ahead: int) -> int:
        """The last layer to which a stage from a layer on fits in memory."""
        key = seat, first, recompute, how, ahead
        found = self._reach.get(key)
        if found is None:
            room = self.kinds[seat.kind].device.memory_bytes
            found = first + bisect.bisect_right(
                range(first + 1, self.layers + 1),
                room,
                key=lambda last: self.stage_bytes(Held(seat, first, last, recompute), how, ahead),
            )
            self._reach[key] = found
        return found

    def stage_bytes(self, held: Held, how: tuple[int, int, int], ahead: int) -> float:
        """Bytes on each device of a stage: the closed form of :mod:`steelyard.sim.memory`, before the plan is there.

        Never too low for a chain of layers cut so; the plan's own check has the last word.
        """
        (micro_batch, zero, peers), w = how, self.workload
        seat, first, last, recompute = held
        cut = Cut(first, last, seat.degree, recompute, self.divides_sequence(seat.degree))
        part = seat.degree if cut.sequence_parallel else 1
        parameters, trainable = footprint.parameters(w, first, last, seat.degree)
        for tied, target in self.ties:
            if first <= tied < last and not first <= target < last:
                more = footprint.parameters(w, target, target + 1, seat.degree)
                parameters, trainable = parameters + more[0], trainable + more[1]
        share = 1 / peers
        states = 4 * OPTIMIZER_STATES[w.optimizer] + (4 if w.element_bytes < 4 else 0)
        total = w.element_bytes * parameters * (share if zero >= 3 else 1.0)
        total += w.element_bytes * trainable * (share if zero >= 2 else 1.0) + states * trainable * (
            share if zero >= 1 else 1.0
        )
        total += micro_batch * (ahead * footprint.kept_bytes(w, cut) + footprint.recomputed_bytes(w, cut))
        if last - first < self.layers:
            total += BUFFERS * micro_batch * w.element_bytes * (self.crossing[first] + self.crossing[last]) / part
        total += micro_batch * footprint.gathered_bytes(w, cut)
        if zero >= 2 and peers > 1:
            total += footprint.largest_bucket(w, first, last, seat.degree, BUCKET_BYTES)
        if zero >= 3 and peers > 1:
            total += w.element_bytes * max(
                footprint.parameters(w, each, each + 1, seat.degree)[0] for each in range(first, last)
            )
        return total

    def _prefix(self, seat: Seat, size: int, recompute: Recompute) -> tuple[list[float], list[float]]:
        """Running sums of forward and backward seconds over the layers, tensor-parallel collectives included."""
        key = seat, size, recompute
        if key not in self._sums:
            kind = self.kinds[seat.kind]
            times = layer_times(
                kind.device,
                self.workload,
                size,
                seat.degree,
                recompute,
                sequence_parallel=self.divides_sequence(seat.degree),
            )
            sums = times.forward_sums.tolist(), times.backward_sums.tolist()
            if seat.degree > 1 and not times.holds_collectives:
                more = self._collectives(kind.groups(seat.degree)[0], size, recompute)
                sums = tuple([a + b for a, b in zip(*each, strict=True)] for each in zip(sums, more, strict=True))  # type: ignore[assignment]
            self._sums[key] = sums
        return self._sums[key]

    def _collectives(self, group: Sequence[str], size: int, recompute: Recompute) -> tuple[list[float], list[float]]:
        forward, backward = [0.0], [0.0]
        kinds = HALVES if self.sequence else WHOLE
        for layer in range(self.layers):
            sent = cost.tensor_collectives(self.workload, layer, layer + 1, size, recompute=recompute)
            for sums, each in zip((forward, backward), sent, strict=True):
                seconds = sum(
                    count * self.network.collective(kind, group, size).alone_s for size, count in each for kind in kinds
                )
                sums.append(sums[-1] + seconds)
        return forward, backward

    def stage_s(self, seat: Seat, size: int, recompute: Recompute, first: int, last: int) -> float:
        """Seconds of a run of layers for a micro-batch of so many samples, forward and backward."""
        forward, backward = self._prefix(seat, size, recompute)
        return forward[last] - forward[first] + backward[last] - backward[first]

    def stage_seconds(self, stages: Sequence[Held], size: int) -> list[float]:
        """Seconds of each stage for a micro-batch of so many samples, forward and backward."""
        return [self.stage_s(each.seat, size, each.recompute, each.first, each.last) for each in stages]

    def _slowest(self, stages: Sequence[Held], size: int) -> float:
        return max(self.stage_seconds(stages, size))

    def _timed(self, stages: tuple[Held, ...], size: int, zero: int, peers: int) -> Shape:
        fill, period = self._pace(stages, size)
        last = [self._prefix(each.seat, size, each.recompute)[1] for each in stages]
        share = 1 / peers if zero else 1.0
        return Shape(
            stages=stages,
            micro_batch=size,
            zero=zero,
            fill_s=fill,
            period_s=period,
            least_s=self._pace(stages, 1) if size > 1 else (fill, period),
            update_s=max(
                cost.update_s(
                    self.kinds[each.seat.kind].device,
                    self.workload,
                    each.first,
                    each.last,
                    tensor_degree=each.seat.degree,
                    share=share,
                )
                for each in stages
            ),
            backward_s=max(sums[each.last] - sums[each.first] for each, sums in zip(stages, last, strict=True)),
        )

    def _pace(self, stages: tuple[Held, ...], size: int) -> tuple[float, float]:
        """Seconds of the first micro-batch, and of each more: the slowest stage, and the way there and back."""
        times = self.stage_seconds(stages, size)
        sent = [self._message_s(stages, number, size) for number in range(len(stages) - 1)]
        around = 2 * max(sent, default=0.0) * (len(stages) - 1) / len(stages)
        return sum(times) + 2 * sum(sent), max(times) + around

    def _message_s(self, stages: tuple[Held, ...], number: int, size: int) -> float:
        here, there = stages[number], stages[number + 1]
        elements = self.crossing[there.first] * size
        widest = max(here.seat.degree, there.seat.degree)
        names = self.neighbours(stages, number)
        return self.network.point_to_point(*names, elements * self.workload.element_bytes / widest).alone_s

    def neighbours(self, stages: Sequence[Held], number: int) -> tuple[str, str]:
        """Two devices that are as far from each other as those of a stage and of the next one in most pipelines."""
        here, there = stages[number].seat, stages[number + 1].seat
        groups = self.kinds[here.kind].groups(here.degree)
        if here != there:
            return groups[0][0], self.kinds[there.kind].groups(there.degree)[-1][0]
        before = sum(held.seat == here for held in stages[:number])
        return groups[before % len(groups)][0], groups[(before + 1) % len(groups)][0]


def kinds_of(view: View) -> list[Kind]:
    """The kinds of a view's devices, the fastest first, in an order that their figures decide."""
    cluster = view.cluster
    figures = [machine_figures(node) for node in cluster.nodes]
    held: dict[tuple[int, object], dict[int, list[str]]] = {}
    speeds = dict(zip((device.name for device in view.devices), view.speeds, strict=True))
    for name in itertools.chain.from_iterable(neighbours(view)):
        machine = cluster.node_of[name]
        held.setdefault((cluster.kinds[name], figures[machine]), {}).setdefault(machine, []).append(name)
    found = [tuple(map(tuple, sorted(machines.values(), key=len, reverse=True))) for machines in held.values()]
    first = [cluster.by_name[machines[0][0]] for machines in found]
    # Of equal ones the order of their places, which figures decide too.
    order = sorted(range(len(found)), key=lambda place: (-speeds[first[place].name], _text(first[place])))
    return [Kind(number, first[place], found[place]) for number, place in enumerate(order)]


def _text(device: Device) -> str:
    """All figures of a device as text, its profiles left out: what decides between equally fast ones."""
    return device.model_dump_json(exclude={"name", "layer_profile", "profile"})


def _crossing(layers: Sequence[object], sources: Sequence[Sequence[int]], tokens: int) -> list[float]:
    """Per cut before a layer, the elements per sample that cross it: outputs of layers before that one behind reads."""
    last_use: dict[int, int] = {}
    for number, feeding in enumerate(sources):
        for source in feeding:
            last_use[source] = number
    found = [0.0] * (len(layers) + 1)
    for source, last in last_use.items():
        elements = at(layers[source].output_elements, tokens)  # type: ignore[attr-defined]
        for cut in range(source + 1, last + 1):
            found[cut] += elements
    return found
