"""No policy of the library ever answers with an invalid plan: seeded scenarios, given to all policies in turn."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from steelyard.policies import REGISTRY, Choice, Range, policy_class
from steelyard.policies._base import parameters
from steelyard.policies.testing import exhaust as exhaustive
from steelyard.policies.testing.exhaust import Seeded, exhaust, make_policy_at_random
from steelyard.policies.testing.generator import make_scenario
from steelyard.policies.testing.worlds import scenario_toml
from steelyard.sim.noise import stream
from steelyard.sim.plan import Plan
from steelyard.sim.spec import parse_toml, scenario_from
from steelyard.sim.view import View

SCENARIOS = 2000


@pytest.mark.no_cover
def test_two_thousand_scenarios_across_the_library() -> None:
    tally = exhaust(list(REGISTRY), scenarios=SCENARIOS, seed=4)
    assert tally.scenarios == SCENARIOS
    assert not tally.broken, tally.broken[0]
    assert not tally.invalid
    assert tally.spoiled > SCENARIOS / 40  # links of no bandwidth, all refused in one line
    asked = tally.plans + tally.infeasible
    assert sum(asked.values()) == SCENARIOS
    assert set(asked) == set(REGISTRY)
    # Not by refusing everything: most scenarios have a plan, and every policy finds some.
    assert sum(tally.plans.values()) > SCENARIOS / 2
    assert set(tally.plans) == set(REGISTRY)


CHEAP = ("uniform", "flops", "throughput", "proportional", "linear-cost", "attention", "lb-bsp", "stealing")
"""Policies that answer in about a millisecond: each can have every scenario."""


@pytest.mark.no_cover
def test_cheap_policies_have_many_scenarios_each() -> None:
    tally = exhaust(CHEAP, scenarios=500, each=len(CHEAP), seed=5)
    assert not tally.broken, tally.broken[0]
    assert tally.plans + tally.infeasible == dict.fromkeys(CHEAP, 500)


@dataclass(frozen=True, kw_only=True)
class Heedless:
    """Gives all to the first device, whether it has room or not."""

    name: ClassVar[str] = "heedless"

    def allocate(self, view: View) -> Plan:
        return Plan.data_parallel(view.workload, {view.devices[0].name: view.global_batch})


def test_an_invalid_plan_is_counted_and_shown() -> None:
    tally = exhaust([f"{__name__}:Heedless"], scenarios=60, seed=1)
    document = json.loads(json.dumps(tally.document()))
    wrong = document["invalid_total"]
    assert 0 < wrong < 60
    assert wrong + document["plans_total"] == 60
    assert len(document["broken"]) == min(wrong, 3)
    shown = document["broken"][0]
    assert "the plan is invalid" in shown["problem"]
    assert "Heedless" in shown["policy"]
    scenario = scenario_from(parse_toml(shown["scenario_toml"], "counter-example"))
    with pytest.raises(ValueError, match=r"memory|need|hold"):
        Heedless().allocate(View.of(scenario)).check(scenario)


def test_a_spoiled_scenario_that_is_not_refused_is_counted_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "scenario_from", lambda document: document)
    tally = exhaust(["uniform"], scenarios=100, seed=1)
    assert tally.spoiled == 0
    assert set(tally.invalid) == {"(a spoiled scenario)"}
    assert re.fullmatch(r"cluster\..*bandwidth_gb_per_s without bandwidth was accepted", tally.broken[0]["problem"])


@pytest.mark.slow
def test_processes_give_what_one_gives() -> None:
    names = ["uniform", "makespan"]
    alone, shared = (exhaust(names, scenarios=600, each=2, seed=2, workers=count) for count in (1, 2))
    assert alone == shared
    assert sum((alone.plans + alone.infeasible).values()) == 1200


def test_a_number_of_a_seed_is_always_the_same_scenario() -> None:
    first, again, other = (make_scenario(Seeded(stream(seed, "scenario", 7))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """Has a parameter of every kind."""

    name: ClassVar[str] = "tunable"
    power: Annotated[int, Range(1, 100, log=True)] = 2
    gamma: Annotated[float, Range(-1, 1)] = 0.0
    key: Annotated[str, Choice("a", "b")] = "a"
    note: str = "not searched"

    def allocate(self, view: View) -> Plan:
        raise NotImplementedError


def test_parameters_at_random_are_in_range_and_reach_its_ends() -> None:
    made: list[Any] = [make_policy_at_random(Tunable, Seeded(stream(0, "one", number))) for number in range(300)]
    assert all(isinstance(each.power, int) and 1 <= each.power <= 100 for each in made)
    assert all(isinstance(each.gamma, float) and -1 <= each.gamma <= 1 for each in made)
    assert {1, 100} <= {each.power for each in made}
    assert {each.key for each in made} == {"a", "b"}
    assert {each.note for each in made} == {"not searched"}
    assert made.count(Tunable()) > 30
    assert sum(1 < each.power < 10 for each in made) > sum(50 < each.power < 100 for each in made)


def test_policies_of_the_library_are_drawn_with_other_parameters() -> None:
    for name in REGISTRY:
        kind = policy_class(name)
        if any(each.space is not None for each in parameters(kind)):
            made = {make_policy_at_random(kind, Seeded(stream(0, name, number))) for number in range(40)}
            assert len(made) > 1, name


def test_seeded_scenarios_are_of_many_kinds() -> None:
    """The same kinds as those of Hypothesis; each on at least one in a hundred scenarios, and survives its file."""
    seen: Counter[str] = Counter()
    for number in range(400):
        scenario = make_scenario(Seeded(stream(0, "scenario", number)))
        assert scenario_from(parse_toml(scenario_toml(scenario), "generated")) == scenario
        seen.update(fact for fact, holds in _facts(scenario).items() if holds)
    assert min(seen[fact] for fact in _facts(scenario)) >= 4, seen


def _facts(scenario: Any) -> dict[str, bool]:
    view = View.of(scenario)
    room, batch = sum(device.capacity for device in view.devices), scenario.workload.global_batch
    cluster, layers = scenario.cluster, scenario.workload.layers
    devices = cluster.devices
    return {
        "one device": len(devices) == 1,
        "three nodes": len(cluster.nodes) == 3,
        "slow links between nodes": cluster.network is not None and cluster.network.bandwidth_gb_per_s <= 0.01,
        "no plain split fits": room < batch,
        "no device holds the model": room == 0,
        "a device that holds nothing": any(device.capacity == 0 for device in view.devices),
        "one layer": len(layers) == 1,
        "five layers": len(layers) == 5,
        "unequal layers": len({layer.parameters for layer in layers}) > 1,
        "a graph": any(layer.inputs is not None for layer in layers),
        "a tied layer": any(layer.tied_with for layer in layers),
        "divisible layers": all(layer.tensor is not None for layer in layers),
        "frozen layers": any(layer.trainable_parameters < layer.parameters for layer in layers),
        "prime batch": batch in (2, 3, 5, 7, 13, 31),
        "batch of one": batch == 1,
        "accumulation": scenario.workload.max_micro_batch is not None,
        "profiled": any(device.profile for device in devices),
        "profiled by layers": any(device.layer_profile for device in devices),
        "datasheet": any(not device.profile and not device.layer_profile for device in devices),
        "a measured collective": bool(cluster.collectives),
        "prices and power": all(device.price_usd_per_hour and device.max_w for device in devices),
        "a straggler": any(device.slowdown > 1 for device in devices),
        "a shared link": any(node.link.shared for node in cluster.nodes),
        "an input pipeline": any(node.loader_samples_per_s for node in cluster.nodes),
        "switches": any(node.switch for node in cluster.nodes),
        "a switch below another": any(switch.parent for switch in cluster.switches),
        "several adapters": any(1 < node.nics <= len(node.devices) for node in cluster.nodes),
        "cost": scenario.objective.metric == "cost",
        "a floor": scenario.objective.least_throughput_samples_per_s is not None,
        "a budget": scenario.objective.most_cost_usd_per_million_samples is not None,
    }
