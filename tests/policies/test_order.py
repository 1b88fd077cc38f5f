"""One order of devices for all policies: by figures and company, never by names or by the order of the file."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import REGISTRY, canonical, make_policy
from steelyard.policies._neighbours import neighbours
from steelyard.policies._stages import labels_of
from steelyard.policies.malleus import groups_of
from steelyard.policies.shapes import kinds_of
from steelyard.policies.testing import check_scenario, reordered, scenarios
from steelyard.policies.testing.worlds import renaming
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, load_scenario, scenario_from, simulated_names
from steelyard.sim.view import View

Document = dict[str, Any]


@functools.cache
def racks() -> Scenario:
    """The shipped two racks, their servers listed a, b, a, b ..., the second rack first among the switches."""
    document: Document = load_scenario("oversubscribed-racks").model_dump(mode="json")
    nodes, cluster = document["cluster"]["nodes"], document["cluster"]
    half = len(nodes) // 2
    cluster["nodes"] = [node for pair in zip(nodes[:half], nodes[half:], strict=True) for node in pair]
    cluster["switches"] = cluster["switches"][::-1]
    return scenario_from(document)


def racks_of(scenario: Scenario, names: list[str]) -> set[str | None]:
    """The switches that some devices are on."""
    cluster = scenario.cluster
    return {cluster.nodes[cluster.node_of[name]].switch for name in names}


def stage_devices(plan: Plan, number: int) -> list[str]:
    """All devices that hold a stage."""
    return [name for pipe in plan.pipelines for replica in pipe.stages[number].replicas for name in replica.devices]


def test_a_stage_of_the_grid_stays_in_its_rack_however_the_servers_are_listed() -> None:
    """What the scenario says: a rack has half of the layers, and activations cross."""
    plan = make_policy("grid", {"tensor": 8, "pipeline": 2}).allocate(View.of(racks()))
    held = [racks_of(racks(), stage_devices(plan, number)) for number in (0, 1)]
    assert [len(each) for each in held] == [1, 1]
    assert held[0] != held[1]


def test_every_order_goes_rack_by_rack() -> None:
    view = View.of(racks())
    orders = {
        "canonical": [device.name for device in canonical(view).devices],
        "neighbours": [name for machine in neighbours(view) for name in machine],
        "labels": [name for label in labels_of(view) for name in label.names],
        "groups": [name for group in groups_of(canonical(view), 4) for name in group],
        "kinds": [name for kind in kinds_of(view) for machine in kind.machines for name in machine],
    }
    for what, names in orders.items():
        half = len(names) // 2
        assert [len(racks_of(racks(), part)) for part in (names[:half], names[half:])] == [1, 1], what


def tree(shape: list[list[int]]) -> Scenario:
    """Equal servers of two equal devices; per switch of the core the numbers of servers below each of its switches."""
    link = {"name": "l", "latency_us": 1.0, "bandwidth_gb_per_s": 10.0}
    device = {"name": "g{}", "peak_tflops": {"fp32": 1.0}, "memory_gib": 1.0, "memory_bandwidth_gb_per_s": 10.0}
    switches: list[Document] = []
    nodes: list[Document] = []
    for top, below in enumerate(shape):
        switches.append({"name": f"s{top}", "uplink": link})
        for leaf, count in enumerate(below):
            switches.append({"name": f"s{top}-{leaf}", "uplink": link, "parent": f"s{top}"})
            for _ in range(count):
                own = [{**device, "name": f"g{len(nodes)}-{place}"} for place in (0, 1)]
                nodes.append({"name": f"n{len(nodes)}", "link": link, "switch": f"s{top}-{leaf}", "devices": own})
    return scenario_from(
        {
            "name": "tree",
            "cluster": {"nodes": nodes, "switches": switches, "network": link},
            "workload": {"model": "gpt2", "global_batch": 16},
        }
    )


@pytest.mark.parametrize("order", range(6))
def test_the_company_decides_where_figures_are_equal(order: int) -> None:
    """All servers and uplinks are alike; only who is below which switch tells places apart, and it always does."""

    def shape(scenario: Scenario) -> list[tuple[int, int]]:
        cluster, parents = scenario.cluster, {each.name: each.parent for each in scenario.cluster.switches}
        places = [cluster.nodes[cluster.node_of[machine[0]]].switch for machine in neighbours(View.of(scenario))]
        tops = [parents[place or ""] for place in places]
        return [(places.count(place), tops.count(top)) for place, top in zip(places, tops, strict=True)]

    world = tree([[1, 3], [2, 2], [1, 1, 1]])
    assert shape(reordered(world, order)) == shape(world)


@settings(max_examples=60)
@given(scenarios(), st.integers(0, 1000))
def test_neighbours_are_the_same_under_other_names(scenario: Scenario, order: int) -> None:
    """Machine by machine the same figures, however the file names and orders nodes, switches and devices."""

    def figures(one: Scenario) -> list[list[str]]:
        by_name = one.cluster.by_name
        return [
            [by_name[name].model_dump_json(exclude={"name"}) for name in names] for names in neighbours(View.of(one))
        ]

    assert figures(reordered(scenario, order)) == figures(scenario)


@settings(max_examples=60)
@given(scenarios(), st.integers(0, 1000))
def test_a_reordered_world_has_the_same_machines_switches_and_adapters(scenario: Scenario, order: int) -> None:
    """It is the same world: who shares an adapter, a machine, a switch still does, and nothing keeps its name."""
    other, names = reordered(scenario, order), renaming(scenario, order)

    def adapters(one: Scenario, called: dict[str, str]) -> set[frozenset[str]]:
        found: dict[tuple[int, int], set[str]] = {}
        for number, node in enumerate(one.cluster.nodes):
            for place, device in enumerate(node.devices):
                adapter = number, place * node.nics // len(node.devices)
                found.setdefault(adapter, set()).add(called.get(device.name, device.name))
        return {frozenset(each) for each in found.values()}

    def below(one: Scenario, called: dict[str, str]) -> set[tuple[frozenset[str], int]]:
        parents = {each.name: each.parent for each in one.cluster.switches}

        def depth(switch: str | None) -> int:
            return 0 if switch is None else 1 + depth(parents[switch])

        found: dict[str | None, set[str]] = {}
        for node in one.cluster.nodes:
            found.setdefault(node.switch, set()).update(called.get(each.name, each.name) for each in node.devices)
        return {(frozenset(each), depth(switch)) for switch, each in found.items()}

    assert adapters(other, {}) == adapters(scenario, names)
    assert below(other, {}) == below(scenario, names)
    was = {each.name for each in (*scenario.cluster.nodes, *scenario.cluster.switches, *scenario.cluster.devices)}
    assert not was & {each.name for each in (*other.cluster.nodes, *other.cluster.switches, *other.cluster.devices)}


MOST_DEVICES = 64
"""Of larger clusters a world told three times takes minutes: planners for clusters of that size are asked alone."""
OF_LARGE = ("hybrid", "amp")


@pytest.mark.slow
@pytest.mark.parametrize("name", simulated_names())
def test_shipped_scenarios_in_another_order_give_the_same(name: str) -> None:
    """Every policy of the library: the same roles and the same noiseless step in another order, of two in turn."""
    scenario = racks() if name == "oversubscribed-racks" else load_scenario(name)
    large = len(scenario.cluster.devices) > MOST_DEVICES
    for place, policy in enumerate(OF_LARGE if large else REGISTRY):
        check_scenario(scenario, make_policy(policy), order=1 + place % 2)
