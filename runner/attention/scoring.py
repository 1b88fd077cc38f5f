"""score(): how close attention comes to the exact split, simulated, on clusters that it has not seen."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import numpy as np

from ...policies import make_policy
from ...policies.attention_trained import FILE
from ...sim.plan import Infeasible
from ...sim.spec import Scenario
from ...sim.view import Policy, View
from .worlds import FAMILIES, held_out_worlds

SCHEMA_VERSION = 1
TUNED_FILE = "attention-tuned.json"
EXACT = "exact (makespan)"
AT_OPTIMUM = 0.999
REPEATS = 3

Tick = Callable[[int, int], None]


def contestants() -> dict[str, Policy]:
    """What is compared, by the label of its row."""
    tuned = json.loads(resources.files("steelyard.policies").joinpath("weights", TUNED_FILE).read_text("utf-8"))
    parts = {name: make_policy(name, each["parameters"]) for name, each in tuned["policies"].items()}
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


def score(*, seed: int = 7, each: int = 8, tick: Tick = lambda done, total: None) -> dict[str, Any]:
    """Share of the exact split's simulated throughput, and the time that deciding took on this host.

    The exact split is optimal by the cost model without overlap, over all sets of devices up to eight and over some
    beyond: a share above 1 is possible past that.

    Args:
        seed: of the clusters; training draws from other streams, whatever the seed.
        each: clusters of every family.
        tick: told how many clusters are done.
    """
    policies, worlds = contestants(), held_out_worlds(seed, each)
    shares: dict[str, list[float]] = {label: [] for label in policies}
    times: dict[str, list[float]] = {label: [] for label in policies}
    for number, (_, scenario) in enumerate(worlds):
        values = {label: throughput(scenario, policy) for label, policy in policies.items()}
        for label, policy in policies.items():
            shares[label].append(values[label] / values[EXACT])
            times[label].append(decision_s(scenario, policy))
        tick(number + 1, len(worlds))
    return _document(seed, each, shares, times)


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
    return least


def _document(
    seed: int, each: int, shares: Mapping[str, Sequence[float]], times: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    rows = [
        {"policy": label, **figures(shares[label]), "decision_ms": float(f"{1e3 * np.median(times[label]):.3g}")}
        for label in shares
    ]
    families = [
        {
            "family": family.name,
            "summary": family.summary,
            "trained": family.trained,
            "policies": {label: figures(found[place * each : (place + 1) * each]) for label, found in shares.items()},
        }
        for place, family in enumerate(FAMILIES)
    ]
    made = {"made_by": f"steelyard attention score --seed {seed} --each {each}", "weights": FILE}
    when = {"date": datetime.now(UTC).date().isoformat(), "scenarios": each * len(FAMILIES)}
    return {"schema_version": SCHEMA_VERSION, **made, **when, "rows": rows, "families": families}


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
