"""How far plans that a search found are above the bound that no plan can beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..results.gap import gap_percent
from ..sim.adaptive import at_its_best, is_eventful
from ..sim.bounds import lower_bound_s, work_bound_s
from ..sim.measures import measure
from ..sim.view import Fixed, Policy, View, allocate
from . import make_policy
from .search_goal import Cell, Goal
from .search_result import TrialRow


def gaps_percent(goal: Goal, rows: Sequence[TrialRow]) -> list[float | None]:
    """Percent that each row's median step is above the bound, simulated once more; all rows by one kind of bound.

    The bound is solved once per scenario: that of all splits where all rows are splits, else that of all plans. Of
    several scenarios and seeds a row has the mean of its gaps, or the largest where its worst value counts.

    Args:
        goal: what was searched for.
        rows: of trials; None comes of those without a value.
    """
    valued = [row for row in rows if row.value is not None]
    columns = [_of_cell(goal, cell, valued) for cell in goal.cells]
    found = {row.number: _together(goal, each) for row, each in zip(valued, zip(*columns, strict=True), strict=True)}
    return [found.get(row.number) for row in rows]


def _of_cell(goal: Goal, cell: Cell, rows: Sequence[TrialRow]) -> list[float | None]:
    scenario, seed = cell
    policies: list[Policy] = [make_policy(row.policy, row.parameters) for row in rows]
    if is_eventful(scenario):
        bound_s = work_bound_s(at_its_best(scenario))
    else:
        view = View.of(scenario)
        plans = [allocate(policy, view, scenario) for policy in policies]
        policies = [Fixed(plan) for plan in plans]
        plain = all(plan.is_plain_split(scenario.workload) for plan in plans)
        bound_s = lower_bound_s(view) if plain else work_bound_s(scenario)
    batch, launches = scenario.workload.global_batch, scenario.sampling.search_launches
    rates = [
        measure(scenario, policy, seed=seed, launches=launches, metrics=["throughput"])["throughput"]
        for policy in policies
    ]
    return [gap_percent(batch / rate, bound_s if math.isfinite(bound_s) else None) for rate in rates]


def _together(goal: Goal, gaps: Sequence[float | None]) -> float | None:
    known = [gap for gap in gaps if gap is not None]
    if len(known) < len(gaps):
        return None
    return max(known) if goal.robust == "worst" else sum(known) / len(known)
