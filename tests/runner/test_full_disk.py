"""A disk that is full, for real: one line, exit code 1, and nothing half written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from steelyard.runner.cli import run
from steelyard.runner.journal import Journal


def test_a_run_that_does_not_fit_is_absent(disk_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    tiny_disk = disk_of("16k")
    assert run(["simulate", "mixed-gpus", "--policy", "uniform", "--runs", str(tiny_disk / "runs")]) == 1
    error = capsys.readouterr().err.strip()
    assert "No space left on device" in error
    assert "Traceback" not in error
    assert list((tiny_disk / "runs").iterdir()) == []


def test_a_journals_lines_wait_for_room(disk_of: Callable[[str], Path]) -> None:
    tiny_disk = disk_of("16k")
    ballast, journal = tiny_disk / "ballast", Journal(tiny_disk / "journal.jsonl")
    journal.write("first")
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2**20))
    for number in range(80):  # more than the page that the first line began
        journal.write("unsaved", step=number)
    assert journal.waiting
    ballast.unlink()
    journal.write("last")
    assert not journal.waiting
    assert [event["event"] for event in journal.read()] == ["first", *["unsaved"] * 80, "last"]
    assert [event["step"] for event in journal.read()[1:-1]] == list(range(80))
