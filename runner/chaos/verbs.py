"""The verb ``steelyard chaos``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

GATE_FAILED = 3


def chaos(
    scenario: Annotated[str, typer.Argument(help="Scenario file, or the name of a shipped one.")] = "demo",
    policy: Annotated[str, typer.Option("--policy", "-p", help="One policy.")] = "makespan",
    kills: Annotated[int, typer.Option(min=0, help="Workers that are killed (SIGKILL).")] = 5,
    hangs: Annotated[int, typer.Option(min=0, help="Workers that are stopped (SIGSTOP).")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the faults.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field: a.b.c=value. Repeatable.", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write the result to as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")] = False,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that runs are written to.")] = Path("runs"),
) -> int:
    """Train under random kills and hangs; exit code 3 unless it ends bit-identically and leaves nothing behind."""
    from rich.console import Console

    from ...policies import policy_from_text
    from ...results.store import to_json, write_text
    from ...sim.spec import load_scenario
    from ..calibrate import resolver
    from ..show import print_table
    from .chaos import chaos as storm

    console = Console(stderr=True)
    notes: list[str] = []
    loaded = load_scenario(scenario, settings or [], resolver(runs, force=False, notes=notes))
    found = storm(
        loaded, policy_from_text(policy), policy, runs, kills=kills, hangs=hangs, seed=seed, report=console.print
    )
    print_table(Console(stderr=as_json), found.rows, f"predicted against measured, {found.folder}")
    if as_json:
        sys.stdout.write(json.dumps(found.document, indent=1, allow_nan=False) + "\n")
    if out is not None:
        write_text(out, to_json(found.document))
    Console(stderr=as_json).print(found.headline(), highlight=False)
    for problem in found.problems:
        console.print(problem, highlight=False)
    return GATE_FAILED if found.problems else 0
