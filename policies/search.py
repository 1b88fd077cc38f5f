"""search(): Optuna over policies and their parameters; the engine, never a formula, gives every value.

What makes a search repeat exactly, also across a kill and a resume and with any number of workers:

1. Trials come in batches at fixed multiples of ``batch``. All of a batch are asked before one is told, and told in the
   order of asking: trial n is asked when exactly the trials of earlier batches are told.
2. The sampler is reseeded from (seed, trial number, parameter) before every draw, so that a draw depends on nothing
   but the history, and a trial that was killed between two of its parameters gets the same ones again.
3. On resuming, the trials that were running are finished first, in their order.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..results.errors import InputError
from ..results.record import digest
from ..results.store import write_text
from ..sim.cost import MODEL_VERSION
from ..sim.plan import Infeasible, Plan
from ..sim.spec import Scenario
from ..sim.view import Policy, View, allocate, describe
from . import DEFAULTS, REGISTRY, make_policy, policy_class
from ._base import Choice, Parameter, Range, parameters, searchable
from .storage import open_storage
from .toml import to_toml
from .workers import Evaluator, Outcome, evaluate

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

BATCH = 8
"""Trials that are asked with the same history. Fixed, and not the number of workers: results must not depend on it."""

FEW = 16
"""A policy with at most so many settings is tried with all of them."""

STUDY = "steelyard"
SAMPLERS = ("tpe", "random")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrialRow:
    """One trial: which policy with which parameters, and what the engine said."""

    number: int
    policy: str
    parameters: dict[str, Any]
    value: float | None
    """The objective, larger is better; None where the policy had no plan."""
    state: Literal["complete", "infeasible"]
    reason: str = ""


@dataclass(frozen=True)
class SearchResult:
    """What a search found: a function of scenario, space and seed, but for ``seconds`` and ``trials_per_s``."""

    name: str
    """Of the best policy."""
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

    @property
    def best(self) -> tuple[str, dict[str, Any], float]:
        """Name, parameters and value of the best trial; of equals the earliest."""
        return self.name, self.parameters, self.value

    def policy(self) -> Policy:
        """The best policy."""
        return make_policy(self.name, self.parameters)


@dataclass(frozen=True)
class Space:
    """The search space: policies, each with its own parameters.

    A policy with a few settings only is tried with each of them, once; the sampler chooses among the others. It would
    come back to a good one without parameters again and again, and learn nothing.
    """

    policies: tuple[str, ...]
    parameters: dict[str, Mapping[str, Parameter]]

    @classmethod
    def of(cls, names: Sequence[str]) -> Space:
        """The space over some policies; a name that is given twice counts once."""
        chosen = tuple(dict.fromkeys(names))
        if not chosen:
            raise InputError("policies", "are none", f"known: {', '.join(REGISTRY)}")
        return cls(chosen, {name: searchable(policy_class(name)) for name in chosen})

    @cached_property
    def settings(self) -> dict[str, list[dict[str, Any]]]:
        """All settings of each policy that has only a few."""
        found = {}
        for name in self.policies:
            spaces = {key: each.space for key, each in self.parameters[name].items()}
            options = {key: space.options for key, space in spaces.items() if isinstance(space, Choice)}
            if len(options) == len(spaces) and math.prod(map(len, options.values())) <= FEW:
                found[name] = [dict(zip(options, point, strict=True)) for point in itertools.product(*options.values())]
        return found

    @cached_property
    def open(self) -> tuple[str, ...]:
        """The policies that the sampler chooses among."""
        return tuple(name for name in self.policies if name not in self.settings)

    @cached_property
    def fixed(self) -> list[tuple[str, dict[str, Any]]]:
        """The first trials: the default of every policy, then the other settings of those that have a few."""
        defaults = [
            (name, {key: each.default for key, each in self.parameters[name].items()}) for name in self.policies
        ]
        rest = [(name, point) for name, points in self.settings.items() for point in points]
        return defaults + [each for each in rest if each not in defaults]

    def suggest(self, trial: Trial, before: Callable[[str], None] = lambda purpose: None) -> tuple[str, dict[str, Any]]:
        """The policy of a trial and its parameters; ``before`` is called before each draw, with what is drawn."""
        before("policy")
        if trial.number < len(self.fixed) and self.fixed[trial.number][0] not in self.open:
            name = str(trial.suggest_categorical("fixed policy", self.policies))
        else:
            name = str(trial.suggest_categorical("policy", self.open))
        values = {}
        for key, parameter in self.parameters[name].items():
            before(key)
            values[key] = _suggest_value(trial, f"{name}.{key}", parameter)
        return name, values

    def enqueue(self, study: Study, number: int) -> None:
        """Let Optuna's next trial be one of the first."""
        name, values = self.fixed[number]
        fixed = {"policy" if name in self.open else "fixed policy": name}
        study.enqueue_trial({**fixed, **{f"{name}.{key}": value for key, value in values.items()}})

    def digest(self) -> str:
        """Changes with the policies, their parameters, ranges, defaults, or their source."""
        parts = [
            [name, describe(make_policy(name)).source_sha256, [repr(each) for each in parameters(policy_class(name))]]
            for name in self.policies
        ]
        return digest(parts)


