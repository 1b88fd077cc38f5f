"""Layers attend to devices: contiguous stages, equal ones where all is equal, masks where a device is full."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.attention_layers import AttentionLayers
from steelyard.policies.testing import check_policy, scenarios
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View


def _boxes(scenario: Scenario, slowdowns: list[float], memory_gib: float = 4.0, layers: int = 8) -> Scenario:
    """A box of devices that differ in their speed, under a model of equal layers."""
    document = scenario.model_dump(mode="json")
    block = document["workload"]["model"]["layers"][0]
    document["workload"]["model"]["layers"] = [{**block, "name": f"block{n}"} for n in range(layers)]
    device = {**document["cluster"]["nodes"][0]["devices"][0], "profile": None, "memory_gib": memory_gib}
    devices = [{**device, "name": f"d{n}", "slowdown": slow} for n, slow in enumerate(slowdowns)]
    document["cluster"]["nodes"][0]["devices"] = devices
    document["cluster"]["collectives"] = []
    return scenario_from(document)


def _lengths(scenario: Scenario, policy: AttentionLayers) -> list[tuple[str, int]]:
    plan = policy.allocate(View.of(scenario))
    plan.check(scenario)
    return [(stage.replicas[0].devices[0], stage.last - stage.first) for stage in plan.pipelines[0].stages]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_equal_devices_get_equal_stages(quiet_scenario: Scenario, count: int) -> None:
    lengths = _lengths(_boxes(quiet_scenario, [1.0] * count), AttentionLayers(heads=1))
    assert [length for _, length in lengths] == [8 // count] * count


def test_a_device_of_three_times_the_speed_gets_three_times_the_layers(quiet_scenario: Scenario) -> None:
    assert dict(_lengths(_boxes(quiet_scenario, [3.0, 1.0]), AttentionLayers(heads=1))) == {"d1": 6, "d0": 2}


def test_a_full_device_is_masked(quiet_scenario: Scenario) -> None:
    """Memory for a part of what speed would give the fast device: others take the rest, or nobody can."""
    roomy = _boxes(quiet_scenario, [8.0, 1.0, 8.0])
    assert dict(_lengths(roomy, AttentionLayers(heads=1)))["d1"] >= 6
    workload = roomy.workload
    # Five of eight layers, with at most twelve samples in flight (three micro-batches of four).
    tight_gib = (workload.state_bytes + 16 * workload.activation_bytes_per_sample) * 5 / 8 / 2**30
    tight = _lengths(_boxes(quiet_scenario, [8.0, 1.0, 8.0], tight_gib), AttentionLayers(heads=1))
    assert dict(tight)["d1"] < 6
    with pytest.raises(Infeasible, match="fits on no device"):
        _lengths(_boxes(quiet_scenario, [1.0, 1.0], 0.005), AttentionLayers(heads=1))


@settings(max_examples=60)
@given(scenarios(), st.sampled_from([1, 2, 8]))
def test_plans_are_one_pipeline_of_runs(scenario: Scenario, count: int) -> None:
    try:
        plan = AttentionLayers(micro_batches=count).allocate(View.of(scenario))
    except Infeasible:
        return
    plan.check(scenario)
    devices = [stage.replicas[0].devices[0] for stage in plan.pipelines[0].stages]
    assert len(plan.pipelines) == 1
    assert len(set(devices)) == len(devices)


def test_it_keeps_the_contract() -> None:
    check_policy(AttentionLayers, max_examples=40, seed=6, unit_free=True)
