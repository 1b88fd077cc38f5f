"""Replay of runs in which lanes slow down and plans may change: predicted, then followed as the policies decide."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..results.errors import WorkerFailedError, WrongGradientError
from ..results.ledger import ledgers, quantiles, step_times
from ..results.metrics import bootstrap_interval, with_model_error
from ..results.record import DeviceLedger, Recovery, Run, digest
from ..results.recovery import recovery
from ..results.store import write_run
from ..sim.adaptive import at_its_best, run_courses
from ..sim.bounds import work_bound_s
from ..sim.disturbances import disturbed, factors_at
from ..sim.engine import record_courses
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.summary import summarise
from ..sim.view import Fixed, Policy, describe
from .calibrate import Report, Tick
from .condition import condition
from .course import Course, course_rows, refuse_disturbances, run_course
from .effort import Seen, Turn, next_turn
from .entries import Entry, unused_label
from .followed import Followed, circumstances, slowing_notes
from .gauge import not_gauged
from .held_out import hold_out, sizes_in
from .launch import LaunchResult, Task, require_torch, run_group
from .live import Planned, watcher_of
from .measured import measured_events, measured_manifest, split_bound_s
from .pacing import Pacing
from .proof import MOST_GRADIENT_ERROR
from .protocol import Measurement
from .replay import begun_common, gauged, prove_entries, tell
from .resolving import job_of
from .runnable import lanes_of
from .sealing import model_error, predicted_line, provenance, seal, study_name
from .unfinished import Launches, Study, keep, killed, run_folder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Contender:
    """A policy that is followed: its label, its prediction, and whose A/A twin it is."""

    label: str
    policy: Policy
    prediction: Run
    twin_of: str | None = None


def replay_courses(
    scenario: Scenario,
    policies: Sequence[Policy],
    runs: Path,
    *,
    seed: int,
    budget_s: float | None = None,
    notes: Sequence[str] = (),
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Study:
    """Predict, then run, what policies do while lanes slow down: ``replay.launches`` runs of ``sampling.steps`` each.

    With a budget there are as many runs as it has time for, at least one of each policy.

    No plan's steps are predicted from a measurement of its own micro-batch sizes. The plans that policies come to in
    simulation are proven beforehand; those that they come to only in reality are named in the record. The policy
    predicted to be fastest is followed a second time as if it were another: its A/A twin.

    Raises:
        InputError: a disturbance that real lanes cannot have, or a plan that they cannot run.
        WrongGradientError: a plan that they run wrong.
        WorkerFailedError: a lane died or hung; runs that were complete before are kept.
    """
    refuse_disturbances(scenario)
    require_torch()
    lanes_of(scenario)
    named, same = labelled(policies)
    # What cannot be measured is refused before anything runs.
    own = {size for label, policy in named for size in held_out_of(foretold(scenario, policy, seed, label))}
    job, data = job_of(scenario.workload, scenario.training, runs / "calibrations", seed=0)
    pacing = paced(scenario, job, data, own, report=report)
    scenario, drifted = gauged(scenario, job, data, report=report).at_present_speed(but=own)
    found = [*drifted, *pacing.notes()]
    tell(found, report)
    folder, notes = runs / study_name(scenario, seed), [*notes, *found, *not_gauged(scenario), *same]
    contenders, sealed = predict_courses(scenario, named, folder, seed=seed, notes=notes)
    report(f"{len(contenders)} runs predicted; sha256 {sealed[:16]} written to {folder / 'predictions.json'}")
    distinct = {entry.plan.sha256: entry for each in contenders for entry in entries_of(each)}
    proven, failed = prove_entries(scenario, list(distinct.values()), job, data, report=report)
    if failed:  # a policy comes to its plans under way: none of them can be left out
        raise WrongGradientError(f"{'; '.join(failed)} (report it: the runtime is wrong)")
    predicted = [each.prediction for each in contenders]
    contenders.append(twin(contenders))
    if (watcher := watcher_of(tick)) is not None:
        batch = scenario.workload.global_batch
        watcher.plans([Planned(each.label, batch, each.prediction.summary.step_time_s.p50) for each in contenders])
    launches = Launches(folder)
    begun = {**begun_common(scenario, seed, sealed, notes), **begun_of(contenders, proven)}
    with launches.measuring(begun):
        followed, measurement = follow(
            scenario, contenders, job, data, launches, pacing=pacing, budget_s=budget_s, report=report, tick=tick
        )
        measured = measured_courses(scenario, contenders, followed, measurement, begun)
        return keep(launches, predicted, measured, measurement.stopped)


def paced(scenario: Scenario, job: Task, data: Path, but: Collection[int], *, report: Report) -> Pacing:
    """How to slow the lanes that a scenario slows down, so that they become as slow as it says."""
    lanes, timeout_s = lanes_of(scenario), scenario.replay.timeout_s

    def run(tasks: Sequence[Task], slowed: Collection[str]) -> LaunchResult:
        report("gauging the lanes that are slowed down under way: what their quota makes of it")
        return run_group(lanes, tasks, job, timeout_s=timeout_s, data=data, paced=slowed)

    return Pacing.by(scenario, run, but)


def labelled(policies: Sequence[Policy]) -> tuple[list[tuple[str, Policy]], list[str]]:
    """The different policies with labels that tell them apart, and a note for each that came up again."""
    found: list[tuple[str, Policy]] = []
    notes = []
    for policy in policies:
        label = describe(policy).label()
        if any(policy == other for _, other in found):
            notes.append(f"{label} was given twice: followed once")
        else:
            found.append((unused_label(label, {each for each, _ in found}), policy))
    return found, notes


def twin(contenders: Sequence[Contender]) -> Contender:
    """The one predicted to be fastest, once more."""
    fastest = min(contenders, key=lambda each: (each.prediction.summary.step_time_s.p50, each.label))
    return replace(fastest, label=f"{fastest.label} (twin)", twin_of=fastest.label)


def begun_of(contenders: Sequence[Contender], proven: Sequence[Entry]) -> dict[str, Any]:
    """What is measured, for whoever makes runs of complete launches, beside what all replays say."""
    found = [
        {"label": each.label, "predicted_run_id": each.prediction.manifest.run_id, "twin_of": each.twin_of}
        for each in contenders
    ]
    errors = {entry.plan.sha256: entry.gradient_error for entry in proven}
    return {"kind": "courses", "entries": found, "gradient_errors": errors}


def follow(
    scenario: Scenario,
    contenders: Sequence[Contender],
    job: Task,
    data: Path,
    launches: Launches,
    *,
    pacing: Pacing | None = None,
    budget_s: float | None = None,
    report: Report,
    tick: Tick,
) -> tuple[list[Followed], Measurement]:
    """Run all contenders in turn, as often as the scenario or a budget says; an early end keeps what was complete.

    Raises:
        KeyboardInterrupt, WorkerFailedError: not one run was complete.
    """
    lanes, asked = lanes_of(scenario), scenario.replay.launches
    found: list[Followed] = []
    seen = [Seen(each.prediction.summary.step_time_s.mean) for each in contenders]
    begin, run_s = time.monotonic(), 0.0
    result = Measurement(before=condition(), asked=asked * len(contenders))

    def left_s() -> float | None:
        return None if budget_s is None else budget_s - (time.monotonic() - begin)

    while (turn := next_turn(seen, asked, left_s=left_s(), run_s=run_s)).index is not None:
        index, number, started = turn.index, len(seen[turn.index].launches), time.monotonic()
        contender, total = contenders[index], max(result.asked, len(found) + 1)
        report(f"run {number + 1} of {max(asked, number + 1)} of {contender.label}: a fresh process per lane")
        course = Course(scenario, contender.policy, number, pacing)
        try:
            launch = run_course(course, lanes, job, data, index=index, tick=tick, before=len(found), total=total)
        except (KeyboardInterrupt, WorkerFailedError) as stopped:
            if not found:
                raise
            result.stopped, turn = stopped, Turn(None, str(stopped) or "interrupted")
            break
        found.append(Followed(index, course, launch))
        launches.add(found[-1].document())
        seen[index] = replace(seen[index], launches=(*seen[index].launches, (mean_step_s(found[-1]),)))
        run_s = max(run_s, time.monotonic() - started)
    result.reason = turn.reason
    result.launches = [each.launch for each in found]
    result.after = condition()
    return found, result


def mean_step_s(followed: Followed) -> float:
    """Seconds of a run's mean step, waiting for decisions and moving states included."""
    (times,) = step_times(measured_events(course_rows(followed.course, followed.launch))).values()
    return fmean(times)


