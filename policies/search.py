"""search(): Optuna over policies and their parameters; the engine, never a formula, gives every value.

One search is :mod:`.search_goal` (what is wanted), :mod:`.search_space` (what is tried), :mod:`.search_samplers` (what
is tried next), :mod:`.search_stages` (what is given up) and :mod:`.search_study` (why all of it repeats).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..results.record import digest
from ..sim.cost import MODEL_VERSION
from ..sim.plan import Infeasible
from ..sim.spec import Scenario
from . import names_for
from .search_goal import TOGETHER, UNITS, Cell, Goal, Robust
from .search_result import SearchResult, TrialRow, distinct_plans, front_of, ranked, row_of, write_best, write_front
from .search_samplers import GRID, JOINT, check_sampler, make_sampler
from .search_space import Space
from .search_stages import NONE, check_pruner
from .search_study import Course, Progress, open_study, quiet_optuna, run_batches
from .storage import open_storage
from .workers import Evaluator

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = [
    "SearchResult",
    "Space",
    "TrialRow",
    "distinct_plans",
    "identity",
    "make_sampler",
    "ranked",
    "search",
    "write_best",
    "write_front",
]

BATCH = 8
"""Trials that are asked with the same history. Fixed, and not the number of workers: results must not depend on it."""

STUDY = "steelyard"


def search(
    scenario: Scenario | Sequence[Scenario],
    *,
    policies: Sequence[str] | None = None,
    trials: int = 200,
    seed: int | None = None,
    storage: str | Path | None = None,
    study: str | None = None,
    workers: int | None = None,
    sampler: str = "tpe",
    batch: int = BATCH,
    objectives: Sequence[str] = (),
    seeds: int = 1,
    robust: Robust | None = None,
    pruner: str = NONE,
    limits: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Look for the policy and parameters with the best objective, or for those that none is better than in several.

    The defaults of all policies come first, so that the best is never worse than a default; then, of several
    objectives, planners with each as their aim; then the other settings of policies that have a few; then what the
    sampler asks for (nothing, where no policy has a range, or all points of the ``grid`` are tried). Trials that miss
    a limit, or the floor or the budget of their scenario's objective, do not count.

    A search that was stopped goes on where it was when called again with the same arguments, and ends as if it had not
    been stopped. A finished one goes on when ``trials`` is larger; it then equals one long search if the old number is
    a multiple of ``batch``.

    Args:
        scenario: what is simulated; of several, a policy is to do well in each.
        policies: names as :func:`~steelyard.policies.policy_class` takes them; without, those of
            :func:`~steelyard.policies.names_for`.
        trials: how many there shall be in the end, at least the number of policies.
        seed: of the sampler and of the simulated noise; the (first) scenario's by default.
        storage: path of a journal file, an Optuna URL, or None: in memory.
        study: name within the storage.
        workers: most processes that evaluate beside this one; the number of processors less one by default.
        sampler: one of :data:`~.search_samplers.SAMPLERS`.
        batch: trials that are asked with the same history.
        objectives: of :data:`~.search_goal.UNITS`; the (first) scenario's by default.
        seeds: simulate the noise of so many seeds, from ``seed`` on.
        robust: how values of several scenarios and seeds are taken together: ``mean`` (the default) or ``worst``.
        pruner: one of :data:`~.search_stages.PRUNERS`: what gives up hopeless trials early.
        limits: the most, or of throughput and memory headroom the least, that objectives may be in every scenario and
            seed, beside the floor and budget of the scenarios; planners do not know of them.
        progress: called with trials done and trials in all.

    Raises:
        InputError: an argument is wrong, or the storage holds another search.
        Infeasible: no policy's default has a plan for the scenario, or no trial keeps to the limits.
    """
    started = time.perf_counter()
    scenarios = [scenario] if isinstance(scenario, Scenario) else list(scenario)
    names = names_for(scenarios) if policies is None else list(policies)
    goal = _goal(scenarios, seed=seed, seeds=seeds, objectives=objectives, robust=robust, limits=limits)
    space = Space.of(names, joint=sampler in JOINT, grid=sampler == GRID, metrics=goal.metrics)
    trials = trials if space.open and not space.grid else min(trials, len(space.fixed))
    _check_numbers(trials, batch, workers, len(space.policies))
    check_sampler(sampler, len(goal.metrics), len(goal.constraints))
    check_pruner(pruner, goal)
    decides = _identity(goal, space, sampler=sampler, batch=batch, pruner=pruner)
    goal = _with_values(goal, space)
    course = Course(space, goal, goal.cells[0].seed, trials, batch, sampler, pruner)
    with Evaluator(goal, _workers(workers)) as evaluator, quiet_optuna(), open_storage(storage) as place:
        opened = open_study(place, study or STUDY, course, decides)
        fresh = run_batches(opened, course, evaluator, progress)
        history = tuple(each for each in opened.get_trials(deepcopy=False) if each.state.is_finished())
    return _result(
        course,
        history,
        scenarios=scenarios,
        scenario_sha256=decides["scenario_sha256"],
        seeds=seeds,
        storage=_shown(storage),
        fresh=fresh,
        started=started,
    )


