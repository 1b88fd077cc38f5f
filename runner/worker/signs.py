"""Signs of life with figures: a few times a second, the line after a step also says how the steps went."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVERY_S = 0.25
"""Between two lines with figures: what a view of the running training can show at most."""


class Signs:
    """Sums up the steps since the last line with figures."""

    def __init__(self) -> None:
        self._told = time.monotonic()
        self._steps, self._seconds, self._busy = 0, 0.0, 0.0

    def step(self, segments: Sequence[Sequence[Any]]) -> str:
        """The line to say after a step; its segments are over, so nothing that is timed gets longer.

        ``alive``, or ``alive`` and a JSON object: ``steps`` since the last one, the seconds ``s`` that they took, the
        part ``busy`` of it outside of collectives, and the process's memory ``rss`` in bytes.
        """
        if not segments:
            return "alive"
        end = segments[-1][3]
        self._steps += 1
        self._seconds += end - segments[0][2]
        self._busy += sum(each[3] - each[2] for each in segments if each[0] != "communication")
        if end - self._told < EVERY_S:
            return "alive"
        figures = {
            "steps": self._steps,
            "s": round(self._seconds, 6),
            "busy": round(self._busy, 6),
            "rss": resident_bytes(),
        }
        self._told = end
        self._steps, self._seconds, self._busy = 0, 0.0, 0.0
        return "alive " + json.dumps(figures, separators=(",", ":"))


def resident_bytes() -> int:
    """Memory that this process has in use, in bytes; 0 where the system does not tell it cheaply."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
