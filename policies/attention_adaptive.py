"""Adaptive attention: the keys are what the devices were measured to do, not what they were estimated to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, canonical
from .attention_heads import AttentionHeads
from .online import settled, slow_factors
from .overlap import step_s


@dataclass(frozen=True, kw_only=True)
class AttentionAdaptive:
    """Attention over measured speeds at the present load, asked again as the run goes on.

    A moving average of measured over estimated times slows each device's curve, whatever the load it was measured at;
    the batch then attends to the devices in rounds. The plan so far stays where a change does not pay.
    """

    name: ClassVar[str] = "attention-adaptive"
    source: ClassVar[str] = "the project's own; the moving average as in LB-BSP (Chen et al. 2020, arXiv 1806.02508)"
    adaptive: ClassVar[bool] = True

    weight: Annotated[float, Range(0.05, 1.0)] = 0.8
    """Of the newest step in the moving average; 1 believes it alone."""
    hysteresis: Annotated[float, Range(0.0, 10.0)] = 1.0
    """How many times its price a change must save over the steps that are left."""
    least_gain: Annotated[float, Range(0.0, 0.5)] = 0.02
    """Share of the step that a change must save."""
    gain: Annotated[float, Range(0, 4)] = 3.0
    """Weight of what a device saves against what its synchronisation costs."""
    rounds: Annotated[int, Range(1, 12)] = 8

    def allocate(self, view: View) -> Plan:
        """The batch over the devices as they are now; the plan so far where a change is not worth it.

        Raises:
            Infeasible: the batch does not fit.
        """
        view = canonical(view)
        now = view.slowed(slow_factors(view, self.weight))
        plan = AttentionHeads(gain=self.gain, rounds=self.rounds).allocate(now)
        if view.current is None or not view.current.is_data_parallel:
            return plan
        return settled(view, plan, partial(step_s, now), hysteresis=self.hysteresis, least_gain=self.least_gain)
