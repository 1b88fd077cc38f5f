"""The errors that are left when the host's drift is taken out: had the lanes kept their speed.

A launch gauges its lanes (steps of a calibrated size, not of a plan). What the tables say of a plan at the gauged
speeds, over what they say at those that the predictions are for, is the launch's drift factor of the plan; its times
are divided by that. The predictions stay as they were sealed, and the figures of record are those without this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .metrics import Launches, error_figures
from .record import Record


class Steadied(Record):
    """Figures of some plans, each launch's drift divided out of its times; percents as in a comparison."""

    plans: int
    mean_error_percent: float
    balance_error_percent: float
    mape_percent: float
    worst_error_percent: float
    worst_plan: str
    coverage_percent: float
    optimum_share_percent: float | None = None


def steadied_launches(launches: Launches, contention: Mapping[str, Any]) -> Launches | None:
    """Step times of each launch over its drift factor; None where a launch was not gauged."""
    told = contention.get("drift_factors")
    factors = told if isinstance(told, list) else []
    known = [each for each in factors if isinstance(each, int | float) and each > 0]
    if len(known) != len(launches):
        return None
    pairs = zip(sorted(launches), known, strict=True)
    return {launch: [seconds / factor for seconds in launches[launch]] for launch, factor in pairs}


def steadied(
    errors: Mapping[str, float | None], balanced: Sequence[float | None], inside: Sequence[bool | None]
) -> Steadied | None:
    """The figures from each plan's error by label, those at the balance point, and whether each launch was covered.

    None where something was not gauged.
    """
    known = {label: error for label, error in errors.items() if error is not None}
    middle = [each for each in balanced if each is not None]
    covered = [each for each in inside if each is not None]
    if not known or len(known) < len(errors) or len(middle) < len(balanced) or len(covered) < len(inside):
        return None
    figures = error_figures(list(known.items()), middle)
    own = {name: figures[name] for name in figures.keys() & Steadied.model_fields}
    return Steadied(plans=len(known), coverage_percent=100 * sum(covered) / len(covered), **own)
