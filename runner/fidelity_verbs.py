"""The verbs about how good predictions are: operators timed, residuals fed back, the history of the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..results.errors import InputError

Emit = Callable[[Any, list[dict[str, Any]], str], None]
"""Prints a document, its table and the table's title."""


def time_operators(
    document: dict[str, Any],
    folder: Path | None,
    runs: Path,
    *,
    again: bool,
    force: bool,
    report: Callable[[str], None],
    emit: Emit,
) -> None:
    """``calibrate --operators``: time the operators on the lanes of a scenario and print what was found."""
    from .calibrate import scenario_lanes, workload_of
    from .operators import calibrate_operators, tables_path

    lanes = scenario_lanes(document, folder, runs, report)
    workload = workload_of(document, folder)
    path = tables_path(runs, lanes, workload.dtype)
    tables = calibrate_operators(lanes, path, dtype=workload.dtype, again=again, force=force, report=report)
    for name, table in tables.items():
        report(surplus_line(name, table))
    answer = {"path": str(path), "tables": {name: table.model_dump(mode="json") for name, table in tables.items()}}
    emit(answer, operator_rows(tables), f"operators in {path}")


def operator_rows(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per lane and kind, how many points were measured, and the shortest and the longest of them."""
    rows = []
    for name, table in tables.items():
        for grid in table.grids:
            seconds = [each for each in grid.seconds if each > 0]
            rows.append(
                {
                    "lane": name,
                    "operator": grid.kind,
                    "points": len(seconds),
                    "shortest us": 1e6 * min(seconds),
                    "longest ms": 1e3 * max(seconds),
                }
            )
    return rows


def surplus_line(lane: str, table: Any) -> str:
    """What passes take beside their kernels on a lane, and how far the small models are from what the others tell."""
    told = [
        f"{name} {1e6 * each.call_s:.1f} us a call and {each.factor:.2f} x the kernels"
        for name, each in (("forward", table.forward), ("backward", table.backward))
    ]
    off = [100 * abs(each) for each in table.residuals]
    judged = f"a small model that is left out is {sum(off) / len(off):.1f} % off, at worst {max(off):.1f} %"
    return f"  {lane}: {', '.join(told)}; {judged}"


def feed_back(document: dict[str, Any], folder: Path | None, runs: Path, measured: Sequence[Path], emit: Emit) -> None:
    """``calibrate --from-runs``: refine a scenario's tables by what replays measured, and say how far to trust it.

    Raises:
        InputError: no run was measured, or not of this workload on these lanes.
    """
    from ..results.store import find_runs, read_run
    from .calibrate import calibration_path, read_calibration, workload_of, write_calibration
    from .feedback import refine

    workload = workload_of(document, folder)
    path = calibration_path(document, folder, runs, workload)
    if not path.is_file():
        raise InputError(str(path), "does not exist", "run `steelyard calibrate` first")
    found = refine(read_calibration(path), [read_run(each) for each in find_runs(list(measured))], workload)
    write_calibration(found.calibration)
    emit(found.document(), found.rows(), f"wrote {found.calibration.path}")


def history(
    runs: Annotated[Path, typer.Option("--runs", help="Folder that runs are written to.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to draw; beside the history by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")] = False,
) -> None:
    """Show and draw the error of every replay's predictions, oldest first."""
    import json
    import sys

    from rich.console import Console

    from ..results.history import FILE, history_rows, read
    from ..results.history_plots import history_figure
    from ..results.plots import save
    from .show import print_table

    entries = read(runs / FILE)
    path = save(history_figure(entries), out or (runs / FILE).with_suffix(".png"))
    print_table(Console(stderr=as_json), history_rows(entries), f"{path}")
    if as_json:
        document = {"history": [entry.model_dump(mode="json") for entry in entries], "figure": str(path)}
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
