"""What is written for one plan each, in full: a change of a file's text is a change that a user sees."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from steelyard.results.errors import InputError
from steelyard.runner.export.shape import Shape
from steelyard.runner.export.targets import TARGETS
from steelyard.sim.spec import Scenario

PIPED = Shape(
    groups=((("new-0", "new-1"), ("old-0", "old-1")), (("new-2", "new-3"), ("old-2", "old-3"))),
    cuts=(0, 9, 14),
    sizes=((3,) * 4,) * 2,
    schedule="1f1b",
    recompute="full",
    sequence_parallel=True,
    zero=1,
)
MEGATRON = """\
--tensor-model-parallel-size 2
--pipeline-model-parallel-size 2
--pipeline-model-parallel-layout Et*8|t*4L
--micro-batch-size 3
--global-batch-size 24
--recompute-granularity full
--recompute-method uniform
--recompute-num-layers 1
--sequence-parallel
--use-distributed-optimizer
--overlap-grad-reduce
--ddp-bucket-size 52428800
--bf16
--optimizer adam
"""
DEEPSPEED = {
    "PARTS = [0, 9, 14]",
    "ACTIVATION_CHECKPOINT_INTERVAL = 1",
}


def test_megatron(eight: Scenario) -> None:
    files = TARGETS["megatron"].files(PIPED, eight)
    assert files["arguments.txt"] == MEGATRON
    assert "--num-layers 12\n--hidden-size 768\n" in files["model.txt"]
    assert files["hostfile"] == "new slots=4\nold slots=4\n"


@pytest.mark.parametrize(
    ("cuts", "workers", "wanted"),
    [
        ((0, 7, 14), 2, []),
        ((0, 4, 7, 10, 14), 2, ["--num-layers-per-virtual-pipeline-stage 3"]),
        ((0, 4, 7, 10, 14), 4, []),
        ((0, 5, 8, 14), 3, ["--decoder-first-pipeline-num-layers 4", "--decoder-last-pipeline-num-layers 5"]),
        ((0, 1, 8, 14), 3, ["--pipeline-model-parallel-layout E|t*7|t*5L"]),
    ],
)
def test_megatron_names_cuts_in_the_fewest_words(
    eight: Scenario, cuts: tuple[int, ...], workers: int, wanted: list[str]
) -> None:
    names = [device.name for device in eight.cluster.devices]
    shape = Shape(
        groups=(tuple((name,) for name in names[:workers]),),
        cuts=cuts,
        sizes=((2,) * 12,),
        schedule="interleaved" if len(cuts) - 1 > workers else "1f1b",
    )
    lines = TARGETS["megatron"].files(shape, eight)["arguments.txt"].splitlines()
    said = ("layout", "virtual", "first", "last-p")
    assert [line for line in lines if any(word in line for word in said)] == wanted


def test_torchtitan(eight: Scenario) -> None:
    config = tomllib.loads(TARGETS["torchtitan"].files(dataclasses.replace(PIPED, zero=3), eight)["job.toml"])
    assert config["parallelism"] == {
        "data_parallel_replicate_degree": 1,
        "data_parallel_shard_degree": 2,
        "fsdp_reshard_after_forward": "always",
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "pipeline_parallel_schedule": "1F1B",
        "pipeline_parallel_microbatch_size": 3,
        "module_fqns_per_model_part": [
            ["tok_embeddings", *(f"layers.{number}" for number in range(8))],
            [*(f"layers.{number}" for number in range(8, 12)), "norm", "output"],
        ],
    }
    training = config["training"]
    assert (training["local_batch_size"], training["global_batch_size"]) == (12, 24)
    assert config["activation_checkpoint"] == {"mode": "full"}


def test_deepspeed(eight: Scenario) -> None:
    shape = Shape(
        groups=((("new-0",), ("old-0",)),) * 1,
        cuts=(0, 9, 14),
        sizes=((3,) * 8,),
        schedule="1f1b",
        recompute="full",
    )
    files = TARGETS["deepspeed"].files(shape, eight)
    assert set(files["steelyard_pipeline.py"].splitlines()) >= DEEPSPEED
    assert '"train_batch_size": 24' in files["ds_config.json"]
    assert '"gradient_accumulation_steps": 8' in files["ds_config.json"]


@pytest.mark.parametrize("name", ["a$(touch b)", "a\ntouch b", "a b", "`b`", "a;b", ""])
def test_names_that_would_be_commands_are_not_written(eight: Scenario, name: str) -> None:
    nodes = [node.model_copy(update={"name": name} if node.name == "new" else {}) for node in eight.cluster.nodes]
    world = eight.model_copy(update={"cluster": eight.cluster.model_copy(update={"nodes": nodes})})
    with pytest.raises(InputError, match="cannot stand in a script"):
        TARGETS["megatron"].files(PIPED, world)
