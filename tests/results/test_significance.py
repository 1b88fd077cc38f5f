"""Significance: the exact test against a count of all signs and against scipy, Holm's correction, ranks, intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from steelyard.results.significance import holm, least_p, mean_interval, mean_ranks, signed_rank_p, standings

small = st.integers(-5, 5).map(float)


def by_counting(differences: list[float]) -> float:
    """Two-sided p-value from all choices of signs."""
    kept = [each for each in differences if each]
    if not kept:
        return 1.0
    ranks = stats.rankdata([abs(each) for each in kept])
    middle = sum(ranks) / 2
    observed = abs(sum(rank for rank, each in zip(ranks, kept, strict=True) if each > 0) - middle)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(kept))
    ]
    return sum(abs(each - middle) >= observed - 1e-9 for each in sums) / len(sums)


@given(st.lists(small, min_size=1, max_size=9))
def test_the_p_value_is_the_share_of_signs_at_least_as_extreme(differences: list[float]) -> None:
    base = [100.0] * len(differences)
    moved = [100.0 - each for each in differences]
    assert signed_rank_p(base, moved) == pytest.approx(by_counting(differences), abs=1e-12)


@given(st.integers(3, 60), st.integers(0, 10**6))
def test_without_ties_it_is_scipys(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.normal(10, 1, count), random.normal(10.3, 1, count)
    theirs = stats.wilcoxon(first, second, method="exact").pvalue
    assert signed_rank_p(first.tolist(), second.tolist()) == pytest.approx(float(theirs), rel=1e-9)


def test_a_true_difference_is_rarely_claimed_where_there_is_none() -> None:
    """At most five in a hundred of 400 studies of equals; the bound is five standard deviations off."""
    random = np.random.default_rng(1)
    wrong = sum(
        signed_rank_p(random.normal(size=10).tolist(), random.normal(size=10).tolist()) < 0.05 for _ in range(400)
    )
    assert wrong <= 400 * 0.05 + 5 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize("count", [1, 5, 10])
def test_all_of_one_sign_is_the_least_p_value(count: int) -> None:
    values = [10.0 + number for number in range(count)]
    assert signed_rank_p(values, [each - 1 for each in values]) == least_p(count) == 2 * 0.5**count


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_by_its_definition(p_values: list[float]) -> None:
    found = holm(p_values)
    count = len(p_values)
    for number, value in enumerate(p_values):
        before = [each for each in p_values if each <= value]
        steps = [(count - sum(other < each for other in p_values)) * each for each in before]
        assert found[number] == pytest.approx(min(1.0, max(steps)), rel=1e-12)


def test_holms_own_kind_of_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=50)
@given(st.lists(st.lists(small, min_size=4, max_size=4), min_size=1, max_size=5))
def test_mean_ranks_are_those_of_scipy(rows: list[list[float]]) -> None:
    values = {str(number): row for number, row in enumerate(rows)}
    expected = stats.rankdata(-np.array(rows), axis=0).mean(axis=1)
    assert list(mean_ranks(values).values()) == pytest.approx(expected.tolist())


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((low, high))
    assert mean_interval([3.0]) == (3.0, 3.0)
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0)


def test_standings_put_the_best_first_and_test_the_others_against_it() -> None:
    values = {
        "slow": [1.0 + 0.01 * seed for seed in range(8)],
        "fast": [3.0 + 0.01 * seed for seed in range(8)],
        "near": [3.0 + 0.01 * seed + (0.02 if seed % 2 else -0.021) for seed in range(8)],
    }
    found = standings(values)
    assert [each.name for each in found] == ["fast", "near", "slow"]
    assert found[0].p_value is None
    assert found[0].differs is None
    assert found[1].differs is False
    assert found[2].differs is True
    assert found[2].p_value == pytest.approx(2 * least_p(8))  # two tests
    assert found[2].rank == 3
    assert found[2].behind_percent == pytest.approx(100 * (1 - 1.035 / 3.035))


def test_without_noise_there_is_nothing_to_test() -> None:
    found = standings({"a": [2.0, 2.0], "b": [1.0, 1.0]})
    assert [each.p_value for each in found] == [None, None]
    assert found[1].behind_percent == 50
    assert standings({}) == []


def test_equals_share_their_rank() -> None:
    assert [each.rank for each in standings({"a": [2.0, 3.0], "b": [2.0, 3.0]})] == [1.5, 1.5]
