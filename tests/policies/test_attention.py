"""Attention over devices: one key alone is exactly proportional, units cancel, a high temperature is uniform."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.attention import Attention, attention, device_keys
from steelyard.policies.proportional import Flops, Proportional, Uniform
from steelyard.policies.testing import scenarios, slower
from steelyard.sim.spec import Scenario, scenario_from
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


KEYS = {"speed": "speed", "peak": "peak", "bandwidth": "bandwidth"}
"""Key of attention, and figure of ``proportional``; its memory is the free one there, and all of it here."""


@pytest.mark.parametrize("key", KEYS)
@settings(max_examples=60)
@given(scenario=scenarios(), gamma=st.floats(0, 2), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_one_key_alone_is_proportional_to_a_power(
    key: str, scenario: Scenario, gamma: float, temperature: float
) -> None:
    """Weight w at temperature t is exactly figure^(w / t), where no two remainders tie: rounding then decides nothing.

    Every device has room for the whole batch: closed devices get no share here, and a share that is cut off there.
    """
    view = _roomy(scenario)
    weights = {"speed": 0.0, key: gamma * temperature}
    if abs(weights[key]) > 2 or _ties(view, KEYS[key], gamma):
        return
    ours = Attention(**weights, temperature=temperature).allocate(view)
    assert ours == Proportional(figure=KEYS[key], gamma=gamma).allocate(view)  # type: ignore[arg-type]


def _roomy(scenario: Scenario) -> View:
    """What a policy sees of the scenario with memory to spare."""
    document = scenario.model_dump(mode="json")
    for device in (device for node in document["cluster"]["nodes"] for device in node["devices"]):
        device["memory_gib"] = 1000.0
    return View.of(scenario_from(document))


def _ties(view: View, figure: str, gamma: float) -> bool:
    """Whether the last sample of the largest remainders might go to either of two devices that differ."""
    names = {"peak": "peak_flops", "bandwidth": "memory_bandwidth"}
    found = view.speeds if figure == "speed" else [getattr(device, names[figure]) for device in view.devices]
    powers = [(each / max(found)) ** gamma for each in found]
    ideal = [view.global_batch * each / math.fsum(powers) for each in powers]
    floors = [math.floor(each + 1e-9) for each in ideal]
    parts = sorted(((one - whole, of) for one, whole, of in zip(ideal, floors, found, strict=True)), reverse=True)
    last = view.global_batch - sum(floors)
    if not 0 < last < len(parts):
        return False
    (more, one), (less, other) = parts[last - 1 : last + 1]
    return one != other and more - less < 1e-9


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
