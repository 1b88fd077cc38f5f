"""replay(): run plans on real devices, measured against predictions that were written down before."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..results.errors import InputError, WorkerFailedError
from ..results.ledger import ledgers, quantiles, step_times
from ..results.metrics import bootstrap_interval
from ..results.record import SCHEMA_VERSION, Manifest, PolicyRecord, Run, digest, event_frame
from ..results.store import code_provenance, to_json, write_run, write_text
from ..sim import cost
from ..sim.bounds import lower_bound_s
from ..sim.disturbances import refuse_events
from ..sim.engine import simulate
from ..sim.noise import stream
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.summary import summarise
from ..sim.view import Fixed, Policy, View, allocate, describe
from .calibrate import START_S, Report, Tick, job_of
from .devices import NamedLane, available_cpus, fingerprint
from .launch import LaunchResult, Task, require_torch, run_group, ticking

BUSY_PERCENT = 5.0
"""More disturbed compute segments than this, and the host counts as busy."""
DRIFT_PERCENT = 10.0
"""A host that runs this much faster or slower than at calibration is not the host that was calibrated."""
LEAST_POINTS = 3
"""Calibrated sizes that must be left when those of the replayed plans are held out."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One plan to run: its label, the policy that made it, and the prediction once that is written."""

    label: str
    record: PolicyRecord
    plan: Plan
    prediction: Run | None = None
    twin_of: str | None = None

    def sizes(self, names: Sequence[str]) -> list[list[int]]:
        """Micro-batch sizes per lane, empty for a lane that is left out."""
        own = {pipeline.devices[0]: list(pipeline.micro_batches) for pipeline in self.plan.pipelines}
        return [own.get(name, []) for name in names]

    def ranks(self, names: Sequence[str]) -> list[int]:
        """Ranks of the lanes that take part."""
        return [rank for rank, sizes in enumerate(self.sizes(names)) if sizes]


