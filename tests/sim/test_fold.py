"""Fold: one pipeline stands for its images exactly, and for nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import loop, recurrence
from steelyard.sim.collectives import Crossings
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Cluster, Link, Node, Switch
from steelyard.sim.fold import images
from steelyard.sim.network import network_of
from steelyard.sim.plan import Plan
from steelyard.sim.running import Factors
from steelyard.sim.spec import Scenario
from steelyard.sim.topology import Topology

STEPS = 5
ALL_STEPS = Factors(syncs={-1: []})
"""Noise of nothing: every step and every micro-batch is simulated."""


def ends(scenario: Scenario, plan: Plan) -> list[float]:
    """Of the plain engine; the step after the last counted one may be in its way, so there is one more."""
    return loop.run_launch(compile_plan(scenario, plan), ALL_STEPS, steps=STEPS + 1, record=False).ends[:STEPS]


def folded_pipelines(scenario: Scenario, plan: Plan) -> int:
    return len({worker.pipeline for worker in compile_plan(scenario, plan, folded=True).workers})


def link(gb_per_s: float, latency_us: float = 0.0, **changes: Any) -> Link:
    return Link(name="link", latency_us=latency_us, bandwidth_gb_per_s=gb_per_s, **changes)


def rewired(scenario: Scenario, **changes: Any) -> Scenario:
    """The scenario with another network, every link an object of its own, as read from a file."""
    cluster = scenario.cluster.model_copy(update=changes)
    return scenario.model_copy(update={"cluster": Cluster.model_validate(cluster.model_dump())})


class Worlds:
    """Draws scenarios with plans: a few pipelines over machines of several devices, and all that they can share."""

    def __init__(self, build: Any, draw: Callable[..., Any]) -> None:
        self.build = build
        self.draw = draw

    def world(self) -> tuple[Scenario, Plan]:
        draw = self.draw
        stages, count, turns = draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(1, 4))
        names = [[f"d{p * stages + s:02}" for s in range(stages)] for p in range(count)]
        together = draw(st.sampled_from(["pipeline", "pipeline", "stage", "stage", "nobody"]))
        if together == "stage":
            names = [[f"d{s * count + p:02}" for s in range(stages)] for p in range(count)]
        if together == "nobody":  # pipelines cross in each other's machines
            mixed = draw(st.permutations([name for own in names for name in own]))
            names = [mixed[p * stages : (p + 1) * stages] for p in range(count)]
        sizes = [draw(st.sampled_from([[1] * turns, [1] * turns, [2] + [1] * turns])) for _ in range(count)]
        scenario = self.scenario(stages, names, sum(map(sum, sizes)))
        plan = Plan(
            pipelines=[
                self.build.pipeline(range(stages + 1), own, batches) for own, batches in zip(names, sizes, strict=True)
            ],
            schedule=draw(st.sampled_from(["gpipe", "1f1b"])),
            overlap=draw(st.booleans()),
            zero=draw(st.sampled_from([0, 0, 1, 3])) if len({len(each) for each in sizes}) == 1 else 0,
        )
        plan.check(scenario)
        return scenario, plan

    def scenario(self, stages: int, names: list[list[str]], batch: int) -> Scenario:
        draw = self.draw
        times = [draw(st.sampled_from([0.5, 1.0, 1.3])) for _ in range(stages)]
        slow = draw(st.sampled_from([1.0, 1.0, 2.0]))
        kinds = {name: draw(st.sampled_from([1.0, slow])) for own in names for name in own[:1]}
        devices = [
            self.build.device(name, *[[factor * kinds.get(name, 1.0) * each for each in times] for factor in (1, 2)])
            for name in sorted(name for own in names for name in own)
        ]
        per_node = draw(st.sampled_from([each for each in range(1, len(devices) + 1) if len(devices) % each == 0]))
        scenario = self.build.scenario(
            devices,
            batch=batch,
            per_node=per_node,
            outputs=draw(st.sampled_from([0.0, 1e7, 1e9])),
            parameters=draw(st.sampled_from([1, 10**8])),
            latencies=draw(st.sampled_from([0.0, 0.01])),
            gb_per_s=draw(st.sampled_from([1.0, 10.0])),
        )
        return self.wired(scenario, per_node)

    def wired(self, scenario: Scenario, per_node: int) -> Scenario:
        draw, nodes = self.draw, scenario.cluster.nodes
        kind = draw(st.sampled_from(["plain", "adapters", "bus", "medium", "switches"]))
        if kind == "adapters":
            nodes = [node.model_copy(update={"nics": draw(st.integers(1, per_node))}) for node in nodes]
        if kind == "bus":
            nodes = [node.model_copy(update={"link": link(5.0, shared=True)}) for node in nodes]
        if kind == "medium":
            nodes = [node.model_copy(update={"network": None}) for node in nodes]
            return rewired(scenario, nodes=nodes, network=link(3.0, shared=True))
        if kind == "switches":
            up = [link(draw(st.sampled_from([1.0, 4.0])), draw(st.sampled_from([0.0, 100.0]))) for _ in range(2)]
            switches = [Switch(name=f"s{number}", uplink=each) for number, each in enumerate(up)]
            blocks = draw(st.booleans())
            below = [number * 2 // len(nodes) if blocks else number % 2 for number in range(len(nodes))]
            nodes = [node.model_copy(update={"switch": f"s{s}"}) for node, s in zip(nodes, below, strict=True)]
            return rewired(scenario, nodes=nodes, switches=switches)
        return rewired(scenario, nodes=nodes)


@settings(max_examples=150)
@given(st.data())
def test_folded_and_unfolded_are_the_same(build: Any, data: st.DataObject) -> None:
    scenario, plan = Worlds(build, data.draw).world()
    expected = ends(scenario, plan)
    folded = compile_plan(scenario, plan, folded=True)
    assert sum(len(worker.devices) * worker.copies for worker in folded.workers) == len(scenario.cluster.devices)
    for factors in (None, ALL_STEPS):
        assert loop.run_launch(folded, factors, steps=STEPS + 1, record=False).ends[:STEPS] == pytest.approx(expected)
        if recurrence.applies(folded):
            other = recurrence.run_launch(folded, factors, steps=STEPS, record=False)
            assert other is None or other.ends == pytest.approx(expected)


@settings(max_examples=60)
@given(st.data())
def test_images_do_not_depend_on_names_and_are_alike(build: Any, data: st.DataObject) -> None:
    """Images have equal micro-batches on equal devices; each pipeline is in one class."""
    scenario, plan = Worlds(build, data.draw).world()
    cluster = scenario.cluster
    classes = images(plan, cluster, network_of(cluster))
    assert sorted(number for own in classes for number in own) == list(range(len(plan.pipelines)))
    for own in classes:
        alike = [plan.pipelines[number] for number in own]
        assert len({tuple(each.micro_batches) for each in alike}) == 1
        assert len({tuple(cluster.kinds[name] for name in each.devices) for each in alike}) == 1


# Where it must fold, and where it must not


def lanes(build: Any, count: int, **changes: Any) -> tuple[Scenario, Plan]:
    """Pipelines of two stages, each on a machine of its own with an adapter per device."""
    devices = [build.device(f"d{number:02}", [1.0, 1.0], [2.0, 2.0]) for number in range(2 * count)]
    changes = {"outputs": 1e8, "gb_per_s": 1.0, "per_node": 2, "parameters": 10**8, **changes}
    nodes = [{"nics": 2}] * (2 * count // changes["per_node"])
    scenario = build.scenario(devices, batch=4 * count, nodes=nodes, **changes)
    plan = Plan(
        pipelines=[
            build.pipeline([0, 1, 2], [f"d{2 * number:02}", f"d{2 * number + 1:02}"], [1] * 4)
            for number in range(count)
        ]
    )
    return scenario, plan


def test_equal_pipelines_fold_even_where_equal_links_are_several_objects(build: Any) -> None:
    scenario, plan = lanes(build, 6)
    assert folded_pipelines(scenario, plan) == 1
    assert folded_pipelines(rewired(scenario), plan) == 1


def test_names_of_links_make_no_difference_but_their_speed_does(build: Any) -> None:
    scenario, plan = lanes(build, 4)
    first, *others = scenario.cluster.nodes
    assert first.network is not None
    renamed = first.network.model_copy(update={"name": "another", "source": {}})
    faster = first.network.model_copy(update={"bandwidth_gb_per_s": 2.0})
    for network, expected in ((renamed, 1), (faster, 2)):
        nodes = [first.model_copy(update={"network": network}), *others]
        assert folded_pipelines(rewired(scenario, nodes=nodes), plan) == expected


def test_a_pipeline_of_other_work_or_devices_stands_for_itself(build: Any) -> None:
    scenario, plan = lanes(build, 4)
    first, *others = plan.pipelines
    uneven = plan.model_copy(update={"pipelines": [first.model_copy(update={"micro_batches": [2, 1, 1]}), *others]})
    uneven.check(scenario)
    assert folded_pipelines(scenario, uneven) == 2
    slower = build.device("d00", [1.5, 1.5], [2.0, 2.0])
    nodes = scenario.cluster.nodes
    mixed = [nodes[0].model_copy(update={"devices": [slower, nodes[0].devices[1]]}), *nodes[1:]]
    assert folded_pipelines(rewired(scenario, nodes=mixed), plan) == 2


def test_who_shares_an_adapter_is_no_image_of_who_does_not(build: Any) -> None:
    """Three pipelines; the stages of the first two meet on an adapter each, the third has its adapters to itself.

    The ring of gradients goes from the first to the second inside their machine, and on to the third; but nothing else
    uses the links inside.
    """
    devices = [build.device(f"d{number}", [1.0, 1.0], [2.0, 2.0]) for number in range(6)]
    shared = link(1.0)
    groups = [["d0", "d2"], ["d1", "d3"], ["d4"], ["d5"]]
    by_name = {device.name: device for device in devices}
    nodes = [
        Node(name=f"n{number}", devices=[by_name[name] for name in names], link=shared, network=shared)
        for number, names in enumerate(groups)
    ]
    scenario = build.scenario(devices, batch=12, outputs=1e9)
    scenario = scenario.model_copy(update={"cluster": Cluster(nodes=nodes)})
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], [f"d{2 * n}", f"d{2 * n + 1}"], [1] * 4) for n in range(3)])
    plan.check(scenario)
    assert images(plan, scenario.cluster, network_of(scenario.cluster)) == [[0, 1], [2]]
    assert folded_pipelines(scenario, plan) == 2
    folded = loop.run_launch(compile_plan(scenario, plan, folded=True), steps=STEPS + 1, record=False)
    assert folded.ends[:STEPS] == pytest.approx(ends(scenario, plan))


def test_machines_below_unequal_uplinks_are_not_alike(build: Any) -> None:
    scenario, plan = lanes(build, 4)
    below = [node.model_copy(update={"switch": f"s{number % 2}"}) for number, node in enumerate(scenario.cluster.nodes)]
    for uplink, expected in ((4.0, 1), (3.0, 2)):
        switches = [Switch(name="s0", uplink=link(4.0)), Switch(name="s1", uplink=link(uplink))]
        assert folded_pipelines(rewired(scenario, nodes=below, switches=switches), plan) == expected


def test_unequal_shares_of_states_are_told_apart(build: Any) -> None:
    scenario, plan = lanes(build, 3)
    shares = {name: share for n, share in enumerate((0.5, 0.25, 0.25)) for name in (f"d{2 * n:02}", f"d{2 * n + 1:02}")}
    sharded = plan.model_copy(update={"zero": 1, "state_shares": shares})
    sharded.check(scenario)
    assert folded_pipelines(scenario, sharded) == 2


def test_images_of_one_input_pipeline_take_turns(build: Any) -> None:
    """The loader feeds one after the other, so nobody stands for anybody."""
    scenario, plan = lanes(build, 2, per_node=4)
    fed = [node.model_copy(update={"loader_samples_per_s": 1.0}) for node in scenario.cluster.nodes]
    assert folded_pipelines(rewired(scenario, nodes=fed), plan) == 2


# What only the company on shared links tells apart


def placed(build: Any, machines: dict[str, str], turns: dict[str, int], **changes: Any) -> tuple[Scenario, Plan]:
    """Pipelines a, b, ... of the devices a0, a1, ... each; per machine its devices, per pipeline its micro-batches.

    Links inside machines are fast, those between them slow. A machine's name with a dot names its switch, too.
    """
    names = sorted(name for held in machines.values() for name in held.split())
    devices = {name: build.device(name, [1.0, 1.0], [1.0, 1.0]) for name in names}
    nodes = [
        Node(
            name=name,
            devices=[devices[each] for each in held.split()],
            link=link(100.0),
            network=link(1.0),
            switch=name.split(".")[0] if "." in name else None,
            **changes,
        )
        for name, held in machines.items()
    ]
    switches = [Switch(name=name, uplink=link(0.5)) for name in dict.fromkeys(node.switch for node in nodes) if name]
    scenario = build.scenario(list(devices.values()), batch=sum(turns.values()), outputs=2e8, parameters=10**7)
    scenario = scenario.model_copy(update={"cluster": Cluster(nodes=nodes, switches=switches)})
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], [f"{p}0", f"{p}1"], [1] * count) for p, count in turns.items()])
    plan.check(scenario)
    return scenario, plan


def assert_classes(scenario: Scenario, plan: Plan, expected: list[str]) -> None:
    found = images(plan, scenario.cluster, network_of(scenario.cluster))
    assert ["".join("abcdef"[number] for number in own) for own in found] == expected
    folded = compile_plan(scenario, plan, folded=True)
    assert loop.run_launch(folded, steps=STEPS + 1, record=False).ends[:STEPS] == pytest.approx(ends(scenario, plan))


def test_stages_on_one_machine_or_on_two(build: Any) -> None:
    """No link is shared, but a's messages stay inside."""
    machines = {"m": "a0 a1", "n": "b0 x", "o": "y b1"}
    scenario, plan = placed(build, machines, {"a": 4, "b": 4}, nics=2)
    assert_classes(scenario, plan, ["a", "b"])
    scenario, plan = placed(build, {"m": "a0 a1", "n": "b0 b1"}, {"a": 4, "b": 4}, nics=2)
    assert_classes(scenario, plan, ["ab"])