def search(
    scenario: Scenario,
    *,
    policies: Sequence[str] | None = None,
    trials: int = 200,
    seed: int | None = None,
    storage: str | Path | None = None,
    study: str | None = None,
    workers: int | None = None,
    sampler: str = "tpe",
    batch: int = BATCH,
    progress: Progress | None = None,
) -> SearchResult:
    """Look for the policy and parameters with the best objective.

    The defaults of all policies come first, so that the best is never worse than a default; then the other settings of
    policies that have a few; then what the sampler asks for (nothing, where no policy has a range).

    A search that was stopped goes on where it was when called again with the same arguments, and ends as if it had not
    been stopped. A finished one goes on when ``trials`` is larger; it then equals one long search if the old number is
    a multiple of ``batch``.

    Args:
        scenario: what is simulated.
        policies: names as :func:`~steelyard.policies.policy_class` takes them; without, those of
            :data:`~steelyard.policies.DEFAULTS`.
        trials: how many there shall be in the end, at least the number of policies.
        seed: of the sampler and of the simulated noise; the scenario's by default.
        storage: path of a journal file, an Optuna URL, or None: in memory.
        study: name within the storage.
        workers: most processes that evaluate beside this one; the number of processors less one by default.
        sampler: ``tpe`` or ``random``.
        batch: trials that are asked with the same history.
        progress: called with trials done and trials in all.

    Raises:
        InputError: an argument is wrong, or the storage holds another search.
        Infeasible: no policy's default has a plan for the scenario.
    """
    space = Space.of(list(DEFAULTS) if policies is None else policies)
    trials = trials if space.open else min(trials, len(space.fixed))
    _check_numbers(trials, batch, workers, sampler, len(space.policies))
    seed = scenario.seed if seed is None else seed
    started = time.perf_counter()
    _check_objective(scenario, space, seed)
    decides = identity(scenario, space.policies, seed=seed, sampler=sampler, batch=batch)
    with Evaluator(scenario, seed, _workers(workers)) as evaluator, _quiet_optuna(), open_storage(storage) as place:
        opened = _open_study(place, study or STUDY, sampler, decides)
        fresh = _run_batches(opened, space, evaluator, seed=seed, trials=trials, batch=batch, progress=progress)
        rows = tuple(_row(each) for each in opened.get_trials(deepcopy=False) if each.state.is_finished())
    seconds = time.perf_counter() - started
    best = min((row for row in rows if row.value is not None), key=_rank)
    assert best.value is not None
    return SearchResult(
        name=best.policy,
        parameters=best.parameters,
        value=best.value,
        trials=rows,
        seconds=seconds,
        trials_per_s=fresh / seconds,
        storage=_shown(storage),
        sampler=sampler,
        seed=seed,
        scenario=scenario.name,
        scenario_sha256=decides["scenario_sha256"],
        objective=scenario.objective.metric,
    )


