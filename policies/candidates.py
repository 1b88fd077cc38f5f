"""Candidates: fleets worth a closer look, by a rough estimate that costs microseconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..sim.noise import Floats
from .fleet import Fleet, Line
from .shapes import Foundry, Kind, Seat, Shape

DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
"""Stages of a pipeline that are tried."""
MIXED = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (4, 4))
"""Stages of two kinds in one pipeline that are tried."""
PATIENCE = 2
"""Deeper pipelines in a row that may be worse than one before."""
MOMENTS = 400
"""Step times that a fleet's samples are looked up at."""
SLACK = 0.7
"""A pipeline with less than this share of the samples of the best is not looked at further."""


@dataclass(frozen=True)
class Rough:
    """A fleet and what it is thought to take, before anything is dealt."""

    fleet: Fleet
    step_s: float
    usd_per_hour: float
    watts: float


class Candidates:
    """Enumerates fleets for one view."""

    def __init__(self, foundry: Foundry, *, keep: int, spare: bool) -> None:
        self.foundry, self.view = foundry, foundry.view
        self.batch = self.view.global_batch
        kinds = len(foundry.kinds)
        self.keep = keep if kinds <= 2 else max(2, round(keep * 2 / kinds))
        self.spare = spare
        """Whether fleets that leave devices out are looked at beside those that leave out whole kinds."""
        self.horizon_s = self._horizon_s()
        self._shapes: dict[object, Shape | None] = {}
        self._owned: dict[tuple[int, int], list[Shape]] = {}
        self._known: dict[int, tuple[Shape, Floats]] = {}

    def _horizon_s(self) -> float:
        """Seconds of a step without any loss: what pipelines are compared at."""
        rates = [
            kind.count * max(self._ideal(kind, each) for each in self.foundry.degrees(kind))
            for kind in self.foundry.kinds
        ]
        return self.batch / sum(rates)

    def _ideal(self, kind: Kind, degree: int) -> float:
        sizes = [size for size in self.foundry.sizes() if size <= 8]
        whole = 0, self.foundry.layers
        return (
            max(size / self.foundry.stage_s(Seat(kind.number, degree), size, "none", *whole) for size in sizes) / degree
        )

    def fleets(self, zero: int) -> list[Rough]:
        """All fleets that come of the best shapes of each kind, and of the best of two kinds; the quickest first."""
        own = {kind.number: self.own(kind, zero) for kind in self.foundry.kinds}
        lines: list[tuple[Line, ...]] = [()]
        if zero in (0, 2):
            lines += [(line,) for line in self._mixed_lines(own, zero)]
        found: list[Rough] = []
        for mixed in lines:
            left = self._left(mixed)
            options = [self._options(kind, left[kind.number], own[kind.number]) for kind in self.foundry.kinds]
            for chosen in itertools.islice(itertools.product(*options), 20_000):
                together = (*mixed, *(line for each in chosen for line in each))
                if together and (zero < 3 or len(together) == 1):
                    found.append(self._rough(Fleet(together, zero)))
        return found

    # Shapes

    def _shape(self, seats: tuple[Seat, ...], size: int, zero: int, peers: int) -> Shape | None:
        key = seats, size, zero, peers
        if key not in self._shapes:
            self._shapes[key] = self.foundry.shape(seats, size, zero, peers)
        return self._shapes[key]

    def own(self, kind: Kind, zero: int) -> list[Shape]:
        """The best shapes of one kind: of each degree and depth the best micro-batch, then the best of these."""
        if (kind.number, zero) in self._owned:
            return self._owned[kind.number, zero]
        less = self.own(kind, zero - 1) if zero else []
        rows = dict.fromkeys(tuple(held.seat for held in shape.stages) for shape in less) or self._rows(kind)
        best = [shape for seats in rows for shape in [self._best_size(seats, zero, self._peers(kind, seats))] if shape]
        ranked = sorted(best, key=self._rank)
        kept = [each for each in ranked if self._value(each) >= SLACK * self._value(ranked[0])][: self.keep]
        self._owned[kind.number, zero] = kept
        return kept

    def _rows(self, kind: Kind) -> Iterator[tuple[Seat, ...]]:
        """Stages of one kind: every degree, deeper and deeper as long as it may pay."""
        for degree in self.foundry.degrees(kind):
            seat, best, worse = Seat(kind.number, degree), 0.0, 0
            for depth in DEPTHS:
                if depth > min(len(kind.groups(degree)), self.foundry.layers) or worse > PATIENCE:
                    break
                yield (seat,) * depth
                shape = self._best_size((seat,) * depth, 0, 1)
                value = self._value(shape) if shape else 0.0
                worse = worse + 1 if best and value < best else 0
                best = max(best, value)

    @staticmethod
    def _peers(kind: Kind, seats: tuple[Seat, ...]) -> int:
        return max(1, len(kind.groups(seats[0].degree)) // len(seats))

    def _value(self, shape: Shape) -> float:
        """Samples per device within the horizon, and some time for what is not accounted for here."""
        return shape.rate(1.25 * self.horizon_s) or self.batch / shape.seconds(self.batch) / shape.width * 1e-6

    def _rank(self, shape: Shape) -> tuple[float, int, int]:
        return -self._value(shape), shape.width, shape.micro_batch

    def _best_size(self, seats: tuple[Seat, ...], zero: int, peers: int) -> Shape | None:
        """The best micro-batch for some stages; larger ones are tried as long as that helps."""
        found: Shape | None = None
        for worse, size in enumerate(self.foundry.sizes()):
            shape = self._shape(seats, size, zero, max(peers, 1))
            if shape is None or (found is not None and worse and self._value(shape) < self._value(found)):
                break
            found = shape
        return found

    # Lines

    def _mixed_lines(self, own: dict[int, list[Shape]], zero: int) -> Iterator[Line]:
        """Pipelines over two kinds that are worth more than their devices are alone, as many as there can be."""
        found: list[tuple[float, Line]] = []
        for a, b in itertools.permutations(self.foundry.kinds, 2):
            alone = [self._value(own[kind.number][0]) if own[kind.number] else 0.0 for kind in (a, b)]
            for degrees in itertools.product(*(self._likely(kind, own[kind.number]) for kind in (a, b))):
                for depths in MIXED:
                    seats = tuple(
                        Seat(kind.number, degree)
                        for kind, degree, depth in zip((a, b), degrees, depths, strict=True)
                        for _ in range(depth)
                    )
                    count = min(len(k.groups(d)) // n for k, d, n in zip((a, b), degrees, depths, strict=True))
                    shape = self._best_size(seats, zero, count) if count and len(seats) <= self.foundry.layers else None
                    if shape is not None:
                        devices = [degree * depth for degree, depth in zip(degrees, depths, strict=True)]
                        worth = sum(each * n for each, n in zip(alone, devices, strict=True))
                        found.append((self._value(shape) * shape.width / max(worth, 1e-30), (shape, count)))
        found.sort(key=lambda each: (-each[0], each[1][0].width))
        yield from (line for gain, line in found[: self.keep] if gain > 0.9)

    def _likely(self, kind: Kind, shapes: Sequence[Shape]) -> list[int]:
        """The degree of a kind's best shape; where it has none alone, its least and its largest."""
        degrees = self.foundry.degrees(kind)
        return [shapes[0].stages[0].seat.degree] if shapes else sorted({degrees[0], degrees[-1]})

    def _left(self, lines: Sequence[Line]) -> list[int]:
        """Devices of each kind that are not in these lines."""
        left = [kind.count for kind in self.foundry.kinds]
        for shape, count in lines:
            for number, needed in shape.needs.items():
                left[number] -= count * needed
        return left

    def _options(self, kind: Kind, left: int, shapes: Sequence[Shape]) -> list[tuple[Line, ...]]:
        """What a kind's devices may become: nothing; one shape throughout, and smaller ones of what is left over."""
        options: list[tuple[Line, ...]] = [()]
        for shape in shapes:
            most = min(len(kind.groups(shape.stages[0].seat.degree)) // len(shape.stages), left // shape.width)
            for count in self._counts(most) if not shape.zero else [most]:
                if count:
                    rest = self._rest(shapes, left - count * shape.width, shape) if count == most else None
                    options.append(((shape, count), *([rest] if rest else [])))
        return list(dict.fromkeys(options))

    def _counts(self, most: int) -> list[int]:
        if not self.spare:
            return [most]
        return sorted(
            {max(1, most * part // 8) for part in range(1, 9)} | {2**power for power in range(most.bit_length())}
            if most
            else {0}
        )

    def _rest(self, shapes: Sequence[Shape], left: int, used: Shape) -> Line | None:
        """The best smaller shape for the devices that the first one leaves over."""
        degree = used.stages[0].seat.degree
        for shape in shapes:
            if (
                shape.width <= left
                and shape.width < used.width
                and shape.stages[0].seat.degree <= degree
                and not shape.zero
            ):
                return shape, left // shape.width
        return None

    # Rough times

    def _rough(self, fleet: Fleet) -> Rough:
        moments = self._moments
        samples = np.zeros(MOMENTS)
        for shape, count in fleet.lines:
            samples += count * self._dealt(shape)
        place = int(np.searchsorted(samples, self.batch))
        if place < MOMENTS:
            step = float(moments[place])
        else:
            step = max(float(moments[-1]), self.batch / sum(n / s.seconds(1) for s, n in fleet.lines))
        step += max(0.0, self._sync_s(fleet) - min(shape.backward_s for shape, _ in fleet.lines))
        usd, watts = self._prices(fleet)
        return Rough(fleet, step, usd, watts)

    @cached_property
    def _moments(self) -> Floats:
        return self.horizon_s * np.geomspace(0.8, 8000.0 if self.spare else 80.0, MOMENTS)

    def _dealt(self, shape: Shape) -> Floats:
        """Samples of one pipeline within each of the moments."""
        key = id(shape)
        known = self._known
        if key not in known:
            left = self._moments - shape.update_s
            steady = shape.micro_batch * (1 + (left - shape.fill_s) / shape.period_s)
            first = 1 + (shape.micro_batch - 1) * (left - shape.least_s[0]) / max(
                shape.fill_s - shape.least_s[0], 1e-12
            )
            found = np.where(left >= shape.fill_s, steady, np.where(left >= shape.least_s[0], first, 0.0))
            known[key] = shape, np.floor(np.maximum(found, 0.0) + 1e-9)
        return known[key][1]

    def _sync_s(self, fleet: Fleet) -> float:
        """The gradients' all-reduce by the slowest way out of a machine; one pipeline has none."""
        pipelines = sum(count for _, count in fleet.lines)
        if pipelines < 2:
            return 0.0
        size, slowest = self.view.workload.gradient_bytes, 0.0
        several = (
            len(
                {name for shape, _ in fleet.lines for kind in shape.needs for name in self.foundry.kinds[kind].machines}
            )
            > 1
        )
        for shape, _ in fleet.lines:
            for number in shape.needs:
                widest = len(self.foundry.kinds[number].machines[0])
                node = self.view.cluster.nodes[self.view.cluster.node_of[self.foundry.kinds[number].device.name]]
                link = node.network or self.view.cluster.network if several else node.link
                held = _held(shape, pipelines, widest) if several else 1.0 / shape.width
                if link is not None:
                    ways = node.nics if several else 1
                    slowest = max(slowest, 2 * size * held / min(link.bandwidth, link.reverse_bandwidth) / ways)
        return slowest

    def _prices(self, fleet: Fleet) -> tuple[float, float]:
        usd = watts = 0.0
        for shape, count in fleet.lines:
            for number, needed in shape.needs.items():
                device = self.foundry.kinds[number].device
                usd += count * needed * (device.price_usd_per_hour or 0.0)
                watts += count * needed * (device.max_w or 0.0)
        return usd, watts


def _held(shape: Shape, pipelines: int, widest: int) -> float:
    """Share of the gradients that leaves a machine, in the better of both placements.

    A machine holds whole pipelines, or the replicas of one stage: those of no other machine, if it has room for all.
    """
    depth, degree = len(shape.stages), shape.stages[0].seat.degree
    spread = 0.0 if pipelines * degree <= widest else 1.0 / depth
    return min(1.0, widest / shape.width, spread)
