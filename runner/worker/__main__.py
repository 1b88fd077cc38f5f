"""Does the tasks of a job in step with its peers, writes what it measured, and ends.

Run as ``python -m steelyard.runner.worker FOLDER RANK`` by :mod:`steelyard.runner.launch`, which sets the environment
that caps the instruction set. The order of the first lines matters: affinity before torch is imported, threads after.
Its standard input is a pipe from the driver; when that closes, the driver is gone and the worker ends at once. On Linux
the kernel kills it besides, which ends one that a signal has stopped too.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from . import course, timing
from .member import Member, say
from .signs import FOR_EVER, HANG_SIGNAL
from .tasks import TASKS

PR_SET_PDEATHSIG = 1
"""Of ``prctl(2)``: the signal that a process gets when its parent dies."""

HELD_S = 0.01
"""Between two looks for the driver's sign to go on."""
TIMED = timing.TASKS.keys() | course.TASKS.keys()
"""Tasks whose steps are timed."""


def main() -> None:
    """Do the job in the folder as the member of the given rank."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_driver, daemon=True).start()
    _be_killed_with_driver()
    job = json.loads((folder / "job.json").read_text())
    lane = job["lanes"][rank]
    if lane["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, lane["cpus"])
    gc.disable()  # libraries that are loaded leave nothing to collect: looking for it takes a sixth of the start
    import torch

    torch.set_num_threads(lane["threads"])
    member = Member(job, rank, folder)
    _load_for(job["tasks"])
    gc.freeze()
    gc.enable()
    _hang_when_asked(member)
    say("done 0")
    results = []
    for number, task in enumerate(job["tasks"], 1):
        member.signs.terse = task["op"] in TIMED  # whoever trains counts steps by lines
        results.append(TASKS[task["op"]](member, task))
        say(f"done {number} {results[-1].get('loss', '')}".rstrip())
        if number == job["hold_after"]:
            _hold(member, results, folder)
    _write(results, folder / f"rank-{rank}.json")
    if member.world > 1:
        member.meet()
        torch.distributed.destroy_process_group()


def _load_for(tasks: list[dict[str, Any]]) -> None:
    """Load now what pipelines and sharded states need: later, a member is silent for seconds, and taken to hang."""
    plans = [task.get("division") or task for task in tasks]
    programs = [plan["program"] for plan in plans if "program" in plan]
    if programs or any(task["op"] == "rebalance" for task in tasks):
        from . import staged  # noqa: F401 - to be there
    if any(program.get("zero", 0) > 1 for program in programs):
        from . import fully  # noqa: F401


def _write(results: list[dict[str, Any]], file: Path) -> None:
    """The file is there when it is whole."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(results))
    partial.rename(file)


def _hold(member: Member, results: list[dict[str, Any]], folder: Path) -> None:
    """Tell the driver what was measured so far, and wait until it has looked at that."""
    _write(results, folder / f"so-far-{member.rank}.json")
    say("holding")
    with member.state.waits():
        while not (folder / "go").exists():
            time.sleep(HELD_S)


def _end_with_driver() -> None:
    """Block on standard input; its end means that the driver is gone."""
    while os.read(0, 1):
        pass
    os._exit(3)


def _hang_when_asked(member: Member) -> None:
    """Have a signal slow the member down for ever: it loops in its next pass, which waits for nobody."""

    def hang(number: int, frame: FrameType | None) -> None:
        member.slow = FOR_EVER

    signal.signal(HANG_SIGNAL, hang)


def _be_killed_with_driver() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave(code: int) -> NoReturn:
    """End without taking the interpreter apart.

    Threads of gloo may still hold tensors whose release asks for an interpreter that is no more, and abort the process
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> NoReturn:
    traceback.print_exception(kind, error, trace)
    _leave(1)


if __name__ == "__main__":
    sys.excepthook = _fail
    main()
    _leave(0)
