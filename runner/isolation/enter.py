"""The way into a lane: join its control groups and its network, then become the worker.

Run as ``python -m steelyard.runner.isolation.enter ROOM COMMAND...``; ``ROOM`` is JSON: ``procs``, the files of the
groups to join, and ``network``, the number of a process in the namespaces to enter (0: stay). It happens in the process
that becomes the worker, before that imports torch, so nothing of the worker is ever outside.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

NEW_USER, NEW_NET = 0x10000000, 0x40000000
"""``CLONE_NEWUSER`` and ``CLONE_NEWNET`` of Linux' sched.h."""


def enter_namespaces(pid: int) -> None:
    """Enter the user namespace of a process, where that is another one, and its network namespace.

    Raises:
        OSError: it has ended, or this process may not.
    """
    here, there = Path("/proc/self/ns"), Path(f"/proc/{pid}/ns")
    # Both are opened first: from within the new user namespace, the process might not be ours to look at.
    with (there / "user").open() as user, (there / "net").open() as net:
        if os.fstat(user.fileno()).st_ino != (here / "user").stat().st_ino:
            call("setns", user.fileno(), NEW_USER)
        call("setns", net.fileno(), NEW_NET)


def call(name: str, *arguments: int) -> None:
    """A function of the C library that answers 0 (``os.setns`` and ``os.unshare`` came with Python 3.12).

    Raises:
        OSError: it answers anything else.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main(words: Sequence[str]) -> None:
    """Join, then replace this process by the command."""
    room = json.loads(words[0])
    for file in room["procs"]:
        Path(file).write_text(str(os.getpid()))
    if room["network"]:
        enter_namespaces(room["network"])
    os.execv(words[1], list(words[1:]))  # noqa: S606 - the command of the driver, and no shell


if __name__ == "__main__":
    main(sys.argv[1:])
