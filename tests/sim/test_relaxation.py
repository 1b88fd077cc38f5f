"""The bound for every plan: never above a simulated step, and proved by any prices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.policies.testing import scenarios
from steelyard.results.errors import InputError
from steelyard.sim.bounds import critical_path_s, crossing_s, lower_bound_s, relaxation_of, work_bound_s
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.relaxation import Relaxation
from steelyard.sim.spec import Scenario, load_scenario, simulated_names
from steelyard.sim.view import View

POLICIES = ("uniform", "makespan", "cannikin", "poplar", "cephalo", "grid(data=1)", "grid(data=1, tensor=2)")


@st.composite
def relaxations(draw: st.DrawFn) -> Relaxation:
    kinds, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    seconds = st.floats(1e-3, 10.0)

    def rows(values: st.SearchStrategy[float]) -> Any:
        return np.array([[draw(values) for _ in range(classes)] for _ in range(kinds)])

    states = np.array([draw(st.floats(0.0, 1e9)) for _ in range(classes)])
    layers = np.array([float(draw(st.integers(1, 5))) for _ in range(classes)])
    room = np.array([draw(st.floats(1.0, 2.0)) for _ in range(kinds)])
    return Relaxation(
        batch=draw(st.integers(1, 64)),
        pass_s=rows(seconds),
        update_s=rows(st.floats(0.0, 1.0)),
        state_bytes=states,
        layers=layers,
        devices=np.array([float(draw(st.integers(1, 8))) for _ in range(kinds)]),
        memory_bytes=room * float(states @ layers) / kinds,
    )


@given(relaxations(), st.lists(st.floats(0.01, 10.0), min_size=4, max_size=4))
def test_no_prices_prove_more_than_those_of_the_optimum(relaxation: Relaxation, prices: list[float]) -> None:
    """Weak duality, with the solver on one side and any prices on the other."""
    kinds = len(relaxation.devices)
    other = relaxation.proved_s(np.array(prices[:kinds]), np.zeros(kinds))
    assert other <= relaxation.bound_s() * (1 + 1e-6)


@given(relaxations())
def test_one_device_doing_everything_is_no_faster(relaxation: Relaxation) -> None:
    alone = (relaxation.batch * relaxation.pass_s + relaxation.update_s) @ relaxation.layers
    if (relaxation.memory_bytes >= relaxation.state_bytes @ relaxation.layers).all():
        assert relaxation.bound_s() <= float(alone.min()) * (1 + 1e-9)


def test_devices_that_are_good_at_different_layers() -> None:
    """Each does its own: 1 s per sample each, and not the 5.5 / 2 of shares of everything."""
    relaxation = Relaxation(
        batch=10,
        pass_s=np.array([[1.0, 10.0], [10.0, 1.0]]),
        update_s=np.zeros((2, 2)),
        state_bytes=np.zeros(2),
        layers=np.ones(2),
        devices=np.ones(2),
        memory_bytes=np.ones(2),
    )
    assert relaxation.bound_s() == pytest.approx(10.0)


def test_updates_go_where_memory_is() -> None:
    """The fast device has room for half of the states: the rest is updated, and bounded, elsewhere."""
    known: dict[str, Any] = {
        "batch": 1,
        "pass_s": np.array([[1.0], [1.0]]),
        "update_s": np.array([[0.0], [8.0]]),
        "state_bytes": np.array([2.0]),
        "layers": np.ones(1),
        "devices": np.ones(2),
    }
    roomy = Relaxation(**known, memory_bytes=np.array([2.0, 2.0])).bound_s()
    tight = Relaxation(**known, memory_bytes=np.array([1.0, 2.0])).bound_s()
    assert roomy == pytest.approx(0.5)
    assert tight == pytest.approx(4.0)  # half of 8 s, while the fast device does all the passes


def test_a_kind_that_cannot_hold_a_layer_does_not_work_on_it() -> None:
    known: dict[str, Any] = {
        "batch": 4,
        "update_s": np.zeros((2, 1)),
        "state_bytes": np.zeros(1),
        "layers": np.ones(1),
        "devices": np.ones(2),
        "memory_bytes": np.ones(2),
    }
    assert Relaxation(**known, pass_s=np.array([[1.0], [1.0]])).bound_s() == pytest.approx(2.0)
    assert Relaxation(**known, pass_s=np.array([[1.0], [np.inf]])).bound_s() == pytest.approx(4.0)


@settings(max_examples=60)
@given(scenarios(), st.sampled_from(POLICIES))
def test_no_simulated_plan_beats_the_bound(scenario: Scenario, text: str) -> None:
    """Whatever a policy makes of a generated scenario: data parallel, sharded, accumulated, in stages, in groups."""
    from steelyard.policies import policy_from_text

    noiseless = _without_noise(scenario)
    try:
        run = simulate(noiseless, policy_from_text(text))
    except InputError:
        return
    bound = work_bound_s(noiseless)
    assert 0 <= bound <= run.summary.step_time_s.p50 * (1 + 1e-9)
    assert bound <= lower_bound_s(View.of(noiseless)) * (1 + 1e-9)


def _without_noise(scenario: Scenario) -> Scenario:
    def still(device: Any) -> Any:
        if device.profile is None:
            return device
        quiet = {"step_residuals": [0.0], "launch_residuals": [0.0]}
        return device.model_copy(update={"profile": device.profile.model_copy(update=quiet)})

    nodes = [
        node.model_copy(update={"devices": [still(device) for device in node.devices]})
        for node in scenario.cluster.nodes
    ]
    quiet = {"step_residuals": [0.0], "launch_residuals": [0.0]}
    tables = [table.model_copy(update=quiet) for table in scenario.cluster.collectives]
    cluster = scenario.cluster.model_copy(update={"nodes": nodes, "collectives": tables})
    return scenario.model_copy(update={"cluster": cluster})


@pytest.mark.parametrize("name", simulated_names())
def test_shipped_bounds_are_at_least_work_over_speed_at_equal_prices(name: str) -> None:
    scenario = load_scenario(name)
    relaxation = relaxation_of(scenario)
    kinds = len(relaxation.devices)
    bound = work_bound_s(scenario)
    assert bound >= relaxation.proved_s(np.ones(kinds), np.zeros(kinds)) * (1 - 1e-9)
    assert bound >= max(critical_path_s(scenario), crossing_s(scenario)) > 0


def test_one_sample_takes_its_way_through_all_layers(build: Any) -> None:
    """A batch of one on many devices: nothing helps but the fastest device for each layer."""
    devices = [build.device(f"d{n}", [1.0, 2.0], [1.0, 3.0]) for n in range(8)]
    scenario = build.scenario(devices, batch=1)
    assert critical_path_s(scenario) == pytest.approx(7.0)
    assert work_bound_s(scenario) == pytest.approx(7.0)
    assert build.step_s(scenario, build.straight(2, 1, "1f1b")) == pytest.approx(7.0)


def test_what_fits_on_one_device_need_not_cross_a_link() -> None:
    assert crossing_s(load_scenario("mixed-gpus")) == 0.0
    scenario = load_scenario("h100-box")
    assert crossing_s(scenario) > 0
    for policy in ("poplar", "cephalo"):
        plan = make_policy(policy).allocate(View.of(scenario))
        assert isinstance(plan, Plan)
        run = simulate(scenario, make_policy(policy))
        assert run.summary.step_time_s.p50 >= crossing_s(scenario)
