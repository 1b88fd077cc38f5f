"""AMP's space: one regular layout for all pipelines, its layers cut for uneven layers and for the slowest devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Pipeline, Plan, micro_batches
from ..sim.view import View
from ._base import Range
from .fleet import staged
from .hybrid import Judge, Judged, nothing_fits
from .shapes import Foundry, Seat, Shape

Group = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Amp:
    """Try all degrees, micro-batches and two placements of equal pipelines, cut so that the slowest stage is quickest.

    Every pipeline has the same stages and the same share of the batch, as AMP's strategies do; unlike theirs, the
    strategies are compared by our own estimate of a step, and the least maximum of the stages' times is bisected.
    """

    name: ClassVar[str] = "amp"
    source: ClassVar[str] = (
        "AMP, Li, Wang, Xing and Zhang 2022 (arXiv 2210.07297): degrees, micro-batch size, placement, layer assignment"
    )
    rigid: ClassVar[bool] = True

    deepest: Annotated[int, Range(1, 64, log=True)] = 16
    """Most stages that are tried."""

    def allocate(self, view: View) -> Plan:
        """The quickest of the strategies by the estimate; with a cost or energy objective the best by that.

        Raises:
            Infeasible: no strategy fits in memory, or none keeps the objective's floor and budget.
        """
        judge, foundry = Judge(view), Foundry(view)
        found: list[Judged] = []
        for plan in self._strategies(view, foundry):
            if judge.fits(plan):
                found.append((plan, judge.estimator.of(plan)))
        if not found:
            raise nothing_fits(view, foundry)
        allowed = [each for each in found if judge.allows(each[1])]
        if not allowed:
            raise judge.refusal([estimate for _, estimate in found])
        return min(allowed, key=lambda each: judge.order(each[1]))[0]

    def _strategies(self, view: View, foundry: Foundry) -> Iterator[Plan]:
        degrees = sorted({degree for kind in foundry.kinds for degree in foundry.degrees(kind)})
        for degree in degrees:
            groups = [(kind.number, group) for kind in foundry.kinds for group in kind.groups(degree)]
            for depth in range(1, min(len(groups), foundry.layers, self.deepest) + 1):
                count = min(len(groups) // depth, view.global_batch)
                if count and (depth == 1 or depth * count * degree > len(view.devices) / 2):
                    yield from self._placed(view, foundry, groups, (degree, depth, count))

    @staticmethod
    def _placed(
        view: View, foundry: Foundry, groups: Sequence[tuple[int, Group]], sizes: tuple[int, int, int]
    ) -> Iterator[Plan]:
        """Both placements: the replicas of a stage side by side, or the stages of a pipeline."""
        degree, depth, count = sizes
        rows = [[groups[stage * count + number] for stage in range(depth)] for number in range(count)]
        beside = [[groups[number * depth + stage] for stage in range(depth)] for number in range(count)]
        for layout in [rows] if depth == 1 else [rows, beside]:
            seats = [Seat(max(row[stage][0] for row in layout), degree) for stage in range(depth)]
            for size in foundry.sizes():
                shape = foundry.shape(seats, size, 0, 1) if size <= -(-view.global_batch // count) else None
                if shape is None:
                    break
                yield _plan(foundry, shape, [[group for _, group in row] for row in layout])


def _plan(foundry: Foundry, shape: Shape, layout: Sequence[Sequence[Group]]) -> Plan:
    """Equal pipelines; the first ones get the samples that are left over."""
    share, over = divmod(foundry.view.global_batch, len(layout))
    pipelines = [
        Pipeline(
            stages=[staged(foundry, held, group) for held, group in zip(shape.stages, row, strict=True)],
            micro_batches=micro_batches(share + (number < over), shape.micro_batch),
        )
        for number, row in enumerate(layout)
    ]
    kind = {"schedule": "1f1b"} if len(shape.stages) > 1 else {}
    return Plan.model_validate({"pipelines": pipelines, **kind})
