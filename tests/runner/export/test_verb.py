"""``steelyard export`` as a user types it, and the script that it writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tomli_w
from steelyard.runner.cli import run

from .conftest import document


@pytest.fixture
def scenario_file(tmp_path: Path) -> Path:
    path = tmp_path / "eight.toml"
    path.write_text(tomli_w.dumps(document()))
    return path


def test_scenario_and_policy(scenario_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    policy = "grid(pipeline=2, tensor=2, zero=1, sequence_parallel=true)"
    assert run(["export", str(scenario_file), "-p", policy, "--to", "megatron", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exact"]
    assert report["loss_percent"] == 0
    arguments = (out / "arguments.txt").read_text()
    assert "--tensor-model-parallel-size 2\n--pipeline-model-parallel-size 2\n" in arguments
    assert "--use-distributed-optimizer\n" in arguments


def test_run_folder_and_plan_file(scenario_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    assert run(["simulate", str(scenario_file), "-p", "makespan", "--runs", str(runs), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["runs"][0]["folder"]
    assert run(["export", folder, "--to", "fsdp", "-o", str(tmp_path / "a")]) == 0
    plan = [
        "export",
        f"{folder}/plan.json",
        "--scenario",
        str(scenario_file),
        "--to",
        "fsdp",
        "-o",
        str(tmp_path / "b"),
    ]
    assert run(plan) == 0
    for name in ("train.py", "ranks.json", "launch.sh", "hostfile", "plan.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "jax", "-p", "uniform"], "--to: 'jax' is no target (one of megatron, torchtitan, deepspeed, fsdp)"),
        (["--to", "megatron"], "is no run folder"),
        (
            ["--to", "megatron", "--exact", "-p", "grid(pipeline=2, schedule=gpipe)"],
            "schedule: is gpipe; there are 1f1b",
        ),
        (["--to", "megatron", "-p", "uniform", "--set", 'workload.dtype="fp8"'], "workload.dtype: 'fp8' is none of"),
        (["--to", "megatron", "-p", "uniform", "--scenario", "x"], "--policy: is given with --scenario"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, scenario_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(scenario_file), *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_script_starts_each_rank_on_its_device(scenario_file: Path, tmp_path: Path) -> None:
    """Run for real, with a ``python`` in front that tells what it was started with."""
    out, tools = tmp_path / "out", tmp_path / "tools"
    assert run(["export", str(scenario_file), "-p", "grid(tensor=4)", "--to", "megatron", "-o", str(out)]) == 0
    tools.mkdir()
    (tools / "python").write_text('#!/bin/sh\necho "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*"\n')
    (tools / "python").chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "MASTER_ADDR": "10.0.0.1", "NODE": "old"}
    command = ["sh", str(out / "launch.sh"), "--train-iters", "5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = sorted(done.stdout.splitlines())
    ranks = [each for each in json.loads((out / "ranks.json").read_text()) if each["node"] == "old"]
    told = [f"{each['rank']} {each['local_rank']} 8 10.0.0.1:29500 pretrain_gpt.py" for each in ranks]
    assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told
    assert all(line.endswith("--bf16 --optimizer adam --train-iters 5") for line in lines)
    wrong = subprocess.run(command, env={**environment, "NODE": "x"}, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "launch.sh: x is none of the machines\n")
