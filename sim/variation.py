"""Variation: how devices, steps and transfers differ where nothing was measured; and the largest of many that do.

Each device draws from streams under its own name: what else is in the cluster changes nothing for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .noise import Floats, stream
from .spec import Scenario


def launch_factors(scenario: Scenario, names: Sequence[str], launches: int, seed: int) -> Floats:
    """Factors on the work of devices in fresh launches, shape (launches, devices): own luck and stragglers."""
    variation = scenario.variation
    factors = np.ones((launches, len(names)))
    for column, name in enumerate(names):
        if variation.device_cv > 0:
            random = stream(seed, "device", name)
            factors[:, column] = _log_normal(variation.device_cv, random.standard_normal(launches))
        if variation.straggler_share > 0 and variation.straggler_slowdown > 1:
            slow = stream(seed, "straggler", name).random(launches) < variation.straggler_share
            factors[slow, column] *= variation.straggler_slowdown
    return factors


def step_factors(scenario: Scenario, name: str, launches: int, draws: int, seed: int) -> Floats:
    """Factors on single pieces of work of a device, shape (launches, draws)."""
    return _varied(scenario.variation.step_cv, launches, draws, seed, "work", name)


def network_factors(scenario: Scenario, launches: int, draws: int, seed: int, *names: str | int) -> Floats:
    """Factors on single collectives or transfers, shape (launches, draws); the names say which."""
    return _varied(scenario.variation.network_cv, launches, draws, seed, "network", *names)


def max_over_ranks_factors(cv: float, ranks: int, draws: int, seed: int, *names: str | int) -> Floats:
    """The largest of ``ranks`` independent log-normal factors of mean 1, ``draws`` times, one random number each.

    The largest of n has distribution F^n, so it is F^-1(U^(1/n)): drawn by its upper tail, where that does not round.
    """
    from scipy.special import ndtri

    if cv == 0:
        return np.ones(draws)
    exponential = stream(seed, "ranks", *names).standard_exponential(draws)  # -ln U
    tail = np.clip(-np.expm1(-exponential / ranks), 1e-300, 1 - 1e-16)
    return _log_normal(cv, -ndtri(tail))


def expected_max_normal(count: int) -> float:
    """Mean of the largest of so many independent standard normals: 1/sqrt(pi) = 0.564 for two.

    The integral of 1 - Phi(x)^n - Phi(-x)^n over x > 0: smooth and even, so that equal steps are as good as exact.
    """
    from scipy.special import log_ndtr

    places, width = np.linspace(0.0, 40.0, 4001, retstep=True)
    value = -np.expm1(count * log_ndtr(places)) - np.exp(count * log_ndtr(-places))
    return float(width * (value.sum() - value[0] / 2))


def clark_max(mean1: float, sd1: float, mean2: float, sd2: float) -> tuple[float, float]:
    """Mean and standard deviation of the larger of two independent normals (Clark 1961)."""
    spread = math.hypot(sd1, sd2)
    high = max(mean1, mean2)
    if spread == 0:
        return high, 0.0
    one, two = mean1 - high, mean2 - high  # the second moment would drown a small spread in a large mean
    place = (one - two) / spread
    below, above = _normal_cdf(place), _normal_cdf(-place)
    density = math.exp(-place * place / 2) / math.sqrt(2 * math.pi)
    mean = one * below + two * above + spread * density
    square = (one**2 + sd1**2) * below + (two**2 + sd2**2) * above + (one + two) * spread * density
    return high + mean, math.sqrt(max(0.0, square - mean**2))


def _varied(cv: float, launches: int, draws: int, seed: int, *names: str | int) -> Floats:
    if cv == 0:
        return np.ones((launches, draws))
    return _log_normal(cv, stream(seed, *names).standard_normal((launches, draws)))


def _log_normal(cv: float, normal: Floats) -> Floats:
    """Log-normal factors of mean 1 and coefficient of variation ``cv`` from standard normals."""
    variance = math.log1p(cv**2)
    return np.asarray(np.exp(math.sqrt(variance) * normal - variance / 2), dtype=np.float64)


def _normal_cdf(place: float) -> float:
    return math.erfc(-place / math.sqrt(2)) / 2
