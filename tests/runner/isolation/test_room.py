"""Whole launches in rooms: real workers under quotas, limits and on wires; what is left of them; what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from steelyard.results.errors import InputError, WorkerFailedError
from steelyard.runner.declared import read_lanes
from steelyard.runner.devices import NamedLane
from steelyard.runner.isolation.capabilities import PAIR, Host, refusal, this_host
from steelyard.runner.isolation.groups import Group, sweep
from steelyard.runner.isolation.holder import Mode
from steelyard.runner.isolation.room import asks, refuse_unavailable, rooms
from steelyard.runner.launch import run_group
from steelyard.runner.resolving import job_of
from steelyard.runner.worker.quota import Quota
from steelyard.sim.device import Wire
from steelyard.sim.spec import Scenario

from .conftest import left_groups, sockets

Need = Callable[[str], None]
Driver = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def without(host: Host, name: str) -> Host:
    """The host as if it lacked one capability."""
    found = [replace(each, available=each.name != name and each.available) for each in host.capabilities]
    return replace(host, capabilities=[replace(each, reason="it is a toy") for each in found])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("values", "name", "path"),
    [
        ({"cpus": [0]}, "affinity", "cluster.lanes.1.cpus"),
        ({"cpu_share": 0.5}, "cpu_quota", "cluster.lanes.1.cpu_share"),
        ({"memory_limit_gib": 1}, "memory_limit", "cluster.lanes.1.memory_limit_gib"),
        ({"wire": {"host": "a"}}, "namespaces", "cluster.lanes.1.wire.host"),
        ({"wire": {"host": "a", "link_mbit_per_s": 10}}, "link_rate", "cluster.lanes.1.wire.link_mbit_per_s"),
        ({"wire": {"host": "a", "uplink_mbit_per_s": 10}}, "link_rate", "cluster.lanes.1.wire.uplink_mbit_per_s"),
        ({"wire": {"host": "a", "link_latency_us": 10}}, "link_latency", "cluster.lanes.1.wire.link_latency_us"),
        ({"wire": {"host": "a", "uplink_latency_us": 10}}, "link_latency", "cluster.lanes.1.wire.uplink_latency_us"),
    ],
)
def test_what_a_host_lacks_is_refused_by_path_with_the_reason(values: dict[str, Any], name: str, path: str) -> None:
    lanes = [NamedLane(name="plain"), NamedLane.model_validate({"name": "asking", **values})]
    all_there = replace(this_host(), capabilities=[replace(each, available=True) for each in this_host().capabilities])
    refuse_unavailable(lanes, all_there)
    with pytest.raises(InputError, match=r"this host has no .*: it is a toy") as error:
        refuse_unavailable(lanes, without(all_there, name))
    assert error.value.path == path


def test_a_lane_that_asks_for_nothing_costs_nothing() -> None:
    lanes = [NamedLane(name="plain", cpus=[0])]
    assert not asks(lanes[0])
    with rooms(lanes) as (room,):
        assert room.prefix == []
        assert room.document == {"cpu_stat": "", "cores": 1}
        assert room.memory is None


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_paced_lane_is_slowed_by_its_quota_and_gets_it_back(need: Need, share: float) -> None:
    """The group's own files say what the kernel holds it to; what is less than the kernel takes changes nothing."""
    need("cpu_quota")
    lane = NamedLane(name="paced", cpu_share=share)
    with rooms([lane], paced=["paced"]) as (room,):
        quota, group = Quota(**room.document), room.groups[0]
        before = cores_of(group)
        assert before == pytest.approx(share if share < 1 else math.inf)
        assert quota.slow(4.0)
        assert cores_of(group) == pytest.approx(share / 4)
        assert not quota.slow(1e9)
        assert cores_of(group) == pytest.approx(share / 4)
        assert quota.slow(1.0)
        assert cores_of(group) == pytest.approx(before)
    with rooms([lane]) as (room,):
        assert not Quota(**room.document).slow(2.0)