def measured_courses(
    scenario: Scenario,
    contenders: Sequence[Contender],
    followed: Sequence[Followed],
    measurement: Measurement,
    begun: Mapping[str, Any],
) -> list[Run]:
    """A run of each contender that has a complete launch."""
    told = {**begun, "notes": [*begun["notes"], *measurement.notes]}
    own = [[each for each in followed if each.index == index] for index in range(len(contenders))]
    return [
        measured_course(scenario, contender, found, measurement, told)
        for contender, found in zip(contenders, own, strict=True)
        if found
    ]


def assembled_courses(begun: dict[str, Any], complete: Sequence[dict[str, Any]], predicted: Sequence[Run]) -> list[Run]:
    """The measured runs of a replay whose driver was killed."""
    scenario, by_id = Scenario.model_validate(begun["scenario"]), {run.manifest.run_id: run for run in predicted}
    contenders = []
    for each in begun["entries"]:
        run = by_id[each["predicted_run_id"]]
        contenders.append(Contender(each["label"], Fixed(Plan.parse(run.plan)), run, each["twin_of"]))
    followed = [Followed.parse(each, scenario) for each in complete]
    measurement = killed({**begun, "asked": begun["asked"] * len(contenders)})
    measurement.launches = [each.launch for each in followed]
    return measured_courses(scenario, contenders, followed, measurement, begun)


