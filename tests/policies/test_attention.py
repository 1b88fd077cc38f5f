"""Attention over devices: one key alone is exactly proportional, units cancel, a high temperature is uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.attention import Attention, attention, device_keys
from steelyard.policies.proportional import Flops, Throughput, Uniform
from steelyard.policies.testing import scenarios, slower
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario
from steelyard.sim.view import View

figures = st.lists(st.floats(1e-3, 1e15), min_size=1, max_size=8)
OPEN = np.zeros(8)


@given(figures, st.floats(-2, 2), st.floats(0.1, 4))
def test_one_key_alone_is_a_power_of_the_figure(values: list[float], weight: float, temperature: float) -> None:
    """softmax(w log f / t) = f ** (w / t) / sum f ** (w / t)."""
    keys = np.log(np.array(values))[:, None]
    shares = attention(np.array([[weight]]), keys, temperature, OPEN[: len(values)])[0]
    scores = (weight / temperature) * np.log(values)
    powers = np.exp(scores - scores.max())
    assert shares == pytest.approx(powers / powers.sum(), rel=1e-9)


@given(figures, st.floats(1e-6, 1e6), st.floats(-2, 2))
def test_units_cancel(values: list[float], unit: float, weight: float) -> None:
    def shares(scale: float) -> list[float]:
        keys = np.log(np.array(values) * scale)[:, None]
        return list(attention(np.array([[weight]]), keys, 1.0, OPEN[: len(values)])[0])

    assert shares(unit) == pytest.approx(shares(1.0), rel=1e-7, abs=1e-12)


@given(figures)
def test_a_high_temperature_is_uniform(values: list[float]) -> None:
    shares = attention(np.array([[1.0]]), np.log(np.array(values))[:, None], 1e12, OPEN[: len(values)])[0]
    assert shares == pytest.approx(np.full(len(values), 1 / len(values)), rel=1e-9)


@given(st.lists(st.floats(-700, 700), min_size=12, max_size=12), st.lists(st.booleans(), min_size=3, max_size=3))
def test_rows_are_shares_and_the_mask_closes(numbers: list[float], closed: list[bool]) -> None:
    """Two pieces of work over three devices, with scores that overflow a plain exponential."""
    closed[0] = False
    mask = np.where(closed, -np.inf, 0.0)
    keys = np.array(numbers[:6]).reshape(3, 2)
    rows = attention(np.array(numbers[6:10]).reshape(2, 2), keys, 0.5, mask)
    assert rows.shape == (2, 3)
    assert rows.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert (rows[:, np.array(closed)] == 0).all()


@settings(max_examples=40)
@given(scenarios(), st.floats(0, 2))
def test_the_speed_key_alone_is_the_throughput_policy(scenario: Scenario, gamma: float) -> None:
    """Up to the rounding of a tie: at most a sample moves."""
    view = View.of(scenario)
    try:
        ours = Attention(speed=gamma).allocate(view).split()
    except Infeasible:
        with pytest.raises(Infeasible):
            Throughput(gamma=gamma).allocate(view)
        return
    if any(device.capacity < view.global_batch for device in view.devices):
        return  # closed devices get no share here, and a share that is cut off there
    theirs = Throughput(gamma=gamma).allocate(view).split()
    assert all(abs(ours.get(name, 0) - theirs.get(name, 0)) <= 1 for name in {*ours, *theirs})


def test_the_peak_key_alone_is_the_flops_policy(quiet_scenario: Scenario) -> None:
    view = View.of(quiet_scenario)
    assert Attention(speed=0.0, peak=1.0).allocate(view) == Flops().allocate(view)
    assert Attention(speed=0.0).allocate(view) == Uniform().allocate(view)
    assert Attention(speed=2.0, temperature=2.0).allocate(view) == Attention().allocate(view)


@settings(max_examples=40)
@given(scenarios())
def test_keys_of_a_slower_world_are_shifted_alike(scenario: Scenario) -> None:
    """Peak, speed and bandwidth by log 4, memory by nothing: the softmax does not see a shift."""
    before, after = device_keys(View.of(scenario)), device_keys(View.of(slower(scenario)))
    shift = np.log([4.0, 4.0, 4.0, 1.0])
    assert before - after == pytest.approx(np.tile(shift, (len(before), 1)), abs=1e-9)


def test_a_device_without_room_gets_nothing(quiet_scenario: Scenario) -> None:
    node = quiet_scenario.cluster.nodes[0]
    small = node.devices[0].model_copy(update={"memory_gib": 1e-6})
    cluster = quiet_scenario.cluster.model_copy(
        update={"nodes": [node.model_copy(update={"devices": [small, node.devices[1]]})]}
    )
    view = View.of(quiet_scenario.model_copy(update={"cluster": cluster}))
    assert Attention().allocate(view).split() == {"slow": 32}
