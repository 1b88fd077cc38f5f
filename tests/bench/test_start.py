"""How long the command line takes to answer, beside an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TURNS = 7


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@pytest.mark.bench
def test_help_answers_soon(scoreboard: Callable[..., None]) -> None:
    program = str(Path(sys.executable).with_name("steelyard"))
    empty, helped = [], []
    for _ in range(TURNS):
        empty.append(_seconds([sys.executable, "-c", "import typer, rich.console, pydantic"]))
        helped.append(_seconds([program, "--help"]))
    scoreboard(
        "help",
        min(helped) / min(empty),
        aim="≤ 1.5",
        what=f"`steelyard --help` ({min(helped):.2f} s) beside importing typer, rich and pydantic alone",
    )
