"""DeepSpeed: the configuration, the pipeline's cuts as code, and what neither can say.

Read: DeepSpeed 0.19.8, ``runtime/config.py`` (batch arithmetic), ``runtime/zero/config.py`` (buckets),
``runtime/pipe/module.py`` (``_partition_layers``, ``_set_bounds``), ``runtime/pipe/engine.py`` (no ZeRO-2 or 3,
gradients after the backward pass), ``runtime/pipe/topology.py`` (order of ranks),
``runtime/tensor_parallel/config.py`` (AutoTP), ``launcher/runner.py`` (host file).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...results.errors import InputError
from ...sim.plan import Plan
from ...sim.spec import Scenario
from . import ranks
from .shape import Problem, Shape, irregular, uneven, unsharded_elements

NAME = "deepspeed"
SOURCE = "DeepSpeed 0.19.8"
CONFIG, CODE = "ds_config.json", "steelyard_pipeline.py"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"type": "AdamW", "params": {}},
    "momentum": {"type": "SGD", "params": {"momentum": 0.9}},
    "sgd": {"type": "SGD", "params": {}},
}
DTYPES = ("fp32", "bf16", "fp16")
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def problems(plan: Plan, scenario: Scenario) -> Iterator[Problem]:
    """What of a canonical plan configuration and code cannot say.

    Raises:
        InputError: no plan of this workload can be said.
    """
    workload = scenario.workload
    if workload.dtype not in DTYPES:
        raise InputError("workload.dtype", f"{workload.dtype!r} is none of {', '.join(DTYPES)}", "choose one of them")
    found = list(irregular(plan))
    yield from (*found, *uneven(plan))
    if not found:
        shape = Shape.of(plan)
        yield from _of_pipelines(shape)
        yield from _of_gradients(shape, ELEMENT_BYTES[workload.dtype])


def _of_pipelines(shape: Shape) -> Iterator[Problem]:
    if shape.pipeline > 1 and shape.schedule != "1f1b":
        yield Problem("schedule", f"is {shape.schedule}; the pipeline engine has 1f1b")
    if shape.pipeline > 1 and shape.tensor > 1:
        yield Problem(
            "pipelines.0.stages.0.replicas.0.devices", "are several; pipelines divide no layers by themselves"
        )
    if shape.sequence_parallel:
        yield Problem("pipelines.0.stages.0.sequence_parallel", "is true; AutoTP leaves sequences whole")
    if shape.recompute == "selective":
        yield Problem("pipelines.0.stages.0.recompute", "is selective; whole layers are recomputed, or none")


def _of_gradients(shape: Shape, element_bytes: int) -> Iterator[Problem]:
    if shape.pipeline > 1 and shape.zero > 1:
        yield Problem("zero", f"is {shape.zero}; with pipelines at most 1")
    if shape.data > 1 and shape.overlap and (not shape.zero or shape.pipeline > 1):
        yield Problem(
            "overlap", "is true; without ZeRO, and with pipelines, gradients are sent after the backward pass"
        )
    if unsharded_elements(shape, element_bytes) is None:
        yield Problem("bucket_mib", f"is {shape.bucket_mib:g}, no whole number of elements")


def unfit(scenario: Scenario) -> Iterator[Problem]:
    """What of the model cannot be said, whatever the plan: nothing, as the user's own code makes it."""
    yield from ()


def notes(scenario: Scenario) -> list[str]:
    """What the user has to add."""
    return [
        "add learning rate and schedule to the optimizer; hand the configuration to deepspeed.initialize(config=...)",
        f"{CODE}: build the model from its CutPipeline, or switch on the model's own checkpointing where it says so",
    ]


