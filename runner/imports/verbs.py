"""The verb ``steelyard import``: tables of layer times, and step times of training that ran elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...results.errors import InputError
from ..verbs.inputs import fixed
from ..verbs.options import RUNS, Json, RunsFolder, Settings
from ..verbs.output import document_text, terminal


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="With --scenario: CSV, torch traces or Megatron logs. Else: layer times (JSON)."),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the two runs, or layer-profile file, to write.")
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="What ran: makes a measured run of step times.")] = None,
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="Policy that planned it.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Its plan (JSON), in place of a policy.")] = None,
    prediction: Annotated[Path | None, typer.Option(help="Simulated run that predicted it, with its plan.")] = None,
    kind: Annotated[
        str | None, typer.Option("--format", help="csv, torch or megatron; by the name by default.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="First steps of each launch to leave out.")] = 3,
    label: Annotated[str | None, typer.Option(help="Name of the run; the plan's by default.")] = None,
    twin_of: Annotated[str | None, typer.Option(help="Label of the run that this one repeats (A/A).")] = None,
    settings: Settings = [],
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Turn measured step times into a run for compare and gate, or layer times into a layer-profile file."""
    if scenario is None and prediction is None:
        return _layer_times(files, out)
    world, wanted, record = _ran(scenario, policy, plan, prediction, settings)
    from .runs import READERS, import_runs

    if kind is not None and kind not in READERS:
        raise InputError("--format", f"{kind!r} is no format", f"one of {', '.join(READERS)}")
    done = import_runs(
        files,
        world,
        wanted,
        runs,
        policy=record,
        label=label or record.label(),
        kind=kind,  # type: ignore[arg-type]  # checked above
        warmup=warmup,
        prediction=prediction,
        twin_of=twin_of,
        folder=out,
    )
    _tell(done, as_json)
    return None


def _ran(
    scenario: str | None, policy: str | None, plan: Path | None, prediction: Path | None, settings: list[str]
) -> tuple[Any, Any, Any]:
    """Scenario, plan and policy by what the options name."""
    from ...policies import policy_from_text
    from ...sim.spec import load_scenario
    from ...sim.view import View, allocate, describe
    from ..export.export import planned_run

    if sum(each is not None for each in (policy, plan, prediction)) != 1:
        raise InputError("PLAN", "is not named, or twice", "give one of --policy, --plan, --prediction")
    if prediction is not None:
        wanted, world, record = planned_run(prediction)
        return (world if scenario is None else load_scenario(scenario, settings)), wanted, record
    assert scenario is not None, "one of scenario and prediction is given"
    world = load_scenario(scenario, settings)
    if policy is not None:
        chosen = policy_from_text(policy)
        return world, allocate(chosen, View.of(world), world), describe(chosen)
    assert plan is not None, "one of the three is given"
    given = fixed(plan)
    return world, given.plan, describe(given)


def _layer_times(files: list[Path], out: Path | None) -> None:
    """Read a table of layer times and write it in our own format."""
    from ...sim.layer_profiles import load, save

    if out is None or len(files) != 1:
        told = "is missing" if out is None else "takes one file of layer times"
        raise InputError("--out", told, "step times need --scenario, or --prediction")
    found = load(files[0])
    save(out, found)
    sys.stdout.write(f"wrote {out}: {', '.join(found)}\n")


def _tell(done: Any, as_json: bool) -> None:
    from ..show import print_table

    predicted, measured = (run.summary.step_time_s for run in done.runs)
    row = {
        "run": done.measured.manifest.label,
        "launches": done.measured.summary.launches,
        "steps": done.measured.summary.steps,
        "predicted ms": 1e3 * predicted.p50,
        "measured ms": 1e3 * measured.p50,
        "error %": 100 * (predicted.p50 / measured.p50 - 1),
    }
    document = {
        "folder": str(done.folder),
        "run_id": done.measured.manifest.run_id,
        "predicted_run_id": done.predicted.manifest.run_id,
        "prediction_sha256": done.measured.manifest.prediction_sha256,
        "summary": done.measured.summary.model_dump(mode="json"),
        "notes": done.measured.manifest.notes,
    }
    console = terminal(stdout=not as_json)  # one for all: what follows a table may be as wide
    print_table(console, [row], str(done.folder))
    for note in done.measured.manifest.notes:
        console.print(note, highlight=False)
    if as_json:
        sys.stdout.write(document_text(document))
