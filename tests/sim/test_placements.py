"""Placements: devices that recur in any order on a graph of layers, against a list schedule written down again here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import policy_from_text
from steelyard.policies._base import canonical
from steelyard.policies.graphs import tasks_of
from steelyard.policies.list_schedules import earliest_finish, earliest_start, topological_fill
from steelyard.sim import memory
from steelyard.sim.bounds import critical_path_s, work_bound_s
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Infeasible, Pipeline, Plan, Replica, Stage
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed, View, allocate

FEW = settings(max_examples=40)
seconds = st.integers(0, 8).map(float)
SCHEDULES = st.sampled_from(["gpipe", "accumulate"])


@dataclass(frozen=True)
class World:
    """A graph of layers, the seconds of each on each device, and what a message takes to come from one to another."""

    inputs: list[list[int]]
    forward: list[list[float]]
    backward: list[list[float]]
    late: list[float]

    @property
    def layers(self) -> int:
        return len(self.inputs)

    def scenario(self, build: Any, batch: int = 1, **changes: Any) -> Scenario:
        """Devices in nodes of their own, so that messages are alone on their links."""
        devices = [
            build.device(f"d{number}", forward, backward)
            for number, (forward, backward) in enumerate(zip(self.forward, self.backward, strict=True))
        ]
        layers = [{"inputs": [f"l{source}" for source in each]} for each in self.inputs]
        made: Scenario = build.scenario(devices, batch=batch, layers=layers, latencies=self.late, **changes)
        return made


@st.composite
def worlds(draw: st.DrawFn, most: int = 7) -> World:
    count, devices = draw(st.integers(1, most)), draw(st.integers(1, 3))
    inputs = [sorted(draw(st.sets(st.integers(0, layer - 1), max_size=3))) if layer else [] for layer in range(count)]
    times = st.lists(seconds.map(lambda each: each + 0.5), min_size=count, max_size=count)
    forward, backward = ([draw(times) for _ in range(devices)] for _ in range(2))
    return World(inputs, forward, backward, draw(st.lists(seconds, min_size=devices, max_size=devices)))


@st.composite
def placements(draw: st.DrawFn, world: World) -> tuple[list[int], list[int]]:
    """A device for each layer, and any order of the layers that follows the edges."""
    devices = draw(st.lists(st.integers(0, len(world.forward) - 1), min_size=world.layers, max_size=world.layers))
    order: list[int] = []
    while len(order) < world.layers:
        ready = [
            layer for layer in range(world.layers) if layer not in order and set(world.inputs[layer]) <= set(order)
        ]
        order.append(draw(st.sampled_from(ready)))
    return devices, order


def plan(devices: Sequence[int], sizes: Sequence[int], order: Sequence[int] | None, schedule: Any) -> Plan:
    """A stage for each layer."""
    stages = [Stage(first=n, last=n + 1, replicas=[Replica(devices=[f"d{own}"])]) for n, own in enumerate(devices)]
    turns = None if order is None else list(order)
    pipeline = Pipeline(stages=stages, micro_batches=list(sizes), order=turns)
    return Plan(pipelines=[pipeline], schedule=schedule)


def by_hand(world: World, devices: Sequence[int], order: Sequence[int], sizes: Sequence[int], schedule: str) -> float:
    """Piece by piece in the global order: as soon as its device is free and what it reads has come."""
    numbers = range(len(sizes))
    if world.layers == 1 or schedule == "accumulate":
        done = [(back, each, m) for m in numbers for back in (False, True) for each in order[:: -1 if back else 1]]
    else:
        done = [(back, each, m) for back in (False, True) for each in order[:: -1 if back else 1] for m in numbers]
    readers = [[each for each, inputs in enumerate(world.inputs) if n in inputs] for n in range(world.layers)]
    clocks, ends = [0.0] * len(world.forward), dict[tuple[bool, int, int], float]()
    for back, layer, number in done:
        own = devices[layer]
        come = [
            ends[back, other, number] + (world.late[own] + world.late[devices[other]]) / 2 * (devices[other] != own)
            for other in (readers if back else world.inputs)[layer]
        ]
        took = (world.backward if back else world.forward)[own][layer] * sizes[number]
        ends[back, layer, number] = clocks[own] = max([clocks[own], *come]) + took
    return max(clocks)


@FEW
@given(worlds(), st.lists(st.integers(1, 3), min_size=1, max_size=4), SCHEDULES, st.data())
def test_any_placement_in_any_order_takes_as_long_as_by_hand(
    build: Any, world: World, sizes: list[int], schedule: str, data: st.DataObject
) -> None:
    """Nobody waits for ever; and what is held at the peak is the closed form's."""
    devices, order = data.draw(placements(world))
    outputs = [float(data.draw(st.integers(0, 3))) for _ in devices]
    scenario = world.scenario(build, sum(sizes), outputs=outputs)
    made = plan(devices, sizes, order, schedule)
    launch = build.run(scenario, made, steps=2)
    assert launch.ends[0] == pytest.approx(by_hand(world, devices, order, sizes, schedule))
    assert launch.ends[0] >= work_bound_s(scenario) * (1 - 1e-9)
    peaks = memory.peak(scenario.workload, made)
    assert launch.activations == {name: peaks[name].activations for name in launch.activations}
    assert set(launch.activations) == {f"d{own}" for own in devices}


