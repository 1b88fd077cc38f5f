"""Logs: step times out of files that training left behind, launch by launch; CSV, and Megatron-LM's own lines."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ...results.errors import InputError
from ...results.store import read_text
from ...sim.checking import shown

Format = Literal["csv", "megatron", "torch"]

MAX_LOG_BYTES = 512 * 2**20
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
TIMES = {f"step_time_{unit}": scale for unit, scale in UNITS.items()}
COLUMNS = ("launch", "step")
"""Columns of a CSV file that may stand beside the step time."""


class Span(NamedTuple):
    """An interval of a rank within a step, in seconds from the beginning of the step."""

    rank: int
    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: how long it took, and what of it is known of ranks."""

    seconds: float
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The steps of one start of the training, in order."""

    steps: tuple[Step, ...]
    source: str
    notes: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the scenario says that a log can contradict."""

    global_batch: int


Reader = Callable[[Path, Expected], list[Launch]]


def read_csv(path: Path, expected: Expected) -> list[Launch]:
    """Step times of a CSV file: a header, then a line per step.

    ``step_time_s``, ``step_time_ms`` or ``step_time_us`` is the time of the step; ``launch`` (any text) tells starts of
    the training apart, in the order in which they first occur; ``step`` must rise within a launch.

    Raises:
        InputError: a column is missing, twice or unknown; a value is no time above 0; a step does not rise.
    """
    lines = csv.reader(io.StringIO(read_text(path, MAX_LOG_BYTES)), strict=True)
    launches: dict[str, list[Step]] = {}
    last: dict[str, int] = {}
    header: list[str] | None = None
    try:
        for row in lines:
            where = f"{path}, line {lines.line_num}"
            if not row:
                continue
            if header is None:
                header = _header(row, where)
                continue
            if len(row) != len(header):
                raise InputError(where, f"has {len(row)} values, the header {len(header)}", "give one a column")
            values = dict(zip(header, row, strict=True))
            launch = values.get("launch", "")
            column = next(name for name in header if name in TIMES)
            launches.setdefault(launch, []).append(Step(seconds=TIMES[column] * number(values[column], where, column)))
            if "step" in values:
                _rising(values["step"], last, launch, where)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {lines.line_num}", f"is not CSV: {error}", "quote fields with commas"
        ) from error
    if not launches:
        raise InputError(str(path), "has no step", f"a header with one of {', '.join(TIMES)}, then a line a step")
    return [
        Launch(steps=tuple(steps), source=f"{path.name}{f' launch {name}' if name else ''}")
        for name, steps in launches.items()
    ]


def _header(row: Sequence[str], where: str) -> list[str]:
    names = [name.strip() for name in row]
    times = [name for name in names if name in TIMES]
    if len(times) != 1:
        found = "no column" if not times else f"{len(times)} columns"
        raise InputError(
            where, f"has {found} with the step time", f"one of {', '.join(TIMES)}: the unit is in the name"
        )
    strange = next((name for name in names if name not in (*TIMES, *COLUMNS)), None)
    if strange is not None:
        raise InputError(where, f"{shown(strange)} is no column", f"known: {', '.join((*COLUMNS, *TIMES))}")
    if len(set(names)) < len(names):
        raise InputError(where, "names a column twice", "name each once")
    return names


def _rising(text: str, last: dict[str, int], launch: str, where: str) -> None:
    """Steps of a launch are counted upwards: a file that was pasted together is not read as one launch."""
    try:
        step = int(text)
    except ValueError as error:
        raise InputError(where, f"step is {shown(text)}", "a whole number") from error
    if launch in last and step <= last[launch]:
        raise InputError(where, f"step {step} follows step {last[launch]}", "give each start its own launch")
    last[launch] = step


def number(text: str, where: str, name: str) -> float:
    """A time above 0.

    Raises:
        InputError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(where, f"{name} is {shown(text.strip())}", "a number above 0")
    return value


# ---- Megatron-LM ----

ELAPSED = "elapsed time per iteration (ms):"
"""What a line has that is one of ``training_log`` in Megatron-LM's ``megatron/training/training.py``.

Its fields are ``" iteration {:8d}/{:8d} |"``, ``" consumed samples: {:12d} |"``, ``" elapsed time per iteration (ms):
{:.1f} |"``, with --log-throughput ``" throughput per GPU (TFLOP/s/GPU): {:.1f} |"``, and ``" global batch size:
{:5d} |"`` (read in copies of that file). The time is the mean over the iterations since the line before, which are
--log-interval many.
"""
FIELDS = {
    "iteration": re.compile(r"iteration\s+(\d+)/\s*\d+\s*\|"),
    "elapsed": re.compile(r"elapsed time per iteration \(ms\):\s*([^|]*?)\s*\|"),
    "global batch size": re.compile(r"global batch size:\s*(\d+)\s*\|"),
}


def read_megatron(path: Path, expected: Expected) -> list[Launch]:
    """The times per iteration of a log of Megatron-LM; where iterations count from a lower number again, a new launch.

    Raises:
        InputError: no line has a time, one cannot be read, or the global batch is another.
    """
    launches: list[list[tuple[int, float]]] = []
    for line_number, line in enumerate(read_text(path, MAX_LOG_BYTES).splitlines(), 1):
        if ELAPSED not in line:
            continue
        where = f"{path}, line {line_number}"
        found = {name: pattern.search(line) for name, pattern in FIELDS.items()}
        iteration, elapsed, batch = found["iteration"], found["elapsed"], found["global batch size"]
        if iteration is None or elapsed is None:
            raise InputError(where, "has a time and no iteration that can be read", "the line is torn; remove it")
        if batch is not None and int(batch[1]) != expected.global_batch:
            told = f"global batch size is {batch[1]}, the scenario's {expected.global_batch}"
            raise InputError(where, told, "name the scenario that ran")
        count = int(iteration[1])
        if not launches or count <= launches[-1][-1][0]:
            launches.append([])
        launches[-1].append((count, 1e-3 * number(elapsed[1], where, "elapsed time per iteration (ms)")))
    if not launches:
        raise InputError(str(path), f"has no line with {ELAPSED!r}", "Megatron-LM's last rank writes them")
    return [
        Launch(
            steps=tuple(Step(seconds=seconds) for _, seconds in lines),
            source=f"{path.name}{f' start {index + 1}' if len(launches) > 1 else ''}",
            notes=_interval(lines),
        )
        for index, lines in enumerate(launches)
    ]


def _interval(lines: Sequence[tuple[int, float]]) -> tuple[str, ...]:
    gaps = {after[0] - before[0] for before, after in itertools.pairwise(lines)}
    if gaps <= {1}:
        return ()
    return (f"each step is the mean of {'-'.join(map(str, sorted(gaps)))} iterations: single steps vary more",)
