"""Sealing: predictions go to disk, with their digest, before what they predict runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..results.ledger import step_times
from ..results.metrics import launch_intervals
from ..results.record import SCHEMA_VERSION, Run, digest
from ..results.store import code_provenance, slug, to_json, write_run, write_text, written_utc
from ..sim.engine import simulate
from ..sim.spec import Scenario
from ..sim.view import Fixed
from .devices import fingerprint
from .entries import Entry
from .fidelity import predict_at
from .present import at_known_speed
from .protocol import counted_steps, launch_steps
from .unfinished import run_folder


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
    ``replay.model_error_percent``. Beside it stands that of launches which begin with gauges, and are told by them how
    fast they are. ``weaker`` holds the same scenario at other fidelities: what they say of a plan
    stands beside its prediction.
    """
    counts = launch_steps(scenario)
    sampling = scenario.sampling.model_copy(update={"steps": max(counts) + 1})
    scenario = scenario.model_copy(update={"sampling": sampling})
    weaker = {name: each.model_copy(update={"sampling": sampling}) for name, each in (weaker or {}).items()}
    known_speed = at_known_speed(scenario) if scenario.replay.gauge_launches else None
    predicted = []
    lines = []

    def intervals_of(run: Run) -> dict[str, tuple[float, float]]:
        return launch_intervals(list(step_times(run.events).values()), counts, model_error(scenario))

    for number, entry in enumerate(entries):
        run = simulate(scenario, Fixed(entry.plan, entry.record), seed=seed, label=entry.label)
        elsewhere = predict_at(weaker, Fixed(entry.plan, entry.record), seed)
        told = {"notes": list(notes), "provenance": provenance(scenario), "predicted_at": elsewhere}
        manifest = run.manifest.model_copy(update=told)
        intervals = {"launch_intervals_s": intervals_of(run)}
        if known_speed is not None:
            steady = simulate(known_speed, Fixed(entry.plan, entry.record), seed=seed, label=entry.label)
            intervals["steadied_intervals_s"] = intervals_of(steady)
        middle = intervals["launch_intervals_s"][str(counted_steps(scenario))]
        update = {**intervals, "median_interval_s": middle}
        summary = run.summary.model_copy(update=update)
        run = Run(manifest=manifest, plan=run.plan, summary=summary, events=run.events)
        write_run(run, folder / run_folder(number, entry.label, "predicted"))
        predicted.append(Entry(entry.label, entry.record, entry.plan, run))
        lines.append(
            {
                **predicted_line(run),
                "plan_sha256": entry.plan.sha256,
                **{name: {count: list(ends) for count, ends in each.items()} for name, each in intervals.items()},
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