@dataclass(frozen=True)
class Study:
    """A replay's folder and everything in it."""

    folder: Path
    predicted: list[Run]
    measured: list[Run]
    interrupted: bool = False

    @property
    def runs(self) -> list[Run]:
        """Predicted and measured runs."""
        return [*self.predicted, *self.measured]


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

    The predictions are on disk, with their digest, before the first worker starts. Sizes of micro-batches that the
    plans use are taken out of the calibration first, so that no plan is predicted from a measurement of its own size.

    Args:
        scenario: its cluster must be lanes (from a calibration).
        policies: baselines and winners; plans that are equal are measured once.
        runs: the folder of runs; the study becomes a folder in it.
        seed: of the predictions' noise and of the order of the rounds.
        budget_s: cuts steps, never launches.
        notes: recorded with each run.
        report: gets lines for people.
        tick: gets the progress.

    Raises:
        InputError: the cluster is not of lanes, too few calibrated sizes are left, or the scenario has disturbances.
        WorkerFailedError: a lane died or hung; launches that were complete before are measured and kept.
    """
    refuse_events(dict(scenario))
    require_torch()
    seed = scenario.seed if seed is None else seed
    lanes_of(scenario)
    entries, same = distinct_entries(scenario, policies)
    reduced = hold_out(scenario, entries)
    folder = runs / study_name(scenario, seed)
    all_notes = [*notes, *same]
    job, data = job_of(scenario.workload, scenario.training, runs / "calibrations", seed=0)
    entries, sealed = predict(reduced, entries, folder, seed, all_notes)
    report(f"{len(entries)} plans predicted; sha256 {sealed[:16]} written to {folder / 'predictions.json'}")
    predicted = [entry.prediction for entry in entries if entry.prediction is not None]
    entries.append(twin(entries))
    steps = steps_within(scenario, entries, budget_s)
    tasks = [
        _tasks(scenario, entries, steps=steps, seed=seed, launch=number) for number in range(scenario.replay.launches)
    ]
    launches, stopped = run_launches(scenario, tasks, job, data, report=report, tick=tick)
    if stopped is not None:
        reason = "interrupted" if isinstance(stopped, KeyboardInterrupt) else f"stopped: {stopped}"
        all_notes.append(f"{reason} after {len(launches)} of {len(tasks)} launches")
    measured = [
        measured_run(scenario, entry, index, launches, seed=seed, sealed=sealed, notes=all_notes)
        for index, entry in enumerate(entries)
    ]
    for number, run in enumerate(measured):
        write_run(run, folder / f"{number:02d}-{slug(run.manifest.label)}-measured")
    if isinstance(stopped, WorkerFailedError):
        raise stopped  # what was complete is on disk
    return Study(folder, predicted, measured, interrupted=stopped is not None)


def run_launches(
    scenario: Scenario, tasks: Sequence[Sequence[Task]], job: Task, data: Path, *, report: Report, tick: Tick
) -> tuple[list[LaunchResult], KeyboardInterrupt | WorkerFailedError | None]:
    """Run the launches one after another; what ends them early is given back beside those that were complete.

    Raises:
        KeyboardInterrupt, WorkerFailedError: not one launch was complete.
    """
    lanes = lanes_of(scenario)
    launches: list[LaunchResult] = []
    total = sum(map(len, tasks))
    try:
        for number, own in enumerate(tasks):
            report(f"launch {number + 1} of {len(tasks)}: a fresh process per lane")
            timeout_s = scenario.replay.timeout_s
            progress = ticking(lanes[-1], tick, sum(map(len, tasks[:number])), total)
            launches.append(run_group(lanes, own, job, timeout_s=timeout_s, data=data, progress=progress))
    except (KeyboardInterrupt, WorkerFailedError) as stopped:
        if not launches:
            raise
        return launches, stopped
    return launches, None


def lanes_of(scenario: Scenario) -> list[NamedLane]:
    """The lanes that the scenario's devices are.

    Raises:
        InputError: a device is none, or its cores are not this process's to use.
    """
    lanes = []
    for device in scenario.cluster.devices:
        if device.lane is None:
            raise InputError(f"cluster device {device.name}", "is no lane of this host", 'use [cluster] lanes = "auto"')
        missing = sorted(set(device.lane.cpus) - set(available_cpus()))
        if missing:
            raise InputError(f"cluster device {device.name}", f"core {missing[0]} is not available", "calibrate again")
        lanes.append(NamedLane.model_validate({**device.lane.model_dump(), "name": device.name}))
    return lanes


def distinct_entries(scenario: Scenario, policies: Sequence[Policy]) -> tuple[list[Entry], list[str]]:
    """One entry per different plan, in the order of the policies, and a note for each plan that came up again."""
    entries: dict[str, Entry] = {}
    notes = []
    view = View.of(scenario)
    for policy in policies:
        plan = allocate(policy, view, scenario)
        plan.require_data_parallel()
        record = describe(policy)
        label = _unused(record.label(), {entry.label for entry in entries.values()})
        first = entries.setdefault(plan.sha256, Entry(label, record, plan))
        if first.record != record:
            notes.append(f"{record.label()} makes the same plan as {first.label}: measured once")
    return list(entries.values()), notes


def _unused(label: str, used: set[str]) -> str:
    """The label, numbered where another plan has it: parameters that differ may look alike when rounded."""
    numbered = (f"{label} #{number}" for number in itertools.count(2))
    return label if label not in used else next(each for each in numbered if each not in used)


def hold_out(scenario: Scenario, entries: Sequence[Entry]) -> Scenario:
    """The scenario without the calibrated points of any micro-batch size that a plan uses.

    Raises:
        InputError: fewer than three points of a device are left.
    """
    sizes = {size for entry in entries for pipeline in entry.plan.pipelines for size in pipeline.micro_batches}

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
        return device.model_copy(update={"profile": kept})

    nodes = [
        node.model_copy(update={"devices": [reduce(device) for device in node.devices]})
        for node in scenario.cluster.nodes
    ]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def predict(
    scenario: Scenario, entries: Sequence[Entry], folder: Path, seed: int, notes: Sequence[str]
) -> tuple[list[Entry], str]:
    """Simulate every plan and write the predictions, with their digest, to disk; nothing has been measured yet.

    A simulated launch has as many steps as a measured one: the interval is that of such a launch's median.
    """
    counted = scenario.replay.rounds * steps_per_round(scenario)
    sampling = scenario.sampling.model_copy(update={"steps": counted + 1})
    scenario = scenario.model_copy(update={"sampling": sampling})
    predicted = []
    lines = []
    for number, entry in enumerate(entries):
        run = simulate(scenario, Fixed(entry.plan, entry.record), seed=seed, label=entry.label)
        manifest = run.manifest.model_copy(update={"notes": list(notes), "provenance": provenance(scenario)})
        run = Run(manifest=manifest, plan=run.plan, summary=run.summary, events=run.events)
        write_run(run, folder / f"{number:02d}-{slug(entry.label)}-predicted")
        predicted.append(Entry(entry.label, entry.record, entry.plan, run))
        summary = run.summary
        lines.append(
            {
                "label": entry.label,
                "policy": entry.record.model_dump(mode="json"),
                "plan_sha256": entry.plan.sha256,
                "plan": entry.plan.document(),
                "run_id": run.manifest.run_id,
                "step_time_s": summary.step_time_s.model_dump(mode="json"),
                "median_interval_s": list(summary.median_interval_s),
            }
        )
    sealed = digest(lines)
    document = {"schema_version": SCHEMA_VERSION, "written_utc": _now(), "sha256": sealed, "predictions": lines}
    write_text(folder / "predictions.json", to_json(document))
    return predicted, sealed


def twin(entries: Sequence[Entry]) -> Entry:
    """The A/A twin: the plan that is predicted to be fastest, measured a second time as if it were another."""
    best = min(entries, key=lambda entry: entry.prediction.summary.step_time_s.p50 if entry.prediction else 0.0)
    return Entry(f"{best.label} (twin)", best.record, best.plan, best.prediction, twin_of=best.label)


def steps_per_round(scenario: Scenario) -> int:
    """Measured steps per plan, launch and round that the scenario asks for."""
    return max(1, scenario.replay.steps // scenario.replay.rounds)


def steps_within(scenario: Scenario, entries: Sequence[Entry], budget_s: float | None) -> int:
    """Measured steps per plan, launch and round: what the scenario asks for, or what the budget allows."""
    settings = scenario.replay
    wanted = steps_per_round(scenario)
    if budget_s is None:
        return wanted
    step_s = sum(entry.prediction.summary.step_time_s.p50 for entry in entries if entry.prediction)
    left = budget_s / settings.launches - START_S - settings.rounds * settings.warmup_steps * step_s
    return max(1, min(wanted, int(left / (settings.rounds * step_s))))


def measured_run(
    scenario: Scenario,
    entry: Entry,
    index: int,
    launches: Sequence[LaunchResult],
    *,
    seed: int,
    sealed: str,
    notes: Sequence[str],
) -> Run:
    """Assemble one plan's run from what the workers of all launches measured of the ``index``-th entry."""
    names = [device.name for device in scenario.cluster.devices]
    rows = [row for number, launch in enumerate(launches) for row in _event_rows(launch, index, names, number)]
    events = event_frame(rows).sort_values(["launch", "start_s", "device"], kind="stable", ignore_index=True)
    times = step_times(events)
    medians = [quantiles(times[launch]).p50 for launch in sorted(times)]
    split = entry.plan.split()
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
    assert entry.prediction is not None
    manifest = Manifest(
        run_id=digest([entry.prediction.manifest.run_id, sealed, index, _now()])[:16],
        kind="measured",
        label=entry.label,
        scenario=scenario.model_dump(mode="json"),
        policy=entry.record,
        plan_sha256=entry.plan.sha256,
        seed=seed,
        model_version=cost.MODEL_VERSION,
        prediction_sha256=sealed,
        predicted_run_id=entry.prediction.manifest.run_id,
        twin_of=entry.twin_of,
        notes=list(notes),
        provenance={**provenance(scenario), "contention": contention(scenario, launches, index)},
    )
    return Run(manifest=manifest, plan=entry.plan.document(), summary=summary, events=events)


