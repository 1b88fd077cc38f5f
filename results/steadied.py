"""Steadied: the errors that are left where predictions know how fast the lanes are when the plans run.

A launch gauges its lanes (steps of a calibrated size, not of a plan). What the tables say of a plan at the gauged
speeds, over what they say at those that the first predictions are for, is the launch's factor of the plan; dividing its
times by that is the same as predicting it so many times longer.

Of launches that begin with their gauge (:mod:`steelyard.runner.present`) that was written down before a plan ran: these
are predictions, ``foretold``. Of older launches, and of those on several machines, only the gauges between the plans
are known: then it is a diagnostic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .metrics import Launches, error_figures
from .record import Record


class Steadied(Record):
    """Figures of some plans, each launch's times over its factor; percents as in a comparison."""

    plans: int
    foretold: bool = False
    """Whether every factor was written down before the plans of its launch ran."""
    mean_error_percent: float
    balance_error_percent: float
    mape_percent: float
    worst_error_percent: float
    worst_plan: str
    coverage_percent: float
    coverage_count: int = 0
    interval_width_percent: float | None = None
    """Mean width of the intervals of launches whose lanes' speed is known, of the predicted median."""
    coverage_p_value: float | None = None
    """As in :class:`.agreement.Agreement`; of several cases."""
    optimum_share_percent: float | None = None


def is_foretold(contention: Mapping[str, Any]) -> bool:
    """Whether a run's launches began with gauges."""
    return bool(contention.get("foretold_factors"))


def steadied_launches(launches: Launches, contention: Mapping[str, Any]) -> Launches | None:
    """Step times of each launch over its factor; None where a launch was not gauged."""
    told = contention.get("foretold_factors") or contention.get("drift_factors")
    factors = told if isinstance(told, list) else []
    known = [each for each in factors if isinstance(each, int | float) and each > 0]
    if len(known) != len(launches):
        return None
    pairs = zip(sorted(launches), known, strict=True)
    return {launch: [seconds / factor for seconds in launches[launch]] for launch, factor in pairs}


def steadied(
    errors: Mapping[str, float | None],
    balanced: Sequence[float | None],
    seen: Sequence[tuple[bool, float] | None],
    *,
    foretold: bool = False,
) -> Steadied | None:
    """The figures from each plan's error by label, those at the balance point, and what coverage counts.

    None where something was not gauged.

    Args:
        errors: in percent.
        balanced: those of the plans at the balance point.
        seen: as :func:`.agreement.coverage_figures` takes it.
        foretold: whether the launches' factors were written down before their plans ran.
    """
    known = {label: error for label, error in errors.items() if error is not None}
    middle = [each for each in balanced if each is not None]
    covered = [each for each in seen if each is not None]
    if not known or len(known) < len(errors) or len(middle) < len(balanced) or len(covered) < len(seen):
        return None
    figures = error_figures(list(known.items()), middle)
    own = {name: figures[name] for name in figures.keys() & Steadied.model_fields}
    return Steadied(
        plans=len(known),
        foretold=foretold,
        coverage_percent=100 * fmean(inside for inside, _ in covered),
        coverage_count=len(covered),
        interval_width_percent=fmean(width for _, width in covered),
        **own,
    )
