"""Replay of runs in which lanes slow down and plans may change: predicted, then followed as the policies decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..results.ledger import ledgers, quantiles, step_times
from ..results.metrics import bootstrap_interval
from ..results.record import SCHEMA_VERSION, Manifest, PolicyRecord, Run, digest, event_frame
from ..results.store import to_json, write_run, write_text
from ..sim import cost
from ..sim.adaptive import at_its_best
from ..sim.bounds import work_bound_s
from ..sim.engine import simulate
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.summary import summarise
from ..sim.view import Policy, describe
from .calibrate import Report, Tick
from .course import Course, refuse_disturbances, run_course
from .intervals import Row
from .launch import require_torch
from .proof import MOST_GRADIENT_ERROR
from .replay import Entry, Study, hold_out, lanes_of, prove_entries, provenance, slug, study_name, written_utc
from .resolving import job_of


def replay_courses(
    scenario: Scenario,
    policies: Sequence[Policy],
    runs: Path,
    *,
    seed: int,
    notes: Sequence[str] = (),
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Study:
    """Predict, then run, what policies do while lanes slow down: ``replay.launches`` runs of ``sampling.steps`` each.

    What the policies do in simulation says which micro-batch sizes are held out of the calibration, and which plans are
    proven beforehand; those that they come to only in reality are named in the record.

    Raises:
        InputError: a disturbance that real lanes cannot have, or a plan that they cannot run, or run wrong.
        WorkerFailedError: a lane died or hung.
    """
    refuse_disturbances(scenario)
    require_torch()
    lanes = lanes_of(scenario)
    records = [describe(policy) for policy in policies]
    expected = [entries_of(simulate(scenario, policy, seed=seed), describe(policy)) for policy in policies]
    reduced = hold_out(scenario, [entry for own in expected for entry in own])
    folder = runs / study_name(scenario, seed)
    job, data = job_of(scenario.workload, scenario.training, runs / "calibrations", seed=0)
    predicted, sealed = predict_courses(reduced, policies, folder, seed, notes)
    report(f"{len(predicted)} runs predicted; sha256 {sealed[:16]} written to {folder / 'predictions.json'}")
    distinct = {entry.plan.sha256: entry for own in expected for entry in own}
    proven, failed = prove_entries(scenario, list(distinct.values()), job, data, report=report)
    if failed:  # a policy comes to its plans under way: none of them can be left out
        raise InputError("plans", "; ".join(failed), "report it: the runtime is wrong")
    errors = {entry.plan.sha256: entry.gradient_error for entry in proven}
    courses: list[list[Course]] = [[] for _ in policies]
    rows: list[list[Row]] = [[] for _ in policies]
    total = scenario.replay.launches * len(policies)
    for number in range(total):
        launch, index = divmod(number, len(policies))
        report(f"run {launch + 1} of {scenario.replay.launches} of {records[index].label()}: a fresh process per lane")
        course = Course(scenario, policies[index], launch)
        rows[index] += run_course(course, lanes, job, data)[1]
        courses[index].append(course)
        tick(number + 1, total)
    measured = [
        measured_course(run, own, found, errors, sealed=sealed, notes=notes, seed=seed)
        for run, own, found in zip(predicted, courses, rows, strict=True)
    ]
    for number, run in enumerate(measured):
        write_run(run, folder / f"{number:02d}-{slug(run.manifest.label)}-measured")
    return Study(folder, predicted, measured)


def entries_of(run: Run, record: PolicyRecord) -> list[Entry]:
    """The plans that a simulated run went through."""
    plans = [Plan.parse(each["plan"]) for each in run.decisions if each["changed"]] or [Plan.parse(run.plan)]
    return [Entry(record.label(), record, plan) for plan in plans]


def predict_courses(
    scenario: Scenario, policies: Sequence[Policy], folder: Path, seed: int, notes: Sequence[str]
) -> tuple[list[Run], str]:
    """Simulate each policy's run and write the predictions, with their digest, to disk; nothing has been measured."""
    runs, lines = [], []
    for number, policy in enumerate(policies):
        run = simulate(scenario, policy, seed=seed)
        manifest = run.manifest.model_copy(update={"notes": list(notes), "provenance": provenance(scenario)})
        run = Run(manifest=manifest, plan=run.plan, summary=run.summary, events=run.events, decisions=run.decisions)
        write_run(run, folder / f"{number:02d}-{slug(manifest.label)}-predicted")
        runs.append(run)
        lines.append(
            {
                "label": manifest.label,
                "policy": manifest.policy.model_dump(mode="json"),
                "plan": run.plan,
                "run_id": manifest.run_id,
                "step_time_s": run.summary.step_time_s.model_dump(mode="json"),
                "median_interval_s": list(run.summary.median_interval_s),
                "decisions": run.decisions,
            }
        )
    sealed = digest(lines)
    document = {"schema_version": SCHEMA_VERSION, "written_utc": written_utc(), "sha256": sealed, "predictions": lines}
    write_text(folder / "predictions.json", to_json(document))
    return runs, sealed


def measured_course(
    prediction: Run,
    courses: Sequence[Course],
    rows: Sequence[Row],
    errors: dict[str, float | None],
    *,
    sealed: str,
    notes: Sequence[str],
    seed: int,
) -> Run:
    """One policy's measured run, put together from its launches."""
    scenario = courses[0].scenario
    names = courses[0].names
    events = event_frame(rows).sort_values(["launch", "start_s", "device"], kind="stable", ignore_index=True)
    times = step_times(events)
    pooled = quantiles([seconds for each in times.values() for seconds in each])
    samples: dict[str, float] = dict.fromkeys(names, 0.0)
    past = [entry for course in courses for entry in course.history]
    for entry in past:
        for name, own in entry["devices"].items():
            samples[name] += own["samples"] / len(past)
    devices = {
        name: ledger.model_copy(update={"samples": round(samples[name])})
        for name, ledger in ledgers(events, names).items()
    }
    bound_s = work_bound_s(at_its_best(scenario))
    summary = summarise(
        scenario,
        step_time=pooled,
        launch_medians=[quantiles(times[launch]).p50 for launch in sorted(times)],
        devices=devices,
        bound_s=bound_s,
        work_bound_s=bound_s,
        steps=sum(map(len, times.values())),
        fidelity="measured",
        median_interval_s=bootstrap_interval(list(times.values()), seed),
        pace_s=pooled.mean,
    )
    plans = {plan.sha256 for course in courses for _, plan in course.plans}
    provided: dict[str, Any] = {
        **provenance(scenario),
        "gradient_errors": {sha256: errors[sha256] for sha256 in sorted(plans & errors.keys())},
        "unproven_plans": sorted(plans - errors.keys()),
        "most_gradient_error": MOST_GRADIENT_ERROR,
    }
    plan = courses[0].plans[0][1]
    manifest = Manifest(
        run_id=digest([prediction.manifest.run_id, sealed, written_utc()])[:16],
        kind="measured",
        label=prediction.manifest.label,
        scenario=scenario.model_dump(mode="json"),
        policy=prediction.manifest.policy,
        plan_sha256=plan.sha256,
        seed=seed,
        model_version=cost.MODEL_VERSION,
        prediction_sha256=sealed,
        predicted_run_id=prediction.manifest.run_id,
        notes=list(notes),
        provenance=provided,
    )
    decisions = [each for course in courses for each in course.decisions]
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events, decisions=decisions)
