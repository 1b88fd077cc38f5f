"""Groups of real worker processes: what they measure, what happens when one dies, and what is left behind: nothing."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from steelyard.results.errors import WorkerFailedError
from steelyard.runner.devices import NamedLane, available_cpus
from steelyard.runner.launch import run_group, worker_environment
from steelyard.runner.resolving import job_of
from steelyard.runner.runnable import lanes_of
from steelyard.sim.spec import Scenario

from .processes import workers

pytestmark = pytest.mark.slow

Driver = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def gradients_of(scenario: Scenario, lanes: list[NamedLane], plans: Sequence[list[list[int]]], folder: Path) -> Any:
    """Per division of the batch the gradient that each participant holds: all of them by one group of workers."""
    from safetensors.torch import load_file

    job, data = job_of(scenario.workload, scenario.training, folder, seed=0)
    ranks = [[rank for rank, each in enumerate(sizes) if each] for sizes in plans]
    files = [str(folder / f"gradient-{number}") for number in range(len(plans))]
    tasks = [
        {"op": "gradients", "sizes": sizes, "ranks": own, "file": file}
        for sizes, own, file in zip(plans, ranks, files, strict=True)
    ]
    run_group(lanes, tasks, job, timeout_s=60, data=data)
    return [[load_file(f"{file}.{rank}")["gradient"] for rank in own] for own, file in zip(ranks, files, strict=True)]


@pytest.fixture(scope="module")
def of_one(tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A single process's gradients of the whole batch, and of its first 22 samples."""
    lanes, folder = lanes_of(tiny_scenario)[:1], tmp_path_factory.mktemp("single")
    (whole,), (first,) = gradients_of(tiny_scenario, lanes, [[[30]], [[22]]], folder)
    return whole, first


def test_gradients_under_unequal_batches_equal_those_of_a_single_process(
    tiny_scenario: Scenario, of_one: tuple[Any, Any], tmp_path: Path
) -> None:
    """The whole vector by norm, fp32, dropout off: single tensors whose true gradient is zero differ by more."""
    single, _ = of_one
    assert float(single.norm()) > 1e-3
    plans = [[[22], [8]], [[7, 6], [9, 8]], [[29], [1]]]
    for plan, found in zip(plans, gradients_of(tiny_scenario, lanes_of(tiny_scenario), plans, tmp_path), strict=True):
        assert len(found) == 2
        for own in found:
            assert float((own - single).norm() / single.norm()) < 1e-6, plan


def test_a_plain_average_of_local_means_would_be_wrong(of_one: tuple[Any, Any]) -> None:
    """The test above can fail: averaging local mean gradients over 22 and 8 samples is far from the true gradient."""
    single, first = of_one
    wrong = 0.5 * first * 30 / 22 + 0.5 * (single - first) * 30 / 8
    assert float((wrong - single).norm() / single.norm()) > 1e-2


def test_repeat_lane_has_the_same_gradient(tiny_scenario: Scenario, of_one: tuple[Any, Any], tmp_path: Path) -> None:
    lane = lanes_of(tiny_scenario)[0].model_copy(update={"repeat": 3})
    once, _ = of_one
    ((twice,),) = gradients_of(tiny_scenario, [lane], [[[15, 15]]], tmp_path)
    assert float((twice - once).norm() / once.norm()) < 1e-6


def test_a_lane_of_two_threads_computes_the_same_and_its_own_time_is_told(
    tiny_scenario: Scenario, of_one: tuple[Any, Any], tmp_path: Path
) -> None:
    """Its own time is wall time less what its threads stood ready and were not run: never more, and never nothing."""
    cores = available_cpus()
    if len(cores) < 2:
        pytest.skip("needs two cores")
    wide = NamedLane(name="wide", cpus=cores[:2], threads=2)
    single, _ = of_one
    ((double,),) = gradients_of(tiny_scenario, [wide], [[[15, 15]]], tmp_path)
    assert float((double - single).norm() / single.norm()) < 1e-6
    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
    task = {"op": "profile", "micro_batch": 8, "seconds": 0.5, "least": 3}
    launch = run_group([wide], [{"op": "figures"}, task], job, timeout_s=60, data=data)
    ((_, timed),) = launch.answers
    segments = [segment for step in timed["steps"] for segment in step]
    assert {kind for kind, *_ in segments} == {"forward", "backward", "optimizer"}
    assert all(own <= (end - begin) + 1e-4 for _, _, begin, end, own, _ in segments)
    assert sum(own for *_, own, _ in segments) > 0


def test_environment_caps_the_lane_and_stays_on_loopback() -> None:
    environment = worker_environment(NamedLane(name="sse", cap="sse"))
    assert environment["ATEN_CPU_CAPABILITY"] == "default"
    assert environment["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert environment["HF_HUB_OFFLINE"] == "1"


def wait_for_workers(process: subprocess.Popen[str], count: int = 2) -> list[psutil.Process]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = workers(process.pid)
        if len(found) == count and all(len(each.net_connections("tcp")) > 0 for each in found):
            return found  # they have met: gloo's connections stand
        time.sleep(0.05)
    raise AssertionError("the workers never met")


def test_killed_worker_is_named_and_nothing_is_left(driver: Driver, tiny_scenario: Scenario, tmp_path: Path) -> None:
    with driver(lanes_of(tiny_scenario), tasks=2) as process:
        found = wait_for_workers(process)
        victim = next(each for each in found if each.cmdline()[-1] == "1")
        victim.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "worker 'sse' (rank 1) was killed by SIGKILL" in output
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive
    assert not list(tmp_path.glob("steelyard-*"))


def test_killed_driver_takes_its_workers_along(driver: Driver, tiny_scenario: Scenario) -> None:
    with driver(lanes_of(tiny_scenario), tasks=2) as process:
        found = wait_for_workers(process)
        process.kill()
        process.communicate(timeout=30)
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive


def test_listeners_are_on_loopback_only(driver: Driver, tiny_scenario: Scenario) -> None:
    with driver(lanes_of(tiny_scenario), tasks=2) as process:
        found = wait_for_workers(process)
        listening = [
            connection.laddr.ip
            for each in found
            for connection in each.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        process.kill()
        process.communicate(timeout=30)
    psutil.wait_procs(found, timeout=10)
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_hung_worker_is_named(driver: Driver, tiny_scenario: Scenario) -> None:
    with driver(lanes_of(tiny_scenario), seconds=1, tasks=2) as process:
        found = wait_for_workers(process)
        victim = next(each for each in found if each.cmdline()[-1] == "1")
        victim.suspend()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "worker 'sse' (rank 1) hung" in output
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive


def test_a_worker_that_errs_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others make theirs elsewhere
    with pytest.raises(WorkerFailedError, match="KeyError"):
        run_group([NamedLane(name="only")], [{"op": "no such task"}], {}, timeout_s=20)
    assert list(tmp_path.iterdir()) == []