def test_neighbours_of_other_work(build: Any) -> None:
    """Two do the same beside a neighbour each, and the neighbours differ."""
    machines = {"m": "a0 b0", "n": "a1 b1", "o": "c0 d0", "p": "c1 d1"}
    assert_classes(*placed(build, machines, {"a": 4, "b": 2, "c": 4, "d": 3}), ["a", "b", "c", "d"])
    assert_classes(*placed(build, machines, {"a": 4, "b": 2, "c": 4, "d": 2}), ["ac", "bd"])


def test_rings_that_meet_the_messages_of_one_image_only(build: Any) -> None:
    """The ring leaves a0 by the link of its messages, and b0 by the adapter: so b does not stand for a."""
    scenario, plan = placed(build, {"m": "a0 a1 b0 b1", "n": "c0 c1 d0 d1"}, dict.fromkeys("abcd", 4))
    assert_classes(scenario, plan, ["abcd"])
    assert folded_pipelines(scenario, plan) == 4


def test_stages_of_many_pipelines_on_one_machine(build: Any) -> None:
    """The same ring, but messages leave by the adapter: all are images."""
    scenario, plan = placed(build, {"m": "a0 b0 c0", "n": "a1 b1 c1"}, dict.fromkeys("abc", 4))
    assert_classes(scenario, plan, ["abc"])
    assert folded_pipelines(scenario, plan) == 1


