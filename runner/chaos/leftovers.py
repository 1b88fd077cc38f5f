"""What a training leaves on the host when it is over: nothing, and this is where one looks for it.

Everything that a driver starts inherits its environment, so a folder for temporary files of its own marks all of them,
however they were reparented since.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ..places import PREFIX

GROUPS = Path("/sys/fs/cgroup")


@dataclass
class Sightings:
    """What was seen of a training while it ran: its processes, their network namespaces, what listened where."""

    marker: Path
    """The folder for temporary files that its processes have in their environment."""
    drivers: set[int] = field(default_factory=set)
    namespaces: set[int] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)
    """Listeners in the host's own network that are not on loopback."""

    def look(self, driver: int) -> None:
        """Take note of everything that a driver has started and that runs now."""
        own = _namespace(os.getpid())
        for process in descendants(driver):
            namespace = _namespace(process.pid)
            if namespace and namespace != own:
                self.namespaces.add(namespace)
                continue  # what listens there, nobody outside of it can reach
            for ip, port in listeners(process):
                if not ip.startswith("127.") and ip not in ("::1", "::ffff:127.0.0.1"):
                    self.exposed.add(f"{ip}:{port}")


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
    return [*_processes(seen.marker), *_namespaces(seen), *_groups(seen.drivers), *_files(seen)]


def _processes(marker: Path) -> Iterator[str]:
    for process in marked(marker):
        try:
            words = " ".join(process.cmdline())[:120]
        except psutil.NoSuchProcess:  # it has ended since it was found
            continue
        ports = "".join(f", listens at {ip}:{port}" for ip, port in listeners(process))
        yield f"process {process.pid} ({words}) still runs{ports}"


def _namespaces(seen: Sightings) -> Iterator[str]:
    for pid in psutil.pids():
        if _namespace(pid) in seen.namespaces:
            yield f"process {pid} is still in a network namespace of the training"


def _groups(drivers: Collection[int], top: Path = GROUPS) -> Iterator[str]:
    """Control groups that bear the number of a driver: ``steelyard-NAMESPACE-PID-...``."""
    for folder in top.rglob(f"{PREFIX}*"):
        parts = folder.name.split("-")
        if folder.is_dir() and len(parts) > 2 and parts[2].isdigit() and int(parts[2]) in drivers:
            yield f"control group {folder} is still there"


def _files(seen: Sightings) -> Iterator[str]:
    for each in sorted(seen.marker.iterdir()):
        yield f"{each} is still there"


def _namespace(pid: int) -> int:
    """Inode of a process's network namespace; 0 where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0
