"""Clusters and graphs of operators at random, by family: to tune placement on, and to hold it against unseen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...sim.spec import Scenario
from .graphs import Graph
from .worlds import Family, world

Worlds = list[tuple[Family, Scenario]]

_family = partial(Family, overlaps=True)
_small = partial(_family, devices=(4, 6))
FEW, MANY = (7, 9), (16, 60)
"""Operators."""
SLOW = (0.3, 5)
"""GB/s between machines; else 10 to 100."""
PART = (0.7, 3.0)
"""Memory of a device, against an equal share of all."""

SMALL: tuple[Family, ...] = (
    _small("small, branches", "chains side by side", graph=Graph("branches", FEW)),
    _small("small, levels", "level by level", graph=Graph("layers", FEW)),
    _small("small, memory", "memory for a part of the operators", graph=Graph("layers", FEW), part=PART),
    _small("small, slow links", "0.3 to 5 GB/s", graph=Graph("branches", FEW), link_gb_per_s=SLOW),
)
"""Seven to nine operators on four to six devices: few enough for the exact placement. None is trained on."""
LARGE: tuple[Family, ...] = (
    _family("branches", "chains side by side", trained=True, graph=Graph("branches", MANY)),
    _family("levels", "level by level", trained=True, graph=Graph("layers", MANY)),
    _family("memory", "memory for a part of the operators", trained=True, graph=Graph("layers", MANY), part=PART),
    _family("slow links", "0.3 to 5 GB/s", trained=True, graph=Graph("branches", MANY), link_gb_per_s=SLOW),
    _family("micro-batches", "2 to 8 of them", trained=True, graph=Graph("layers", MANY, micro_batches=(2, 8))),
    _family("cells", "cells of branches, one after the other", graph=Graph("cells", MANY)),
    _family("many", "16 to 32 devices", devices=(16, 32), graph=Graph("layers", MANY)),
    _family("catalog", "real GPUs and Ethernet", catalog=True, graph=Graph("cells", MANY)),
)
"""Sixteen to sixty operators, on four to twelve devices where nothing else is said."""


def graph_worlds(families: Sequence[Family], purpose: str, seed: int, each: int) -> Worlds:
    """So many worlds of each family; every purpose has streams of its own."""
    return [
        (family, world(family, seed, f"operators, {purpose}", number)) for family in families for number in range(each)
    ]


def training_graphs(seed: int, count: int) -> list[Scenario]:
    """Worlds to learn from: at least so many, of the trained families."""
    families = [family for family in LARGE if family.trained]
    return [scenario for _, scenario in graph_worlds(families, "training", seed, -(-count // len(families)))]
