"""A worker on another machine as this one sees it: its lines, its state and its end, passed on through a store."""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from steelyard.runner.devices import NamedLane
from steelyard.runner.hosts.agent import listen, say
from steelyard.runner.hosts.mailbox import Store
from steelyard.runner.hosts.relay import pass_on
from steelyard.runner.watch import Worker
from steelyard.runner.worker.signs import WAITS, WORKS, state_file

pytest.importorskip("torch", reason="stores need the runner extra")

WAITING, WORKING = "printf '\\002' > $STATE; ", "printf '\\001' > $STATE; "
Relayed = Callable[[str], tuple[Worker, Future[int]]]


@pytest.fixture
def relayed(tmp_path: Path) -> Iterator[Relayed]:
    """Starts a shell there; gives the worker as it is seen here, and the exit code to come."""
    store: Store = importlib.import_module("torch.distributed").HashStore()
    processes: list[subprocess.Popen[bytes]] = []

    def run(script: str) -> tuple[Worker, Future[int]]:
        here, there = tmp_path / "here" / "rank-0.log", tmp_path / "there" / "rank-0.log"
        for each in (here, there):
            each.parent.mkdir()
        told = {**os.environ, "STATE": str(state_file(there))}
        processes.append(subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, env=told))
        own = Worker(NamedLane(name="a"), 0, processes[0], there)
        key = str(tmp_path)
        pool.submit(serve, store, key, own)
        return Worker(NamedLane(name="a"), 0, processes[0], here), pool.submit(pass_on, store, key, state_file(here))

    with ThreadPoolExecutor() as pool:
        yield run
        for process in processes:
            process.kill()
            process.communicate()


def serve(store: Store, key: str, worker: Worker) -> None:
    """What an agent does: in the end it tells the exit code."""
    say(store, key, "", listen(store, key, worker))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_silent_workers_state_is_shown_here_as_it_is_there(
    relayed: Relayed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever it becomes, without a line; the lines come as they were said, and the end with them."""
    go, end = tmp_path / "go", tmp_path / "end"
    script = (
        f"{WORKING} echo done 0; {WAITING} until test -e {go}; do sleep 0.05; done; "
        f"{WORKING} until test -e {end}; do sleep 0.05; done; echo done 1; exit 7"
    )
    worker, code = relayed(script)
    until(lambda: worker.state == WAITS)
    go.touch()
    until(lambda: worker.state == WORKS)
    assert capfd.readouterr().out == "done 0\n"
    end.touch()
    assert code.result(60) == 7
    assert capfd.readouterr().out == "done 1\n"


def test_a_worker_that_shows_no_state_there_shows_none_here(relayed: Relayed) -> None:
    worker, code = relayed("echo done 0; sleep 1; exit 0")
    assert code.result(60) == 0
    assert worker.state is None
