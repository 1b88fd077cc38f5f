"""One launch: a group of worker processes, one per lane, that do a list of tasks together and leave nothing behind."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..results.errors import InputError, WorkerFailedError
from .devices import NamedLane, cap_environment, cpu_vendor

START_TIMEOUT_S = 120.0
GRACE_S = 0.5
"""After the first worker died, the others get this long to show that they died first."""

CAPPING = ("KMP_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_CPU_", "OMP_")
"""Variables of the caller that would make another device of a lane."""
BLAMES_PEER = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe")
"""What a worker's last words say when the fault is another's."""

Task = dict[str, Any]
"""A task for the workers, or an answer to one: plain JSON."""

Progress = Callable[[str, int, float], None]
"""Called with a lane's name, the number of tasks that it has done, and its part of the loss (0: it trained nothing)."""


@dataclass(frozen=True)
class LaunchResult:
    """What one launch measured: its tasks, and per rank one answer to each."""

    tasks: Sequence[Task]
    answers: Sequence[Sequence[Task]]

    def of(self, op: str, rank: int) -> Iterator[tuple[Task, Task]]:
        """Tasks of one kind with a rank's answers, in order."""
        for task, answer in zip(self.tasks, self.answers[rank], strict=True):
            if task["op"] == op:
                yield task, answer


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
    """Signs of life so far: one a step."""
    last_seen: float = field(default_factory=time.monotonic)
    buffer: bytes = b""


def run_group(
    lanes: Sequence[NamedLane],
    tasks: Sequence[Task],
    job: Task,
    *,
    timeout_s: float,
    data: Path | None = None,
    progress: Progress | None = None,
) -> LaunchResult:
    """Start a fresh worker per lane, let the group do the tasks in order, and return their results.

    Args:
        lanes: one worker each; ranks in this order.
        tasks: what :mod:`steelyard.runner.worker` does, in its words.
        job: the rest of the job: model, optimizer, batch.
        timeout_s: when no worker shows a sign of life (a step, a task) for so long, one is lost.
        data: file of encoded samples, for tasks that train.
        progress: told after each task of each worker.

    Returns:
        One answer per task and lane.

    Raises:
        WorkerFailedError: a worker died, hung or was killed. No process is left, whatever happens.
    """
    place = Path(tempfile.mkdtemp(prefix="steelyard-"))  # mode 0700: the rendezvous is ours alone
    workers: list[Worker] = []
    try:
        document = {**job, "lanes": [lane.model_dump(mode="json") for lane in lanes], "tasks": list(tasks)}
        document["timeout_s"] = timeout_s
        document["data"] = str(data.resolve()) if data is not None else None
        (place / "job.json").write_text(json.dumps(document))
        for rank, lane in enumerate(lanes):
            workers.append(_start(lane, rank, place))
        _watch(workers, len(tasks), timeout_s, progress)
        answers = [json.loads((place / f"rank-{worker.rank}.json").read_text()) for worker in workers]
        return LaunchResult(tasks, answers)
    finally:
        _stop(workers)
        shutil.rmtree(place, ignore_errors=True)


def ticking(lane: NamedLane, tick: Callable[[int, int], None], before: int, total: int) -> Progress:
    """Progress over several launches, by the tasks of one lane: ``before`` were done in earlier launches."""

    def progress(name: str, done: int, _: float) -> None:
        if name == lane.name:
            tick(before + done, total)

    return progress


def probe_lanes(lanes: Sequence[NamedLane]) -> list[Task]:
    """Capability and speeds of each lane: one fresh process each, one lane at a time, so that none disturbs another."""
    return [run_group([lane], [{"op": "figures"}], {}, timeout_s=60.0).answers[0][0] for lane in lanes]


def worker_environment(lane: NamedLane) -> dict[str, str]:
    """The environment of a lane's worker: the cap, one thread pool, collectives on loopback, no hub, no telemetry."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CAPPING)}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        **kept,
        **cap_environment(lane.cap, cpu_vendor()),
        "OMP_NUM_THREADS": str(lane.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _start(lane: NamedLane, rank: int, place: Path) -> Worker:
    log = place / f"rank-{rank}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "steelyard.runner.worker", str(place), str(rank)],
            stdin=subprocess.PIPE,  # closes when this process dies, however it dies: the worker's sign to end
            stdout=subprocess.PIPE,
            stderr=output,
            env=worker_environment(lane),
            start_new_session=True,
            cwd=place,
        )
    return Worker(lane, rank, process, log)


def _watch(workers: Sequence[Worker], tasks: int, timeout_s: float, progress: Progress | None) -> None:
    """Read the workers' lines until all have ended well; raise as soon as one has not."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            assert worker.process.stdout is not None
            os.set_blocking(worker.process.stdout.fileno(), False)
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select(timeout=0.1):
                if not _read(key.data, key.fileobj, progress):  # type: ignore[arg-type]  # registered above
                    selector.unregister(key.fileobj)
            _check(workers, timeout_s)
    while any(worker.process.poll() is None for worker in workers):
        _check(workers, timeout_s)
        time.sleep(0.02)
    _check(workers, timeout_s)
    for worker in workers:
        if worker.done < tasks:
            raise WorkerFailedError(f"worker {worker.lane.name!r} ended after {worker.done} of {tasks} tasks")


def _read(worker: Worker, stream: IO[bytes], progress: Progress | None) -> bool:
    """Take what a worker has written; False at the end of its output."""
    chunk = stream.read()
    if chunk is None:
        return True
    worker.buffer += chunk
    *lines, worker.buffer = worker.buffer.split(b"\n")
    for line in lines:
        worker.last_seen = time.monotonic()
        worker.signs += 1
        if line.startswith(b"done "):
            _, done, *loss = line.split()
            worker.done = int(done)
            if progress is not None and worker.done > 0:
                progress(worker.lane.name, worker.done, float(loss[0]) if loss else 0.0)
    return bool(chunk)


def _check(workers: Sequence[Worker], timeout_s: float) -> None:
    """Raise if a worker died (the first to die is named) or has been silent for too long (the one furthest behind)."""
    if any(_failed(worker) for worker in workers):
        time.sleep(GRACE_S)  # a survivor errs within milliseconds of its peer's death: a killed one is the cause
        raise WorkerFailedError(_verdict(workers, timeout_s))
    now = time.monotonic()
    behind = min(workers, key=lambda worker: (worker.done, worker.signs))
    limit = START_TIMEOUT_S if all(worker.done < 0 for worker in workers) else timeout_s
    if behind.process.poll() is None and now - max(worker.last_seen for worker in workers) > limit:
        raise WorkerFailedError(f"worker {behind.lane.name!r} (rank {behind.rank}) hung: silent for {limit:.0f} s")


def _failed(worker: Worker) -> bool:
    return worker.process.poll() not in (None, 0)


def _verdict(workers: Sequence[Worker], timeout_s: float) -> str:
    """Who is to blame: one that was killed, else one that erred by itself, else one its peers waited for in vain."""
    failed = [worker for worker in workers if _failed(worker)]
    killed = [worker for worker in failed if (worker.process.returncode or 0) < 0]
    own = [worker for worker in failed if not any(sign in _tail(worker) for sign in BLAMES_PEER)]
    silent = [worker for worker in workers if worker.process.poll() is None]
    if killed or own or not silent:
        return _obituary((killed or own or failed)[0])
    behind = min(silent, key=lambda worker: (worker.done, worker.signs))
    return f"worker {behind.lane.name!r} (rank {behind.rank}) hung: its peers waited for {timeout_s:.0f} s"


def _obituary(worker: Worker) -> str:
    code = worker.process.returncode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    lines = _tail(worker).strip().splitlines()
    why = f": {lines[-1]}" if lines else ""
    return f"worker {worker.lane.name!r} (rank {worker.rank}) {how} after {max(worker.done, 0)} tasks{why}"


def _tail(worker: Worker) -> str:
    return worker.log.read_text(errors="replace")[-4000:] if worker.log.exists() else ""


def _stop(workers: Sequence[Worker]) -> None:
    """Kill what still runs, with its children, and close the pipes."""
    for worker in workers:
        if worker.process.poll() is None:
            try:
                os.killpg(worker.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended between the two lines
    for worker in workers:
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe is not None:
                pipe.close()


def require_torch() -> None:
    """Say how to install what real devices need.

    Raises:
        InputError: torch or transformers is not installed.
    """
    from importlib.util import find_spec

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise InputError(package, "is not installed", "pip install 'steelyard[runner]'")
