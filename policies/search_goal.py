"""Goal: what a search makes as large as it can: one or several objectives, over one or several scenarios and seeds.

Values are larger where they are better. Of one scenario and seed they are the engine's; of several they are shares of
the best default policy's value in each, taken together by their mean or their worst: units cancel, and no scenario
counts more for being slow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from ..results.errors import InputError
from ..sim.plan import PlanError
from ..sim.spec import Scenario
from . import make_policy

Robust = Literal["mean", "worst"]
TOGETHER: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda all: sum(all) / len(all), "worst": min}

UNITS: dict[str, str] = {
    "throughput": "samples/s",
    "step_time_p90": "s",
    "cost": "USD per million samples",
    "energy": "J per million samples",
    "memory_headroom": "share of memory",
}
"""What a search can be about, and the unit."""

LESS_IS_BETTER = ("step_time_p90", "cost", "energy")

TIMED = ("throughput", "step_time_p90")
"""Objectives that the times of steps give: those that can be simulated in stages, and bounded."""


class Cell(NamedTuple):
    """One scenario, simulated with the noise of one seed."""

    scenario: Scenario
    seed: int


class Outcome(NamedTuple):
    """What came of a trial: its values, or the reason why there are none."""

    values: tuple[float, ...] | None
    reason: str = ""
    violations: tuple[float, ...] = ()
    """Per constraint, how far it is from being met, as a share of what is asked; 0 and less: it is met."""
    hopeless: bool = False
    """Whether it was given up because others are better."""
    steps: tuple[tuple[int, float], ...] = ()
    """The value as it stood after so many stages."""

    @property
    def counts(self) -> bool:
        """Whether no limit is missed."""
        return all(violation <= 0 for violation in self.violations)


@dataclass(frozen=True)
class Goal:
    """Objectives over cells; it travels to the workers of a search."""

    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    robust: Robust | None = None
    references: tuple[tuple[float, ...], ...] = ()
    """Per cell, the values that count as 1; empty: values count as they are."""
    limits: tuple[tuple[str, float], ...] = ()
    """Figures beside those of the scenarios' objectives that decide who counts, each with the most (where less is
    better) or the least that it may be, in its unit."""

    @classmethod
    def of(cls, scenario: Scenario, seed: int) -> Goal:
        """The objective of one scenario."""
        return cls((Cell(scenario, seed),), (scenario.objective.metric,))

    @cached_property
    def constraints(self) -> tuple[str, ...]:
        """Figures that some scenario, or the search itself, sets a limit to."""
        asked = [each.scenario.objective for each in self.cells]
        floor = any(each.least_throughput_samples_per_s is not None for each in asked)
        budget = any(each.most_cost_usd_per_million_samples is not None for each in asked)
        scenarios = (*(["throughput"] if floor else []), *(["cost"] if budget else []))
        return tuple(dict.fromkeys((*scenarios, *(metric for metric, _ in self.limits))))

    def evaluate(self, name: str, values: dict[str, Any], beat: float | None = None) -> Outcome:
        """The outcome of one policy by the engine.

        Args:
            name: of the policy.
            values: its parameters.
            beat: the policy is hopeless if it cannot be better than this.

        Raises:
            PlanError: the policy answered with an invalid plan: its bug, and no property of the scenario.
        """
        try:
            most = None if beat is None else self.ceiling(name, values)
            if beat is not None and most is not None and most <= beat:
                return Outcome(None, f"{most:.6g} at most, {beat:.6g} is known", hopeless=True, steps=((0, most),))
            found = [self.figures(cell, name, values) for cell in self.cells]
        except PlanError:
            raise
        except InputError as error:
            return Outcome(None, str(error))
        rows = [tuple(signed(metric, each[metric]) for metric in self.metrics) for each in found]
        violations = [self._violations(cell.scenario, each) for cell, each in zip(self.cells, found, strict=True)]
        most_of = tuple(max(each.get(name, -1.0) for each in violations) for name in self.constraints)
        return Outcome(self.together(rows), "", most_of)

    def figures(self, cell: Cell, name: str, values: dict[str, Any]) -> dict[str, float]:
        """The figures of a cell that objectives and constraints need, in their units.

        Raises:
            InputError: no plan, or no price or power to tell a figure from.
        """
        policy, needed = make_policy(name, values), sorted({*self.metrics, *self.constraints})
        launches = cell.scenario.sampling.search_launches
        if needed == [cell.scenario.objective.metric]:
            from ..sim.engine import objective_value

            value = objective_value(cell.scenario, policy, seed=cell.seed, launches=launches)
            return {needed[0]: signed(needed[0], value)}
        from ..sim.measures import measure

        return measure(cell.scenario, policy, seed=cell.seed, launches=launches, metrics=needed)

    def together(self, rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        """The values of a trial from those of the first cells."""
        if self.robust is None:
            return rows[0]
        shares = [
            [_share(value, best) for value, best in zip(row, reference, strict=True)]
            for row, reference in zip(rows, self.references, strict=False)
        ]
        return tuple(map(TOGETHER[self.robust], zip(*shares, strict=True)))

    def with_references(self, policies: Mapping[str, dict[str, Any]]) -> Goal:
        """The goal whose values are shares of what the best of some policies gives in each cell, each as it is first.

        Raises:
            InputError: a cell in which none has values; its scenario is named.
        """
        return dataclasses.replace(self, references=tuple(self._best(cell, policies) for cell in self.cells))

    def _best(self, cell: Cell, policies: Mapping[str, dict[str, Any]]) -> tuple[float, ...]:
        alone = Goal((cell,), self.metrics)
        outcomes = [alone.evaluate(name, values) for name, values in policies.items()]
        rows = [each.values for each in outcomes if each.values is not None]
        if not rows:
            problem = f"no policy has a value for {cell.scenario.name}; {next(iter(policies))}: {outcomes[0].reason}"
            raise InputError("search", problem, "")
        return tuple(map(max, zip(*rows, strict=True)))

    def ceiling(self, name: str, values: dict[str, Any]) -> float:
        """What the value of a policy cannot exceed where nothing varies: its busiest device works all the time.

        Raises:
            InputError: no plan.
        """
        from ..sim.measures import busy_s
        from ..sim.view import View, allocate

        rows = []
        for scenario, _ in self.cells:
            plan = allocate(make_policy(name, values), View.of(scenario), scenario)
            least_s = busy_s(scenario, plan) * (1 - 1e-9)  # the engine adds up the same times in another order
            rows.append((self.of_times(scenario, least_s, least_s),))
        return self.together(rows)[0]

    def _violations(self, scenario: Scenario, figures: Mapping[str, float]) -> dict[str, float]:
        """By limited figure, how far a cell's is from its limit, as a share; 0 and less: it is kept."""
        told = [
            ("throughput", scenario.objective.least_throughput_samples_per_s),
            ("cost", scenario.objective.most_cost_usd_per_million_samples),
            *self.limits,
        ]
        found: dict[str, float] = {}
        for metric, limit in told:
            if limit is not None:
                found[metric] = max(_missed(metric, figures[metric], limit), found.get(metric, -math.inf))
        return found

    def of_times(self, scenario: Scenario, median_s: float, p90_s: float) -> float:
        """The value of a cell whose steps take so long, with an objective of :data:`TIMED`."""
        return scenario.workload.global_batch / median_s if self.metrics[0] == "throughput" else -p90_s


def _missed(metric: str, value: float, limit: float) -> float:
    """How far a figure is from its limit, as a share of what is asked."""
    if metric == "throughput":
        return limit / value - 1  # a time that is so much too long
    return (value - limit) / limit if metric in LESS_IS_BETTER else (limit - value) / limit


def signed(metric: str, value: float) -> float:
    """A figure as a value that is larger where it is better; and back."""
    return -value if metric in LESS_IS_BETTER else value


def _share(value: float, best: float) -> float:
    """A value as a share of the best one: 1 is as good. Both are negative where less is better."""
    if best > 0:
        return value / best
    return best / value if value < 0 else value  # memory may be full: then what is left counts as it is
