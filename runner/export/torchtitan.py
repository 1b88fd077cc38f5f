"""torchtitan: the job's TOML that realises a plan, and what it cannot say.

Read: torchtitan 0.2.2, ``config/job_config.py`` (every key), ``train.py`` (how the batch is counted),
``distributed/pipeline_parallel.py`` (micro-batches, names of modules), ``distributed/parallel_dims.py`` (order of
ranks), ``models/llama3`` (flavours; DDP only by itself; tensor parallelism always with sequence parallelism). Version
0.3.0 has Python configurations in place of TOML, whose fields ``parallelism.*`` and ``training.*`` have the same names
(its ``config/configs.py`` was read); its last module is called ``lm_head``, not ``output``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from ...results.errors import InputError
from ...sim.plan import Plan
from ...sim.schedule import Kind
from ...sim.spec import Scenario
from . import ranks
from .frame import blocks, bounds, figure, layout
from .shape import BUCKET_MIB, Problem, Recompute, Shape, irregular, uneven

NAME = "torchtitan"
SOURCE = "torchtitan 0.2.2 (config/job_config.py)"
CONFIG = "job.toml"
SCHEDULES: dict[Kind, str] = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B"}
RESHARD = {2: "never", 3: "always"}
FLAVORS = {
    (4096, 32, 14336, 128256): "8B",
    (8192, 80, 28672, 128256): "70B",
    (16384, 126, 53248, 128256): "405B",
}
"""Hidden size, blocks, inner size and vocabulary of the models that it calls llama3."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def problems(plan: Plan, scenario: Scenario) -> Iterator[Problem]:
    """What of a canonical plan the configuration cannot say.

    Raises:
        InputError: no plan of this workload can be said.
    """
    workload = scenario.workload
    blocks(workload, "torchtitan")
    if workload.dtype not in DTYPES:
        raise InputError("workload.dtype", f"{workload.dtype!r} is none of {', '.join(DTYPES)}", "choose one of them")
    if workload.optimizer != "adamw":
        raise InputError("workload.optimizer", f"{workload.optimizer!r} is no optimizer of torchtitan", "use adamw")
    found = list(irregular(plan))
    yield from (*found, *uneven(plan))
    if found:
        return
    shape = Shape.of(plan)
    if shape.pipeline > 1 and shape.schedule not in SCHEDULES:
        yield Problem("schedule", f"is {shape.schedule}; there are {', '.join(SCHEDULES)}")
    if shape.zero == 1:
        yield Problem("zero", "is 1; gradients are sharded with the optimizer's states (2), and weights (3)")
    if not shape.zero and shape.data > 1 and shape.pipeline * shape.tensor > 1:
        yield Problem("zero", "is 0; whole replicas are for data parallelism alone")
    if shape.tensor > 1 and not shape.sequence_parallel:
        yield Problem("pipelines.0.stages.0.sequence_parallel", "is false; tensor parallelism always divides sequences")
    if not shape.overlap:
        yield Problem("overlap", "is false; gradients are sent as the blocks are done")
    if shape.bucket_mib != BUCKET_MIB:
        yield Problem("bucket_mib", f"is {shape.bucket_mib:g}; messages are of a block each")


def unfit(scenario: Scenario) -> Iterator[Problem]:
    """What of the model the configuration cannot say, whatever the plan: its flavours are code."""
    if _flavor(scenario.workload.model.config) is None:
        known = ", ".join(FLAVORS.values())
        told = (
            f"{scenario.workload.model.name} is none of its llama3 ({known}); add its flavour, and name it in job.toml"
        )
        yield Problem("workload.model", told)


def notes(scenario: Scenario) -> list[str]:
    """What the user has to add."""
    own = ["add data, tokenizer and learning rate to the configuration"]
    if scenario.workload.dtype == "bf16":
        own.append("bf16 is mixed_precision_param: under DDP (zero = 0) that is autocast, with weights kept in fp32")
    return own


def files(shape: Shape, scenario: Scenario) -> dict[str, str]:
    """``job.toml``, and what starts the ranks."""
    import tomli_w

    command = f'python -m torchtitan.train --job.config_file "$here/{CONFIG}"'
    return {
        CONFIG: tomli_w.dumps(_config(shape, scenario)),
        **ranks.files(shape, scenario.cluster, command, "torchtitan 0.2.2."),
    }