def write_best(result: SearchResult, path: str | Path) -> Path:
    """Write ``best.toml``: the best policy, which ``--policy best.toml`` takes, and how it was found (no clock)."""
    target = Path(path)
    document = {
        "policy": {"name": result.name, "parameters": result.parameters},
        "search": {
            "objective": result.objective,
            "value": result.value,
            "seed": result.seed,
            "sampler": result.sampler,
            "trials": len(result.trials),
            "scenario": result.scenario,
            "scenario_sha256": result.scenario_sha256,
        },
    }
    write_text(target, to_toml(document))
    return target


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
    for row in sorted((row for row in result.trials if row.value is not None), key=_rank):
        if len(found) >= count:
            break
        policy = make_policy(row.policy, row.parameters)
        plan = allocate(policy, view, scenario)
        if plan.sha256 not in seen:
            seen.add(plan.sha256)
            found.append((policy, plan))
    return found


def _run_batches(
    study: Study,
    space: Space,
    evaluator: Evaluator,
    *,
    seed: int,
    trials: int,
    batch: int,
    progress: Progress | None,
) -> int:
    """Ask and tell batch by batch up to ``trials``; how many were evaluated."""
    fresh = 0
    existing = study.get_trials(deepcopy=False)
    for first in range(0, trials, batch):
        numbers = range(first, min(first + batch, trials))
        asked = []
        for trial in _ask(study, space, numbers, existing):
            evaluator.submit(*_suggest(study, trial, space, seed))
            asked.append(trial)
        for trial, outcome in zip(asked, evaluator.outcomes(), strict=True):
            _tell(study, trial, outcome)
        fresh += len(asked)
        if progress is not None:
            progress(numbers[-1] + 1, trials)
    return fresh


def _tell(study: Study, trial: Trial, outcome: Outcome) -> None:
    from optuna.trial import TrialState

    value, reason = outcome
    if value is None:
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.PRUNED)  # FAIL would hide it from the sampler
    else:
        study.tell(trial, value)


def _ask(study: Study, space: Space, numbers: range, existing: Sequence[FrozenTrial]) -> Iterator[Trial]:
    """The trials of a batch that are not finished: those that a killed search left behind, and new ones."""
    from optuna.trial import Trial, TrialState

    for number in numbers:
        left = existing[number].state if number < len(existing) else None
        if left is not None and left.is_finished():
            continue
        if left == TrialState.RUNNING:
            yield Trial(study, existing[number]._trial_id)
            continue
        if left is None and number < len(space.fixed):
            space.enqueue(study, number)
        trial = study.ask()
        assert trial.number == number, "the study is held by one search"
        yield trial


def _suggest(study: Study, trial: Trial, space: Space, seed: int) -> tuple[str, dict[str, Any]]:
    """The policy of a trial and its parameters, each drawn with a seed of its own."""
    if trial.number >= len(space.fixed):
        _reseed(study, seed, trial.number, "relative")
        _ = trial.relative_params  # drawn by Optuna at first use: use them now, while the seed is theirs
    return space.suggest(trial, lambda purpose: _reseed(study, seed, trial.number, purpose))


def _suggest_value(trial: Trial, name: str, parameter: Parameter) -> Any:
    space = parameter.space
    if isinstance(space, Choice):
        return trial.suggest_categorical(name, space.options)
    assert isinstance(space, Range), "searchable() gives only parameters with a range"
    if parameter.type is int:
        return trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.log)


def _reseed(study: Study, seed: int, number: int, purpose: str) -> None:
    """Give the sampler the seed of one draw.

    Optuna has no public way to do it, and a new sampler for each draw would read the whole history again.
    """
    text = f"{seed}/{number}/{purpose}"
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    sampler: Any = study.sampler
    sampler._rng.rng.seed(value)
    inner = getattr(sampler, "_random_sampler", None)
    if inner is not None:
        inner._rng.rng.seed(value)