def contention(scenario: Scenario, launches: Sequence[LaunchResult], index: int) -> dict[str, Any]:
    """How disturbed the measurement was: segments that took longer than their processor time, and the host's drift.

    The drift compares a fixed piece of work, done between the rounds, with the same at calibration. It sees what
    processor time cannot: a neighbour on the same physical core, or another clock rate.
    """
    blocks = [
        answer
        for launch in launches
        for rank in range(len(scenario.cluster.devices))
        for task, answer in launch.of("block", rank)
        if task["index"] == index and answer["steps"]
    ]
    contended = 100 * sum(block["contended"] for block in blocks) / len(blocks)
    drift = {}
    for rank, device in enumerate(scenario.cluster.devices):
        seen = [answer["median_s"] for launch in launches for _, answer in launch.of("probe", rank)]
        if device.probe_s is not None and seen:
            drift[device.name] = 100 * (quantiles(seen).p50 / device.probe_s - 1)
    reasons = []
    if contended > BUSY_PERCENT:
        reasons.append(f"{contended:.0f} % of the compute segments were disturbed")
    for name, percent in drift.items():
        if abs(percent) > DRIFT_PERCENT:
            reasons.append(f"{name} runs {abs(percent):.0f} % {'slower' if percent > 0 else 'faster'} than calibrated")
    return {
        "busy": bool(reasons),
        "reasons": reasons,
        "contended_percent": contended,
        # All ranks retry by common decision: one of them tells how often.
        "retries": sum(
            answer["retries"] for launch in launches for task, answer in launch.of("block", 0) if task["index"] == index
        ),
        "drift_percent": drift,
    }


