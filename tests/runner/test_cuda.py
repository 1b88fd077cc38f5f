"""Lanes that are GPUs: one process each, NCCL between them. Skipped, and visibly so, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
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
def test_every_gpu_is_a_candidate_and_so_is_the_processor() -> None:
    names = [lane.name for lane in candidate_lanes()]
    assert names == [f"cuda{number}" for number in range(len(GPUS))] + ["cpu"]


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
