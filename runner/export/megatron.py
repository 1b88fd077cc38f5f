"""Megatron-LM: the arguments that realise a plan, and what they cannot say.

Read: ``megatron/training/arguments.py`` of NVIDIA/Megatron-LM at commit 000c4ac24f61 (the flags, and what
``validate_args`` refuses), and megatron-core 0.16.1: ``pipeline_parallel_layer_layout.py`` (the layout's grammar),
``num_microbatches_calculator.py`` (the batch divides by micro-batch x pipelines), ``parallel_state.py`` (order of
ranks), ``distributed_data_parallel_config.py`` (a bucket counts parameters).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...results.errors import InputError
from ...sim.plan import Plan
from ...sim.spec import Scenario
from ...sim.workload import Workload
from . import ranks
from .frame import blocks, bounds, figure, layout
from .shape import Problem, Recompute, Shape, irregular, uneven, unsharded_elements

NAME = "megatron"
SOURCE = "Megatron-LM 000c4ac24f61 (arguments.py), megatron-core 0.16.1"
ARGUMENTS, MODEL = "arguments.txt", "model.txt"
STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}
OPTIMIZERS = {
    "adamw": ["--optimizer", "adam"],
    "momentum": ["--optimizer", "sgd", "--sgd-momentum", "0.9"],
    "sgd": ["--optimizer", "sgd", "--sgd-momentum", "0.0"],
}
DTYPES: dict[str, list[str]] = {"fp32": [], "bf16": ["--bf16"], "fp16": ["--fp16"]}
FAMILIES, CAUSAL = ("llama", "mistral", "gpt2"), "causal-lm"
"""What ``pretrain_gpt.py`` trains with the arguments written here, and for what."""


def problems(plan: Plan, scenario: Scenario) -> Iterator[Problem]:
    """What of a canonical plan the arguments cannot say.

    Raises:
        InputError: no plan of this workload can be said.
    """
    workload = scenario.workload
    blocks(workload, "Megatron-LM")
    for name, value, known in (("dtype", workload.dtype, DTYPES), ("optimizer", workload.optimizer, OPTIMIZERS)):
        if value not in known:
            raise InputError(f"workload.{name}", f"{value!r} is none of {', '.join(known)}", "choose one of them")
    found = list(irregular(plan))
    yield from (*found, *uneven(plan))
    if found:
        return
    shape = Shape.of(plan)
    if shape.pipeline > 1 and shape.schedule not in ("1f1b", "interleaved"):
        yield Problem("schedule", f"is {shape.schedule}; there are 1f1b and interleaved")
    if shape.zero > 1 and shape.pipeline > 1:
        yield Problem("zero", f"is {shape.zero}; with pipelines there is the distributed optimizer, which is zero = 1")
    if unsharded_elements(shape, workload.element_bytes) is None:
        yield Problem("bucket_mib", f"is {shape.bucket_mib:g}, no whole number of {workload.dtype} elements")


def unfit(scenario: Scenario) -> Iterator[Problem]:
    """What of the model the arguments cannot say, whatever the plan: ``pretrain_gpt.py`` trains language models."""
    config, name = scenario.workload.model.config, scenario.workload.model.name
    if config.get("model_type") not in FAMILIES:
        told = f"{name} is none of {', '.join(FAMILIES)}, which pretrain_gpt.py can train; model.txt has its dimensions"
        yield Problem("workload.model", told)
    elif config.get("task", CAUSAL) != CAUSAL:
        yield Problem("workload.model", f"{name} trains for {config['task']}; pretrain_gpt.py for {CAUSAL}")


def notes(scenario: Scenario) -> list[str]:
    """What the user has to add."""
    return ["add data, tokenizer, learning rate and --train-iters to the arguments"]


def files(shape: Shape, scenario: Scenario) -> dict[str, str]:
    """``arguments.txt`` (how the work is divided), ``model.txt`` (the model), and what starts the ranks."""
    # Sequence parallelism wants one queue on GPUs before Blackwell, Megatron FSDP wants several: validate_args.
    queues = "CUDA_DEVICE_MAX_CONNECTIONS=1 " if shape.tensor > 1 and shape.zero < 2 else ""
    command = f'{queues}python pretrain_gpt.py $(cat "$here/{MODEL}" "$here/{ARGUMENTS}")'
    return {
        ARGUMENTS: _lines(_division(shape, scenario.workload)),
        MODEL: _lines(_model(scenario.workload)),
        **ranks.files(shape, scenario.cluster, command, "Run it in a checkout of Megatron-LM."),
    }


def read(texts: Mapping[str, str], layers: int) -> Shape:
    """The shape that :func:`files` wrote.

    Raises:
        InputError: an argument is missing or not of the form written here.
    """
    found = _parsed(texts[ARGUMENTS])
    groups = ranks.groups_of(texts[ranks.RANKS])
    try:
        size, total = int(found["--micro-batch-size"]), int(found["--global-batch-size"])
        workers = int(found["--pipeline-model-parallel-size"])
        stages = _read_stages(found, layers - 2, workers)
        bucket = int(found["--ddp-bucket-size"]) * _element_bytes(found) / 2**20
    except (KeyError, ValueError) as error:
        raise InputError(ARGUMENTS, f"cannot be read: {error}", "take the file that export wrote") from error
    many = len(stages) > workers
    return Shape(
        groups=groups,
        cuts=bounds(stages),
        sizes=((size,) * (total // size // len(groups)),) * len(groups),
        schedule="interleaved" if many else "1f1b",
        recompute=_read_recompute(found),
        sequence_parallel="--sequence-parallel" in found,
        zero=_read_zero(found),
        overlap="--overlap-grad-reduce" in found,
        bucket_mib=bucket,
    )


# ---- how the work is divided ----


def _division(shape: Shape, workload: Workload) -> Iterator[list[str]]:
    yield ["--tensor-model-parallel-size", str(shape.tensor)]
    yield ["--pipeline-model-parallel-size", str(shape.pipeline)]
    yield from _cuts(shape)
    yield ["--micro-batch-size", str(shape.micro_batch)]
    yield ["--global-batch-size", str(shape.global_batch)]
    if shape.recompute == "selective":
        yield ["--recompute-granularity", "selective"]
    if shape.recompute == "full":
        yield ["--recompute-granularity", "full"]
        yield ["--recompute-method", "uniform"]
        yield ["--recompute-num-layers", "1"]
    if shape.sequence_parallel:
        yield ["--sequence-parallel"]
    if shape.zero == 1:
        yield ["--use-distributed-optimizer"]
    if shape.zero > 1:
        yield ["--use-megatron-fsdp"]
        yield ["--data-parallel-sharding-strategy", STRATEGIES[shape.zero]]
        yield ["--ckpt-format", "fsdp_dtensor"]
        yield ["--no-gradient-accumulation-fusion"]
    if shape.overlap:
        yield ["--overlap-grad-reduce"]
    yield ["--ddp-bucket-size", str(unsharded_elements(shape, workload.element_bytes))]
    yield from filter(None, [DTYPES[workload.dtype]])
    options = OPTIMIZERS[workload.optimizer]
    yield from (options[start : start + 2] for start in range(0, len(options), 2))


def _cuts(shape: Shape) -> Iterator[list[str]]:
    """Equal blocks need no word, unequal ones at the ends two numbers, anything else the layout."""
    stages = layout(shape.cuts)
    counts = [stage.count("t") for stage in stages]
    ends = stages[0][:2] == "Et" and stages[-1][-2:] == "tL"  # a stage of the embedding alone needs the layout
    if not ends:
        yield ["--pipeline-model-parallel-layout", _layout_text(stages)]
    elif len(set(counts)) == 1:
        if shape.chunks > 1:
            yield ["--num-layers-per-virtual-pipeline-stage", str(counts[0])]
    elif shape.chunks == 1 and len(counts) > 2 and len(set(counts[1:-1])) == 1:
        yield ["--decoder-first-pipeline-num-layers", str(counts[0])]
        yield ["--decoder-last-pipeline-num-layers", str(counts[-1])]
    else:
        yield ["--pipeline-model-parallel-layout", _layout_text(stages)]


def _layout_text(stages: list[str]) -> str:
    """``Et*3|t*4|t*3L``: runs of blocks as products."""
    runs = (
        "".join(
            letter if (count := len(list(run))) == 1 else f"{letter}*{count}"
            for letter, run in itertools.groupby(stage)
        )
        for stage in stages
    )
    return "|".join(runs)


def _read_stages(found: Mapping[str, str], layers: int, workers: int) -> list[str]:
    if "--pipeline-model-parallel-layout" in found:
        text = re.sub(r"(.)\*(\d+)", lambda run: run[1] * int(run[2]), found["--pipeline-model-parallel-layout"])
        return text.split("|")
    each = int(found.get("--num-layers-per-virtual-pipeline-stage", layers // workers))
    first = int(found.get("--decoder-first-pipeline-num-layers", each))
    last = int(found.get("--decoder-last-pipeline-num-layers", each))
    if first != each or last != each or layers % each:
        middle = (layers - first - last) // (workers - 2)
        counts = [first, *[middle] * (workers - 2), last]
    else:
        counts = [each] * (layers // each)
    stages = ["t" * count for count in counts]
    stages[0], stages[-1] = "E" + stages[0], stages[-1] + "L" if len(stages) > 1 else "E" + stages[-1] + "L"
    return stages


def _read_recompute(found: Mapping[str, str]) -> Recompute:
    value = found.get("--recompute-granularity")
    return "full" if value == "full" else "selective" if value == "selective" else "none"


def _read_zero(found: Mapping[str, str]) -> int:
    if "--use-megatron-fsdp" in found:
        return next(zero for zero, name in STRATEGIES.items() if name == found["--data-parallel-sharding-strategy"])
    return 1 if "--use-distributed-optimizer" in found else 0


def _element_bytes(found: Mapping[str, str]) -> int:
    return 2 if "--bf16" in found or "--fp16" in found else 4


# ---- the model ----


def _model(workload: Workload) -> Iterator[list[str]]:
    """The dimensions, and for models of GPT and LLaMA what else tells them apart."""
    config = workload.model.config
    positions = figure(config, "max_position_embeddings", "n_positions") or workload.sequence_length
    heads, groups = figure(config, "num_attention_heads", "n_head"), config.get("num_key_value_heads")
    yield ["--num-layers", str(blocks(workload, "Megatron-LM"))]
    dimensions = {
        "--hidden-size": figure(config, "hidden_size", "n_embd", "d_model"),
        "--ffn-hidden-size": figure(config, "intermediate_size", "n_inner", "ffn_dim"),
        "--num-attention-heads": heads,
        "--vocab-size": config.get("vocab_size"),
    }
    yield from ([flag, str(value)] for flag, value in dimensions.items() if value is not None)
    yield ["--seq-length", str(workload.sequence_length)]
    yield ["--max-position-embeddings", str(max(positions, workload.sequence_length))]
    if groups is not None and groups != heads:
        yield ["--group-query-attention"]
        yield ["--num-query-groups", str(groups)]
    yield from _family(config)
    if not config.get("tie_word_embeddings"):
        yield ["--untie-embeddings-and-output-weights"]


def _family(config: Mapping[str, Any]) -> Iterator[list[str]]:
    if config.get("model_type") not in ("llama", "mistral"):
        return
    yield ["--normalization", "RMSNorm"]
    yield ["--norm-epsilon", f"{config.get('rms_norm_eps', 1e-6):g}"]
    yield ["--swiglu"]
    yield ["--disable-bias-linear"]
    yield ["--position-embedding-type", "rope"]
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        yield ["--rotary-base", str(int(theta))]


def _lines(arguments: Iterator[list[str]]) -> str:
    return "".join(" ".join(each) + "\n" for each in arguments)


def _parsed(text: str) -> dict[str, str]:
    """Flags of a file of arguments with their values, empty where a flag has none."""
    return {flag: value for flag, _, value in (line.partition(" ") for line in text.splitlines() if line)}
