"""One launch: a group of worker processes, one per lane, that do a list of tasks together and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from .devices import NamedLane, cap_environment, cpu_vendor
from .hosts.machines import machines_for
from .isolation.room import Room, rooms
from .places import new_place, sweep_places
from .watch import Listen, Progress, Worker, watch

CAPPING = ("KMP_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_CPU_", "OMP_")
"""Variables of the caller that would make another device of a lane."""
Task = dict[str, Any]
"""A task for the workers, or an answer to one: plain JSON."""


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


@dataclass(frozen=True)
class Hold:
    """A moment at which all workers wait, until the driver has looked at what they have measured so far.

    For lanes of this machine alone.
    """

    after: int
    """So many tasks."""
    look: Callable[[LaunchResult], None]
    """Given these tasks and the answers to them."""

    def listening(self, place: Path, tasks: Sequence[Task], lanes: int, listen: Listen | None) -> Listen:
        """What hears the workers' lines, looks when the last of them holds, and lets them go on."""
        holding: set[str] = set()

        def hear(lane: str, line: str) -> None:
            if listen is not None:
                listen(lane, line)
            if line == "holding":
                holding.add(lane)
                if len(holding) == lanes:
                    answers = [json.loads((place / f"so-far-{rank}.json").read_text()) for rank in range(lanes)]
                    self.look(LaunchResult(tasks[: self.after], answers))
                    (place / "go").touch()

        return hear


def run_group(
    lanes: Sequence[NamedLane],
    tasks: Sequence[Task],
    job: Task,
    *,
    timeout_s: float,
    data: Path | None = None,
    progress: Progress | None = None,
    listen: Listen | None = None,
    paced: Collection[str] = (),
    hold: Hold | None = None,
) -> LaunchResult:
    """Start a fresh worker per lane, let the group do the tasks in order, and return their results.

    Args:
        lanes: one worker each; ranks in this order.
        tasks: what :mod:`steelyard.runner.worker` does, in its words.
        job: the rest of the job: model, optimizer, batch.
        timeout_s: when no worker shows a sign of life (a step, a task) for so long, one is lost.
        data: file of encoded samples, for tasks that train.
        progress: told after each task of each worker.
        listen: told each line that a worker writes.
        paced: names of the lanes that the tasks slow down: they get a quota for that, where this host has any.
        hold: when all wait for the driver to look at what was measured.

    Returns:
        One answer per task and lane.

    Raises:
        FaultError: a worker died, hung or was killed; it says who, and how. No process is left, whatever happens.
    """
    sweep_places()
    place = new_place()
    workers: list[Worker] = []
    try:
        machines = machines_for(lanes, tasks)
        assert hold is None or machines is None, "workers on other machines cannot be told to go on"
        document = {
            **job,
            "lanes": [lane.model_dump(mode="json") for lane in lanes],
            "tasks": list(tasks),
            "timeout_s": timeout_s,
            "hold_after": None if hold is None else hold.after,
            "data": str(data.resolve()) if data is not None else None,
            "store": machines.rendezvous() if machines is not None else None,
        }
        if hold is not None:
            listen = hold.listening(place, tasks, len(lanes), listen)
        interface = machines.interface if machines is not None else ""
        with rooms(lanes, interface=interface, paced=paced) as own:
            document["rooms"] = [room.document for room in own]
            (place / "job.json").write_text(json.dumps(document))
            try:
                for rank, room in enumerate(own):
                    workers.append(start_worker(room, rank, place))
                watch(workers, len(tasks), timeout_s, progress, listen)
            finally:
                _stop(workers)
        answers = [json.loads((place / f"rank-{worker.rank}.json").read_text()) for worker in workers]
        return LaunchResult(tasks, answers)
    finally:
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


ALLOCATING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 * 2**20)}
"""glibc keeps what was freed. By default it gives large blocks back, by thresholds that grow with what was freed.
Whether a step must fault its pages in again then depends on the sizes that ran earlier in the process (5 to 10 % of its
time, measured on one host), and a table made at many sizes is too fast for a plan that has one."""


def worker_environment(lane: NamedLane, interface: str = "") -> dict[str, str]:
    """The environment of a lane's worker: the cap, one thread pool, no hub, no telemetry.

    Collectives go over loopback, or over the interface of a lane that is wired to others.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CAPPING)}
    interface = interface or ("lo0" if sys.platform == "darwin" else "lo")
    return {
        **kept,
        **cap_environment(lane.cap, cpu_vendor()),
        "OMP_NUM_THREADS": str(lane.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        **ALLOCATING,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def start_worker(room: Room, rank: int, place: Path) -> Worker:
    """Start the process of one rank of the job in a folder; for a lane on another machine, one that stands for it."""
    module = "steelyard.runner.hosts.relay" if room.lane.machine else "steelyard.runner.worker"
    log = place / f"rank-{rank}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*room.prefix, sys.executable, "-m", module, str(place), str(rank)],
            stdin=subprocess.PIPE,  # closes when this process dies, however it dies: the worker's sign to end
            stdout=subprocess.PIPE,
            stderr=output,
            # torch makes a folder for what it compiles as soon as it is imported, and leaves it.
            env={**worker_environment(room.lane, room.interface), "TORCHINDUCTOR_CACHE_DIR": str(place / "compiled")},
            start_new_session=True,
            cwd=place,
        )
    return Worker(room.lane, rank, process, log, memory=room.memory, quota=room.quota)


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
