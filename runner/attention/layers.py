"""How close attention over layers comes to the exact cut, simulated: worlds, contestants, figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...policies import make_policy
from ...sim.estimate import step_s
from ...sim.plan import Infeasible
from ...sim.spec import Scenario
from ...sim.view import Policy, View
from .worlds import FAMILIES, Family, world

DEVICES = (4, 8)
"""The exact cut is exact over all orders of up to eight unlike devices."""
NAMES = ("plain", "memory", "slow links", "catalog")
EXACT_CUT = "exact (cut-exact)"
NO_PLAN = 3.0
"""Logarithm of how much slower than equal stages a refusal counts."""


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


def base_s(scenario: Scenario) -> float:
    """Estimated step of equal stages; where these do not fit, of attention's defaults."""
    view = View.of(scenario)
    for name in ("cut-uniform", "attention-layers"):
        try:
            return step_s(view, make_policy(name).allocate(view))
        except Infeasible:
            continue
    return 1.0  # nobody has a plan: a refusal costs every policy the same


def layer_loss(scenarios: Sequence[Scenario], bases: Sequence[float], policy: Policy) -> float:
    """Mean logarithm of a policy's estimated step over that of equal stages."""
    return float(np.mean([_loss(scenario, base, policy) for scenario, base in zip(scenarios, bases, strict=True)]))


def _loss(scenario: Scenario, base: float, policy: Policy) -> float:
    view = View.of(scenario)
    try:
        return math.log(step_s(view, policy.allocate(view)) / base)
    except Infeasible:
        return NO_PLAN
