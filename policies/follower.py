"""Follower: a policy for the present, asked again with devices as they were measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, canonical
from .foresight import foreseen, scheduled
from .online import settled, slow_factors
from .overlap import step_s


@dataclass(frozen=True, kw_only=True)
class Follower(ABC):
    """Slows each device's times by what was measured, and splits the batch anew where that pays.

    Where a device slows down and recovers again and again, the changes that are left are scheduled (:mod:`.foresight`).
    """

    adaptive: ClassVar[bool] = True

    weight: Annotated[float, Range(0.05, 1.0)] = 0.8
    """Of the newest step in the moving average; 1 believes it alone."""
    hysteresis: Annotated[float, Range(0.0, 10.0)] = 1.0
    """How many times its price a change must save over the steps that are left."""
    least_gain: Annotated[float, Range(0.0, 0.5)] = 0.04
    """Share of the step that a change must save."""

    def allocate(self, view: View) -> Plan:
        """The batch over the devices as they are now; the plan so far where a change is not worth it.

        Raises:
            Infeasible: the batch does not fit.
        """
        view = canonical(view)
        coming = foreseen(view, self.weight) if view.current is not None and view.current.is_data_parallel else None
        if coming is not None:
            least = {"hysteresis": self.hysteresis, "least_gain": self.least_gain}
            return scheduled(view, coming, self.present, step_s, **least)
        now = view.slowed(slow_factors(view, self.weight))
        plan = self.present(now)
        if view.current is None or not view.current.is_data_parallel:
            return plan
        return settled(view, plan, partial(step_s, now), hysteresis=self.hysteresis, least_gain=self.least_gain)

    @abstractmethod
    def present(self, view: View) -> Plan:
        """The split for devices that stay as they are."""
