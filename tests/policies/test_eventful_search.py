"""Searches and sweeps of scenarios whose devices slow down or go: the values are those of whole runs, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import make_policy
from steelyard.policies.search import search
from steelyard.policies.search_goal import UNITS, Cell, Goal, signed
from steelyard.policies.search_stages import PRUNERS, check_pruner
from steelyard.policies.whatif import whatif
from steelyard.results.errors import InputError
from steelyard.runner.cli import run
from steelyard.sim.engine import objective_value, simulate
from steelyard.sim.measures import busy_s, measure, step_times
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.summary import headroom

Document = dict[str, Any]
SLOWER = {"kind": "slowdown", "device": "fast", "from_step": 3, "factor": 4.0}
LOST = {"kind": "loss", "device": "slow", "from_step": 5}
TRIED = ["uniform", "makespan", "lb-bsp"]


@pytest.fixture(params=["slowdown", "loss", "rebalance"])
def document(request: pytest.FixtureRequest, make_document: Callable[..., Document]) -> Document:
    """As many launches for a run as for a trial: then both must say the same."""
    found = {**make_document(), "sampling": {"launches": 2, "steps": 12, "search_launches": 2}}
    if request.param != "rebalance":
        found["disturbances"] = [SLOWER, LOST] if request.param == "loss" else [SLOWER]
    return {**found, "rebalance": {"every_steps": 4, "pause_s": 0.001, "restart_s": 0.01}}


@pytest.fixture
def eventful(document: Document) -> Scenario:
    return scenario_from(document)


def _about(scenario: Scenario, metric: str) -> Scenario:
    return scenario.model_copy(update={"objective": scenario.objective.model_copy(update={"metric": metric})})


@pytest.mark.parametrize("name", TRIED)
def test_all_ways_to_ask_say_what_the_whole_run_says(eventful: Scenario, name: str) -> None:
    policy = make_policy(name)
    summary = simulate(eventful, policy, seed=3).summary
    energy_j = summary.energy_j_per_step
    assert energy_j is not None
    said = {
        "throughput": summary.throughput_samples_per_s,
        "step_time_p90": summary.step_time_s.p90,
        "cost": summary.cost_usd_per_million_samples,
        "energy": energy_j * 1e6 / eventful.workload.global_batch,
    }
    found = measure(eventful, policy, seed=3, launches=2, metrics=list(UNITS))
    assert {metric: found[metric] for metric in said} == said
    for metric in UNITS:
        value = objective_value(_about(eventful, metric), policy, seed=3, launches=2)
        assert signed(metric, value) == pytest.approx(found[metric], rel=1e-12)


def test_memory_is_that_of_the_fullest_plan_of_the_run(make_document: Callable[..., Document]) -> None:
    """Once one device is lost, the other holds the whole batch: the plan of the start knows nothing of it."""
    document = {**make_document(noisy=False), "disturbances": [{**LOST, "device": "fast"}]}
    scenario, policy = scenario_from(document), make_policy("uniform")
    alone = headroom(scenario, Plan.data_parallel(scenario.workload, {"slow": 32}))
    assert measure(scenario, policy, seed=0, launches=1, metrics=["memory_headroom"]) == {"memory_headroom": alone}
    assert objective_value(_about(scenario, "memory_headroom"), policy, seed=0, launches=1) == alone
    assert alone < headroom(scenario, Plan.data_parallel(scenario.workload, {"fast": 16, "slow": 16}))


def test_a_figure_without_a_price_is_refused(document: Document) -> None:
    del document["cluster"]["nodes"][0]["devices"][0]["price_usd_per_hour"]
    with pytest.raises(InputError, match="cost needs price_usd_per_hour"):
        measure(scenario_from(document), make_policy("uniform"), seed=0, launches=1, metrics=["throughput", "cost"])


@pytest.mark.parametrize("objectives", [["throughput"], ["throughput", "cost"]])
def test_a_search_gives_what_whole_runs_give(eventful: Scenario, objectives: list[str]) -> None:
    result = search(eventful, policies=TRIED, trials=6, seed=3, workers=0, objectives=objectives)
    best = simulate(eventful, result.policy(), seed=3).summary.throughput_samples_per_s
    defaults = [simulate(eventful, make_policy(name), seed=3).summary.throughput_samples_per_s for name in TRIED]
    assert result.value == pytest.approx(best, rel=1e-12)
    assert best >= max(defaults)


@pytest.mark.parametrize("pruner", PRUNERS[1:])
def test_pruners_are_refused(eventful: Scenario, pruner: str) -> None:
    with pytest.raises(InputError, match="two-lanes has disturbances or rebalance \\(use none"):
        search(eventful, policies=TRIED, trials=6, seed=3, workers=0, pruner=pruner)
    check_pruner(PRUNERS[0], Goal((Cell(eventful, 0),), ("throughput",)))


def test_what_holds_of_equal_steps_alone_is_refused(eventful: Scenario) -> None:
    plan = Plan.data_parallel(eventful.workload, {"fast": 16, "slow": 16})
    with pytest.raises(InputError, match="more than equal steps of one plan"):
        busy_s(eventful, plan)
    with pytest.raises(InputError, match="more than equal steps of one plan"):
        step_times(eventful, plan, seed=0, launches=1, span=range(1))


def test_a_sweep_gives_what_whole_runs_give(make_document: Callable[..., Document]) -> None:
    document = {**make_document(), "sampling": {"launches": 2, "steps": 12, "search_launches": 2}}
    document["disturbances"] = [SLOWER]
    result = whatif(document, None, ["disturbances.0.factor=1,4"], policies=["makespan"])
    values = [point.objective_value for point in result.points]
    for point, factor in zip(result.points, (1.0, 4.0), strict=True):
        scenario = scenario_from({**document, "disturbances": [{**SLOWER, "factor": factor}]})
        throughput = simulate(scenario, make_policy("makespan")).summary.throughput_samples_per_s
        assert point.objective_value == point.throughput_samples_per_s == throughput
    assert values[0] is not None
    assert values[1] is not None
    assert values[1] < values[0]


def test_the_command_refuses_a_pruner_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", "stragglers", "-p", "uniform", "--pruner", "median", "--runs", str(tmp_path / "runs")]
    assert run([*arguments, "--set", "rebalance={every_steps=5}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("steelyard: pruner: ")
    assert said.count("\n") == 1
