"""The verb ``steelyard profile``: the script that profiles a device, with a workload written into it."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from ..results.errors import InputError
from .verbs.inputs import open_document
from .verbs.options import Settings

MARK = "WORKLOAD: dict[str, Any] = {}\n"
"""The line of the script that the workload takes the place of."""
TASKS = ("causal-lm", "sequence-classification")


def script(workload: Any) -> str:
    """The text of the script for a workload.

    Raises:
        InputError: the model is no embedding, equal blocks and a head, or of a task that the script does not know.
    """
    template = resources.files(__package__).joinpath("profile_device.py").read_text(encoding="utf-8")
    assert template.count(MARK) == 1, "the script has one place for the workload"
    told = "".join(f"    {key!r}: {value!r},\n" for key, value in _facts(workload).items())
    return template.replace(MARK, f"WORKLOAD: dict[str, Any] = {{\n{told}}}\n")


def _facts(workload: Any) -> dict[str, Any]:
    from .export.frame import blocks, figure

    config = dict(workload.model.config)
    task = config.pop("task", "causal-lm")
    if task not in TASKS:
        raise InputError("workload.model", f"is a {task} model", f"the script knows {' and '.join(TASKS)}")
    heads = figure(config, "num_attention_heads", "n_head")
    hidden = figure(config, "hidden_size", "n_embd", "d_model")
    vocabulary = config.get("vocab_size")
    if None in (heads, hidden, vocabulary):
        raise InputError("workload.model", "does not tell heads, hidden size and vocabulary", "use a language model")
    if workload.dtype not in ("fp32", "bf16", "fp16"):
        raise InputError("workload.dtype", f"{workload.dtype!r} is not profiled", "one of fp32, bf16, fp16")
    sizes = {
        "blocks": blocks(workload, "the script"),
        "hidden": hidden,
        "heads": heads,
        "groups": config.get("num_key_value_heads") or heads,
        "inner": figure(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        "gated": config.get("hidden_act") == "silu",
        "vocabulary": vocabulary,
    }
    return {
        "model": workload.model.name,
        "task": task,
        "sequence_length": workload.sequence_length,
        "dtype": workload.dtype,
        "optimizer": workload.optimizer,
        "sizes": sizes,
        "config": config,
    }


def profile(
    scenario: Annotated[str, typer.Argument(help="Scenario whose workload is to be profiled.", metavar="SCENARIO")],
    write: Annotated[Path | None, typer.Option("--write", help="File for the script; else it is printed.")] = None,
    settings: Settings = [],
) -> None:
    """Write the script (torch only) that measures a workload's layers on one machine of each kind."""
    from ..results.store import write_text
    from ..sim.spec import expand
    from ..sim.workload import Workload

    document, folder = open_document(scenario, settings)
    from ..sim.checking import validate

    workload = validate(Workload, expand({"workload": document.get("workload")}, folder)["workload"], "workload")
    text = script(workload)
    if write is None:
        sys.stdout.write(text)
        return
    if write.exists():
        raise InputError(str(write), "exists", "choose another name, or remove it")
    write_text(write, text)
    sys.stdout.write(f"wrote {write}; run it on one machine of each kind: python {write.name} --name KIND\n")
