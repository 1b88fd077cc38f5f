"""Passes of stages are read from a pipeline that was measured: what they take beyond their layers, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.held_out import hold_out
from steelyard.runner.launch import LaunchResult, Task
from steelyard.runner.staging import stage_pass, staging_tasks
from steelyard.sim.device import Device, LayerPoint, LayerProfile, StagePass
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.spec import Scenario
from steelyard.sim.workload import Workload

SIZES = [2, 6, 10, 14]
SHARES = [0.1, 0.2, 0.3, 0.4]
FORWARD_S, BACKWARD_S = 0.010, 0.020
extras = st.floats(0.0, 2e-3)


def table(workload: Workload) -> LayerProfile:
    """Of four layers, which take parts of the whole that differ."""
    forward, backward = ([share * whole for share in SHARES] for whole in (FORWARD_S, BACKWARD_S))
    return LayerProfile(
        model=workload.model.name,
        sequence_length=workload.sequence_length,
        dtype=workload.dtype,
        points=[
            LayerPoint(micro_batch=size, forward_s=forward, backward_s=backward, optimizer_s=[0.0] * 4)
            for size in SIZES
        ],
    )


def measured(workload: Workload, extra: tuple[float, float], day: float = 1.0) -> LaunchResult:
    """A launch on a day on which all takes so many times as long; its stages take some seconds more a pass."""
    (task,) = staging_tasks(workload, SIZES, 2)
    count = task["turns"] * task["steps"]
    whole = step_of(day * FORWARD_S, day * BACKWARD_S)
    answers: list[list[Task]] = []
    for stage in task["program"]["pipelines"][0]["stages"]:
        part = sum(SHARES[stage["first"] : stage["last"]])
        passes = step_of(day * part * FORWARD_S + extra[0], day * part * BACKWARD_S + extra[1])
        answers.append([{"steps": [passes] * count, "whole": [whole] * count}])
    return LaunchResult([task], answers)


def step_of(forward_s: float, backward_s: float) -> list[tuple[str, int, float, float, float]]:
    return [("forward", 0, 0.0, forward_s, 0.0), ("backward", 0, forward_s, forward_s + backward_s, 0.0)]


def test_all_lanes_are_stages_that_cover_the_model(tiny_workload: Workload) -> None:
    for lanes in (2, 3, 4, 9):
        (task,) = staging_tasks(tiny_workload, SIZES, lanes)
        (pipeline,) = task["program"]["pipelines"]
        edges = [edge for stage in pipeline["stages"] for edge in (stage["first"], stage["last"])]
        assert (edges[0], edges[-1]) == (0, len(tiny_workload.layers))
        assert edges[1:-1:2] == edges[2::2]
        assert all(stage["first"] < stage["last"] for stage in pipeline["stages"])
        assert set(pipeline["sizes"]) <= set(SIZES)
    assert staging_tasks(tiny_workload, SIZES, 1) == []


@given(forward=extras, backward=extras, days=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=4))
def test_what_a_pass_takes_more_is_found_whatever_the_day(
    tiny_workload: Workload, forward: float, backward: float, days: list[float]
) -> None:
    launches = [measured(tiny_workload, (forward, backward), day) for day in days]
    for rank in (0, 1):
        found = stage_pass(launches, rank, table(tiny_workload))
        assert found is not None
        assert (found.micro_batch, found.forward_s, found.backward_s) == (
            6,
            pytest.approx(forward, abs=1e-9),
            pytest.approx(backward, abs=1e-9),
        )


def test_what_most_turns_do_not_show_is_luck(tiny_workload: Workload) -> None:
    launches = [measured(tiny_workload, (1e-3, extra)) for extra in (1e-3, 1e-3, -1e-4)]
    found = stage_pass(launches, 1, table(tiny_workload))
    assert found is not None
    assert (found.forward_s, found.backward_s) == (pytest.approx(1e-3), 0.0)


def test_who_is_no_stage_has_none(tiny_workload: Workload) -> None:
    assert stage_pass([LaunchResult([], [[]])], 0, table(tiny_workload)) is None
    launch = measured(tiny_workload, (1e-3, 1e-3))
    assert stage_pass([LaunchResult(launch.tasks, [*launch.answers, [{}]])], 2, table(tiny_workload)) is None


@given(handling=st.tuples(extras, extras), first_s=st.sampled_from([0.0, 1.0]), message_s=st.sampled_from([0.0, 1.0]))
def test_what_a_lane_spends_on_messages_that_lie_there_counts_and_what_it_waits_for_does_not(
    tiny_workload: Workload, handling: tuple[float, float], first_s: float, message_s: float
) -> None:
    """The first stage is far ahead, or always behind; or its messages take longer than passes, one after the other."""
    ready = not first_s and not message_s
    (task,) = staging_tasks(tiny_workload, SIZES, 2)
    last = task["program"]["pipelines"][0]["stages"][1]
    part = sum(SHARES[last["first"] : last["last"]])
    ahead = [("forward", number, first_s * number, first_s * number + 1e-6, 0.0) for number in range(3)]
    behind, clock, there = [], 0.0, 0.0
    for way, seconds, gap in (("forward", FORWARD_S, handling[0]), ("backward", BACKWARD_S, handling[1])):
        for number in range(3):
            if way == "forward":
                there = max(there, ahead[number][3]) + message_s
                clock = max(clock, there)
            behind.append((way, number, clock + gap, clock + gap + part * seconds, 0.0))
            clock = behind[-1][3]
    count = task["turns"] * task["steps"]
    whole = [step_of(FORWARD_S, BACKWARD_S)] * count
    first = [*ahead, *(("backward", number, clock, clock + 1e-6, 0.0) for number in range(3))]
    answers: list[list[Task]] = [[{"steps": [each] * count, "whole": whole}] for each in (first, behind)]
    found = stage_pass([LaunchResult([task], answers)], 1, table(tiny_workload), message_s)
    assert found is not None
    assert found.forward_s == pytest.approx(handling[0] if ready else 0.0, abs=1e-9)
    assert found.backward_s == pytest.approx(handling[1], abs=1e-9)


def test_only_pipelines_of_the_size_do_without_what_a_pass_takes_more(tiny_scenario: Scenario) -> None:
    """Data parallelism with micro-batches of that size says nothing of stages, and may know them."""
    layers = len(tiny_scenario.workload.layers)

    def staged(device: Device) -> Device:
        points = [
            LayerPoint(
                micro_batch=point.micro_batch,
                forward_s=[point.forward_s / layers] * layers,
                backward_s=[point.backward_s / layers] * layers,
                optimizer_s=[0.0] * layers,
            )
            for point in (device.profile.points if device.profile else ())
        ]
        profile = LayerProfile(
            model=tiny_scenario.workload.model.name,
            sequence_length=tiny_scenario.workload.sequence_length,
            dtype="fp32",
            points=points,
            stage_pass=StagePass(micro_batch=5, forward_s=1e-3, backward_s=1e-3),
        )
        return device.model_copy(update={"layer_profile": profile})

    (node,) = tiny_scenario.cluster.nodes
    nodes = [node.model_copy(update={"devices": list(map(staged, node.devices))})]
    scenario = tiny_scenario.model_copy(update={"cluster": tiny_scenario.cluster.model_copy(update={"nodes": nodes})})
    one, other = (device.name for device in node.devices)
    alone = [
        Pipeline(stages=[Stage(first=0, last=layers, replicas=[Replica(devices=[name])])], micro_batches=[5])
        for name in (one, other)
    ]
    stages = [
        Stage(first=0, last=1, replicas=[Replica(devices=[one])]),
        Stage(first=1, last=layers, replicas=[Replica(devices=[other])]),
    ]
    piped = Plan(pipelines=[Pipeline(stages=stages, micro_batches=[5, 5])], schedule="1f1b")
    for plans, kept in (([Plan(pipelines=alone)], True), ([piped], False), ([Plan(pipelines=alone), piped], False)):
        for device in hold_out(scenario, plans).cluster.devices:
            assert device.layer_profile is not None
            assert (device.layer_profile.stage_pass is not None) == kept
            assert 5 not in {point.micro_batch for point in device.layer_profile.points}
