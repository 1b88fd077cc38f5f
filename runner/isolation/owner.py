"""Who made a thing on this host: its name says it, so that what a killed process left can be told and removed."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "steelyard"
NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)-(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Owner:
    """A process, told from a later one of the same number by when it started, and from one of another container."""

    namespace: int
    """Inode of its namespace of process numbers."""
    pid: int
    started: int
    """Clock ticks from the host's start to the process's."""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(_namespace(), os.getpid(), _started(os.getpid()) or 0)

    def name(self) -> str:
        """A new name for something that this owner makes."""
        return f"{PREFIX}-{self.namespace}-{self.pid}-{self.started}-{secrets.token_hex(4)}"

    @property
    def gone(self) -> bool:
        """Whether the process has ended; one of another namespace of numbers cannot be seen, so it counts as alive."""
        return self.namespace == _namespace() and _started(self.pid) != self.started


def owner_of(name: str) -> Owner | None:
    """The owner that a name tells of; None for names that are not ours."""
    found = NAME.fullmatch(name)
    return Owner(*map(int, found.groups())) if found else None


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _started(pid: int) -> int | None:
    """When a process started; None for one that has ended, also while its parent has not taken note."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(fields[18])
