"""AMP's space: one regular layout for all pipelines, its layers cut for uneven layers and for the slowest devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range
from .aims import OBJECTIVE, Aim, aimed
from .hybrid import Judge, best_of, looked_at
from .layouts import Layouts
from .shapes import Foundry


@dataclass(frozen=True, kw_only=True)
class Amp:
    """Search AMP's space of strategies, equal pipelines cut for uneven layers and devices, by our estimate of a step.

    Degrees, micro-batches and two placements are all tried, each cut so that the slowest stage is quickest.
    Every pipeline has the same stages and the same share of the batch, as AMP's strategies do; unlike theirs, the
    strategies are compared by our own estimate of a step, and the least maximum of the stages' times is bisected.

    Paper: Li, Wang, Xing, Zhang 2022, AMP: Automatically Finding Model Parallel Strategies with Heterogeneity
    Awareness (arXiv 2210.07297).
    """

    name: ClassVar[str] = "amp"
    source: ClassVar[str] = (
        "AMP, Li, Wang, Xing and Zhang 2022 (arXiv 2210.07297): degrees, micro-batch size, placement, layer assignment"
    )
    rigid: ClassVar[bool] = True

    deepest: Annotated[int, Range(1, 64, log=True)] = 16
    """Most stages that are tried."""
    aim: Annotated[str, Aim()] = OBJECTIVE
    """What the plan is to be best at; by default what the scenario's objective says."""

    def allocate(self, view: View) -> Plan:
        """The quickest of the strategies by the estimate; with a cost or energy objective the best by that.

        Raises:
            Infeasible: no strategy fits in memory, none keeps the objective's floor and budget, or the objective is
                none of :data:`.aims.KNOWN`.
        """
        view = aimed(view, self.aim)
        judge, foundry = Judge(view), Foundry(view)
        return best_of(judge, foundry, looked_at(judge, Layouts(foundry, self.deepest)))[0]