def test_crossed_pipelines_below_switches(build: Any) -> None:
    """Every switch has one first stage and one second stage below it; only a has its own two."""
    machines = {"s.1": "a0", "s.2": "a1", "t.1": "b0", "t.2": "c1", "u.1": "c0", "u.2": "b1"}
    assert_classes(*placed(build, machines, dict.fromkeys("abc", 4)), ["a", "bc"])


def test_crossed_pipelines_on_adapters(build: Any) -> None:
    """Every adapter carries one first stage and one second stage; a and d have an adapter each."""
    machines = {"m": "a0 a1 d0 d1", "n": "b0 c1 c0 b1"}
    assert_classes(*placed(build, machines, dict.fromkeys("abcd", 4), nics=2), ["ad", "bc"])


def test_adapters_of_one_machine_that_carry_unequally_many(build: Any) -> None:
    """Three adapters for four devices: the first two pipelines share one, the others have one each.

    All leave the first machine by its only adapter, and who came sooner from the others is back there sooner.
    """
    devices = [build.device(f"{stage}{p}", [0.5] * 3, [1.0] * 3) for stage in "xyz" for p in range(4)]
    nodes = [{"nics": 1}, {"nics": 3}, {"nics": 3}]
    scenario = build.scenario(devices, batch=4, outputs=1e7, per_node=4, gb_per_s=1.0, nodes=nodes)
    pipelines = [build.pipeline(range(4), [f"{stage}{p}" for stage in "xyz"], [1]) for p in range(4)]
    assert_classes(scenario, Plan(pipelines=pipelines, schedule="gpipe"), ["ab", "cd"])


