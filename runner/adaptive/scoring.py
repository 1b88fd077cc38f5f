"""score(): how close policies that change their plan come to one that knew everything, and what their changes cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Self

import numpy as np

from ...policies import make_policy
from ...sim.adaptive import Course, run_courses
from ...sim.roofline import Identity
from ...sim.spec import Scenario
from ...sim.view import Policy, describe
from .clairvoyants import bound_s, steps_s, work_s
from .worlds import FAMILIES, Purpose, worlds

SCHEMA_VERSION = 3
SHARE = 0.9
"""Of the clairvoyant's throughput: what an adaptive policy should reach, in every run."""
STATIC = "static (makespan)"
SPLITS = ("makespan",)
"""Who divides the clairvoyant's steps: the exact split, for policies that split a batch."""
PLANNERS = {"malleus": ("makespan", "malleus")}
"""By policy, where it makes other plans too: pipelines can be faster than any split."""
Tick = Callable[[int, int], None]


PARAMETERS: Mapping[str, Mapping[str, Any]] = {"malleus": {"micro_batch": 16}}
"""Others than the defaults: the largest micro-batch that the runs allow."""
ADAPTIVE = ("makespan-adaptive", "lb-bsp", "cannikin-online", "malleus", "attention-adaptive")
UNASKED = ("stealing",)
"""Policies that follow without being asked: they change no plan, and cannot be tuned to change it more rarely."""


def contestants() -> dict[str, Policy]:
    """What is compared, by the label of its row: the name, and parameters that are not the defaults."""
    return {STATIC: made("makespan"), **{describe(made(name)).label(): made(name) for name in (*ADAPTIVE, *UNASKED)}}


@lru_cache
def made(name: str) -> Policy:
    """A policy as it is scored."""
    return make_policy(name, PARAMETERS.get(name, {}))


@dataclass(frozen=True)
class Best:
    """What those who know a run beforehand make of it; seconds."""

    steps_s: Sequence[float]
    """Every step by the best plan for it, changed for nothing."""
    bound_s: float
    """All steps but the first, with no more changes than policies have, at the same points and prices."""
    static_s: float
    """All steps but the first by the exact split, which follows nothing but losses."""
    work_s: float
    """All steps but the first, if each took what no plan can beat."""

    @classmethod
    def of(cls, scenario: Scenario, name: str) -> Self:
        """For the row of a policy."""
        planners = [made(each) for each in PLANNERS.get(name, SPLITS)]
        steps, bound = steps_s(scenario, planners), bound_s(scenario, planners)
        return cls(steps, bound, static_s(Identity(scenario)), work_s(scenario))


@lru_cache(maxsize=256)
def static_s(key: Identity) -> float:
    """Seconds of all steps but the first of a run by the exact split that follows nothing but losses."""
    assert isinstance(key.value, Scenario)
    return total_s(course(key.value, made("makespan")))


@dataclass(frozen=True)
class Outcome:
    """A run beside the same policy that may change nothing of its own will, and the clairvoyants; seconds."""

    run_s: float
    still_s: float
    best_s: float
    """Of the clairvoyant who changes for nothing."""
    bound_s: float
    """Of the one who keeps to the rules."""
    after: float
    """Share of the former's throughput in the steps after the last change of plan, which a loss may have forced."""
    price_s: float
    """Of the changes that were made by its own will."""
    changes: int
    static_s: float
    """Of the exact split that follows nothing but losses."""
    work_s: float
    """If each step took what no plan can beat."""

    @property
    def share(self) -> float:
        """Of the throughput of the clairvoyant who changes for nothing, over the whole run."""
        return self.best_s / self.run_s

    @property
    def bound(self) -> float:
        """The same of the one who keeps to the rules."""
        return self.bound_s / self.run_s

    @property
    def gap(self) -> float:
        """How much longer it took than steps that no plan can beat, as a share of these."""
        return self.run_s / self.work_s - 1

    @property
    def over_static(self) -> float:
        """How much longer it took than the exact split that follows nothing, plus the price of its changes."""
        return self.run_s / (self.static_s + self.price_s) - 1

    @property
    def worth(self) -> bool:
        """Whether it is no slower than without its changes, plus what these cost."""
        return self.run_s <= self.still_s + self.price_s + 1e-9