def files(shape: Shape, scenario: Scenario) -> dict[str, str]:
    """``ds_config.json``, ``steelyard_pipeline.py``, and what starts the ranks."""
    command = f'python "${{TRAIN:?your training script}}" --deepspeed_config "$here/{CONFIG}"'
    note = "TRAIN=<your script> calls deepspeed.initialize, which takes the ranks from the variables set here."
    return {
        CONFIG: json.dumps(_config(shape, scenario), indent=1) + "\n",
        CODE: _code(shape),
        **ranks.files(shape, scenario.cluster, command, note),
    }


def read(texts: Mapping[str, str], layers: int) -> Shape:
    """The shape that :func:`files` wrote.

    Raises:
        InputError: a key is missing or has another type.
    """
    try:
        return _read(json.loads(texts[CONFIG]), _constants(texts[CODE]), ranks.groups_of(texts[ranks.RANKS]))
    except (KeyError, ValueError, TypeError, SyntaxError) as error:
        raise InputError(CONFIG, f"cannot be read: {error}", "take the files that export wrote") from error


def _config(shape: Shape, scenario: Scenario) -> dict[str, Any]:
    dtype = scenario.workload.dtype
    bucket = unsharded_elements(shape, ELEMENT_BYTES[dtype])
    return {
        "train_batch_size": shape.global_batch,
        "train_micro_batch_size_per_gpu": shape.micro_batch,
        "gradient_accumulation_steps": shape.micro_batches,
        "optimizer": OPTIMIZERS[scenario.workload.optimizer],
        "bf16": {"enabled": dtype == "bf16"},
        "fp16": {"enabled": dtype == "fp16"},
        "zero_optimization": {"stage": shape.zero, "reduce_bucket_size": bucket, "overlap_comm": shape.overlap},
        **({"tensor_parallel": {"autotp_size": shape.tensor}} if shape.tensor > 1 else {}),
        **({"pipeline": {"stages": shape.pipeline}} if shape.pipeline > 1 else {}),
    }


def _code(shape: Shape) -> str:
    interval = 1 if shape.recompute == "full" else 0
    return f'''"""Where the plan cuts the model; for training with DeepSpeed's pipeline engine (written for 0.19.8)."""

PARTS = {list(shape.cuts)}
"""First layer of each stage, and the number of layers: embedding, blocks, head, as the scenario lists them."""
ACTIVATION_CHECKPOINT_INTERVAL = {interval}
"""1: every layer is recomputed in the backward pass. Without a pipeline: model.gradient_checkpointing_enable()."""


def cut_pipeline():
    """PipelineModule with these cuts: CutPipeline(layers=[...], num_stages=len(PARTS) - 1, loss_fn=...)."""
    from deepspeed.pipe import PipelineModule

    class CutPipeline(PipelineModule):
        def __init__(self, *args, **kwargs):
            kwargs.setdefault("activation_checkpoint_interval", ACTIVATION_CHECKPOINT_INTERVAL)
            super().__init__(*args, **kwargs)

        def _partition_layers(self, method="uniform"):
            stage = self._topo.get_coord(self.global_rank).pipe
            self.parts = PARTS
            self._set_bounds(start=PARTS[stage], stop=PARTS[stage + 1])

    return CutPipeline
'''


def _constants(text: str) -> dict[str, Any]:
    """The values of a file's own assignments; nothing is executed."""
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _read(config: Mapping[str, Any], code: Mapping[str, Any], groups: tuple[tuple[tuple[str, ...], ...], ...]) -> Shape:
    size, count = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    zero = config["zero_optimization"]
    element_bytes = 2 if config["bf16"]["enabled"] or config["fp16"]["enabled"] else 4
    return Shape(
        groups=groups,
        cuts=tuple(code["PARTS"]),
        sizes=((size,) * count,) * len(groups),
        schedule="1f1b",
        recompute="full" if code["ACTIVATION_CHECKPOINT_INTERVAL"] else "none",
        zero=zero["stage"],
        overlap=zero["overlap_comm"],
        bucket_mib=zero["reduce_bucket_size"] * element_bytes / 2**20,
    )