def make_sampler(name: str) -> Any:
    """The Optuna sampler of a name, as the search uses it: without constant liar, whose view depends on timing."""
    from optuna.samplers import RandomSampler, TPESampler

    return TPESampler(seed=0, constant_liar=False) if name == "tpe" else RandomSampler(seed=0)


def _create_study(**arguments: Any) -> Study:
    import optuna

    return optuna.create_study(direction="maximize", **arguments)


def _open_study(place: Any, name: str, sampler: str, decides: dict[str, Any]) -> Study:
    """Create the study, or open it and check that it is the same search."""
    import optuna

    # Not load_if_exists: that writes into the storage before it looks.
    make = optuna.load_study if name in optuna.get_all_study_names(place) else _create_study
    study = make(storage=place, study_name=name, sampler=make_sampler(sampler))
    kept = study.user_attrs.get("identity")
    if kept is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("identity", decides)
    elif kept != decides:
        differs = [key for key in decides if not isinstance(kept, dict) or kept.get(key) != decides[key]]
        problem = f"study {name!r} holds another search: {', '.join(differs)} differ"
        raise InputError("storage", problem, "give another storage or study")
    return study


def identity(
    scenario: Scenario,
    policies: Sequence[str] | None = None,
    *,
    seed: int | None = None,
    sampler: str = "tpe",
    batch: int = BATCH,
) -> dict[str, Any]:
    """What decides a search's outcome, as far as it can be known beforehand; arguments as :func:`search` takes them.

    Raises:
        InputError: an unknown policy, or none.
    """
    space = Space.of(list(DEFAULTS) if policies is None else policies)
    return {
        "scenario_sha256": digest(scenario.model_dump(mode="json")),
        "policies": list(space.policies),
        "space_sha256": space.digest(),
        "seed": scenario.seed if seed is None else seed,
        "sampler": sampler,
        "batch": batch,
        "model_version": MODEL_VERSION,
    }


def _row(trial: FrozenTrial) -> TrialRow:
    name = str(trial.params.get("policy") or trial.params["fixed policy"])
    return TrialRow(
        number=trial.number,
        policy=name,
        parameters={key.removeprefix(f"{name}."): value for key, value in trial.params.items() if "." in key},
        value=trial.value,
        state="infeasible" if trial.value is None else "complete",
        reason=str(trial.user_attrs.get("reason", "")),
    )


def _rank(row: TrialRow) -> tuple[float, int]:
    assert row.value is not None
    return (-row.value, row.number)


def _check_numbers(trials: int, batch: int, workers: int | None, sampler: str, policies: int) -> None:
    if trials < policies:
        mend = "ask for more trials, or name fewer policies"
        raise InputError("trials", f"{trials} do not hold the defaults of {policies} policies", mend)
    if batch < 1:
        raise InputError("batch", f"is {batch}", "at least 1")
    if workers is not None and workers < 0:
        raise InputError("workers", f"is {workers}", "0 (this process alone) or more")
    if sampler not in SAMPLERS:
        raise InputError("sampler", f"{sampler!r} is unknown", f"one of {', '.join(SAMPLERS)}")


def _check_objective(scenario: Scenario, space: Space, seed: int) -> None:
    """Fail before anything is written where no default has a value."""
    problem = ""
    for name in space.policies:
        value, reason = evaluate(scenario, seed, name, {})
        if value is not None:
            return
        problem = problem or f"{name}: {reason}"
    raise Infeasible("search", f"no policy has a value for this scenario; {problem}", "")


def _workers(wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable - 1


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna says on stderr what the caller gets as a result; the caller's own level is put back."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _shown(storage: str | Path | None) -> str:
    """The storage as a record may hold it: no password of a database, no path of this machine."""
    if storage is None:
        return "memory"
    text = str(storage)
    return f"{text.partition('://')[0]}://..." if "://" in text else Path(text).name
