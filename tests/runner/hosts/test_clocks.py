"""One clock for all: two processes agree on it, also where one's own clock is a thousand seconds off."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="collectives need the runner extra")

AHEAD_S = 1000
PROGRAM = """
import sys, time, torch, torch.distributed as dist
from datetime import timedelta
from steelyard.runner.hosts.clocks import agreed_offset_s
rank, file = int(sys.argv[1]), sys.argv[2]
wait = timedelta(seconds=60)
dist.init_process_group("gloo", store=dist.FileStore(file, 2), rank=rank, world_size=2, timeout=wait)
first = time.monotonic()
offset = agreed_offset_s(rank, 2, torch.device("cpu"))
print(offset, time.monotonic() - first)
dist.destroy_process_group()
"""


def agree(folder: Path, prefix: list[str]) -> list[tuple[float, float]]:
    """Offset and duration of the agreement of two processes, the second started with a prefix."""
    parts = [
        subprocess.Popen(
            [*start, sys.executable, "-c", PROGRAM, str(rank), str(folder / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, start in enumerate(([], prefix))
    ]
    answers = [part.communicate(timeout=120) for part in parts]
    assert [part.returncode for part in parts] == [0, 0], answers
    found = [tuple(map(float, printed.split())) for printed, _ in answers]
    return [(offset, taken) for offset, taken in found]


def test_processes_of_one_clock_find_no_offset(tmp_path: Path) -> None:
    """The error is at most half of the quickest exchange, and that is no longer than the whole agreement."""
    (first, _), (second, taken) = agree(tmp_path, [])
    assert first == 0.0
    assert abs(second) <= taken / 2


def test_a_clock_that_is_ahead_is_set_back(tmp_path: Path) -> None:
    """A time namespace has a monotonic clock of its own."""
    unshare = shutil.which("unshare")
    prefix = [unshare or "unshare", "--time", "--fork", "--monotonic", str(AHEAD_S)]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False) if unshare else None
    if probe is None or probe.returncode:
        pytest.skip(f"no time namespaces here: {probe.stderr.strip() if probe else 'unshare is not installed'}")
    (_, _), (second, taken) = agree(tmp_path, prefix)
    assert abs(second + AHEAD_S) <= taken / 2
