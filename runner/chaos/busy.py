"""Whether a host did more than the training under faults: then what it noticed late says nothing of the driver."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from typing import Any

from ..condition import changes, condition

OTHERS_PERCENT = 10.0
"""More of the processors' time than this, spent by processes that are not ours, and the host counts as busy."""


def spent_s() -> float:
    """Seconds of processor time of this process, and of those that it, or one of them, has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in usages)


@dataclass
class Busy:
    """The host from a moment on."""

    before: dict[str, Any] = field(default_factory=condition)
    own_s: float = field(default_factory=spent_s)

    def own(self, seconds: float) -> None:
        """Count processor time as one's own: of processes that this one has started and cannot wait for."""
        self.own_s -= seconds

    def reasons(self) -> list[str]:
        """Why the host counts as busy since then, in sentences; empty: it does not.

        What this process started counts as its own once it has ended and was waited for.
        """
        now = condition()
        span_s = max(1e-9, now["clock_s"] - self.before["clock_s"])
        others_s = now["busy_s"] - self.before["busy_s"] - (spent_s() - self.own_s)
        percent = 100 * others_s / (span_s * (os.cpu_count() or 1))
        found = [f"other processes took {percent:.0f} % of the processors' time"] if percent > OTHERS_PERCENT else []
        return [*found, *changes(self.before, now)]
