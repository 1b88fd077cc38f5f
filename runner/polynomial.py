"""Counts of a few passes as polynomials in the tokens: what grows with the samples, and what is there once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

BATCHES = (2, 3)
"""Two micro-batches tell what grows with the samples from what is there once; 1 is a special case in many operators."""


def per_sample(values: Mapping[tuple[int, int], int]) -> tuple[list[float], int]:
    """Split value(samples, tokens) into samples x polynomial(tokens) and what is there once (weights).

    What is there once but grows with the tokens (positions) goes to the samples: it is small, and the format has no
    place for it.
    """
    few, many = BATCHES
    lengths = sorted({tokens for _, tokens in values})
    slopes = [Fraction(values[many, s] - values[few, s], many - few) for s in lengths]
    rests = [values[few, s] - few * slope for s, slope in zip(lengths, slopes, strict=True)]
    polynomial, rest = _interpolate(lengths, slopes), _interpolate(lengths, rests)
    once = max(Fraction(0), rest[0])
    total: list[Fraction] = [a + b for a, b in zip(polynomial, [rest[0] - once, *rest[1:]], strict=True)]
    if min(total) < 0:
        return _non_negative(lengths, [Fraction(values[many, s], many) for s in lengths]), 0
    return _trimmed([float(each) for each in total]), int(once)


def _interpolate(xs: Sequence[int], ys: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the polynomial through the points (Lagrange, exact)."""
    total = [Fraction(0)] * len(xs)
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        basis = [Fraction(y)]
        for j, other in enumerate(xs):
            if j != i:
                scaled = [each / (x - other) for each in basis]
                shifted = [Fraction(0), *scaled]
                basis = [
                    high - other * low for high, low in itertools.zip_longest(shifted, scaled, fillvalue=Fraction(0))
                ]
        total = [a + b for a, b in zip(total, basis, strict=True)]
    return total


def _non_negative(lengths: Sequence[int], values: Sequence[Fraction]) -> list[float]:
    """The closest quadratic without negative coefficients: for costs that are no polynomial (windows, padding)."""
    import numpy as np
    from scipy.optimize import nnls

    scale = float(max(values)) or 1.0
    powers = np.vander(np.asarray(lengths, dtype=float) / lengths[-1], len(lengths), increasing=True)
    solution, _ = nnls(powers, np.asarray([float(each) / scale for each in values]))
    return _trimmed([float(each) * scale / lengths[-1] ** power for power, each in enumerate(solution)])


def _trimmed(polynomial: list[float]) -> list[float]:
    while len(polynomial) > 1 and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial
