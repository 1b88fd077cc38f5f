"""Watching a group of workers: reading their signs of life, and saying which one is at fault when the group is stuck.

A worker writes a line after every step and task (four times a second where it is timed, which lines would disturb),
and keeps a byte that says whether it waits for others: in a collective, for a message of a neighbour, for the
driver. So when all are silent, the one at fault is the one that does not wait. How many lines each has written does
not tell: stages of a pipeline have different numbers of passes. They are counted only where a worker shows no such
byte yet; that of one on another machine is shown here by what stands for it (:mod:`.hosts.relay`). What workers cannot
tell, the kernel does: who was stopped, who was killed for its memory, whom its quota starves though it seems to wait,
whose connection gets no answer.

=============================  ==============================================================
fault                          detected within
=============================  ==============================================================
a worker died                  ``GRACE_S`` and a poll: 2 s
a worker stopped (SIGSTOP)     ``STOPPED_S``, or ``timeout_s`` if that is shorter, and 2 s
a worker hung, a link was cut  ``timeout_s`` and 2 s (before and after tasks ``START_TIMEOUT_S``)
=============================  ==============================================================
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from ..results.errors import WorkerFailedError
from .devices import NamedLane
from .isolation.groups import throttled_periods_s
from .symptoms import MemoryGroup, connections, is_blocked, is_stopped, memory_group
from .worker.signs import WAITS, state_file

START_TIMEOUT_S = 120.0
"""Before the first task, while libraries are loaded, and after the last, while they are let go."""
GRACE_S = 0.5
"""After the first worker died, the others get this long to show that they died first."""
STOPPED_S = 5.0
"""A worker that a signal stopped for so long is given up: nobody stops one for its own good."""
MARGIN_S = 2.0
"""From the moment at which a fault can be told to its line in a journal, when all that the group held is freed."""
LOOKED_AT_S = 0.5
"""Between two looks at the state of silent workers."""
STARVED_SHARE = 0.5
"""A worker that its quota kept from running for more than this share of its silence is starved by it."""
BLAMES_PEER = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe")
"""What a worker's last words say when the fault is another's."""
NO_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory", "CUDA out of memory")

Progress = Callable[[str, int, float], None]
"""Called with a lane's name, the number of tasks that it has done, and its part of the loss (0: it trained nothing)."""
Listen = Callable[[str, str], None]
"""Called with a lane's name and each line that its worker writes."""
Kind = Literal["killed", "memory", "erred", "ended", "stopped", "hung", "link", "driver"]


def noticed_within_s(kind: Kind, timeout_s: float) -> float:
    """Seconds from a fault that befalls a group at its tasks to its line in a journal: what is stated above."""
    if kind == "stopped":
        return min(timeout_s, STOPPED_S) + MARGIN_S
    return MARGIN_S + (timeout_s if kind in ("hung", "link") else 0.0)


@dataclass(frozen=True)
class Fault:
    """What went wrong with a group."""

    kind: Kind
    lane: str | None
    """Whose fault it is; None: no single lane's."""
    what: str
    """In a sentence."""
    silent_s: float
    """Since the last sign of life of any worker."""


