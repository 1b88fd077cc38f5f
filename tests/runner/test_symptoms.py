"""What the kernel shows, asked of real processes, sockets and namespaces."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from steelyard.runner.symptoms import connections, is_stopped, memory_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stopped_process_is_told_from_one_that_sleeps(child: subprocess.Popen[bytes]) -> None:
    assert not is_stopped(child.pid)
    child.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(child.pid))
    child.send_signal(signal.SIGCONT)
    until(lambda: not is_stopped(child.pid))
    child.kill()
    child.wait()
    assert not is_stopped(child.pid)


def test_a_healthy_connection_is_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        there, _ = server.accept()
        with there:
            client.sendall(b"x" * 1000)
            found = [each for each in connections(os.getpid()) if each.remote == "127.0.0.1"]
            assert len(found) >= 2
            assert not any(each.unanswered for each in found)


PEER = """
import signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
if sys.argv[1] == "listen":
    server = socket.create_server(("10.99.0.1", 5000))
    print("ready", flush=True)
    peer, _ = server.accept()
else:
    peer = socket.create_connection(("10.99.0.1", 5000))
    print("ready", flush=True)
if sys.argv[2] == "idle":
    signal.sigwait([signal.SIGUSR1])
while True:
    peer.sendall(b"x")
    time.sleep(0.05)
"""


@pytest.fixture
def namespace(tools: Callable[..., None]) -> Iterator[int]:
    """A process in a network namespace of its own; the namespace goes with it."""
    tools("unshare", "nsenter", "ip")
    process = subprocess.Popen(["unshare", "--net", "sleep", "120"], stderr=subprocess.PIPE)
    try:
        own = Path("/proc/self/ns/net").stat().st_ino
        until(lambda: process.poll() is not None or Path(f"/proc/{process.pid}/ns/net").stat().st_ino != own)
        if process.poll() is not None:
            pytest.skip(f"this host lets nobody make a network namespace: {process.communicate()[1].decode().strip()}")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def inside(pid: int, *words: str) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net", *words]


@pytest.mark.parametrize("talk", ["always", "idle"])
def test_a_connection_over_a_cut_link_gets_no_answer(namespace: int, talk: str) -> None:
    """Real processes, a real wire, a real ``ip link set down``; also of what is sent only then, and never leaves."""
    with subprocess.Popen(["unshare", "--net", "sleep", "120"]) as other:
        try:
            own = Path("/proc/self/ns/net").stat().st_ino
            until(lambda: Path(f"/proc/{other.pid}/ns/net").stat().st_ino not in (0, own))
            wire(namespace, other.pid)
            with peer(namespace, "listen", talk) as listener, peer(other.pid, "connect", talk) as caller:
                until(lambda: bool(connections(listener.pid)) and bool(connections(caller.pid)))
                assert {each.local for each in connections(listener.pid)} == {"10.99.0.1"}
                assert not any(each.unanswered for each in connections(caller.pid))
                subprocess.run(inside(other.pid, "ip", "link", "set", "end-b", "down"), check=True)
                for each in (listener, caller):
                    each.send_signal(signal.SIGUSR1)
                for each in (listener, caller):
                    until(lambda pid=each.pid: any(found.unanswered for found in connections(pid)))  # type: ignore[misc]
                listener.kill()
                caller.kill()
        finally:
            other.kill()


def wire(one: int, other: int) -> None:
    """A virtual wire between two namespaces, 10.99.0.1 at one end and 10.99.0.2 at the other."""
    pair = ["ip", "link", "add", "name", "end-a", "type", "veth", "peer", "name", "end-b", "netns", str(other)]
    subprocess.run(inside(one, *pair), check=True)
    for pid, name, address in ((one, "end-a", "10.99.0.1/24"), (other, "end-b", "10.99.0.2/24")):
        subprocess.run(inside(pid, "ip", "address", "add", address, "dev", name), check=True)
        subprocess.run(inside(pid, "ip", "link", "set", name, "up"), check=True)


def peer(pid: int, role: str, talk: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(inside(pid, sys.executable, "-c", PEER, role, talk), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


ROW = " 1: 0100630A:1388 0200630A:9C40 01 00000001:00000000 {timer}:00000012 {tried:08X}     0        {probes} 4711 2 0"


@pytest.mark.parametrize(
    ("timer", "tried", "probes", "unanswered"),
    [
        ("00", 0, 0, False),
        ("01", 1, 0, False),
        ("01", 2, 0, True),
        ("02", 0, 5, False),
        ("04", 0, 1, False),
        ("04", 0, 2, True),
    ],
)
def test_who_gets_no_answer_by_the_kernels_row(
    tmp_path: Path, timer: str, tried: int, probes: int, unanswered: bool
) -> None:
    (tmp_path / "7" / "fd").mkdir(parents=True)
    (tmp_path / "7" / "net").mkdir()
    (tmp_path / "7" / "fd" / "3").symlink_to("socket:[4711]")
    row = ROW.format(timer=timer, tried=tried, probes=probes)
    (tmp_path / "7" / "net" / "tcp").write_text(f"  sl  local_address rem_address ...\n{row}\n")
    (found,) = connections(7, tmp_path)
    assert (found.local, found.remote, found.unanswered) == ("10.99.0.1", "10.99.0.2", unanswered)


@pytest.mark.parametrize(
    ("lines", "file", "text"),
    [
        ("4:memory:/jobs/one\n", "memory/jobs/one/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("0::/jobs/one\n", "jobs/one/memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n"),
    ],
)
def test_kills_for_lack_of_memory_are_counted(tmp_path: Path, lines: str, file: str, text: str) -> None:
    """Both versions of control groups, from files as the kernel writes them."""
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "cgroup").write_text(lines)
    counter = tmp_path / "groups" / file
    counter.parent.mkdir(parents=True)
    counter.write_text(text)
    found = memory_group(7, tmp_path / "proc", tmp_path / "groups")
    assert found is not None
    assert not found.has_killed()
    counter.write_text(text.replace("oom_kill 2", "oom_kill 3"))
    assert found.has_killed()
    assert memory_group(8, tmp_path / "proc", tmp_path / "groups") is None
