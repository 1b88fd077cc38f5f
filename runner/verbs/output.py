"""What verbs say: tables, one JSON document, notes, and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

DONE, CRASH, BAD_INPUT, GATE_FAILED, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes."""


def terminal(*, stdout: bool = False) -> Console:
    """Where tables and progress go: stderr, or stdout where no document does."""
    return Console(stderr=not stdout)


def emit(document: Any, as_json: bool, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print a document to stdout and its table to stderr (``--json``), or the table alone to stdout."""
    tabulate(as_json, rows, title)
    if as_json:
        sys.stdout.write(document_text(document))


def document_text(document: Any) -> str:
    """A document as it is printed."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def give(document: Any, out: Path | None) -> None:
    """Write a document to a file, or to stdout where there is none."""
    from ...results.store import write_text

    if out is None:
        sys.stdout.write(document_text(document))
    else:
        write_text(out, document_text(document))


def tabulate(as_json: bool, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print a table."""
    from ..show import print_table

    print_table(terminal(stdout=not as_json), rows, title)


def remark(as_json: bool, lines: Iterable[str]) -> None:
    """Print lines below a table."""
    for line in lines:
        terminal(stdout=not as_json).print(line, highlight=False)


def emit_runs(
    document: Any, as_json: bool, runs: list[Any], title: str, decisions_s: Sequence[float] | None = None
) -> None:
    """The figures of runs, how long their policies thought where that is known, what binds, what failures leave."""
    from ...results.tables import binding_table, faults_table
    from ..show import run_rows

    emit(document, as_json, run_rows(runs, decisions_s), title)
    tabulate(as_json, binding_table(runs), "what binds")
    if faults := faults_table(runs):
        tabulate(as_json, faults, "with failures")


def following(console: Console, title: str, live: bool | None, as_json: bool) -> Any:
    """Progress on the console: the lanes, where they are wanted and there is a terminal, else how much is done."""
    from ..live import live as view
    from ..live import wanted
    from ..show import progress

    return view(console, title) if wanted(live, console, as_json=as_json) else progress(console, title)


def say(notes: Iterable[str]) -> None:
    """Each note once, on stderr."""
    for note in dict.fromkeys(notes):
        sys.stderr.write(f"steelyard: {note}\n")


def fail(message: str, code: int) -> int:
    """Say on stderr why there is nothing else, and give back the exit code."""
    say([message])
    return code
