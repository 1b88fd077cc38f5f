"""Pruning: stages add up to the whole, the ceiling holds, the winner stays, and what was killed resumes the same."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import DEFAULTS, make_policy, policies_for
from steelyard.policies.search import search
from steelyard.policies.search_goal import Cell, Goal
from steelyard.policies.search_stages import PRUNERS, simulate_stage, stages, value_so_far
from steelyard.policies.testing import quiet, scenarios
from steelyard.policies.workers import Evaluator
from steelyard.sim.engine import objective_value
from steelyard.sim.measures import busy_s
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario, load_scenario, scenario_from
from steelyard.sim.view import View, allocate

Document = dict[str, Any]
STAGED = PRUNERS[2:]


@pytest.fixture(scope="module")
def noisy(make_document: Callable[..., Document]) -> Scenario:
    return scenario_from({**make_document(), "sampling": {"launches": 2, "steps": 5, "search_launches": 6}})


@pytest.fixture(scope="module")
def still(make_document: Callable[..., Document]) -> Scenario:
    return scenario_from({**make_document(noisy=False), "sampling": {"launches": 2, "steps": 5}})


@pytest.mark.parametrize("metric", ["throughput", "step_time_p90"])
@pytest.mark.parametrize("name", ["uniform", "makespan", "linear-cost"])
def test_stages_add_up_to_the_whole(metric: str, name: str, noisy: Scenario, still: Scenario) -> None:
    for cells in ([Cell(noisy, 3)], [Cell(still, 3)], [Cell(noisy, 1), Cell(still, 1), Cell(noisy, 2)]):
        about = [
            Cell(each.model_copy(update={"objective": each.objective.model_copy(update={"metric": metric})}), seed)
            for each, seed in cells
        ]
        goal = Goal(tuple(about), (metric,), "mean" if len(cells) > 1 else None)
        goal = goal.with_references({"uniform": {}}) if goal.robust else goal
        parts = []
        for stage in range(len(stages(goal))):
            parts.append(simulate_stage(goal, name, {}, stage))
            if parts[-1].last:
                break
        assert goal.evaluate(name, {}).values == (value_so_far(goal, parts),)


def test_workers_give_the_stages_that_this_process_gives(noisy: Scenario) -> None:
    goal = Goal.of(noisy, 3)
    asked = [(name, {}, stage) for name in DEFAULTS for stage in range(4)]
    expected = [simulate_stage(goal, *each) for each in asked]
    with Evaluator(goal, workers=1, start_s=0.0) as evaluator:
        evaluator.submit(simulate_stage, *asked[0])
        assert evaluator.outcomes() == expected[:1]
        while not evaluator._workers[0].ready:
            time.sleep(0.01)
            evaluator._exchange()
        for each in asked:
            evaluator.submit(simulate_stage, *each)
        assert evaluator._workers[0].holds
        assert evaluator.outcomes() == expected


def test_launches_double_from_stage_to_stage(noisy: Scenario) -> None:
    spans = [list(span) for _, span in stages(Goal.of(noisy, 0))]
    assert spans == [[0], [1], [2, 3], [4, 5]]


@pytest.mark.parametrize("name", ["h100-box", "mixed-servers", "llama-70b", "oversubscribed-racks", "image-input"])
def test_no_plan_of_a_shipped_scenario_beats_its_ceiling(name: str) -> None:
    scenario = load_scenario(name)
    for policy in policies_for(scenario):
        try:
            plan = allocate(policy, View.of(scenario), scenario)
        except Infeasible:
            continue
        value = objective_value(scenario, policy, seed=0, launches=1)
        assert value <= scenario.workload.global_batch / busy_s(scenario, plan) * (1 + 1e-9)


@settings(max_examples=40)
@given(scenarios(), st.sampled_from(DEFAULTS))
def test_no_plan_of_a_generated_scenario_beats_its_ceiling(scenario: Scenario, name: str) -> None:
    calm = quiet(scenario)
    try:
        plan = allocate(make_policy(name), View.of(calm), calm)
    except Infeasible:
        return
    goal = Goal.of(calm.model_copy(update={"objective": type(calm.objective)()}), 0)
    values = goal.evaluate(name, {}).values
    assert values is not None
    assert busy_s(calm, plan) >= 0
    assert values[0] <= goal.ceiling(name, {})


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_the_bound_prunes_and_the_winner_is_the_same(sampler: str, still: Scenario) -> None:
    """These samplers draw the same trials whatever was told: so the winner must be the same one, to the number."""
    arguments: dict[str, Any] = {"trials": 48, "seed": 3, "sampler": sampler, "workers": 0}
    whole = search(still, **arguments)
    pruned = search(still, **arguments, pruner="bound")
    assert pruned.front == whole.front
    given_up = [row for row in pruned.trials if row.state == "pruned"]
    assert len(given_up) > 8
    for row, known in zip(pruned.trials, whole.trials, strict=True):
        assert (row.policy, row.parameters) == (known.policy, known.parameters)
        if row.state == "pruned":
            assert known.value is not None
            assert known.value <= whole.value
        else:
            assert row.value == known.value


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_the_bound_prunes_under_limits_and_the_winner_is_the_same(sampler: str, still: Scenario) -> None:
    """Only what counts may give up others: the fastest plan of all is over this limit."""
    arguments: dict[str, Any] = {"trials": 48, "seed": 3, "sampler": sampler, "workers": 0}
    free = search(still, objectives=["throughput", "memory_headroom"], **arguments)
    fastest = free.figures(free.front[0])["memory_headroom"]
    most = max(free.figures(row)["memory_headroom"] for row in free.front)
    arguments |= {"objectives": ["throughput"], "limits": {"memory_headroom": (fastest + most) / 2}}
    whole, pruned = search(still, **arguments), search(still, **arguments, pruner="bound")
    assert whole.value < free.value
    assert pruned.front == whole.front
    assert any(row.state == "pruned" for row in pruned.trials)


def test_the_bound_prunes_over_several_scenarios(still: Scenario) -> None:
    half = still.model_dump(mode="json")
    half["workload"]["global_batch"] = 16
    cells = [still, scenario_from(half)]
    arguments: dict[str, Any] = {"robust": "mean", "trials": 48, "seed": 3, "sampler": "random", "workers": 0}
    whole, pruned = search(cells, **arguments), search(cells, **arguments, pruner="bound")
    assert pruned.front == whole.front
    assert any(row.state == "pruned" for row in pruned.trials)


@pytest.mark.parametrize("pruner", STAGED)
def test_survivors_have_the_values_they_would_have_and_the_winner_stays(pruner: str, noisy: Scenario) -> None:
    """Seeds 0 to 2, and trials drawn at random, so that pruning changes nothing but who is given up."""
    given_up = 0
    for seed in range(3):
        arguments: dict[str, Any] = {"trials": 48, "seed": seed, "sampler": "random", "workers": 0}
        whole, pruned = search(noisy, **arguments), search(noisy, **arguments, pruner=pruner)
        for row, known in zip(pruned.trials, whole.trials, strict=True):
            assert (row.policy, row.parameters) == (known.policy, known.parameters)
            assert row.state == "pruned" or row.value == known.value
        given_up += sum(row.state == "pruned" for row in pruned.trials)
        assert pruned.front == whole.front
    assert given_up > 0


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("pruner", "sampler"),
    [
        ("bound", "tpe"),
        ("median", "tpe"),
        ("hyperband", "nsgaii"),
        *(
            pytest.param(pruner, sampler, marks=pytest.mark.slow)
            for pruner, sampler in (("halving", "tpe"), ("hyperband", "tpe"), ("median", "nsgaii"), ("bound", "nsgaii"))
        ),
    ],
)
def test_a_pruned_search_resumes_as_if_nothing_had_been(
    pruner: str, sampler: str, noisy: Scenario, still: Scenario, tmp_path: Path
) -> None:
    scenario = still if pruner == "bound" else noisy
    arguments: dict[str, Any] = {"trials": 26, "seed": 3, "pruner": pruner, "sampler": sampler}
    full = tmp_path / "full.log"
    whole = search(scenario, **arguments, workers=0, storage=full)
    assert search(scenario, **arguments, workers=0).trials == whole.trials
    assert any(row.state == "pruned" and row.reason for row in whole.trials)
    content, draws = full.read_bytes(), random.Random(0)
    for number in range(3):
        storage = tmp_path / f"cut{number}.log"
        storage.write_bytes(content[: draws.randrange(len(content) // 3, len(content))])
        assert search(scenario, **arguments, workers=0, storage=storage).trials == whole.trials, f"cut {number}"
