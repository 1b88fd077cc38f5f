"""Pooled figures: what holds of one case holds of copies of it, and each figure is what its definition says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.compare import Comparison, compare, observations, paired
from steelyard.results.criteria import JUDGED_FROM, criteria, shared_criteria
from steelyard.results.fidelities import score
from steelyard.results.pooled import CaseResult, Observation, SuiteResult, balanced_rows, pool, suite_result
from steelyard.results.record import Run
from steelyard.results.steadied import Steadied
from steelyard.results.suite_report import case_rows, lines, suite_report


@pytest.fixture(scope="module")
def case(study: list[Run]) -> CaseResult:
    seen = [
        Observation(inside=inside, width_percent=width)
        for pair in paired(study)
        if pair.row.twin_of is None
        for inside, width in observations(pair)
    ]
    return CaseResult(name="one", family="bert", lanes=2, comparison=compare(study), observations=seen)


def test_one_case_pools_to_its_own_comparison(case: CaseResult) -> None:
    found, own = pool([case]), case.comparison
    assert own is not None
    same = set(type(found).model_fields) & set(type(own).model_fields) - {
        "fidelities",
        "worst_plan",
        "picked",
        "measured_best",
    }
    for key in same - {"coverage_judged", "coverage_p_value"}:
        assert getattr(found, key) == pytest.approx(getattr(own, key)), key
    assert found.plan_count == len(case.rows)
    assert found.worst_plan == f"one: {own.worst_plan}"


@given(copies=st.integers(2, 40))
def test_copies_of_a_case_change_counts_and_nothing_else(case: CaseResult, copies: int) -> None:
    one, many = pool([case]), pool([case] * copies)
    counted = {"cases", "plan_count", "balance_plans", "kendall_pairs", "kendall_pairs_total", "coverage_count"}
    for key in counted:
        assert getattr(many, key) == copies * getattr(one, key)
    for key in set(type(one).model_fields) - counted - {"fidelities", "coverage_judged", "coverage_p_value"}:
        assert getattr(many, key) == pytest.approx(getattr(one, key)), key
    assert many.coverage_judged == (many.coverage_count >= JUDGED_FROM)


def test_each_fidelity_is_scored_on_the_plans_that_it_predicted(case: CaseResult) -> None:
    assert case.comparison is not None
    twice = {
        row.label: {**row.predicted_at, "datasheet": 2 * row.measured.median_s} for row in case.rows if row.measured
    }
    rows = [row.model_copy(update={"predicted_at": twice.get(row.label, {})}) for row in case.comparison.plans]
    other = case.model_copy(update={"comparison": case.comparison.model_copy(update={"plans": rows})})
    found = {each.fidelity: each.mape_percent for each in pool([other]).fidelities}
    assert found["datasheet"] == pytest.approx(100.0)
    assert found["profiled"] == pytest.approx(pool([case]).mape_percent)


def test_times_of_other_work_are_never_ranked_against_each_other(case: CaseResult) -> None:
    """Two cases, the one with all times a hundredfold: pairs are within cases, so tau and pairs just add."""
    slow = case.model_copy(update={"name": "slow"})
    both = pool([case, slow])
    assert both.kendall_pairs_total == 2 * pool([case]).kendall_pairs_total


def test_the_balance_point_is_chosen_by_the_prediction(case: CaseResult) -> None:
    rows = balanced_rows(case.rows)
    best = min(case.rows, key=lambda row: row.predicted.p50_s)
    assert best in rows
    assert all(row.predicted.p50_s <= 1.03 * best.predicted.p50_s for row in rows)


def test_lanes_that_share_a_core_are_judged_apart(case: CaseResult) -> None:
    shared = case.model_copy(update={"name": "shared", "shares_cores": True})
    found = suite_result("both", [case, shared])
    assert found.pooled == pool([case])
    assert found.shared_cores == pool([shared])
    assert found.families == {"bert": pool([case])}
    (only,) = shared_criteria(pool([shared]))
    floor = pool([shared]).noise_floor_percent
    assert floor is not None
    assert only.met == (pool([shared]).mape_percent <= 1.5 * floor + 3)


def test_what_was_not_measured_is_said_and_not_judged(case: CaseResult) -> None:
    nothing = CaseResult(name="none", family="bert", skipped={"all plans": "no namespaces"})
    found = suite_result("one", [nothing])
    assert found.pooled is None
    assert found.criteria == []
    assert found.skipped == {"none: all plans": "no namespaces"}
    assert found.whole
    assert "skipped: none: all plans: no namespaces" in lines(found.document())
    assert suite_result("two", [case, nothing]).pooled == pool([case])


def test_the_document_has_the_keys_of_a_comparison_on_top(case: CaseResult) -> None:
    document = suite_result("one", [case]).document()
    wanted = {"mape_percent", "kendall_tau", "regret_percent", "coverage_percent", "noise_floor_percent", "families"}
    assert wanted <= set(document)
    assert document["mape_percent"] == pool([case]).mape_percent
    assert SuiteResult.model_validate({**document, "pooled": None}).cases == [case]


def test_the_document_of_a_suite_has_the_structure_of_the_demos(
    case: CaseResult, tmp_path: Path, module_at: Callable[[str], ModuleType]
) -> None:
    """By the very check that the demo's document must pass."""
    checks = module_at("system/check_demo.py")
    found = suite_result("both", [case, case.model_copy(update={"name": "two"})])
    document = found.model_copy(update={"report": str(suite_report(found, tmp_path))}).document()
    assert checks.structure(document) == []
    assert len(checks.own_plans(document)) == 2 * len(case.rows)
    assert checks.structure({**document, "launches": 4, "judged": True}) == ["judged by 4 launches"]
    assert "nothing was searched" in checks.problems(document)
    page = (tmp_path / "report.html").read_text()
    assert "2 of 2 cases measured" in page
    assert all(row.label in page for row in case.rows)


