"""What the kernel shows of a worker that is in trouble: stopped, out of memory, or sending into the void."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

RETRANSMITTING, PROBING = 1, 4
"""Timers of a row of ``/proc/net/tcp``: data was sent and not acknowledged; data waits, and it is probed whether any
can be sent. The latter is also the timer of data that was written when the link was dead already."""
UNANSWERED = 2
"""Retransmissions or probes without an answer after which a connection counts as cut: a healthy one on a host's own
links needs none, and a peer that only does not read answers probes."""
MEMORY_KILLS = (("memory", "memory.oom_control"), ("", "memory.events"))
"""Controller, as ``/proc/PID/cgroup`` names it (none: version 2), and the file that counts kills for lack of memory."""


@dataclass(frozen=True)
class MemoryGroup:
    """The control group that limits a worker's memory, and how many it had killed when the worker began."""

    file: Path
    kills: int

    def has_killed(self) -> bool:
        """Whether the limit has had a process killed since."""
        return _kills(self.file) > self.kills


def memory_group(pid: int, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> MemoryGroup | None:
    """The control group of a process's memory; None where the system has or shows none."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}
    for controller, file in MEMORY_KILLS:
        found = groups / controller / paths.get(controller, "-").lstrip("/") / file
        if controller in paths and found.is_file():
            return MemoryGroup(found, _kills(found))
    return None


def _kills(file: Path) -> int:
    try:
        fields = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
    except (OSError, ValueError):  # the group is gone, and its count with it
        return 0
    return int(fields.get("oom_kill", 0))


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal and not continued."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def is_blocked(pid: int) -> bool:
    """Whether a process is held by the kernel: in a disk's or file server's wait, or frozen."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_DISK_SLEEP, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Connection:
    """One of a process's TCP connections: addresses without ports, and whether what it sent gets no answer."""

    local: str
    remote: str
    unanswered: bool


def connections(pid: int, proc: Path = Path("/proc")) -> list[Connection]:
    """The TCP connections of a process, in whatever network namespace it is; none where the system does not show them.

    The columns are those of the kernel's documentation, ``networking/proc_net_tcp`` (recalled).
    """
    folder = proc / str(pid)
    try:
        own = set(_open_files(folder / "fd"))
        rows = [line.split() for name in ("tcp", "tcp6") for line in _rows(folder / "net" / name)]
    except OSError:
        return []
    return list(_connections(rows, own))


def _open_files(folder: Path) -> Iterator[str]:
    for each in folder.iterdir():
        try:
            yield str(each.readlink())
        except FileNotFoundError:  # closed since it was listed
            continue


def _rows(file: Path) -> list[str]:
    return file.read_text().splitlines()[1:] if file.exists() else []


def _connections(rows: Iterable[Sequence[str]], own: set[str]) -> Iterator[Connection]:
    for row in rows:
        established = row[3] == "01"
        if established and f"socket:[{row[9]}]" in own:
            timer, retransmissions, probes = int(row[5].split(":")[0], 16), int(row[6], 16), int(row[8])
            tried = {RETRANSMITTING: retransmissions, PROBING: probes}.get(timer, 0)
            unanswered = tried >= UNANSWERED
            yield Connection(_address(row[1]), _address(row[2]), unanswered)


def _address(field: str) -> str:
    """The address of a field like ``0100007F:1F90``: words of 32 bits in the host's byte order."""
    digits = field.partition(":")[0]
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed).removeprefix("::ffff:")
