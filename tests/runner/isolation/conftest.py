"""What these tests need of the host, and that they leave it as it was."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from steelyard.runner.isolation.capabilities import this_host
from steelyard.runner.isolation.owner import owner_of

OURS = ("lane", "inner", "host", "core", "up", "down", "wire", "probe")
"""Names of interfaces that a network of lanes has within its namespaces, and never outside."""


@pytest.fixture
def need() -> Callable[[str], None]:
    """Skips a test, with the host's reason, where a capability is not to be had."""

    def check(name: str) -> None:
        found = this_host().capability(name)
        if not found.available:
            pytest.skip(f"no {found.title} here: {found.reason}")

    return check


def left_groups() -> set[str]:
    """Control groups of makers that have ended, and of this process."""
    found = set()
    for place in this_host().places:
        for path in place.parent.glob("steelyard-*"):
            owner = owner_of(path.name)
            if owner is not None and (owner.gone or owner.pid == psutil.Process().pid):
                found.add(str(path))
    return found


def interfaces() -> set[str]:
    """Interfaces of the host's own namespace that could be ours."""
    names = psutil.net_if_addrs()
    return {name for name in names if name.rstrip("0123456789") in OURS}


def named_namespaces() -> set[str]:
    """Network namespaces that have a name."""
    place = Path("/run/netns")
    return {path.name for path in place.iterdir()} if place.is_dir() else set()


def helpers() -> set[str]:
    """Processes of this package below this test."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found |= (
                {f"process {each.pid}"}
                if any("steelyard.runner.isolation" in word for word in each.cmdline())
                else set()
            )
    return found


def left() -> set[str]:
    """All of these."""
    return left_groups() | interfaces() | named_namespaces() | helpers()


@pytest.fixture
def as_before() -> Iterator[None]:
    """Fails a test that leaves a group, an interface, a named namespace or a process behind."""
    before = left()
    yield
    end = time.monotonic() + 10  # for those whose driver was killed
    while left() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert left() - before == set()


def sockets(pid: int, *options: str) -> str:
    """What ``ss`` says in the network namespace of a process."""
    command = ["nsenter", "--net", "--target", str(pid), "ss", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout
