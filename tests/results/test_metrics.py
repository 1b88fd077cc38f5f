"""The statistics against scipy, against values worked out by hand, and against what they must not depend on."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from steelyard.results.metrics import (
    RESAMPLES,
    binomial_p_value,
    bootstrap_interval,
    halves,
    interval_of,
    kendall_tau,
    launch_intervals,
    median,
    regret_percent,
    stream,
)

times = st.floats(min_value=1e-4, max_value=1e3)
launches = st.lists(st.lists(times, min_size=1, max_size=6), min_size=1, max_size=6)


@given(st.lists(st.tuples(times, times), min_size=2, max_size=12, unique_by=(lambda p: p[0], lambda p: p[1])))
def test_tau_without_threshold_is_scipys(pairs: list[tuple[float, float]]) -> None:
    predicted, measured = zip(*pairs, strict=True)
    tau, count = kendall_tau(predicted, measured, 0.0)
    apart = sum(100 * (max(a, b) / min(a, b) - 1) > 0 for a, b in itertools.combinations(measured, 2))
    assert count == apart
    if count == len(pairs) * (len(pairs) - 1) // 2:
        assert tau == pytest.approx(kendalltau(predicted, measured).statistic)


def test_tau_counts_only_pairs_that_differ_enough() -> None:
    # 100 and 103 differ by 3 %: below the threshold, so their wrong order does not count.
    assert kendall_tau([2.0, 1.0, 3.0], [100.0, 103.0, 120.0], 4.0) == (1.0, 2)
    assert kendall_tau([2.0, 1.0, 3.0], [100.0, 103.0, 120.0], 2.0) == (pytest.approx(1 / 3), 3)
    assert kendall_tau([1.0, 2.0], [100.0, 101.0], 4.0) == (None, 0)


def test_tau_counts_a_tied_prediction_as_neither() -> None:
    assert kendall_tau([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], 0.0) == (pytest.approx(2 / 3), 3)


def test_regret_of_the_wrong_pick_by_hand() -> None:
    measured = [{launch: [seconds, seconds] for launch in range(4)} for seconds in (1.2, 1.0)]
    assert regret_percent([1.0, 2.0], measured) == pytest.approx(20.0)
    assert regret_percent([2.0, 1.0], measured) == pytest.approx(0.0)


def test_regret_does_not_reward_luck() -> None:
    # Plan 1 was lucky in launch 0 only. Chosen and scored on all launches it would look best by 10 %.
    measured = [{0: [1.0], 1: [1.0]}, {0: [0.8], 1: [1.1]}]
    # Choosing on launch 0 takes plan 1, scored on launch 1: 1.0 / 1.1 - 1. Choosing on launch 1 takes plan 0: 0.
    assert regret_percent([1.0, 2.0], measured) == pytest.approx(100 * (1 / 1.1 - 1) / 2)


def test_regret_takes_two_shared_launches() -> None:
    assert regret_percent([1.0, 2.0], [{0: [1.0]}, {0: [2.0]}]) is None
    assert regret_percent([1.0, 2.0], [{0: [1.0], 1: [1.0]}, {1: [2.0], 2: [2.0]}]) is None


@given(st.integers(2, 9))
def test_halves_are_all_the_halves(count: int) -> None:
    found = halves(range(count), 0)
    assert len(found) == len(set(found)) == (2 if count % 2 else 1) * math.comb(count, count // 2)
    assert {tuple(sorted(set(range(count)) - set(each))) for each in found} == set(found)


def test_many_launches_are_split_at_random_and_repeatably() -> None:
    found = halves(range(40), 7)
    assert found == halves(range(40), 7)
    assert found != halves(range(40), 8)
    assert {len(set(each)) for each in found} == {20}


@given(launches, st.integers(0, 5))
def test_bootstrap_interval_holds_the_median_and_lies_within_the_data(found: list[list[float]], seed: int) -> None:
    low, high = bootstrap_interval(found, seed)
    everything = [value for each in found for value in each]
    assert min(everything) * (1 - 1e-12) <= low <= median(found) <= high <= max(everything) * (1 + 1e-12)
    assert (low, high) == bootstrap_interval(found, seed)


def test_bootstrap_resamples_launches_and_not_steps() -> None:
    # Every launch has the same steps, so launches tell nothing apart, however much the steps spread.
    assert bootstrap_interval([[1.0, 2.0, 9.0]] * 5, 0) == (2.0, 2.0)
    # Three launches: the median of a resample is the least one in 7 of 27 cases, the largest in 7 of 27.
    assert bootstrap_interval([[1.0] * 4, [2.0] * 4, [3.0] * 4], 0) == (1.0, 3.0)


@settings(max_examples=20)
@given(launches.filter(lambda found: len(found) > 1), st.integers(0, 5))
def test_bootstrap_against_plain_resampling(found: list[list[float]], seed: int) -> None:
    chosen = stream(seed, "bootstrap").integers(len(found), size=(RESAMPLES, len(found)))
    medians = [statistics.median([value for i in row for value in found[i]]) for row in chosen]
    low, high = np.quantile(medians, [0.1, 0.9])
    middle = median(found)
    assert bootstrap_interval(found, seed) == pytest.approx((min(low, middle), max(high, middle)))


def test_bootstrap_of_one_launch_is_a_point() -> None:
    assert bootstrap_interval([[1.0, 2.0, 3.0]], 0) == (2.0, 2.0)


@given(launches)
def test_median_is_over_all_steps(found: list[list[float]]) -> None:
    assert median(found) == statistics.median([value for each in found for value in each])


@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_binomial_p_value_is_the_sum_of_the_less_likely(case: tuple[int, int]) -> None:
    inside, count = case
    chances = [math.comb(count, k) * 0.8**k * 0.2 ** (count - k) for k in range(count + 1)]
    expected = sum(each for each in chances if each <= chances[inside] * (1 + 1e-7))
    assert binomial_p_value(inside, count) == pytest.approx(min(1.0, expected), rel=1e-6)


LAUNCHES = st.lists(st.lists(st.floats(0.01, 1.0), min_size=12, max_size=12), min_size=2, max_size=6)


@given(launches=LAUNCHES)
def test_launch_intervals_lie_within_the_steps_and_need_so_many(launches: list[list[float]]) -> None:
    found = launch_intervals(launches, [1, 3, 12, 13])
    assert set(found) == {"1", "3", "12"}
    steps = [seconds for launch in launches for seconds in launch]
    assert all(min(steps) <= low <= high <= max(steps) for low, high in found.values())


def test_intervals_of_longer_launches_are_narrower_and_hold_as_often_as_they_say() -> None:
    """Medians of n of another sample of the same normal steps: eight in ten within, for each n."""
    source = np.random.default_rng(7)
    steps = [list(map(float, source.normal(1.0, 0.05, 48))) for _ in range(200)]
    found = launch_intervals(steps, [3, 12, 48])
    widths = [high - low for low, high in found.values()]
    assert widths[0] > widths[1] > widths[2]
    for count, (low, high) in found.items():
        medians = [statistics.median(source.normal(1.0, 0.05, int(count))) for _ in range(2000)]
        assert sum(low <= each <= high for each in medians) / 2000 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("off", [0.0, 0.03, 0.1])
def test_intervals_hold_as_often_as_they_say_where_the_model_is_off(off: float) -> None:
    """Of 2,000 plans, each predicted with an error of its own, one launch: eight in ten within; and wider for it."""
    source = np.random.default_rng(11)
    steps = [list(map(float, source.normal(1.0, 0.05, 12))) for _ in range(400)]
    low, high = launch_intervals(steps, [12], off)["12"]
    plain = launch_intervals(steps, [12])["12"]
    assert high - low >= plain[1] - plain[0]
    launches = [statistics.median(source.normal(1 + source.normal(0, off), 0.05, 12)) for _ in range(2000)]
    assert sum(low <= each <= high for each in launches) / 2000 == pytest.approx(0.8, abs=0.04)


@given(steps=st.integers(1, 200), ends=st.tuples(st.floats(0.5, 1.0), st.floats(1.0, 2.0)))
def test_an_interval_between_counts_lies_between_theirs(steps: int, ends: tuple[float, float]) -> None:
    low, high = ends
    known = {"3": (low - 0.2, high + 0.4), "12": (low, high), "48": (low + 0.01, high - 0.01)}
    found = interval_of(known, steps)
    assert found is not None
    assert known["3"][0] <= found[0] <= known["48"][0]
    assert known["48"][1] <= found[1] <= known["3"][1]
    assert interval_of(known, 12) == pytest.approx(known["12"])
    assert interval_of({}, steps) is None
