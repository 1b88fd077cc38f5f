"""Random streams by name, and noise that carries the uncertainty of few launches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim import noise

names = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 99)), max_size=3)


def test_a_stream_keeps_its_values() -> None:
    """Golden values: a change here changes every simulated run, and must raise cost.MODEL_VERSION."""
    drawn = noise.stream(7, "step", "lane", 3).random(3).tolist()
    assert drawn == pytest.approx(GOLDEN, rel=1e-15)


GOLDEN = [0.4897768496162721, 0.8948743186136965, 0.2799502251512199]


@given(st.integers(0, 2**63 - 1), names)
def test_equal_names_give_equal_draws(seed: int, name: list[str | int]) -> None:
    first, second = noise.stream(seed, *name), noise.stream(seed, *name)
    assert first.random(4).tolist() == second.random(4).tolist()


@given(st.integers(0, 2**63 - 1), names, names)
def test_other_names_or_seeds_give_other_draws(seed: int, one: list[str | int], other: list[str | int]) -> None:
    draws = noise.stream(seed, *one).random(4).tolist()
    if [str(each) for each in one] != [str(each) for each in other]:
        assert draws != noise.stream(seed, *other).random(4).tolist()
    assert draws != noise.stream(seed + 1, *one).random(4).tolist()


def test_streams_of_two_names_are_not_correlated() -> None:
    """The correlation of 20,000 independent pairs is within 0.03 of zero (4 standard errors)."""
    first = noise.stream(3, "a").standard_normal(20_000)
    second = noise.stream(3, "b").standard_normal(20_000)
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.03


# Steps


@given(st.lists(st.floats(-0.9, 5.0), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 20))
def test_step_factors_are_the_measured_ones(residuals: list[float], launches: int, draws: int) -> None:
    factors = noise.step_factors(residuals, launches, draws, 5, "lane")
    assert factors.shape == (launches, draws)
    assert set(factors.ravel()) <= {1.0 + each for each in residuals}


def test_step_factors_show_every_residual_equally_often() -> None:
    """10,000 draws of four values: each 2,500 times, within 5 standard deviations (217)."""
    factors = noise.step_factors([-0.1, 0.0, 0.1, 0.3], 10, 1000, 5, "lane")
    for value in (0.9, 1.0, 1.1, 1.3):
        assert abs(int((factors == value).sum()) - 2500) < 217


# Launches


@pytest.mark.parametrize("count", [2, 5, 12])
def test_launch_offsets_are_a_t_prediction(count: int) -> None:
    """An offset is s sqrt(1 + 1/n) t(n-1): where a fresh launch lies, given n of a Gaussian seen."""
    from scipy import stats

    residuals = np.linspace(-0.001, 0.001, count)
    offsets = noise.launch_offsets(residuals.tolist(), 200_000, seed=1)
    scale = float(np.std(residuals, ddof=1)) * np.sqrt(1 + 1 / count)
    for probability in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = scale * stats.t.ppf(probability, count - 1)
        assert float(np.quantile(offsets, probability)) == pytest.approx(expected, abs=0.02 * scale)


@pytest.mark.parametrize("count", [3, 5])
def test_the_interval_covers_what_it_promises(count: int) -> None:
    """1,500 times: see n launches, predict the interval of the next, look. 80 % +- 4 standard errors (4.1 %).

    With the plain standard deviation in place of t, n = 3 would cover 71 %.
    """
    random = np.random.default_rng(11)
    hits = 0
    for trial in range(1500):
        seen = random.normal(0.0, 0.01, count)
        fresh = random.normal(0.0, 0.01)
        low, high = np.quantile(noise.launch_offsets(seen.tolist(), 400, seed=trial), [0.1, 0.9])
        hits += bool(low <= fresh - seen.mean() <= high)
    assert abs(hits / 1500 - 0.8) < 0.041


def test_offsets_keep_the_correlation_between_devices() -> None:
    """A busy host slows its lanes together: the offsets of two devices correlate as their measured residuals do."""
    random = np.random.default_rng(5)
    common = random.normal(0.0, 0.01, 12)
    first = common + random.normal(0.0, 0.005, 12)
    second = common + random.normal(0.0, 0.005, 12)
    drawn = [noise.launch_offsets(each.tolist(), 50_000, seed=3) for each in (first, second)]
    measured = float(np.corrcoef(first, second)[0, 1])
    assert float(np.corrcoef(drawn[0], drawn[1])[0, 1]) == pytest.approx(measured, abs=0.05)


def test_offsets_of_a_twice_as_noisy_device_are_twice_as_large() -> None:
    residuals = [-0.01, 0.0, 0.02, -0.005, 0.001]
    once = noise.launch_offsets(residuals, 100, seed=3)
    twice = noise.launch_offsets([2 * each for each in residuals], 100, seed=3)
    assert twice == pytest.approx(2 * once)


@given(st.lists(st.floats(-0.99, 1e6), max_size=10), st.integers(1, 50), st.integers(0, 2**63 - 1))
def test_no_offset_stops_or_reverses_time(residuals: list[float], launches: int, seed: int) -> None:
    offsets = noise.launch_offsets(residuals, launches, seed)
    assert offsets.shape == (launches,)
    assert (offsets >= -0.5).all()
    assert (offsets <= 2.0).all()


@pytest.mark.parametrize("residuals", [[], [0.0], [0.3], [0.0] * 5])
def test_a_single_launch_or_none_has_no_spread(residuals: list[float]) -> None:
    assert noise.launch_offsets(residuals, 4, seed=0).tolist() == [0.0] * 4


def test_the_first_launches_are_the_same_however_many_follow() -> None:
    residuals = [-0.01, 0.0, 0.02]
    few, many = noise.launch_offsets(residuals, 4, seed=9), noise.launch_offsets(residuals, 40, seed=9)
    assert few.tolist() == many[:4].tolist()
    steps = [noise.step_factors(residuals, launches, 6, 9, "lane") for launches in (4, 40)]
    assert steps[0].tolist() == steps[1][:4].tolist()
