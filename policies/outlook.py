"""Outlook: what a measured quantity of a device will be, from the stretches that it has been through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TREND = 8
"""Steps that a drift shows in."""
STRAIGHT = 0.95
FLAT = 1e-3
"""Relative spread of values that do not drift."""
JUMP = 0.05
"""Least relative change that begins a new stretch."""
NOISE = 5.0
"""How many times the usual change from step to step it must be besides."""


@dataclass(frozen=True)
class Stretch:
    """Steps in which a quantity kept to one level."""

    level: float
    steps: int


def stretches(series: Sequence[float]) -> list[Stretch]:
    """A series cut where it jumps: beyond :data:`JUMP` of its level so far, and :data:`NOISE` usual differences."""
    values = np.array(series, dtype=float)
    usual = float(np.median(np.abs(values[1:] / values[:-1] - 1))) if len(values) > 2 else 0.0
    limit = max(JUMP, NOISE * usual)
    found = [Stretch(float(values[0]), 1)]
    for value in values[1:].tolist():
        last = found[-1]
        if abs(value / last.level - 1) > limit:
            found.append(Stretch(value, 1))
        else:
            found[-1] = Stretch(last.level + (value - last.level) / (last.steps + 1), last.steps + 1)
    return found


def predicted(series: Sequence[float], weight: float, ahead: float) -> float:
    """What a measured quantity will be: its average since it last jumped, or where it drifts, its line carried on.

    A level that it has been at before is recognised, and the average begins with it. A drift is a straight line through
    the last :data:`TREND` values to :data:`STRAIGHT` of their variance, which a jump among them is not. It is carried
    on by ``ahead`` steps, but to no more than twice or half the last value.

    Args:
        series: oldest first, at least one.
        weight: of the newest in the exponential average; 1 takes it alone.
        ahead: steps.
    """
    slope = _drift(series[-TREND:])
    if slope:
        return min(max(series[-1] + slope * ahead, series[-1] / 2), 2 * series[-1])
    *past, last = stretches(series)
    own = series[len(series) - last.steps :]
    known = next((each.level for each in reversed(past) if _alike(each, last)), own[0])
    average = known
    for value in own:
        average = weight * value + (1 - weight) * average
    return average


def _alike(one: Stretch, other: Stretch) -> bool:
    return abs(one.level / other.level - 1) <= JUMP


def _drift(values: Sequence[float]) -> float:
    """The slope of a straight line through some values; 0 where they lie on none."""
    if len(values) < TREND:
        return 0.0
    places = np.arange(len(values)) - (len(values) - 1) / 2
    away = np.array(values) - float(np.mean(values))
    slope = float((places * away).sum() / (places**2).sum())
    spread = float((away**2).sum())
    flat = spread <= len(values) * (FLAT * values[-1]) ** 2
    return slope if not flat and slope**2 * float((places**2).sum()) > STRAIGHT * spread else 0.0


def recurring(series: Sequence[float]) -> list[Stretch]:
    """What is to come of a quantity that goes to and fro: one round of stretches, the rest of the present one first.

    It goes to and fro if it is at a level that it has come to and left before; then it is taken to stay as long as it
    did the last time, and to go where it went. The first stretch of all does not count, for nobody saw it begin. Where
    the present stretch outlasts the one before, or the series drifts, nothing is foreseen.

    Returns:
        Stretches that follow each other, over and over after the first, which is cut to what is left of it (and may be
        of no steps); empty where nothing recurs.
    """
    *past, last = stretches(series)
    places = [place for place in range(1, len(past)) if _alike(past[place], last)]
    if not places or _drift(series[-TREND:]):
        return []
    before, *others = past[places[-1] :]
    left = before.steps - last.steps
    return [Stretch(before.level, left), *others, before] if left >= 0 else []


def carried_on(round_: Sequence[Stretch], steps: int) -> list[float]:
    """The levels of so many steps to come by what :func:`recurring` found."""
    levels = [round_[0].level] * round_[0].steps
    again = [each.level for each in round_[1:] for _ in range(each.steps)]
    while len(levels) < steps:
        levels += again
    return levels[:steps]