def test_company_that_is_represented_elsewhere(build: Any) -> None:
    """Each of four machines holds as much of the one as of the other work, but a is beside d, and b beside c."""
    turns = {"a": 4, "b": 2, "c": 4, "d": 2}
    scenario, plan = placed(build, {"m": "a0 d0", "n": "a1 d1", "o": "c0 b0", "p": "c1 b1"}, turns)
    assert_classes(scenario, plan, ["ac", "bd"])
    assert folded_pipelines(scenario, plan) == 4
    scenario, plan = placed(build, {"m": "a0 b0", "n": "a1 b1", "o": "c0 d0", "p": "c1 d1"}, turns)
    assert folded_pipelines(scenario, plan) == 2


def test_images_that_cross(build: Any) -> None:
    """The first two stages of the one are where those of the other are, the other way round."""
    names = [["d00", "d02", "d04"], ["d03", "d01", "d05"]]
    devices = [build.device(f"d{number:02}", [1.0, 0.5, 0.5], [2.0, 1.0, 1.0]) for number in range(6)]
    scenario = build.scenario(devices, batch=4, outputs=1e8, per_node=2, gb_per_s=1.0)
    plan = Plan(pipelines=[build.pipeline(range(4), own, [1, 1]) for own in names], schedule="gpipe")
    assert_classes(scenario, plan, ["ab"])
    assert folded_pipelines(scenario, plan) == 2


