"""FSDP: a launcher in plain torch that runs a data-parallel plan, with micro-batches that need not be equal.

The script is :mod:`.fsdp_train` with the plan written into it: ``fully_shard`` for zero 2 and 3, and
``DistributedDataParallel`` for 0. It was written against torch 2.13 (``torch/distributed/fsdp/_fully_shard``, read as
installed) and runs in a test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from ...results.errors import InputError
from ...sim.plan import Plan
from ...sim.spec import Scenario
from . import ranks
from .shape import BUCKET_MIB, Problem, Recompute, Shape, irregular

NAME = "fsdp"
SOURCE = "torch 2.13 (fully_shard, DistributedDataParallel)"
SCRIPT = "train.py"
MARK = "PLAN: dict[str, Any] = {}\n"
"""The line of the template that the plan takes the place of."""
DTYPES = ("fp32", "bf16")


def problems(plan: Plan, scenario: Scenario) -> Iterator[Problem]:
    """What of a canonical plan the script cannot run.

    Raises:
        InputError: it can run no plan of this workload.
    """
    workload = scenario.workload
    if workload.dtype not in DTYPES:
        raise InputError("workload.dtype", f"{workload.dtype!r} is none of {', '.join(DTYPES)}", "choose one of them")
    yield from _of_stages(plan)
    yield from irregular(plan)
    if plan.zero == 1:
        yield Problem("zero", "is 1; fully_shard divides gradients with the optimizer's states (2), and weights (3)")
    if not plan.overlap:
        yield Problem("overlap", "is false; gradients are sent as they are done")
    if plan.zero and plan.bucket_mib != BUCKET_MIB:
        yield Problem("bucket_mib", f"is {plan.bucket_mib:g}; fully_shard sends a block at a time")


def _of_stages(plan: Plan) -> Iterator[Problem]:
    for index, pipeline in enumerate(plan.pipelines):
        if len(pipeline.stages) > 1:
            yield Problem(f"pipelines.{index}.stages", f"are {len(pipeline.stages)}; every rank holds all layers")
        for number, stage in enumerate(pipeline.stages):
            where = f"pipelines.{index}.stages.{number}"
            if len(stage.replicas[0].devices) > 1:
                yield Problem(f"{where}.replicas.0.devices", "are several; layers are not divided")
            if stage.recompute == "selective":
                yield Problem(f"{where}.recompute", "is selective; whole blocks are recomputed, or none")


def unfit(scenario: Scenario) -> Iterator[Problem]:
    """What of the model cannot be said, whatever the plan: nothing, as the user's own code makes it."""
    yield from ()


def notes(scenario: Scenario) -> list[str]:
    """What the user has to add."""
    own = [f"put your model and data into build_model() and batch() of {SCRIPT}; they are drawn at random until then"]
    if not scenario.workload.model.config.get("model_type"):
        own.append("build_model(): the workload names no transformers configuration; write the model yourself")
    return own


def files(shape: Shape, scenario: Scenario) -> dict[str, str]:
    """``train.py``, and what starts the ranks."""
    template = resources.files(__package__).joinpath("fsdp_train.py").read_text(encoding="utf-8")
    assert template.count(MARK) == 1, "the template has one place for the plan"
    text = template.replace(MARK, f"PLAN: dict[str, Any] = {_literal(_plan(shape, scenario))}\n")
    command = f'python "$here/{SCRIPT}"'
    note = "Or, where machines number the ranks in turn: torchrun --nproc-per-node ... train.py"
    return {SCRIPT: text, **ranks.files(shape, scenario.cluster, command, note)}


def read(texts: Mapping[str, str], layers: int) -> Shape:
    """The shape that :func:`files` wrote.

    Raises:
        InputError: the script's plan is missing or has another form.
    """
    try:
        return _read(_embedded(texts[SCRIPT]), ranks.groups_of(texts[ranks.RANKS]), layers)
    except (KeyError, ValueError, TypeError, SyntaxError) as error:
        raise InputError(SCRIPT, f"cannot be read: {error}", "take the file that export wrote") from error


def _plan(shape: Shape, scenario: Scenario) -> dict[str, Any]:
    workload = scenario.workload
    config = dict(workload.model.config)
    return {
        "micro_batches": [list(sizes) for sizes in shape.sizes],
        "zero": shape.zero,
        "recompute": shape.recompute,
        "bucket_mib": shape.bucket_mib,
        "global_batch": workload.global_batch,
        "sequence_length": workload.sequence_length,
        "dtype": workload.dtype,
        "optimizer": workload.optimizer,
        "learning_rate": scenario.training.learning_rate,
        "task": config.pop("task", "causal-lm"),
        "config": config,
    }


def _literal(value: dict[str, Any]) -> str:
    """A table as Python, a key a line."""
    return "{\n" + "".join(f"    {key!r}: {each!r},\n" for key, each in value.items()) + "}"


def _embedded(text: str) -> dict[str, Any]:
    """The plan that stands in a script; nothing is executed."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "PLAN":
            assert node.value is not None, "the plan has a value"
            found: dict[str, Any] = ast.literal_eval(node.value)
            return found
    raise ValueError("no PLAN in it")


def _read(plan: Mapping[str, Any], groups: tuple[tuple[tuple[str, ...], ...], ...], layers: int) -> Shape:
    recompute: Recompute = plan["recompute"]
    return Shape(
        groups=groups,
        cuts=(0, layers),
        sizes=tuple(map(tuple, plan["micro_batches"])),
        recompute=recompute,
        zero=plan["zero"],
        bucket_mib=plan["bucket_mib"],
    )
