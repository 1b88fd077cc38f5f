"""What a policy's plan is worth on a cluster by the cost model alone, next to the exact split: for training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...policies import make_policy
from ...policies.online import split_s
from ...sim.spec import Scenario
from ...sim.view import Policy, View


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
