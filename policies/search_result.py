"""What a search found: its trials, the best of them, and the files that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..results.store import write_text
from ..sim.plan import Infeasible, Plan
from ..sim.spec import Scenario
from ..sim.view import Policy, View, allocate
from . import make_policy
from .search_goal import UNITS, Goal, signed
from .search_space import Space
from .search_study import outcome_of
from .toml import to_toml

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class TrialRow:
    """One trial: which policy with which parameters, and what the engine said."""

    number: int
    policy: str
    parameters: dict[str, Any]
    value: float | None
    """The (first) objective, larger is better; None where there is none."""
    state: Literal["complete", "infeasible", "pruned"]
    reason: str = ""
    values: tuple[float, ...] = ()
    """All objectives, larger is better."""
    violation: float = 0.0
    """How far the constraint that is missed most is from being met, as a share of it; 0: all are met."""

    @property
    def counts(self) -> bool:
        """Whether it can win."""
        return self.value is not None and self.violation <= 0


@dataclass(frozen=True)
class SearchResult:
    """What a search found: a function of scenarios, space and seed, but for ``seconds`` and ``trials_per_s``."""

    name: str
    """Of the best policy, by the first objective."""
    parameters: dict[str, Any]
    value: float
    trials: tuple[TrialRow, ...]
    seconds: float
    trials_per_s: float
    """Trials that were evaluated in this call, per second, start-up included."""
    storage: str
    sampler: str
    seed: int
    scenario: str
    scenario_sha256: str
    objective: str
    """The first one."""
    objectives: tuple[str, ...] = ()
    front: tuple[TrialRow, ...] = ()
    """Trials that none is better than in every objective, best in the first one first; of equals the earliest."""
    robust: str | None = None
    """How values of several scenarios and seeds are taken together; they are then shares of the best default's."""
    scenarios: tuple[str, ...] = ()
    seeds: int = 1
    pruner: str = "none"
    history: tuple[FrozenTrial, ...] = field(default=(), repr=False, compare=False)
    """The trials as Optuna has them."""
    goal: Goal | None = field(default=None, repr=False, compare=False)
    """What was wanted, each scenario as the policies saw it."""

    @property
    def best(self) -> tuple[str, dict[str, Any], float]:
        """Name, parameters and value of the best trial; of equals the earliest."""
        return self.name, self.parameters, self.value

    def policy(self) -> Policy:
        """The best policy."""
        return make_policy(self.name, self.parameters)

    def figures(self, row: TrialRow) -> dict[str, float]:
        """The objectives of a trial as figures: in their units, or as shares of the best default's."""
        pairs = zip(self.objectives, row.values, strict=False)
        return {metric: value if self.robust else signed(metric, value) for metric, value in pairs}

    def unit(self, objective: str) -> str:
        """The unit of :meth:`figures`."""
        return "share of the best default" if self.robust else UNITS[objective]


def row_of(trial: FrozenTrial, space: Space) -> TrialRow:
    """A finished trial of Optuna's as a row."""
    name, values = space.policy_of(trial.params)
    outcome = outcome_of(trial)
    without: Literal["pruned", "infeasible"] = "pruned" if outcome.hopeless else "infeasible"
    return TrialRow(
        number=trial.number,
        policy=name,
        parameters=values,
        value=None if outcome.values is None else outcome.values[0],
        state=without if outcome.values is None else "complete",
        reason=outcome.reason,
        values=outcome.values or (),
        violation=max(0.0, *outcome.violations) if outcome.violations else 0.0,
    )


def front_of(rows: Sequence[TrialRow], goal: Goal) -> tuple[TrialRow, ...]:
    """The rows that count and that none dominates; of rows with equal values the earliest.

    Raises:
        Infeasible: no row counts.
    """
    ordered = sorted((row for row in rows if row.counts), key=_rank)
    if not ordered:
        closest = min((row for row in rows if row.value is not None), key=lambda row: (row.violation, row.number))
        problem = f"no trial keeps to the limits of {' and '.join(goal.constraints)}: the closest, {closest.policy}"
        raise Infeasible("objective", f"{problem}, misses by {closest.violation:.1%}", "ease the limit, or try more")
    front: list[TrialRow] = []
    for row in ordered:  # what dominates a row comes before it: it is first by the first objective that differs
        if not any(_covers(other.values, row.values) for other in front):
            front.append(row)
    return tuple(front)


def _covers(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the first is nowhere worse."""
    return all(a >= b for a, b in zip(one, other, strict=True))


def _rank(row: TrialRow) -> tuple[Any, ...]:
    """Best first: by the first objective, then the others, then the number."""
    return (*(-value for value in row.values), row.number)


def ranked(rows: Iterable[TrialRow]) -> list[TrialRow]:
    """Best first; then those that miss a limit, then those without a value."""
    return sorted(rows, key=lambda row: (row.value is None, row.violation, _rank(row)))


def write_best(result: SearchResult, path: str | Path) -> Path:
    """Write ``best.toml``: the best policy, which ``--policy best.toml`` takes, and how it was found (no clock)."""
    target = Path(path)
    best = {"policy": {"name": result.name, "parameters": result.parameters}}
    write_text(
        target, to_toml({**best, "search": {"objective": result.objective, "value": result.value, **_how(result)}})
    )
    return target


def write_front(result: SearchResult, path: str | Path) -> list[Path]:
    """Write ``front.toml``, and each point of it as a policy file beside it: ``front-1.toml``, ...

    Returns:
        The files, that of the whole front first.
    """
    target = Path(path)
    points = []
    for number, row in enumerate(result.front, start=1):
        policy, figures = {"name": row.policy, "parameters": row.parameters}, result.figures(row)
        file = target.with_name(f"{target.stem}-{number}.toml")
        write_text(file, to_toml({"policy": policy, "figures": figures, "search": _how(result)}))
        points.append((file, {"file": file.name, "number": row.number, "policy": policy, "figures": figures}))
    units = {metric: result.unit(metric) for metric in result.objectives}
    write_text(target, to_toml({"search": _how(result), "units": units, "points": [point for _, point in points]}))
    return [target, *(file for file, _ in points)]


def _how(result: SearchResult) -> dict[str, Any]:
    """How it was found; what is as ever is left out."""
    document: dict[str, Any] = {
        "seed": result.seed,
        "sampler": result.sampler,
        "trials": len(result.trials),
        "scenario": result.scenario,
        "scenario_sha256": result.scenario_sha256,
    }
    if len(result.objectives) > 1:
        document["objectives"] = list(result.objectives)
    if result.pruner != "none":
        document["pruner"] = result.pruner
    if result.robust:
        document |= {"robust": result.robust, "scenarios": list(result.scenarios), "seeds": result.seeds}
    return document


def distinct_plans(
    scenario: Scenario, result: SearchResult, count: int, exclude: Iterable[Plan] = ()
) -> list[tuple[Policy, Plan]]:
    """The best plans of a search, best first, each once.

    Args:
        scenario: the one that was searched.
        result: what the search gave.
        count: how many at most.
        exclude: plans that are not wanted.
    """
    view = View.of(scenario)
    seen = {plan.sha256 for plan in exclude}
    found: list[tuple[Policy, Plan]] = []
    for row in ranked(row for row in result.trials if row.counts):
        if len(found) >= count:
            break
        policy = make_policy(row.policy, row.parameters)
        plan = allocate(policy, view, scenario)
        if plan.sha256 not in seen:
            seen.add(plan.sha256)
            found.append((policy, plan))
    return found
