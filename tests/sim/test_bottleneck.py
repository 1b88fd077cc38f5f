"""Why it is slow: what is named and what it gains, by hand; for any plan, a path that adds up and gains that hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.ledger import critical_path
from steelyard.sim import bottleneck, causes, engine, loop
from steelyard.sim.bottleneck import Bottleneck, explain
from steelyard.sim.compiler import compile_plan
from steelyard.sim.critical import GATHERING, GRADIENTS, MESSAGES, WEIGHTS
from steelyard.sim.device import Link, Switch
from steelyard.sim.plan import Plan
from steelyard.sim.program import Program
from steelyard.sim.relief import Relief, relieved
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.workload import TensorSplit

GB = 10**9


def why(scenario: Scenario, plan: Plan) -> Bottleneck:
    plan.check(scenario)
    found = explain(scenario, plan)
    assert isinstance(found, Bottleneck)
    return found


def data_parallel(
    build: Any, times: dict[str, float], samples: dict[str, int], **changes: Any
) -> tuple[Scenario, Plan]:
    """Devices of one layer, so many seconds a sample forward and twice that backward; the update takes a tenth."""
    devices = [build.device(name, [each], [2 * each], optimizer=[0.1]) for name, each in times.items()]
    scenario = build.scenario(devices, batch=sum(samples.values()), **changes)
    return scenario, Plan.data_parallel(scenario.workload, samples)


# What binds, by hand


def test_a_slow_device_binds(build: Any) -> None:
    """Two samples at 2 + 4 s take it 12 s; half of that is what the other one takes: of 12.1 s, 6 are saved."""
    found = why(*data_parallel(build, {"fast": 1.0, "slow": 2.0}, {"fast": 2, "slow": 2}))
    assert (found.binding, found.kind) == ("slow: forward and backward", "device")
    assert found.step_s == pytest.approx(12.1)
    assert found.gain == pytest.approx(6 / 12.1)
    assert found.by_cause == pytest.approx({"slow: forward and backward": 12.0, "slow: optimizer": 0.1}, rel=1e-6)
    assert found.line() == "device slow: forward and backward; half of it would save 50 % of the step"
    assert [(each.device, each.what) for each in found.path] == [
        ("slow", "forward"),
        ("slow", "backward"),
        ("slow", "optimizer"),
    ]


def test_what_comes_second_limits_the_gain(build: Any) -> None:
    """Half of the slow one's 9 s would be 4.5 s, but the other one takes 6 s: 3 s are saved."""
    found = why(*data_parallel(build, {"fast": 1.0, "slow": 1.5}, {"fast": 2, "slow": 2}))
    assert (found.binding, found.gain) == ("slow: forward and backward", pytest.approx(3 / 9.1))


def test_a_slow_link_binds(build: Any) -> None:
    """A ring of three over 0.4 GB: 4/3 of it pass each adapter, the slow one at 0.05 GB/s. Twice as fast saves half."""
    found = why(
        *data_parallel(
            build,
            {"a": 1.0, "b": 1.0, "c": 1.0},
            {"a": 1, "b": 1, "c": 1},
            parameters=GB // 10,
            gb_per_s=[10.0, 10.0, 0.05],
        )
    )
    sync_s = 4 / 3 * 0.4 / 0.05
    assert found.step_s == pytest.approx(sync_s + 3.1)
    assert (found.binding, found.kind) == ("link n2: nic", "link")
    assert found.gain == pytest.approx(sync_s / 2 / found.step_s)
    assert found.line().startswith("link n2: nic (gradient synchronisation); half of it would save 39 %")


