"""Itinerary: which plan to go by when, where it is known what every plan takes in every stretch of a run to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..sim.noise import Floats


@dataclass(frozen=True)
class Leg:
    """A stretch of a run, and what may be done before it."""

    run_s: Floats
    """(plans): seconds of the stretch by each plan; endless where a plan cannot go through it."""
    move_s: Floats | None
    """(plans, plans): seconds to go from one plan to another before it; None: nobody may change here."""
    counted: bool = True
    """Whether a change before it is one of those that there are only so many of."""


def cheapest(legs: Sequence[Leg], changes: int) -> tuple[Floats, list[int]]:
    """The least time of all legs, with at most so many counted changes, from each plan to begin with.

    A dynamic programme backwards over legs, plans and changes that are left: the optimum over all sequences of the
    given plans.

    Args:
        legs: in order, at least one.
        changes: that may be counted.

    Returns:
        (plans) seconds by the plan before the first leg, and for each the plan that the first leg is done by.
    """
    count = len(legs[0].run_s)
    rest = np.zeros((changes + 1, count))
    firsts = np.arange(count)
    for leg in reversed(legs):
        stay = leg.run_s + rest
        if leg.move_s is None:
            rest, firsts = stay, np.arange(count)
            continue
        spent = np.vstack([np.full((1, count), np.inf), stay[:-1]]) if leg.counted else stay
        through = leg.move_s + spent[:, None, :]
        diagonal = np.arange(count)
        through[:, diagonal, diagonal] = np.diagonal(leg.move_s) + stay
        # Where staying is as good, it is chosen: the plan so far wins ties.
        chosen = through.argmin(axis=2)
        rest = through.min(axis=2)
        tied = through[:, diagonal, diagonal] <= rest
        firsts = np.where(tied, diagonal, chosen)[-1]
    return rest[-1], [int(each) for each in firsts]
