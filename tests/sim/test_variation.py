"""Noise where nothing was measured: its distribution, its independence of names, and the largest of many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim import variation
from steelyard.sim.noise import stream
from steelyard.sim.spec import Scenario, Variation

NAMES = ["fast", "slow", "third"]


@pytest.fixture
def varied(scenario: Scenario) -> Callable[..., Scenario]:
    return lambda **values: scenario.model_copy(update={"variation": Variation(**values)})


# Factors


def test_without_variation_every_factor_is_one(scenario: Scenario) -> None:
    assert (variation.launch_factors(scenario, NAMES, 4, 0) == np.ones((4, 3))).all()
    assert (variation.step_factors(scenario, "fast", 4, 5, 0) == np.ones((4, 5))).all()
    assert (variation.network_factors(scenario, 4, 5, 0, "all_reduce") == np.ones((4, 5))).all()
    assert (variation.max_over_ranks_factors(0.0, 8, 6, 0) == np.ones(6)).all()


@pytest.mark.parametrize("cv", [0.02, 0.3, 1.0])
def test_factors_have_mean_one_and_the_given_variation(varied: Callable[..., Scenario], cv: float) -> None:
    """250,000 draws: the mean within 5 standard errors, cv / 500; their spread within 5 % (its tail is long)."""
    scenario = varied(device_cv=cv, step_cv=cv, network_cv=cv)
    for factors in (
        variation.launch_factors(scenario, ["fast"], 250_000, 1),
        variation.step_factors(scenario, "fast", 500, 500, 1),
        variation.network_factors(scenario, 500, 500, 1, "ring", 0),
    ):
        assert factors.mean() == pytest.approx(1.0, abs=5 * cv / 500)
        assert factors.std() == pytest.approx(cv, rel=0.05)
        assert factors.min() > 0


def test_stragglers_are_so_many_and_so_slow(varied: Callable[..., Scenario]) -> None:
    """100,000 launches of three devices, a tenth of them slow: within 5 standard errors, 0.0027."""
    factors = variation.launch_factors(varied(straggler_share=0.1, straggler_slowdown=3.0), NAMES, 100_000, 2)
    assert set(np.unique(factors)) == {1.0, 3.0}
    assert (factors == 3.0).mean() == pytest.approx(0.1, abs=0.0027)
    both = (factors[:, 0] == 3.0) & (factors[:, 1] == 3.0)
    assert both.mean() == pytest.approx(0.01, abs=0.0016)  # independent of each other


@given(st.permutations(NAMES), st.integers(1, 5))
def test_a_device_keeps_its_luck_whoever_else_is_there(scenario: Scenario, names: list[str], launches: int) -> None:
    noisy = scenario.model_copy(
        update={"variation": Variation(device_cv=0.2, straggler_share=0.5, straggler_slowdown=2)}
    )
    together = variation.launch_factors(noisy, names, launches, 3)
    for column, name in enumerate(names):
        alone = variation.launch_factors(noisy, [name], launches + 7, 3)[:, 0]
        assert together[:, column].tolist() == alone[:launches].tolist()


def test_streams_do_not_meet(varied: Callable[..., Scenario]) -> None:
    """Equal parameters, other purpose, name or seed: other draws."""
    scenario = varied(device_cv=0.2, step_cv=0.2, network_cv=0.2)
    drawn = [
        variation.launch_factors(scenario, ["a"], 3, 1)[:, 0],
        variation.step_factors(scenario, "a", 1, 3, 1)[0],
        variation.step_factors(scenario, "b", 1, 3, 1)[0],
        variation.step_factors(scenario, "a", 1, 3, 2)[0],
        variation.network_factors(scenario, 1, 3, 1, "a")[0],
        variation.max_over_ranks_factors(0.2, 1, 3, 1, "a"),
    ]
    assert len({each.tolist()[0] for each in drawn}) == len(drawn)


# The largest of many


def cumulative(factor: Any, cv: float, ranks: int) -> Any:
    """F^n, F log-normal with mean 1."""
    from scipy.stats import norm

    variance = math.log1p(cv**2)
    return np.exp(ranks * norm.logcdf((np.log(factor) + variance / 2) / math.sqrt(variance)))


@pytest.mark.parametrize("ranks", [1, 2, 64, 4096, 10**6])
@pytest.mark.parametrize("cv", [0.02, 0.5])
def test_the_largest_factor_inverts_its_distribution(ranks: int, cv: float) -> None:
    """Exactly: F^n of what was drawn gives back the uniform number e^-E that it was drawn from."""
    uniform = np.exp(-stream(4, "ranks", "stage", 0).standard_exponential(2000))
    drawn = variation.max_over_ranks_factors(cv, ranks, 2000, 4, "stage", 0)
    assert cumulative(drawn, cv, ranks) == pytest.approx(uniform, rel=1e-6)


def test_the_largest_factor_has_its_distribution() -> None:
    """Kolmogorov-Smirnov, 40 seeds of 1,000 draws together: a single seed of 20,000 fails at 1 % once in a hundred."""
    from scipy.stats import kstest

    drawn = np.concatenate([variation.max_over_ranks_factors(0.3, 64, 1000, seed, "stage", 0) for seed in range(40)])
    assert kstest(drawn, cumulative, args=(0.3, 64)).pvalue > 1e-3


def test_the_largest_factor_is_that_of_plain_draws() -> None:
    """Against the maximum of 64 drawn one by one, 5,000 times, in distribution."""
    from scipy.stats import ks_2samp

    sigma = math.sqrt(math.log1p(0.1**2))
    plain = np.exp(sigma * stream(8, "plain").standard_normal((5000, 64)) - sigma**2 / 2).max(axis=1)
    assert ks_2samp(variation.max_over_ranks_factors(0.1, 64, 5000, 8), plain).pvalue > 0.01


@given(st.floats(1e-3, 2.0), st.integers(1, 10**7), st.integers(0, 99))
def test_more_ranks_never_have_a_smaller_largest(cv: float, ranks: int, seed: int) -> None:
    few = variation.max_over_ranks_factors(cv, ranks, 50, seed)
    many = variation.max_over_ranks_factors(cv, 2 * ranks, 50, seed)
    assert (few > 0).all()
    assert (few <= many).all()
    assert np.isfinite(many).all()


@pytest.mark.parametrize(
    ("count", "exact"),
    [
        (1, 0.0),
        (2, 1 / math.sqrt(math.pi)),
        (3, 1.5 / math.sqrt(math.pi)),
        (4, 6 / math.sqrt(math.pi) * math.atan(math.sqrt(2)) / math.pi),
        (5, 15 / math.sqrt(math.pi) * math.atan(math.sqrt(2)) / math.pi - 2.5 / math.sqrt(math.pi)),
    ],
)
def test_expected_maximum_of_a_few(count: int, exact: float) -> None:
    """Closed forms for up to five: 0.564, 0.846, 1.029, 1.163."""
    assert variation.expected_max_normal(count) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("count", [10, 1000, 100_000])
def test_expected_maximum_of_many(count: int) -> None:
    """The mean of max = integral of x n Phi^(n-1) phi, by quadrature; below sqrt(2 ln n), the limit."""
    from scipy.integrate import quad
    from scipy.stats import norm

    def density(x: float) -> float:
        return float(x * count * np.exp((count - 1) * norm.logcdf(x) + norm.logpdf(x)))

    found = variation.expected_max_normal(count)
    assert found == pytest.approx(quad(density, -8, 12, points=[2, 4, 6], limit=200)[0], rel=1e-6)
    assert found < math.sqrt(2 * math.log(count))


def test_the_popular_formula_doubles_it_at_two() -> None:
    assert math.sqrt(2 * math.log(2)) / variation.expected_max_normal(2) == pytest.approx(2.09, abs=0.01)


def test_two_equal_lanes() -> None:
    """0.564 standard deviations above the mean, and narrower than one of them: sqrt(1 - 1/pi)."""
    assert variation.clark_max(10.0, 2.0, 10.0, 2.0) == pytest.approx(
        (10 + 2 / math.sqrt(math.pi), 2 * math.sqrt(1 - 1 / math.pi)), rel=1e-12
    )


@pytest.mark.parametrize(
    "lanes", [(1.0, 0.1, 1.05, 0.02), (0.0, 1.0, 0.5, 3.0), (-2.0, 0.5, -2.5, 0.5), (1e6, 1.0, 1e6 + 0.5, 2.0)]
)
def test_clark_agrees_with_draws(lanes: tuple[float, float, float, float]) -> None:
    """A million pairs: mean within 5 standard errors, spread within 1 %."""
    mean1, sd1, mean2, sd2 = lanes
    random = stream(6, "clark")
    drawn = np.maximum(random.normal(mean1, sd1, 1_000_000), random.normal(mean2, sd2, 1_000_000))
    mean, sd = variation.clark_max(*lanes)
    assert mean == pytest.approx(drawn.mean(), abs=5 * sd / 1000)
    assert sd == pytest.approx(drawn.std(), rel=0.01)


values = st.floats(-1e3, 1e3)
spreads = st.floats(0.0, 1e2)


@given(values, spreads, values, spreads)
def test_clark_is_symmetric_and_at_least_the_larger_mean(mean1: float, sd1: float, mean2: float, sd2: float) -> None:
    mean, sd = variation.clark_max(mean1, sd1, mean2, sd2)
    assert (mean, sd) == pytest.approx(variation.clark_max(mean2, sd2, mean1, sd1), rel=1e-9, abs=1e-9)
    assert mean >= max(mean1, mean2) - 1e-9
    assert sd <= math.hypot(sd1, sd2) * (1 + 1e-9)


def test_lanes_without_spread_have_their_maximum() -> None:
    assert variation.clark_max(1.0, 0.0, 2.0, 0.0) == (2.0, 0.0)
    assert variation.clark_max(1.0, 0.1, 9.0, 0.2) == pytest.approx((9.0, 0.2), rel=1e-12)
