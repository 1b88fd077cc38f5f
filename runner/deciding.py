"""Decision time: how long a policy thinks before its plan can be simulated."""

from __future__ import annotations

import time

from ..sim.adaptive import is_eventful
from ..sim.spec import Scenario
from ..sim.view import Fixed, Policy, View, allocate, describe


def decided(scenario: Scenario, policy: Policy) -> tuple[Policy, float]:
    """A policy that has made up its mind, and the wall seconds that this took on this host, from scenario to plan.

    Where a policy may be asked again it stays as it is, and the time is that of its first plan. The first policy that
    is asked pays for what all share: times of layers, prices of links.

    Raises:
        Infeasible: the policy has no plan for the scenario.
        PlanError: its plan breaks a rule.
    """
    started = time.perf_counter()
    plan = allocate(policy, View.of(scenario), scenario)
    seconds = time.perf_counter() - started
    if is_eventful(scenario) or isinstance(policy, Fixed):
        return policy, seconds
    return Fixed(plan, describe(policy)), seconds
