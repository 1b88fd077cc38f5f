"""Adaptive attention: measured slowness moves the load, and a change that does not pay is not made."""

from __future__ import annotations

import dataclasses

import pytest
from steelyard.policies.attention_adaptive import AttentionAdaptive
from steelyard.policies.testing import check_policy
from steelyard.sim.spec import Scenario
from steelyard.sim.view import View


def _past(view: View, samples: dict[str, int], factors: dict[str, float], steps: int = 5) -> View:
    """The view after some steps in which each device took so many times as long as estimated."""
    devices = {device.name: device for device in view.devices}
    seconds = {name: factors.get(name, 1.0) * devices[name].step_s(count) for name, count in samples.items()}
    entry = {
        "step_s": max(seconds.values()),
        "sync_s": 0.0,
        "devices": {
            name: {"samples": count, "compute_s": seconds[name], "wait_s": 0.0} for name, count in samples.items()
        },
    }
    history = tuple({"step": step, **entry} for step in range(steps))
    return dataclasses.replace(view, history=history, current=view_plan(view, samples), steps_left=10_000)


def view_plan(view: View, samples: dict[str, int]) -> object:
    return view.plan([samples.get(device.name, 0) for device in view.devices])


def _allocated(view: View, policy: AttentionAdaptive) -> dict[str, int]:
    return policy.allocate(view).samples()


def test_a_straggler_gets_less_and_the_times_are_equal(quiet_scenario: Scenario) -> None:
    view = View.of(quiet_scenario)
    policy = AttentionAdaptive(gain=0.0)
    before = _allocated(view, policy)
    after = _allocated(_past(view, before, {"fast": 4.0}), policy)
    assert after["fast"] < before["fast"]
    devices = {device.name: device for device in view.devices}
    one_more = {name: after[name] + 1 for name in after}
    factors = {"fast": 4.0, "slow": 1.0}
    times = {name: factors[name] * devices[name].step_s(after[name]) for name in after}
    bound = min(factors[name] * devices[name].step_s(one_more[name]) for name in after)
    assert max(times.values()) <= bound * 1.1  # rounding by largest remainder is not exact


def test_nothing_new_changes_nothing(quiet_scenario: Scenario) -> None:
    view = View.of(quiet_scenario)
    policy = AttentionAdaptive()
    before = _allocated(view, policy)
    assert _allocated(_past(view, before, {}), policy) == before
    assert _allocated(_past(view, before, {"fast": 2.0, "slow": 2.0}), policy) == before


@pytest.mark.parametrize("steps_left", [0, 1])
def test_a_change_that_cannot_pay_is_not_made(quiet_scenario: Scenario, steps_left: int) -> None:
    view = View.of(quiet_scenario)
    policy = AttentionAdaptive(gain=0.0)
    before = _allocated(view, policy)
    late = dataclasses.replace(_past(view, before, {"fast": 4.0}), steps_left=steps_left)
    assert _allocated(late, policy) == before


def test_it_keeps_the_contract() -> None:
    check_policy(AttentionAdaptive, max_examples=30, seed=7, unit_free=True)
