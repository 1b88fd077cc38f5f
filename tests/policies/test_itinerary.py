"""The cheapest itinerary is that of brute force, whatever may be changed where."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies.itinerary import Leg, cheapest

SECONDS = st.integers(0, 9).map(float) | st.just(float("inf"))


@st.composite
def legs(draw: st.DrawFn) -> list[Leg]:
    """Up to four legs, two or three plans, some legs without a change before them."""
    count = draw(st.integers(2, 3))
    row = st.lists(SECONDS, min_size=count, max_size=count)
    found = []
    for _ in range(draw(st.integers(1, 4))):
        move_s = None
        if draw(st.booleans()):
            move_s = np.array(draw(st.lists(row, min_size=count, max_size=count)))
            if draw(st.booleans()):
                np.fill_diagonal(move_s, 0.0)
        found.append(Leg(np.array(draw(row)), move_s, counted=draw(st.booleans())))
    return found


def taken_s(path: Sequence[int], all_: Sequence[Leg], changes: int) -> float:
    """Seconds of a sequence of plans, the one before the first leg included; endless where it may not be."""
    total, counted = 0.0, 0
    for leg, old, new in zip(all_, path, path[1:], strict=False):
        if leg.move_s is None:
            total += 0.0 if old == new else float("inf")
        else:
            total += float(leg.move_s[old, new])
            counted += leg.counted and old != new
        total += float(leg.run_s[new])
    return total if counted <= changes else float("inf")


@given(all_=legs(), changes=st.integers(0, 3))
def test_it_is_the_best_of_all_sequences(all_: list[Leg], changes: int) -> None:
    count = len(all_[0].run_s)
    seconds, firsts = cheapest(all_, changes)
    for begin in range(count):
        ways = {
            rest: taken_s((begin, *rest), all_, changes) for rest in itertools.product(range(count), repeat=len(all_))
        }
        least = min(ways.values())
        assert seconds[begin] == pytest.approx(least)
        through_first = [way for rest, way in ways.items() if rest[0] == firsts[begin]]
        assert min(through_first) == pytest.approx(least)


def test_where_staying_is_as_good_nothing_is_changed() -> None:
    leg = Leg(np.ones(2), np.zeros((2, 2)))
    assert cheapest([leg, leg], 2)[1] == [0, 1]