def entries_of(contender: Contender) -> list[Entry]:
    """The plans that its simulated run went through."""
    run, record = contender.prediction, contender.prediction.manifest.policy
    plans = [Plan.parse(each["plan"]) for each in run.decisions if each["changed"]] or [Plan.parse(run.plan)]
    return [Entry(record.label(), record, plan) for plan in plans]


def foretold(scenario: Scenario, policy: Policy, seed: int, label: str) -> Run:
    """A policy's run in simulation, each plan's steps from tables without that plan's own micro-batch sizes.

    The policy sees all tables, as it does in the real run: to hold out what it came to with other tables would leave
    in whatever it comes to without these. The record says which sizes each plan's steps knew nothing of.

    Raises:
        InputError: too few calibrated sizes are left of a lane beside those of a plan that it comes to.
    """
    reduced: dict[frozenset[int], Scenario] = {}

    def tables(plan: Plan) -> Scenario:
        sizes = frozenset(sizes_in([plan]))
        if sizes not in reduced:
            reduced[sizes] = hold_out(scenario, [plan])
        return reduced[sizes]

    courses = run_courses(scenario, policy, seed=seed, launches=scenario.sampling.launches, tables=tables)
    run = record_courses(scenario, policy, courses, seed=seed, label=label)
    own = {plan.sha256: sorted(sizes_in([plan])) for course in courses for plan, _, _ in course.plans}
    update = {"run_id": digest([run.manifest.run_id, own])[:16], "provenance": {"held_out_sizes": own}}
    return replace(run, manifest=run.manifest.model_copy(update=update))


def held_out_of(run: Run) -> set[int]:
    """The micro-batch sizes of all plans that a simulated run came to."""
    return {size for sizes in run.manifest.provenance["held_out_sizes"].values() for size in sizes}


