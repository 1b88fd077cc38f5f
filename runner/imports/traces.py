"""Traces of torch.profiler (Chrome JSON): the steps that were marked, and how each rank spent them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...results.errors import InputError
from .logs import MAX_LOG_BYTES, Expected, Launch, Span, Step

MARK = "ProfilerStep#"
"""What ``profile.step()`` names a step, where the profiler was given a schedule (seen in traces of torch 2.13)."""
COLLECTIVES = ("nccl", "gloo:", "c10d::", "record_param_comms")
Interval = tuple[float, float]


def read_trace(path: Path, expected: Expected) -> list[Launch]:
    """One rank's trace as a launch: a step for each mark, its spans of compute and of collectives.

    Of a trace with GPU kernels these are what counts, else the operators of the processor. Forward and backward are not
    told apart. Where collectives and compute overlap, it is compute.

    Raises:
        InputError: not a trace, or one without marked steps.
    """
    document = _load(path)
    events = [event for event in document["traceEvents"] if isinstance(event, dict) and event.get("ph") == "X"]
    marks = sorted((_interval(event, path) for event in events if _is_mark(event)), key=lambda interval: interval[0])
    if not marks:
        mend = "give torch.profiler.profile a schedule and on_trace_ready, and call step() after each step"
        raise InputError(str(path), f"has no {MARK} event", mend)
    rank = _rank(document)
    compute, collectives = _busy(events, path)
    steps = tuple(
        Step(seconds=(end - start) * 1e-6, spans=tuple(_spans(rank, start, end, compute, collectives)))
        for start, end in marks
    )
    return [Launch(steps=steps, source=path.name, notes=("steps under a profiler take longer than others",))]


def merged(launches: Sequence[Launch]) -> list[Launch]:
    """Traces of several ranks of one start as one launch: those that follow each other and are of different ranks.

    A step takes as long as on the rank where it took longest.
    """
    found: list[list[Launch]] = []
    seen: set[int] = set()
    for launch in launches:
        ranks = {span.rank for step in launch.steps for span in step.spans}
        if not found or not ranks or seen & ranks or len(found[-1][0].steps) != len(launch.steps):
            found.append([])
            seen = set()
        found[-1].append(launch)
        seen |= ranks
    return [_joined(group) if len(group) > 1 else group[0] for group in found]


def _joined(group: Sequence[Launch]) -> Launch:
    steps = [
        Step(
            seconds=max(step.seconds for step in same),
            spans=tuple(span for step in same for span in step.spans),
        )
        for same in zip(*(launch.steps for launch in group), strict=True)
    ]
    return Launch(steps=tuple(steps), source=" + ".join(launch.source for launch in group), notes=group[0].notes)


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_LOG_BYTES else None
        if raw is None:
            raise InputError(str(path), f"is no file of at most {MAX_LOG_BYTES // 2**20} MiB", "check the path")
        document = json.loads(_unpacked(raw) if path.suffix == ".gz" else raw)
    except (ValueError, OSError, EOFError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), f"is no trace: {str(error)[:100]}", "export_chrome_trace writes them") from error
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise InputError(str(path), "has no list traceEvents", "export_chrome_trace writes it")
    return document


def _unpacked(raw: bytes) -> bytes:
    """The bytes of a gzip file, as far as they may go."""
    import io

    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        found = file.read(MAX_LOG_BYTES + 1)
    if len(found) > MAX_LOG_BYTES:
        raise ValueError(f"it unpacks to over {MAX_LOG_BYTES // 2**20} MiB")
    return found


def _is_mark(event: dict[str, Any]) -> bool:
    """A step as the processor saw it; GPUs repeat the mark as ``gpu_user_annotation``."""
    return str(event.get("name", "")).startswith(MARK) and event.get("cat") == "user_annotation"


def _interval(event: dict[str, Any], path: Path) -> Interval:
    """Start and end in microseconds."""
    start, duration = event.get("ts"), event.get("dur")
    if not (isinstance(start, int | float) and isinstance(duration, int | float) and duration >= 0):
        name = str(event.get("name"))[:40]
        raise InputError(str(path), f"event {name!r} has ts {start!r} and dur {duration!r}", "both are numbers")
    return float(start), float(start + duration)


def _rank(document: dict[str, Any]) -> int:
    told = document.get("distributedInfo")
    rank = told.get("rank", 0) if isinstance(told, dict) else 0
    return rank if isinstance(rank, int) else 0


def _busy(events: Sequence[dict[str, Any]], path: Path) -> tuple[list[Interval], list[Interval]]:
    """When compute ran, and when collectives did and no compute."""
    category = "kernel" if any(event.get("cat") == "kernel" for event in events) else "cpu_op"
    own = [event for event in events if event.get("cat") == category]
    sent = [event for event in own if str(event.get("name", "")).startswith(COLLECTIVES)]
    if category == "cpu_op":  # a collective on processors is marked, not an operator
        sent += [event for event in events if str(event.get("name", "")).startswith("gloo:")]
    marked = set(map(id, sent))
    compute = union([_interval(event, path) for event in own if id(event) not in marked])
    collectives = union([_interval(event, path) for event in sent])
    # On processors a collective is itself made of operators: what runs while it does is its own work.
    return (
        (compute, without(collectives, compute))
        if category == "kernel"
        else (without(compute, collectives), collectives)
    )


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals that do not touch, covering what the given ones cover."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What of some intervals others do not cover; both sorted and apart, as :func:`union` gives them."""
    found, place = [], 0
    for start, end in intervals:
        while place < len(others) and others[place][1] <= start:
            place += 1
        at, here = start, place
        while here < len(others) and others[here][0] < end:
            if others[here][0] > at:
                found.append((at, others[here][0]))
            at = max(at, others[here][1])
            here += 1
        if at < end:
            found.append((at, end))
    return found


def _spans(
    rank: int, start: float, end: float, compute: Sequence[Interval], collectives: Sequence[Interval]
) -> Iterable[Span]:
    """What lies within a step, in seconds from its beginning."""
    for kind, intervals in (("compute", compute), ("communication", collectives)):
        for begin, finish in intervals:
            if finish > start and begin < end:
                yield Span(rank, kind, (max(begin, start) - start) * 1e-6, (min(finish, end) - start) * 1e-6)
