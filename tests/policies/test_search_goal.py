"""What a search is about: several objectives, limits, several scenarios and seeds."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import DEFAULTS, make_policy, policy_from_text
from steelyard.policies.search import SearchResult, search, write_best, write_front
from steelyard.policies.search_goal import LESS_IS_BETTER, UNITS, Cell, Goal, signed
from steelyard.policies.search_result import TrialRow, front_of
from steelyard.results.errors import InputError
from steelyard.sim.engine import objective_value, simulate
from steelyard.sim.measures import measure
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario, scenario_from

Document = dict[str, Any]
SAMPLED = {"launches": 2, "steps": 4, "search_launches": 2}
"""As many launches for a run as for a trial: then both must say the same."""


@pytest.fixture(scope="module")
def document(make_document: Callable[..., Document]) -> Document:
    return {**make_document(), "sampling": SAMPLED}


@pytest.fixture(scope="module")
def both(document: Document) -> Scenario:
    return scenario_from(document)


@pytest.fixture(scope="module")
def other(document: Document) -> Scenario:
    """The same with a small batch."""
    changed = json.loads(json.dumps(document)) | {"name": "other"}
    changed["workload"]["global_batch"] = 12
    return scenario_from(changed)


def _about(scenario: Scenario, **objective: Any) -> Scenario:
    return scenario.model_copy(update={"objective": scenario.objective.model_copy(update=objective)})


@pytest.mark.parametrize("metric", list(UNITS))
@pytest.mark.parametrize("name", ["uniform", "linear-cost", "makespan"])
def test_each_figure_is_what_the_engine_says(metric: str, name: str, both: Scenario) -> None:
    policy = make_policy(name)
    found = measure(both, policy, seed=3, launches=2, metrics=list(UNITS))
    alone = objective_value(_about(both, metric=metric), policy, seed=3, launches=2)
    assert found[metric] == pytest.approx(signed(metric, alone), rel=1e-12)
    assert measure(both, policy, seed=3, launches=2, metrics=[metric]) == {metric: found[metric]}


def test_headroom_is_what_the_peak_leaves(both: Scenario) -> None:
    run = simulate(both, make_policy("makespan"), seed=0)
    left = [
        1 - ledger.peak_memory_bytes / both.cluster.by_name[name].memory_bytes
        for name, ledger in run.summary.devices.items()
        if ledger.peak_memory_bytes is not None
    ]
    assert measure(both, make_policy("makespan"), seed=0, launches=1, metrics=["memory_headroom"]) == {
        "memory_headroom": pytest.approx(min(left), rel=1e-12)
    }


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=30)
)
def test_the_front_is_what_none_dominates(points: list[tuple[int, int, int, bool]]) -> None:
    rows = [
        TrialRow(number, "p", {}, float(a), "complete", "", (float(a), float(b), float(c)), 0.5 * missed)
        for number, (a, b, c, missed) in enumerate(points)
    ]
    goal = Goal((), ("throughput", "cost", "energy"))
    counting = [row for row in rows if row.counts]
    if not counting:
        with pytest.raises(Infeasible, match="misses by 50"):
            front_of(rows, goal)
        return
    front = front_of(rows, goal)
    dominated = {
        row.number
        for row, better in itertools.product(counting, counting)
        if all(a >= b for a, b in zip(better.values, row.values, strict=True))
        and (better.values != row.values or better.number < row.number)
    }
    assert {row.number for row in front} == {row.number for row in counting} - dominated
    assert front[0].values == max(row.values for row in counting)


@pytest.fixture(scope="module")
def pareto(both: Scenario) -> SearchResult:
    return search(both, objectives=["throughput", "cost", "memory_headroom"], trials=40, seed=3, workers=0)


def test_a_front_has_the_best_of_each_objective(pareto: SearchResult) -> None:
    for place in range(3):
        most = max(row.values[place] for row in pareto.trials if row.value is not None)
        assert max(row.values[place] for row in pareto.front) == most
    assert pareto.front[0].value == pareto.value
    assert len(pareto.front) > 1, "one fast device alone is cheaper than both"
    assert [row.policy for row in pareto.trials[: len(DEFAULTS)]] == list(DEFAULTS)


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_front_repeats_and_resumes(sampler: str, both: Scenario, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"objectives": ["throughput", "cost"], "trials": 36, "seed": 3, "sampler": sampler}
    whole = search(both, **arguments, workers=0)
    search(both, **arguments | {"trials": 24}, workers=0, storage=tmp_path / "s.log")
    resumed = search(both, **arguments, workers=0, storage=tmp_path / "s.log")
    assert resumed.trials == whole.trials
    assert resumed.front == whole.front
    with pytest.raises(InputError, match="objectives"):
        search(both, **arguments | {"objectives": ["cost", "energy"]}, workers=0, storage=tmp_path / "s.log")


def test_every_point_of_a_front_is_a_policy_file(pareto: SearchResult, tmp_path: Path) -> None:
    files = write_front(pareto, tmp_path / "front.toml")
    assert len(files) == 1 + len(pareto.front)
    whole = tomllib.loads(files[0].read_text())
    assert whole["search"]["objectives"] == ["throughput", "cost", "memory_headroom"]
    for file, row, point in zip(files[1:], pareto.front, whole["points"], strict=True):
        assert policy_from_text(str(file)) == make_policy(row.policy, row.parameters)
        figures = tomllib.loads(file.read_text())["figures"]
        assert figures == point["figures"]
        assert [signed(metric, figures[metric]) for metric in pareto.objectives] == list(row.values)


def test_a_budget_and_a_floor_decide_who_can_win(both: Scenario, pareto: SearchResult) -> None:
    """The fastest plan is over a budget between the cheapest one and its own; a floor brings it back."""
    costs = sorted(-row.values[1] for row in pareto.front)
    budget = (costs[0] + costs[-1]) / 2
    limited = search(_about(both, most_cost_usd_per_million_samples=budget), trials=40, seed=3, workers=0)
    assert limited.value < pareto.value
    for row in limited.trials:
        if row.value is not None:
            figures = measure(both, make_policy(row.policy, row.parameters), seed=3, launches=2, metrics=["cost"])
            assert (row.violation > 0) == (figures["cost"] > budget)
            assert row.violation == pytest.approx(max(0.0, figures["cost"] / budget - 1))
    assert limited.value == max(row.values[0] for row in limited.trials if row.counts)
    cheapest = search(_about(both, metric="cost"), trials=40, seed=3, workers=0)
    floor = 0.99 * pareto.value
    kept = search(
        _about(both, metric="cost", least_throughput_samples_per_s=floor), trials=40, seed=3, workers=0, storage=None
    )
    assert kept.value < cheapest.value
    speed = measure(both, kept.policy(), seed=3, launches=2, metrics=["throughput"])["throughput"]
    assert speed >= floor


def test_a_limit_that_nothing_meets_is_said(both: Scenario) -> None:
    asked = _about(both, least_throughput_samples_per_s=1e12)
    with pytest.raises(Infeasible, match=r"limits of throughput.*misses by"):
        search(asked, trials=8, workers=0)


@pytest.mark.parametrize("metric", ["step_time_p90", "energy", "memory_headroom", "cost", "throughput"])
def test_a_limit_on_any_figure_decides_who_can_win(metric: str, both: Scenario) -> None:
    """Between the best and the worst that a search meets: those on the wrong side are told by how much."""
    arguments: dict[str, Any] = {"trials": 24, "seed": 3, "sampler": "random", "workers": 0}
    free = search(both, objectives=["throughput", metric], **arguments)
    values = sorted(free.figures(row)[metric] for row in free.trials if row.value is not None)
    limit = (values[0] + values[-1]) / 2
    result = search(both, limits={metric: limit}, **arguments)
    missed = {row.number: row.violation for row in result.trials if row.value is not None}
    assert 0 < sum(each > 0 for each in missed.values()) < len(missed)
    for row in result.trials:
        if row.value is not None:
            policy = make_policy(row.policy, row.parameters)
            figure = measure(both, policy, seed=3, launches=2, metrics=[metric])[metric]
            assert (row.violation == 0) == (figure <= limit if metric in LESS_IS_BETTER else figure >= limit)
    assert result.value == max(row.values[0] for row in result.trials if row.counts)


def test_the_tighter_of_two_limits_counts(both: Scenario, pareto: SearchResult) -> None:
    floor = 0.9 * pareto.value
    loose = _about(both, least_throughput_samples_per_s=0.5 * pareto.value)
    kept = search(loose, limits={"throughput": floor}, trials=24, seed=3, workers=0)
    assert all((row.values[0] >= floor) == row.counts for row in kept.trials if row.value is not None)


@pytest.mark.parametrize("metric", ["throughput", "cost", "memory_headroom"])
@pytest.mark.parametrize("robust", ["mean", "worst"])
def test_a_robust_value_is_the_mean_or_worst_share_of_the_best_default(
    metric: str, robust: Any, both: Scenario, other: Scenario
) -> None:
    result = search([both, other], objectives=[metric], seeds=2, robust=robust, trials=20, seed=5, workers=0)
    cells = [Cell(_about(scenario, metric=metric), seed) for scenario in (both, other) for seed in (5, 6)]
    best = [max(Goal((cell,), (metric,)).evaluate(name, {}).values or (-1e300,) for name in DEFAULTS) for cell in cells]
    for row in result.trials[:12]:
        assert row.value is not None
        values = [Goal((cell,), (metric,)).evaluate(row.policy, row.parameters).values for cell in cells]
        shares = [
            (one[0] / most[0]) ** (-1 if metric in LESS_IS_BETTER else 1)
            for one, most in zip(values, best, strict=True)
            if one is not None
        ]
        expected = sum(shares) / 4 if robust == "mean" else min(shares)
        assert row.value == pytest.approx(expected, rel=1e-12)
    assert result.value == max(row.value for row in result.trials if row.value is not None)


def test_a_robust_winner_has_a_plan_everywhere(both: Scenario, other: Scenario, tmp_path: Path) -> None:
    result = search([both, other], robust="worst", trials=30, workers=0)
    for scenario in (both, other):
        objective_value(scenario, result.policy(), seed=0, launches=1)
    document = tomllib.loads(write_best(result, tmp_path / "best.toml").read_text())
    assert document["search"]["scenarios"] == [both.name, "other"]
    assert document["search"]["robust"] == "worst"
    changed = other.model_dump(mode="json")
    changed["workload"]["global_batch"] = 10**6
    with pytest.raises(InputError, match="no policy has a value for other"):
        search([both, scenario_from(changed)], trials=8, workers=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"objectives": ["speed"]}, "objective"),
        ({"seeds": 0}, "seeds"),
        ({"robust": "worst"}, "no effect"),
        ({"robust": "median", "seeds": 2}, "robust"),
        ({"objectives": ["throughput", "cost"], "sampler": "cmaes"}, "one objective"),
        ({"objectives": ["throughput", "cost"], "pruner": "median"}, "pruner"),
        ({"objectives": ["cost"], "pruner": "median"}, "pruner"),
        ({"pruner": "bound"}, "steps vary"),
        ({"pruner": "median", "limits": {"energy": 1.0}}, "use bound or none"),
        ({"limits": {"speed": 1.0}}, "limit: 'speed' is unknown"),
        ({"limits": {"energy": 0.0}}, "limit.energy"),
        ({"limits": {"energy": 1.0}, "sampler": "cmaes"}, "no limits"),
        ({"pruner": "shears"}, "unknown"),
    ],
)
def test_wrong_wishes_are_named(arguments: dict[str, Any], named: str, both: Scenario) -> None:
    with pytest.raises(InputError, match=named) as caught:
        search(both, trials=8, workers=0, **arguments)
    assert "\n" not in str(caught.value)


def test_scenarios_about_different_things_need_a_word(both: Scenario, other: Scenario) -> None:
    with pytest.raises(InputError, match="say --objective"):
        search([both, _about(other, metric="cost")], trials=8, workers=0)
