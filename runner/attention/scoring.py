"""score(): how close attention comes to the exact split, simulated, on clusters that it has not seen."""

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
from ...sim.view import Policy, View
from .layers import EXACT_CUT, layer_contestants, layer_worlds
from .worlds import Family, held_out_worlds

SCHEMA_VERSION = 2
TUNED_FILES = ("attention-tuned.json", "attention-layers-tuned.json")
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
    *, seed: int = 7, each: int = 8, layers_each: int = 13, tick: Tick = lambda done, total: None
) -> dict[str, Any]:
    """Share of the exact split's simulated throughput, and the time that deciding took on this host.

    The exact split is optimal by the simulated step without noise, over all sets of devices where these are few and
    over some beyond: a share above 1 is possible past that.

    Args:
        seed: of the clusters; training draws from other streams, whatever the seed.
        each: clusters of every family.
        layers_each: clusters of every family that layers are placed on; 0: none.
        tick: told how many clusters are done.
    """
    document = _compared(contestants(), held_out_worlds(seed, each), EXACT, _split_bound_s, tick)
    if layers_each:
        cutters = layer_contestants(tuned()["attention-layers"])
        document["layers"] = _compared(cutters, _layers(seed, layers_each), EXACT_CUT, work_bound_s, tick)
    made = f"steelyard attention score --seed {seed} --each {each} --layers-each {layers_each}"
    when = {"date": datetime.now(UTC).date().isoformat()}
    return {"schema_version": SCHEMA_VERSION, "made_by": made, "weights": FILE, **when, **document}


def _split_bound_s(scenario: Scenario) -> float:
    """What no split can beat."""
    return lower_bound_s(View.of(scenario))


def _layers(seed: int, each: int) -> list[tuple[Family, Scenario]]:
    return layer_worlds("held out", seed, each)


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
        values = {label: throughput(scenario, policy) for label, policy in policies.items()}
        most = scenario.workload.global_batch / bound_s(scenario)
        for label, policy in policies.items():
            shares[label].append(values[label] / values[exact] if values[exact] else float(not values[label]))
            gaps[label].append(most / values[label] - 1 if values[label] else math.inf)
            times[label].append(decision_s(scenario, policy))
        tick(number + 1, len(worlds))
    families = list(dict.fromkeys(family for family, _ in worlds))
    document = _document(families, len(worlds) // len(families), shares, times)
    for row in document["rows"]:
        row["gap_median"] = _finite(float(np.median(gaps[row["policy"]])))
    return document


def _finite(value: float) -> float | None:
    """To four digits behind the point; None where most policies refused."""
    return round(value, 4) if math.isfinite(value) else None


def throughput(scenario: Scenario, policy: Policy) -> float:
    """Simulated samples per second; 0 where the policy has no plan."""
    from ...sim.engine import objective_value

    try:
        return objective_value(scenario, policy, seed=scenario.seed, launches=1)
    except Infeasible:
        return 0.0


def decision_s(scenario: Scenario, policy: Policy) -> float:
    """Seconds that a policy took to decide, the least of some repeats; each sees the cluster anew."""
    least = float("inf")
    for _ in range(REPEATS):
        view = View.of(scenario)
        begin = time.perf_counter()
        with contextlib.suppress(Infeasible):  # to say so takes its time too
            policy.allocate(view)
        least = min(least, time.perf_counter() - begin)
        if least > LONG_S:
            break
    return least


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
