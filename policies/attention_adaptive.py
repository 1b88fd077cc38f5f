"""Adaptive attention: the keys are what the devices were measured to do, not what they were estimated to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range
from .attention_heads import AttentionHeads
from .follower import Follower


@dataclass(frozen=True, kw_only=True)
class AttentionAdaptive(Follower):
    """Attention over measured speeds at the present load, asked again as the run goes on.

    A moving average of measured over estimated times slows each device's curve, whatever the load it was measured at;
    the batch then attends to the devices in rounds. The plan so far stays where a change does not pay.
    """

    name: ClassVar[str] = "attention-adaptive"
    source: ClassVar[str] = "the project's own; the moving average as in LB-BSP (Chen et al. 2020, arXiv 1806.02508)"

    gain: Annotated[float, Range(0, 4)] = 3.0
    """Weight of what a device saves against what its synchronisation costs."""
    rounds: Annotated[int, Range(1, 12)] = 8

    def present(self, view: View) -> Plan:
        """By attention's heads, over the devices as they are now."""
        return AttentionHeads(gain=self.gain, rounds=self.rounds).allocate(view)
