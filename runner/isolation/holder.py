"""The process that holds the namespaces of a launch, and with them the network between its lanes.

Run as ``python -m steelyard.runner.isolation.holder MODE``: it reads one line, a layout, makes a network namespace
(``MODE`` "user": within a user namespace of its own, which needs no privilege), builds the network in it with a child
per lane that holds the lane's namespace, and writes one line: the numbers of the children, or an error. Then it waits
for the end of its standard input. Nothing has a name and nothing is in the host's own namespace: when the last process
inside has ended, however it ended, the kernel takes everything away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from .enter import NEW_NET, NEW_USER, call

Mode = Literal["root", "user"]
PR_SET_PDEATHSIG, SIGKILL = 1, 9


class NetworkError(Exception):
    """The host refuses a part of a network; the message says which."""


@contextmanager
def held(layout: dict[str, Any], mode: Mode) -> Iterator[list[int]]:
    """The network of a layout for as long as the context lasts: per lane the number of a process inside.

    Raises:
        NetworkError: the host refuses.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "steelyard.runner.isolation.holder", mode],
        stdin=subprocess.PIPE,  # closes when this process dies, however it dies
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it died before it could read: its silence is the answer
                process.stdin.write(json.dumps(layout) + "\n")
                process.stdin.flush()
            answer = json.loads(process.stdout.readline() or '{"error": "the holder of the namespaces died"}')
            if "error" in answer:
                raise NetworkError(answer["error"])
            yield answer["pids"]
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()


def main(mode: str) -> None:
    """Build what standard input says, answer, and hold it until standard input ends."""
    pids: list[int] = []
    try:
        document = json.loads(sys.stdin.readline())
        unshare(mode)
        run(document["core"])
        for lane in document["lanes"]:
            pids.append(_lane(lane))
    except (OSError, subprocess.CalledProcessError) as error:
        problem = getattr(error, "stderr", None) or error
        sys.stdout.write(json.dumps({"error": str(problem).strip().splitlines()[0]}) + "\n")
    else:
        sys.stdout.write(json.dumps({"pids": pids}) + "\n")
    sys.stdout.flush()
    while os.read(0, 1):
        pass


def unshare(mode: str) -> None:
    """Leave the host's network for a new one; "user": as the root of a new user namespace, which is nobody outside.

    Raises:
        OSError: this process may not.
    """
    uid, gid = os.getuid(), os.getgid()
    call("unshare", NEW_NET | (NEW_USER if mode == "user" else 0))
    if mode == "user":
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def run(commands: Sequence[Sequence[str]], pid: int = 0) -> None:
    """Run commands in turn.

    Raises:
        OSError, subprocess.CalledProcessError: one is not installed, or fails.
    """
    for command in commands:
        words = [str(pid) if word == "PID" else word for word in command]
        subprocess.run(words, check=True, capture_output=True, text=True)


def _lane(lane: dict[str, Any]) -> int:
    """A child that holds one lane's namespace, wired up; its number."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _hold(lane["inside"], ready[1], go[0])
    os.close(ready[1])
    os.close(go[0])
    _expect(ready[0])  # its namespace is there
    run(lane["outside"], pid)
    os.write(go[1], b".")
    _expect(ready[0])  # its end of the wire is up
    return pid


def _expect(ready: int) -> None:
    problem = os.read(ready, 4096).decode()
    if problem != ".":
        raise OSError(problem or "the holder of a lane's namespace died")


def _hold(commands: Sequence[Sequence[str]], ready: int, go: int) -> None:
    """What the child does: a namespace of its own, then its end of the wire, then nothing until its parent ends."""
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    try:
        call("unshare", NEW_NET)
        os.write(ready, b".")
        os.read(go, 1)
        run(commands)
        os.write(ready, b".")
    except (OSError, subprocess.CalledProcessError) as error:
        os.write(ready, str(getattr(error, "stderr", None) or error).encode()[:4096])
    while os.read(0, 1):  # the driver's pipe
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
