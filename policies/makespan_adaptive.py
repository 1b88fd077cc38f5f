"""The exact split over devices as they were measured, asked again as the run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, canonical
from .makespan import Makespan
from .online import settled, slow_factors
from .overlap import step_s


@dataclass(frozen=True, kw_only=True)
class MakespanAdaptive:
    """Slow each device's times by what was measured, and take the best split of the best set, where that pays."""

    name: ClassVar[str] = "makespan-adaptive"
    source: ClassVar[str] = "makespan; what devices take is predicted as LB-BSP does (Chen et al. 2020)"
    adaptive: ClassVar[bool] = True

    weight: Annotated[float, Range(0.05, 1.0)] = 0.8
    """Of the newest step in the moving average; 1 believes it alone."""
    hysteresis: Annotated[float, Range(0.0, 10.0)] = 1.0
    """How many times its price a change must save over the steps that are left."""
    least_gain: Annotated[float, Range(0.0, 0.5)] = 0.02
    """Share of the step that a change must save."""

    def allocate(self, view: View) -> Plan:
        """The exact split for the devices as they are now; the plan so far where a change is not worth it.

        Raises:
            Infeasible: the batch does not fit.
        """
        view = canonical(view)
        now = view.slowed(slow_factors(view, self.weight))
        plan = Makespan().allocate(now)
        if view.current is None or not view.current.is_data_parallel:
            return plan
        return settled(view, plan, partial(step_s, now), hysteresis=self.hysteresis, least_gain=self.least_gain)
