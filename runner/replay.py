"""replay(): run plans on real devices, measured against predictions that were written down before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..results.errors import WrongGradientError
from ..results.record import SCHEMA_VERSION
from ..sim.adaptive import is_eventful
from ..sim.spec import Scenario
from ..sim.view import Policy
from .calibrate import Report, Tick
from .condition import condition
from .entries import Entry, distinct_entries, plans_of, subjects_of, twins
from .fidelity import others
from .gauge import Gauged, not_gauged
from .held_out import hold_out, sizes_in
from .launch import LaunchResult, Task, require_torch, run_group, ticking
from .live import Planned, listener, watcher_of
from .measured import measured_runs
from .present import Present, sealed_steps_s
from .proof import MOST_GRADIENT_ERROR, is_proven, prove, prove_exactly
from .protocol import Launcher, measure, twin_count
from .resolving import job_of
from .runnable import lanes_of
from .sealing import predict, provenance, study_name
from .unfinished import Launches, Study, keep


def replay(
    scenario: Scenario,
    policies: Sequence[Policy],
    runs: Path,
    *,
    seed: int | None = None,
    budget_s: float | None = None,
    notes: Sequence[str] = (),
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Study:
    """Predict, then measure, the plans of some policies on this host's lanes.

    The lanes are gauged first, and tables of another speed are scaled. The predictions are on disk, with their digest,
    before a plan runs for the first time. Sizes of micro-batches that the plans use are taken out of the calibration
    first, so that no plan is predicted from a measurement of its own size.
    A scenario with disturbances or rebalance points is run as :func:`.courses.replay_courses` says.

    Args:
        scenario: its cluster must be lanes (from a calibration).
        policies: baselines and winners; plans that are equal are measured once.
        runs: the folder of runs; the study becomes a folder in it.
        seed: of the predictions' noise and of the order of the rounds.
        budget_s: time for the measurement, spent where the uncertainty is; without one the scenario's steps are made.
            Runs with disturbances or rebalance points are made whole, one of each policy at least.
        notes: recorded with each run.
        report: gets lines for people.
        tick: gets the progress.

    Raises:
        InputError: the cluster is not of lanes, too few calibrated sizes are left, or torch cannot run a plan.
        WorkerFailedError: a lane died or hung; launches that were complete before are measured and kept.
    """
    seed = scenario.seed if seed is None else seed
    if is_eventful(scenario):
        from .courses import replay_courses

        return replay_courses(
            scenario, policies, runs, seed=seed, budget_s=budget_s, notes=notes, report=report, tick=tick
        )
    require_torch()
    lanes_of(scenario)
    job, data = prepared(scenario, policies, runs)
    told = foretell(scenario, policies, runs, (job, data), seed=seed, notes=notes, report=report)
    scenario = told.scenario
    entries, failed = prove_entries(scenario, told.entries, job, data, report=report)
    entries += twins(entries, twin_count(len(entries)))
    if (watcher := watcher_of(tick)) is not None:
        watcher.plans([Planned(each.label, scenario.workload.global_batch, each.predicted_s) for each in entries])
    launches = Launches(told.folder)
    notes = [*told.notes, *failed, *not_gauged(scenario)]
    with launches.measuring(begun_of(scenario, entries, seed, told.sealed, notes)):
        measurement = measure(
            scenario,
            subjects_of(scenario, entries),
            keeping(launches, launcher(scenario, job, data, tick, present_of(scenario, entries, told.folder))),
            seed=seed,
            budget_s=budget_s,
            report=report,
        )
        present = sealed_steps_s(told.folder, len(measurement.launches))
        measured = measured_runs(
            scenario, entries, measurement, seed=seed, sealed=told.sealed, notes=notes, present=present
        )
        predicted = [each.prediction for each in told.entries if each.prediction is not None]
        return keep(launches, predicted, measured, measurement.stopped)


def begun_of(
    scenario: Scenario, entries: Sequence[Entry], seed: int, sealed: str, notes: Sequence[str]
) -> dict[str, Any]:
    """What is measured, for whoever makes runs of its launches should this process be killed."""
    found = [
        {
            "label": entry.label,
            "policy": entry.record.model_dump(mode="json"),
            "plan": entry.plan.document(),
            "predicted_run_id": entry.prediction.manifest.run_id,
            "twin_of": entry.twin_of,
            "gradient_error": entry.gradient_error,
            "exact_gradient_error": entry.exact_gradient_error,
        }
        for entry in entries
        if entry.prediction is not None
    ]
    return {**begun_common(scenario, seed, sealed, notes), "kind": "plans", "entries": found}


def begun_common(scenario: Scenario, seed: int, sealed: str, notes: Sequence[str]) -> dict[str, Any]:
    """What such a file holds, whatever is measured."""
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": scenario.model_dump(mode="json"),
        "seed": seed,
        "sha256": sealed,
        "notes": list(notes),
        "before": condition(),
        "asked": scenario.replay.launches,
        "provenance": provenance(scenario),
    }


def keeping(launches: Launches, run: Launcher) -> Launcher:
    """The same way to run a launch, with each one on disk before the next."""

    def kept(tasks: Sequence[Task], before: int, total: int) -> LaunchResult:
        launch = run(tasks, before, total)
        launches.add({"tasks": list(launch.tasks), "answers": launch.answers})
        return launch

    return kept


def prepared(scenario: Scenario, policies: Sequence[Policy], runs: Path) -> tuple[Task, Path]:
    """What workers need, and the samples; what cannot be measured is refused here, before anything is written.

    Raises:
        InputError: torch cannot run a plan, or too few calibrated sizes are left.
    """
    hold_out(scenario, plans_of(distinct_entries(scenario, policies)[0]))
    return job_of(scenario.workload, scenario.training, runs / "calibrations", seed=0)


@dataclass(frozen=True)
class Foretold:
    """What stands before any plan has run."""

    scenario: Scenario
    """With the lanes at their present speed."""
    folder: Path
    entries: list[Entry]
    sealed: str
    """Digest over the predictions."""
    notes: list[str]


def foretell(
    scenario: Scenario,
    policies: Sequence[Policy],
    runs: Path,
    work: tuple[Task, Path],
    *,
    seed: int,
    notes: Sequence[str],
    report: Report,
) -> Foretold:
    """Gauge the lanes, let the policies allocate, predict their plans, and seal that."""
    gauge = gauged(scenario, *work, report=report)
    entries, same = distinct_entries(gauge.at_present_speed()[0], policies)
    present, drifted = gauge.at_present_speed(but=sizes_in(plans_of(entries)))
    tell(drifted, report)
    # What was gauged with the model the weaker fidelities do not know: operators are gauged apart.
    weaker, missing = others(scenario, plans_of(entries), runs, gauge=scenario.replay.gauge_launches > 0)
    folder, told = runs / study_name(scenario, seed), [*notes, *drifted, *same, *missing]
    entries, sealed = predict(hold_out(present, plans_of(entries)), entries, folder, seed, told, weaker=weaker)
    report(f"{len(entries)} plans predicted; sha256 {sealed[:16]} written to {folder / 'predictions.json'}")
    return Foretold(present, folder, entries, sealed, told)


def gauged(scenario: Scenario, job: Task, data: Path, *, report: Report) -> Gauged:
    """How fast the scenario's lanes are now."""
    lanes, timeout_s = lanes_of(scenario), scenario.replay.timeout_s
    if scenario.replay.gauge_launches:
        report("gauging the lanes: how fast they are now, against their tables")
    return Gauged.by(scenario, lambda tasks: run_group(lanes, tasks, job, timeout_s=timeout_s, data=data))


