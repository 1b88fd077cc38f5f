"""The scenario's own variation through the engine: a step is the maximum over whoever meets in it."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from steelyard.sim import engine
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Sampling, Scenario, Variation
from steelyard.sim.workload import TensorSplit

GB = 10**9


def side_by_side(build: Any) -> Plan:
    return Plan(pipelines=[build.pipeline([0, 1], [f"d{n}"], [1]) for n in range(2)], overlap=False)


def two_equal_lanes(build: Any, variation: Variation, steps: int) -> tuple[Scenario, Plan]:
    devices = [build.device(f"d{n}", [1.0], [1.0]) for n in range(2)]
    sampling = Sampling(launches=40, steps=steps)
    scenario = build.scenario(devices, batch=2, variation=variation, sampling=sampling, parameters=8)
    return scenario, side_by_side(build)


def step_times(scenario: Scenario, plan: Plan, seed: int = 3) -> list[float]:
    done = engine.run_launches(scenario, plan, seed=seed, launches=scenario.sampling.launches, record=False)
    return engine.step_durations(done)


def test_two_noisy_lanes_are_as_slow_as_their_larger_one(build: Any) -> None:
    """The larger of two normals: mean + 0.564 sigma, median + 0.545 sigma, spread 0.826 sigma.

    sigma is 2 % of 2 s, of 7,960 steps; four standard errors, and half a sigma squared for the skew of a log-normal.
    """
    cv, work = 0.02, 2.0
    times = step_times(*two_equal_lanes(build, Variation(step_cv=cv), 200))
    sigma, error = cv * work, 0.826 / math.sqrt(len(times))
    assert (statistics.mean(times) - work) / sigma == pytest.approx(1 / math.sqrt(math.pi), abs=4 * error + cv)
    median = statistics.NormalDist().inv_cdf(math.sqrt(0.5))
    assert median == pytest.approx(0.545, abs=1e-3)
    assert (statistics.median(times) - work) / sigma == pytest.approx(median, abs=4 * 1.253 * error + cv)
    assert statistics.stdev(times) / sigma == pytest.approx(0.826, abs=0.05)


def test_devices_that_differ_per_launch_move_whole_launches(build: Any) -> None:
    """All steps of a launch are equal; the medians of launches spread as the larger of two does."""
    scenario, plan = two_equal_lanes(build, Variation(device_cv=0.05), 5)
    done = engine.run_launches(scenario, plan, seed=3, launches=400, record=False)
    medians = []
    for launch in done:
        times = engine.step_durations([launch])
        assert times == pytest.approx([times[0]] * 4, rel=1e-9)
        medians.append(times[0])
    assert (statistics.mean(medians) - 2.0) / 0.1 == pytest.approx(0.564, abs=4 * 0.826 / 20 + 0.05)


def test_stragglers_set_the_pace_of_their_launch(build: Any) -> None:
    """Of 400 launches of two devices, each slow with probability 0.3: 1 - 0.7^2 are three times as slow."""
    scenario, plan = two_equal_lanes(build, Variation(straggler_share=0.3, straggler_slowdown=3.0), 2)
    done = engine.run_launches(scenario, plan, seed=3, launches=400, record=False)
    times = engine.step_durations(done)
    assert all(any(each == pytest.approx(k, rel=1e-6) for k in (2.0, 6.0)) for each in times)
    share = sum(each > 4 for each in times) / len(times)
    assert share == pytest.approx(0.51, abs=4 * math.sqrt(0.51 * 0.49 / 400))


def test_a_noisy_network_moves_collectives_only(build: Any) -> None:
    devices = [build.device(f"d{n}", [1.0], [1.0]) for n in range(2)]
    scenario = build.scenario(
        devices, batch=2, gb_per_s=1.0, parameters=GB, variation=Variation(network_cv=0.1), sampling=Sampling(steps=100)
    )
    times = step_times(scenario, side_by_side(build))
    ring = 4.0
    assert statistics.mean(times) == pytest.approx(2.0 + ring, abs=4 * 0.1 * ring / math.sqrt(len(times)))
    assert statistics.stdev(times) == pytest.approx(0.1 * ring, rel=0.1)


def test_without_variation_all_launches_are_one(build: Any) -> None:
    scenario, plan = two_equal_lanes(build, Variation(), 200)
    assert not engine.noisy(scenario, plan)
    done = engine.run_launches(scenario, plan, seed=0, launches=40, record=False)
    assert len(done) == 1
    assert engine.step_durations(done) == pytest.approx([2.0] * 199, rel=1e-6)


def test_members_of_a_tensor_group_wait_for_their_slowest(build: Any) -> None:
    """Four noisy devices in lock step: mean + 1.029 sigma (the largest of four normals)."""
    split = TensorSplit(divisor=4)
    devices = [build.device(f"d{n}", [4.0], [4.0], degrees=(1, 4)) for n in range(4)]
    scenario = build.scenario(
        devices,
        batch=1,
        per_node=4,
        layers=[{"tensor": split}],
        variation=Variation(step_cv=0.02),
        sampling=Sampling(steps=200),
    )
    times = step_times(scenario, Plan(pipelines=[build.pipeline([0, 1], [["d0", "d1", "d2", "d3"]], [1])]))
    excess = (statistics.mean(times) - 2.0) / 0.04
    assert excess == pytest.approx(1.029, abs=4 * 0.7 / math.sqrt(len(times)) + 0.02)
