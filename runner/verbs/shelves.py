"""What there is: on the shelves, and in runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .inputs import read_runs
from .options import RUNS, Json, RunArguments, RunsFolder
from .output import emit, emit_runs, tabulate


def list_(
    what: Annotated[str, typer.Argument(help="policies, scenarios, devices, links, models or runs.")],
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """List what is shipped, or the runs at hand."""
    from ..listing import listing, more

    rows = listing(what, runs)
    shown = [{"name": row["name"], "summary": row["summary"], **more(row), "source": row["source"]} for row in rows]
    emit(rows, as_json, shown, what)


def show(run: RunArguments, as_json: Json = False) -> None:
    """Show runs: plan, prediction or measurement, and where the time went on each device."""
    from ..show import ledger_rows

    read = read_runs(run)
    document = [
        {
            "manifest": each.manifest.model_dump(mode="json"),
            "plan": each.plan,
            "summary": each.summary.model_dump(mode="json"),
        }
        for each in read
    ]
    emit_runs(document, as_json, read, "runs")
    tabulate(as_json, ledger_rows(read), "ms of the mean step")
