"""replay(): run plans on real devices, measured against predictions that were written down before."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..policies import make_policy
from ..policies.overlap import step_s
from ..results.errors import InputError, WrongGradientError
from ..results.ledger import ledgers, quantiles, step_times
from ..results.metrics import bootstrap_interval, launch_intervals
from ..results.record import SCHEMA_VERSION, Manifest, PolicyRecord, Run, digest, event_frame
from ..results.store import code_provenance, slug, to_json, write_run, write_text, written_utc
from ..sim import cost
from ..sim.adaptive import is_eventful
from ..sim.bounds import lower_bound_s
from ..sim.device import Device, LayerProfile
from ..sim.engine import simulate
from ..sim.plan import Infeasible, Plan
from ..sim.spec import Scenario
from ..sim.summary import summarise
from ..sim.view import Fixed, Policy, View, allocate, describe
from ..sim.workload import Workload
from .calibrate import Report, Tick
from .condition import condition
from .devices import NamedLane, available_cpus, fingerprint, passes_on
from .effort import Effort
from .execution import division
from .fidelity import others, predict_at
from .gauge import Drift, Gauged, not_gauged
from .intervals import Row, step_rows
from .launch import LaunchResult, Task, require_torch, run_group, ticking
from .live import Planned, listener, watcher_of
from .present import Present, sealed_steps_s
from .proof import MOST_GRADIENT_ERROR, is_proven, prove, prove_exactly
from .protocol import (
    Launcher,
    Measurement,
    Subject,
    contention,
    counted_steps,
    launch_steps,
    measure,
    spread_out,
    twin_count,
)
from .resolving import job_of
from .unfinished import Launches, Study, keep, killed, run_folder

if TYPE_CHECKING:
    import pandas as pd

LEAST_POINTS = 3
"""Calibrated sizes that must be left when those of the replayed plans are held out."""


@dataclass(frozen=True)
class Entry:
    """One plan to run: its label, the policy that made it, and the prediction once that is written."""

    label: str
    record: PolicyRecord
    plan: Plan
    prediction: Run | None = None
    twin_of: str | None = None
    gradient_error: float | None = None
    """Distance of its gradient from a single process's, by norm over the whole vector, as a share; None: not proven."""
    exact_gradient_error: float | None = None
    """The same in fp64, where fp32 alone did not prove it."""

    def division(self, workload: Workload, names: Sequence[str]) -> Task:
        """What the workers are told of the plan: sizes by rank where it is plain data parallelism, else a program.

        Raises:
            PlanError: torch cannot run it.
        """
        return division(self.plan, workload, names)

    @property
    def predicted_s(self) -> float:
        """Predicted median of a step, in seconds."""
        assert self.prediction is not None, "asked before the plan was simulated"
        return self.prediction.summary.step_time_s.p50


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
            Runs with disturbances or rebalance points are made whole, and note that they did not keep it.
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

        unused = [] if budget_s is None else ["the budget was not kept: runs that change under way are made whole"]
        return replay_courses(scenario, policies, runs, seed=seed, notes=[*notes, *unused], report=report, tick=tick)
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


def assembled_plans(
    begun: dict[str, Any], complete: Sequence[dict[str, Any]], predicted: Sequence[Run], *, folder: Path
) -> list[Run]:
    """The measured runs of a replay whose driver was killed; ``folder`` is the study's."""
    scenario, by_id = Scenario.model_validate(begun["scenario"]), {run.manifest.run_id: run for run in predicted}
    entries = [
        Entry(
            label=each["label"],
            record=PolicyRecord.model_validate(each["policy"]),
            plan=Plan.parse(each["plan"]),
            prediction=by_id[each["predicted_run_id"]],
            twin_of=each["twin_of"],
            gradient_error=each["gradient_error"],
            exact_gradient_error=each["exact_gradient_error"],
        )
        for each in begun["entries"]
    ]
    measurement = killed(begun)
    measurement.launches = [LaunchResult(each["tasks"], each["answers"]) for each in complete]
    measurement.efforts = [effort_of(launch, len(entries)) for launch in measurement.launches]
    notes, sealed, present = begun["notes"], begun["sha256"], sealed_steps_s(folder, len(complete))
    return measured_runs(
        scenario, entries, measurement, seed=begun["seed"], sealed=sealed, notes=notes, present=present
    )