def test_latency_and_bytes_together_bind_as_the_synchronisation(build: Any) -> None:
    """Two messages in a row of 1 s latency, 0.4 GB at 0.2 GB/s, and 1.6 s of work."""
    scenario, plan = data_parallel(
        build, {"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, parameters=GB // 10, gb_per_s=0.2, latencies=1.0
    )
    found = why(scenario, plan)
    assert found.by_cause["latency of gradient synchronisation"] == pytest.approx(2.0)
    assert found.by_cause["link n0 and n1: nic"] == pytest.approx(2.0)
    assert (found.binding, found.kind, found.gain) == (GRADIENTS, "communication", pytest.approx(2 / 5.6))
    assert found.line().startswith("gradient synchronisation (link n0 and n1: nic)")


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_heavy_stage_binds(build: Any, reference: ModuleType, schedule: str) -> None:
    """The gain is what another simulator finds, when it is given half of the stage's seconds."""
    forward, backward, count = [1.0, 4.0, 1.5, 1.25], [2.0, 8.0, 3.0, 2.5], 6
    scenario = build.chain(forward, backward, count, latencies=0.125)
    found = why(scenario, build.straight(4, count, schedule))

    def step_s(share: float) -> float:
        pipe = reference.Pipe(
            "p",
            schedule,
            4,
            [[each * (share if place == 1 else 1)] * count for place, each in enumerate(forward)],
            [[each * (share if place == 1 else 1)] * count for place, each in enumerate(backward)],
            [0.125] * 4,
            [[0.0] * count] * 4,
            [0.0] * 4,
        )
        ends = reference.run([pipe], [], 8)[0]
        return float(ends[-1] - ends[-2])

    assert found.step_s == pytest.approx(step_s(1.0))
    assert found.binding == "d1 (stage 1): forward and backward"
    assert found.gain == pytest.approx(1 - step_s(0.5) / step_s(1.0))


def test_an_input_pipeline_binds(build: Any) -> None:
    """Four samples at one in five seconds: 20 s, all of them loading. What a step ends with is beside it."""
    scenario, plan = data_parallel(
        build, {"a": 1.0, "b": 1.0}, {"a": 2, "b": 2}, per_node=2, nodes=[{"loader_samples_per_s": 0.2}]
    )
    found = why(scenario, plan)
    assert (found.binding, found.kind, found.gain) == ("input pipeline of n0", "loader", pytest.approx(0.5))
    assert found.by_cause == pytest.approx({"input pipeline of n0": 20.0})


def test_equal_devices_bind_together(build: Any) -> None:
    """Any one of them in half the time gains nothing."""
    names = [f"d{number}" for number in range(4)]
    found = why(*data_parallel(build, dict.fromkeys(names, 1.0), dict.fromkeys(names, 2)))
    assert (found.binding, found.gain) == ("4 x d*: forward and backward", pytest.approx(3 / 6.1))
    for other, gain in found.gains.items():
        assert gain == pytest.approx(0.0 if other.startswith("d0") else 3 / 6.1)


def test_equal_stages_bind_together(build: Any) -> None:
    scenario = build.chain([1.0] * 4, [2.0] * 4, 8)
    found = why(scenario, build.straight(4, 8, "1f1b"))
    assert (found.binding, found.gain) == ("4 x d* (stages 0-3): forward and backward", pytest.approx(0.5))
    assert (found.devices, found.line()[:12]) == (4, "devices 4 x ")


def test_different_devices_in_balance_bind_together(build: Any) -> None:
    """Four samples on one and two on the other, of half the speed: neither alone gains anything."""
    found = why(*data_parallel(build, {"a": 1.0, "b": 2.0}, {"a": 4, "b": 2}))
    assert (found.binding, found.gain) == ("all 2 devices: forward and backward", pytest.approx(6 / 12.1))
    assert found.line().startswith("all 2 devices: forward and backward; half of it would save 50 %")


def test_of_equal_devices_the_one_that_binds_is_named(build: Any) -> None:
    """Three of a kind, but only one is behind a slow loader, and has its samples later."""
    scenario, plan = data_parallel(
        build,
        {"a": 1.0, "b": 1.0, "c": 1.0},
        {"a": 1, "b": 1, "c": 1},
        nodes=[{}, {}, {"loader_samples_per_s": 0.5}],
    )
    found = why(scenario, plan)
    assert found.binding == "a, b and c: forward and backward"  # loading is ahead of the work: it does not show
    slow = scenario.cluster.model_copy(update={"nodes": [*scenario.cluster.nodes[:2], _loading(scenario, 2, 0.25)]})
    assert why(scenario.model_copy(update={"cluster": slow}), plan).binding == "input pipeline of n2"


def _loading(scenario: Scenario, number: int, samples_per_s: float) -> Any:
    return scenario.cluster.nodes[number].model_copy(update={"loader_samples_per_s": samples_per_s})


def test_folded_pipelines_are_named_with_all_their_devices(build: Any) -> None:
    """Three like pipelines run as one; their second stage is three devices."""
    devices = [build.device(f"d{number}", [1.0, 3.0], [2.0, 6.0]) for number in range(6)]
    scenario = build.scenario(devices, batch=12)
    pipelines = [build.pipeline([0, 1, 2], [f"d{2 * each}", f"d{2 * each + 1}"], [1] * 4) for each in range(3)]
    plan = Plan(pipelines=pipelines, schedule="1f1b")
    assert len(compile_plan(scenario, plan, folded=True).workers) == 2
    found = why(scenario, plan)
    assert found.binding == "d1, d3 and d5 (stage 1): forward and backward"
    assert found.step_s == pytest.approx(39.0)
    assert found.gain == pytest.approx(1 - 21.0 / 39.0)


def test_a_link_that_several_share_binds_though_each_alone_would_not_fill_it(build: Any) -> None:
    """Two pipelines send 1 GB at once over an uplink of 1.2 GB/s; an adapter alone would have 1 GB/s."""
    devices = [build.device(f"d{number}", [0.1, 0.1], [0.1, 0.1]) for number in range(4)]
    uplink = Link(name="uplink", latency_us=0.0, bandwidth_gb_per_s=1.2)
    scenario = build.scenario(
        devices,
        batch=2,
        outputs=[GB / 4, 0.0],
        gb_per_s=1.0,
        parameters=0,
        nodes=[{"switch": "left"}, {"switch": "left"}],
        cluster={"switches": [Switch(name="left", uplink=uplink)]},
    )
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], pair, [1]) for pair in (["d0", "d2"], ["d1", "d3"])])
    found = why(scenario, plan)
    assert found.step_s == pytest.approx(0.4 + 2 * 2 / 1.2)
    assert found.binding == "link left: uplink"
    assert found.gain == pytest.approx((2 * 2 / 1.2 - 2 * 1.0) / found.step_s)  # then the adapters limit them
    assert found.line().startswith("link left: uplink (messages)")


