"""Fleet: how many pipelines of which shape, what each is dealt of the batch, and which devices they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ..sim.plan import Pipeline, Plan, Replica, Stage, micro_batches
from .shapes import Foundry, Held, Kind, Shape

Line = tuple[Shape, int]
"""A shape, and how many pipelines of it there are."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """Pipelines of some shapes."""

    lines: tuple[Line, ...]
    zero: int

    def deal(self, batch: int) -> list[list[int]]:
        """Samples of each pipeline, line by line: the least time within which all of them get the batch done."""
        counts = [0] * len(self.lines)
        low, high = 0.0, max(shape.seconds(batch) for shape, _ in self.lines)
        counts = self._within(high, batch)
        for _ in range(40):
            middle = (low + high) / 2
            found = self._within(middle, batch)
            if sum(n * count for n, (_, count) in zip(found, self.lines, strict=True)) >= batch:
                high, counts = middle, found
            else:
                low = middle
            if high - low <= 1e-6 * high:
                break
        return self._less(counts, batch)

    def _within(self, seconds: float, batch: int) -> list[int]:
        return [shape.most_within(seconds, batch) for shape, _ in self.lines]

    def _less(self, counts: Sequence[int], batch: int) -> list[list[int]]:
        """As many samples, less what is too much: one from each pipeline in turn, the slowest line first."""
        dealt = [[n] * count for n, (_, count) in zip(counts, self.lines, strict=True)]
        order = sorted(range(len(dealt)), key=lambda line: -self.lines[line][0].seconds(counts[line]))
        over = sum(map(sum, dealt)) - batch
        while over > 0:
            for line in order:
                for place in reversed(range(len(dealt[line]))):
                    if over and dealt[line][place]:
                        dealt[line][place] -= 1
                        over -= 1
        return dealt

    def seconds(self, dealt: Sequence[Sequence[int]]) -> float:
        """Estimated seconds of the slowest pipeline."""
        return max(
            shape.seconds(most) for (shape, _), each in zip(self.lines, dealt, strict=True) for most in [max(each)]
        )


def plan_of(foundry: Foundry, fleet: Fleet, dealt: Sequence[Sequence[int]], *, spread: bool = False) -> Plan:
    """The plan: devices for every pipeline that has a sample, the widest groups first.

    Args:
        foundry: knows the devices.
        fleet: what is built of them.
        dealt: samples of each pipeline, line by line.
        spread: whether the replicas of a stage are neighbours (and the stages far apart), or the stages of a pipeline.
    """
    rosters = [Roster(kind) for kind in foundry.kinds]
    pipelines = []
    lines = zip(fleet.lines, dealt, strict=True)
    for (shape, _), samples in sorted(lines, key=lambda each: -max(held.seat.degree for held in each[0][0].stages)):
        counts = [count for count in samples if count]
        grid = range(len(counts)), range(len(shape.stages))
        places = product(grid[1], grid[0]) if spread else ((stage, row) for row, stage in product(*grid))
        groups = {(row, stage): _stage(foundry, shape.stages[stage], rosters) for stage, row in places}
        for row, count in enumerate(counts):
            stages = [groups[row, stage] for stage in grid[1]]
            pipelines.append(Pipeline(stages=stages, micro_batches=micro_batches(count, shape.micro_batch)))
    kind = {"schedule": "1f1b"} if any(len(each.stages) > 1 for each in pipelines) else {}
    return Plan.model_validate({"pipelines": pipelines, "zero": fleet.zero, **kind})


def _stage(foundry: Foundry, held: Held, rosters: Sequence[Roster]) -> Stage:
    return staged(foundry, held, rosters[held.seat.kind].take(held.seat.degree))


def staged(foundry: Foundry, held: Held, group: Sequence[str]) -> Stage:
    """A stage of a shape on some devices."""
    return Stage(
        first=held.first,
        last=held.last,
        replicas=[Replica(devices=list(group))],
        recompute=held.recompute,
        sequence_parallel=foundry.divides_sequence(len(group)),
    )


class Roster:
    """The devices of a kind that are still free, machine by machine."""

    def __init__(self, kind: Kind) -> None:
        self._free = [list(names) for names in kind.machines]
        self._from = 0

    def groups(self, degree: int) -> Iterator[list[str]]:
        """Groups of one machine each, as long as there are any."""
        while any(len(names) >= degree for names in self._free[self._from :]):
            yield self.take(degree)

    def take(self, degree: int) -> list[str]:
        """The next group of one machine."""
        for names in self._free[self._from :]:
            if len(names) >= degree:
                group, names[:degree] = names[:degree], []
                break
        else:
            raise AssertionError("a fleet has no more groups than its kinds do")
        while self._from < len(self._free) and not self._free[self._from]:
            self._from += 1
        return group
