"""Two who know a run beforehand: one who changes for nothing in every step, one who is bound as policies are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ...policies.itinerary import Leg, cheapest
from ...policies.overlap import step_s
from ...sim import engine
from ...sim.bounds import work_bound_s
from ...sim.disturbances import Rebalance, disturbed, factors_at, gone_at, without
from ...sim.moving import change
from ...sim.noise import Floats
from ...sim.plan import Infeasible, Plan
from ...sim.roofline import Identity
from ...sim.spec import Scenario
from ...sim.view import Fixed, Policy, View

World = tuple[tuple[tuple[str, float], ...], tuple[str, ...]]
"""What the devices are in a step: factors of the slow ones, and who is gone."""


def worlds_of(scenario: Scenario) -> list[World]:
    """What the devices are, step by step."""
    events, found = scenario.disturbances, []
    for step in range(scenario.sampling.steps):
        # Rounded down, so that the steps of a drift share their plans: the clairvoyants are, if anything, too fast.
        factors = sorted((name, math.floor(20 * each) / 20) for name, each in factors_at(events, step).items())
        found.append((tuple(factors), tuple(sorted(gone_at(events, step)))))
    return found


def steps_s(scenario: Scenario, planners: Sequence[Policy]) -> list[float]:
    """Seconds of every step, each by the best of some planners' plans for what the devices are in it."""
    return [
        min(_best(Identity(planner), Identity(scenario), world)[0] for planner in planners)
        for world in worlds_of(scenario)
    ]


def work_s(scenario: Scenario) -> float:
    """Seconds of all steps but the first that nobody can beat: each step's bound of all plans, at its devices."""
    return sum(work_bound_s(_there(Identity(scenario), world)) for world in worlds_of(scenario)[1:])


def bound_s(scenario: Scenario, planners: Sequence[Policy]) -> float:
    """Seconds of all steps but the first, of one who knows the run but keeps to the rules that policies keep to.

    It changes at the rebalance points, as often as the rules allow, and pays the price; a loss of a device of its plan
    costs it the step under way and the price of the change that is forced. Of all such sequences of the planners' plans
    for the run's worlds it takes the fastest (:func:`steelyard.policies.itinerary.cheapest`). A plan that is best for
    none of the worlds, and a compromise between several, is not among them: a policy may be faster.
    """
    rules = scenario.rebalance or Rebalance()
    plans = _plans(scenario, planners)
    prices = _Prices(scenario, plans, rules)
    worlds = worlds_of(scenario)
    legs = [Leg(np.zeros(len(plans)), None)]
    for step in range(1, len(worlds)):
        gone, before = worlds[step][1], worlds[step - 1][1]
        row = _row(scenario, plans, worlds[step])
        if step % rules.every_steps == 0:
            legs.append(Leg(np.zeros(len(plans)), prices.of(before)))
        if set(gone) - set(before):
            legs.append(Leg(row, _forced(_row(scenario, plans, worlds[step - 1]), row, prices.of(gone))))
            legs[-1] = dataclasses.replace(legs[-1], counted=False)
        elif legs[-1].move_s is not None and not legs[-1].run_s.any():
            legs[-1] = dataclasses.replace(legs[-1], run_s=row)
        else:
            legs.append(Leg(row, None))
    return float(cheapest(legs, rules.at_most)[0].min())


def _forced(before: Floats, after: Floats, prices: Floats) -> Floats:
    """What a loss makes of plans: those that cannot go on lose a step and must change, the others stay."""
    stopped = np.isinf(after) & np.isfinite(before)
    found = np.full_like(prices, np.inf)
    found[stopped] = before[stopped, None] + prices[stopped]
    found[np.diag_indices_from(found)] = np.where(stopped, np.inf, 0.0)
    return found


def _plans(scenario: Scenario, planners: Sequence[Policy]) -> list[Plan]:
    """The plan of every planner for every world at the start, a rebalance point or a loss."""
    worlds = worlds_of(scenario)
    every = (scenario.rebalance or Rebalance()).every_steps
    chosen = [
        world for step, world in enumerate(worlds) if step % every == 0 or set(world[1]) != set(worlds[step - 1][1])
    ]
    found = [
        _best(Identity(planner), Identity(scenario), world)[1]
        for world in dict.fromkeys(chosen)
        for planner in planners
    ]
    return list({plan.sha256: plan for plan in found if plan is not None}.values())


class _Prices:
    """What changes between some plans cost while some devices are gone."""

    def __init__(self, scenario: Scenario, plans: Sequence[Plan], rules: Rebalance) -> None:
        self.scenario, self.plans, self.rules = scenario, plans, rules
        self.known: dict[tuple[str, ...], Floats] = {}
        self.pairs: dict[tuple[object, ...], float] = {}

    def of(self, gone: tuple[str, ...]) -> Floats:
        """(plans, plans)."""
        if gone not in self.known:
            rows = [[self._pair(one, other, gone) for other in self.plans] for one in self.plans]
            self.known[gone] = np.array(rows)
        return self.known[gone]

    def _pair(self, one: Plan, other: Plan, gone: tuple[str, ...]) -> float:
        if one.sha256 == other.sha256:
            return 0.0
        key = (_held(one), _held(other), gone)  # who holds what decides, and not how the batch is divided
        if key not in self.pairs:
            view = View.of(self.scenario, gone=gone)
            cluster, storage = view.cluster, view.storage_bytes_per_s
            if any(name not in cluster.by_name for name in other.samples()):
                self.pairs[key] = math.inf
            else:
                paid = change(cluster, self.scenario.workload, one, other, rules=self.rules, storage=storage)
                self.pairs[key] = paid.seconds
        return self.pairs[key]


def _held(plan: Plan) -> object:
    return frozenset(plan.samples()) if plan.is_data_parallel and not plan.zero else plan.sha256


def _row(scenario: Scenario, plans: Sequence[Plan], world: World) -> Floats:
    """A step by each plan; endless where one of its devices is gone."""
    return np.array([_step_s(Identity(scenario), world, plan.sha256, Identity(plan)) for plan in plans])


@lru_cache(maxsize=65536)
def _step_s(key: Identity, world: World, digest: str, plan: Identity) -> float:
    """A step of a plan in a world, simulated; splits by the closed form, which is the same."""
    assert isinstance(plan.value, Plan)
    scenario = _there(key, world)
    if any(name not in scenario.cluster.by_name for name in plan.value.samples()):
        return math.inf
    if plan.value.is_plain_split(scenario.workload):
        return step_s(View.of(scenario), plan.value)
    rate = engine.objective_value(scenario, Fixed(plan.value), seed=0, launches=1)
    return scenario.workload.global_batch / rate


@lru_cache(maxsize=1024)
def _there(key: Identity, world: World) -> Scenario:
    scenario = key.value
    assert isinstance(scenario, Scenario)
    cluster = disturbed(without(scenario.cluster, world[1]), dict(world[0]))
    return scenario.model_copy(update={"cluster": cluster, "rebalance": None, "disturbances": []})


@lru_cache(maxsize=4096)
def _best(planner: Identity, key: Identity, world: World) -> tuple[float, Plan | None]:
    """Seconds of a step by a planner's plan, simulated, and the plan; endless where it has none."""
    assert isinstance(planner.value, Policy)
    scenario = _there(key, world)
    try:
        plan = planner.value.allocate(View.of(scenario))
        rate = engine.objective_value(scenario, Fixed(plan), seed=0, launches=1)
    except Infeasible:
        return math.inf, None
    return scenario.workload.global_batch / rate, plan
