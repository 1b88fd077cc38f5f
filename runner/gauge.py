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

from ..sim.cost import peak_memory_bytes
from ..sim.device import GIB, Device
from ..sim.disturbances import slowed
from ..sim.estimate import Estimator
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import View
from ..sim.workload import Workload
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


def gauge_tasks(scenario: Scenario, *, beyond: int = 0, but: Collection[int] = ()) -> list[Task]:
    """The task that gauges all lanes at once, at the middle of the calibrated sizes that they have in common.

    A lane whose memory has no room for a step of the whole model at any of its sizes is left out: it waits meanwhile.

    Args:
        scenario: of lanes with tables.
        beyond: only larger sizes will do.
        but: sizes that will not do.

    Returns:
        No task where no size is left.
    """
    fitting = [_fitting(scenario, device, beyond, but) for device in scenario.cluster.devices]
    ranks = [rank for rank, sizes in enumerate(fitting) if sizes]
    common = sorted(set[int].intersection(*(set(fitting[rank]) for rank in ranks))) if ranks else []
    if not common:
        return []
    middle = common[len(common) // 2]
    return [{"op": "gauge", "micro_batch": middle, "seconds": SECONDS, "least": LEAST_STEPS, "gauged": ranks}]


def not_gauged(scenario: Scenario, *, beyond: int = 0, but: Collection[int] = ()) -> list[str]:
    """A note on every lane that such a task leaves out for want of memory."""
    found = []
    for device in scenario.cluster.devices:
        sizes = _calibrated(device, beyond, but)
        if sizes and not _fitting(scenario, device, beyond, but):
            needed, room = _needed_bytes(scenario.workload, sizes[0]) / GIB, device.memory_bytes / GIB
            found.append(
                f"{device.name} is not gauged: steps of the whole model at {sizes[0]} samples need {needed:.3g} GiB, "
                f"it has {room:.3g}"
            )
    return found


def _fitting(scenario: Scenario, device: Device, beyond: int, but: Collection[int]) -> list[int]:
    """The calibrated sizes at which a lane has room for what a gauge holds."""
    sizes = _calibrated(device, beyond, but)
    return [size for size in sizes if _needed_bytes(scenario.workload, size) <= device.memory_bytes]


def _calibrated(device: Device, beyond: int, but: Collection[int]) -> list[int]:
    """A lane's calibrated sizes that will do, the smallest first."""
    return sorted(size for size in _work_s(device) if size > beyond and size not in but)


def _needed_bytes(workload: Workload, micro_batch: int) -> float:
    """What a gauge holds: a step of the whole model, and the weights and states that are put back after it."""
    put_back = workload.state_bytes - workload.gradient_bytes
    return peak_memory_bytes(workload, micro_batch) + put_back


def at_present_speed(scenario: Scenario, run: Callable[[Sequence[Task]], LaunchResult]) -> tuple[Scenario, list[str]]:
    """The scenario with its lanes as fast as they are now, which may be long after their calibration.

    No plan runs for it: only steps of a calibrated size that is beyond any plan's micro-batches, so that no plan's own
    size tells its time. Lanes within the noise stay as they are.

    Args:
        scenario: of lanes with tables.
        run: runs the tasks of one launch.

    Returns:
        The scenario, and a note on every lane that is off its table, or that has no room to be gauged.
    """
    workload, launches = scenario.workload, scenario.replay.gauge_launches
    beyond = workload.max_micro_batch or workload.global_batch
    tasks = BLOCKS * gauge_tasks(scenario, beyond=beyond)
    if not launches:
        return scenario, []
    if not tasks:
        return scenario, not_gauged(scenario, beyond=beyond)
    drift = Drift.of(scenario, [run(tasks) for _ in range(launches)])
    off = {name: 1 + each / 100 for name, each in drift.percent.items() if abs(each) > NOISE_PERCENT}
    strange = {name for name, factor in off.items() if not 1 / MOST_FACTOR <= factor <= MOST_FACTOR}
    factors = {name: factor for name, factor in off.items() if name not in strange}
    notes = not_gauged(scenario, beyond=beyond) + [
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
