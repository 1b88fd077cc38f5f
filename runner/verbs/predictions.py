"""Predictions: simulate plans, sweep the fields of a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .inputs import fixed, load, open_document, split
from .options import RUNS, Force, Json, Policies, RunsFolder, ScenarioArgument, Seed, Settings
from .output import emit, emit_runs, remark, say, terminal


def simulate(
    scenario: ScenarioArgument,
    policy: Policies = [],
    plan: Annotated[list[Path], typer.Option(help="A plan (JSON) to simulate as it is. Repeatable.")] = [],
    settings: Settings = [],
    seed: Seed = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Compare under so many seeds: one table, no run folders.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Predict what policies and plans give on a scenario; the policies that it names by default."""
    from ...policies import policies_for
    from ...sim.engine import simulate as predict
    from ..deciding import decided

    loaded, notes = load(scenario, settings, runs, force)
    names = split(policy)
    policies = [*(policies_for(loaded, names) if names or not plan else []), *map(fixed, plan)]
    if seeds is not None:
        return _studied(loaded, policies, seeds, seed, as_json)
    done: list[Any] = []
    decisions_s: list[float] = []
    try:
        for each in policies:
            made, seconds = decided(loaded, each)
            done.append(predict(loaded, made, seed=seed))
            decisions_s.append(seconds)
    except KeyboardInterrupt:
        _written(done, runs, notes)  # what is complete is kept; a mistake leaves nothing
        raise
    rows = _written(done, runs, notes)
    # Not in the document: equal questions have equal bytes for an answer.
    emit_runs({"scenario": loaded.name, "runs": rows}, as_json, done, f"{loaded.name}: predicted", decisions_s)
    return None


def _studied(scenario: Any, policies: list[Any], seeds: int, seed: int | None, as_json: bool) -> None:
    from ..show import progress
    from ..study import study

    with progress(terminal(), "simulating") as tick:
        result = study(scenario, policies, seeds=seeds, seed=seed, progress=tick)
    emit(result.document(), as_json, result.rows(), f"{scenario.name}: {seeds} seeds")
    remark(as_json, result.notes())


def _written(done: list[Any], runs: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Write simulated runs; what the command says of each."""
    from ...results.store import code_provenance, write_run

    provenance = {"code": code_provenance()}
    rows = []
    for result in done:
        manifest = result.manifest.model_copy(update={"notes": notes, "provenance": provenance})
        folder = write_run(replace(result, manifest=manifest), runs / manifest.run_id)
        rows.append(
            {
                "run_id": manifest.run_id,
                "folder": str(folder),
                "label": manifest.label,
                "plan": result.plan,
                "summary": result.summary.model_dump(mode="json"),
            }
        )
    return rows


def whatif(
    scenario: ScenarioArgument,
    vary: Annotated[list[str], typer.Option("--vary", help="Field and values: a.b=1,2,4. Repeatable: the full grid.")],
    policy: Policies = [],
    settings: Settings = [],
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Sweep fields of a scenario and show the best policy, throughput, cost and gap to the bound at each point."""
    from ...policies.whatif import whatif as sweep
    from ..resolving import resolver
    from ..show import progress

    document, folder = open_document(scenario, settings)
    notes: list[str] = []
    with progress(terminal(), "sweeping") as tick:
        result = sweep(
            document,
            folder,
            vary,
            policies=split(policy) or None,
            resolve=resolver(runs, force=force, notes=notes),
            seed=seed,
            progress=tick,
        )
    say(notes)
    answer = result.document()
    emit(answer, as_json, [_point_row(point) for point in answer["points"]], str(answer["recommendation"]))


def _point_row(point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **point["settings"],
        "policy": point["policy"],
        "samples/s": point["throughput_samples_per_s"],
        "usd/M samples": point["cost_usd_per_million_samples"],
        "gap to bound %": None if point["gap_to_bound"] is None else 100 * point["gap_to_bound"],
        "infeasible": point["infeasible"],
    }
