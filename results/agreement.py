"""How far predictions and measurements agree: the figures that one study and several have in common."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .metrics import binomial_p_value
from .record import Record
from .steadied import Steadied

LEAST_LAUNCHES = 5
"""With fewer, figures are given and nothing is judged by them."""


class Agreement(Record):
    """Figures over plans that were predicted and measured; percents are signed unless said otherwise.

    Of one study (:class:`.compare.Comparison`) or pooled over several (:class:`.pooled.Pooled`).
    """

    launches: int
    """The fewest that any plan has."""
    judged: bool = False
    """Whether these are enough to judge the figures by."""
    mean_error_percent: float
    balance_error_percent: float
    """Mean signed error of the plans predicted within 3 % of the best one: optimism shows here first."""
    balance_plans: int
    mape_percent: float
    worst_error_percent: float
    """Largest absolute error, without its sign."""
    worst_signed_error_percent: float
    worst_plan: str
    kendall_tau: float | None
    kendall_pairs: int
    """Pairs of plans that differ by more than twice the noise floor: those that tau is taken over."""
    kendall_pairs_total: int
    regret_percent: float | None
    """Of several studies the worst, by its own noise floor."""
    coverage_percent: float
    coverage_count: int
    coverage_judged: bool
    coverage_p_value: float | None
    """Exact binomial test against 80 %; taken only where coverage is judged."""
    interval_width_percent: float
    """Mean width of the predicted intervals, of the predicted median."""
    noise_floor_percent: float | None
    """Of several studies the root of the mean square."""
    speedup_over_uniform: float | None
    """Of several studies the geometric mean."""
    optimum_share_percent: float | None = None
    """Of the throughput that the lanes' tables allow any data-parallel split, what the best measured plan reaches.

    Of several studies the least of those of two lanes.
    """
    steadied: Steadied | None = None
    """The errors by what was known of the lanes' speed when each launch began."""
    busy: bool


def coverage_figures(seen: Sequence[tuple[bool, float]], judged_from: int, launches: int) -> dict[str, Any]:
    """What observations of intervals come to.

    Args:
        seen: whether each median was inside of its interval, and how wide that is in percent of the predicted median.
        judged_from: how many observations it takes to judge coverage.
        launches: the fewest that any plan has.
    """
    inside, count = sum(each for each, _ in seen), len(seen)
    judged = count >= judged_from and launches >= LEAST_LAUNCHES
    return {
        "coverage_percent": 100 * inside / count,
        "coverage_count": count,
        "coverage_judged": judged,
        "coverage_p_value": binomial_p_value(inside, count) if judged else None,
        "interval_width_percent": fmean(width for _, width in seen),
    }
