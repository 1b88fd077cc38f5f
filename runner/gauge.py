"""Gauge: how fast the lanes are now, held against the tables that predictions are made from.

Before a replay predicts, and in its launches between the plans, all lanes do steps of the model, as at calibration. So
the gauge has the model's own mix of work: on one host a small kernel of cached products became 5 % slower while the
model's steps became 14 % slower. And it has several sizes, each held against what the table is read as: a single one
tells that point's luck at calibration for the lane's speed (5 % on a quiet host, of the largest size).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Self

from ..sim.cost import peak_memory_bytes, profiled_cost
from ..sim.device import GIB, Device, GaugedSize
from ..sim.disturbances import slowed
from ..sim.estimate import Estimator
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import View
from ..sim.workload import Workload
from .blocks import step_blocks
from .launch import LaunchResult, Task

SECONDS = 0.3
LEAST_STEPS = 3
ROUNDS = 3
"""Over all sizes, in each of the launches that a replay gauges before it predicts anything."""
PLACES = (0.25, 0.5, 0.75, 1.0)
"""Of the sizes to gauge at among the calibrated ones. Not the smallest: their time is not that of the products."""
NOISE_PERCENT = 3.0
"""A lane within this of its table runs as it did at calibration, as far as so few launches can tell."""
MOST_FACTOR = 2.0
"""Tables that are further off than this are not a slower or faster day of this lane."""
PLANS_PER_GAUGE = 3
"""Blocks of plans from one gauge to the next: a neighbour of the host comes and goes within seconds."""


def gauge_tasks(scenario: Scenario, *, but: Collection[int] = (), every: bool = False) -> list[Task]:
    """The tasks that gauge all lanes at once, one per size, at some of the calibrated sizes that they have in common.

    A lane whose memory has no room for a step of the whole model at any of its sizes is left out: it waits meanwhile.

    Args:
        scenario: of lanes with tables.
        but: sizes that will not do.
        every: at all of them, from the first of the places on.

    Returns:
        No task where no size is left.
    """
    fitting = [_fitting(scenario, device, but) for device in scenario.cluster.devices]
    ranks = [rank for rank, sizes in enumerate(fitting) if sizes]
    common = sorted(set[int].intersection(*(set(fitting[rank]) for rank in ranks))) if ranks else []
    if not common:
        return []
    places = [round(place * (len(common) - 1)) for place in PLACES]
    sizes = common[places[0] :] if every else list(dict.fromkeys(common[place] for place in places))
    return [
        {"op": "gauge", "micro_batch": size, "seconds": SECONDS, "least": LEAST_STEPS, "gauged": ranks}
        for size in sizes
    ]


def not_gauged(scenario: Scenario) -> list[str]:
    """A note on every lane that such tasks leave out for want of memory."""
    found = []
    for device in scenario.cluster.devices:
        sizes = sorted(_work_s(device))
        if sizes and not _fitting(scenario, device):
            needed, room = _needed_bytes(scenario.workload, sizes[0]) / GIB, device.memory_bytes / GIB
            found.append(
                f"{device.name} is not gauged: steps of the whole model at {sizes[0]} samples need {needed:.3g} GiB, "
                f"it has {room:.3g}"
            )
    return found


def _fitting(scenario: Scenario, device: Device, but: Collection[int] = ()) -> list[int]:
    """The calibrated sizes at which a lane has room for what a gauge holds; once it was gauged, of those alone."""
    gauged = {each.micro_batch for each in device.profile.gauged} if device.profile is not None else set()
    sizes = (size for size in _work_s(device) if size not in but and (not gauged or size in gauged))
    return [size for size in sizes if _needed_bytes(scenario.workload, size) <= device.memory_bytes]


def _needed_bytes(workload: Workload, micro_batch: int) -> float:
    """What a gauge holds: a step of the whole model, and the weights and states that are put back after it."""
    put_back = workload.state_bytes - workload.gradient_bytes
    return peak_memory_bytes(workload, micro_batch) + put_back


@dataclass(frozen=True)
class Gauged:
    """What the launches found in which a replay gauged its lanes before it predicted anything; no plan ran in them."""

    scenario: Scenario
    launches: Sequence[LaunchResult]

    @classmethod
    def by(cls, scenario: Scenario, run: Callable[[Sequence[Task]], LaunchResult]) -> Self:
        """Gauge the lanes of a scenario, in as many launches as its ``replay`` says.

        Args:
            scenario: of lanes with tables.
            run: runs the tasks of one launch.
        """
        tasks = ROUNDS * gauge_tasks(scenario, every=True)
        return cls(scenario, [run(tasks) for _ in range(scenario.replay.gauge_launches)] if tasks else [])

    def at_present_speed(self, but: Collection[int] = ()) -> tuple[Scenario, list[str]]:
        """The scenario with its lanes as fast as they are now, which may be long after their calibration.

        Lanes within the noise stay as they are. What steps of one size take beside those of others, of what the tables
        say, is kept for later gauges: they are at fewer sizes, and hold each against its own.

        Args:
            but: sizes of plans that are predicted from it, whose own time must not tell it.

        Returns:
            The scenario, and a note on every lane that is off its table.
        """
        if not self.scenario.replay.gauge_launches:
            return self.scenario, []
        percent = Drift.of(self.scenario, self.launches, but).percent
        factors, notes = beyond_noise({name: 1 + each / 100 for name, each in percent.items()}, "{} takes")
        cluster = slowed(self.scenario.cluster, factors)
        biased = cluster.changed(lambda device: self._biased(device, but))
        return self.scenario.model_copy(update={"cluster": biased}), notes

    def _biased(self, device: Device, but: Collection[int]) -> Device:
        """A device that knows what its gauge finds at each size, beside the median of the sizes of the same round."""
        rank = [each.name for each in self.scenario.cluster.devices].index(device.name)
        table = {size: seconds for size, seconds in _work_s(device).items() if size not in but}
        found: dict[int, list[float]] = {}
        for launch in self.launches:
            blocks = _ratios(launch, rank, table)
            sizes = len({size for size, _ in blocks})
            for start in range(0, len(blocks), max(1, sizes)):
                own = blocks[start : start + sizes]
                middle = median(ratio for _, ratio in own)
                for size, ratio in own:
                    found.setdefault(size, []).append(ratio / middle)
        if device.profile is None or not found:
            return device
        before = {each.micro_batch: each.bias for each in device.profile.gauged}  # the table above has it already
        gauged = [
            GaugedSize(micro_batch=size, bias=before.get(size, 1.0) * median(ratios))
            for size, ratios in sorted(found.items())
        ]
        return device.model_copy(update={"profile": device.profile.model_copy(update={"gauged": gauged})})


def beyond_noise(
    factors: Mapping[str, float], who: str, mend: str = "calibrate again"
) -> tuple[dict[str, float], list[str]]:
    """Which lanes' tables are to be scaled, by what, and a note on each that is off.

    Args:
        factors: how many times as long as by its table each lane takes now.
        who: the note's first words, with ``{}`` for the lane.
        mend: what to do about tables that are too far off.
    """
    off = {name: factor for name, factor in factors.items() if abs(factor - 1) > NOISE_PERCENT / 100}
    strange = {name for name, factor in off.items() if not 1 / MOST_FACTOR <= factor <= MOST_FACTOR}
    notes = [
        f"{who.format(name)} {factor:.2f} times as long as calibrated: "
        + (f"its tables are not of this lane, {mend}" if name in strange else "its tables are scaled by it")
        for name, factor in off.items()
    ]
    return {name: factor for name, factor in off.items() if name not in strange}, notes


@dataclass(frozen=True)
class Drift:
    """What the gauges of some launches say of their lanes, whatever plans they ran."""

    scenario: Scenario
    launches: Sequence[Mapping[str, float]]
    """Per launch, how many times as long as its table each lane took: the launch's median. Without those not gauged."""

    @classmethod
    def of(cls, scenario: Scenario, launches: Sequence[LaunchResult], but: Collection[int] = ()) -> Self:
        """Hold the gauges of complete launches, but those at some sizes, against the tables of the scenario."""
        tables = {
            device.name: {size: seconds for size, seconds in _work_s(device).items() if size not in but}
            for device in scenario.cluster.devices
        }
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
        if ratios := [ratio for _, ratio in _ratios(launch, rank, table)]:
            yield name, median(ratios)


def _ratios(launch: LaunchResult, rank: int, table: Mapping[int, float]) -> list[tuple[int, float]]:
    """Per block its size, and the median step over what the table says: small sizes have more steps, no more say."""
    return [
        (size, median(forward + backward for forward, backward in steps) / table[size])
        for size, steps in step_blocks(launch, rank, "gauge")
        if size in table and steps
    ]


def _work_s(device: Device) -> dict[int, float]:
    """Forward and backward seconds by calibrated size, as predictions read the table, at the device's speed.

    Where the gauge has found what a size takes beside the others, that is in them.
    """
    if (profile := device.profile) is None:
        return {}
    read = profiled_cost(device.name, profile, device.slowdown)
    bias = {each.micro_batch: each.bias for each in profile.gauged}
    # Refined tables are of passes within plans; the gauge's are bare ones, as at calibration.
    return {
        size: bias.get(size, 1.0)
        * (read.forward.at(size) / profile.forward_factor + read.backward.at(size) / profile.backward_factor)
        for size in sorted(point.micro_batch for point in profile.points)
    }
