"""The estimate of a step beside the engine, and the line's recurrence beside theory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.grid import Grid
from steelyard.sim.engine import run_launches
from steelyard.sim.estimate import Estimator, step_s
from steelyard.sim.line import Piecework, ends_of
from steelyard.sim.plan import Infeasible, Pipeline, Plan, Replica, Stage
from steelyard.sim.schedule import order
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View


def study(devices: int = 4, batch: int = 16, nics: int = 8, gb_per_s: float = 5.0) -> Scenario:
    work = {"kind": "matmul", "flops": [1e11], "elements": [1e4]}
    layer = {
        "name": "layer{}",
        "repeat": 8,
        "parameters": 1_000_000,
        "trainable_parameters": 1_000_000,
        "forward": [work],
        "backward": [work, work],
        "activation_elements": [1e5],
        "output_elements": [1e5],
        "tensor": {"divisor": 8, "forward_elements": [[1e5]], "backward_elements": [[1e5]]},
    }
    figures = {"memory_gib": 8.0, "memory_bandwidth_gb_per_s": 500, "price_usd_per_hour": 2.0}
    nodes = [
        {
            "name": name,
            "nics": nics,
            "devices": [{**figures, "name": f"{name}-gpu", "peak_tflops": {"fp32": speed}, "count": devices}],
            "link": {"name": "inside", "latency_us": 1.0, "bandwidth_gb_per_s": 100.0},
        }
        for name, speed in (("a", 20.0), ("b", 10.0))
    ]
    network = {"name": "between", "latency_us": 5.0, "bandwidth_gb_per_s": gb_per_s}
    return scenario_from(
        {
            "name": "toy",
            "cluster": {"nodes": nodes, "network": network},
            "workload": {"model": {"name": "toy", "layers": [layer]}, "global_batch": batch},
            "sampling": {"launches": 1, "steps": 3},
        }
    )


def engine_s(scenario: Scenario, plan: Plan) -> float:
    ends = run_launches(scenario, plan, seed=0, launches=1, record=False)[0].ends
    return ends[-1] - ends[-2]


def plan_of(scenario: Scenario, **degrees: Any) -> Plan:
    return Grid(**degrees).allocate(View.of(scenario))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=8).filter(any))
def test_data_parallel_steps_are_the_engines(samples: list[int]) -> None:
    scenario = study(batch=sum(samples))
    view = View.of(scenario)
    plan = view.plan(samples)
    assert step_s(view, plan) == pytest.approx(engine_s(scenario, plan), rel=1e-9)


@pytest.mark.parametrize("pipeline", [2, 4, 8])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_one_pipeline_is_the_engines(pipeline: int, schedule: str) -> None:
    """Alone on their links, pieces and messages take what the recurrence says, however many micro-batches follow."""
    for batch in (3, 16, 200):
        scenario = study(batch=batch)
        plan = plan_of(scenario, data=1, pipeline=pipeline, schedule=schedule)
        estimate = Estimator(View.of(scenario)).of(plan)
        assert estimate.step_s == pytest.approx(engine_s(scenario, plan), rel=1e-6)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_two_long_runs_of_micro_batches_take_what_the_engine_says(devices: int, schedule: str) -> None:
    """Neither run is computed as a whole; the pace of one must not hold what the other adds."""
    sizes = [3] * 24 + [2] * 30
    scenario = study(batch=sum(sizes))
    bounds = [0, 8] if devices == 1 else [0, 4, 8]
    stages = [
        Stage(first=first, last=last, replicas=[Replica(devices=[f"a-gpu-{place}"])])
        for place, (first, last) in enumerate(itertools.pairwise(bounds))
    ]
    plan = Plan(pipelines=[Pipeline(stages=stages, micro_batches=sizes)], schedule=schedule)
    assert step_s(View.of(scenario), plan) == pytest.approx(engine_s(scenario, plan), rel=2e-3)


def test_no_plan_is_far_off() -> None:
    """What shares links is estimated: the worst of all settings of the grid, on own adapters and on one for all."""
    errors = []
    for scenario in (study(), study(nics=1), study(nics=1, gb_per_s=1.0)):
        for degrees in itertools.product((1, 2, 4), (1, 2, 4), (1, 4), (0, 1, 2, 3), ("none", "full")):
            names = ("pipeline", "tensor", "micro_batch", "zero", "recompute")
            try:
                plan = plan_of(scenario, **dict(zip(names, degrees, strict=True)))
            except Infeasible:
                continue
            errors.append(abs(step_s(View.of(scenario), plan) / engine_s(scenario, plan) - 1))
    errors.sort()
    assert len(errors) > 200
    assert errors[len(errors) // 2] < 1e-9
    assert errors[-1] < 1e-3


def test_a_price_is_that_of_the_devices_in_use() -> None:
    scenario = study()
    view = View.of(scenario)
    half = Estimator(view).of(view.plan([4, 4, 4, 4, 0, 0, 0, 0]))
    assert half.usd_per_million_samples == pytest.approx(4 * 2.0 / 3600 * half.step_s / 16 * 1e6)
    assert half.energy_j is None


@given(st.integers(1, 6), st.integers(1, 12), st.floats(0.1, 3), st.floats(0.1, 3))
def test_equal_stages_take_what_theory_says(workers: int, turns: int, forward: float, backward: float) -> None:
    """(m + p - 1)(f + b), Narayanan et al. 2021, section 2.2: GPipe and 1F1B with free links."""
    for kind in ("gpipe", "1f1b"):
        work = Piecework(
            orders=[order(kind, workers, place, 1, turns) for place in range(workers)],  # type: ignore[arg-type]
            stages=[(place,) for place in range(workers)],
            jobs=[{1: (forward, backward)}] * workers,
            messages={way: {1: (0.0, 0.0)} for place in range(workers - 1) for way in _both(place)},
            sizes=[1] * turns,
        )
        assert max(ends_of(work)) == pytest.approx((turns + workers - 1) * (forward + backward))


def _both(place: int) -> list[tuple[bool, int, int]]:
    return [(False, place, place + 1), (True, place + 1, place)]
