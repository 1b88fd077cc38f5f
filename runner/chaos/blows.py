"""How each kind of fault is done to a running worker, and to which lanes of a scenario which can be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from ...results.errors import WorkerFailedError
from ..devices import NamedLane
from ..isolation.groups import LEAST_QUOTA_US, Controller, Group, group_of
from ..isolation.wiring import LANE_END
from ..worker.signs import HANG_SIGNAL
from .strikes import Kind, Victims

STARVED_PERIOD_US = 1_000_000
STARVED_CORES = LEAST_QUOTA_US / STARVED_PERIOD_US
"""The least that the kernel takes: a thousandth of a core."""
LEAST_SLOWNESS = 2.0
"""A starved step must last so many times ``timeout_s``, or the lane is slow and not lost."""
SPARE_BYTES = 2**20
"""Version 1 takes no limit below what is used: so much is left, and a small process in the group takes it."""
TRIES = 5
EAT = "bytearray(b'.') * 2**26"
"""64 MiB."""
EAT_S = 30.0


def strike(kind: Kind, victim: psutil.Process) -> None:
    """Do it to a worker, or to the driver; a disk is filled in another way (:mod:`.disk`).

    Raises:
        psutil.NoSuchProcess: it has just ended.
        WorkerFailedError: the host does not do what it was found to be able to.
    """
    BLOWS[kind](victim)


def starve(worker: psutil.Process) -> None:
    """Leave its group a thousandth of a core."""
    group = _group(worker, "cpu")
    group.set(group.place.quota(STARVED_CORES, STARVED_PERIOD_US))


def cut(worker: psutil.Process) -> None:
    """Set its end of the wire down, inside its namespaces."""
    words = ["nsenter", "--target", str(worker.pid), "--net", "ip", "link", "set", LANE_END, "down"]
    if os.getuid() != 0:
        words[1:1] = ["--user", "--preserve-credentials"]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        if not worker.is_running():
            raise psutil.NoSuchProcess(worker.pid) from error
        raise WorkerFailedError(f"the link of process {worker.pid} could not be cut: {error.stderr.strip()}") from error


def exceed_memory(worker: psutil.Process) -> None:
    """Lower its group's limit below what it uses; where the kernel refuses that, to just above, and use the rest."""
    group = _group(worker, "memory")
    used = group.used_bytes()
    try:
        group.set(group.place.limit(used // 2))
        return
    except OSError:
        _tighten(group)
    # The kernel takes the largest process of the group: the worker.
    enter = f"open({str(group.procs)!r}, 'w').write('0')"
    subprocess.run([sys.executable, "-c", f"{enter}; {EAT}"], capture_output=True, timeout=EAT_S, check=False)


def _tighten(group: Group) -> None:
    """Lower a group's limit to what it uses, and as little more as the kernel takes."""
    for more in range(1, TRIES + 1):
        try:
            group.set(group.place.limit(group.used_bytes() + more * SPARE_BYTES))
            return
        except OSError as error:
            problem = error.strerror
    raise WorkerFailedError(f"the limit of {group.path} could not be lowered: {problem}")


def _group(worker: psutil.Process, controller: Controller) -> Group:
    found = group_of(controller, Path(f"/proc/{worker.pid}"))
    if found is not None:
        return found
    if not worker.is_running():
        raise psutil.NoSuchProcess(worker.pid)
    raise WorkerFailedError(f"process {worker.pid} is in no group of its own for {controller}")


BLOWS: Mapping[Kind, Callable[[psutil.Process], None]] = {
    "kill": psutil.Process.kill,
    "stop": psutil.Process.suspend,
    "loop": lambda worker: worker.send_signal(HANG_SIGNAL),
    "starve": starve,
    "cut": cut,
    "memory": exceed_memory,
    "driver": psutil.Process.kill,
}


def victims_of(lanes: Sequence[NamedLane], step_s: float, timeout_s: float) -> tuple[Victims, list[str]]:
    """Which kinds of fault can be done to which of the lanes that train, and a note for each kind that can be to none.

    Args:
        lanes: in the order of their numbers.
        step_s: seconds of a step.
        timeout_s: after which silence is a fault.
    """
    found: dict[Kind, list[int]] = {kind: list(range(len(lanes))) for kind in ("kill", "stop", "loop")}
    found["memory"] = [number for number, lane in enumerate(lanes) if lane.memory_limit_gib]
    found["starve"] = [number for number, lane in enumerate(lanes) if lane.cpu_share < 1]
    wired = [number for number, lane in enumerate(lanes) if lane.wire.host]
    found["cut"] = wired if len(lanes) > 1 and shutil.which("nsenter") else []
    notes = [] if found["memory"] else ["no lane has a memory_limit_gib: no worker exceeds its memory"]
    if found["starve"] and step_s < LEAST_SLOWNESS * timeout_s * STARVED_CORES:
        found["starve"] = []
        notes.append(f"a step of {step_s * 1e3:.0f} ms ends on a thousandth of a core, too: no lane is starved")
    elif not found["starve"]:
        notes.append("no lane has a cpu_share: none is starved")
    if not found["cut"]:
        notes.append("no lane has a host of its own, or nsenter is not installed: no link is cut")
    return {kind: own for kind, own in found.items() if own}, notes
