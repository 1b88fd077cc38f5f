"""A study over two machines, which are network namespaces here, each with files of its own: no shared folder helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from steelyard.runner.devices import NamedLane, available_cpus
from steelyard.runner.isolation.capabilities import this_host
from steelyard.runner.isolation.holder import held
from steelyard.runner.isolation.wiring import layout
from steelyard.runner.resolving import job_of
from steelyard.sim.device import Wire
from steelyard.sim.spec import Scenario

pytest.importorskip("torch", reason="workers need the runner extra")
pytestmark = pytest.mark.slow

PORT = "29511"
ADDRESS = "10.203.0.1"
QUICK = ["--set", "calibration.launches=1", "--set", "replay.launches=1"]
OWN_FILES = 'mount -t tmpfs none /tmp && cd /tmp && exec "$@"'
"""Private temporary files: what another machine writes is not there."""


@contextmanager
def two_machines() -> Iterator[list[int]]:
    """Two wired namespaces: a process in each."""
    lanes = [NamedLane(name=name, wire=Wire(host=name)) for name in "ab"]
    if this_host().network != "root":
        pytest.skip("machines of their own files need to be root: " + this_host().capability("namespaces").reason)
    with held(layout(lanes), "root") as pids:
        yield pids


def machine(pid: int, number: int, folder: Path, words: list[str], launcher: list[str]) -> subprocess.Popen[str]:
    """The part of one machine; the first has the scenario in its folder, the second has nothing."""
    kept = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    variables = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": ADDRESS, "MASTER_PORT": PORT}
    command = ["nsenter", "--net", "--target", str(pid), *launcher, *words]
    if number:
        command = ["unshare", "--mount", "sh", "-c", OWN_FILES, "sh", *command]
    return subprocess.Popen(
        command,
        env={**kept, **(variables if "torch.distributed.run" not in launcher else {})},
        cwd=folder if not number else "/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def parts_of(
    folder: Path, launcher: Callable[[int], list[str]], *words: str
) -> Iterator[tuple[list[int], list[subprocess.Popen[str]]]]:
    """A command on both machines: a process in each namespace, and the parts, which are killed in the end."""
    with two_machines() as pids, ExitStack() as stack:
        parts = []
        for number, pid in enumerate(pids):
            parts.append(stack.enter_context(machine(pid, number, folder, list(words), launcher(number))))
            stack.callback(parts[-1].kill)
        yield pids, parts


def study(folder: Path, launcher: Callable[[int], list[str]], *words: str) -> tuple[str, list[str]]:
    """Run a command on both machines to its end; what the first printed, and who listened in the namespaces."""
    with parts_of(folder, launcher, *words) as (pids, parts):
        heard: set[str] = set()
        while parts[0].poll() is None:
            for pid in pids:
                command = ["nsenter", "--net", "--target", str(pid), "ss", "-ltnH"]
                lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
                heard |= {line.split()[3].rpartition(":")[0] for line in lines}
            time.sleep(0.2)
        answers = [part.communicate(timeout=60) for part in parts]
    assert [part.returncode for part in parts] == [0, 0], [error for _, error in answers]
    return answers[0][0], sorted(heard)


def by_hand(number: int) -> list[str]:
    return [sys.executable, "-m", "steelyard.runner.hosts"]


def by_torchrun(number: int) -> list[str]:
    shape = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *shape),
        *(f"--master-addr={ADDRESS}", f"--master-port={PORT}", "-m", "steelyard.runner.hosts"),
    ]


@pytest.fixture
def folder(tiny_folder: Path, tools: Callable[..., None]) -> Path:
    """A scenario with a lane on each of two machines."""
    tools("nsenter", "unshare", "ss")
    cores = available_cpus()
    lanes = [
        {"name": "here", "cpus": [cores[0]]},
        {"name": "there", "machine": 1, "cpus": [cores[-1]]},
    ]
    (tiny_folder / "lanes.toml").write_text(tomli_w.dumps({"lanes": lanes}))
    return tiny_folder


def test_a_study_over_two_machines(folder: Path) -> None:
    """Calibrated and replayed with variables set by hand; nobody listens but on the wire's address and loopback."""
    _, heard = study(folder, by_hand, "calibrate", "tiny.toml", *QUICK)
    assert ADDRESS in heard
    assert all(address.startswith(("10.203.", "127.0.0.1")) for address in heard), heard
    printed, _ = study(folder, by_torchrun, "replay", "tiny.toml", "--policy", "uniform", "--json", *QUICK)
    comparison = json.loads(printed)
    assert comparison
    measured = list((folder / "runs").glob("replay-*/*measured"))
    assert len(measured) == 2, "the plan and its twin"
    manifest = json.loads((measured[0] / "manifest.json").read_text())
    machines = {name: lane["machine"] for name, lane in manifest["provenance"]["lanes"].items()}
    assert machines == {"here": 0, "there": 1}
    nodes = manifest["scenario"]["cluster"]["nodes"]
    assert [node["name"] for node in nodes] == ["machine0", "machine1"]


