"""What a run regains after a slowdown: by definition, and beside its prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.compare import compare
from steelyard.results.pooled import CaseResult, Observation, pool
from steelyard.results.record import Recovery, Run
from steelyard.results.recovery import WITHIN_STEPS, launches_kept, recovery

SEEN = [Observation(inside=True, width_percent=1.0)]


@given(before=st.floats(0.01, 1.0), after=st.floats(0.01, 1.0), change=st.integers(1, 30), left=st.integers(1, 30))
def test_only_steps_after_those_to_recover_are_judged(before: float, after: float, change: int, left: int) -> None:
    times = {launch: [before] * (change + WITHIN_STEPS - 1) + [after] * left for launch in (0, 1)}
    found = recovery(times, change, optimum_s=0.02)
    assert found is not None
    assert found.step_s == after
    assert found.share_percent == pytest.approx(100 * 0.02 / after)


def test_a_run_that_ends_before_is_not_judged() -> None:
    assert recovery({0: [1.0] * 30}, 31 - WITHIN_STEPS, 1.0) is None


def with_recovery(run: Run, share: float, *, asked: Sequence[tuple[int, int, bool]] = ()) -> Run:
    """The run with what it regained, and its decisions: launch, step, and whether the plan changed."""
    found = Recovery(last_change=5, optimum_s=share / 100, step_s=1.0, share_percent=share)
    decisions: list[dict[str, Any]] = [
        {"launch": launch, "step": step, "changed": changed} for launch, step, changed in [(0, 0, True), *asked]
    ]
    return dataclasses.replace(run, summary=run.summary.model_copy(update={"recovery": found}), decisions=decisions)


ASKED = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.booleans()), max_size=12)


@given(asked=ASKED)
def test_a_launch_counts_as_kept_where_no_answer_changed_anything(study: list[Run], asked: list[Any]) -> None:
    run = with_recovery(study[0], 80.0, asked=asked)
    launches = {launch for launch, _, _ in asked}
    kept = {launch for launch in launches if not any(changed for other, _, changed in asked if other == launch)}
    assert launches_kept(run) == (len(kept) if asked else None)


def test_whoever_was_asked_is_judged_also_where_it_kept_its_plan(study: list[Run]) -> None:
    """The first measured plan was never asked, the second one kept its plan, the third changed it in step 7."""
    measured = [run for run in study if run.manifest.kind == "measured" and run.manifest.twin_of is None][:3]
    predictions = {run.manifest.run_id: run for run in study}
    answers: list[list[tuple[int, int, bool]]] = [[], [(0, 7, False), (1, 7, False)], [(0, 7, True)]]
    shares = [50.0, 60.0, 80.0]
    runs = []
    for run, asked, share, foreseen in zip(measured, answers, shares, (50.0, 70.0, 88.0), strict=True):
        assert run.manifest.predicted_run_id is not None
        runs.append(with_recovery(predictions[run.manifest.predicted_run_id], foreseen))
        runs.append(with_recovery(run, share, asked=asked))
    comparison = compare(runs)
    rows = {row.label: row for row in comparison.plans}
    found = [rows[run.manifest.label] for run in measured]
    assert [row.regained_percent for row in found] == [None, 60.0, 80.0]
    assert [row.kept_plan_launches for row in found] == [None, 2, 0]
    assert found[2].regained_predicted_percent == 88.0
    (note,) = [note for note in comparison.notes if "kept its plan" in note]
    assert note.startswith(f"{found[1].label} was asked and kept its plan in 2 of ")
    assert "60 %" in note
    pooled = pool([CaseResult(name="one", family="bert", lanes=2, comparison=comparison, observations=SEEN)])
    assert pooled.regained_percent == 80.0, "of whom most was predicted"
    assert pooled.least_regained_percent == 60.0
    assert pooled.worst_regained_error_percent == pytest.approx(100 * (70 / 60 - 1))
    assert pooled.kept_plans == 1


def test_without_slowdowns_there_is_nothing_to_regain(study: list[Run]) -> None:
    comparison = compare(study)
    found = pool([CaseResult(name="one", family="bert", lanes=2, comparison=comparison, observations=SEEN)])
    assert found.regained_percent is found.least_regained_percent is found.worst_regained_error_percent is None
