"""Layouts: equal pipelines over all groups of devices, with bounds that say which need no closer look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from ..sim.crowding import Crowds
from ..sim.plan import Pipeline, Plan, micro_batches
from .fleet import staged
from .shapes import Foundry, Held, Seat, Shape

Group = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Placement:
    """Who holds which stage of equal pipelines, before the layers are cut."""

    foundry: Foundry
    seats: tuple[Seat, ...]
    """Of each stage, the slowest kind that holds it."""
    groups: Sequence[Group]
    """Of all devices, the fastest kind first."""
    count: int
    """Pipelines."""
    beside: bool
    """Whether the replicas of a stage are neighbours, or the stages of a pipeline."""

    @cached_property
    def rows(self) -> list[list[Group]]:
        """Per pipeline, the group of each stage."""
        depth, count = len(self.seats), self.count
        if self.beside:
            return [[self.groups[stage * count + number] for stage in range(depth)] for number in range(count)]
        return [[self.groups[number * depth + stage] for stage in range(depth)] for number in range(count)]

    @property
    def samples(self) -> int:
        """Of the pipeline that has the fewest."""
        return self.foundry.view.global_batch // self.count

    def floors_s(self, size: int) -> tuple[float, float]:
        """No cut makes a shorter step, as long as more samples take no less time; and what one may take at best.

        The second has each stage wait for the first micro-batch, which 1F1B can do a little better than.
        """
        times = [self.foundry.stage_s(seat, size, "none", 0, self.foundry.layers) for seat in self.seats]
        slowest, count = 1 / sum(1 / each for each in times), self.samples / size
        alike = len(self.foundry.kinds) == 1 and count >= 1
        floor = max(count * slowest, min(times) if alike else 0.0)
        return floor, max(floor, (count - 1) * slowest + min(times)) if alike else floor

    @cached_property
    def per_byte_s(self) -> tuple[list[float], list[float]]:
        """Between neighbouring stages, the seconds that each byte of a message takes, there and back.

        Beside the same messages of the other pipelines; and beside half of the messages between other stages too.
        """
        crowds = Crowds(self.foundry.network, self.foundry.workload)
        ways = [way for stage in range(len(self.seats) - 1) for way in self._between(crowds, stage)]
        every: Counter[int] = Counter()
        for way in ways:
            every.update(way)
        capacities = crowds.network.capacities
        own = [max((n / capacities[link] for link, n in way.items()), default=0.0) for way in ways]
        more = [max(((n + every[link]) / 2 / capacities[link] for link, n in way.items()), default=0.0) for way in ways]
        return [sum(own[at : at + 2]) for at in range(0, len(own), 2)], [
            sum(more[at : at + 2]) for at in range(0, len(more), 2)
        ]

    def _between(self, crowds: Crowds, stage: int) -> tuple[Counter[int], Counter[int]]:
        """What the messages from a stage to the next cross, and those back."""
        there, back = Counter[int](), Counter[int]()
        for row in self.rows:
            for source, target in zip(row[stage], row[stage + 1], strict=True):
                there.update(crowds.route(source, target))
                back.update(crowds.route(target, source))
        return there, back


@dataclass(frozen=True, eq=False)
class Layout:
    """A placement, its layers cut."""

    placement: Placement
    shape: Shape

    @cached_property
    def times_s(self) -> list[float]:
        """Of each stage, forward and backward, for a micro-batch."""
        return self.placement.foundry.stage_seconds(self.shape.stages, self.shape.micro_batch)

    def _pace_s(self, per_byte: Sequence[float]) -> tuple[float, float]:
        """Of a micro-batch: seconds through all stages and back, and the least time from one to the next.

        With 1F1B the forward pass of a stage follows the backward pass of the micro-batch that the stage k further on
        did after the one k + 1 before: so k + 1 neighbouring stages and what they send each other take k + 1 turns.
        """
        foundry = self.placement.foundry
        part = self.shape.micro_batch * foundry.workload.element_bytes / self.shape.stages[0].seat.degree
        sent = [
            part * foundry.crossing[held.first] * way for held, way in zip(self.shape.stages[1:], per_byte, strict=True)
        ]
        sums = [0.0, *accumulate(work + way for work, way in zip(self.times_s, [*sent, 0.0], strict=True))]
        stages = range(len(self.times_s))
        pace = max(
            (sums[e + 1] - sums[s] - (sent[e] if e < len(sent) else 0.0)) / (e - s + 1)
            for s in stages
            for e in stages[s:]
        )
        return sums[-1], pace

    @cached_property
    def least_s(self) -> float:
        """No step is shorter, by the formulas' figures, as long as more samples take no less time.

        The slowest stage's work; where all devices are alike also the first micro-batch there and back, and those after
        it that are neither among the first nor among the last as many as there are stages, at the pace of what binds.
        """
        count = self.placement.samples / self.shape.micro_batch
        least = count * max(self.times_s)
        if len(self.placement.foundry.kinds) > 1:
            return least
        through, pace = self._pace_s(self.placement.per_byte_s[0])
        return max(least, through * min(1.0, count) + max(count - 1 - len(self.times_s), 0.0) * pace)

    @cached_property
    def about_s(self) -> float:
        """What a step may take: the first micro-batch there and back, the others at the pace of what binds."""
        count = self.placement.samples / self.shape.micro_batch
        through, pace = self._pace_s(self.placement.per_byte_s[1])
        return through + max(count - 1, 0.0) * pace

    def plan(self) -> Plan:
        """The first pipelines get the samples that are left over."""
        foundry, rows = self.placement.foundry, self.placement.rows
        share, over = divmod(foundry.view.global_batch, len(rows))
        pipelines = [
            Pipeline(
                stages=[staged(foundry, held, group) for held, group in zip(self.shape.stages, row, strict=True)],
                micro_batches=micro_batches(share + (number < over), self.shape.micro_batch),
            )
            for number, row in enumerate(rows)
        ]
        kind = {"schedule": "1f1b"} if len(self.shape.stages) > 1 else {}
        return Plan.model_validate({"pipelines": pipelines, **kind})


class Layouts:
    """All degrees, depths, micro-batches and placements of equal pipelines, those with the least floors first."""

    def __init__(self, foundry: Foundry, deepest: int) -> None:
        self.foundry, self.deepest = foundry, deepest
        self._held: dict[tuple[Seat, int], bool] = {}
        self._shapes: dict[tuple[tuple[Seat, ...], int], Shape | None] = {}

    def within(self, most_s: float, most: int = 0) -> Iterator[Layout]:
        """Layouts whose bounds are below a step time; those first that seem to be the quickest.

        Args:
            most_s: of the bounds.
            most: so many at most, those with the least floors; 0: all.
        """
        floors = [
            (*placement.floors_s(size), number, size, placement)
            for number, placement in enumerate(self._placements())
            for size in self._sizes(placement)
        ]
        ranked = sorted((each for each in floors if each[0] < most_s), key=lambda each: each[1:4])
        cut = [(placement, self._shape(placement.seats, size)) for *_, size, placement in ranked[: most or None]]
        found = [Layout(placement, shape) for placement, shape in cut if shape is not None]
        yield from sorted((each for each in found if each.least_s < most_s), key=lambda each: each.about_s)

    def _sizes(self, placement: Placement) -> Iterator[int]:
        """Micro-batches of which a layer fits, up to a pipeline's share of the batch."""
        most = -(-self.foundry.view.global_batch // placement.count)
        seats = dict.fromkeys(placement.seats)
        for size in self.foundry.sizes():
            if size > most or not all(self._holds(seat, size) for seat in seats):
                break
            yield size

    def _holds(self, seat: Seat, size: int) -> bool:
        """Whether a layer fits in memory at all: the one that takes least."""
        if (seat, size) not in self._held:
            room = self.foundry.kinds[seat.kind].device.memory_bytes
            layers = (Held(seat, layer, layer + 1, "full") for layer in range(self.foundry.layers))
            self._held[seat, size] = any(self.foundry.stage_bytes(each, (size, 0, 1), 1) <= room for each in layers)
        return self._held[seat, size]

    def _shape(self, seats: tuple[Seat, ...], size: int) -> Shape | None:
        key = seats, size
        if key not in self._shapes:
            self._shapes[key] = self.foundry.shape(seats, size, 0, 1)
        return self._shapes[key]

    def _placements(self) -> Iterator[Placement]:
        foundry, batch = self.foundry, self.foundry.view.global_batch
        for degree in sorted({degree for kind in foundry.kinds for degree in foundry.degrees(kind)}):
            groups = [(kind.number, group) for kind in foundry.kinds for group in kind.groups(degree)]
            for depth in range(1, min(len(groups), foundry.layers, self.deepest) + 1):
                count = min(len(groups) // depth, batch)
                if count and (depth == 1 or depth * count * degree > len(foundry.view.devices) / 2):
                    for beside in (True, False) if depth > 1 else (True,):
                        yield self._placed(groups, (degree, depth, count), beside=beside)

    def _placed(self, groups: Sequence[tuple[int, Group]], sizes: tuple[int, int, int], *, beside: bool) -> Placement:
        degree, depth, count = sizes
        lasts = [stage * count + count - 1 if beside else (count - 1) * depth + stage for stage in range(depth)]
        seats = tuple(Seat(groups[last][0], degree) for last in lasts)
        return Placement(self.foundry, seats, [group for _, group in groups], count, beside)