def predict_courses(
    scenario: Scenario,
    named: Sequence[tuple[str, Policy]],
    folder: Path,
    *,
    seed: int,
    notes: Sequence[str],
) -> tuple[list[Contender], str]:
    """Simulate each policy's run and write the predictions, with their digest, to disk; none has run yet.

    Raises:
        InputError: as :func:`foretold`.
    """
    found, lines = [], []
    for number, (label, policy) in enumerate(named):
        run = foretold(scenario, policy, seed, label)
        told = {"notes": list(notes), "provenance": {**provenance(scenario), **run.manifest.provenance}}
        manifest = run.manifest.model_copy(update=told)
        interval = with_model_error(run.summary.median_interval_s, run.summary.step_time_s.p50, model_error(scenario))
        known = {"recovery": recovered(scenario, step_times(run.events)), "median_interval_s": interval}
        summary = run.summary.model_copy(update=known)
        run = replace(run, manifest=manifest, summary=summary)
        write_run(run, folder / run_folder(number, label, "predicted"))
        found.append(Contender(label, policy, run))
        lines.append({**predicted_line(run), "decisions": run.decisions})
    return found, seal(lines, folder)


def measured_course(
    scenario: Scenario,
    contender: Contender,
    followed: Sequence[Followed],
    measurement: Measurement,
    begun: Mapping[str, Any],
) -> Run:
    """One contender's measured run, put together from its launches."""
    courses, seed = [each.course for each in followed], begun["seed"]
    rows = [row for each in followed for row in course_rows(each.course, each.launch)]
    events = measured_events(rows)
    times = step_times(events)
    pooled = quantiles([seconds for each in times.values() for seconds in each])
    bound_s = work_bound_s(at_its_best(scenario))
    summary = summarise(
        scenario,
        step_time=pooled,
        launch_medians=[quantiles(times[launch]).p50 for launch in sorted(times)],
        devices=ledgers_of(courses, events),
        bound_s=bound_s,
        work_bound_s=bound_s,
        steps=sum(map(len, times.values())),
        fidelity="measured",
        median_interval_s=bootstrap_interval(list(times.values()), seed),
        pace_s=pooled.mean,
    )
    summary = summary.model_copy(update={"recovery": recovered(scenario, times)})
    found = {
        **(measurement.provenance or provenance(scenario)),
        **proofs(courses, begun["gradient_errors"]),
        **circumstances(measurement, followed),
    }
    label, sealed, plan = contender.label, begun["sha256"], courses[0].plans[0][1]
    manifest = measured_manifest(scenario, contender.prediction, label, sealed, seed=seed, plan_sha256=plan.sha256)
    told = {
        "label": label,
        "twin_of": contender.twin_of,
        "notes": [*begun["notes"], *slowing_notes(followed)],
        "provenance": found,
    }
    manifest = manifest.model_copy(update=told)
    decisions = [each for course in courses for each in course.decisions]
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events, decisions=decisions)


def recovered(scenario: Scenario, times: Mapping[int, Sequence[float]]) -> Recovery | None:
    """What a run regains after the last change of its lanes' speeds, of the best split by the tables."""
    factors = [factors_at(scenario.disturbances, step) for step in range(scenario.sampling.steps)]
    changes = [step for step in range(1, len(factors)) if factors[step] != factors[step - 1]]
    if not changes:
        return None
    then = scenario.model_copy(update={"cluster": disturbed(scenario.cluster, factors[-1])})
    optimum_s = split_bound_s(then)
    return recovery(times, changes[-1], optimum_s) if optimum_s is not None else None


def ledgers_of(courses: Sequence[Course], events: pd.DataFrame) -> dict[str, DeviceLedger]:
    """Where each lane's time went, with the samples that it had in the mean step."""
    names = courses[0].names
    samples: dict[str, float] = dict.fromkeys(names, 0.0)
    past = [entry for course in courses for entry in course.history]
    for entry in past:
        for name, own in entry["devices"].items():
            samples[name] += own["samples"] / len(past)
    found = ledgers(events, names).items()
    return {name: ledger.model_copy(update={"samples": round(samples[name])}) for name, ledger in found}


def proofs(courses: Sequence[Course], errors: Mapping[str, float | None]) -> dict[str, Any]:
    """What is known of the gradients of the plans that a run came to."""
    plans = {plan.sha256 for course in courses for _, plan in course.plans}
    return {
        "gradient_errors": {sha256: errors[sha256] for sha256 in sorted(plans & errors.keys())},
        "unproven_plans": sorted(plans - errors.keys()),
        "most_gradient_error": MOST_GRADIENT_ERROR,
    }
