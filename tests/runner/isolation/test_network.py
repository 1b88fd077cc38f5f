"""Networks of lanes: what is built, and that the kernel takes it away with its holder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.devices import NamedLane
from steelyard.runner.isolation.capabilities import PAIR, refusal, this_host
from steelyard.runner.isolation.holder import Mode, NetworkError, held
from steelyard.runner.isolation.wiring import LEAST_BURST_BYTES, is_wired, layout, shape
from steelyard.sim.device import Wire

Need = Callable[[str], None]


def lane(name: str, host: str, **wire: float) -> NamedLane:
    return NamedLane(name=name, wire=Wire.model_validate({"host": host, **wire}))


TWO_HOSTS = [
    lane("a0", "a", uplink_mbit_per_s=50),
    lane("a1", "a", uplink_mbit_per_s=50),
    lane("b0", "b", uplink_mbit_per_s=50, link_mbit_per_s=200),
]


def inside(pid: int, *command: str) -> str:
    """What a command says that enters as a worker does."""
    program = shutil.which(command[0]) or command[0]
    room = json.dumps({"procs": [], "network": pid})
    words = [sys.executable, "-m", "steelyard.runner.isolation.enter", room, program, *command[1:]]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


# ---- what is built ----


def test_lanes_without_a_host_need_no_network() -> None:
    assert not is_wired([NamedLane(name="only")])
    assert is_wired([NamedLane(name="only"), lane("a", "a")])


@given(st.floats(0.1, 40_000))
def test_a_bucket_holds_what_passes_in_a_millisecond_and_never_less_than_a_segment(rate: float) -> None:
    """1 Gbit/s needs 128 kB; a bucket below one large segment passes nothing at all."""
    (command,) = shape("end", rate, 0.0)
    burst = int(command[command.index("burst") + 1].removesuffix("b"))
    assert burst >= LEAST_BURST_BYTES
    assert burst >= rate * 1e6 / 8 * 1e-3
    assert command[command.index("rate") + 1] == f"{round(rate * 1e3)}kbit"


def test_a_wire_that_is_not_held_back_has_no_queue_of_its_own() -> None:
    assert shape("end", 0.0, 0.0) == []
    assert len(shape("end", 10.0, 500.0)) == 2


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_every_lane_hangs_on_its_own_host(hosts: list[str]) -> None:
    lanes = [lane(f"lane{number}", host) for number, host in enumerate(hosts)]
    found = layout(lanes)
    names = list(dict.fromkeys(hosts))
    bridges = [command for command in found["core"] if command[-1] == "bridge"]
    assert len(bridges) == len(names) + 1  # and the core
    for each, host in zip(found["lanes"], hosts, strict=True):
        assert ["ip", "link", "set", each["outside"][2][3], "master", f"host{names.index(host)}"] in each["outside"]
    addresses = [command[3] for each in found["lanes"] for command in each["inside"] if "address" in command]
    assert len(set(addresses)) == len(lanes)


# ---- real networks ----


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("mode", ["root", "user"])
def test_lanes_are_wired_up_in_namespaces_of_their_own(need: Need, mode: Mode) -> None:
    """Also in a user namespace, which takes no privilege: there a worker is root over its network and nothing else."""
    need("link_rate")
    if problem := refusal(mode, PAIR):
        pytest.skip(f"no namespaces of mode {mode} here: {problem}")
    with held(layout(TWO_HOSTS), mode) as pids:
        for pid in pids:
            names = {line.split(":")[1].split("@")[0].strip() for line in inside(pid, "ip", "-o", "link").splitlines()}
            assert {"lo", "wire"} <= names
            assert inside(pid, "ip", "route").startswith("10.203.0.0/16 dev wire")
        assert "rate 200Mbit" in inside(pids[2], "tc", "qdisc", "show", "dev", "wire")
        assert "tbf" not in inside(pids[0], "tc", "qdisc", "show", "dev", "wire")
        children = [psutil.Process(pid) for pid in pids]
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("victim", ["holder", "driver"])
def test_a_network_goes_with_its_holder_and_with_the_driver(need: Need, victim: str) -> None:
    need("namespaces")
    program = (
        "import sys, time\n"
        "from steelyard.runner.devices import NamedLane\n"
        "from steelyard.runner.isolation.capabilities import this_host\n"
        "from steelyard.runner.isolation.holder import held\n"
        "from steelyard.runner.isolation.wiring import layout\n"
        "lanes = [NamedLane(name=name, wire={'host': name}) for name in 'ab']\n"
        "with held(layout(lanes), this_host().network) as pids:\n"
        "    print(*pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        children = [psutil.Process(int(word)) for word in driver.stdout.readline().split()]
        (holder,) = psutil.Process(driver.pid).children()
        assert len(children) == 2
        (holder if victim == "holder" else psutil.Process(driver.pid)).send_signal(signal.SIGKILL)
        left = psutil.wait_procs([holder, *children], timeout=10)[1] if victim == "driver" else []
        driver.kill()
        left += psutil.wait_procs([holder, *children], timeout=10)[1]  # a dead child of a live driver is a zombie
        assert not left


@pytest.mark.usefixtures("as_before")
def test_what_the_host_refuses_is_said(need: Need) -> None:
    need("namespaces")
    mode = this_host().network
    assert mode is not None
    bad = {"core": [["ip", "link", "add", "x", "type", "no-such-type"]], "lanes": []}
    with pytest.raises(NetworkError, match=r"no-such-type|Unknown device type|Error|Operation"), held(bad, mode):
        raise AssertionError("the context must not be entered")
    with pytest.raises(NetworkError, match="no-such-command"), held({"core": [["no-such-command"]], "lanes": []}, mode):
        raise AssertionError("the context must not be entered")
