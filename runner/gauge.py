"""Gauge: how fast the lanes are now, held against the tables that predictions are made from.

In every launch, between the rounds, all lanes do steps of one calibrated micro-batch size, as at calibration. So
the gauge has the model's own mix of work: on one host a small kernel of cached products became 5 % slower while the
model's steps became 14 % slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..sim.device import Cluster, Device
from .calibrate import step_blocks
from .launch import LaunchResult, Task

SECONDS = 0.25
LEAST_STEPS = 3


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


def _ratios(launch: LaunchResult, rank: int, table: dict[int, float]) -> list[float]:
    blocks = step_blocks(launch, rank, "gauge")
    return [(forward + backward) / table[size] for size, steps in blocks for forward, backward in steps]


def _work_s(device: Device) -> dict[int, float]:
    """Forward and backward seconds by calibrated micro-batch size."""
    return (
        {each.micro_batch: each.forward_s + each.backward_s for each in device.profile.points} if device.profile else {}
    )