def test_messages_that_queue_are_on_the_path_one_after_the_other(build: Any) -> None:
    """Work of 0.1 s, messages of 1 s: forward, the second and third wait for those before them, not for their work."""
    scenario = build.chain([0.1, 0.1], [0.1, 0.1], 3, outputs=[GB / 4, 0.0], gb_per_s=[1.0, 1.0])
    found = why(scenario, build.straight(2, 3, "gpipe"))
    link_s = sum(each.seconds for each in found.path if each.link is not None)
    assert found.step_s == pytest.approx(6.4)
    assert link_s == pytest.approx(6.0)
    assert (found.binding, found.gain) == ("link n0 and n1: nic", pytest.approx(3.0 / 6.4))


def test_a_sender_that_waits_has_its_messages_on_the_path(build: Any) -> None:
    """F0 and send, F1 and send: 4 s; then the other's forward and two backwards, with their gradients sent: 3.3 + 2."""
    devices = [build.device(f"d{number}", [1.0, 0.1], [1.0, 0.1], overlaps=False) for number in range(2)]
    scenario = build.scenario(devices, batch=2, outputs=[GB / 4, 0.0], gb_per_s=1.0)
    found = why(scenario, build.straight(2, 2, "gpipe"))
    assert sum(found.by_cause.values()) == pytest.approx(found.step_s)
    assert found.by_cause["link n0 and n1: nic"] == pytest.approx(4.0)