def score(
    *, seed: int = 11, each: int = 5, purpose: Purpose = "held out", tick: Tick = lambda done, total: None
) -> dict[str, Any]:
    """Every policy through every run, simulated.

    There are two clairvoyants. The first takes the best plan for every single step, at the devices' speeds in that
    step, and changes for nothing. The second knows as much and keeps to the rules that policies keep to: rebalance
    points, number of changes, their prices, the step that a loss takes along (:func:`.clairvoyants.bound_s`). Both
    split as the exact split does (no split with the same messages is faster); against Malleus, they take Malleus's
    plans too.

    Aims: every run within a tenth of the first clairvoyant; all runs together no slower than the exact split that
    follows nothing but losses, plus the price of the changes.

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
            found[label].append(outcome(scenario, policy, Best.of(scenario, describe(policy).name)))
        tick(number + 1, len(cases))
    made_by = f"steelyard adaptive score --seed {seed} --each {each}" + " --development" * (purpose == "development")
    return _document(made_by, each, found)


def outcome(scenario: Scenario, policy: Policy, best: Best, unmoved_s: float | None = None) -> Outcome:
    """A policy through a run, and through the same one with no change of its own will.

    Args:
        scenario: one of :func:`.worlds.worlds`.
        policy: whatever it is.
        best: of those who know the run.
        unmoved_s: of :func:`still_s`, where it is known.
    """
    moving = course(scenario, policy)
    chosen = [each for each in moving.decisions if each["changed"] and each["why"] == "asked"]
    return Outcome(
        run_s=total_s(moving),
        still_s=still_s(scenario, policy) if unmoved_s is None else unmoved_s,
        best_s=sum(best.steps_s[1:]),
        bound_s=best.bound_s,
        after=settled_share(moving, best.steps_s),
        price_s=sum(each["price_s"] for each in chosen),
        changes=len(chosen),
        static_s=best.static_s,
        work_s=best.work_s,
    )


def still_s(scenario: Scenario, policy: Policy) -> float:
    """Seconds of all steps but the first by a policy that may change nothing of its own will."""
    rules = scenario.rebalance
    assert rules is not None, "worlds() gives runs with rebalance points"
    bound = scenario.model_copy(update={"rebalance": rules.model_copy(update={"at_most": 0})})
    return total_s(course(bound, policy))


def settled_share(found: Course, steps_s: Sequence[float]) -> float:
    """Share of the free clairvoyant's throughput after the last change of plan, but at least over the last step."""
    changed: int = max(each["step"] for each in found.decisions if each["changed"])
    first = min(changed, len(found.ends) - 2)
    return sum(steps_s[first + 1 :]) / (found.ends[-1] - found.ends[first])


def course(scenario: Scenario, policy: Policy) -> Course:
    """The one course of a run without noise."""
    (found,) = run_courses(scenario, policy, seed=scenario.seed, launches=1)
    return found


def total_s(found: Course) -> float:
    """Seconds of all steps but the first."""
    return found.ends[-1] - found.ends[0]


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
    """Shares of the clairvoyants' throughput, changes, and how often they were worth it."""
    found = {
        **_spread("", [each.share for each in outcomes]),
        **_spread("bound_", [each.bound for each in outcomes]),
        **_spread("after_", [each.after for each in outcomes]),
        "changes": float(np.mean([each.changes for each in outcomes])),
        "most_changes": float(max(each.changes for each in outcomes)),
        "price_s": sum(each.price_s for each in outcomes),
        "against_still": sum(each.still_s for each in outcomes) / sum(each.run_s for each in outcomes),
        "not_worth": float(sum(not each.worth for each in outcomes)),
        "worst_loss": max(each.run_s / (each.still_s + each.price_s) - 1 for each in outcomes),
        "over_static": sum(each.run_s for each in outcomes) / sum(each.static_s + each.price_s for each in outcomes)
        - 1,
        "over_static_worst": max(each.over_static for each in outcomes),
        "gap_median": float(np.median([each.gap for each in outcomes])),
        "gap_worst": max(each.gap for each in outcomes),
    }
    return {key: round(value, 4) for key, value in found.items()}


def _spread(prefix: str, shares: Sequence[float]) -> dict[str, float]:
    found = np.array(shares)
    return {
        f"{prefix}median": float(np.median(found)),
        f"{prefix}p10": float(np.quantile(found, 0.1)),
        f"{prefix}worst": float(found.min()),
        f"{prefix}within_tenth": float((found >= SHARE).mean()),
    }
