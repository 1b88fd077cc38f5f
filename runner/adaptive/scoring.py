"""score(): how close policies that change their plan come to one that knew everything, and what their changes cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np

from ...policies import make_policy
from ...sim import engine
from ...sim.adaptive import Course, run_courses
from ...sim.disturbances import factors_at, gone_at, slowed, without
from ...sim.plan import Infeasible
from ...sim.roofline import Identity
from ...sim.spec import Scenario
from ...sim.view import Policy
from .worlds import FAMILIES, Purpose, worlds

SCHEMA_VERSION = 1
SHARE = 0.9
"""Of the clairvoyant's throughput: what an adaptive policy should reach."""
STATIC = "static (makespan)"
SPLITS = ("makespan",)
"""Who divides the clairvoyant's steps: the exact split, for policies that split a batch."""
PLANNERS = {"malleus": ("makespan", "malleus")}
"""By policy, where it makes other plans too: pipelines can be faster than any split."""
Tick = Callable[[int, int], None]


PARAMETERS: Mapping[str, Mapping[str, Any]] = {"malleus": {"micro_batch": 16}}
"""Others than the defaults: the largest micro-batch that the runs allow."""
ADAPTIVE = ("makespan-adaptive", "lb-bsp", "cannikin-online", "malleus", "attention-adaptive")


def contestants() -> dict[str, Policy]:
    """What is compared, by the label of its row."""
    return {STATIC: _made("makespan"), **{name: _made(name) for name in ADAPTIVE}}


def _made(name: str) -> Policy:
    return make_policy(name, PARAMETERS.get(name, {}))


@dataclass(frozen=True)
class Outcome:
    """A run beside the same policy that may change nothing of its own will, and the clairvoyant; seconds."""

    run_s: float
    still_s: float
    best_s: float
    price_s: float
    """Of the changes that were made by its own will."""
    changes: int

    @property
    def share(self) -> float:
        """Of the clairvoyant's throughput."""
        return self.best_s / self.run_s

    @property
    def worth(self) -> bool:
        """Whether it is no slower than without its changes, plus what these cost."""
        return self.run_s <= self.still_s + self.price_s + 1e-9


def score(
    *, seed: int = 11, each: int = 5, purpose: Purpose = "held out", tick: Tick = lambda done, total: None
) -> dict[str, Any]:
    """Every policy through every run, simulated.

    The clairvoyant takes the best plan for every single step, at the devices' speeds in that step, and changes for
    nothing. It splits as the exact split does (no split with the same messages is faster); against Malleus, it takes
    Malleus's plan for the devices of that step where this is faster.

    Args:
        seed: of the runs.
        each: runs of every family.
        purpose: which of the two lots of runs.
        tick: told how many runs are done.
    """
    policies, cases = contestants(), worlds(purpose, seed, each)
    found: dict[str, list[Outcome]] = {label: [] for label in policies}
    for number, (_, scenario) in enumerate(cases):
        for label, policy in policies.items():
            found[label].append(outcome(scenario, policy, clairvoyant_s(scenario, PLANNERS.get(label, SPLITS))))
        tick(number + 1, len(cases))
    made_by = f"steelyard adaptive score --seed {seed} --each {each}" + " --development" * (purpose == "development")
    return _document(made_by, each, found)


def outcome(scenario: Scenario, policy: Policy, best_s: float) -> Outcome:
    """A policy through a run, and through the same one with no change of its own will."""
    rules = scenario.rebalance
    assert rules is not None, "worlds() gives runs with rebalance points"
    bound = scenario.model_copy(update={"rebalance": rules.model_copy(update={"at_most": 0})})
    moving, still = course(scenario, policy), course(bound, policy)
    made = [each for each in moving.decisions if each["changed"] and each["why"] == "asked"]
    price_s = sum(each["price_s"] for each in made)
    return Outcome(total_s(moving), total_s(still), best_s, price_s, len(made))


def course(scenario: Scenario, policy: Policy) -> Course:
    """The one course of a run without noise."""
    (found,) = run_courses(scenario, policy, seed=scenario.seed, launches=1)
    return found


def total_s(found: Course) -> float:
    """Seconds of all steps but the first."""
    return found.ends[-1] - found.ends[0]


def clairvoyant_s(scenario: Scenario, planners: Sequence[str]) -> float:
    """Seconds of all steps but the first, each by the best that some planners have for what the devices are in it."""
    total, events = 0.0, scenario.disturbances
    for step in range(1, scenario.sampling.steps):
        # Rounded down, so that the steps of a drift share their splits: the clairvoyant is, if anything, too fast.
        factors = sorted((name, math.floor(20 * each) / 20) for name, each in factors_at(events, step).items())
        gone = tuple(sorted(gone_at(events, step)))
        total += min(_step_s(planner, Identity(scenario), tuple(factors), gone) for planner in planners)
    return total


@lru_cache(maxsize=4096)
def _step_s(planner: str, key: Identity, factors: tuple[tuple[str, float], ...], missing: tuple[str, ...]) -> float:
    scenario = key.value
    assert isinstance(scenario, Scenario)
    cluster = slowed(without(scenario.cluster, missing), dict(factors))
    there = scenario.model_copy(update={"cluster": cluster, "rebalance": None, "disturbances": []})
    try:
        return scenario.workload.global_batch / engine.objective_value(there, _made(planner), seed=0, launches=1)
    except Infeasible:
        return math.inf


def _document(made_by: str, each: int, found: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    rows = [{"policy": label, **figures(outcomes)} for label, outcomes in found.items()]
    families = [
        {
            "family": family.name,
            "summary": family.summary,
            "policies": {label: figures(all_[place * each : (place + 1) * each]) for label, all_ in found.items()},
        }
        for place, family in enumerate(FAMILIES)
    ]
    when = {"date": datetime.now(UTC).date().isoformat(), "scenarios": each * len(FAMILIES)}
    return {"schema_version": SCHEMA_VERSION, "made_by": made_by, **when, "rows": rows, "families": families}


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of the clairvoyant's throughput, changes, and how often they were worth it."""
    shares = np.array([each.share for each in outcomes])
    found = {
        "median": np.median(shares),
        "p10": np.quantile(shares, 0.1),
        "worst": shares.min(),
        "within_tenth": (shares >= SHARE).mean(),
        "changes": np.mean([each.changes for each in outcomes]),
        "most_changes": max(each.changes for each in outcomes),
        "price_s": sum(each.price_s for each in outcomes),
        "against_still": sum(each.still_s for each in outcomes) / sum(each.run_s for each in outcomes),
        "not_worth": sum(not each.worth for each in outcomes),
        "worst_loss": max(each.run_s / (each.still_s + each.price_s) - 1 for each in outcomes),
    }
    return {key: round(float(value), 4) for key, value in found.items()}
