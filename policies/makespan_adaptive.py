"""The exact split over devices as they were measured, asked again as the run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from .follower import Follower
from .makespan import Makespan


@dataclass(frozen=True, kw_only=True)
class MakespanAdaptive(Follower):
    """Slow each device's times by what was measured, and take the best split of the best set, where that pays."""

    name: ClassVar[str] = "makespan-adaptive"
    source: ClassVar[str] = "makespan; what devices take is predicted as LB-BSP does (Chen et al. 2020)"

    def present(self, view: View) -> Plan:
        """The exact split."""
        return Makespan().allocate(view)
