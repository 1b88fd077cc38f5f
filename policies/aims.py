"""Aims: what a planner makes its plans best at, where it is not to be what the scenario's objective says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..sim.plan import Infeasible
from ..sim.view import View
from ._base import Choice, Parameter

AIM = "aim"
"""The field's name."""
OBJECTIVE = "objective"
"""What the scenario says."""
KNOWN = ("throughput", "cost", "energy")
"""What can be planned for."""
STANDS_FOR = {"step_time_p90": "throughput"}
"""Metrics that are planned for as another one: planners know of no noise, and then these are the same."""


class Aim(Choice):
    """The annotation of a planner's field that says what its plans are to be best at.

    A search over several objectives draws it among them; in one over a single objective it stays what it is.
    """

    def __init__(self) -> None:
        super().__init__(OBJECTIVE, *KNOWN)


def aimed(view: View, aim: str) -> View:
    """The view with the objective that a planner is to follow; floor and budget stay.

    Raises:
        Infeasible: the objective is one that nothing is planned for.
    """
    wanted = view.objective.metric if aim == OBJECTIVE else aim
    metric: Any = STANDS_FOR.get(wanted, wanted)
    if metric not in KNOWN:
        problem = f"is {wanted}, which is not planned for"
        raise Infeasible("objective.metric", problem, f"name another aim: aim={KNOWN[0]}, {KNOWN[1]} or {KNOWN[2]}")
    if metric == view.objective.metric:
        return view
    return dataclasses.replace(view, objective=view.objective.model_copy(update={"metric": metric}))


def aims_of(parameter: Parameter, metrics: Sequence[str]) -> Parameter | None:
    """What a search over some metrics draws an aim from: those that can be planned for; None: nothing is to be drawn.

    Args:
        parameter: whose space is an :class:`Aim`.
        metrics: what the search is about; none where that is not known.
    """
    told = list(dict.fromkeys(STANDS_FOR.get(metric, metric) for metric in metrics))
    options = [metric for metric in told if metric in KNOWN] or [KNOWN[0]]
    if len(told) <= 1 and (not told or told[0] in KNOWN):
        return None  # the scenario's objective says it
    return dataclasses.replace(parameter, default=options[0], space=Choice(*options))
