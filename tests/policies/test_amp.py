"""AMP's space: equal pipelines, and cuts that no other beats where layers and devices are uneven."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.policies.amp import Amp
from steelyard.policies.shapes import Foundry, Seat
from steelyard.sim import cost
from steelyard.sim.engine import run_launches
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, load_scenario, scenario_from
from steelyard.sim.view import View


def study(
    work: list[int], speeds: list[float], *, elements: list[float] | None = None, parameters: int = 1000
) -> Scenario:
    """A machine per speed, layers of so much work, and each of so many elements that go to memory and back."""
    layers = [
        {
            "name": f"layer{number}",
            "parameters": parameters,
            "trainable_parameters": parameters,
            "forward": [{"kind": "matmul", "flops": [1e10 * amount], "elements": [moved]}],
            "backward": [{"kind": "matmul", "flops": [2e10 * amount], "elements": [2 * moved]}],
            "activation_elements": [10.0],
            "output_elements": [10.0],
        }
        for number, (amount, moved) in enumerate(zip(work, elements or [1.0] * len(work), strict=True))
    ]
    figures: dict[str, Any] = {"memory_gib": 8.0, "memory_bandwidth_gb_per_s": 500.0}
    nodes = [
        {
            "name": f"m{number}",
            "link": {"name": "inside", "latency_us": 1.0, "bandwidth_gb_per_s": 50.0},
            "devices": [{**figures, "name": f"m{number}-gpu", "peak_tflops": {"fp32": speed}}],
        }
        for number, speed in enumerate(speeds)
    ]
    return scenario_from(
        {
            "name": "uneven",
            "cluster": {"nodes": nodes, "network": {"name": "n", "latency_us": 1.0, "bandwidth_gb_per_s": 10.0}},
            "workload": {"model": {"name": "uneven", "layers": layers}, "global_batch": 8},
            "sampling": {"launches": 1, "steps": 3},
        }
    )


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=8), st.lists(st.integers(1, 9), min_size=2, max_size=3))
def test_no_cut_has_a_quicker_slowest_stage(work: list[int], speeds: list[int]) -> None:
    """The paper's layer assignment is for models of uneven layers; here over unlike devices as well."""
    scenario = study(work, [float(speed) for speed in speeds])
    foundry = Foundry(View.of(scenario))
    seats = [Seat(kind.number, 1) for kind in foundry.kinds for _ in range(kind.count)]
    found = foundry.shape(seats, 1, 0, 1)
    assert found is not None

    def slowest(bounds: tuple[int, ...]) -> float:
        times = [
            cost.stage_time(foundry.kinds[seat.kind].device, scenario.workload, first, last, 1)
            for seat, (first, last) in zip(seats, itertools.pairwise(bounds), strict=True)
        ]
        return max(each.forward_s + each.backward_s for each in times)

    every = itertools.combinations(range(1, len(work)), len(seats) - 1)
    best = min(slowest((0, *inner, len(work))) for inner in every)
    # The bisection stops within 0.2 %.
    assert slowest((0, *(held.last for held in found.stages))) <= best * 1.003


def throughput(scenario: Scenario, plan: Plan) -> float:
    ends = run_launches(scenario, plan, seed=0, launches=1, record=False)[0].ends
    return scenario.workload.global_batch / (ends[-1] - ends[-2])


@pytest.mark.parametrize("name", ["mixed-servers", "old-v100s"])
def test_all_pipelines_are_equal(name: str) -> None:
    scenario = load_scenario(name)
    plan = Amp().allocate(View.of(scenario))
    cuts = {tuple((s.first, s.last, len(s.replicas[0].devices)) for s in each.stages) for each in plan.pipelines}
    samples = [each.samples for each in plan.pipelines]
    assert len(cuts) == 1
    assert max(samples) - min(samples) <= 1


def best_grid(scenario: Scenario) -> float:
    """Samples per second of the best setting of Megatron's grid: all degrees, micro-batches and schedules."""
    view, best = View.of(scenario), 0.0
    depths = range(1, len(scenario.cluster.devices) + 1)
    ways = [("1f1b", 1), ("gpipe", 1), ("interleaved", 2)]
    for depth, size, (schedule, chunks) in itertools.product(depths, (1, 2, 4, 8), ways):
        values = {"pipeline": depth, "micro_batch": size, "schedule": schedule, "chunks": chunks}
        try:
            plan = make_policy("grid", values).allocate(view)
        except Infeasible:
            continue
        best = max(best, throughput(scenario, plan))
    return best


UNLIKE = study([1] * 12, [4.0, 4.0, 1.0, 1.0])
"""Equal layers; two devices are four times as fast as the others."""
UNEVEN = study([1] * 12, [1.0] * 2, elements=[1e10] * 3 + [1.0] * 9, parameters=47_000_000)
"""Equal devices and FLOPs; the first layers wait for memory. No device holds the whole model."""


@pytest.mark.parametrize(("scenario", "factor"), [(UNLIKE, 1.8), (UNEVEN, 1.35)])
def test_it_is_faster_than_any_megatron_grid(scenario: Scenario, factor: float) -> None:
    """The paper's claim for unlike devices and for uneven layers: equal cuts leave the fast ones waiting."""
    plan = Amp().allocate(View.of(scenario))
    plan.check(scenario)
    assert throughput(scenario, plan) > factor * best_grid(scenario) > 0


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=8), st.lists(st.integers(1, 9), min_size=2, max_size=3))
def test_the_policys_plan_has_the_quickest_slowest_stage_of_its_depth(work: list[int], speeds: list[int]) -> None:
    """Of the plan that is returned: no other cut of its pipelines has a quicker slowest stage."""
    scenario = study(work, [float(speed) for speed in speeds])
    (stages, *_) = [pipeline.stages for pipeline in Amp().allocate(View.of(scenario)).pipelines]
    devices = [scenario.cluster.by_name[stage.replicas[0].devices[0]] for stage in stages]

    def slowest(bounds: tuple[int, ...]) -> float:
        times = [
            cost.stage_time(device, scenario.workload, first, last, 1)
            for device, (first, last) in zip(devices, itertools.pairwise(bounds), strict=True)
        ]
        return max(each.forward_s + each.backward_s for each in times)

    every = itertools.combinations(range(1, len(work)), len(stages) - 1)
    best = min(slowest((0, *inner, len(work))) for inner in every)
    assert slowest((0, *(stage.last for stage in stages))) <= best * 1.003


def test_a_shipped_scenario_tells_it_from_the_others() -> None:
    """On unlike servers: the hybrid planner deals unequal shares, and the grid cuts as if all were alike."""
    scenario = load_scenario("mixed-servers")
    view = View.of(scenario)
    mine = Amp().allocate(view)
    for other in ("hybrid", "grid", "uniform", "makespan", "flops", "throughput"):
        try:
            plan = make_policy(other).allocate(view)
        except Infeasible:
            continue
        assert plan.sha256 != mine.sha256, other
    depth, degree = len(mine.pipelines[0].stages), len(mine.pipelines[0].stages[0].replicas[0].devices)
    size = mine.pipelines[0].micro_batches[0]
    regular = make_policy("grid", {"pipeline": depth, "tensor": degree, "micro_batch": size}).allocate(view)
    assert throughput(scenario, mine) > throughput(scenario, regular)
