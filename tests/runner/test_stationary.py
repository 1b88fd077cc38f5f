"""Warm-up: it ends where the fall ends, costs a steady block nothing, and never goes on for ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.stationary import DRIFTING_Z, MOST_WARMUP, drifting, geweke, settled, warming

TIMES = st.lists(st.floats(1e-4, 10.0), max_size=40)


def dropped(series: list[float], least: int) -> int:
    """Warm-up steps that a block makes whose steps take these times."""
    count = 0
    while warming(series[:count], least):
        count += 1
    return count


@given(times=st.lists(st.floats(1e-4, 10.0), min_size=60, max_size=60), least=st.integers(1, 20))
def test_warm_up_is_bounded(times: list[float], least: int) -> None:
    assert least <= dropped(times, least) <= max(least, MOST_WARMUP)


@given(level=st.floats(1e-3, 10.0), least=st.integers(2, 6))
def test_a_steady_block_makes_no_more_than_it_must(level: float, least: int) -> None:
    assert dropped([level] * 60, least) == least


@given(falls=st.integers(2, MOST_WARMUP - 2), ratio=st.floats(0.3, 0.9))
def test_a_falling_block_warms_up_until_it_stops_falling(falls: int, ratio: float) -> None:
    series = [ratio ** min(step, falls) for step in range(60)]
    assert dropped(series, 2) == falls + 2  # the step after the last fall shows that it is over


@given(times=TIMES, scale=st.floats(0.1, 10.0))
def test_the_unit_of_time_does_not_matter(times: list[float], scale: float) -> None:
    scaled = [scale * each for each in times]
    near = len(times) > 1 and times[-1] == pytest.approx(0.95 * min(times[:-1]), rel=1e-9)
    assert near or settled(times) == settled(scaled)
    assert geweke(scaled) == pytest.approx(geweke(times), rel=1e-6, abs=1e-6)


def test_one_warm_up_step_asked_for_is_one() -> None:
    assert dropped([5.0, 1.0, 1.0], 1) == 1  # tests and quick looks do not pay for what they did not ask for


def test_geweke_stays_small_for_noise_and_grows_with_drift() -> None:
    """Over many series of pure noise it is about a standard normal: its spread is 1, few are beyond 3."""
    source = random.Random(5)
    scores = [geweke([source.gauss(1.0, 0.02) for _ in range(60)]) for _ in range(400)]
    assert sum(abs(score) > DRIFTING_Z for score in scores) < 20
    assert (sum(score**2 for score in scores) / len(scores)) ** 0.5 == pytest.approx(1.0, abs=0.25)
    assert geweke([1.0 + 0.01 * step + source.gauss(0.0, 0.02) for step in range(60)]) < -DRIFTING_Z


def test_few_blocks_tell_nothing_and_a_jump_is_told() -> None:
    assert not drifting([[1.0], [2.0]])
    source = random.Random(1)
    early = [[source.gauss(1.0, 0.01) for _ in range(5)] for _ in range(10)]
    late = [[source.gauss(1.5, 0.01) for _ in range(5)] for _ in range(10)]
    assert drifting([*early, *late])
