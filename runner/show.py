"""What the command line prints for people: tables (rich), and progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..results.record import Run


def table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """A table of the rows' keys in the order of the first row."""
    made = Table(title=title or None, title_justify="left", header_style="bold")
    for key in rows[0] if rows else ():
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        made.add_column(str(key), justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(text(value) for value in row.values()))
    return made


def text(value: object) -> str:
    """A value as a cell: four significant figures, lists joined, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text(each) for each in value)
    return str(value)


def run_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run: what decides, in the order in which people ask."""
    return [
        {
            "run": run.manifest.label,
            "samples": " ".join(f"{name}={each.samples}" for name, each in run.summary.devices.items()),
            "step p50 ms": 1e3 * run.summary.step_time_s.p50,
            "p10-p90 ms": f"{1e3 * run.summary.step_time_s.p10:.4g} - {1e3 * run.summary.step_time_s.p90:.4g}",
            "samples/s": run.summary.throughput_samples_per_s,
            "gap to bound %": 100 * run.summary.gap_to_bound,
            "usd/M samples": run.summary.cost_usd_per_million_samples,
            "fidelity": run.summary.fidelity,
        }
        for run in runs
    ]


@contextmanager
def progress(console: Console, title: str) -> Iterator[Any]:
    """A progress bar on the console; gives a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def tick(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tick
