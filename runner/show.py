"""What the command line prints for people: tables (rich), and progress on stderr."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..results.gap import bounds_s, gap_percent
from ..results.groups import groups, sample_groups
from ..results.record import LEDGER_LINES, Run

WIDEST = 400
"""Characters of a line that is not for a terminal."""
LONGEST_WORD = 24
"""Characters of a word that a narrow terminal must keep in one line."""
FRAME = 3
"""Characters of a column's frame and padding."""
MOST_SHARES = 8
"""Different shares of samples that a row tells one by one."""
NOTHING_S = 1e-9
"""A line of the ledger below it is what sums leave over."""


def table(rows: Sequence[Mapping[str, Any]], title: str = "", widths: Sequence[int] | None = None) -> Table:
    """A table of the rows' keys in the order of the first row; columns as wide as said, or as rich finds."""
    made = Table(title=title or None, title_justify="left", header_style="bold")
    keys = list(rows[0] if rows else ())
    for key, width in zip_longest(keys, widths or ()):
        number = isinstance(rows[0][key], int | float) and not isinstance(rows[0][key], bool)
        made.add_column(str(key), justify="right" if number else "left", overflow="fold", width=width)
    for row in rows:
        made.add_row(*(text(value) for value in row.values()))
    return made


def print_table(console: Console, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print a table; where there is no terminal to fit (a pipe, a log), as wide as it is.

    Columns that do not fit side by side go into further tables, each led by the column that names the rows.
    """
    whole = table(rows, title)
    natural = console.measure(whole, options=console.options.update(width=WIDEST)).maximum
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, natural)
    if natural <= console.width:
        console.print(whole)
        return
    for number, keys in enumerate(_side_by_side(rows, console.width)):
        part = [{key: row[key] for key in keys} for row in rows]
        console.print(table(part, "" if number else title, _widths(part, console.width)))


def _side_by_side(rows: Sequence[Mapping[str, Any]], width: int) -> list[list[str]]:
    """The rows' keys in groups whose columns fit a width, each later group led by the keys that name the rows."""
    lead = _naming(rows, width)
    found: list[list[str]] = [[]]
    for key in rows[0]:
        if set(found[-1]) - set(lead) and _room([*found[-1], key], rows, width) < 0:
            found.append([*lead])
        if key not in found[-1]:
            found[-1].append(key)
    return found


def _naming(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """The first key of words that differ by row; else the first two, if they do together and leave room for more."""
    keys = list(rows[0])
    for key in keys:
        if all(isinstance(row[key], str) for row in rows) and len({row[key] for row in rows}) == len(rows):
            return [key]
    pairs = {tuple(text(row[key]) for key in keys[:2]) for row in rows}
    return keys[:2] if len(pairs) == len(rows) and 2 * _room(keys[:2], rows, width) > width else keys[:1]


def _widths(rows: Sequence[Mapping[str, Any]], width: int) -> list[int]:
    """Of columns in a table of this width: what each needs, and what is left by what else it could use."""
    least = [_least_width(rows, key) for key in rows[0]]
    wanted = [
        max(len(key), *(len(text(row[key])) for row in rows)) - low for key, low in zip(rows[0], least, strict=True)
    ]
    share = min(1.0, max(0, _room(rows[0], rows, width)) / max(1, sum(wanted)))
    return [low + int(share * more) for low, more in zip(least, wanted, strict=True)]


def _room(keys: Iterable[str], rows: Sequence[Mapping[str, Any]], width: int) -> int:
    """Characters that the columns of these keys leave in a table of this width."""
    return width - 1 - sum(FRAME + _least_width(rows, key) for key in keys)


def _least_width(rows: Sequence[Mapping[str, Any]], key: str) -> int:
    """Characters that a column needs to keep its words whole, long ones excepted."""
    words = (word for value in (key, *(text(row[key]) for row in rows)) for word in value.split())
    return min(max(map(len, words), default=1), LONGEST_WORD)


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


def run_rows(runs: Sequence[Run], decisions_s: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """One row per run: what decides, in the order in which people ask; without columns that no run has a value for.

    Args:
        runs: simulated or measured.
        decisions_s: how long each policy took to decide, where that is known.
    """
    bounds = bounds_s([run.summary for run in runs])
    gaps = (gap_percent(run.summary.step_time_s.p50, bound) for run, bound in zip(runs, bounds, strict=True))
    rows = [_run_row(run, gap) for run, gap in zip(runs, gaps, strict=True)]
    for row, seconds in zip(rows, decisions_s or (), strict=False):
        row["decision ms"] = 1e3 * seconds
    known = [key for key in rows[0] if any(row[key] is not None for row in rows)] if rows else []
    return [{key: row[key] for key in known} for row in rows]


def _run_row(run: Run, gap: float | None) -> dict[str, Any]:
    summary, times = run.summary, run.summary.step_time_s
    same = math.isclose(times.p10, times.p90, rel_tol=1e-9)  # no noise, but sums that round
    spread = None if same else f"{1e3 * times.p10:.4g} - {1e3 * times.p90:.4g}"
    return {
        "run": run.manifest.label,
        "samples": samples_text(run),
        "step p50 ms": 1e3 * times.p50,
        "p10-p90 ms": spread,
        "samples/s": summary.throughput_samples_per_s,
        "gap to bound %": gap,
        "usd/M samples": summary.cost_usd_per_million_samples,
        "goodput %": None if summary.faults is None else 100 * summary.goodput,
    }


def samples_text(run: Run) -> str:
    """Samples per step of each device, like devices together; of many kinds of share, how many devices have any."""
    shares = sample_groups(run)
    if len(shares) > MOST_SHARES:
        return f"on {sum(bool(ledger.samples) for ledger in run.summary.devices.values())} devices"
    return " ".join(f"{group.label}={samples}" for group, samples in shares)


def ledger_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Where the mean step of each device went, in ms; devices that are equal in everything share a row."""
    entries = [(run.manifest.label, group.label, group.ledger(run)) for run in runs for group in groups([run])]
    used = [line for line in LEDGER_LINES if any(getattr(ledger, line) > NOTHING_S for _, _, ledger in entries)]
    return [
        {
            "run": label,
            "device": device,
            **{line.removesuffix("_s"): 1e3 * getattr(ledger, line) for line in used},
            "peak GiB": None if ledger.peak_memory_bytes is None else ledger.peak_memory_bytes / 2**30,
        }
        for label, device, ledger in entries
    ]


@contextmanager
def progress(console: Console, title: str) -> Iterator[Any]:
    """A progress bar on the console; gives a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Elsewhere than on a terminal there would be no bar, but an empty line before whatever is said next.
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def tick(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tick
