"""Interpolation in tables of measured collectives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.device import CollectivePoint
from steelyard.sim.measured import interpolate

times = st.floats(1e-6, 1e3)


@st.composite
def collective_points(draw: st.DrawFn) -> list[CollectivePoint]:
    chosen = draw(st.lists(st.integers(1, 10**12), min_size=2, max_size=10, unique=True))
    return [CollectivePoint(bytes=size, seconds=draw(times)) for size in chosen]


@given(collective_points())
def test_interpolation_meets_its_points(table: list[CollectivePoint]) -> None:
    for point in table:
        assert interpolate(table, point.bytes) == pytest.approx(point.seconds, rel=1e-9)


@given(collective_points(), st.integers(0, 2 * 10**12))
def test_interpolation_stays_between_its_neighbours(table: list[CollectivePoint], size: int) -> None:
    ordered = sorted(table, key=lambda point: point.bytes)
    value = interpolate(table, size)
    if size <= ordered[0].bytes:
        assert value == ordered[0].seconds
    elif size >= ordered[-1].bytes:
        assert value == pytest.approx(ordered[-1].seconds * size / ordered[-1].bytes)
    else:
        low = next(point for point in reversed(ordered) if point.bytes < size)
        high = next(point for point in ordered if point.bytes >= size)
        bounds = sorted([low.seconds, high.seconds])
        assert bounds[0] * (1 - 1e-9) <= value <= bounds[1] * (1 + 1e-9)


@given(st.floats(0.5, 1.5), st.floats(1e-9, 1e-3), st.integers(1, 10**9))
def test_interpolation_is_exact_for_power_laws(power: float, scale: float, size: int) -> None:
    table = [CollectivePoint(bytes=n, seconds=scale * n**power) for n in (1, 10**3, 10**6, 10**9)]
    assert interpolate(table, size) == pytest.approx(scale * size**power, rel=1e-9)
