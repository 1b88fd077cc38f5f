"""What will be: jumps are seen at once, levels recognised, rounds carried on, and noise is none of these."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies.outlook import carried_on, predicted, recurring, stretches

LEVELS = st.floats(0.01, 100.0)
LENGTHS = st.integers(3, 30)


@given(level=LEVELS, factor=st.floats(1.2, 5.0), lengths=st.lists(LENGTHS, min_size=1, max_size=6))
def test_stretches_are_what_the_series_was_made_of(level: float, factor: float, lengths: list[int]) -> None:
    series = [level * (factor if place % 2 else 1.0) for place, steps in enumerate(lengths) for _ in range(steps)]
    found = stretches(series)
    assert [each.steps for each in found] == lengths
    assert [each.level for each in found] == [
        pytest.approx(level * (factor if place % 2 else 1.0)) for place in range(len(lengths))
    ]


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.1))
def test_noise_is_no_jump(seed: int, spread: float) -> None:
    """Uniform noise: the widest step is twice the spread, and so far five usual ones reach."""
    draws = np.random.default_rng(seed)
    series = (1 + spread * draws.uniform(-1, 1, 60)).tolist()
    assert len(stretches(series)) == 1


@given(level=LEVELS, factor=st.floats(1.2, 5.0), before=st.integers(3, 40), weight=st.floats(0.05, 1.0))
def test_a_jump_is_believed_at_once(level: float, factor: float, before: int, weight: float) -> None:
    """Whatever the weight of the average: what was before the jump does not count."""
    assert predicted([level] * before + [factor * level], weight, 0.0) == pytest.approx(factor * level)


@given(calm=LENGTHS, slow=LENGTHS, factor=st.floats(1.2, 5.0), first=LENGTHS, age=st.integers(1, 30))
def test_rounds_are_carried_on(calm: int, slow: int, factor: float, first: int, age: int) -> None:
    """Slow for the second time: it lasts as long as the first time, and the calm after it too, again and again."""
    age = min(age, slow)
    past = [1.0] * first + [factor] * slow + [1.0] * calm + [factor] * age
    found = carried_on(recurring(past), 100)
    whole = [factor] * (slow - age) + ([1.0] * calm + [factor] * slow) * 100
    assert found == [pytest.approx(each) for each in whole[:100]]


@given(first=LENGTHS, slow=LENGTHS, calm=LENGTHS)
def test_what_happened_once_is_not_foreseen(first: int, slow: int, calm: int) -> None:
    """Nor is a stretch that outlasts the one before it, nor a drift."""
    assert not recurring([1.0] * first)
    assert not recurring([1.0] * first + [2.0] * slow)
    assert not recurring([1.0] * first + [2.0] * slow + [1.0] * calm)
    assert not recurring([1.0] * first + [2.0] * slow + [1.0] * calm + [2.0] * (slow + 1))
    assert not recurring([1.0] * first + [1.0 + step / 50 for step in range(40)])
