"""Foresight: planning ahead where devices slow down and recover again and again, with the changes that are left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..sim.disturbances import Rebalance
from ..sim.noise import Floats
from ..sim.plan import Plan
from ..sim.view import View
from .itinerary import Leg, cheapest
from .online import measured_factors, must_change, pace, steps_ahead
from .outlook import carried_on, predicted, recurring

HORIZON = 100
"""Rebalance points that are looked ahead, at most."""


@dataclass(frozen=True)
class Foreseen:
    """What the devices will be."""

    worlds: tuple[dict[str, float], ...]
    """How many times as long as estimated each device's work takes, each combination once."""
    steps: Floats
    """(rebalance points, worlds): how many steps of each world there are before the next point."""


def foreseen(view: View, weight: float) -> Foreseen | None:
    """The steps to come, where a device goes to and fro (:func:`.outlook.recurring`); None where none does.

    Args:
        view: as for :func:`.online.measured_factors`; where nobody knows how many steps are left, as many as there
            were.
        weight: as for :func:`.outlook.predicted`, which says what the other devices will be.
    """
    measured, ahead = measured_factors(view), steps_ahead(view)
    rounds = {name: recurring(series) for name, series in measured.items()}
    if not any(rounds.values()):
        return None
    every = (view.rebalance or Rebalance()).every_steps
    left = view.steps_left if view.steps_left is not None else len(view.history)
    count = min(max(left, 1), HORIZON * every)
    levels = [
        carried_on(rounds[name], count) if rounds[name] else [predicted(series, weight, ahead)] * count
        for name, series in measured.items()
    ]
    steps = list(zip(*levels, strict=True))
    places = {each: place for place, each in enumerate(dict.fromkeys(steps))}
    found = np.zeros((-(-count // every), len(places)))
    for number, each in enumerate(steps):
        found[number // every, places[each]] += 1
    return Foreseen(tuple(dict(zip(measured, each, strict=True)) for each in places), found)


def scheduled(
    view: View,
    coming: Foreseen,
    present: Callable[[View], Plan],
    step_s: Callable[[View, Plan], float],
    *,
    hysteresis: float,
    least_gain: float,
) -> Plan:
    """The plan to go on by: the first of the cheapest sequence (:func:`.itinerary.cheapest`) over the steps foreseen.

    Compared are the plan so far and the one for each of the worlds, changed at rebalance points.

    Args:
        view: with a plan so far; knows the prices, and how many changes are left (where nobody counts: one at each
            point).
        coming: what the devices will be.
        present: the plan for devices that stay as they are.
        step_s: a step of a plan.
        hysteresis: how many times its price a change must save.
        least_gain: share of a step that a change must save in each of the steps that it should last.
    """
    assert view.current is not None, "at the start nothing was measured"
    there = [view.slowed(world) for world in coming.worlds]
    answers = [view.current, *(present(each) for each in there)]
    plans = list({plan.sha256: plan for plan in answers}.values())
    seconds = np.array([[step_s(each, plan) for plan in plans] for each in there])
    every = (view.rebalance or Rebalance()).every_steps
    least_s = least_gain * float(seconds[0].min()) * max(pace(view), every)
    move_s = _prices_s(view, plans, hysteresis) + least_s * (1 - np.eye(len(plans)))
    forced = must_change(view)
    # Steps of no world that is foreseen in a stretch take nothing, also by a plan that could not do them.
    totals = [sum(n * row for n, row in zip(steps, seconds, strict=True) if n) for steps in coming.steps]
    legs = [Leg(np.asarray(run_s), move_s, counted=number > 0 or not forced) for number, run_s in enumerate(totals)]
    changes = view.changes_left if view.changes_left is not None else len(legs)
    return plans[cheapest(legs, changes)[1][0]]


def _prices_s(view: View, plans: Sequence[Plan], hysteresis: float) -> Floats:
    """(plans, plans): what going from one to another must save; endless to one that has a device that is gone."""
    there = [all(name in view.cluster.by_name for name in plan.samples()) for plan in plans]
    pairs = list(zip(plans, there, strict=True))
    return np.array(
        [
            [
                hysteresis * dataclasses.replace(view, current=one).price_s(other) if known else np.inf
                for other, known in pairs
            ]
            for one in plans
        ]
    )
