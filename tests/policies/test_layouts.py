"""Bounds of equal pipelines, by which most are left out, and their interleaved versions."""

from __future__ import annotations

import math

import pytest
from steelyard.policies.chunks import interleaved
from steelyard.policies.hybrid import Judge
from steelyard.policies.layouts import Layouts
from steelyard.policies.shapes import Foundry
from steelyard.sim.device import Node
from steelyard.sim.engine import run_launches
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, load_scenario
from steelyard.sim.view import View

from .test_hybrid import machine, study

CLUSTERS = {
    "one machine": [machine("a", 4)],
    "two like": [machine("a", 2), machine("b", 2)],
    "thin": [machine("a", 4), machine("b", 4)],
    "unlike": [machine("a", 2, 10.0), machine("b", 4, 5.0)],
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_estimate_is_below_the_bounds(name: str) -> None:
    scenario = study(CLUSTERS[name], gb_per_s=0.05 if name == "thin" else 5.0, layers=7)
    view = View.of(scenario)
    judge, seen = Judge(view), 0
    for layout in Layouts(Foundry(view), 8).within(math.inf):
        plan = layout.plan()
        if judge.fits(plan):
            step, seen = judge.estimator.of(plan).step_s, seen + 1
            assert layout.placement.floors_s(layout.shape.micro_batch)[0] <= step * (1 + 1e-9)
            assert layout.least_s <= step * (1 + 1e-9)
    assert seen > 20


def engine_s(scenario: Scenario, plan: Plan) -> float:
    ends = run_launches(scenario, plan, seed=0, launches=1, record=False)[0].ends
    return ends[-1] - ends[-2]


def test_interleaving_shrinks_the_bubble() -> None:
    """Narayanan et al. 2021: (p - 1) / (v m) instead of (p - 1) / m, where links cost little."""
    scenario = study([machine("a", 4)], layers=24, batch=8)
    view = View.of(scenario)
    judge, foundry = Judge(view), Foundry(view)
    deep = next(
        plan
        for layout in Layouts(foundry, 4).within(math.inf)
        for plan in [layout.plan()]
        if len(plan.pipelines[0].stages) == 4 and len(plan.pipelines[0].micro_batches) == 8 and judge.fits(plan)
    )
    found = list(interleaved(foundry, deep, judge.fits))
    assert [len(plan.pipelines[0].stages) for plan in found] == [8, 12, 16, 24]
    assert engine_s(scenario, found[0]) < engine_s(scenario, deep)
    for plan in found:
        assert judge.estimator.of(plan).step_s == pytest.approx(engine_s(scenario, plan), rel=1e-3)


def test_messages_share_the_adapter_of_a_machine() -> None:
    """Four pipelines from one machine to the next: four times as slow over one adapter as over one each."""
    scenario = load_scenario("slow-ethernet")
    nodes = scenario.cluster.nodes
    factors = []
    for nics in (1, 8):
        made = [Node.model_validate({**node.model_dump(), "nics": nics}) for node in nodes]
        view = View.of(scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": made})}))
        placed = Layouts(Foundry(view), 4).within(math.inf)
        beside = (layout for layout in placed if layout.placement.beside and layout.placement.count == 8)
        plan = next(layout.plan() for layout in beside if len(layout.shape.stages) == 4)
        lanes = Judge(view).estimator.crowds.lanes(plan)
        factors.append({lane.factor for each in lanes for lane in each.values()})
    assert factors == [{8.0}, {1.0}]