def effort_of(launch: LaunchResult, plans: int) -> Effort:
    """Steps of each plan in each round of a launch, as its tasks say."""
    steps = {task["index"]: task["steps"] for task in launch.tasks if task["op"] == "block"}
    return Effort(tuple(steps[index] for index in range(plans)))


def measured_runs(
    scenario: Scenario,
    entries: Sequence[Entry],
    measurement: Measurement,
    *,
    seed: int,
    sealed: str,
    notes: Sequence[str],
    present: Sequence[Mapping[str, float]] = (),
) -> list[Run]:
    """A run of each plan from what all launches measured; ``present`` is :func:`.present.sealed_steps_s` of them."""
    told, drift = [*notes, *measurement.notes], Drift.of(scenario, measurement.launches)
    return [
        measured_run(
            scenario,
            entry,
            index,
            measurement,
            drift,
            seed=seed,
            sealed=sealed,
            notes=told,
            foretold=[each[entry.label] / entry.predicted_s for each in present],
        )
        for index, entry in enumerate(entries)
    ]


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


def subjects_of(scenario: Scenario, entries: Sequence[Entry]) -> list[Subject]:
    """What the workers are told of each plan, and how long a step of it is expected to take."""
    names = [device.name for device in scenario.cluster.devices]
    return [
        Subject(entry.division(scenario.workload, names), entry.predicted_s, sorted(sizes_in([entry.plan])))
        for entry in entries
    ]


def lanes_of(scenario: Scenario) -> list[NamedLane]:
    """The lanes that the scenario's devices are.

    Raises:
        InputError: a device is none, or its cores are not this process's to use.
    """
    lanes = []
    for device in scenario.cluster.devices:
        if device.lane is None:
            raise InputError(f"cluster device {device.name}", "is no lane of this host", 'use [cluster] lanes = "auto"')
        missing = sorted(set(device.lane.cpus) - set(available_cpus())) if not device.lane.machine else []
        if missing:
            raise InputError(f"cluster device {device.name}", f"core {missing[0]} is not available", "calibrate again")
        lanes.append(NamedLane.model_validate({**device.lane.model_dump(), "name": device.name}))
    return lanes


def distinct_entries(scenario: Scenario, policies: Sequence[Policy]) -> tuple[list[Entry], list[str]]:
    """One entry per different plan, in the order of the policies, and a note for each plan that came up again."""
    entries: dict[str, Entry] = {}
    notes = []
    view, names = View.of(scenario), [device.name for device in scenario.cluster.devices]
    for policy in policies:
        plan = allocate(policy, view, scenario)
        refuse_lanes(scenario, division(plan, scenario.workload, names))
        record = describe(policy)
        label = unused_label(record.label(), {entry.label for entry in entries.values()})
        first = entries.setdefault(plan.sha256, Entry(label, record, plan))
        if first.record != record:
            notes.append(f"{record.label()} makes the same plan as {first.label}: measured once")
    return list(entries.values()), notes


def refuse_lanes(scenario: Scenario, told: Task) -> None:
    """Refuse stages on a lane that is slower by doing its work again, and on lanes that cannot hand on what they have.

    Raises:
        InputError: there is one among those that take part.
    """
    refuse_mixed(scenario, told)
    for rank in told["ranks"] if "program" in told else []:
        device = scenario.cluster.devices[rank]
        if device.lane is not None and device.lane.repeat > 1:
            problem = (
                f"does its work {device.lane.repeat} times, which torch's pipelines and optimizers have no turn for"
            )
            raise InputError(f"cluster device {device.name}", problem, "use splits of the batch on it")


