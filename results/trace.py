"""Chrome and Perfetto traces: simulated and measured runs side by side, to be opened at ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .ledger import step_times
from .metrics import median
from .record import LEDGER_OF_KIND, Run
from .store import write_text

COLOURS = {
    "compute_s": "thread_state_running",
    "optimizer_s": "thread_state_runnable",
    "communication_s": "thread_state_iowait",
    "wait_s": "grey",
    "input_s": "thread_state_uninterruptible",
    "bubble_s": "grey",
}
"""Names of the trace viewer's own palette; other viewers ignore them."""
FEW = 64
"""In a cluster of more devices than these, those that another stands for get no empty thread."""


def trace(runs: Sequence[Run]) -> dict[str, Any]:
    """The typical launch of each run as a trace document: a process per run, a thread per device, microseconds.

    Runs keep their order, except that a measured run comes right after the one that predicted it. The typical launch is
    the one whose median step is closest to the run's.

    Raises:
        InputError: there is no run.
    """
    if not runs:
        raise InputError("runs", "there are none", "give run folders")
    events: list[dict[str, Any]] = []
    for process, run in enumerate(side_by_side(runs), start=1):
        events.extend(_process(run, process))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(runs: Sequence[Run], path: Path) -> Path:
    """Write the trace of some runs as JSON and return the path."""
    write_text(path, json.dumps(trace(runs), allow_nan=False) + "\n")
    return path


def side_by_side(runs: Sequence[Run]) -> list[Run]:
    """Each simulated run followed by the measured runs that it predicted; measured runs without a prediction last."""
    simulated = [run for run in runs if run.manifest.kind == "simulated"]
    measured = [run for run in runs if run.manifest.kind == "measured"]
    ordered: list[Run] = []
    for run in simulated:
        ordered += [run, *(each for each in measured if each.manifest.predicted_run_id == run.manifest.run_id)]
    known = {run.manifest.run_id for run in simulated}
    return [*ordered, *(run for run in measured if run.manifest.predicted_run_id not in known)]


def typical_launch(run: Run) -> int:
    """Number of the launch whose median step time is closest to the median of all.

    Raises:
        InputError: the run has no event.
    """
    times = {launch: seconds for launch, seconds in step_times(run.events).items() if seconds}
    if not times:
        raise InputError(f"run {run.manifest.label!r}", "has no events", "make the run again")
    middle = median(times.values())
    return min(times, key=lambda launch: (abs(median([times[launch]]) - middle), launch))


def _process(run: Run, process: int) -> Iterator[dict[str, Any]]:
    events = run.events[run.events["launch"] == typical_launch(run)]
    devices = {name: number for number, name in enumerate(_named(run, set(events["device"])), start=1)}
    yield _name(process, None, f"{run.manifest.kind}: {run.manifest.label}")
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
    for device, thread in devices.items():
        yield _name(process, thread, device)
    for row in events.sort_values(["start_s", "end_s"], kind="stable").to_dict("records"):
        kind = str(row["kind"])
        event = {
            "ph": "X",
            "name": kind,
            "cat": LEDGER_OF_KIND.get(kind, "idle_s").removesuffix("_s"),
            "pid": process,
            "tid": devices.get(str(row["device"]), 0),
            "ts": row["start_s"] * 1e6,
            "dur": max(0.0, (row["end_s"] - row["start_s"]) * 1e6),
            "args": {name: int(row[name]) for name in ("launch", "round", "step", "stage", "micro_batch")},
        }
        colour = COLOURS.get(LEDGER_OF_KIND.get(kind, ""))
        yield event if colour is None else {**event, "cname": colour}


def _named(run: Run, active: set[str]) -> list[str]:
    """The devices that get a thread: all of a small cluster; of a large one, those with events of their own."""
    names = list(run.summary.devices)
    return names if len(names) <= FEW else [name for name in names if name in active]


def _name(process: int, thread: int | None, name: str) -> dict[str, Any]:
    kind = "process_name" if thread is None else "thread_name"
    return {"ph": "M", "name": kind, "pid": process, "tid": thread or 0, "args": {"name": name}}
