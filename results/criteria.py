"""Criteria: the aims of a suite, and whether they are met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .record import Record
from .recovery import WITHIN_STEPS

if TYPE_CHECKING:
    from .pooled import Pooled
    from .steadied import Steadied

JUDGED_FROM = 200
"""Launch medians from which on the coverage of several cases is judged."""
MOST_MAPE, MOST_WORST, LEAST_TAU, LEAST_REGRET_LIMIT = 3.0, 8.0, 0.9, 1.0
MOST_CALIBRATED_MAPE = 8.0
LEAST_REGAINED, MOST_REGAINED_ERROR = 85.0, 5.0
MOST_WIDTH, MOST_BALANCE, LEAST_OPTIMUM, LEAST_P = 10.0, 2.0, 95.0, 0.05
NO_AIM = "-"
"""Stands for the limit of a figure that is given beside the aims."""
SHARED_TIMES, SHARED_PERCENT = 1.5, 3.0
"""Lanes that share a core: their error may be so many times their own noise floor, plus so much."""


class Criterion(Record):
    """One aim: the figure, the limit, and whether it was met; None: it could not be judged."""

    what: str
    value: float | None
    limit: str
    met: bool | None
    within: bool | None = None
    """Whether the figure is within the limit, also where there are too few launches to judge by; None: no figure."""

    def verdict(self) -> str:
        """The same in words."""
        if self.met is None:
            if self.limit == NO_AIM:
                return "no aim"
            return "not judged" if self.within is None else f"not judged, {'within' if self.within else 'OUTSIDE'}"
        return "met" if self.met else "MISSED"


def criteria(pooled: Pooled) -> list[Criterion]:
    """The aims for predictions of lanes with a core each; with too few launches none is judged.

    Where launches began with gauges, errors are those of what was sealed before the plans of each launch ran; those of
    what was sealed before the first one stand below, and have no aim.
    """
    regret = LEAST_REGRET_LIMIT if pooled.regret_limit_percent is None else pooled.regret_limit_percent
    errors = judged_errors(pooled)
    found = [
        _at_most("signed error at the balance point, %", errors.balance_error_percent, MOST_BALANCE, absolute=True),
        _at_most("mean absolute error, %", errors.mape_percent, MOST_MAPE),
        _at_most("worst error, %", errors.worst_error_percent, MOST_WORST),
        _at_least("rank agreement", pooled.kendall_tau, LEAST_TAU),
        _at_most("regret, worst case, %", pooled.regret_percent, regret),
        _at_least(
            "coverage of 80 % intervals: p of the exact binomial test", errors.coverage_p_value, LEAST_P
        ).model_copy(update={"limit": f">= {LEAST_P} over {JUDGED_FROM} launch medians or more"}),
        _at_most("width of the intervals, %", errors.interval_width_percent, MOST_WIDTH),
        _at_most(
            "mean absolute error, calibrated (the model never ran), %",
            next((each.mape_percent for each in pooled.fidelities if each.fidelity == "calibrated"), None),
            MOST_CALIBRATED_MAPE,
        ),
        _at_least("share of the optimum, two lanes, %", errors.optimum_share_percent, LEAST_OPTIMUM),
        _at_least(
            f"regained {WITHIN_STEPS} steps after a slowdown by the policy predicted to regain most, % of the best",
            pooled.regained_percent,
            LEAST_REGAINED,
        ),
        _at_most(
            "error of such predictions, worst policy, %", pooled.worst_regained_error_percent, MOST_REGAINED_ERROR
        ),
    ]
    return _if_judged(pooled, found) + ([] if errors is pooled else _sealed_first(pooled))


def judged_errors(pooled: Pooled) -> Pooled | Steadied:
    """What the aims for errors are held against."""
    return pooled.steadied if pooled.steadied is not None and pooled.steadied.foretold else pooled


def _sealed_first(pooled: Pooled) -> list[Criterion]:
    """The same errors of what was sealed before the first launch: with the host's drift."""
    figures = {
        "signed error at the balance point": pooled.balance_error_percent,
        "mean absolute error": pooled.mape_percent,
        "worst error": pooled.worst_error_percent,
        "coverage": pooled.coverage_percent,
        "width of the intervals": pooled.interval_width_percent,
        "share of the optimum, two lanes": pooled.optimum_share_percent,
    }
    return [_no_aim(f"{name}, sealed before the first launch, %", value) for name, value in figures.items()]


def shared_criteria(pooled: Pooled) -> list[Criterion]:
    """The aim for lanes that share a core."""
    what, floor, errors = "mean absolute error, shared cores, %", pooled.noise_floor_percent, judged_errors(pooled)
    first = (
        [] if errors is pooled else [_no_aim(f"{what[:-3]}, sealed before the first launch, %", pooled.mape_percent)]
    )
    if floor is None:
        return [_no_aim(what, errors.mape_percent), *first]
    return _if_judged(pooled, [_at_most(what, errors.mape_percent, SHARED_TIMES * floor + SHARED_PERCENT)]) + first


def _no_aim(what: str, value: float | None) -> Criterion:
    return Criterion(what=what, value=value, limit=NO_AIM, met=None)


def _if_judged(pooled: Pooled, found: Sequence[Criterion]) -> list[Criterion]:
    return list(found) if pooled.judged else [each.model_copy(update={"met": None}) for each in found]


def _at_most(what: str, value: float | None, limit: float, *, absolute: bool = False) -> Criterion:
    size = None if value is None else abs(value) if absolute else value
    text = f"within {limit:.3g}" if absolute else f"<= {limit:.3g}"
    met = None if size is None else size <= limit
    return Criterion(what=what, value=value, limit=text, met=met, within=met)


def _at_least(what: str, value: float | None, limit: float) -> Criterion:
    met = None if value is None else value >= limit
    return Criterion(what=what, value=value, limit=f">= {limit:.3g}", met=met, within=met)