def refuse_mixed(scenario: Scenario, told: Task) -> None:
    """Refuse pipelines and sharded gradients where GPUs and processors are lanes of one group.

    Raises:
        InputError: a GPU would hand on activations, or gather and scatter, over gloo.
    """
    lanes = [device.lane for device in scenario.cluster.devices]
    kinds = [lane.torch_device if lane is not None else "cpu" for lane in lanes]
    program = told.get("program")
    if program is None or passes_on(kinds) or not any(kinds[rank].startswith("cuda") for rank in told["ranks"]):
        return
    if any(len(pipeline["stages"]) > 1 for pipeline in program["pipelines"]):
        problem = "are cut, over GPUs and processors together: gloo, which they share, sends no tensor of a GPU"
        raise InputError("pipelines", problem, "use lanes of one kind, or whole models")
    if program["zero"] > 1:
        problem = (
            f"is {program['zero']} over GPUs and processors together: gloo, which they share, scatters none of a GPU"
        )
        raise InputError("zero", problem, "use lanes of one kind, or zero 0 or 1")


def unused_label(label: str, used: set[str]) -> str:
    """The label, numbered where another plan has it: parameters that differ may look alike when rounded."""
    numbered = (f"{label} #{number}" for number in itertools.count(2))
    return label if label not in used else next(each for each in numbered if each not in used)


def hold_out(scenario: Scenario, plans: Iterable[Plan]) -> Scenario:
    """The scenario without the calibrated points of any micro-batch size that one of some plans uses.

    Raises:
        InputError: fewer than three points of a device are left.
    """
    plans = list(plans)
    sizes, staged = sizes_in(plans), staged_sizes_in(plans)

    def reduce(device: Any) -> Any:
        if device.profile is None:
            return device
        kept = cost.without_sizes(device.profile, sizes)
        if len(kept.points) < LEAST_POINTS:
            raise InputError(
                f"calibration of {device.name}",
                f"has {len(kept.points)} micro-batch sizes that no replayed plan uses",
                f"at least {LEAST_POINTS} are needed: replay fewer plans, or use a larger global batch",
            )
        return device.model_copy(update={"profile": kept, "layer_profile": layers_without(device, sizes, staged)})

    nodes = [
        node.model_copy(update={"devices": [reduce(device) for device in node.devices]})
        for node in scenario.cluster.nodes
    ]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def plans_of(entries: Iterable[Entry]) -> list[Plan]:
    """The plans of some entries."""
    return [entry.plan for entry in entries]


def sizes_in(plans: Iterable[Plan]) -> set[int]:
    """The sizes of the micro-batches that some plans use."""
    return {size for plan in plans for pipeline in plan.pipelines for size in pipeline.micro_batches}


def staged_sizes_in(plans: Iterable[Plan]) -> set[int]:
    """The same of pipelines with several stages alone: what a stage takes beyond its layers was measured in one."""
    piped = (pipeline for plan in plans for pipeline in plan.pipelines if len(pipeline.stages) > 1)
    return {size for pipeline in piped for size in pipeline.micro_batches}


def layers_without(device: Device, sizes: set[int], staged: set[int]) -> LayerProfile | None:
    """A device's times by layer without some micro-batch sizes; None where too few are left to tell a size from them.

    The whole model's times, and the roofline's shares of them, then stand for a stage's. What a pass of a stage takes
    more is kept unless plans have ``staged`` its size in a pipeline, too.
    """
    if device.layer_profile is None:
        return None
    kept = [point for point in device.layer_profile.points if point.micro_batch not in sizes]
    found = device.layer_profile.stage_pass
    update = {"points": kept, "stage_pass": found if found and found.micro_batch not in staged else None}
    return device.layer_profile.model_copy(update=update) if len(kept) >= LEAST_POINTS else None


