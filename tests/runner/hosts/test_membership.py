"""What the launcher's variables say, where the store is opened, and which interface leads to an address."""

from __future__ import annotations

import socket

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner.hosts.__main__ import main
from steelyard.runner.hosts.membership import Membership, interface_towards

pytest.importorskip("torch", reason="stores need the runner extra")

GOOD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@given(st.integers(1, 8), st.integers(1, 16), st.data())
def test_machines_are_counted_and_not_processes(per_machine: int, count: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, per_machine * count - 1))
    environment = {**GOOD, "RANK": str(rank), "WORLD_SIZE": str(per_machine * count)}
    environment |= {"LOCAL_WORLD_SIZE": str(per_machine), "LOCAL_RANK": str(rank % per_machine)}
    found = Membership.read(environment)
    assert (found.number, found.local_rank) == divmod(rank, per_machine)
    assert found.count == count


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"RANK": ""}, "RANK"),
        ({"RANK": "-1"}, "RANK"),
        ({"RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "0"}, "RANK"),
        ({"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "RANK"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT"),
    ],
)
def test_bad_variables_are_named(change: dict[str, str], path: str) -> None:
    with pytest.raises(InputError) as error:
        Membership.read({**GOOD, **change})
    assert error.value.path == path
    assert error.value.mend


@pytest.mark.parametrize("words", [[], ["train", "demo"], ["--help"]])
def test_only_what_runs_across_machines_is_taken(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words, GOOD) == 2
    assert "does not run across machines" in capsys.readouterr().err


def test_a_further_process_of_a_machine_has_nothing_to_do() -> None:
    assert main(["replay", "demo"], {**GOOD, "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_the_store_listens_on_the_given_address_alone() -> None:
    membership = Membership.read({**GOOD, "RANK": "0", "MASTER_PORT": str(free_port())})
    store = membership.open_store()
    own = psutil.Process().net_connections("inet")
    listening = [each.laddr for each in own if each.status == psutil.CONN_LISTEN and each.laddr.port == membership.port]
    assert [each.ip for each in listening] == ["127.0.0.1"]
    other = membership.join_store()
    other.set("key", "value")
    assert store.get("key") == b"value"


def test_an_address_that_is_not_here_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be opened here"):
        Membership.read({**GOOD, "RANK": "0", "MASTER_ADDR": "192.0.2.1"}).open_store()


def test_the_interface_towards_this_very_machine_is_loopback() -> None:
    assert interface_towards("127.0.0.1").startswith("lo")