def test_gathered_weights_bind(build: Any) -> None:
    """ZeRO-3 over a slow link: all-gather 4 s forward; backward the same and a reduce-scatter; work of 0.6 s beside."""
    scenario, plan = data_parallel(
        build, {"a": 0.1, "b": 0.1}, {"a": 2, "b": 2}, parameters=GB // 10, gb_per_s=0.05, latencies=0.0
    )
    found = why(scenario, plan.model_copy(update={"zero": 3}))
    assert found.by_cause["link n0 and n1: nic"] == pytest.approx(12.0)
    assert {each.what for each in found.path if each.link is not None} == {GATHERING}
    assert found.binding == "link n0 and n1: nic"


def test_local_sgd_is_told_by_the_round(build: Any) -> None:
    """Of four steps one synchronises: the path is of all four, the causes are per step."""
    scenario, plan = data_parallel(build, {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1}, parameters=GB // 10, gb_per_s=0.1)
    found = why(scenario, plan.model_copy(update={"sync_every": 4}))
    assert found.step_s == pytest.approx(3.1 + 4.0 / 4)
    assert sum(each.seconds for each in found.path) == pytest.approx(4 * found.step_s)
    assert found.by_cause["link n0 and n1: nic"] == pytest.approx(1.0)
    assert {each.what for each in found.path if each.link is not None} == {WEIGHTS}


def test_tensor_parallel_collectives_bind(build: Any) -> None:
    """Of two devices with half of the work each: an all-reduce of 1 GB at 1 GB/s takes 1 s, forward and backward."""
    devices = [build.device(name, [0.2], [0.4], degrees=(1, 2)) for name in ("d0", "d1")]
    split = TensorSplit(divisor=2, forward_elements=[[GB / 4]], backward_elements=[[GB / 4]])
    scenario = build.scenario(devices, batch=1, per_node=2, gb_per_s=1.0, layers=[{"tensor": split}])
    found = why(scenario, Plan(pipelines=[build.pipeline([0, 1], [("d0", "d1")], [1])]))
    assert found.step_s == pytest.approx(2.3)
    assert (found.binding, found.kind) == ("d0 and d1: tensor-parallel collectives", "collective")
    assert found.gain == pytest.approx(1.0 / 2.3)


def test_gradients_beside_the_backward_pass_are_waited_for_from_where_they_were_complete(build: Any) -> None:
    """Layers of 1 s backward, the last one's gradients first: 8 s of them begin a second before the pass is over."""
    devices = [build.device(name, [1.0, 1.0], [1.0, 1.0]) for name in ("a", "b")]
    scenario = build.scenario(devices, batch=2, parameters=[0, GB // 10], gb_per_s=0.05)
    plan = Plan.data_parallel(scenario.workload, {"a": 1, "b": 1})
    found = why(scenario, plan)
    assert found.step_s == pytest.approx(3.0 + 8.0)
    assert found.by_cause == pytest.approx({"link n0 and n1: nic": 8.0, "a and b: forward and backward": 3.0})


def test_buckets_go_one_after_the_other(build: Any) -> None:
    """Gradients of three layers, 4 s each, over one link: the second and third wait for those before."""
    devices = [build.device(name, [1.0] * 3, [1.0] * 3) for name in ("a", "b")]
    scenario = build.scenario(devices, batch=2, parameters=GB // 10, gb_per_s=0.1)
    plan = Plan.data_parallel(scenario.workload, {"a": 1, "b": 1}).model_copy(update={"bucket_mib": 1e-9})
    found = why(scenario, plan)
    assert found.by_cause == pytest.approx({"link n0 and n1: nic": 12.0, "a and b: forward and backward": 4.0})


def test_without_a_device_on_the_path_no_device_is_asked(build: Any) -> None:
    """All of the path is loading. Even where half of its cause would lose time, nothing else is on the path."""
    scenario, plan = data_parallel(
        build, {"a": 1.0, "b": 1.0}, {"a": 2, "b": 2}, per_node=2, nodes=[{"loader_samples_per_s": 0.2}]
    )
    program = compile_plan(scenario, plan)
    trial = bottleneck._Trial(program, steps=4)
    ordered = list(bottleneck._weigh(trial, causes.Causes(scenario, plan, program)).values())
    assert [each.cause.kind for each in ordered] == ["loader"]
    assert not bottleneck._balanced(trial, ordered, -0.1)


@given(st.lists(st.floats(1.0, 10.0), min_size=1, max_size=6), st.integers(0, 4), st.integers(3, 8))
def test_a_pattern_of_rounds_is_counted_whole(pattern: list[float], before: int, laps: int) -> None:
    """A window that cuts a fast and a slow round that take turns has not their mean."""
    rounds = np.array([20.0] * before + pattern * laps)
    counted = bottleneck._pattern(rounds)
    assert rounds[-counted:].mean() == pytest.approx(np.mean(pattern))


def test_pipelines_that_nothing_holds_together_have_settled_on_nothing(build: Any) -> None:
    """No gradients, and one behind a loader that falls back slowly: the line says that its figure is of a window."""
    devices = [build.device(name, [each], [2 * each]) for name, each in (("a", 1.0), ("b", 1.02))]
    scenario = build.scenario(
        devices, batch=2, parameters=0, nodes=[{"loader_samples_per_s": 0.325}, {"loader_samples_per_s": 0.33}]
    )
    found = why(scenario, Plan.data_parallel(scenario.workload, {"a": 1, "b": 1}))
    assert not found.settled
    assert " would save about " in found.line()


# Any plan


@dataclass
class World:
    scenario: Callable[..., Scenario]
    plan: Plan


@st.composite
def worlds(draw: st.DrawFn, build: Any, *, free: bool) -> World:
    """Up to two pipelines of up to three stages, of one device or two each; links of no width, if free, or of some."""
    depth, pipelines = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    group, chunks = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2])) if depth > 1 else 1
    layers = depth * chunks
    row = st.lists(st.floats(0.01, 5.0), min_size=layers, max_size=layers)
    forward, backward, update = draw(row), draw(row), draw(row)
    zero = draw(st.sampled_from([0, 0, 1, 3])) if chunks == 1 else 0
    sizes = st.lists(st.integers(1, 3), min_size=depth, max_size=depth)  # as many as interleaving needs
    schedule = "interleaved" if chunks > 1 else draw(st.sampled_from(["gpipe", "1f1b"]))
    names = [[[f"d{p}{s}{g}" for g in range(group)] for s in range(depth)] for p in range(pipelines)]
    made = [build.pipeline(range(layers + 1), [*map(tuple, each)] * chunks, draw(sizes)) for each in names]
    plan = Plan(
        pipelines=made,
        schedule=schedule,
        zero=zero,
        sync_every=draw(st.sampled_from([1, 1, 2])) if zero == 0 else 1,
        bucket_mib=draw(st.sampled_from([1e-9, 1e6])),
    )
    flat = [name for each in names for stage in each for name in stage]
    slow = {name: draw(st.sampled_from([1.0, 1.5])) for name in flat}
    overlaps = draw(st.booleans())
    parameters = draw(st.lists(st.integers(0, 3), min_size=layers, max_size=layers))
    loaders = {name: draw(st.sampled_from([None, None, 0.2, 5.0])) for name in flat}
    latency, width = draw(st.sampled_from([0.0, 0.3])), 1e12 if free else draw(st.sampled_from([0.5, 2.0]))
    split = TensorSplit(divisor=2, forward_elements=[[GB / 8]], backward_elements=[[GB / 8]])

    def scenario(order: list[str] = flat) -> Scenario:
        devices = [
            build.device(
                name, forward, backward, optimizer=update, degrees=(1, 2), slowdown=slow[name], overlaps=overlaps
            )
            for name in order
        ]
        made: Scenario = build.scenario(
            devices,
            batch=sum(pipeline.samples for pipeline in plan.pipelines),
            outputs=GB / 8,
            parameters=[each * GB // 4 for each in parameters],
            latencies=latency,
            gb_per_s=width,
            layers=[{"tensor": split}] * layers,
            nodes=[{"loader_samples_per_s": loaders[name]} for name in order],
            cluster={"backend": "gloo"},
        )
        nodes = [
            node.model_copy(update={"name": f"n-{name}"}) for node, name in zip(made.cluster.nodes, order, strict=True)
        ]
        return made.model_copy(update={"cluster": made.cluster.model_copy(update={"nodes": nodes})})

    return World(scenario, plan)


def everything(program: Program) -> Relief:
    workers = list(enumerate(program.workers))
    units = frozenset((number, member) for number, worker in workers for member in range(len(worker.members)))
    return Relief(
        compute=units,
        tensor=frozenset(range(len(program.workers))),
        optimizer=units,
        transfers=frozenset({MESSAGES, GRADIENTS, WEIGHTS, GATHERING}),
        loaders=frozenset(range(len(program.loaders))),
    )


@settings(max_examples=60)
@given(data=st.data(), free=st.booleans())
def test_the_path_adds_up_to_the_step(build: Any, data: st.DataObject, free: bool) -> None:
    """Also where links are shared: every second of the path has one cause, and they are those of the causes."""
    world = data.draw(worlds(build, free=free))
    found = why(world.scenario(), world.plan)
    assert all(each.seconds > 0 for each in found.path)
    assert sum(found.by_cause.values()) == pytest.approx(found.step_s, rel=1e-9)
    steps = sum(each.seconds for each in found.path) / found.step_s
    assert steps == pytest.approx(round(steps), rel=1e-9)
    assert round(steps) % world.plan.sync_every == 0
    by_cause: dict[str, float] = {}
    for each in found.path:
        by_cause[each.cause] = by_cause.get(each.cause, 0.0) + each.seconds / steps
    assert by_cause == pytest.approx(found.by_cause)


@settings(max_examples=60)
@given(data=st.data())
def test_no_cause_gains_more_than_half_of_its_part_of_the_path(build: Any, data: st.DataObject) -> None:
    """What is left of the path is still there: this holds only if each link of the chain really waits for the next.

    It is said of the pace that a plan settles into, not of the steps before.
    """
    world = data.draw(worlds(build, free=True))
    found = why(world.scenario(), world.plan)
    assume(found.settled)
    assert found.gain == max(found.gain, 0.0)
    for name, gain in found.gains.items():
        assert gain >= 0
        if name in found.by_cause:
            assert gain * found.step_s <= found.by_cause[name] / 2 + 1e-9 * found.step_s
    best = max(found.gains.values())
    assert found.gain >= bottleneck.AS_GOOD * best


@settings(max_examples=40)
@given(data=st.data())
def test_half_of_everything_is_half_of_the_step(build: Any, data: st.DataObject) -> None:
    world = data.draw(worlds(build, free=True))
    program = compile_plan(world.scenario(), world.plan, folded=True)
    steps = 1 + 4 * world.plan.sync_every
    ends = loop.run_launch(program, steps=steps, record=False).ends
    assert loop.run_launch(relieved(program, everything(program)), steps=steps, record=False).ends == pytest.approx(
        [each / 2 for each in ends], rel=1e-9
    )


@settings(max_examples=30)
@given(data=st.data())
def test_the_order_of_devices_does_not_matter(build: Any, data: st.DataObject) -> None:
    world = data.draw(worlds(build, free=True))
    scenario = world.scenario()
    order = data.draw(st.permutations([device.name for device in scenario.cluster.devices]))
    here, there = why(scenario, world.plan), why(world.scenario(order), world.plan)
    assert (here.binding, here.kind) == (there.binding, there.kind)
    assert here.gain == pytest.approx(there.gain)
    assert here.by_cause == pytest.approx(there.by_cause)


def test_stages_are_told_by_their_runs(build: Any) -> None:
    """Two devices of three stages each, in turn; the one with the last stage has twice the work of the other."""
    scenario = build.chain([1.0] * 5 + [4.0], [2.0] * 5 + [8.0], 2)
    found = why(scenario, build.straight(6, 2, "interleaved", workers=2))
    assert found.binding == "d1 (stages 1, 3, 5): forward and backward"
    assert [causes._stages(each) for each in ([4], [0, 1], [0, 1, 2, 5, 7, 8])] == [
        "stage 4",
        "stages 0-1",
        "stages 0-2, 5, 7-8",
    ]


def test_groups_of_one_pattern_keep_their_own_names(build: Any) -> None:
    """Four with twice the samples of the other four: both are 4 x d*."""
    names = [f"d{number}" for number in range(8)]
    found = why(*data_parallel(build, dict.fromkeys(names, 1.0), {name: 1 + int(name[1]) % 2 for name in names}))
    assert found.binding == "4 x d*: forward and backward"
    scenario, plan = data_parallel(build, dict.fromkeys(names, 1.0), {name: 1 + int(name[1]) % 2 for name in names})
    known = causes.Causes(scenario, plan, compile_plan(scenario, plan))
    told = [known._named(names[start::2], "") for start in (0, 1, 0)]
    assert told == ["4 x d*", "4 x d1, ...", "4 x d*"]


def test_a_long_path_is_left_out_of_the_record(build: Any) -> None:
    count = bottleneck.MOST_SEGMENTS
    scenario = build.chain([1.0, 1.0], [2.0, 2.0], count)
    found = why(scenario, build.straight(2, count, "1f1b"))
    assert len(found.path) > count
    assert found.document() == {**dataclasses.asdict(found), "path": None}
    few = why(build.chain([1.0, 1.0], [2.0, 2.0], 2), build.straight(2, 2, "1f1b"))
    assert few.document() == dataclasses.asdict(few)


def test_no_relief_changes_nothing(build: Any) -> None:
    scenario = build.chain([1.0, 2.0], [2.0, 1.0], 3, latencies=0.1, gb_per_s=1.0, outputs=GB / 8)
    program = compile_plan(scenario, build.straight(2, 3, "1f1b"))
    assert relieved(program, Relief()) == program


def test_reliefs_add_up() -> None:
    one, two = Relief(compute=frozenset({(0, 0)}), links=frozenset({1})), Relief(links=frozenset({2}))
    assert one | two == Relief(compute=frozenset({(0, 0)}), links=frozenset({1, 2}))
    assert {field.name for field in dataclasses.fields(Relief)} == set(dataclasses.asdict(one | two))


# In a run


def test_a_run_says_what_binds(quiet_scenario: Scenario) -> None:
    """Equal batches on unequal lanes: the slow one, and the numbers in the summary are those of the line."""
    summary = engine.simulate(quiet_scenario, make_policy("uniform")).summary
    assert summary.critical_path.startswith("device slow: forward and backward; half of it would save ")
    assert summary.binding is not None
    assert summary.binding["binding"] == "slow: forward and backward"
    assert summary.binding["step_s"] == pytest.approx(summary.step_time_s.mean)
    assert f"{100 * summary.binding['gain']:.0f} %" in summary.critical_path


def test_of_noisy_steps_the_one_without_noise_is_explained(scenario: Scenario, quiet_scenario: Scenario) -> None:
    noisy, quiet = (engine.simulate(each, make_policy("uniform")).summary for each in (scenario, quiet_scenario))
    assert noisy.binding == quiet.binding


def test_a_search_does_not_pay_for_it(make_document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("asked why")

    monkeypatch.setattr(engine, "explain", never)
    for metric in ("throughput", "step_time_p90", "cost", "energy"):
        scenario = scenario_from({**make_document(), "objective": {"metric": metric}})
        engine.objective_value(scenario, make_policy("uniform"), seed=0, launches=1)


def test_programs_that_are_too_large_are_left_alone(quiet_scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is then that of the ledgers, and says so."""
    monkeypatch.setattr(bottleneck, "MOST_PIECES", 1)
    summary = engine.simulate(quiet_scenario, make_policy("uniform")).summary
    assert summary.binding is None
    assert summary.critical_path.startswith(critical_path(summary.devices))
    assert "not simulated" in summary.critical_path
