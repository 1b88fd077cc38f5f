"""Gauge: how fast the lanes are now, held against the tables that predictions are made from.

Before a replay predicts, and in its launches between the plans, all lanes do steps of one calibrated micro-batch
size, as at calibration. So the gauge has the model's own mix of work: on one host a small kernel of cached products
became 5 % slower while the model's steps became 14 % slower.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Self

from ..sim.device import Cluster, Device
from ..sim.disturbances import slowed
from ..sim.estimate import Estimator
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import View
from .calibrate import step_blocks
from .launch import LaunchResult, Task

SECONDS = 0.3
LEAST_STEPS = 3
BLOCKS = 6
"""In each of the launches that a replay gauges before it predicts anything."""
NOISE_PERCENT = 3.0
"""A lane within this of its table runs as it did at calibration, as far as so few launches can tell."""
MOST_FACTOR = 2.0
"""Tables that are further off than this are not a slower or faster day of this lane."""
PLANS_PER_GAUGE = 3
"""Blocks of plans from one gauge to the next: a neighbour of the host comes and goes within seconds."""


def gauge_tasks(cluster: Cluster, *, beyond: int = 0, but: Collection[int] = ()) -> list[Task]:
    """The task that gauges all lanes at once, at the middle of the calibrated sizes that they have in common.

    Args:
        cluster: of lanes with tables.
        beyond: only larger sizes will do.
        but: sizes that will not do.

    Returns:
        No task where no size is left.
    """
    common = set.intersection(*(set(_work_s(device)) for device in cluster.devices))
    sizes = sorted(size for size in common if size > beyond and size not in but)
    if not sizes:
        return []
    return [{"op": "gauge", "micro_batch": sizes[len(sizes) // 2], "seconds": SECONDS, "least": LEAST_STEPS}]


def at_present_speed(scenario: Scenario, run: Callable[[Sequence[Task]], LaunchResult]) -> tuple[Scenario, list[str]]:
    """The scenario with its lanes as fast as they are now, which may be long after their calibration.

    No plan runs for it: only steps of a calibrated size that is beyond any plan's micro-batches, so that no plan's own
    size tells its time. Lanes within the noise stay as they are.

    Args:
        scenario: of lanes with tables.
        run: runs the tasks of one launch.

    Returns:
        The scenario, and a note on every lane that is off its table.
    """
    workload, launches = scenario.workload, scenario.replay.gauge_launches
    tasks = BLOCKS * gauge_tasks(scenario.cluster, beyond=workload.max_micro_batch or workload.global_batch)
    if not tasks or not launches:
        return scenario, []
    drift = Drift.of(scenario, [run(tasks) for _ in range(launches)])
    off = {name: 1 + each / 100 for name, each in drift.percent.items() if abs(each) > NOISE_PERCENT}
    strange = {name for name, factor in off.items() if not 1 / MOST_FACTOR <= factor <= MOST_FACTOR}
    factors = {name: factor for name, factor in off.items() if name not in strange}
    notes = [
        f"{name} takes {factor:.2f} times as long as calibrated: "
        + ("its tables are not of this lane, calibrate again" if name in strange else "its tables are scaled by that")
        for name, factor in off.items()
    ]
    return scenario.model_copy(update={"cluster": slowed(scenario.cluster, factors)}), notes


@dataclass(frozen=True)
class Drift:
    """What the gauges of some launches say of their lanes, whatever plans they ran."""

    scenario: Scenario
    launches: Sequence[Mapping[str, float]]
    """Per launch, how many times as long as its table each lane took: the launch's median. Without those not gauged."""

    @classmethod
    def of(cls, scenario: Scenario, launches: Sequence[LaunchResult]) -> Self:
        """Hold the gauges of complete launches against the tables of the scenario."""
        tables = {device.name: _work_s(device) for device in scenario.cluster.devices}
        return cls(scenario, [dict(_medians(launch, tables)) for launch in launches])

    @cached_property
    def percent(self) -> dict[str, float]:
        """By how much each lane is slower than its table, in percent: the median over the launches.

        A lane that was not gauged is left out.
        """
        names = [device.name for device in self.scenario.cluster.devices]
        own = {name: [launch[name] for launch in self.launches if name in launch] for name in names}
        return {name: 100 * (median(factors) - 1) for name, factors in own.items() if factors}

    def factors(self, plan: Plan) -> list[float]:
        """Per launch, how many times as long a step of a plan takes at the speeds that the launch's gauge found.

        By the tables, without noise. Empty where a lane was not gauged in every launch.
        """
        if any(len(each) < len(self.scenario.cluster.devices) for each in self.launches):
            return []
        calibrated_s = self._calibrated.of(plan).step_s
        return [each.of(plan).step_s / calibrated_s for each in self._drifted]

    @cached_property
    def _calibrated(self) -> Estimator:
        return Estimator(View.of(self.scenario))

    @cached_property
    def _drifted(self) -> list[Estimator]:
        """What estimates plans at the speeds of each launch."""
        cluster = self.scenario.cluster
        at = [self.scenario.model_copy(update={"cluster": slowed(cluster, each)}) for each in self.launches]
        return [Estimator(View.of(each)) for each in at]


def _medians(launch: LaunchResult, tables: Mapping[str, dict[int, float]]) -> Iterator[tuple[str, float]]:
    for rank, (name, table) in enumerate(tables.items()):
        if ratios := _ratios(launch, rank, table):
            yield name, median(ratios)


def _ratios(launch: LaunchResult, rank: int, table: dict[int, float]) -> list[float]:
    blocks = step_blocks(launch, rank, "gauge")
    return [(forward + backward) / table[size] for size, steps in blocks for forward, backward in steps]


def _work_s(device: Device) -> dict[int, float]:
    """Forward and backward seconds by calibrated micro-batch size, at the speed that the scenario gives the device."""
    if (profile := device.profile) is None:
        return {}
    # Refined tables are of passes within plans; the gauge's are bare ones, as at calibration.
    return {
        each.micro_batch: device.slowdown
        * (each.forward_s / profile.forward_factor + each.backward_s / profile.backward_factor)
        for each in profile.points
    }