def test_a_machine_that_dies_is_named_and_the_others_end(folder: Path) -> None:
    with parts_of(folder, by_hand, "calibrate", "tiny.toml") as (_, parts):
        _worker_below(parts[1].pid).kill()
        _, error = parts[0].communicate(timeout=120)
        parts[1].communicate(timeout=60)
    assert parts[0].returncode == 1
    assert "worker 'there' (rank 0) was killed by SIGKILL" in error, "which happened on the other machine"
    assert parts[1].returncode == 1


def test_a_driver_that_is_killed_takes_all_machines_along(folder: Path) -> None:
    with parts_of(folder, by_hand, "calibrate", "tiny.toml") as (_, parts):
        worker = _worker_below(parts[1].pid)
        for each in [*psutil.Process(parts[0].pid).children(recursive=True), psutil.Process(parts[0].pid)]:
            each.kill()
        _, error = parts[1].communicate(timeout=60)
        assert not psutil.wait_procs([worker], timeout=20)[1]
    assert parts[1].returncode == 1
    assert "the first machine is gone" in error


DRIVER = """
import json, os, sys, time
from pathlib import Path
from steelyard.runner.devices import NamedLane
from steelyard.runner.hosts.machines import Machines, current
from steelyard.runner.hosts.membership import Membership
from steelyard.runner.launch import run_group
from steelyard.runner.watch import FaultError
job, lanes, task, data, timeout_s = json.loads(sys.argv[2])
membership = Membership.read(os.environ)
store = membership.open_store()
current.set(Machines.gather(membership, store))
try:
    run_group([NamedLane.model_validate(lane) for lane in lanes], [task], job, timeout_s=timeout_s, data=Path(data))
except FaultError as error:
    print(json.dumps([error.fault.kind, error.fault.lane]))
finally:
    store.set("over", "0")
    while store.add("goodbye", 0) < 1:
        time.sleep(0.1)
"""
STAGES = [
    {"first": first, "last": last, "replicas": [{"devices": [name]}]}
    for first, last, name in ((0, 2, "here"), (2, 4, "there"))
]
SHARDED = [
    {"stages": [{"first": 0, "last": 4, "replicas": [{"devices": [name]}]}], "micro_batches": [size]}
    for name, size in (("here", 20), ("there", 10))
]
PLANS = {
    "1f1b": {"pipelines": [{"stages": STAGES, "micro_batches": [10, 10, 10]}], "schedule": "1f1b"},
    "zero 2": {"pipelines": SHARDED, "zero": 2},
}


@pytest.mark.parametrize(("plan", "lane"), [("1f1b", "here"), ("1f1b", "there"), ("zero 2", "there")])
def test_a_lane_that_hangs_is_named_on_whichever_machine_it_is(
    folder: Path, tiny_scenario: Scenario, hanging: Callable[..., dict[str, Any]], plan: str, lane: str
) -> None:
    """In plans whose lanes say unequally much: by what each does, and not by how many lines it wrote."""
    names, cores = ["here", "there"], available_cpus()
    lanes = [
        NamedLane(name=name, machine=number, cpus=[cores[-number]]).model_dump(mode="json")
        for number, name in enumerate(names)
    ]
    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, folder, seed=0)
    task = hanging(tiny_scenario, PLANS[plan], names, lane)

    def launcher(number: int) -> list[str]:
        return by_hand(number) if number else [sys.executable, "-c", DRIVER]

    timeout_s = 15 if "zero" in PLANS[plan] else 6  # a busy host takes a while to load what sharding takes, in silence
    words = json.dumps([job, lanes, task, str(data), timeout_s])
    with parts_of(folder, launcher, "calibrate", words) as (_, parts):
        out, error = parts[0].communicate(timeout=180)
        parts[1].communicate(timeout=60)
    assert parts[0].returncode == 0, error
    assert json.loads(out) == ["hung", lane], error


def _worker_below(pid: int) -> psutil.Process:
    """The worker that a machine's agent has started, once it has."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for each in psutil.Process(pid).children(recursive=True):
            try:
                if "steelyard.runner.worker" in each.cmdline()[:3]:
                    return each
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    raise AssertionError("no worker was started")