def provenance(scenario: Scenario) -> dict[str, Any]:
    """The circumstances of a run: code, host, libraries, lanes."""
    return {
        "written_utc": _now(),
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


def slug(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")[:48]


def _tasks(scenario: Scenario, entries: Sequence[Entry], *, steps: int, seed: int, launch: int) -> list[Task]:
    """One launch: every plan in every round, in an order of the round's own, with a speed probe before each round."""
    names = [device.name for device in scenario.cluster.devices]
    order = random.Random(int(stream(seed, "rounds", launch).integers(2**32)))  # noqa: S311 - an order, not a secret
    tasks: list[Task] = []
    for number in range(scenario.replay.rounds):
        tasks.append({"op": "probe"})
        indices = list(range(len(entries)))
        order.shuffle(indices)
        for index in indices:
            tasks.append(
                {
                    "op": "block",
                    "index": index,
                    "round": number,
                    "sizes": entries[index].sizes(names),
                    "ranks": entries[index].ranks(names),
                    "steps": steps,
                    "warmup": max(1, scenario.replay.warmup_steps),
                    "offset": number * steps,
                }
            )
    tasks.append({"op": "probe"})
    return tasks


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
        for step in range(task["steps"] + 1):
            segments = {names[rank]: blocks[rank][1]["steps"][step] for rank in task["ranks"]}
            common = {"launch": number, "round": task["round"], "step": step, "multiplicity": 1}
            rows += [{**common, **row} for row in _step_rows(segments, origin)]
    return rows


def _step_rows(segments: Mapping[str, Sequence[Sequence[Any]]], origin: float) -> Iterator[Row]:
    """One step's intervals by device; a collective starts when its last participant has entered, until then is wait."""
    entered = [each[2] for own in segments.values() for each in own if each[0] == "communication"]
    for pipeline, (device, own) in enumerate(segments.items()):
        for kind, micro_batch, start, end, _ in own:
            spans = [(kind, start, end)]
            if kind == "communication":
                last = min(max(entered), end)
                spans = [("wait", start, last), ("communication", last, end)]
            for name, begin, finish in spans:
                yield {
                    "device": device,
                    "pipeline": pipeline,
                    "stage": 0 if name in ("forward", "backward") else -1,
                    "micro_batch": micro_batch,
                    "kind": name,
                    "start_s": begin - origin,
                    "end_s": finish - origin,
                }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
