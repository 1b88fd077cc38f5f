"""The journal of a training: what happened when, line by line on disk, and what the lines add up to.

Times are of the monotonic clock, so that they can be held against those of other processes of the same host.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .watch import Fault

Event = dict[str, Any]
ENDS = ("fault", "interrupted")
"""Events that end a launch before its time."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Journal:
    """A file of events, one JSON object a line; a line is on disk before anything else happens.

    Where the disk is full, lines wait for the next one that finds room: a training does not die of its journal.
    """

    path: Path
    waiting: list[str] = field(default_factory=list)

    def write(self, event: str, **fields: Any) -> None:
        """Add an event of now."""
        line = {"event": event, "when_utc": datetime.now(UTC).isoformat(timespec="milliseconds")}
        self.waiting.append(json.dumps({**line, "at_s": time.monotonic(), **fields}, allow_nan=False))
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab+") as file:
                lead = b"" if _ends_well(file) else b"\n"  # a line that was cut short stays a line of its own
                file.write(lead + "".join(f"{each}\n" for each in self.waiting).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            if self.path.exists():
                os.truncate(self.path, before)  # lines that found room would come twice
            return
        self.waiting.clear()

    def write_gap(self, events: Sequence[Event]) -> None:
        """Write down that the driver was killed after the events: found out now, when somebody goes on."""
        silent_s = max(0.0, time.monotonic() - events[-1]["at_s"])
        saved = [event["step"] for event in events if event["event"] in ("saved", "begun")]
        self.write(
            "fault",
            **asdict(Fault("driver", None, "the driver was killed", silent_s)),
            detected_after_s=silent_s,
            checkpoint_step=max(saved, default=0),
            steps_lost=None,
            recompute_s=0.0,
        )

    def read(self) -> list[Event]:
        """All events in order. Lines that a kill or a full disk cut short are left out: they were not written whole."""
        if not self.path.is_file():
            return []
        return list(parse_events(self.path.read_text(encoding="utf-8", errors="replace").splitlines()))


def _ends_well(file: IO[bytes]) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events in some lines of a journal; lines that were cut short are none."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


@dataclass
class Attempt:
    """How far one launch has come, heard from its workers' lines and written to the journal."""

    journal: Journal
    members: Sequence[str]
    """Lanes that train."""
    from_step: int
    number: int
    done: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    idle: set[str] = field(default_factory=set)
    """Lanes that have not done a step since the last question."""
    saved_step: int = 0
    began_s: float = field(default_factory=time.monotonic)
    safe_s: float | None = None
    """When the last step that a checkpoint holds was safe: its writing, or the beginning; None: not begun."""

    def __post_init__(self) -> None:
        self.saved_step = self.from_step
        self.journal.write("launch", attempt=self.number, step=self.from_step)

    def hear(self, lane: str, line: str) -> None:
        """Take a line of a worker."""
        word, *rest = line.split(" ", 2)
        if word == "alive":
            self.done[lane] = self.done.get(lane, 0) + 1
            self.idle.discard(lane)
        elif word == "asked":
            self.done[lane] = int(rest[0]) - self.from_step
            self.idle.add(lane)  # whoever has no part from there on says nothing of steps
        elif word == "begun":
            self.begun.add(lane)
            if len(self.begun) == len(self.members):
                self.safe_s = time.monotonic()
                start_s = self.safe_s - self.began_s
                self.journal.write("begun", attempt=self.number, step=self.from_step, start_s=start_s)
        elif word == "saved":
            self.saved_step, self.safe_s = int(rest[0]), time.monotonic()
            self.journal.write("saved", attempt=self.number, step=self.saved_step, seconds=float(rest[1]))
        elif word == "unsaved":
            self.journal.write("unsaved", attempt=self.number, step=int(rest[0]), lane=lane, reason=rest[1])

    @property
    def reached(self) -> int:
        """The last step that every member has done, as far as they said."""
        names = [name for name in self.members if name not in self.idle] or self.members
        return max(self.saved_step, self.from_step + min(self.done.get(name, 0) for name in names))

    def fail(self, fault: Fault) -> None:
        """Write down what went wrong, and what is lost by it."""
        last_sign_s = time.monotonic() - fault.silent_s
        self.journal.write("fault", **asdict(fault), detected_after_s=fault.silent_s, **self._lost(last_sign_s))

    def interrupt(self) -> None:
        """Write down that somebody ended it, and what is lost by that."""
        self.journal.write("interrupted", **self._lost(time.monotonic()))

    def _lost(self, last_sign_s: float) -> dict[str, Any]:
        return {
            "attempt": self.number,
            "reached_step": self.reached,
            "checkpoint_step": self.saved_step,
            "steps_lost": self.reached - self.saved_step,
            "recompute_s": max(0.0, last_sign_s - self.safe_s) if self.safe_s is not None else 0.0,
        }


@dataclass(frozen=True)
class Spent:
    """Where the time of a training went, from its first step to its last checkpoint; seconds."""

    wall_s: float
    useful_s: float
    """Steps that a checkpoint holds, once each."""
    checkpoint_s: float
    recompute_s: float
    """Steps that were done in vain, up to the last sign of life before each fault."""
    detection_s: float
    """From that sign to the moment when the driver knew."""
    restart_s: float
    """From then to the first step again."""
    faults: int

    @property
    def goodput(self) -> float:
        """Useful time over wall time."""
        return self.useful_s / self.wall_s if self.wall_s else 1.0


def spent(events: Sequence[Event]) -> Spent:
    """Add up a journal, from the first step to the last checkpoint.

    The pause before a driver that goes on counts as restart, or as detection where the one before was killed. What is
    useful is what is left: so the parts sum to the wall time by construction, and it is the useful time that can be
    held against the steps' own.
    """
    events = _on_one_clock(events)
    begun = [event for event in events if event["event"] == "begun"]
    saved = [event for event in events if event["event"] == "saved"]
    if not begun or not saved:
        return Spent(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    first, last = begun[0]["at_s"], saved[-1]["at_s"]
    ends = [event for event in events if event["event"] in ENDS and first <= event["at_s"] <= last]
    wall_s = last - first
    checkpoint_s = sum(event["seconds"] for event in saved)
    recompute_s = sum(event["recompute_s"] for event in ends)
    detection_s = sum(event.get("detected_after_s", 0.0) for event in ends)
    restart_s = sum(_ended(events, end["at_s"], last) - end["at_s"] for end in ends)
    faults = sum(event["event"] == "fault" for event in ends)
    useful_s = wall_s - checkpoint_s - recompute_s - detection_s - restart_s
    return Spent(wall_s, useful_s, checkpoint_s, recompute_s, detection_s, restart_s, faults)


def _ended(events: Sequence[Event], after_s: float, last_s: float) -> float:
    """When the restart after a fault was over: at the first step again, or at the last sign before the next fault."""
    for event in events:
        if event["event"] in ("begun", *ENDS) and event["at_s"] > after_s:
            return float(event["at_s"] - event.get("detected_after_s", 0.0))
    return last_s


def _on_one_clock(events: Sequence[Event]) -> list[Event]:
    """The events with times that never go back: the clock begins anew with the host; what was between is unknown."""
    found: list[Event] = []
    shift_s = 0.0
    for event in events:
        if found and event["at_s"] + shift_s < found[-1]["at_s"]:
            shift_s = found[-1]["at_s"] - event["at_s"]
        at_s = event["at_s"] + shift_s
        found.append({**event, "at_s": max(at_s, found[-1]["at_s"]) if found else at_s})  # rounding, too, goes forward
    return found
