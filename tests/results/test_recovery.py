"""What a run regains after a slowdown: by definition, and beside its prediction."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.compare import compare
from steelyard.results.pooled import CaseResult, Observation, pool
from steelyard.results.record import Recovery, Run
from steelyard.results.recovery import WITHIN_STEPS, adapted, recovery

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


def with_recovery(run: Run, share: float, *, changed_at: int | None) -> Run:
    found = Recovery(last_change=5, optimum_s=share / 100, step_s=1.0, share_percent=share)
    decisions: list[dict[str, Any]] = [] if changed_at is None else [{"changed": True, "step": changed_at}]
    return dataclasses.replace(run, summary=run.summary.model_copy(update={"recovery": found}), decisions=decisions)


def test_only_plans_that_changed_under_way_are_judged(study: list[Run]) -> None:
    """The first measured plan changes nothing, the second one at its start, the third one in step 7."""
    measured = [run for run in study if run.manifest.kind == "measured" and run.manifest.twin_of is None][:3]
    predictions = {run.manifest.run_id: run for run in study}
    runs = []
    for run, changed_at in zip(measured, (None, 0, 7), strict=True):
        assert run.manifest.predicted_run_id is not None
        runs.append(with_recovery(predictions[run.manifest.predicted_run_id], 88.0, changed_at=None))
        runs.append(with_recovery(run, 80.0, changed_at=changed_at))
    assert [adapted(run) for run in runs if run.manifest.kind == "measured"] == [False, False, True]
    comparison = compare(runs)
    rows = {row.label: row for row in comparison.plans}
    assert [rows[run.manifest.label].regained_percent for run in measured] == [None, None, 80.0]
    assert rows[measured[2].manifest.label].regained_predicted_percent == 88.0
    found = pool([CaseResult(name="one", family="bert", lanes=2, comparison=comparison, observations=SEEN)])
    assert found.least_regained_percent == 80.0
    assert found.worst_regained_error_percent == pytest.approx(10.0)


def test_without_slowdowns_there_is_nothing_to_regain(study: list[Run]) -> None:
    comparison = compare(study)
    found = pool([CaseResult(name="one", family="bert", lanes=2, comparison=comparison, observations=SEEN)])
    assert found.least_regained_percent is found.worst_regained_error_percent is None
