"""The history of prediction error: one line per replay and fidelity in ``history.jsonl``, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from .errors import InputError
from .record import Record, canonical_json, digest
from .store import read_text

FILE = "history.jsonl"


class Entry(Record):
    """How one fidelity did in one replay; percents."""

    schema_version: int = 1
    date_utc: str
    study: str
    """Name of the replay's folder."""
    scenario: str
    host: str
    """Digest of the host's fingerprint: errors of different hosts are not one series."""
    fidelity: str
    plans: int
    mean_error_percent: float
    mape_percent: float
    worst_error_percent: float
    kendall_tau: float | None = None
    regret_percent: float | None = None
    """Of the plan picked by the fidelity that the replay was made at; None for the others."""
    noise_floor_percent: float | None = None
    busy: bool = False
    code: str = ""


def host_digest(fingerprint: object) -> str:
    """A short name for a host, from its fingerprint."""
    return digest(fingerprint)[:8]


def append(path: Path, entries: Sequence[Entry]) -> None:
    """Add lines to a history: one write at the file's end, so that replays that end together do not mix their lines.

    A line that an earlier process left without its end is closed first, so that it spoils no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(canonical_json(entry.model_dump(mode="json")) + "\n" for entry in entries)
    descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_RDWR, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + lines.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Entry]:
    """All lines of a history, oldest first.

    Raises:
        InputError: there is none, or a line is damaged.
    """
    if not path.is_file():
        raise InputError(str(path), "does not exist", "`steelyard replay` writes it")
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry.model_validate(json.loads(line)))
        except (ValueError, ValidationError) as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{path}, line {number}", f"is damaged: {problem}", "remove the line") from error
    return entries


def history_rows(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """One row of text per line."""
    return [
        {
            "date": each.date_utc[:16].replace("T", " "),
            "scenario": each.scenario,
            "host": each.host,
            "fidelity": each.fidelity,
            "plans": str(each.plans),
            "mean %": f"{each.mean_error_percent:+.1f}",
            "MAPE %": f"{each.mape_percent:.1f}",
            "worst %": f"{each.worst_error_percent:.1f}",
            "tau": _figure(each.kendall_tau, 2),
            "regret %": _figure(each.regret_percent, 1),
            "noise %": _figure(each.noise_floor_percent, 1),
            "busy": "yes" if each.busy else "",
            "code": each.code,
        }
        for each in entries
    ]


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