def cores_of(group: Group) -> float:
    """How many cores' time a group may use, as the kernel says."""
    if group.place.version == 2:
        quota, period = (group.path / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    read = [int((group.path / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")]
    return math.inf if read[0] < 0 else read[0] / read[1]


def test_where_there_are_no_quotas_a_paced_lane_has_none() -> None:
    none = replace(this_host(), places=())
    with rooms([NamedLane(name="paced")], none, paced=["paced"]) as (room,):
        assert not Quota(**room.document).slow(2.0)


def test_a_lane_file_says_what_it_wants(tmp_path: Path, need: Need) -> None:
    need("cpu_quota")
    file = tmp_path / "lanes.toml"
    file.write_text('[[lanes]]\nname = "half"\ncpu_share = 0.5\nmemory_limit_gib = 2\n')
    (lane,) = read_lanes(file)
    assert lane.quota_cores == 0.5
    file.write_text('[[lanes]]\nname = "half"\ncpu_share = 1.5\n')
    with pytest.raises(InputError, match="cpu_share"):
        read_lanes(file)


# ---- real launches ----

TALK = """
import socket, sys
own, other = sys.argv[1:]
if own == "10.203.0.1":
    with socket.create_server((own, 5000)) as server:
        print("ready", flush=True)
        print(server.accept()[1][0])
else:
    socket.create_connection((other, 5000), timeout=30).close()
"""
ADDRESSES = ("10.203.0.1", "10.203.0.2")


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("mode", ["root", "user"])
def test_lanes_on_two_hosts_reach_each_other(need: Need, mode: Mode) -> None:
    """As root, and in a user namespace as whoever has no privilege."""
    need("link_rate")
    if problem := refusal(mode, PAIR):
        pytest.skip(f"no namespaces of mode {mode} here: {problem}")
    lanes = [NamedLane(name=name, wire=Wire(host=name, uplink_mbit_per_s=100)) for name in "ab"]
    with rooms(lanes, replace(this_host(), network=mode)) as own:
        words = [[*room.prefix, sys.executable, "-c", TALK] for room in own]
        with subprocess.Popen([*words[0], *ADDRESSES], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            subprocess.run([*words[1], *reversed(ADDRESSES)], check=True, timeout=60)
            assert server.stdout.readline() == ADDRESSES[1] + "\n"
        assert server.returncode == 0


def half(name: str, **values: Any) -> NamedLane:
    return NamedLane.model_validate({"name": name, "cpu_share": 0.5, **values})


@pytest.mark.usefixtures("as_before")
def test_too_little_memory_is_named(need: Need) -> None:
    """Not even torch fits in 32 MiB."""
    need("memory_limit")
    lane = NamedLane(name="small", memory_limit_gib=1 / 32)
    with pytest.raises(WorkerFailedError, match=r"worker 'small' .* it exceeded its memory limit of 0.03125 GiB"):
        run_group([lane], [{"op": "figures"}], {}, timeout_s=20)


@pytest.mark.slow
@pytest.mark.usefixtures("as_before")
def test_lanes_on_wires_with_quotas_meet_and_listen_to_nobody_outside(
    need: Need, tools: Callable[..., None], driver: Driver
) -> None:
    tools("nsenter", "ss")
    need("cpu_quota")
    need("link_rate")
    lanes = [half(name, wire=Wire(host=name, uplink_mbit_per_s=200)) for name in "ab"]
    with driver(lanes) as process:
        found = wait_for_workers(process, 2)
        heard = [sockets(each.pid, "-ltnH").splitlines() for each in found]
        process.kill()
        process.communicate(timeout=30)
        assert not psutil.wait_procs(found, timeout=10)[1]
    assert all(line.split()[3].startswith("10.203.") for own in heard for line in own)
    assert any(heard)


@pytest.mark.slow
@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("victim", ["worker", "driver", "driver and warden"])
def test_a_kill_leaves_no_group(need: Need, tools: Callable[..., None], driver: Driver, victim: str) -> None:
    tools("nsenter", "ss")
    need("cpu_quota")
    need("memory_limit")
    lanes = [half(name, memory_limit_gib=2) for name in "ab"]
    with driver(lanes) as process:
        found = wait_for_workers(process, 2)
        wardens = children_of(process.pid, "steelyard.runner.isolation.warden")
        assert len(wardens) == 1
        if victim == "worker":
            found[1].kill()
        else:
            for each in wardens if "warden" in victim else []:
                each.kill()
            process.kill()
        output, _ = process.communicate(timeout=30)
        assert not psutil.wait_procs([*found, *wardens], timeout=10)[1]
    if victim == "worker":
        assert "worker 'b' (rank 1) was killed by SIGKILL" in output
    if "warden" in victim:
        assert len(left_groups()) >= 4, "nobody was left to remove them"
        sweep(this_host().places)


@pytest.mark.slow
@pytest.mark.usefixtures("as_before")
def test_bf16_trains_and_its_gradient_is_near_that_of_fp32(tiny_scenario: Scenario, tmp_path: Path) -> None:
    """bf16 has eight bits of mantissa: the whole vector differs by a few percent, and not by more."""
    from safetensors.torch import load_file

    workload = tiny_scenario.workload.model_copy(update={"dtype": "bf16"})
    found = []
    for each in (tiny_scenario.workload, workload):
        job, data = job_of(each, tiny_scenario.training, tmp_path, seed=0)
        task = {"op": "gradients", "sizes": [[16], [14]], "ranks": [0, 1], "file": str(tmp_path / each.dtype)}
        reduce = {"op": "all_reduce", "bytes": 2**12, "repeats": 2, "ranks": [0, 1]}
        steps = {"op": "profile", "micro_batch": 4, "seconds": 0.01, "least": 1}
        lanes = [NamedLane(name="full"), NamedLane(name="sse", cap="sse")]
        run_group(lanes, [task, reduce, steps], job, timeout_s=60, data=data)
        found.append(load_file(f"{tmp_path / each.dtype}.0")["gradient"].float())
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.1


# ---- processes ----


def children_of(pid: int, module: str) -> list[psutil.Process]:
    """The processes below another that run a module; none of those that have ended."""
    found = []
    for each in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [each] if module in each.cmdline()[:3] else []
    return found


def wait_for_workers(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The workers, once they have met: gloo's connections stand, each in its own namespace; by rank."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, "the driver ended"
        found = children_of(process.pid, "steelyard.runner.worker")
        if len(found) == count and all(f"pid={each.pid}," in sockets(each.pid, "-tnpH") for each in found):
            return sorted(found, key=lambda each: each.cmdline()[-1])
        time.sleep(0.1)
    raise AssertionError("the workers never met")
