"""Polynomials from a few counts: exact where they are polynomials, never negative where they are not."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.polynomial import BATCHES, per_sample
from steelyard.sim.workload import at


def test_a_length_that_no_polynomial_describes_is_fitted_without_negative_coefficients() -> None:
    values = {
        (samples, tokens): samples * count for samples in (2, 3) for tokens, count in ((8, 90), (16, 100), (32, 105))
    }
    polynomial, once = per_sample(values)
    assert once == 0
    assert min(polynomial) >= 0
    assert at(polynomial, 16) == pytest.approx(100, rel=0.1)


@given(
    st.lists(st.integers(0, 10**9), min_size=3, max_size=3),
    st.integers(0, 10**12),
    st.lists(st.integers(1, 4096), min_size=3, max_size=3, unique=True),
)
def test_exact_quadratics_are_recovered(coefficients: list[int], once: int, lengths: list[int]) -> None:
    def value(samples: int, tokens: int) -> int:
        c0, c1, c2 = coefficients
        return samples * (c0 + c1 * tokens + c2 * tokens * tokens) + once

    values = {(samples, tokens): value(samples, tokens) for samples in BATCHES for tokens in lengths}
    polynomial, found = per_sample(values)
    assert found == once
    assert [Fraction(each) for each in polynomial] == coefficients[: len(polynomial)]
    assert not any(coefficients[len(polynomial) :])
