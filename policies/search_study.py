"""The study of a search: asked and told in batches, so that it repeats exactly, also across a kill and a resume.

1. Trials come in batches at fixed multiples of ``batch``. All of a batch are asked before one is told, and told in the
   order of asking: trial n is asked when exactly the trials of earlier batches are told.
2. The sampler is reseeded from (seed, trial number, parameter) before every draw, so that a draw depends on nothing
   but the history, and a trial that was killed between two of its parameters gets the same ones again.
3. On resuming, the trials that were running are finished first, in their order.
4. What prunes knows earlier batches only, and of its own batch the stages before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from .search_goal import Goal, Outcome
from .search_samplers import make_sampler, reseed
from .search_space import Space
from .search_stages import BOUND, NONE, Judge, Part, simulate_stage, stages, value_so_far
from .workers import Evaluator

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

Progress = Callable[[int, int], None]
Asked = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """How a study goes on: all that decides which trials it has."""

    space: Space
    goal: Goal
    seed: int
    trials: int
    batch: int
    sampler: str
    pruner: str = NONE


def open_study(place: Any, name: str, course: Course, decides: dict[str, Any]) -> Study:
    """Create the study, or open it and check that it is the same search.

    Raises:
        InputError: the storage holds another search under this name.
    """
    import optuna

    sampler = make_sampler(course.sampler, course.space, course.seed)
    # Not load_if_exists: that writes into the storage before it looks.
    if name in optuna.get_all_study_names(place):
        study = optuna.load_study(storage=place, study_name=name, sampler=sampler)
    else:
        directions: list[Any] = ["maximize"] * len(course.goal.metrics)
        study = optuna.create_study(storage=place, study_name=name, sampler=sampler, directions=directions)
    kept = study.user_attrs.get("identity")
    if kept is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("identity", decides)
    elif kept != decides:
        known = kept if isinstance(kept, dict) else {}
        differs = [key for key in {**decides, **known} if known.get(key) != decides.get(key)]
        problem = f"study {name!r} holds another search: {', '.join(differs)} differ"
        raise InputError("storage", problem, "give another storage or study")
    return study


def run_batches(study: Study, course: Course, evaluator: Evaluator, progress: Progress | None) -> int:
    """Ask and tell batch by batch up to the last trial; how many were evaluated."""
    fresh = 0
    existing = study.get_trials(deepcopy=False)
    batches = _Batches(course, evaluator)
    for first in range(0, course.trials, course.batch):
        numbers = range(first, min(first + course.batch, course.trials))
        left = [existing[number] for number in numbers if number < len(existing)]
        if len(left) == len(numbers) and all(each.state.is_finished() for each in left):
            batches.seen([outcome_of(each) for each in left])
        else:
            fresh += batches.run(study, numbers, existing)
        if progress is not None:
            progress(numbers[-1] + 1, course.trials)
    return fresh


class _Batches:
    """Evaluates batch after batch, and remembers what pruning has to know of earlier ones."""

    def __init__(self, course: Course, evaluator: Evaluator) -> None:
        self._course = course
        self._evaluator = evaluator
        self._judge = Judge(course.pruner) if course.pruner not in (NONE, BOUND) else None
        self._best: float | None = None

    def run(self, study: Study, numbers: range, existing: Sequence[FrozenTrial]) -> int:
        """Ask, evaluate and tell a batch; how many trials were asked."""
        if self._judge is not None:
            return self._run_staged(study, numbers, existing)
        asked = []
        beat = self._best if self._course.pruner == BOUND else None
        for trial in _ask(study, self._course.space, numbers, existing):
            self._evaluator.submit(Goal.evaluate, *_suggest(study, trial, self._course), beat)
            asked.append(trial)
        outcomes: list[Outcome] = self._evaluator.outcomes()
        self._tell_all(study, asked, outcomes)
        done = [number for number in numbers if number < len(existing) and existing[number].state.is_finished()]
        self.seen([outcome_of(existing[number]) for number in done] + outcomes)
        return len(asked)

    def seen(self, outcomes: Sequence[Outcome]) -> None:
        """A batch that was evaluated before."""
        if self._judge is not None:
            self._judge.replay(outcomes)
        values = [each.values[0] for each in outcomes if each.values is not None and each.counts]
        self._best = max([*values, *([] if self._best is None else [self._best])], default=None)

    def _run_staged(self, study: Study, numbers: range, existing: Sequence[FrozenTrial]) -> int:
        """The same, stage by stage: of trials that were told before a kill too, as the judge has met them."""
        trials = {trial.number: trial for trial in _ask(study, self._course.space, numbers, existing)}
        points = [
            _suggest(study, trials[number], self._course)
            if number in trials
            else self._course.space.policy_of(existing[number].params)
            for number in numbers
        ]
        outcomes = self._by_stages(points)
        untold = [(trials[number], outcomes[place]) for place, number in enumerate(numbers) if number in trials]
        self._tell_all(study, [trial for trial, _ in untold], [outcome for _, outcome in untold])
        return len(trials)

    def _tell_all(self, study: Study, trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> None:
        for trial, outcome in zip(trials, outcomes, strict=True):
            _tell(study, trial, outcome, self._course.goal.constraints)

    def _by_stages(self, points: Sequence[Asked]) -> list[Outcome]:
        assert self._judge is not None
        goal = self._course.goal
        parts: list[list[Part]] = [[] for _ in points]
        steps: list[list[tuple[int, float]]] = [[] for _ in points]
        outcomes: dict[int, Outcome] = {}
        self._judge.begin(len(points))
        for stage in range(len(stages(goal))):
            going = [place for place in range(len(points)) if place not in outcomes]
            for place in going:
                self._evaluator.submit(simulate_stage, *points[place], stage)
            for place, part in zip(going, self._evaluator.outcomes(), strict=True):
                if part.reason:
                    outcomes[place] = Outcome(None, part.reason, steps=tuple(steps[place]))
                    continue
                parts[place].append(part)
                value = value_so_far(goal, parts[place])
                steps[place].append((stage + 1, value))
                hopeless = self._judge.hopeless(place, stage + 1, value)
                if part.last:
                    outcomes[place] = Outcome((value,), steps=tuple(steps[place]))
                elif hopeless:
                    reason = f"{value:.6g} after stage {stage + 1}"
                    outcomes[place] = Outcome(None, reason, hopeless=True, steps=tuple(steps[place]))
        ordered = [outcomes[place] for place in range(len(points))]
        self._judge.end(ordered)
        return ordered


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna says on stderr what the caller gets as a result; the caller's own level is put back."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """What was told of a finished trial."""
    from optuna.trial import TrialState

    return Outcome(
        tuple(trial.values) if trial.state == TrialState.COMPLETE else None,  # Optuna gives pruned ones a value too
        str(trial.user_attrs.get("reason", "")),
        tuple(trial.constraints.values()),
        bool(trial.user_attrs.get("hopeless", False)),
        tuple(sorted(trial.intermediate_values.items())),
    )


def _tell(study: Study, trial: Trial, outcome: Outcome, constraints: Sequence[str]) -> None:
    from optuna.trial import TrialState

    if outcome.steps or outcome.violations:
        _note(study, trial, outcome, constraints)
    if outcome.values is not None:
        study.tell(trial, list(outcome.values))
        return
    trial.set_user_attr("reason", outcome.reason)
    if outcome.hopeless:
        trial.set_user_attr("hopeless", True)
    study.tell(trial, state=TrialState.PRUNED)  # FAIL would hide it from the sampler


def _note(study: Study, trial: Trial, outcome: Outcome, constraints: Sequence[str]) -> None:
    """Steps and constraints; not again what a killed search noted already."""
    noted = study._storage.get_trial(trial._trial_id)
    for step, value in outcome.steps:
        if step not in noted.intermediate_values:
            trial.report(value, step)
    for name, violation in zip(constraints, outcome.violations, strict=False):
        if name not in noted.constraints:
            trial.set_constraint(name, violation)


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


def _suggest(study: Study, trial: Trial, course: Course) -> Asked:
    """The policy of a trial and its parameters, each drawn with a seed of its own."""
    space = course.space
    # A trial that has all its parameters was drawn from an earlier history: some samplers note what they draw now.
    whole = space.joint and space.distributions.keys() <= trial.params.keys()
    if trial.number >= len(space.fixed) and not whole:
        reseed(study.sampler, course.seed, trial.number, "relative")
        _ = trial.relative_params  # drawn by Optuna at first use: use them now, while the seed is theirs
    return space.suggest(trial, lambda purpose: reseed(study.sampler, course.seed, trial.number, purpose))
