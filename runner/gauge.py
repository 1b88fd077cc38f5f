"""Gauge: how fast the lanes are now, held against the tables that predictions are made from.

In every launch, between the plans, all lanes do steps of one calibrated micro-batch size, as at calibration. So
the gauge has the model's own mix of work: on one host a small kernel of cached products became 5 % slower while the
model's steps became 14 % slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..sim.device import Cluster, Device
from ..sim.disturbances import slowed
from ..sim.estimate import step_s
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import View
from .calibrate import step_blocks
from .launch import LaunchResult, Task

SECONDS = 0.3
LEAST_STEPS = 3
PLANS_PER_GAUGE = 3
"""Blocks of plans from one gauge to the next: a neighbour of the host comes and goes within seconds."""


def gauge_tasks(cluster: Cluster) -> list[Task]:
    """The task that gauges all lanes at once; none where they have no calibrated size in common."""
    sizes = set.intersection(*(set(_work_s(device)) for device in cluster.devices))
    if not sizes:
        return []
    middle = sorted(sizes)[len(sizes) // 2]
    return [{"op": "gauge", "micro_batch": middle, "seconds": SECONDS, "least": LEAST_STEPS}]


def drift_percent(cluster: Cluster, launches: Sequence[LaunchResult]) -> dict[str, float]:
    """By how much each lane is slower than its table, in percent: the median over launches of each launch's median.

    A lane that was not gauged is left out.
    """
    found = {}
    for rank, device in enumerate(cluster.devices):
        table = _work_s(device)
        gauged = [_ratios(launch, rank, table) for launch in launches]
        if any(gauged):
            found[device.name] = 100 * (median(median(each) for each in gauged if each) - 1)
    return found


def drift_factors(scenario: Scenario, plan: Plan, launches: Sequence[LaunchResult]) -> list[float]:
    """Per launch, how many times as long a step of a plan takes at the speeds that the launch's gauge found.

    By the tables, without noise. Empty where a lane was not gauged in every launch.
    """
    gauged = [drift_percent(scenario.cluster, [launch]) for launch in launches]
    if any(len(each) < len(scenario.cluster.devices) for each in gauged):
        return []
    calibrated_s = step_s(View.of(scenario), plan)
    factors = [{name: 1 + percent / 100 for name, percent in each.items()} for each in gauged]
    drifted = [scenario.model_copy(update={"cluster": slowed(scenario.cluster, each)}) for each in factors]
    return [step_s(View.of(each), plan) / calibrated_s for each in drifted]


def _ratios(launch: LaunchResult, rank: int, table: dict[int, float]) -> list[float]:
    blocks = step_blocks(launch, rank, "gauge")
    return [(forward + backward) / table[size] for size, steps in blocks for forward, backward in steps]


def _work_s(device: Device) -> dict[int, float]:
    """Forward and backward seconds by calibrated micro-batch size."""
    return (
        {each.micro_batch: each.forward_s + each.backward_s for each in device.profile.points} if device.profile else {}
    )
