"""How long a quota of processor time has kept this worker from running."""

from __future__ import annotations

import os
from pathlib import Path

from ..isolation.groups import throttled_s


class Quota:
    """The quota of the group that this process is in, if there is one."""

    def __init__(self, cpu_stat: str, cores: int) -> None:
        """``cpu_stat``: the group's file (empty: no quota); ``cores``: over how many cores its times are summed."""
        self.cores = cores
        self._file = os.open(Path(cpu_stat), os.O_RDONLY) if cpu_stat else None

    def throttled_s(self) -> float:
        """Seconds for which it was ready and not run because its quota was used up; 0 without a quota."""
        if self._file is None:
            return 0.0
        return throttled_s(os.pread(self._file, 4096, 0).decode()) / self.cores
