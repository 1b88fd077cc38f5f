"""What a policy's plan is worth on a cluster without the engine, next to another policy's: for training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...policies import make_policy
from ...policies.online import split_s
from ...sim.estimate import step_s
from ...sim.plan import Infeasible
from ...sim.spec import Scenario
from ...sim.view import Policy, View

NO_PLAN = 3.0
"""Logarithm of how much slower than the base a refusal counts."""


def exact_s(scenario: Scenario) -> float:
    """Seconds of the exact split's step, by the cost model, in which nothing overlaps."""
    view = View.of(scenario)
    return split_s(view, make_policy("makespan", {"overlap": False}).allocate(view))


def mean_loss(scenarios: Sequence[Scenario], exact: Sequence[float], policy: Policy) -> float:
    """Mean logarithm of a policy's step over the exact split's: 0 is as good, 0.1 is a tenth slower."""
    losses = []
    for scenario, best in zip(scenarios, exact, strict=True):
        view = View.of(scenario)
        losses.append(math.log(split_s(view, policy.allocate(view)) / best))
    return sum(losses) / len(losses)


def base_s(scenario: Scenario, names: Sequence[str]) -> float:
    """Estimated step of the first of some policies that has a plan; 1 where none has: a refusal costs all the same."""
    view = View.of(scenario)
    for name in names:
        try:
            return step_s(view, make_policy(name).allocate(view))
        except Infeasible:
            continue
    return 1.0


def estimated_loss(scenarios: Sequence[Scenario], bases: Sequence[float], policy: Policy) -> float:
    """Mean logarithm of a policy's estimated step over a base."""
    return math.fsum(_loss(*each, policy) for each in zip(scenarios, bases, strict=True)) / len(scenarios)


def _loss(scenario: Scenario, base: float, policy: Policy) -> float:
    view = View.of(scenario)
    try:
        return math.log(step_s(view, policy.allocate(view)) / base)
    except Infeasible:
        return NO_PLAN
