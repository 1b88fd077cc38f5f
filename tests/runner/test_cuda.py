"""Lanes that are GPUs: one process each, NCCL between them. Skipped, and visibly so, where there is none."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import tomli_w
from steelyard.results.store import find_runs, read_run
from steelyard.runner.cli import run
from steelyard.runner.devices import NamedLane, candidate_lanes, gpu_names
from steelyard.runner.launch import run_group
from steelyard.runner.resolving import job_of
from steelyard.sim.spec import Scenario

pytestmark = [pytest.mark.cuda, pytest.mark.slow]
GPUS = gpu_names()
one_gpu = pytest.mark.skipif(not GPUS, reason="there is no CUDA device")
two_gpus = pytest.mark.skipif(len(GPUS) < 2, reason=f"needs two CUDA devices, there are {len(GPUS)}")


def gpu(number: int) -> NamedLane:
    return NamedLane(name=f"cuda{number}", torch_device=f"cuda:{number}")


@one_gpu
def test_every_gpu_is_a_candidate_and_a_single_one_has_the_processor_beside_it() -> None:
    names = [lane.name for lane in candidate_lanes()]
    assert names == [f"cuda{number}" for number in range(len(GPUS))] + ["cpu"] * (len(GPUS) == 1)


@one_gpu
def test_a_gpu_measures_and_trains_beside_a_processor(tiny_scenario: Scenario, tmp_path: Path) -> None:
    """Their collectives go over gloo; the gradient is that of the processor alone."""
    from safetensors.torch import load_file

    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
    found = []
    for number, lanes in enumerate(([NamedLane(name="cpu")], [NamedLane(name="cpu"), gpu(0)])):
        sizes = [[30]] if len(lanes) == 1 else [[10], [20]]
        file = tmp_path / f"gradient-{number}"
        task = {"op": "gradients", "sizes": sizes, "ranks": list(range(len(lanes))), "file": str(file)}
        run_group(lanes, [task, {"op": "figures"}], job, timeout_s=60, data=data)
        found.append(load_file(f"{file}.0")["gradient"])
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-5


@two_gpus
def test_two_gpus_reduce_over_nccl() -> None:
    task = {"op": "all_reduce", "bytes": 2**20, "repeats": 4, "ranks": [0, 1]}
    launch = run_group([gpu(0), gpu(1)], [task], {}, timeout_s=60)
    for _, answer in launch.of("all_reduce", 0):
        assert all(end > start for start, end in answer["times"])


@one_gpu
def test_a_calibration_and_a_replay_with_a_gpu_and_a_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Splits of the batch over gloo; a pipeline between them is refused before anything starts."""
    whole_loop(tmp_path, capsys, [gpu(0), NamedLane(name="cpu")], ["uniform", "makespan"], "gloo")
    refused = ["replay", str(tmp_path / "gpus.toml"), "--runs", str(tmp_path / "runs"), "-p", "grid(pipeline=2)"]
    assert run(refused) == 2
    assert "gloo" in capsys.readouterr().err


@two_gpus
def test_a_calibration_and_a_replay_of_two_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["uniform", "makespan", "grid(pipeline=2)", "grid(zero=3)"]
    whole_loop(tmp_path, capsys, [gpu(0), gpu(1)], policies, "nccl")


def whole_loop(
    folder: Path, capsys: pytest.CaptureFixture[str], lanes: list[NamedLane], policies: list[str], backend: str
) -> None:
    """Calibrate and replay by the commands; tables name the library measured, no segment ends before it begins."""
    cores = {"cpu": {"cores": [0]}}
    told = [{"name": lane.name, "torch_device": lane.torch_device, **cores.get(lane.name, {})} for lane in lanes]
    document = {
        "name": "gpus",
        "cluster": {"lanes": told},
        "workload": {"model": "gpt2-tiny-text", "global_batch": 24, "sequence_length": 16, "dtype": "fp32"},
        "replay": {"launches": 2, "steps": 4, "rounds": 2, "warmup_steps": 2, "gauge_launches": 1},
        "calibration": {"launches": 2, "rounds": 1, "seconds_per_point": 0.05},
        "training": {"data": "random"},
    }
    file, runs = folder / "gpus.toml", folder / "runs"
    file.write_text(tomli_w.dumps(document))
    assert run(["calibrate", str(file), "--runs", str(runs)]) == 0
    capsys.readouterr()
    (table,) = (runs / "calibrations").glob("*.toml")
    found = {each["backend"] for each in tomllib.loads(table.read_text())["cluster"]["collectives"]}
    assert found == {backend}
    assert run(["replay", str(file), "--runs", str(runs), "-p", ",".join(policies), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    measured = [read_run(each) for each in find_runs([Path(document["folder"])])]
    for events in (each.events for each in measured if each.manifest.kind == "measured"):
        assert (events["end_s"] >= events["start_s"]).all()