def tell(notes: Sequence[str], report: Report) -> None:
    """Report what is noted in the record, too."""
    for note in notes:
        report(f"  {note}")


def prove_entries(
    scenario: Scenario, entries: Sequence[Entry], job: Task, data: Path, *, report: Report
) -> tuple[list[Entry], list[str]]:
    """The entries whose gradients are those of a single process, each with the figure, and a note for every other one.

    Raises:
        WrongGradientError: not one is.
    """
    names = [device.name for device in scenario.cluster.devices]
    divisions = [entry.division(scenario.workload, names) for entry in entries]
    report(f"proving {len(entries)} plans: each one's gradient against that of a single process")
    lanes, timeout_s = lanes_of(scenario), scenario.replay.timeout_s
    errors = prove(lanes, divisions, job, data, timeout_s=timeout_s)
    exact = prove_exactly(lanes, divisions, errors, job, data, timeout_s=timeout_s)
    kept = [
        replace(entry, gradient_error=error, exact_gradient_error=other)
        for entry, error, other in zip(entries, errors, exact, strict=True)
    ]
    wrong = [entry for entry in kept if not (is_proven(entry.gradient_error) or is_proven(entry.exact_gradient_error))]
    notes = [
        f"{entry.label} is not measured: its gradient is {entry.exact_gradient_error:.1e} from a single process's "
        f"in fp64, over {MOST_GRADIENT_ERROR:.0e} (and {entry.gradient_error:.1e} in fp32)"
        for entry in wrong
    ]
    if len(wrong) == len(kept):
        raise WrongGradientError(f"{'; '.join(notes)} (report it: the runtime is wrong)")
    return [entry for entry in kept if entry not in wrong], notes


def present_of(scenario: Scenario, entries: Sequence[Entry], folder: Path) -> Present:
    """What predicts the plans anew in every launch."""
    return Present(scenario, {entry.label: (entry.plan, entry.predicted_s) for entry in entries}, folder)


def launcher(scenario: Scenario, job: Task, data: Path, tick: Tick, present: Present | None = None) -> Launcher:
    """The way to run a launch: a fresh process for each of the scenario's lanes.

    With ``present`` it is predicted anew at the speed of each launch that begins with gauges.
    """
    lanes, watcher = lanes_of(scenario), watcher_of(tick)

    def run(tasks: Sequence[Task], before: int, total: int) -> LaunchResult:
        if watcher is not None:
            watcher.launch([lane.name for lane in lanes], tasks)
        timeout_s, progress = scenario.replay.timeout_s, ticking(lanes[-1], tick, before, total)
        hold = present.hold(tasks) if present is not None else None
        listen = listener(tick)
        return run_group(lanes, tasks, job, timeout_s=timeout_s, data=data, progress=progress, listen=listen, hold=hold)

    return run
