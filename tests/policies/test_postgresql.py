"""A search on a real PostgreSQL server, started for the test on a socket of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from steelyard.policies.search import search
from steelyard.sim.spec import Scenario

pytestmark = pytest.mark.slow


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl: on the path, or where Debian keeps them."""
    found = shutil.which("pg_ctl")
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return Path(found).parent if found else kept[-1].parent if kept else None


def _as_owner(command: list[str], place: Path) -> None:
    """Run a server program; it refuses to be root, so root hands over to the account that the package made."""
    if os.getuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL)


@pytest.fixture
def server() -> Iterator[str]:
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs on this machine")
    place = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path: it holds the socket
    if os.getuid() == 0:
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no account postgres")
        os.chown(place, account.pw_uid, account.pw_gid)
    data = place / "data"
    try:
        _as_owner([str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "steelyard"], place)
        options = f"-c listen_addresses='' -c unix_socket_directories={place}"
        _as_owner(
            [str(programs / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(place / "log"), "-w", "start"], place
        )
        try:
            yield f"postgresql+psycopg://steelyard@/postgres?host={place}"
        finally:
            _as_owner([str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"], place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_postgresql_keeps_the_same_study_as_memory(server: str, scenario: Scenario) -> None:
    pytest.importorskip("psycopg", reason="the cluster extra is not installed")
    kept = search(scenario, trials=24, seed=3, storage=server, study="first")
    assert kept.trials == search(scenario, trials=24, seed=3).trials
    longer = search(scenario, trials=40, seed=3, storage=server, study="first")
    assert longer.trials[:24] == kept.trials
    assert longer.trials == search(scenario, trials=40, seed=3).trials