def predict(
    scenario: Scenario,
    entries: Sequence[Entry],
    folder: Path,
    seed: int,
    notes: Sequence[str],
    *,
    weaker: Mapping[str, Scenario] | None = None,
) -> tuple[list[Entry], str]:
    """Simulate every plan and write the predictions, with their digest, to disk; no plan has run yet.

    The interval is that of the median of a launch with as many steps as the scenario asks for; a budget may make them
    more or fewer, so those of other numbers stand beside it. It knows the noise of launches and
    ``replay.model_error_percent``. ``weaker`` holds the same scenario at other fidelities: what they say of a plan
    stands beside its prediction.
    """
    counts = launch_steps(scenario)
    sampling = scenario.sampling.model_copy(update={"steps": max(counts) + 1})
    scenario = scenario.model_copy(update={"sampling": sampling})
    weaker = {name: each.model_copy(update={"sampling": sampling}) for name, each in (weaker or {}).items()}
    predicted = []
    lines = []
    for number, entry in enumerate(entries):
        run = simulate(scenario, Fixed(entry.plan, entry.record), seed=seed, label=entry.label)
        elsewhere = predict_at(weaker, Fixed(entry.plan, entry.record), seed)
        told = {"notes": list(notes), "provenance": provenance(scenario), "predicted_at": elsewhere}
        manifest = run.manifest.model_copy(update=told)
        intervals = launch_intervals(list(step_times(run.events).values()), counts, model_error(scenario))
        update = {"launch_intervals_s": intervals, "median_interval_s": intervals[str(counted_steps(scenario))]}
        summary = run.summary.model_copy(update=update)
        run = Run(manifest=manifest, plan=run.plan, summary=summary, events=run.events)
        write_run(run, folder / run_folder(number, entry.label, "predicted"))
        predicted.append(Entry(entry.label, entry.record, entry.plan, run))
        lines.append(
            {
                **predicted_line(run),
                "plan_sha256": entry.plan.sha256,
                "launch_intervals_s": {count: list(ends) for count, ends in intervals.items()},
                "fidelities": elsewhere,
            }
        )
    return predicted, seal(lines, folder)


def model_error(scenario: Scenario) -> float:
    """What predictions are off by beside the noise, as a share; refined tables have it in the launches they fit."""
    return 0.0 if scenario.cluster.fitted_plans else scenario.replay.model_error_percent / 100


def predicted_line(run: Run) -> dict[str, Any]:
    """What is sealed of a prediction, whatever is predicted."""
    return {
        "label": run.manifest.label,
        "policy": run.manifest.policy.model_dump(mode="json"),
        "plan": run.plan,
        "run_id": run.manifest.run_id,
        "step_time_s": run.summary.step_time_s.model_dump(mode="json"),
        "median_interval_s": list(run.summary.median_interval_s),
    }


