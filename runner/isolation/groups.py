"""Control groups: how much of a core's time and of the memory a lane's processes may use.

Version 2 (``cpu.max``, ``memory.max``) and version 1 (``cpu.cfs_quota_us``, ``memory.limit_in_bytes``) of the Linux
kernel's interface (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, scheduler/sched-bwc.rst:
recalled). Which of them a host has, and where this process may make groups, is found by making one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .owner import PREFIX, Owner, owner_of

Controller = Literal["cpu", "memory"]
CONTROLLERS: tuple[Controller, ...] = ("cpu", "memory")
LEAST_QUOTA_US = 1000
"""The kernel takes no shorter quota; a small share gets a longer period instead."""
REMOVE_S = 5.0
"""How long a group may take to let go of processes that have ended."""


@dataclass(frozen=True)
class Place:
    """Where groups with a controller can be made on this host."""

    controller: Controller
    version: Literal[1, 2]
    parent: Path

    def quota(self, cores: float, period_us: int) -> dict[str, str]:
        """Files and values that allow so many cores' time in each period."""
        period = max(period_us, round(LEAST_QUOTA_US / cores))
        quota = round(cores * period)
        if self.version == 2:
            return {"cpu.max": f"{quota} {period}"}
        return {"cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(quota)}

    def no_quota(self) -> dict[str, str]:
        """Files and values of a group that may use all of the time."""
        return {"cpu.max": "max"} if self.version == 2 else {"cpu.cfs_quota_us": "-1"}

    def limit(self, limit_bytes: int) -> dict[str, str]:
        """Files and values that allow so many bytes; what swaps instead of failing is no limit, so swap is in it."""
        if self.version == 2:
            return {"memory.max": str(limit_bytes), "memory.swap.max": "0"}
        return {"memory.limit_in_bytes": str(limit_bytes), "memory.memsw.limit_in_bytes": str(limit_bytes)}


OPTIONAL = ("memory.swap.max", "memory.memsw.limit_in_bytes")
"""Files that a kernel without accounting of swap does not have."""


@dataclass(frozen=True)
class Group:
    """One control group that this process made."""

    place: Place
    path: Path

    @property
    def procs(self) -> Path:
        """The file to which a process writes its number to become a member."""
        return self.path / "cgroup.procs"

    def set(self, values: Mapping[str, str]) -> None:
        """Write the group's limits, in order.

        Raises:
            OSError: the kernel refuses one.
        """
        for name, value in values.items():
            if name not in OPTIONAL or (self.path / name).exists():
                (self.path / name).write_text(value)

    def members(self) -> list[int]:
        """Numbers of its processes; 0 stands for one that this namespace cannot see."""
        return [int(line) for line in self.procs.read_text().split()]

    @property
    def kills_file(self) -> Path:
        """The file that counts the processes that the kernel has killed for want of memory."""
        return self.path / ("memory.events" if self.place.version == 2 else "memory.oom_control")

    def oom_kills(self) -> int:
        """How many those are."""
        return _counter(self.kills_file, "oom_kill")

    def used_bytes(self) -> int:
        """Memory that its processes use now."""
        name = "memory.current" if self.place.version == 2 else "memory.usage_in_bytes"
        return int((self.path / name).read_text())

    def remove(self) -> None:
        """Kill what is left in the group, and remove it; a group that is gone already is no error.

        Raises:
            OSError: it still holds a process after :data:`REMOVE_S`, which only one of another owner can be.
        """
        end = time.monotonic() + REMOVE_S
        while self.path.exists():
            try:
                self._empty()
                self.path.rmdir()
            except FileNotFoundError:
                return  # its warden was faster
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _empty(self) -> None:
        for pid in self.members():
            try:
                if pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended between the two lines


def make_group(place: Place, name: str, values: Mapping[str, str]) -> Group:
    """Make a group with these limits; one that cannot have them is removed again.

    Raises:
        OSError: the kernel refuses.
    """
    group = Group(place, place.parent / name)
    group.path.mkdir(exist_ok=True)  # one hierarchy of version 2 has both controllers: the same group twice
    try:
        group.set(values)
    except OSError:
        group.remove()
        raise
    return group


def find_place(controller: Controller, proc: Path = Path("/proc/self")) -> tuple[Place | None, str]:
    """Where this process can make groups with a controller, and in a sentence how, or why nowhere.

    Every candidate is tried by making a group, limiting it and moving a process into it.
    """
    reasons = [f"this host mounts no control groups with the {controller} controller"]
    for place in candidates(controller, proc):
        try:
            _try(place)
        except OSError as error:
            reasons.append(f"{error.strerror or error} at {error.filename or place.parent}")
        else:
            return place, f"control groups, version {place.version}"
    return None, reasons[-1]


def group_of(controller: Controller, proc: Path) -> Group | None:
    """The group of this project's making that limits a process in what a controller has; None: there is none.

    Args:
        controller: of processor time or of memory.
        proc: the process's folder in ``/proc``.
    """
    own = _own_groups(proc)
    for root, mount, kind, options in _mounts(proc):
        version: Literal[1, 2] = 2 if kind == "cgroup2" else 1
        path = _within(mount, root, own.get("" if version == 2 else controller, "/"))
        limiting = (path / f"{controller}.max").exists() if version == 2 else controller in options
        if limiting and path.name.startswith(PREFIX):
            return Group(Place(controller, version, path.parent), path)
    return None


def sweep(places: Sequence[Place]) -> list[Path]:
    """Remove the groups whose makers have ended without doing so; which they were.

    A group that cannot be removed now (another sweeper, a member that is not ours to see) waits for the next sweep.
    """
    found = []
    for place in places:
        for path in sorted(place.parent.glob("steelyard-*")):
            owner = owner_of(path.name)
            if owner is None or not owner.gone:
                continue
            group = Group(place, path)
            try:
                if 0 not in group.members():
                    group.remove()
                    found.append(path)
            except OSError:
                continue
    return found


def throttled_s(stat: str) -> float:
    """Seconds of a ``cpu.stat`` text that a quota kept runnable threads waiting, summed over the cores."""
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":  # version 2
            return int(value) / 1e6
        if name == "throttled_time":  # version 1
            return int(value) / 1e9
    return 0.0


def throttled_periods_s(folder: Path, before: int = 0) -> tuple[int, float]:
    """In how many periods a quota has kept a group from running, and for how long that was since an earlier count.

    The seconds that ``cpu.stat`` sums up stand still while a throttle lasts; periods are counted in it, too.
    """
    count = _counter(folder / "cpu.stat", "nr_throttled")
    if (whole := folder / "cpu.max").exists():  # version 2
        period_us = int(whole.read_text().split()[1])
    else:
        period_us = int((folder / "cpu.cfs_period_us").read_text())
    return count, (count - before) * period_us / 1e6


def _try(place: Place) -> None:
    values = place.quota(0.5, 10_000) if place.controller == "cpu" else place.limit(2**28)
    group = make_group(place, Owner.here().name(), values)
    try:
        sleep = shutil.which("sleep") or "/bin/sleep"
        with subprocess.Popen([sleep, "60"]) as child:
            try:
                group.procs.write_text(str(child.pid))
            finally:
                child.kill()
    finally:
        group.remove()


def candidates(controller: Controller, proc: Path) -> Iterator[Place]:
    """Version 2: the process's own group and those above that hand the controller down; version 1: top, then own.

    A hierarchy of version 1 knows no delegation, so its top is tried first, where other groups have no say.
    """
    own = _own_groups(proc)
    for root, mount, kind, options in _mounts(proc):
        if kind == "cgroup2" and "" in own:
            here = _within(mount, root, own[""])
            for parent in [here, *here.parents]:
                if parent.is_relative_to(mount) and controller in _words(parent / "cgroup.subtree_control"):
                    yield Place(controller, 2, parent)
        elif kind == "cgroup" and controller in options:
            yield Place(controller, 1, mount)
            here = _within(mount, root, own.get(controller, "/"))
            if here != mount:
                yield Place(controller, 1, here)


def _own_groups(proc: Path) -> dict[str, str]:
    """Path of the process's group per controller; that of version 2 under the empty name."""
    lines = _words(proc / "cgroup", lines=True)
    return {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}


def _mounts(proc: Path) -> Iterator[tuple[str, Path, str, list[str]]]:
    """Root within the hierarchy, mount point, type and options of the mounted control groups."""
    for line in _words(proc / "mountinfo", lines=True):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield fields[3], Path(fields[4]), kind, options.split(",")


def _within(mount: Path, root: str, path: str) -> Path:
    """A group's folder below a mount that shows the hierarchy from ``root`` down."""
    inner = path.removeprefix(root.rstrip("/")).strip("/")
    return mount / inner if ".." not in inner else mount


def _words(file: Path, *, lines: bool = False) -> list[str]:
    """What a file of the kernel says; nothing where it is not there (another system, no such controller)."""
    try:
        text = file.read_text()
    except OSError:
        return []
    return text.splitlines() if lines else text.split()


def _counter(file: Path, name: str) -> int:
    pairs = (line.split() for line in _words(file, lines=True))
    return next((int(pair[1]) for pair in pairs if pair[0] == name), 0)
