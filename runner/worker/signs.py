"""Signs of life: lines with figures a few times a second, and a byte that says whether a worker waits for others."""

from __future__ import annotations

import json
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WORKS, WAITS = 1, 2
"""What the byte says."""
HANG_SIGNAL = signal.SIGUSR1
"""Asks a worker to hang in its next pass, for a drill: a fault that cannot be done to it from outside."""
FOR_EVER = 1e12
"""A pass that takes so many times as long as it would."""
EVERY_S = 0.25
"""Between two lines with figures: what a view of the running training can show at most."""
SILENT_S = 2.0
"""A step that lasts longer than this is told of before it ends."""


class State:
    """Whether a worker is at work or waits for others: a byte in a file, which the driver reads when all are silent.

    A line for every send and receive would wake the driver each time, on a processor that lanes are measured on; to set
    a byte of mapped memory takes no call of the system. What stands for a worker on another machine keeps such a byte
    too, as it is told (:mod:`steelyard.runner.hosts.relay`).
    """

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes([WORKS]))
        with file.open("r+b") as opened:
            self._byte = mmap.mmap(opened.fileno(), 1)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Within it, what the worker does ends only when others have done something."""
        with self._set(WAITS):
            yield

    @contextmanager
    def works(self) -> Iterator[None]:
        """Within it, the worker waits for nobody: the part of a wait that is its own work."""
        with self._set(WORKS):
            yield

    def show(self, value: int) -> None:
        """Say so from now on."""
        self._byte[0] = value

    @contextmanager
    def _set(self, value: int) -> Iterator[None]:
        before, self._byte[0] = self._byte[0], value
        try:
            yield
        finally:
            self._byte[0] = before


def state_file(log: Path) -> Path:
    """The file with a worker's state, beside its log."""
    return log.with_suffix(".state")


class Signs:
    """Sums up the steps since the last line with figures."""

    def __init__(self, memory: Callable[[], int] | None = None) -> None:
        self._memory = memory or resident_bytes
        self.terse = False
        """No line between those with figures: every one wakes the driver, on a processor that lanes are measured on."""
        self._told = self._spoke = time.monotonic()
        self._steps, self._seconds, self._busy = 0, 0.0, 0.0

    def waits(self) -> str:
        """The line to say before a collective, empty where there is none."""
        return "" if self.terse and not self._due() else "waits"

    def _due(self) -> bool:
        """Whether a terse worker has been silent for long enough to say that it is there, in the midst of a step."""
        now = time.monotonic()
        if now - self._spoke < SILENT_S:
            return False
        self._spoke = now
        return True

    def step(self, segments: Sequence[Sequence[Any]]) -> str:
        """The line to say after a step, empty where there is none; its segments are over.

        ``alive``, or ``alive`` and a JSON object: ``steps`` since the last one, the seconds ``s`` that they took, the
        part ``busy`` of it outside of collectives, and the memory in use ``rss`` in bytes, the GPU's where the
        member works on one.
        """
        if not segments:
            return "alive"
        end = segments[-1][3]
        self._steps += 1
        self._seconds += end - segments[0][2]
        self._busy += sum(each[3] - each[2] for each in segments if each[0] != "communication")
        if end - self._told < EVERY_S:
            return "" if self.terse else "alive"
        figures = {
            "steps": self._steps,
            "s": round(self._seconds, 6),
            "busy": round(self._busy, 6),
            "rss": self._memory(),
        }
        self._told = self._spoke = end
        self._steps, self._seconds, self._busy = 0, 0.0, 0.0
        return "alive " + json.dumps(figures, separators=(",", ":"))


def resident_bytes() -> int:
    """Memory that this process has in use, in bytes; 0 where the system does not tell it cheaply."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
