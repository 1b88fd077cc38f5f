"""Attention in rounds: equal finishing times are its fixed point; keys without units; masks; names mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.attention_heads import AttentionHeads, attend
from steelyard.policies.attention_keys import KEYS, LEAST_GAIN, Keys, Table
from steelyard.policies.proportional import Throughput
from steelyard.policies.testing import check_policy, scenarios, slower
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View

ONE = np.array([1.0, 0.0])


def _keys(scenario: Scenario) -> Keys | None:
    try:
        return Keys.of(View.of(scenario))
    except Infeasible:
        return None


def _table(fixed: list[float], each: list[float], batch: int) -> Table:
    sizes = np.array([1.0, float(batch)])
    seconds = np.array(fixed)[:, None] + np.array(each)[:, None] * sizes
    return Table(batch, sizes, seconds, np.full(len(fixed), float(batch)))


@settings(max_examples=60)
@given(st.lists(st.floats(1e-3, 1e-1), min_size=4, max_size=8), st.integers(0, 99))
def test_the_fixed_point_of_the_load_key_is_equal_finishing(each: list[float], number: int) -> None:
    """X' ~ x / t(x): with t = a + b x its slope in logarithms is a / t < 1, so it settles where all t are equal."""
    draws = np.random.default_rng(number)
    fixed = [float(f) for f in draws.uniform(0, 1, len(each))]
    table = _table(fixed, each, 100_000)
    shares = np.full(len(each), 1 / len(each))
    for _ in range(60):
        speeds = table.speeds(table.held(shares))
        shares = speeds / speeds.sum()
    times = table.at(table.held(shares))
    assert times == pytest.approx(np.full(len(each), times.mean()), rel=1e-3)


@settings(max_examples=40)
@given(scenarios())
def test_one_round_is_proportional_to_speed(scenario: Scenario) -> None:
    """At equal loads the load's key is the speed at an equal share, where no memory bends it: `throughput`."""
    view = View.of(scenario)
    keys = _keys(scenario)
    if keys is None or any(device.capacity < view.global_batch for device in view.devices):
        return
    amounts = attend(keys, AttentionHeads().queries(), ONE, 1.0, 1)
    equal = np.full(len(view.devices), view.global_batch / len(view.devices))
    speeds = keys.table.speeds(np.maximum(equal, 1e-9))
    assert amounts / view.global_batch == pytest.approx(speeds / speeds.sum(), rel=1e-9)


@settings(max_examples=60)
@given(scenarios(), st.integers(1, 12), st.floats(0, 1))
def test_shares_are_whole_within_room_and_closed_where_nothing_fits(
    scenario: Scenario, rounds: int, mix: float
) -> None:
    keys = _keys(scenario)
    if keys is None:
        return
    queries = AttentionHeads(gain=2.0, memory=1.0, link=-1.0).queries()
    amounts = attend(keys, queries, np.array([1 - mix, mix]), 1.0, rounds)
    assert (amounts[keys.table.capacity == 0] == 0).all()
    assert (amounts <= keys.table.capacity + 1e-9).all()
    assert amounts.sum() <= keys.table.batch * (1 + 1e-9)


@settings(max_examples=40)
@given(scenarios())
def test_keys_have_no_units(scenario: Scenario) -> None:
    """Where everything takes four times as long, keys and context are what they were."""
    before, after = _keys(scenario), _keys(slower(scenario))
    assert (before is None) == (after is None)
    if before is None or after is None:
        return
    assert before.values == pytest.approx(after.values, abs=1e-7)
    assert before.context == pytest.approx(after.context, abs=1e-9)


@settings(max_examples=60)
@given(scenarios())
def test_keys_are_relative_to_the_mean_and_gains_within_their_range(scenario: Scenario) -> None:
    keys = _keys(scenario)
    if keys is None:
        return
    open_ = np.isfinite(keys.mask)
    others = [number for number, name in enumerate(KEYS) if name != "gain"]
    assert keys.values[open_][:, others].mean(axis=0) == pytest.approx(np.zeros(len(others)), abs=1e-9)
    gains = keys.values[:, KEYS.index("gain")]
    assert (gains <= 0).all()
    assert (gains >= LEAST_GAIN).all()


def test_a_device_whose_link_costs_more_than_it_saves_is_left_out(quiet_scenario: Scenario) -> None:
    """A slow network: alone is faster; without the key both work."""
    document = quiet_scenario.model_dump(mode="json")
    document["cluster"]["collectives"] = []
    document["cluster"]["nodes"][0]["link"]["bandwidth_gb_per_s"] = 1e-3
    view = View.of(scenario_from(document))
    assert len(AttentionHeads().allocate(view).pipelines) == 2
    assert AttentionHeads(gain=4.0, rounds=12).allocate(view).samples() == {"fast": 32}


def test_rounds_come_closer_to_the_exact_split(quiet_scenario: Scenario) -> None:
    """Two devices with a fixed cost each: proportional shares are not balanced, rounds make them so."""
    view = View.of(quiet_scenario)
    devices = {device.name: device for device in view.devices}

    def slowest(plan: dict[str, int]) -> float:
        return max(devices[name].step_s(count) for name, count in plan.items())

    rounds = [slowest(AttentionHeads(rounds=count).allocate(view).samples()) for count in (1, 6)]
    assert rounds[0] == slowest(Throughput().allocate(view).samples())
    assert rounds[1] <= rounds[0]


@pytest.mark.parametrize("policy", [AttentionHeads, AttentionHeads(gain=3.0, rounds=8)])
def test_it_keeps_the_contract(policy: AttentionHeads | type) -> None:
    check_policy(policy, max_examples=40, seed=5, unit_free=True)
