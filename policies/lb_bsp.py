"""LB-BSP: batch sizes in proportion to predicted speeds, set anew at the barriers between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, canonical, round_shares
from .online import LEAST_S, settled, steps_ahead
from .outlook import predicted


@dataclass(frozen=True, kw_only=True)
class LbBsp:
    """Give each device samples in proportion to its speed as a moving average of the measured past predicts it."""

    name: ClassVar[str] = "lb-bsp"
    source: ClassVar[str] = "Chen et al. 2020, Semi-Dynamic Load Balancing (LB-BSP), arXiv 1806.02508, moving average"
    adaptive: ClassVar[bool] = True

    weight: Annotated[float, Range(0.05, 1.0)] = 0.8
    """Of the newest step in the moving average; 1 believes it alone. (The paper's recurrent network is left out.)"""
    hysteresis: Annotated[float, Range(0.0, 10.0)] = 1.0
    """How many times its price a change must save over the steps that are left."""
    least_gain: Annotated[float, Range(0.0, 0.5)] = 0.04
    """Share of the step that a change must save."""

    def allocate(self, view: View) -> Plan:
        """The batch in proportion to predicted speeds; the plan so far where a change is not worth it."""
        view = canonical(view)
        speeds = predicted_speeds(view, self.weight)
        plan = round_shares(view, [speeds[device.name] for device in view.devices])
        if view.current is None or not view.current.is_data_parallel:
            return plan
        step_s = partial(_step_s, view, speeds)
        return settled(view, plan, step_s, hysteresis=self.hysteresis, least_gain=self.least_gain)


def predicted_speeds(view: View, weight: float) -> dict[str, float]:
    """Samples per second of each device: predicted from the past, the estimate where there is none."""
    found: dict[str, list[float]] = {}
    for entry in view.history:
        for name, past in entry["devices"].items():
            if past["samples"] and past["compute_s"] > LEAST_S:
                found.setdefault(name, []).append(past["compute_s"] / past["samples"])
    ahead = steps_ahead(view)
    estimates = zip(view.devices, view.speeds, strict=True)
    return {
        device.name: 1 / predicted(found[device.name], weight, ahead) if device.name in found else estimate
        for device, estimate in estimates
    }


def _step_s(view: View, speeds: Mapping[str, float], plan: Plan) -> float:
    """The slowest device at its predicted speed, and the all-reduce; without end where a device is gone."""
    samples = plan.samples()
    if any(name not in speeds for name in samples):
        return float("inf")
    return max(count / speeds[name] for name, count in samples.items()) + view.sync_s(sorted(samples))
