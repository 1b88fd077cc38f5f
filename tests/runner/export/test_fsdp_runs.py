"""The generated launcher for real: two processes under torchrun, against one process that sees the whole batch."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steelyard.runner.export.export import Exported, export, write
from steelyard.runner.export.targets import TARGETS
from steelyard.runner.workload import model_from_config
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, scenario_from

STEPS = 4
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "task": "causal-lm",
}


def private_network() -> bool:
    """Whether this process may make a network of its own: torchrun's store listens on every address."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-Urn", "sh", "-c", "ip link set lo up"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def two() -> Scenario:
    """Two unequal devices, and a GPT of two blocks without dropout."""
    figures = {"memory_gib": 4.0, "memory_bandwidth_gb_per_s": 10.0}
    devices = [{**figures, "name": name, "peak_tflops": {"fp32": peak}} for name, peak in (("a", 0.1), ("b", 0.05))]
    link = {"name": "lo", "latency_us": 50.0, "bandwidth_gb_per_s": 1.0}
    model = model_from_config(CONFIG, name="tiny").model_dump()
    model["config"] |= {key: value for key, value in CONFIG.items() if key.endswith("pdrop") or key.endswith("id")}
    return scenario_from(
        {
            "name": "two",
            "cluster": {"nodes": [{"name": "host", "link": link, "devices": devices}], "backend": "gloo"},
            "workload": {"model": model, "global_batch": 12, "sequence_length": 16, "max_micro_batch": 4},
        }
    )


def exported(two: Scenario, sizes: tuple[list[int], ...], zero: int, recompute: str) -> Exported:
    """The export of a data-parallel plan with these micro-batches."""
    base = Plan.data_parallel(two.workload, {"a": 6, "b": 6})
    pipelines = [
        each.model_copy(
            update={
                "micro_batches": own,
                "stages": [stage.model_copy(update={"recompute": recompute}) for stage in each.stages],
            }
        )
        for each, own in zip(base.pipelines, sizes, strict=True)
    ]
    found = export(base.model_copy(update={"pipelines": pipelines, "zero": zero}), two, TARGETS["fsdp"])
    assert not found.problems
    return found


def alone(script: Path) -> list[float]:
    """The losses of one process over the whole batch: the script's model and data, and a loop of its own."""
    import torch

    parts: dict[str, Any] = runpy.run_path(str(script))
    plan, model = parts["PLAN"], parts["build_model"]()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=plan["learning_rate"]), []
    for step in range(STEPS):
        inputs, labels = parts["batch"](step, 0, plan["global_batch"])
        logits = model.train()(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.skipif(not private_network(), reason="needs a network namespace of its own, which this host denies")
@pytest.mark.parametrize(
    ("sizes", "zero", "recompute"),
    [
        (([4, 4, 1], [3]), 0, "none"),
        (([4, 4, 1], [3]), 2, "full"),
        (([4, 4], [2, 2]), 3, "none"),  # with zero = 3, equally many
    ],
)
def test_the_losses_are_those_of_one_process(
    two: Scenario, tmp_path: Path, sizes: tuple[list[int], ...], zero: int, recompute: str
) -> None:
    """Shares that are unequal, in sizes and numbers of micro-batches."""
    found = exported(two, sizes, zero, recompute)
    folder = write(found, tmp_path / "out")
    wanted = alone(folder / "train.py")
    command = "ip link set lo up && exec torchrun --nproc-per-node 2 --master-addr 127.0.0.1 --master-port 29555"
    command += f" train.py --steps {STEPS} --csv steps.csv"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        ["unshare", "-Urn", "sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["step"] for each in told] == list(range(STEPS))
    assert [each["loss"] for each in told] == pytest.approx(wanted, rel=2e-5)
    assert wanted[-1] != pytest.approx(wanted[0], rel=1e-4)  # it trains
    assert (folder / "steps.csv").read_text().count("\n") == STEPS + 1
