"""Pooled figures: what holds of one case holds of copies of it, and each figure is what its definition says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.compare import compare, observations, paired
from steelyard.results.pooled import (
    JUDGED_FROM,
    CaseResult,
    Observation,
    SuiteResult,
    balanced_rows,
    criteria,
    lines,
    pool,
    shared_criteria,
    suite_result,
)
from steelyard.results.record import Run


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
    same = set(type(found).model_fields) & set(type(own).model_fields) - {"plans", "worst_plan"}
    for key in same - {"coverage_judged", "coverage_p_value"}:
        assert getattr(found, key) == pytest.approx(getattr(own, key)), key
    assert found.plans == len(case.rows)
    assert found.worst_plan == f"one: {own.worst_plan}"


@given(copies=st.integers(2, 40))
def test_copies_of_a_case_change_counts_and_nothing_else(case: CaseResult, copies: int) -> None:
    one, many = pool([case]), pool([case] * copies)
    counted = {"cases", "plans", "balance_plans", "kendall_pairs", "kendall_pairs_total", "coverage_count"}
    for key in counted:
        assert getattr(many, key) == copies * getattr(one, key)
    for key in set(type(one).model_fields) - counted - {"coverage_judged", "coverage_p_value"}:
        assert getattr(many, key) == pytest.approx(getattr(one, key)), key
    assert many.coverage_judged == (many.coverage_count >= JUDGED_FROM)


def test_each_fidelity_is_scored_on_the_plans_that_it_predicted(case: CaseResult) -> None:
    assert case.comparison is not None
    twice = {
        row.label: {**row.predicted_at, "datasheet": 2 * row.measured.median_s} for row in case.rows if row.measured
    }
    rows = [row.model_copy(update={"predicted_at": twice.get(row.label, {})}) for row in case.comparison.plans]
    other = case.model_copy(update={"comparison": case.comparison.model_copy(update={"plans": rows})})
    found = pool([other]).mape_by_fidelity
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
    found = suite_result("both", [case, shared], whole=True)
    assert found.pooled == pool([case])
    assert found.shared_cores == pool([shared])
    assert found.families == {"bert": pool([case])}
    (only,) = shared_criteria(pool([shared]))
    floor = pool([shared]).noise_floor_percent
    assert floor is not None
    assert only.met == (pool([shared]).mape_percent <= 1.5 * floor + 3)


def test_what_was_not_measured_is_said_and_not_judged(case: CaseResult) -> None:
    nothing = CaseResult(name="none", family="bert", skipped={"all plans": "no namespaces"})
    found = suite_result("one", [nothing], whole=True)
    assert found.pooled is None
    assert found.criteria == []
    assert found.skipped == {"none: all plans": "no namespaces"}
    assert "skipped: none: all plans: no namespaces" in lines(found.document())
    assert suite_result("two", [case, nothing], whole=True).pooled == pool([case])


def test_the_document_has_the_keys_of_a_comparison_on_top(case: CaseResult) -> None:
    document = suite_result("one", [case], whole=True).document()
    wanted = {"mape_percent", "kendall_tau", "regret_percent", "coverage_percent", "noise_floor_percent", "families"}
    assert wanted <= set(document)
    assert document["mape_percent"] == pool([case]).mape_percent
    assert SuiteResult.model_validate({**document, "pooled": None}).cases == [case]


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
            "mape_by_fidelity": {"calibrated": 8.0},
            "least_regained_percent": 85.0,
            "worst_regained_error_percent": 5.0,
        }
    )
    assert all(each.met for each in criteria(good))
    worse = {"balance_error_percent": -2.1, "mape_percent": 3.1, "kendall_tau": 0.89, "regret_percent": 1.1}
    worse |= {"least_regained_percent": 84.0, "worst_regained_error_percent": 5.1}
    for key, value in worse.items():
        assert [each.met for each in criteria(good.model_copy(update={key: value}))].count(False) == 1
    unknown = criteria(good.model_copy(update={"coverage_p_value": None}))
    assert [each.met for each in unknown].count(None) == 1
