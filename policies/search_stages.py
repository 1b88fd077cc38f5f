"""Stages: a trial's launches (or scenarios) simulated few at a time, and given up where the first are hopeless.

The pruner is Optuna's, on a study of its own in memory: it meets the trials of earlier batches, and those of the same
batch stage by stage in the order of asking. So what it says depends neither on the workers nor on a resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..results.errors import InputError
from ..results.ledger import quantiles
from ..sim.device import CollectiveTable, Profile
from ..sim.plan import PlanError
from ..sim.spec import Scenario
from . import make_policy
from .search_goal import TIMED, Goal, Outcome

NONE, BOUND = "none", "bound"
PRUNERS = (NONE, BOUND, "median", "percentile", "halving", "hyperband")


class Part(NamedTuple):
    """What one stage of a trial gave."""

    cell: int
    seconds: tuple[float, ...]
    """Of each counted step."""
    last: bool
    """Whether the trial has no further stage."""
    reason: str = ""
    """Why there is nothing."""


def check_pruner(pruner: str, goal: Goal) -> None:
    """Refuse what is unknown, and what cannot be pruned.

    Raises:
        InputError: see the problem.
    """
    if pruner not in PRUNERS:
        raise InputError("pruner", f"{pruner!r} is unknown", f"one of {', '.join(PRUNERS)}")
    if pruner == NONE:
        return
    if len(goal.metrics) > 1 or goal.metrics[0] not in TIMED:
        problem = f"{pruner} judges the times of steps, and the search is about more than them"
        raise InputError("pruner", problem, f"one objective of {' or '.join(TIMED)}")
    if goal.constraints and pruner != BOUND:
        problem = f"{pruner} judges by values alone, and some may not count for their {' and '.join(goal.constraints)}"
        raise InputError("pruner", problem, f"use {BOUND} or {NONE} with limits")
    from ..sim.adaptive import is_eventful

    eventful = [cell.scenario.name for cell in goal.cells if is_eventful(cell.scenario)]
    if eventful:
        problem = f"{pruner} judges equal steps of one plan, and {eventful[0]} has disturbances or rebalance"
        raise InputError("pruner", problem, f"use {NONE}")
    noisy = [cell.scenario.name for cell in goal.cells if _varies(cell.scenario)]
    if pruner == BOUND and noisy:
        raise InputError("pruner", f"bound holds without noise, and steps vary in {noisy[0]}", "use median or halving")


def _varies(scenario: Scenario) -> bool:
    """Whether any plan of a scenario may meet noise."""
    given, cluster = scenario.variation, scenario.cluster
    measured: list[Profile | CollectiveTable] = [*cluster.collectives]
    measured += [device.profile for device in cluster.devices if device.profile]
    stragglers = given.straggler_share and given.straggler_slowdown > 1
    return bool(given.step_cv or given.device_cv or given.network_cv or stragglers) or any(
        any(each.step_residuals) or any(each.launch_residuals) for each in measured
    )


def stages(goal: Goal) -> list[tuple[int, range]]:
    """Cell and launches of each stage: 1, 1, 2, 4 ... launches of a single cell; else one cell after the other."""
    if len(goal.cells) > 1:
        return [(number, range(_launches(goal, number))) for number in range(len(goal.cells))]
    ends = [0, 1]
    while ends[-1] < _launches(goal, 0):
        ends.append(min(2 * ends[-1], _launches(goal, 0)))
    return [(0, range(first, last)) for first, last in itertools.pairwise(ends)]


def _launches(goal: Goal, cell: int) -> int:
    return goal.cells[cell].scenario.sampling.search_launches


def simulate_stage(goal: Goal, name: str, values: dict[str, Any], stage: int) -> Part:
    """One stage of a trial.

    Raises:
        PlanError: the policy answered with an invalid plan.
    """
    from ..sim.measures import step_times
    from ..sim.view import View, allocate

    all_stages = stages(goal)
    cell, span = all_stages[stage]
    scenario, seed = goal.cells[cell]
    try:
        plan = allocate(make_policy(name, values), View.of(scenario), scenario)
        seconds, whole = step_times(scenario, plan, seed=seed, launches=_launches(goal, cell), span=span)
    except PlanError:
        raise
    except InputError as error:
        return Part(cell, (), True, str(error))
    return Part(cell, tuple(seconds), stage == len(all_stages) - 1 or (whole and len(goal.cells) == 1))


def value_so_far(goal: Goal, parts: Sequence[Part]) -> float:
    """The value of a trial as its first stages show it; after the last one, what :meth:`.Goal.evaluate` says."""
    rows = []
    for number in range(parts[-1].cell + 1):
        times = quantiles([seconds for part in parts if part.cell == number for seconds in part.seconds])
        rows.append((goal.of_times(goal.cells[number].scenario, times.p50, times.p90),))
    return goal.together(rows)[0]


class Judge:
    """An Optuna pruner, and what it has seen."""

    def __init__(self, pruner: str) -> None:
        import optuna

        self._study = optuna.create_study(direction="maximize", study_name="stages", pruner=_optuna_pruner(pruner))
        self._batch: list[optuna.Trial] = []

    def begin(self, count: int) -> None:
        """A batch of so many trials begins."""
        self._batch = [self._study.ask() for _ in range(count)]

    def hopeless(self, place: int, step: int, value: float) -> bool:
        """Whether a trial of the batch is to be given up, whose value after ``step`` stages is this."""
        self._batch[place].report(value, step)
        return bool(self._batch[place].should_prune())

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """The batch is done."""
        from optuna.trial import TrialState

        for trial, outcome in zip(self._batch, outcomes, strict=True):
            if outcome.values is None:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, outcome.values[0])

    def replay(self, outcomes: Sequence[Outcome]) -> None:
        """A batch that was evaluated before: the same calls in the same order."""
        self.begin(len(outcomes))
        for step in sorted({step for outcome in outcomes for step, _ in outcome.steps}):
            for place, outcome in enumerate(outcomes):
                if step in dict(outcome.steps):
                    self.hopeless(place, step, dict(outcome.steps)[step])
        self.end(outcomes)


def _optuna_pruner(name: str) -> Any:
    """The pruner of a name; those with rungs start at one stage and double."""
    from optuna import pruners

    known: dict[str, Callable[[], Any]] = {
        "median": lambda: pruners.MedianPruner(n_startup_trials=8),
        "percentile": lambda: pruners.PercentilePruner(25.0, n_startup_trials=8),
        "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        "hyperband": lambda: pruners.HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2),
    }
    return known[name]()