class FaultError(WorkerFailedError):
    """A group has failed, and by whose fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


@dataclass
class Worker:
    """One lane's process, and how far it has come."""

    lane: NamedLane
    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    done: int = -1
    """Tasks done; -1 until the worker is ready."""
    signs: int = 0
    """Lines so far; where they are counted, one a step and collective."""
    last_seen: float = field(default_factory=time.monotonic)
    stopped_since: float | None = None
    memory: MemoryGroup | None = None
    quota: Path | None = None
    """The folder of the group that limits its processor time; None: it has no quota of its own."""
    silence: tuple[float, int] | None = None
    """When it was first seen silent, and in how many periods it had been kept from running by then; None: it is not."""
    buffer: bytes = b""

    @property
    def named(self) -> str:
        """What messages call it."""
        return f"worker {self.lane.name!r} (rank {self.rank})"

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.process.poll() not in (None, 0)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def state(self) -> int | None:
        """What the worker's byte says; None where it shows none."""
        try:
            return state_file(self.log).read_bytes()[0]
        except (FileNotFoundError, IndexError):  # not begun, or on another machine and not told yet
            return None

    def throttled(self, before: int = 0) -> tuple[int, float]:
        """Periods in which its quota kept it from running, and the seconds of those since an earlier count."""
        try:
            return throttled_periods_s(self.quota, before) if self.quota is not None else (0, 0.0)
        except OSError:  # its group is gone, and so is the worker
            return 0, 0.0

    def is_starved(self, now: float) -> bool:
        """Whether its quota kept it from running for most of its silence though it waits: waiting takes no time.

        A GPU's worker may keep its processor busy while it waits, so of such nothing is said.
        """
        if self.silence is None or self.state != WAITS or self.lane.torch_device != "cpu":
            return False
        since, before = self.silence
        return self.throttled(before)[1] > STARVED_SHARE * (now - since)

    def last_words(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


def watch(
    workers: Sequence[Worker],
    tasks: int,
    timeout_s: float,
    progress: Progress | None = None,
    listen: Listen | None = None,
) -> None:
    """Read the workers' lines until all have ended well.

    Raises:
        FaultError: as soon as one has not.
    """
    looked = 0.0
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            assert worker.process.stdout is not None
            os.set_blocking(worker.process.stdout.fileno(), False)
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        while selector.get_map() or any(worker.running for worker in workers):
            for key, _ in selector.select(timeout=0.1) if selector.get_map() else []:
                if not _read(key.data, key.fileobj, progress, listen):  # type: ignore[arg-type]  # registered above
                    selector.unregister(key.fileobj)
            if not selector.get_map():
                time.sleep(0.02)  # their output has ended, they have not yet
            if time.monotonic() - looked > LOOKED_AT_S:
                looked = time.monotonic()
                _look(workers, looked)
            _check(workers, tasks, timeout_s)
    _check(workers, tasks, timeout_s)
    for worker in workers:
        if worker.done < tasks:
            what = f"worker {worker.lane.name!r} ended after {worker.done} of {tasks} tasks"
            raise FaultError(Fault("ended", worker.lane.name, what, _silence(workers)))


def _read(worker: Worker, stream: IO[bytes], progress: Progress | None, listen: Listen | None) -> bool:
    """Take what a worker has written; False at the end of its output."""
    chunk = stream.read()
    if chunk is None:
        return True
    worker.buffer += chunk
    *lines, worker.buffer = worker.buffer.split(b"\n")
    for line in lines:
        worker.signs += 1
        if listen is not None:
            listen(worker.lane.name, line.decode(errors="replace"))
        worker.last_seen = time.monotonic()  # after that: a policy that is asked may think for long, nobody is silent
        if line.startswith(b"done "):
            _, done, *loss = line.split()
            worker.done = int(done)
            if progress is not None and worker.done > 0:
                progress(worker.lane.name, worker.done, float(loss[0]) if loss else 0.0)
    return bool(chunk)


def _look(workers: Sequence[Worker], now: float) -> None:
    """Note since when a worker is silent or stopped, and before anything can happen the group of its memory."""
    for worker in workers:
        if worker.memory is None and worker.done < 0 and worker.running:
            worker.memory = memory_group(worker.process.pid)
        silent = now - worker.last_seen > LOOKED_AT_S
        if not silent or (worker.silence is not None and worker.last_seen > worker.silence[0]):
            worker.silence = None
        if silent and worker.silence is None:
            worker.silence = now, worker.throttled()[0]
        if not (silent and worker.running and is_stopped(worker.process.pid)):
            worker.stopped_since = None
        elif worker.stopped_since is None:
            worker.stopped_since = now


def _check(workers: Sequence[Worker], tasks: int, timeout_s: float) -> None:
    """Raise if a worker died, was stopped, or if the group has been silent for too long."""
    if any(worker.failed for worker in workers):
        time.sleep(GRACE_S)  # a survivor errs within milliseconds of its peer's death: a killed one is the cause
        raise FaultError(_post_mortem(workers, timeout_s))
    now = time.monotonic()
    patience = min(timeout_s, STOPPED_S)
    for worker in workers:
        if worker.stopped_since is not None and now - worker.stopped_since > patience:
            raise FaultError(_stopped(worker, workers))
    at_work = any(0 <= worker.done < tasks for worker in workers)
    limit = timeout_s if at_work else max(timeout_s, START_TIMEOUT_S)
    if _silence(workers) > limit and (running := [worker for worker in workers if worker.running]):
        raise FaultError(_stuck(workers, running, f"silent for {limit:.0f} s"))


def _silence(workers: Sequence[Worker]) -> float:
    return time.monotonic() - max(worker.last_seen for worker in workers)


def _post_mortem(workers: Sequence[Worker], timeout_s: float) -> Fault:
    """Who is to blame: one that was killed, else one that erred by itself, else one its peers waited for in vain."""
    failed = [worker for worker in workers if worker.failed]
    killed = [worker for worker in failed if (worker.process.returncode or 0) < 0]
    own = [worker for worker in failed if not any(sign in worker.last_words() for sign in BLAMES_PEER)]
    if killed or own:
        return _obituary((killed or own)[0], workers)
    if running := [worker for worker in workers if worker.running]:
        return _stuck(workers, running, f"its peers waited for {timeout_s:.0f} s")
    if len(workers) == 1:
        return _obituary(failed[0], workers)
    return _lost_link(workers, [worker.lane.name for worker in failed], "was closed, and no worker died before")


def _obituary(worker: Worker, workers: Sequence[Worker]) -> Fault:
    code = worker.process.returncode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    kind: Kind = "killed" if code < 0 else "erred"
    words = worker.last_words()
    if (code == -signal.SIGKILL and worker.memory is not None and worker.memory.has_killed()) or (
        code > 0 and any(sign in words for sign in NO_MEMORY)
    ):
        limit = worker.lane.memory_limit_gib
        kind, how = "memory", f"{how}: it exceeded its memory" + (f" limit of {limit:g} GiB" if limit else "")
    why = f": {lines[-1]}" if (lines := words.strip().splitlines()) else ""
    what = f"{worker.named} {how} after {max(worker.done, 0)} tasks{why}"
    return Fault(kind, worker.lane.name, what, _silence(workers))


def _stopped(worker: Worker, workers: Sequence[Worker]) -> Fault:
    what = f"{worker.named} hung: a signal stopped it"
    return Fault("stopped", worker.lane.name, what, _silence(workers))


def _stuck(workers: Sequence[Worker], running: Sequence[Worker], since: str) -> Fault:
    """Nobody moves: who was stopped, else whose link is dead, else who waits for nobody, else who the kernel holds.

    Those that ran, at least one, were found by the caller: any of them may end while they are looked at.
    """
    for worker in running:
        if is_stopped(worker.process.pid):
            return _stopped(worker, workers)
    if cut := _cut_off(running):
        return _lost_link(workers, cut, f"carries nothing: {since}")
    behind = _behind(running)
    if len(behind) > 1:  # they wait for each other
        held = [worker for worker in behind if is_blocked(worker.process.pid) or worker.is_starved(time.monotonic())]
        behind = held or behind
    if len(behind) > 1:
        names = ", ".join(repr(worker.lane.name) for worker in behind)
        return Fault("hung", None, f"workers {names} hung together, none behind the others: {since}", _silence(workers))
    return Fault("hung", behind[0].lane.name, f"{behind[0].named} hung: {since}", _silence(workers))


def _behind(running: Sequence[Worker]) -> list[Worker]:
    """Those that may be at fault: who does not wait for others; all, where everybody waits, or nobody shows it."""
    if all(worker.state is not None for worker in running):
        return [worker for worker in running if worker.state != WAITS] or list(running)
    return [worker for worker in running if _place(worker) == min(map(_place, running))]


def _place(worker: Worker) -> tuple[int, int]:
    return worker.done, worker.signs


def _lost_link(workers: Sequence[Worker], lanes: Sequence[str], what: str) -> Fault:
    where = f"link of {lanes[0]!r}" if len(lanes) == 1 else f"link between {' and '.join(map(repr, sorted(lanes)))}"
    return Fault("link", lanes[0] if len(lanes) == 1 else None, f"{where} {what}", _silence(workers))


def _cut_off(workers: Sequence[Worker]) -> list[str]:
    """Lanes whose connections get no answer: the one that all such connections have in common, else all of them."""
    found = {worker.lane.name: connections(worker.process.pid) for worker in workers}
    owner = {each.local: name for name, own in found.items() for each in own}
    if len(set(owner.values())) < len(found):
        owner = {}  # lanes that share an address cannot be told apart by it
    pairs = {
        frozenset((name, owner.get(each.remote, name)))
        for name, own in found.items()
        for each in own
        if each.unanswered
    }
    if not pairs:
        return []
    common = frozenset.intersection(*pairs)
    return sorted(common if len(common) == 1 else frozenset.union(*pairs))