def seal(lines: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write what was predicted, with its digest, to disk; the digest."""
    sealed = digest(lines)
    document = {"schema_version": SCHEMA_VERSION, "written_utc": written_utc(), "sha256": sealed, "predictions": lines}
    write_text(folder / "predictions.json", to_json(document))
    return sealed


def twins(entries: Sequence[Entry], count: int) -> list[Entry]:
    """The A/A twins: plans measured a second time as if they were others, the one predicted to be fastest first."""
    chosen = [entries[index] for index in spread_out([entry.predicted_s for entry in entries], count)]
    return [replace(each, label=f"{each.label} (twin)", twin_of=each.label) for each in chosen]


def measured_run(
    scenario: Scenario,
    entry: Entry,
    index: int,
    measurement: Measurement,
    drift: Drift,
    *,
    seed: int,
    sealed: str,
    notes: Sequence[str],
    foretold: Sequence[float] = (),
) -> Run:
    """Assemble one plan's run from what the workers of all launches measured of the ``index``-th entry.

    ``foretold`` says per launch how many times as long as sealed a step was predicted to take when the launch began.
    """
    names = [device.name for device in scenario.cluster.devices]
    launches = measurement.launches
    rows = [row for number, launch in enumerate(launches) for row in _event_rows(launch, index, names, number)]
    events = measured_events(rows)
    times = step_times(events)
    medians = [quantiles(times[launch]).p50 for launch in sorted(times)]
    split = entry.plan.samples()
    devices = {
        name: ledger.model_copy(update={"samples": split.get(name, 0)})
        for name, ledger in ledgers(events, names).items()
    }
    summary = summarise(
        scenario,
        step_time=quantiles([seconds for each in times.values() for seconds in each]),
        launch_medians=medians,
        devices=devices,
        bound_s=lower_bound_s(View.of(scenario)),
        steps=sum(len(each) for each in times.values()),
        fidelity="measured",
        median_interval_s=bootstrap_interval(list(times.values()), seed),
    )
    summary = summary.model_copy(update={"split_bound_step_time_s": split_bound_s(scenario)})
    assert entry.prediction is not None
    found = {
        **(measurement.provenance or provenance(scenario)),
        "contention": {
            **contention(measurement, index, drift),
            "drift_factors": drift.factors(entry.plan),
            "foretold_factors": list(foretold),
        },
        "protocol": measurement.record(index),
        "gradient_error": entry.gradient_error,
        "exact_gradient_error": entry.exact_gradient_error,
    }
    manifest = measured_manifest(scenario, entry.prediction, index, sealed, seed=seed, plan_sha256=entry.plan.sha256)
    told = {"label": entry.label, "policy": entry.record, "twin_of": entry.twin_of}
    manifest = manifest.model_copy(update={**told, "notes": list(notes), "provenance": found})
    return Run(manifest=manifest, plan=entry.plan.document(), summary=summary, events=events)


def measured_events(rows: Sequence[Row]) -> pd.DataFrame:
    """The events of all launches, in order of time."""
    return event_frame(rows).sort_values(["launch", "start_s", "device"], kind="stable", ignore_index=True)


def measured_manifest(
    scenario: Scenario, prediction: Run, identity: object, sealed: str, *, seed: int, plan_sha256: str
) -> Manifest:
    """What the manifest of a measured run has of its prediction; ``identity`` tells it from others of the study."""
    predicted = prediction.manifest
    return Manifest(
        run_id=digest([predicted.run_id, sealed, identity, written_utc()])[:16],
        kind="measured",
        label=predicted.label,
        scenario=scenario.model_dump(mode="json"),
        policy=predicted.policy,
        plan_sha256=plan_sha256,
        seed=seed,
        model_version=cost.MODEL_VERSION,
        prediction_sha256=sealed,
        predicted_run_id=predicted.run_id,
    )


def split_bound_s(scenario: Scenario) -> float | None:
    """Seconds of the best data-parallel split by the lanes' tables, all-reduce included, without noise; None: no split.

    ``makespan`` is exact by these tables, what waking costs included, over all sets of up to eight devices.
    """
    view = View.of(scenario)
    try:
        return step_s(view, allocate(make_policy("makespan"), view, scenario))
    except Infeasible:
        return None


def provenance(scenario: Scenario) -> dict[str, Any]:
    """The circumstances of a run: code, host, libraries, lanes."""
    return {
        "written_utc": written_utc(),
        "code": code_provenance(),
        "host": fingerprint(),
        "libraries": {name: metadata.version(name) for name in ("torch", "transformers", "simpy", "numpy", "optuna")},
        "lanes": {
            device.name: device.lane.model_dump(mode="json") for device in scenario.cluster.devices if device.lane
        },
        "driver_affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def study_name(scenario: Scenario, seed: int) -> str:
    """Folder name of a replay: when it began, what it is about; sortable."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"replay-{stamp}-{slug(scenario.name)}-{digest([stamp, seed, os.getpid()])[:6]}"


def _event_rows(launch: LaunchResult, index: int, names: Sequence[str], number: int) -> list[Row]:
    """Event rows of one plan in one launch, times from the launch's first counted segment on."""
    origin = min(
        step[0][2] for rank in range(len(names)) for _, answer in launch.of("block", rank) for step in answer["steps"]
    )
    rows: list[Row] = []
    for blocks in zip(*(launch.of("block", rank) for rank in range(len(names))), strict=True):
        task = blocks[0][0]
        if task["index"] != index:
            continue
        since: dict[int, float] | None = None
        for step in range(task["steps"] + 1):
            segments = {rank: blocks[rank][1]["steps"][step] for rank in task["ranks"]}
            common = {"launch": number, "round": task["round"], "step": step, "multiplicity": 1}
            for row in step_rows(segments, task, since):
                times = {key: row[key] - origin for key in ("start_s", "end_s")}
                rows.append({**common, **row, **times, "device": names[row["device"]]})
            since = {rank: own[-1][3] for rank, own in segments.items()}
    return rows