@given(regrets=st.lists(st.integers(-10, 10), min_size=1, max_size=5))
def test_the_regret_of_the_worst_case_is_judged_and_no_other_makes_up_for_it(
    case: CaseResult, regrets: list[int]
) -> None:
    cases = [
        case.model_copy(
            update={"name": str(number), "comparison": comparison(case).model_copy(update={"regret_percent": each})}
        )
        for number, each in enumerate(regrets)
    ]
    found = pool(cases)
    assert found.regret_percent == max(regrets)
    assert found.picked == f"{regrets.index(max(regrets))}: {comparison(case).picked}"
    judged = next(each for each in criteria(found) if each.what.startswith("regret"))
    assert judged.within == all(each <= max(1.0, found.noise_floor_percent or 0.0) for each in regrets)


def test_each_regret_is_held_against_the_noise_of_its_own_case(case: CaseResult) -> None:
    noisy, quiet = (
        comparison(case).model_copy(update={"regret_percent": regret, "noise_floor_percent": floor})
        for regret, floor in ((4.0, 5.0), (2.0, 0.5))
    )
    found = pool(
        [
            case.model_copy(update={"name": name, "comparison": each})
            for name, each in zip("nq", (noisy, quiet), strict=True)
        ]
    )
    assert (found.regret_percent, found.regret_limit_percent) == (2.0, 1.0)


def comparison(case: CaseResult) -> Comparison:
    """What a measured case has."""
    assert case.comparison is not None
    return case.comparison


def test_a_failed_case_is_no_skipped_one(case: CaseResult) -> None:
    failed = CaseResult(name="broken", family="bert", failed="lane a died")
    found = suite_result("two", [case, failed])
    assert not found.whole
    assert found.failed == {"broken": "lane a died"}
    assert found.skipped == {}
    assert "FAILED: broken: lane a died" in lines(found.document())
    assert case_rows(found)[1]["host"] == "FAILED"


def test_what_was_left_out_is_named_before_any_figure(case: CaseResult) -> None:
    found = suite_result("four", [case], asked=["one", "b", "c", "d"], notes=["the budget ended"])
    assert not found.whole
    told = lines(found.document())
    assert told[0].startswith("1 of 4 cases measured; not measured: b, c, d")
    assert told[-1] == "note: the budget ended"


