"""Scenarios: write one to start from, validate one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ...results.errors import InputError
from .inputs import load
from .options import RUNS, Force, Json, RunsFolder, Settings
from .output import emit


def init(
    file: Annotated[Path, typer.Argument(help="Scenario file to write; never overwritten.")] = Path("scenario.toml"),
    start: Annotated[str, typer.Option("--from", help="Shipped scenario to start from.")] = "mixed-gpus",
    model: Annotated[
        str | None, typer.Option(help="Also write MODEL.json: a transformers type or config file.")
    ] = None,
) -> None:
    """Write a scenario file to start from, and on request the layers of a transformers model."""
    from ...results.store import write_text
    from ...sim.spec import load_scenario, shipped_names, shipped_text

    if start not in shipped_names("scenarios"):
        load_scenario(start)  # says what is wrong with the name
        raise InputError(
            "--from", f"{start!r} is no shipped scenario", f"one of {', '.join(shipped_names('scenarios'))}"
        )
    content = shipped_text("scenarios", start)
    targets = {file: content}
    if model is not None:
        from ..launch import require_torch

        require_torch()
        from ..workload import model_from_config, model_text

        name = Path(model).stem
        targets[file.parent / f"{name}.json"] = model_text(model_from_config(model))
        targets[file] = re.sub(r'(?m)^model = ".*"', f'model = "{name}.json"', content)
    for target in targets:
        if target.exists():
            raise InputError(str(target), "exists", "choose another name, or remove it")
    for target, text in targets.items():
        write_text(target, text)
        sys.stdout.write(f"wrote {target}\n")


def check(
    scenario: Annotated[str | None, typer.Argument(help="Scenario file or shipped name.")] = None,
    settings: Settings = [],
    plan: Annotated[Path | None, typer.Option(help="A plan (JSON) to check against the scenario.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a resolved scenario.")] = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
    force: Force = False,
) -> None:
    """Validate a scenario (and a plan for it) without running anything."""
    if schema:
        from ...sim.spec import Scenario

        sys.stdout.write(json.dumps(Scenario.model_json_schema(), indent=1) + "\n")
        return
    if scenario is None:
        raise InputError("SCENARIO", "is missing", "give a scenario file, or --schema")
    loaded, _ = load(scenario, settings, runs, force)
    if plan is not None:
        from ...sim.plan import Plan
        from ...sim.spec import parse_file

        Plan.parse(parse_file(plan)).check(loaded)
    workload = loaded.workload
    document = {
        "name": loaded.name,
        "devices": [device.name for device in loaded.cluster.devices],
        "parameters": workload.parameters,
        "flops_per_sample": workload.flops_per_sample,
        "gradient_bytes": workload.gradient_bytes,
        "state_bytes": workload.state_bytes,
        "activation_bytes_per_sample": workload.activation_bytes_per_sample,
        "plan_valid": True if plan is not None else None,
    }
    emit(document, as_json, [{"field": key, "value": value} for key, value in document.items()], "scenario is valid")
