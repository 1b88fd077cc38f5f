"""Layouts: equal pipelines over all groups of devices, with bounds that say which need no closer look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

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

    def floor_s(self, size: int) -> float:
        """No cut makes a shorter step, as long as more samples take no less time."""
        times = [self.foundry.stage_s(seat, size, "none", 0, self.foundry.layers) for seat in self.seats]
        slowest = 1 / sum(1 / each for each in times)
        count = self.samples / size
        away = min(times) - slowest if len(self.foundry.kinds) == 1 and count >= 1 else 0.0
        return count * slowest + max(away, 0.0)

    @cached_property
    def per_byte_s(self) -> list[float]:
        """Between neighbouring stages, the seconds that each byte of a message takes, there and back, in the crowd."""
        return [self._between(Crowds(self.foundry.network, self.foundry.workload), stage) for stage in self._cuts]

    @property
    def _cuts(self) -> range:
        return range(len(self.seats) - 1)

    def _between(self, crowds: Crowds, stage: int) -> float:
        ways: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        for row in self.rows:
            for source, target in zip(row[stage], row[stage + 1], strict=True):
                ways[0].update(crowds.route(source, target))
                ways[1].update(crowds.route(target, source))
        capacities = crowds.network.capacities
        return sum(max((n / capacities[link] for link, n in way.items()), default=0.0) for way in ways)


@dataclass(frozen=True, eq=False)
class Layout:
    """A placement, its layers cut."""

    placement: Placement
    shape: Shape

    @cached_property
    def least_s(self) -> float:
        """No step is shorter, by the formulas' figures: the slowest stage's work, or what waits for messages.

        With 1F1B the last k of p stages have at most k micro-batches in flight, so of n each k-th begins after the
        one k before it was there and back: (floor((n - 1) / k) + 1) x (work of these stages, and messages both ways).
        """
        foundry, size = self.placement.foundry, self.shape.micro_batch
        times = foundry.stage_seconds(self.shape.stages, size)
        count = self.placement.samples / size
        least, around = count * max(times), times[-1]
        if len(foundry.kinds) > 1:
            return least
        part = size * foundry.workload.element_bytes / self.shape.stages[0].seat.degree
        ways = self.placement.per_byte_s
        for held, way in zip(range(2, len(times) + 1), reversed(ways), strict=True):
            there = part * foundry.crossing[self.shape.stages[1 - held].first]
            around += times[-held] + there * way
            least = max(least, ((int(count) - 1) // held + 1) * around)
        return least

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
        """Layouts whose bounds are below a step time, the least bound first.

        Args:
            most_s: of the bounds.
            most: so many at most, those with the least floors; 0: all.
        """
        floors = [
            (placement.floor_s(size), number, size, placement)
            for number, placement in enumerate(self._placements())
            for size in self._sizes(placement)
        ]
        ranked = sorted((each for each in floors if each[0] < most_s), key=lambda each: each[:3])
        cut = [(placement, self._shape(placement.seats, size)) for *_, size, placement in ranked[: most or None]]
        found = [Layout(placement, shape) for placement, shape in cut if shape is not None]
        yield from sorted((each for each in found if each.least_s < most_s), key=lambda each: each.least_s)

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
