"""`pip install .` in a bare virtual environment: simulates, searches and reports without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bare")
    venv.create(place / "venv")
    # Nothing is compiled: most of what pandas, scipy and matplotlib bring is never imported here.
    pip = [sys.executable, "-m", "pip", "--python", str(place / "venv"), "install", "--quiet", "--no-compile"]
    words = [*pip, "--constraint", str(ROOT / "constraints.txt"), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return place / "venv" / "bin" / "steelyard"


def answer(program: Path, folder: Path, *words: str) -> dict[str, object]:
    done = subprocess.run([str(program), *words, "--json"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_simulate_search_and_report_without_torch(program: Path, tmp_path: Path) -> None:
    python = program.with_name("python")
    assert subprocess.run([str(python), "-c", "import torch"], capture_output=True).returncode != 0
    runs = answer(program, tmp_path, "simulate", "mixed-gpus")["runs"]
    assert isinstance(runs, list)
    assert len(runs) >= 6
    best = answer(program, tmp_path, "search", "old-and-new", "--trials", "20")
    assert best["search_trials"] == 20
    assert len(json.dumps(answer(program, tmp_path, "simulate", "old-and-new", "--policy", "best.toml"))) > 100
    page = Path(str(answer(program, tmp_path, "report", str(runs[0]["folder"]))["report"]))
    assert (tmp_path / page).read_text().startswith("<!DOCTYPE html>")


def test_real_devices_say_what_to_install(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([str(program), "devices"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'steelyard[runner]'" in done.stderr
    assert "Traceback" not in done.stderr
