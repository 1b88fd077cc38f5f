"""Frame: how the layers of a workload lie in a framework's model: embedding, equal blocks, head."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ...results.errors import InputError
from ...sim.workload import Workload

BLOCKS = ("num_hidden_layers", "n_layer", "num_layers")
"""What configurations of transformers call the number of blocks."""


def blocks(workload: Workload, framework: str) -> int:
    """Blocks of a model whose layers are an embedding, so many blocks, and a head.

    Raises:
        InputError: its layers are others, so that nobody can say where the framework would cut them.
    """
    config = workload.model.config
    count: int | None = next((config[key] for key in BLOCKS if isinstance(config.get(key), int)), None)
    if count is None or len(workload.layers) != count + 2:
        told = f"has {len(workload.layers)} layers, which are not an embedding, its blocks and a head"
        raise InputError("workload.model", told, f"{framework} divides such models only")
    return count


def layout(cuts: Sequence[int]) -> list[str]:
    """Per stage, its layers as letters: E the embedding, t a block, L the head with the loss."""
    letters = "E" + "t" * (cuts[-1] - 2) + "L"
    return [letters[first:last] for first, last in itertools.pairwise(cuts)]


def bounds(stages: Sequence[str]) -> tuple[int, ...]:
    """Bounds of stages that are given by their letters."""
    found = [0]
    for stage in stages:
        found.append(found[-1] + len(stage))
    return tuple(found)


def figure(config: Mapping[str, Any], *names: str) -> Any:
    """The first of some names that a configuration has a value for."""
    return next((config[name] for name in names if config.get(name) is not None), None)
