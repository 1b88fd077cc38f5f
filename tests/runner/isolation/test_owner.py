"""Names tell who made a thing, and whether that process still runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.isolation.owner import Owner, owner_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@given(st.integers(0, 2**40), st.integers(1, 2**22), st.integers(0, 2**60))
def test_a_name_tells_its_owner(namespace: int, pid: int, started: int) -> None:
    owner = Owner(namespace, pid, started)
    assert owner_of(owner.name()) == owner


@given(st.text())
def test_other_names_tell_of_nobody(name: str) -> None:
    assert owner_of(name) is None


@pytest.mark.parametrize("name", ["steelyard", "steelyard-1-2-3", "steelyard-1-2-3-xyz", "steelyard-1-2-3-ab.slice"])
def test_names_that_look_alike_tell_of_nobody(name: str) -> None:
    assert owner_of(name) is None


def test_two_names_of_one_owner_differ() -> None:
    assert Owner.here().name() != Owner.here().name()


def test_this_process_is_here_and_one_that_ended_is_gone() -> None:
    assert not Owner.here().gone
    program = "from steelyard.runner.isolation.owner import Owner; print(Owner.here().name())"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    owner = owner_of(answer.stdout.strip())
    assert owner is not None
    assert owner.gone


def test_a_later_process_of_the_same_number_is_another() -> None:
    here = Owner.here()
    assert replace(here, started=here.started + 1).gone


def test_a_process_of_another_container_counts_as_alive() -> None:
    here = Owner.here()
    assert not replace(here, namespace=here.namespace + 1, started=here.started + 1).gone
