"""The quota of processor time that a worker is under: how long it was kept from running, and being slowed by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..isolation.groups import Group, Place, throttled_s


class Quota:
    """The quota of the group that this process is in, if there is one."""

    def __init__(self, cpu_stat: str, cores: int, pace: dict[str, Any] | None = None) -> None:
        """What the driver says of this worker's room.

        Args:
            cpu_stat: the group's file; empty: no quota.
            cores: over how many cores its times are summed.
            pace: the group's ``version``, whether it is ``limited``, to how many ``quota_cores`` in which
                ``period_us``; None: it is not to be changed.
        """
        self.cores = cores
        self._file = os.open(Path(cpu_stat), os.O_RDONLY) if cpu_stat else None
        self._folder, self._pace = Path(cpu_stat).parent, pace

    def throttled_s(self) -> float:
        """Seconds for which it was ready and not run because its quota was used up; 0 without a quota."""
        if self._file is None:
            return 0.0
        return throttled_s(os.pread(self._file, 4096, 0).decode()) / self.cores

    def slow(self, factor: float) -> bool:
        """Leave this process so many times less of its cores' time; 1: what it had in the beginning.

        Returns:
            Whether it could be done; where not, there is the quota that there was.
        """
        if self._pace is None:
            return False
        place = Place("cpu", self._pace["version"], self._folder.parent)
        cores, period_us = self._pace["quota_cores"] / factor, self._pace["period_us"]
        free = factor == 1.0 and not self._pace["limited"]
        try:
            Group(place, self._folder).set(place.no_quota() if free else place.quota(cores, period_us))
        except OSError:  # less than the kernel takes, or it is not ours to change
            return False
        return True
