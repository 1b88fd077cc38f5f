"""Pacing: what to ask of a lane's quota so that it becomes as slow as a scenario says.

A quota of half the processor's time does not make a lane take exactly twice as long: being stopped and started costs
time itself. So the lanes that a run slows down are gauged under the quota before anything is predicted, at sizes that
no plan of theirs has, and the run asks for what gives the factor if what goes beyond 1 grows in proportion. It is
corrected once. The gauge's steps wait for nobody: how a lane uses its quota between waits it does not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from ..sim.disturbances import factors_at
from ..sim.spec import Scenario
from .blocks import quiet_steps, spent_s
from .gauge import gauge_tasks
from .launch import LaunchResult, Task

ROUNDS = 2
"""Over all sizes, as fast as ever and slowed."""
LEAST_PACE, MOST_PACE = 0.5, 2.0
"""What is asked beyond 1 is corrected by no more than this: a lane further off is not slowed by its quota alone."""


@dataclass(frozen=True)
class Pacing:
    """How the lanes of a run are slowed, step by step and lane by lane."""

    scenario: Scenario
    gained: Mapping[str, float] = field(default_factory=dict)
    """Per lane that was gauged while slowed, how many times as long it took when asked for its largest factor."""

    @classmethod
    def by(
        cls, scenario: Scenario, run: Callable[[Sequence[Task], Collection[str]], LaunchResult], but: Collection[int]
    ) -> Pacing:
        """Gauge the lanes that a scenario slows down, in one launch.

        Args:
            scenario: of lanes with tables.
            run: runs the tasks of a launch in which the named lanes can be slowed.
            but: sizes of the plans that are predicted, at which nothing is gauged.
        """
        pacing = cls(scenario)
        plain = gauge_tasks(scenario, but=but)
        if not scenario.replay.gauge_launches or not pacing.slowed_lanes or not plain:
            return pacing
        asked = [pacing.most.get(name, 1.0) for name in pacing.names]
        launch = run(ROUNDS * [*plain, *({**task, "slow": asked} for task in plain)], pacing.slowed_lanes)
        gained = {name: _gained(launch, pacing.names.index(name)) for name in pacing.slowed_lanes}
        return cls(scenario, {name: factor for name, factor in gained.items() if factor is not None})

    @property
    def names(self) -> list[str]:
        """The lanes, by rank."""
        return [device.name for device in self.scenario.cluster.devices]

    @cached_property
    def steps(self) -> list[dict[str, float]]:
        """Per step of a run, the factors on the work of the lanes that are not as fast as ever."""
        return [factors_at(self.scenario.disturbances, step) for step in range(self.scenario.sampling.steps)]

    @cached_property
    def most(self) -> dict[str, float]:
        """The largest factor on each lane's work."""
        found: dict[str, float] = {}
        for factors in self.steps:
            found |= {name: max(factor, found.get(name, 1.0)) for name, factor in factors.items()}
        return found

    @property
    def slowed_lanes(self) -> list[str]:
        """The lanes that some disturbance slows down in the run."""
        return [name for name, factor in self.most.items() if factor > 1]

    @property
    def asked(self) -> dict[str, float]:
        """Per lane that was gauged, the factor to ask for where its largest one is meant."""
        return {name: self._ask(name, self.most[name]) for name in self.gained}

    def slowness(self) -> list[list[float]]:
        """Per step and rank, what to slow the lane by."""
        return [
            [self._ask(name, factors[name]) if name in factors else 1.0 for name in self.names]
            for factors in self.steps
        ]

    def notes(self) -> list[str]:
        """What each lane's quota gave, for the record."""
        return list(map(self._note, self.slowed_lanes)) if self.scenario.replay.gauge_launches else []

    def _note(self, name: str) -> str:
        if name not in self.gained:
            return f"{name} is not gauged while it is slowed: no calibrated size that no plan has fits into its memory"
        took = f"{name} took {self.gained[name]:.2f} times as long when {self.most[name]:g} times was asked of it"
        if LEAST_PACE <= self._pace(name) <= MOST_PACE:
            return f"{took}: {self.asked[name]:.2f} is asked instead"
        return (
            f"{took}: the quota alone does not explain that, and {self.asked[name]:.2f} is as far as a correction goes"
        )

    def _pace(self, name: str) -> float:
        """By what to multiply what goes beyond 1, before limits: endless where the quota did nothing."""
        gained = self.gained[name] - 1
        return (self.most[name] - 1) / gained if gained > 0 else math.inf

    def _ask(self, name: str, factor: float) -> float:
        """What to ask for to have a factor: what goes beyond 1 grows in proportion."""
        if name not in self.gained:
            return factor
        return 1 + (factor - 1) * min(max(self._pace(name), LEAST_PACE), MOST_PACE)


def _gained(launch: LaunchResult, rank: int) -> float | None:
    """How many times as long a lane's steps took while slowed: the median over sizes; None where it was not gauged."""
    took: dict[tuple[int, bool], list[float]] = {}
    for task, answer in launch.of("gauge", rank):
        if steps := quiet_steps(answer):
            step_s = median(spent_s(step, "forward", "backward") for step in steps)
            took.setdefault((task["micro_batch"], "slow" in task), []).append(step_s)
    plain = {size: median(seconds) for (size, slow), seconds in took.items() if not slow}
    ratios = [median(seconds) / plain[size] for (size, slow), seconds in took.items() if slow and size in plain]
    return median(ratios) if ratios else None
