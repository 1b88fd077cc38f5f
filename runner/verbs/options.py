"""Arguments and options that several verbs take: each is declared here, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScenarioArgument = Annotated[
    str, typer.Argument(help="Scenario file, or the name of a shipped one.", metavar="SCENARIO")
]
RunArguments = Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.", metavar="RUN...")]
Settings = Annotated[
    list[str], typer.Option("--set", help="Override a field: a.b.c=value. Repeatable.", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout; tables go to stderr.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that runs are written to.")]
RUNS = Path("runs")
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of every random draw; the scenario's by default.")]
Force = Annotated[bool, typer.Option("--force", help="Use a calibration of another machine; the run records it.")]
Policies = Annotated[
    list[str],
    typer.Option(
        "--policy", "-p", help="name, name(key=value, ...), module:Class or best.toml; comma-separated, repeatable."
    ),
]
Live = Annotated[
    bool | None, typer.Option("--live/--no-live", help="Show the lanes while they run; by default on a terminal.")
]
Budget = Annotated[
    str | None, typer.Option(help="Time for the measurement, as 90s or 5m: spent where the uncertainty is.")
]
OutFile = Annotated[Path | None, typer.Option(help="JSON file to write.", dir_okay=False)]