def _result(
    course: Course,
    history: tuple[FrozenTrial, ...],
    *,
    scenarios: Sequence[Scenario],
    scenario_sha256: str,
    seeds: int,
    storage: str,
    fresh: int,
    started: float,
) -> SearchResult:
    """What a study of finished trials comes to, ``fresh`` of which were evaluated since ``started``."""
    goal = course.goal
    rows = tuple(row_of(each, course.space) for each in history)
    front = front_of(rows, goal)
    seconds = time.perf_counter() - started
    assert front[0].value is not None
    return SearchResult(
        name=front[0].policy,
        parameters=front[0].parameters,
        value=front[0].value,
        trials=rows,
        seconds=seconds,
        trials_per_s=fresh / seconds,
        storage=storage,
        sampler=course.sampler,
        seed=course.seed,
        scenario=scenarios[0].name,
        scenario_sha256=scenario_sha256,
        objective=goal.metrics[0],
        objectives=goal.metrics,
        front=front,
        robust=goal.robust,
        scenarios=tuple(each.name for each in scenarios),
        seeds=seeds,
        pruner=course.pruner,
        history=history,
        goal=goal,
    )


def identity(
    scenario: Scenario | Sequence[Scenario],
    policies: Sequence[str] | None = None,
    *,
    seed: int | None = None,
    sampler: str = "tpe",
    batch: int = BATCH,
    objectives: Sequence[str] = (),
    seeds: int = 1,
    robust: Robust | None = None,
    pruner: str = NONE,
    limits: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What decides a search's outcome, as far as it can be known beforehand; arguments as :func:`search` takes them.

    Raises:
        InputError: an unknown policy, or none; an argument is wrong.
    """
    scenarios = [scenario] if isinstance(scenario, Scenario) else list(scenario)
    goal = _goal(scenarios, seed=seed, seeds=seeds, objectives=objectives, robust=robust, limits=limits)
    space = Space.of(names_for(scenarios) if policies is None else policies, metrics=goal.metrics)
    return _identity(goal, space, sampler=sampler, batch=batch, pruner=pruner)


def _identity(goal: Goal, space: Space, *, sampler: str, batch: int, pruner: str) -> dict[str, Any]:
    found = [digest(scenario.model_dump(mode="json")) for scenario, _ in goal.cells]
    document: dict[str, Any] = {
        "scenario_sha256": found[0],
        "policies": list(space.policies),
        "space_sha256": space.digest(),
        "seed": goal.cells[0].seed,
        "sampler": sampler,
        "batch": batch,
        "model_version": MODEL_VERSION,
    }
    if len(goal.metrics) > 1:
        document["objectives"] = list(goal.metrics)
    if goal.limits:
        document["limits"] = dict(goal.limits)
    if goal.robust is not None:
        cells = [[each, cell.seed] for each, cell in zip(found, goal.cells, strict=True)]
        document |= {"cells_sha256": digest(cells), "robust": goal.robust}
    return document if pruner == NONE else document | {"pruner": pruner}


def _goal(
    scenarios: Sequence[Scenario],
    *,
    seed: int | None,
    seeds: int,
    objectives: Sequence[str],
    robust: Robust | None,
    limits: Mapping[str, float] | None,
) -> Goal:
    """What is wanted, checked."""
    if not scenarios:
        raise InputError("scenario", "is none", "give a scenario")
    if seeds < 1:
        raise InputError("seeds", f"is {seeds}", "at least 1")
    if robust is not None and robust not in TOGETHER:
        raise InputError("robust", f"{robust!r} is unknown", f"one of {', '.join(TOGETHER)}")
    several = len(scenarios) * seeds > 1
    if robust is not None and not several:
        raise InputError("robust", "has no effect on one scenario and seed", "give more scenarios, or --seeds")
    metrics = _metrics(scenarios, objectives)
    if len(metrics) == 1:  # policies see what the search is about
        scenarios = [_about(each, metrics[0]) for each in scenarios]
    first = scenarios[0].seed if seed is None else seed
    cells = tuple(Cell(each, first + number) for each in scenarios for number in range(seeds))
    for metric, limit in (limits or {}).items():
        _check_metric("limit", metric)
        if not 0 < limit < math.inf:
            raise InputError(f"limit.{metric}", f"is {limit}", f"above 0, in {UNITS[metric]}")
    return Goal(cells, metrics, (robust or "mean") if several else None, limits=tuple(sorted((limits or {}).items())))


def _metrics(scenarios: Sequence[Scenario], objectives: Sequence[str]) -> tuple[str, ...]:
    metrics = tuple(dict.fromkeys(objectives)) or tuple(dict.fromkeys(each.objective.metric for each in scenarios))
    if not objectives and len(metrics) > 1:
        raise InputError("objective.metric", f"differs: {', '.join(metrics)}", "say --objective")
    for metric in metrics:
        _check_metric("objective", metric)
    return metrics


def _check_metric(field: str, metric: str) -> None:
    if metric not in UNITS:
        raise InputError(field, f"{metric!r} is unknown", f"of {', '.join(UNITS)}")


def _about(scenario: Scenario, metric: str) -> Scenario:
    if scenario.objective.metric == metric:
        return scenario
    return scenario.model_copy(update={"objective": scenario.objective.model_copy(update={"metric": metric})})


def _with_values(goal: Goal, space: Space) -> Goal:
    """The goal, once it is known that some default has values: fail before anything is written where none has."""
    if goal.robust is not None:
        goal = goal.with_references({name: space.defaults(name) for name in space.policies})
    problem = ""
    for name in space.policies:
        outcome = goal.evaluate(name, space.defaults(name))
        if outcome.values is not None:
            return goal
        problem = problem or f"{name}: {outcome.reason}"
    what = "this scenario" if goal.robust is None else "all of the scenarios"
    raise Infeasible("search", f"no policy has a value for {what}; {problem}", "")


def _check_numbers(trials: int, batch: int, workers: int | None, policies: int) -> None:
    if trials < policies:
        mend = "ask for more trials, or name fewer policies"
        raise InputError("trials", f"{trials} do not hold the defaults of {policies} policies", mend)
    if batch < 1:
        raise InputError("batch", f"is {batch}", "at least 1")
    if workers is not None and workers < 0:
        raise InputError("workers", f"is {workers}", "0 (this process alone) or more")


def _workers(wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable - 1


def _shown(storage: str | Path | None) -> str:
    """The storage as a record may hold it: no password of a database, no path of this machine."""
    if storage is None:
        return "memory"
    text = str(storage)
    return f"{text.partition('://')[0]}://..." if "://" in text else Path(text).name