def test_another_pipeline_below_the_same_switches(build: Any) -> None:
    """Two each cross two uplinks, and one of them meets the third there."""
    machines = {"s.1": "a0", "t.1": "a1", "u.1": "b0", "v.1": "b1", "s.2": "c0", "t.2": "c1"}
    assert_classes(*placed(build, machines, {"a": 4, "b": 4, "c": 3}), ["a", "b", "c"])


# Rings by arrays


@settings(max_examples=60)
@given(st.data())
def test_rings_by_arrays_are_rings_by_hand(build: Any, data: st.DataObject) -> None:
    """Hop by hop, route by route; buses, media and machines of unequal links included."""
    per_node = data.draw(st.integers(1, 4))
    nodes = []
    devices = [build.device(f"d{number:02}", [1.0], [1.0]) for number in range(per_node * 12)]
    for number in range(12):
        inner = link(5.0, data.draw(st.sampled_from([0.0, 1.0])), shared=data.draw(st.booleans()))
        own = link(1.0, data.draw(st.sampled_from([2.0, 3.0])), shared=data.draw(st.booleans()))
        held = devices[number * per_node : (number + 1) * per_node]
        network = data.draw(st.sampled_from([None, own]))
        nodes.append(Node(name=f"n{number}", devices=held, link=inner, network=network, nics=1))
    topology = Topology.of(Cluster(nodes=nodes, network=link(2.0, 4.0, shared=data.draw(st.booleans()))))
    order = data.draw(st.permutations(list(topology.ports.values())))[: data.draw(st.integers(2, len(devices)))]
    rings, by_hand = Crossings(), Crossings()
    rings.add_ring(topology, order)
    for here, there in zip(order, [*order[1:], order[0]], strict=True):
        by_hand.add(*topology.route(here, there))
    assert rings.times == by_hand.times
    assert rings.latency == by_hand.latency
    paces = [each.pace(topology.capacities, steps=3, share=0.5) for each in (rings, by_hand)]
    assert paces[0] == paces[1]
