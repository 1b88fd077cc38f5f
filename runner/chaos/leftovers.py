"""What a training leaves on the host when it is over: nothing, and this is where one looks for it.

Everything that a driver starts inherits its environment, so a folder for temporary files of its own marks all of them,
however they were reparented since.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ..places import PREFIX

GROUPS = Path("/sys/fs/cgroup")
GONE_S = 2.0
"""Within which the kernel ends the processes whose parents have ended, and takes their namespaces away."""


@dataclass
class Sightings:
    """What was seen of a training while it ran: its processes, their network namespaces, what listened where."""

    marker: Path
    """The folder for temporary files that its processes have in their environment."""
    drivers: set[int] = field(default_factory=set)
    namespaces: set[int] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)
    """Listeners in the host's own network that are not on loopback."""
    ports: set[int] = field(default_factory=set)
    """All ports in the host's own network at which something listened."""
    mounts: set[int] = field(default_factory=set)
    """Mount namespaces that are not the host's own."""

    def look(self, driver: int) -> None:
        """Take note of everything that a driver has started and that runs now."""
        own = _namespace(os.getpid())
        mounts = _namespace(driver, "mnt")
        if mounts and mounts != _namespace(os.getpid(), "mnt"):
            self.mounts.add(mounts)
        for process in descendants(driver):
            namespace = _namespace(process.pid)
            if namespace and namespace != own:
                self.namespaces.add(namespace)
                continue  # what listens there, nobody outside of it can reach
            for ip, port in listeners(process):
                self.ports.add(port)
                if not ip.startswith("127.") and ip not in ("::1", "::ffff:127.0.0.1"):
                    self.exposed.add(f"{ip}:{port}")


@dataclass(frozen=True)
class Holding:
    """What a driver's launch has on the host at a moment: processes, control groups, namespaces, ports."""

    driver: int
    processes: Sequence[psutil.Process]
    groups: Sequence[Path]
    namespaces: frozenset[int]
    ports: frozenset[int]

    @classmethod
    def of(cls, driver: int) -> Holding:
        """Look with ``/proc``, the tree of control groups, and what the processes listen at."""
        processes = descendants(driver)
        namespaces = frozenset(map(_namespace, (each.pid for each in processes))) - {0, _namespace(driver)}
        hosts = [each for each in processes if _namespace(each.pid) not in namespaces]
        ports = frozenset(port for each in hosts for _, port in listeners(each))
        return cls(driver, processes, list(_groups_of({driver})), namespaces, ports)

    @property
    def spent_s(self) -> float:
        """Seconds of processor time of its processes, and of those that they have waited for."""
        found = 0.0
        for each in self.processes:
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                found += times.user + times.system + times.children_user + times.children_system
        return found

    def left(self, *, groups: bool = True) -> list[str]:
        """What is still there when the launch is over and the kernel has had its time: a sentence each.

        ``groups``: whether control groups are to be gone as well; those of a killed driver go with the next launch.
        """
        end = time.monotonic() + GONE_S
        while (found := self._left(groups)) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _left(self, with_groups: bool) -> list[str]:
        """What is there now.

        A launch that has begun since may have the numbers of namespaces and ports that were given back: what its
        processes hold is theirs.
        """
        running = [each for each in self.processes if _runs(each)]
        theirs = {each.pid for each in descendants(self.driver)} - {each.pid for each in running}
        processes = [f"process {each.pid} ({_words(each)}) of the launch still runs" for each in running]
        existing = [path for path in self.groups if with_groups and path.exists()]
        groups = [f"control group {path} of the launch is still there" for path in existing]
        spaces = [
            f"process {pid} is still in a network namespace of the launch"
            for pid in psutil.pids()
            if pid not in theirs and _namespace(pid) in self.namespaces
        ]
        return [*processes, *groups, *spaces, *_open_ports(self.ports, theirs)]


def _runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that its parent has not taken note of has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:120]
    except psutil.NoSuchProcess:
        return "it has ended since"


def _open_ports(ports: Collection[int], theirs: Collection[int]) -> Iterator[str]:
    """Ports among some at which, as ``ss`` says, something listens that is none of some processes."""
    if shutil.which("ss") is None:
        return
    answer = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=False)
    for line in answer.stdout.splitlines():
        address = line.split()[3]
        owners = {int(pid) for pid in re.findall(r"pid=(\d+),", line)}
        if int(address.rpartition(":")[2]) in ports and not owners & set(theirs):
            yield f"something still listens at {address}: {line.split()[-1]}"


def descendants(pid: int) -> list[psutil.Process]:
    """A process's children and theirs; none when it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def marked(marker: Path) -> list[psutil.Process]:
    """Processes that have the folder in their environment; dead ones have none any more."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(marker):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def listeners(process: psutil.Process) -> list[tuple[str, int]]:
    """Addresses and ports at which a process listens."""
    try:
        connections = process.net_connections("inet")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
    return [(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN]


def left_behind(seen: Sightings) -> list[str]:
    """Everything of a training that is still there: a sentence each; none is as it should be."""
    return [
        *_processes(seen.marker),
        *_namespaces(seen),
        *_mounts(seen),
        *_groups(seen.drivers),
        *_ports(seen),
        *_files(seen),
    ]


def _processes(marker: Path) -> Iterator[str]:
    for process in marked(marker):
        ports = "".join(f", listens at {ip}:{port}" for ip, port in listeners(process))
        yield f"process {process.pid} ({_words(process)}) still runs{ports}"


def _namespaces(seen: Sightings) -> Iterator[str]:
    for pid in psutil.pids():
        if _namespace(pid) in seen.namespaces:
            yield f"process {pid} is still in a network namespace of the training"


def _mounts(seen: Sightings) -> Iterator[str]:
    """Processes in a mount namespace of the training, and mounts of the host's own in the training's folder."""
    for pid in psutil.pids():
        if _namespace(pid, "mnt") in seen.mounts:
            yield f"process {pid} is still in a mount namespace of the training"
    within = seen.marker.parent.resolve()
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text().splitlines() if mounts.is_file() else []:
        place = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]))
        if place.is_relative_to(within):
            yield f"{place.relative_to(within.parent)} is still mounted"


def _groups(drivers: Collection[int]) -> Iterator[str]:
    for folder in _groups_of(drivers):
        yield f"control group {folder} is still there"


def _groups_of(drivers: Collection[int], top: Path = GROUPS) -> Iterator[Path]:
    """Control groups that bear the number of a driver: ``steelyard-NAMESPACE-PID-...``."""
    for folder in top.rglob(f"{PREFIX}*"):
        parts = folder.name.split("-")
        if folder.is_dir() and len(parts) > 2 and parts[2].isdigit() and int(parts[2]) in drivers:
            yield folder


def _ports(seen: Sightings) -> Iterator[str]:
    """Ports of the training at which something listens that no process shows: the processes are told of above."""
    yield from _open_ports(seen.ports, psutil.pids())


def _files(seen: Sightings) -> Iterator[str]:
    for each in sorted(seen.marker.iterdir()):
        yield f"{each.relative_to(seen.marker.parents[1])} is still there"


def _namespace(pid: int, kind: str = "net") -> int:
    """Inode of a process's namespace of a kind (by default the network's); 0 where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
    except OSError:
        return 0
