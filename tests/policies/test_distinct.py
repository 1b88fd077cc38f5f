"""No policy is another one under a second name: each pair differs on a shipped scenario, but for the stated aliases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from steelyard.policies import REGISTRY, make_policy, policy_from_text
from steelyard.policies.testing import scenarios
from steelyard.policies.testing.pasts import Past, remember
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, load_scenario, simulated_names
from steelyard.sim.view import View

ALIASES = {"attention": "throughput"}
"""Policies that with their defaults are another one (docs/policies.md says so); their parameters tell them apart."""
SAME = {"flops": "proportional(figure=peak)", "throughput": "proportional(figure=speed)"}
"""Names that stay because runs name them."""
STRAGGLER = Past(steps=4, factors=(1.0, 3.0), lost=False)
"""What adaptive policies are shown: every second device takes three times as long."""


@cache
def shipped() -> list[Scenario]:
    """The scenarios that need no host, the smallest first."""
    return sorted(map(load_scenario, simulated_names()), key=lambda each: len(each.cluster.devices))


def views(scenario: Scenario) -> Iterator[View]:
    """At the start; and once an equal split has run with a straggler."""
    start = View.of(scenario)
    yield start
    equal = answer("uniform", start)
    memory = remember(scenario, equal, STRAGGLER) if equal is not None else None
    if memory is not None:
        yield memory.view(scenario)


def answer(policy: str, view: View) -> Plan | None:
    """The plan of a policy, by its text; None where it has none."""
    try:
        return policy_from_text(policy).allocate(view)
    except Infeasible:
        return None


def test_every_policy_differs_from_every_other_on_a_shipped_scenario() -> None:
    """Two plans, and not a plan and a refusal; asked only as long as a pair is not told apart."""
    alike = set(itertools.combinations(REGISTRY, 2))
    expected = {pair for pair in alike if pair in {*ALIASES.items(), *((two, one) for one, two in ALIASES.items())}}
    for view in (view for scenario in shipped() for view in views(scenario)):
        if alike == expected:
            break
        plans = {name: answer(name, view) for name in dict.fromkeys(itertools.chain.from_iterable(sorted(alike)))}
        alike -= {(one, two) for one, two in alike if _differ(plans[one], plans[two])}
    assert alike == expected


def _differ(one: Plan | None, other: Plan | None) -> bool:
    """In who does what: the size of the messages of gradients alone makes no other plan."""
    if one is None or other is None:
        return False
    return one.model_copy(update={"bucket_mib": other.bucket_mib}).sha256 != other.sha256


@pytest.mark.parametrize(("name", "other"), [*ALIASES.items(), *SAME.items()])
def test_an_alias_gives_the_same_plan_on_all_shipped_scenarios(name: str, other: str) -> None:
    for scenario in shipped():
        view = View.of(scenario)
        assert answer(name, view) == answer(other, view), scenario.name


@pytest.mark.parametrize("name", SAME)
@settings(max_examples=60)
@given(scenario=scenarios())
def test_a_name_that_stays_is_the_same_policy(name: str, scenario: Scenario) -> None:
    view = View.of(scenario)
    assert answer(name, view) == answer(SAME[name], view)


def test_aliases_are_of_the_library() -> None:
    assert {*ALIASES, *ALIASES.values(), *SAME} <= set(REGISTRY)
    assert all(make_policy(name) != make_policy(other) for name, other in ALIASES.items())
