"""Named random streams, and the noise that a prediction draws from measured residuals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..results.metrics import stream

__all__ = ["launch_offsets", "step_factors", "stream"]

Floats = NDArray[np.float64]


def launch_offsets(residuals: Sequence[float], launches: int, seed: int) -> Floats:
    """Relative offsets of ``launches`` fresh launches, given those of the launches that were measured.

    A multivariate-t prediction: combining the measured residuals of all devices with the *same* Gaussian weights keeps
    the correlation between devices (a busy host slows them together); the chi-square in the denominator and the factor
    sqrt(1 + 1/n) are the uncertainty of having seen only n launches. Weights depend on n and the seed alone.
    """
    count = len(residuals)
    if count < 2 or not any(residuals):
        return np.zeros(launches)
    weights, inflation = _launch_weights(count, launches, seed)
    centred = np.asarray(residuals) - float(np.mean(residuals))
    offsets = inflation * (weights @ centred) / np.sqrt(count - 1)
    return np.asarray(np.clip(offsets, -0.5, 2.0), dtype=np.float64)


def _launch_weights(count: int, launches: int, seed: int) -> tuple[Floats, Floats]:
    # Two streams, so that the first launches are the same however many follow.
    weights = stream(seed, "launch", count).standard_normal((launches, count))
    freedom = count - 1
    spread = stream(seed, "launch-spread", count).chisquare(freedom, launches)
    inflation = np.sqrt(1 + 1 / count) / np.sqrt(spread / freedom)
    return weights, inflation


def step_factors(residuals: Sequence[float], launches: int, draws: int, seed: int, *names: str | int) -> Floats:
    """Factors (1 + residual) of single segments, shape (launches, draws), drawn with replacement from the measured."""
    if not any(residuals):
        return np.ones((launches, draws))
    random = stream(seed, "step", *names)
    return 1.0 + random.choice(np.asarray(residuals, dtype=np.float64), size=(launches, draws))
