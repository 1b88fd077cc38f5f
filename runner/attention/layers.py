"""How close attention over layers comes to the exact cut: worlds and contestants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...policies import make_policy
from ...sim.spec import Scenario
from ...sim.view import Policy
from .worlds import FAMILIES, Family, world

DEVICES = (4, 8)
"""The exact cut is exact over all orders of up to eight unlike devices, in models as short as these."""
NAMES = ("plain", "memory", "slow links", "catalog")
EXACT_CUT = "exact (cut-exact)"
BASES = ("cut-uniform", "attention-layers")
"""Equal stages are what training compares with; where these do not fit, attention's defaults."""


def layer_families() -> list[Family]:
    """Families of clusters that pipelines are made for."""
    return [replace(family, devices=DEVICES) for family in FAMILIES if family.name in NAMES]


def layer_worlds(purpose: str, seed: int, each: int) -> list[tuple[Family, Scenario]]:
    """Clusters of four to eight devices, so many of each family; every purpose has streams of its own."""
    return [
        (family, world(family, seed, f"layers, {purpose}", number))
        for family in layer_families()
        for number in range(each)
    ]


def layer_contestants(tuned: dict[str, Any]) -> dict[str, Policy]:
    """What is compared, by the label of its row.

    Args:
        tuned: parameters of attention-layers that were looked for on training clusters.
    """
    return {
        "uniform (cut-uniform)": make_policy("cut-uniform"),
        "proportional (cut-flops)": make_policy("cut-flops"),
        EXACT_CUT: make_policy("cut-exact"),
        "attention-layers, one head": make_policy("attention-layers", {"heads": 1}),
        "attention-layers": make_policy("attention-layers"),
        "attention-layers, tuned": make_policy("attention-layers", tuned),
    }
