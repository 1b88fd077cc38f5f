"""What these tests need of the host, and that they leave it as it was."""

from __future__ import annotations

import subprocess
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


def helpers() -> set[int]:
    """Processes of this package below this test."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found |= {each.pid} if any("steelyard.runner.isolation" in word for word in each.cmdline()) else set()
    return found


@pytest.fixture
def as_before() -> Iterator[None]:
    """Fails a test that leaves a group, an interface, a named namespace or a process behind."""
    before = left_groups(), interfaces(), named_namespaces(), helpers()
    yield
    after = left_groups(), interfaces(), named_namespaces(), helpers()
    assert [now - then for now, then in zip(after, before, strict=True)] == [set(), set(), set(), set()]


def listeners(pid: int) -> list[str]:
    """Addresses and ports on which something listens, in the network namespace of a process (``ss -ltnH``)."""
    command = ["nsenter", "--net", "--target", str(pid), "ss", "-ltnH"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[3] for line in lines]
