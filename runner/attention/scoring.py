"""score(): how close attention comes to the exact split, cut and placement, simulated, where it has not been."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import numpy as np

from ...policies import make_policy
from ...policies.attention_trained import FILE
from ...sim.bounds import lower_bound_s, work_bound_s
from ...sim.plan import Infeasible
from ...sim.spec import Scenario
from ...sim.view import Fixed, Policy, View
from .graph_worlds import LARGE, SMALL, graph_worlds
from .layers import EXACT_CUT, layer_contestants, layer_worlds
from .operators import (
    BEST_KNOWN,
    EXACT_PLACEMENT,
    BestKnown,
    ExactPlacement,
    cutting_contestants,
    operator_contestants,
)
from .worlds import Family, held_out_worlds

SCHEMA_VERSION = 2
TUNED_FILES = ("attention-tuned.json", "attention-layers-tuned.json", "attention-operators-tuned.json")
EXACT = "exact (makespan)"
AT_OPTIMUM = 0.999
REPEATS = 3
LONG_S = 0.2
"""A decision that takes so long is not repeated."""

Tick = Callable[[int, int], None]


def tuned() -> dict[str, dict[str, Any]]:
    """Per policy, the parameters that ``steelyard attention tune`` found."""
    folder = resources.files("steelyard.policies").joinpath("weights")
    files = [json.loads(folder.joinpath(name).read_text("utf-8")) for name in TUNED_FILES]
    return {name: each["parameters"] for file in files for name, each in file["policies"].items()}


def contestants() -> dict[str, Policy]:
    """What is compared, by the label of its row."""
    parts = {name: make_policy(name, tuned()[name]) for name in ("attention", "attention-heads")}
    return {
        "uniform": make_policy("uniform"),
        "proportional (throughput)": make_policy("throughput"),
        EXACT: make_policy("makespan"),
        "attention": make_policy("attention"),
        "attention, tuned": parts["attention"],
        "attention-heads": make_policy("attention-heads"),
        "attention-heads, tuned": parts["attention-heads"],
        "attention-trained": make_policy("attention-trained"),
    }


def score(
    *,
    seed: int = 7,
    each: int = 8,
    layers_each: int = 13,
    operators_each: int = 13,
    tick: Tick = lambda done, total: None,
) -> dict[str, Any]:
    """Share of what is best in simulated throughput, and the time that deciding took on this host.

    The exact split is optimal by the simulated step without noise, over all sets of devices where these are few and
    over some beyond: a share above 1 is possible past that.

    Args:
        seed: of the clusters; training draws from other streams, whatever the seed.
        each: clusters of every family; 0: none.
        layers_each: clusters of every family that layers are placed on; 0: none.
        operators_each: of every family of small graphs of operators, and nearly so many of large ones; 0: none.
        tick: told how many clusters are done.
    """
    document: dict[str, Any] = {}
    if each:
        document |= _compared(contestants(), held_out_worlds(seed, each), EXACT, _split_bound_s, tick)
    if layers_each:
        cutters = layer_contestants(tuned()["attention-layers"])
        worlds = layer_worlds("held out", seed, layers_each)
        document["layers"] = _compared(cutters, worlds, EXACT_CUT, work_bound_s, tick)
    if operators_each:
        document["operators"] = _operators(seed, operators_each, tick)
    counts = f"--each {each} --layers-each {layers_each} --operators-each {operators_each}"
    made = f"steelyard attention score --seed {seed} {counts}"
    return {"schema_version": SCHEMA_VERSION, "made_by": made, "weights": FILE, "date": _today(), **document}


def _operators(seed: int, each: int, tick: Tick) -> dict[str, Any]:
    """Placing operators: small graphs against the exact placement, large ones against the best that is known.

    They have a date and a command of their own, so that they can be scored without the rest.
    """
    parameters = tuned()["attention-operators"]
    whole, cutting = operator_contestants(parameters), cutting_contestants(parameters)
    exact, known = ExactPlacement(tuple(whole.values())), BestKnown(tuple(whole.values()))
    small = graph_worlds(SMALL, "held out", seed, each)
    large = graph_worlds(LARGE, "held out", seed, -(-each * len(SMALL) // len(LARGE)))
    near = _compared({**whole, **cutting, EXACT_PLACEMENT: exact}, small, EXACT_PLACEMENT, work_bound_s, tick)
    far = _compared({**whole, **cutting, BEST_KNOWN: known}, large, BEST_KNOWN, work_bound_s, tick)
    return {
        "made_by": f"steelyard attention score --seed {seed} --each 0 --layers-each 0 --operators-each {each}",
        "date": _today(),
        "small": {"proven": sum(exact.proofs.values()), **near},
        "large": far,
    }


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _split_bound_s(scenario: Scenario) -> float:
    """What no split can beat."""
    return lower_bound_s(View.of(scenario))


def _compared(
    policies: Mapping[str, Policy],
    worlds: Sequence[tuple[Family, Scenario]],
    exact: str,
    bound_s: Callable[[Scenario], float],
    tick: Tick,
) -> dict[str, Any]:
    """Every policy on every world, as shares of one that is exact there, and by how much longer than no plan can."""
    shares: dict[str, list[float]] = {label: [] for label in policies}
    times: dict[str, list[float]] = {label: [] for label in policies}
    gaps: dict[str, list[float]] = {label: [] for label in policies}
    for number, (_, scenario) in enumerate(worlds):
        asked = {label: _asked(scenario, policy) for label, policy in policies.items()}
        best, most = asked[exact][0], scenario.workload.global_batch / bound_s(scenario)
        for label, (value, seconds) in asked.items():
            shares[label].append(value / best if best else float(not value))
            gaps[label].append(most / value - 1 if value else math.inf)
            times[label].append(seconds)
        tick(number + 1, len(worlds))
    families = list(dict.fromkeys(family for family, _ in worlds))
    document = _document(families, len(worlds) // len(families), shares, times)
    for row in document["rows"]:
        row["gap_median"] = _finite(float(np.median(gaps[row["policy"]])))
    return document


def _finite(value: float) -> float | None:
    """To four digits behind the point; None where most policies refused."""
    return round(value, 4) if math.isfinite(value) else None


def _asked(scenario: Scenario, policy: Policy) -> tuple[float, float]:
    """Simulated samples per second of a policy's plan (0: it has none), and processor seconds that it took to decide.

    Short decisions are repeated, each on a cluster seen anew, and the least time counts.
    """
    plan, least = None, math.inf
    for _ in range(REPEATS):
        view = View.of(scenario)
        begin = time.process_time()
        with contextlib.suppress(Infeasible):  # to say so takes its time too
            plan = policy.allocate(view)
        least = min(least, time.process_time() - begin)
        if least > LONG_S:
            break
    return 0.0 if plan is None else throughput(scenario, Fixed(plan)), least


def throughput(scenario: Scenario, policy: Policy) -> float:
    """Simulated samples per second; 0 where the policy has no plan."""
    from ...sim.engine import objective_value

    try:
        return objective_value(scenario, policy, seed=scenario.seed, launches=1)
    except Infeasible:
        return 0.0


def _document(
    families: Sequence[Family],
    each: int,
    shares: Mapping[str, Sequence[float]],
    times: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    rows = [
        {"policy": label, **figures(shares[label]), "decision_ms": float(f"{1e3 * np.median(times[label]):.3g}")}
        for label in shares
    ]
    found = [
        {
            "family": family.name,
            "summary": family.summary,
            "trained": family.trained,
            "policies": {label: figures(all_[place * each : (place + 1) * each]) for label, all_ in shares.items()},
        }
        for place, family in enumerate(families)
    ]
    return {"scenarios": each * len(families), "rows": rows, "families": found}


def figures(shares: Sequence[float]) -> dict[str, float]:
    """Median, 10th percentile and worst share, and how often it is the optimum's."""
    values = np.array(shares)
    found = {
        "median": np.median(values),
        "p10": np.quantile(values, 0.1),
        "worst": values.min(),
        "at_optimum": (values >= AT_OPTIMUM).mean(),
    }
    return {key: round(float(value), 4) for key, value in found.items()}
