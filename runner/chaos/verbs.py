"""The verb ``steelyard chaos``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..verbs.inputs import load
from ..verbs.options import RUNS, Json, RunsFolder, ScenarioArgument, Settings
from ..verbs.output import DONE, GATE_FAILED, emit, remark, terminal


def chaos(
    scenario: ScenarioArgument = "demo",
    policy: Annotated[str, typer.Option("--policy", "-p", help="One policy.")] = "makespan",
    kills: Annotated[int, typer.Option(min=0, help="Workers that are killed: SIGKILL, or memory.")] = 5,
    hangs: Annotated[int, typer.Option(min=0, help="Workers that hang: cut, starved, looping or stopped.")] = 2,
    drivers: Annotated[int, typer.Option(min=0, help="Times that the driver is killed, and gone on with.")] = 1,
    disks: Annotated[int, typer.Option(min=0, help="Times that the checkpoints' disk is full.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the faults.")] = 0,
    settings: Settings = [],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write the result to as well.")] = None,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Train under random kills, hangs and full disks; exit code 3 unless it ends bit-identically and leaves nothing."""
    from ...policies import policy_from_text
    from ...results.store import to_json, write_text
    from ...sim.disturbances import EVENTS
    from .chaos import chaos as storm

    console = terminal()
    loaded, _ = load(scenario, settings, runs, force=False, without=EVENTS)
    asked = {"kills": kills, "hangs": hangs, "drivers": drivers, "disks": disks}
    found = storm(loaded, policy_from_text(policy), policy, runs, **asked, seed=seed, report=console.print)
    emit(found.document, as_json, found.rows, f"predicted against measured, {found.folder}")
    if out is not None:
        write_text(out, to_json(found.document))
    remark(as_json, [found.headline()])
    for problem in found.problems:
        console.print(problem, highlight=False)
    return GATE_FAILED if found.problems else DONE