def read(texts: Mapping[str, str], layers: int) -> Shape:
    """The shape that :func:`files` wrote.

    Raises:
        InputError: a key is missing or has another type.
    """
    try:
        config = tomllib.loads(texts[CONFIG])
        return _read(config, ranks.groups_of(texts[ranks.RANKS]), layers)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(CONFIG, f"cannot be read: {error}", "take the file that export wrote") from error


def _config(shape: Shape, scenario: Scenario) -> dict[str, Any]:
    workload = scenario.workload
    piped = shape.pipeline > 1
    return {
        "model": {"name": "llama3", "flavor": _flavor(workload.model.config) or workload.model.name},
        "training": {
            "local_batch_size": shape.micro_batch * (shape.micro_batches if piped else 1),
            "global_batch_size": shape.global_batch,
            "seq_len": workload.sequence_length,
            "mixed_precision_param": DTYPES[workload.dtype],
        },
        "optimizer": {"name": "AdamW"},
        "parallelism": {
            "data_parallel_replicate_degree": 1 if shape.zero else shape.data,
            "data_parallel_shard_degree": shape.data if shape.zero else 1,
            **({"fsdp_reshard_after_forward": RESHARD[shape.zero]} if shape.zero else {}),
            "tensor_parallel_degree": shape.tensor,
            "pipeline_parallel_degree": shape.pipeline,
            **(_pipeline(shape) if piped else {}),
        },
        "activation_checkpoint": _checkpoint(shape.recompute),
    }


def _pipeline(shape: Shape) -> dict[str, Any]:
    return {
        "pipeline_parallel_schedule": SCHEDULES[shape.schedule],
        "pipeline_parallel_microbatch_size": shape.micro_batch,
        "module_fqns_per_model_part": _modules(layout(shape.cuts)),
    }


def _checkpoint(recompute: Recompute) -> dict[str, Any]:
    """Selective by operator keeps the results of matrix products and attention, and computes the rest again."""
    return {"mode": recompute, **({"selective_ac_option": "op"} if recompute == "selective" else {})}


def _modules(stages: list[str]) -> list[list[str]]:
    """The names of the modules of each stage."""
    names: dict[str, list[str]] = {"E": ["tok_embeddings"], "L": ["norm", "output"]}
    parts, block = [], 0
    for stage in stages:
        part: list[str] = []
        for letter in stage:
            part += names.get(letter, [f"layers.{block}"])
            block += letter == "t"
        parts.append(part)
    return parts


def _read(config: Mapping[str, Any], groups: tuple[tuple[tuple[str, ...], ...], ...], layers: int) -> Shape:
    training, division = config["training"], config["parallelism"]
    data, workers = len(groups), division["pipeline_parallel_degree"]
    size = division.get("pipeline_parallel_microbatch_size", training["local_batch_size"])
    parts = division.get("module_fqns_per_model_part")
    names = {value: key for key, value in SCHEDULES.items()}
    reshard = {value: key for key, value in RESHARD.items()}
    return Shape(
        groups=groups,
        cuts=bounds([_letters(part) for part in parts]) if parts else (0, layers),
        sizes=((size,) * (training["global_batch_size"] // size // data),) * data,
        schedule=names[division["pipeline_parallel_schedule"]] if workers > 1 else "gpipe",
        recompute=config["activation_checkpoint"]["mode"],
        sequence_parallel=division["tensor_parallel_degree"] > 1,
        zero=reshard[division["fsdp_reshard_after_forward"]] if "fsdp_reshard_after_forward" in division else 0,
    )


def _letters(part: list[str]) -> str:
    return "".join({"tok_embeddings": "E", "output": "L", "norm": ""}.get(name, "t") for name in part)


def _flavor(config: Mapping[str, Any]) -> str | None:
    if config.get("model_type") != "llama":
        return None
    size, count = figure(config, "hidden_size"), figure(config, "num_hidden_layers")
    return FLAVORS.get((size, count, figure(config, "intermediate_size"), figure(config, "vocab_size")))
