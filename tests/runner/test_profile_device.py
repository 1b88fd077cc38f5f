"""The profiling script as a user runs it: a file in an empty folder, a clean interpreter, Steelyard out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from steelyard.runner.cli import run
from steelyard.runner.workload import model_from_config, model_text
from steelyard.sim.layer_profiles import load
from steelyard.sim.spec import load_scenario

CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "task": "causal-lm",
}
SCENARIO = """
name = "profiled"

[[cluster.nodes]]
name = "host"
link = { name = "lo", latency_us = 50.0, bandwidth_gb_per_s = 1.0 }
devices = [
  { name = "here", peak_tflops = { fp32 = 0.1 }, memory_gib = 4.0, memory_bandwidth_gb_per_s = 10.0, PROFILE },
]

[workload]
model = "tiny.json"
global_batch = 12
sequence_length = 16
"""
ALONE = """
import runpy, sys
sys.modules["steelyard"] = None  # an import of it fails
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A scenario and its model, in a folder."""
    (tmp_path / "tiny.json").write_text(model_text(model_from_config(CONFIG, name="tiny")))
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO.replace(", PROFILE", ""))
    return scenario


@pytest.mark.parametrize("without", [pytest.param("none", marks=pytest.mark.slow), "transformers"])
def test_it_runs_alone_and_the_simulator_takes_what_it_writes(
    world: Path, tmp_path: Path, without: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script, empty = tmp_path / "profile_device.py", tmp_path / "empty"
    assert run(["profile", str(world), "--write", str(script)]) == 0
    assert "steelyard" not in script.read_text().replace("`steelyard list links`", "")
    empty.mkdir()
    words = [without, str(script), "--name", "here", "--seconds", "1", "--micro-batches", "1,2,4", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *words], cwd=empty, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    profile = load(empty / "here.json")["here"]
    assert (profile.model, profile.sequence_length, profile.dtype) == ("tiny", 16, "fp32")
    assert ("transformers" in profile.source) == (without == "none")
    assert profile.points
    for point in profile.points:
        assert len(point.forward_s) == len(point.backward_s) == len(point.optimizer_s) == 5
        assert min(*point.forward_s, *point.backward_s) > 0
        assert sum(point.optimizer_s) > 0
    (empty / "tiny.json").write_text((tmp_path / "tiny.json").read_text())
    scenario = empty / "scenario.toml"
    scenario.write_text(SCENARIO.replace("PROFILE", 'layer_profile = "here.json#here"'))
    assert load_scenario(scenario).cluster.devices[0].layer_profile == profile
    capsys.readouterr()
    assert run(["simulate", str(scenario), "-p", "uniform", "--json", "--runs", str(tmp_path / "runs")]) == 0
    summary = json.loads(capsys.readouterr().out)["runs"][0]["summary"]
    assert summary["fidelity"] == "profiled"
    step = json.loads((empty / "here.json").read_text())["profiles"]["here"]["points"][-1]
    least = sum(step["forward_s"]) + sum(step["backward_s"])
    assert summary["step_time_s"]["p50"] > least  # 12 samples take longer than the 4 at most that were measured


def test_the_entry_for_the_scenario_is_one(world: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "p.py", tmp_path / "kind.json"
    assert run(["profile", str(world), "--write", str(script)]) == 0
    words = [str(script), "--name", "kind", "--seconds", "0.2", "--micro-batches", "2", "--threads", "1", "--out"]
    subprocess.run([sys.executable, *words, str(out)], check=True, capture_output=True)
    scenario = tmp_path / "with.toml"
    entry = (tmp_path / "kind.toml").read_text()
    scenario.write_text(f'name = "with"\n{entry}\n[workload]{SCENARIO.partition("[workload]")[2]}')
    device = load_scenario(scenario).cluster.devices[0]
    assert device.name == "kind"
    assert device.peak("fp32") > 0
    assert device.layer_profile is not None


def test_what_cannot_be_profiled_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "p.py"
    taken.write_text("mine")
    for arguments, said in (
        (["image-input"], "workload.model: "),
        (["mixed-gpus", "--set", 'workload.dtype="fp8"'], "workload.dtype: 'fp8' is not profiled"),
        (["mixed-gpus", "--write", str(taken)], "exists"),
    ):
        assert run(["profile", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert taken.read_text() == "mine"
