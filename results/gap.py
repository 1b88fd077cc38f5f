"""Gap: how far a step is above the bound that no plan can beat; all rows of a table by one kind of bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Bounded(Protocol):
    """What knows the bounds of its plan's step, in seconds: summaries of runs, and rows of comparisons."""

    @property
    def lower_bound_step_time_s(self) -> float:
        """Of plans of its kind: of all splits if it is one, else of all plans; 0: not known."""

    @property
    def work_bound_step_time_s(self) -> float | None:
        """Of all plans; None: not known."""


def bounds_s(rows: Sequence[Bounded]) -> list[float | None]:
    """What each row of a table is measured by: where there are plans of different kinds, the bound of all plans.

    Returns:
        Seconds; None where there is no bound.
    """
    general = any(row.lower_bound_step_time_s == row.work_bound_step_time_s for row in rows)
    return [(row.work_bound_step_time_s if general else row.lower_bound_step_time_s) or None for row in rows]


def gap_percent(step_s: float, bound_s: float | None) -> float | None:
    """Percent that a step is above its bound; None where there is no bound."""
    return 100 * (step_s / bound_s - 1) if bound_s else None