def test_too_few_launches_are_judged_by_nothing(study: list[Run]) -> None:
    few = [run if run.manifest.kind == "simulated" else with_launches(run, 4) for run in study]
    found = compare(few)
    assert not found.judged
    assert not found.coverage_judged
    assert "these figures are not judged: 4 launches, it takes 5" in found.notes
    case = CaseResult(name="one", family="bert", lanes=2, comparison=found, observations=[], shares_cores=True)
    case = case.model_copy(update={"observations": [Observation(inside=True, width_percent=1.0)] * 300})
    result = suite_result("one", [case, case.model_copy(update={"name": "two", "shares_cores": False})])
    assert all(each.met is None for each in result.criteria)
    assert "no aim is judged: the fewest launches of a case are 4, it takes 5" in lines(result.document())[0]


def with_launches(run: Run, count: int) -> Run:
    """A run without its later launches."""
    return dataclasses.replace(run, events=run.events[run.events["launch"] < count])


def test_an_aim_is_met_by_its_own_measure(case: CaseResult) -> None:
    good = pool([case]).model_copy(
        update={
            "balance_error_percent": -1.9,
            "mape_percent": 3.0,
            "worst_error_percent": 8.0,
            "kendall_tau": 0.9,
            "regret_percent": 1.0,
            "noise_floor_percent": 0.2,
            "coverage_p_value": 0.05,
            "interval_width_percent": 10.0,
            "optimum_share_percent": 95.0,
            "regret_limit_percent": 1.0,
            "fidelities": [score("calibrated", [1.08], [1.0], 0.0).model_copy(update={"mape_percent": 8.0})],
            "judged": True,
            "regained_percent": 85.0,
            "worst_regained_error_percent": 5.0,
        }
    )
    assert all(each.met for each in criteria(good))
    worse = {"balance_error_percent": -2.1, "mape_percent": 3.1, "kendall_tau": 0.89, "regret_percent": 1.1}
    worse |= {"regained_percent": 84.0, "worst_regained_error_percent": 5.1}
    for key, value in worse.items():
        assert [each.met for each in criteria(good.model_copy(update={key: value}))].count(False) == 1
        found = criteria(good.model_copy(update={key: value, "judged": False}))
        assert all(each.met is None for each in found)
        assert [each.within for each in found].count(False) == 1
    unknown = criteria(good.model_copy(update={"coverage_p_value": None}))
    assert [each.met for each in unknown].count(None) == 1


def foretold(case: CaseResult, errors: dict[str, float | None]) -> CaseResult:
    """The case with such errors of what was written down before each launch."""
    assert case.comparison is not None
    plans = [row.model_copy(update={"steadied_error_percent": errors.get(row.label)}) for row in case.comparison.plans]
    figures = Steadied(
        plans=len(plans), foretold=True, mean_error_percent=0, balance_error_percent=0, mape_percent=0,
        worst_error_percent=0, worst_plan="", coverage_percent=80,
    )  # fmt: skip
    comparison = case.comparison.model_copy(update={"plans": plans, "steadied": figures})
    return case.model_copy(update={"comparison": comparison})


def test_aims_are_held_against_what_was_written_down_before_each_launch(case: CaseResult) -> None:
    """Cases whose launches do not begin with gauges count with what was sealed first; it stands below, with no aim."""
    half = {row.label: (row.error_percent or 0.0) / 2 for row in case.rows}
    told = foretold(case, dict(half)).model_copy(update={"name": "told"})
    both = pool([told, case])
    assert both.steadied is not None
    assert both.steadied.foretold
    expected = [abs(each) for each in half.values()] + [abs(row.error_percent or 0.0) for row in case.rows]
    assert both.steadied.mape_percent == pytest.approx(sum(expected) / len(expected))
    by_name = {each.what: each for each in criteria(both)}
    assert by_name["mean absolute error, %"].value == both.steadied.mape_percent
    first = by_name["mean absolute error, sealed before the first launch, %"]
    assert (first.value, first.met) == (both.mape_percent, None)
    assert criteria(pool([case]))[1].value == pool([case]).mape_percent
    assert shared_criteria(both)[0].value == both.steadied.mape_percent
