"""Temporary folders: those of the dead are swept, those of the living and of others stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
from steelyard.runner.places import OWNER, is_alive, sweep_places

MADE = "import sys; from steelyard.runner.places import new_place; print(new_place(), flush=True); sys.stdin.read()"


def test_what_a_killed_driver_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MADE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        place = Path(process.stdout.readline().strip())
        assert place.parent == tmp_path
        assert place.stat().st_mode & 0o777 == 0o700
        assert sweep_places(tmp_path) == []
        process.kill()
        process.wait()
        assert sweep_places(tmp_path) == [place]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_do_not_say_whose_they_are_stay(tmp_path: Path) -> None:
    gone = {"pid": 2**22 + 1, "started": 0.0}
    for name, text in {"none": None, "torn": '{"pid": 1', "list": "[]", "words": '{"pid": "x", "started": 1}'}.items():
        (tmp_path / f"steelyard-{name}").mkdir()
        if text is not None:
            (tmp_path / f"steelyard-{name}" / OWNER).write_text(text)
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / OWNER).write_text(json.dumps(gone))
    (tmp_path / "steelyard-link").symlink_to(tmp_path / "another")
    before = sorted(tmp_path.iterdir())
    assert sweep_places(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_number_that_is_used_again_is_not_the_same_process() -> None:
    started = psutil.Process().create_time()
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), started - 100.0)