@FEW
@given(worlds(), st.lists(st.integers(1, 2), min_size=1, max_size=3), SCHEDULES, st.data())
def test_short_cuts_are_the_loop_where_messages_share_links(
    build: Any, world: World, sizes: list[int], schedule: str, data: st.DataObject
) -> None:
    """The fixture holds the recurrence, the repeated steps and the folded pipelines against the loop."""
    devices, order = data.draw(placements(world))
    count, copies = len(world.forward), data.draw(st.integers(1, 2))
    outputs = [data.draw(seconds) * 1e9 / 4 for _ in devices]
    one = plan(devices, sizes, order, schedule).pipelines[0]
    renamed = [
        stage.model_copy(update={"replicas": [Replica(devices=[f"d{count + int(stage.replicas[0].devices[0][1:])}"])]})
        for stage in one.stages
    ]
    both = [one, one.model_copy(update={"stages": renamed})][:copies]
    doubled = World(world.inputs, world.forward * copies, world.backward * copies, world.late * copies)
    scenario = doubled.scenario(build, sum(sizes) * copies, outputs=outputs, gb_per_s=1.0)
    made = Plan.model_validate({"pipelines": both, "schedule": schedule})
    assert build.step_s(scenario, made) > 0


@pytest.mark.parametrize("schedule", ["gpipe", "accumulate"])
@pytest.mark.parametrize("devices", [[0, 1, 1, 0], [0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]])
def test_long_steps_of_placements(build: Any, schedule: str, devices: list[int]) -> None:
    """Hundreds of micro-batches, of which the short cuts leave most out where devices go round."""
    forward, backward = [[1.0, 2.0, 3.0, 0.5], [2.0, 1.0, 1.5, 4.0]], [[2.0] * 4, [3.0] * 4]
    world = World([[], [0], [1], [2]], forward, backward, [0.25, 0.5])
    sizes = [1] * 150
    step_s = build.step_s(world.scenario(build, 150), plan(devices, sizes, None, schedule), steps=2)
    assert step_s == pytest.approx(by_hand(world, devices, range(4), sizes, schedule))


def test_a_message_of_nothing_overtakes_those_that_are_under_way(build: Any) -> None:
    """Layer 6 on another device hands gradients to layers 0, 1 and 5; that for 1 takes 1 s, and 5 need not wait for it.

    Forward passes take 3.5 s and so do backward ones; what layer 1 gets is there before its turn comes.
    """
    world = World([[], [0], [0], [0], [0], [0, 1, 4], [0, 1, 5]], [[0.5] * 7] * 2, [[0.5] * 7] * 2, [0.0, 0.0])
    outputs = [0.0, 1e9 / 4, 0.0, 0.0, 0.0, 0.0, 0.0]
    scenario = world.scenario(build, 1, outputs=outputs, gb_per_s=1.0)
    assert build.step_s(scenario, plan([0] * 6 + [1], [1], range(7), "gpipe")) == pytest.approx(7.0)


# Two branches, written out: a stem of 1 s, branches of 2 s and 3 s, a join of 1 s; backward passes of twice that

FORK = World([[], [0], [0], [1, 2]], [[1.0, 2.0, 3.0, 1.0]] * 2, [[2.0, 4.0, 6.0, 2.0]] * 2, [0.0, 0.0])


def fork_s(build: Any, devices: list[int], late: float = 0.0, **changes: Any) -> float:
    world = World(FORK.inputs, FORK.forward, FORK.backward, [late, late])
    step_s: float = build.step_s(world.scenario(build, **changes), plan(devices, [1], None, "gpipe"))
    return step_s


def test_branches_on_two_devices_overlap(build: Any) -> None:
    assert fork_s(build, [0, 0, 0, 0]) == 3 * (1 + 2 + 3 + 1)
    assert fork_s(build, [0, 1, 0, 0]) == 3 * (1 + 3 + 1)


def test_the_bound_knows_that_branches_may_run_side_by_side(build: Any) -> None:
    """One sample's longest way is by the longer branch, there and back; the shorter one is beside it."""
    scenario = FORK.scenario(build)
    assert critical_path_s(scenario) == pytest.approx(3 * (1 + 3 + 1))
    assert fork_s(build, [0, 1, 0, 0]) == pytest.approx(work_bound_s(scenario))


