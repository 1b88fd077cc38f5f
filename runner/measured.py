"""Measured: runs put together from what the workers of all launches measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..policies import make_policy
from ..policies.overlap import step_s
from ..results.ledger import ledgers, quantiles, step_times
from ..results.metrics import bootstrap_interval
from ..results.record import Manifest, PolicyRecord, Run, digest, event_frame
from ..results.store import written_utc
from ..sim import cost
from ..sim.bounds import lower_bound_s
from ..sim.plan import Infeasible, Plan
from ..sim.spec import Scenario
from ..sim.summary import summarise
from ..sim.view import View, allocate
from .effort import Effort
from .entries import Entry
from .gauge import Drift
from .intervals import Row, step_rows
from .launch import LaunchResult
from .present import sealed_steps_s
from .protocol import Measurement, contention
from .sealing import provenance
from .unfinished import killed

if TYPE_CHECKING:
    import pandas as pd


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
    split = entry.plan.samples()
    devices = {
        name: ledger.model_copy(update={"samples": split.get(name, 0)})
        for name, ledger in ledgers(events, names).items()
    }
    summary = summarise(
        scenario,
        step_time=quantiles([seconds for each in times.values() for seconds in each]),
        launch_medians=[quantiles(times[launch]).p50 for launch in sorted(times)],
        devices=devices,
        bound_s=lower_bound_s(View.of(scenario)),
        steps=sum(len(each) for each in times.values()),
        fidelity="measured",
        median_interval_s=bootstrap_interval(list(times.values()), seed),
    )
    summary = summary.model_copy(update={"split_bound_step_time_s": split_bound_s(scenario)})
    assert entry.prediction is not None
    manifest = measured_manifest(scenario, entry.prediction, index, sealed, seed=seed, plan_sha256=entry.plan.sha256)
    told = {
        "label": entry.label,
        "policy": entry.record,
        "twin_of": entry.twin_of,
        "notes": list(notes),
        "provenance": {
            **(measurement.provenance or provenance(scenario)),
            **_circumstances(entry, index, measurement, drift, foretold),
        },
    }
    return Run(manifest=manifest.model_copy(update=told), plan=entry.plan.document(), summary=summary, events=events)


def _circumstances(
    entry: Entry, index: int, measurement: Measurement, drift: Drift, foretold: Sequence[float]
) -> dict[str, Any]:
    """How a plan was measured, and what disturbed it."""
    factors = {"drift_factors": drift.factors(entry.plan), "foretold_factors": list(foretold)}
    return {
        "contention": {**contention(measurement, index, drift), **factors},
        "protocol": measurement.record(index),
        "gradient_error": entry.gradient_error,
        "exact_gradient_error": entry.exact_gradient_error,
    }


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