def test_a_message_that_is_late_makes_its_reader_wait(build: Any) -> None:
    """There and back: 0.75 s each way is under the longer branch, 1.5 s each way is 2 s over it, forward and back."""
    assert fork_s(build, [0, 1, 0, 0], late=0.25) == 3 * (1 + 3 + 1)
    assert fork_s(build, [0, 1, 0, 0], late=1.5) == (1 + 1.5 + 2 + 1.5 + 1) + (2 + 1.5 + 4 + 1.5 + 2)


def test_bytes_take_their_time(build: Any) -> None:
    """1.5 s a message over a link of 1 GB/s, from the stem and back from the branch; none within a device."""
    outputs = [1.5e9 / 4] * 4
    assert fork_s(build, [0, 0, 0, 0], outputs=outputs, gb_per_s=1.0) == pytest.approx(21)
    late = (1 + 1.5 + 2 + 1.5 + 1) + (2 + 1.5 + 4 + 1.5 + 2)
    assert fork_s(build, [0, 1, 0, 0], outputs=outputs, gb_per_s=1.0) == pytest.approx(late)


def test_the_order_decides_who_waits(build: Any) -> None:
    """Layers 1 and 2 are read elsewhere, in turn: whichever is sent first lets the other device begin."""
    world = World([[], [], [1]], [[4.0, 1.0, 9.0], [9.0, 9.0, 4.0]], [[0.5] * 3] * 2, [0.0, 0.0])
    scenario = world.scenario(build)
    late = build.step_s(scenario, plan([0, 0, 1], [1], [0, 1, 2], "gpipe"))
    early = build.step_s(scenario, plan([0, 0, 1], [1], [1, 0, 2], "gpipe"))
    assert (late, early) == (9.0 + 0.5 + 1.0, 5.0 + 0.5 + 0.5)


def test_what_binds_a_placement_is_named(build: Any) -> None:
    """The report of the step asks which device, link or wait binds; it knows placements as it knows pipelines."""
    scenario = FORK.scenario(build)
    run = simulate(scenario, Fixed(plan([0, 1, 0, 0], [1], None, "gpipe")))
    assert run.summary.step_time_s.p50 == pytest.approx(15)
    assert run.summary.binding is not None
    assert "d0" in str(run.summary.binding)


# The policies: what their timetables say is what the engine does


POLICIES = {"heft": earliest_finish, "m-etf": earliest_start, "m-topo": topological_fill}


@settings(max_examples=60)
@given(worlds(), st.sampled_from(sorted(POLICIES)), st.booleans())
def test_a_policys_timetable_is_what_the_engine_does(build: Any, world: World, name: str, whole: bool) -> None:
    """One micro-batch, no message in another's way, backward passes of the forward ones' length: forth and back.

    The plan joins layers into stages where nothing waits longer for it; so gaps may close, and nothing is later.
    """
    even = World(world.inputs, world.forward, world.forward, world.late)
    scenario = even.scenario(build, outputs=float(whole))
    view = canonical(View.of(scenario))
    made = policy_from_text(name).allocate(view)
    made.check(scenario)
    table = POLICIES[name](tasks_of(view, "gpipe", [1]))
    assert made.pipelines[0].micro_batches == [1]
    step_s = build.step_s(scenario, made)
    assert step_s <= table.makespan_s * (1 + 1e-9)
    if name != "heft":  # no gaps were filled: nothing closes
        assert step_s == pytest.approx(table.makespan_s)


OTHERS = ["place-single", "m-topo(balanced=false)", "attention-operators", "attention-operators(order=ready, memory=1)"]


@FEW
@given(worlds(), st.sampled_from([*sorted(POLICIES), *OTHERS]), st.data())
def test_policies_keep_within_any_memory(build: Any, world: World, name: str, data: st.DataObject) -> None:
    """A valid plan, or a reason; with parameters, activations and receive buffers that matter."""
    batch = data.draw(st.integers(1, 4))
    scenario = world.scenario(build, batch, outputs=2e8, parameters=30_000_000)
    cluster = scenario.cluster
    nodes = [
        node.model_copy(
            update={
                "devices": [
                    device.model_copy(update={"memory_gib": data.draw(st.sampled_from([0.5, 2.0, 8.0, 64.0]))})
                    for device in node.devices
                ]
            }
        )
        for node in cluster.nodes
    ]
    micro = scenario.workload.model_copy(update={"max_micro_batch": data.draw(st.sampled_from([None, 1, 2]))})
    tight = scenario.model_copy(update={"cluster": cluster.model_copy(update={"nodes": nodes}), "workload": micro})
    with contextlib.suppress(Infeasible):
        allocate(policy_from_text(name), View.of(tight), tight)  # judges what it gets
