"""The gauge holds steps of a launch against the tables, and leaves the training as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.gauge import NOISE_PERCENT, Drift, Gauged, gauge_tasks, not_gauged
from steelyard.runner.isolation.room import Room
from steelyard.runner.launch import LaunchResult, Task, run_group
from steelyard.runner.protocol import DRIFT_PERCENT, Measurement, Subject, contention, launch_tasks
from steelyard.runner.resolving import job_of
from steelyard.runner.runnable import lanes_of
from steelyard.runner.worker.member import Member
from steelyard.runner.worker.timing import gauge
from steelyard.sim.cost import peak_memory_bytes
from steelyard.sim.device import GIB, Device
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario

OF_ONE_STEP = {"index": 0, "sizes": [[15], [15]], "ranks": [0, 1]}


def work_s(device: Device, size: int) -> float:
    assert device.profile is not None
    return next(each.forward_s + each.backward_s for each in device.profile.points if each.micro_batch == size)


def launch_of(scenario: Scenario, factors: list[float], gauges: Sequence[Task] = ()) -> LaunchResult:
    """A launch in which each lane takes so many times as long as its table says, and one block of a plan."""
    gauges = list(gauges or gauge_tasks(scenario))
    answers = []
    for device, factor in zip(scenario.cluster.devices, factors, strict=True):
        steps = [step_of(factor * work_s(device, task["micro_batch"])) for task in gauges]
        block = {"steps": [step_of(1.0)] * 2, "contended": 0.0, "retries": 0}
        answers.append([*({"steps": [step] * 3, "quiet": [True] * 3} for step in steps), block])
    return LaunchResult([*gauges, {"op": "block", "round": 0, "steps": 1, **OF_ONE_STEP}], answers)


def step_of(seconds: float) -> list[tuple[str, int, float, float, float]]:
    return [("forward", 0, 0.0, seconds / 3, seconds / 3), ("backward", 0, seconds / 3, seconds, seconds / 3)]


def asking(scenario: Scenario, launches: int) -> Scenario:
    """The scenario with so many launches to gauge its lanes."""
    return scenario.model_copy(update={"replay": scenario.replay.model_copy(update={"gauge_launches": launches})})


def without_profile(scenario: Scenario) -> Scenario:
    nodes = [
        node.model_copy(update={"devices": [each.model_copy(update={"profile": None}) for each in node.devices]})
        for node in scenario.cluster.nodes
    ]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


@given(factors=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=2), launches=st.integers(1, 5))
def test_each_lane_is_as_slow_as_it_was_gauged(tiny_scenario: Scenario, factors: list[float], launches: int) -> None:
    found = Drift.of(tiny_scenario, [launch_of(tiny_scenario, factors)] * launches).percent
    names = [device.name for device in tiny_scenario.cluster.devices]
    assert found == pytest.approx({name: 100 * (each - 1) for name, each in zip(names, factors, strict=True)}, abs=1e-6)


@given(factors=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=2))
def test_a_plan_drifts_with_the_lane_that_it_waits_for(tiny_scenario: Scenario, factors: list[float]) -> None:
    """A plan on one lane takes that lane's factor of its passes; a plan on both at most the larger one."""
    names = [device.name for device in tiny_scenario.cluster.devices]
    workload, drift = tiny_scenario.workload, Drift.of(tiny_scenario, [launch_of(tiny_scenario, factors)])
    alone = Plan.data_parallel(workload, {names[0]: workload.global_batch, names[1]: 0})
    both = Plan.data_parallel(workload, {names[0]: 20, names[1]: workload.global_batch - 20})
    assert drift.factors(alone) == pytest.approx([factors[0]])
    (found,) = drift.factors(both)
    assert min(1.0, *factors) - 1e-9 <= found <= max(1.0, *factors) + 1e-9


@given(factors=st.lists(st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)), min_size=1, max_size=3))
def test_what_the_gauges_found_is_of_the_launches_and_not_of_a_plan(
    tiny_scenario: Scenario, factors: list[tuple[float, float]]
) -> None:
    """Asked of several plans in any order, each one's drift is what it would be were it the only plan."""
    launches, workload = [launch_of(tiny_scenario, list(each)) for each in factors], tiny_scenario.workload
    plans = [Plan.data_parallel(workload, {"full": own, "sse": 30 - own}) for own in (30, 20, 15, 0)]
    shared = Drift.of(tiny_scenario, launches)
    found = {plan.sha256: shared.factors(plan) for plan in reversed(plans)}
    assert [found[plan.sha256] for plan in plans] == [Drift.of(tiny_scenario, launches).factors(each) for each in plans]
    assert shared.factors(plans[0]) == pytest.approx([full for full, _ in factors])


def test_one_launch_in_five_is_no_drift(tiny_scenario: Scenario) -> None:
    launches = [launch_of(tiny_scenario, [1.0, 1.0])] * 4 + [launch_of(tiny_scenario, [3.0, 3.0])]
    assert Drift.of(tiny_scenario, launches).percent == pytest.approx({"full": 0.0, "sse": 0.0}, abs=1e-9)


@pytest.mark.parametrize("percent", [DRIFT_PERCENT - 1, DRIFT_PERCENT + 1, -DRIFT_PERCENT - 1])
def test_a_lane_that_is_not_as_it_was_calibrated_marks_the_runs(tiny_scenario: Scenario, percent: float) -> None:
    measurement = Measurement([launch_of(tiny_scenario, [1.0, 1 + percent / 100])])
    found = contention(measurement, 0, Drift.of(tiny_scenario, measurement.launches))
    assert found["busy"] == (abs(percent) > DRIFT_PERCENT)
    assert list(found["drift_percent"].values()) == pytest.approx([0.0, percent], abs=1e-6)


@given(but=st.sets(st.sampled_from([2, 5, 11, 17, 23, 31])))
def test_the_gauge_has_several_sizes_of_the_tables_and_none_of_the_plans(
    tiny_scenario: Scenario, but: set[int]
) -> None:
    sizes = [task["micro_batch"] for task in gauge_tasks(tiny_scenario, but=but)]
    assert set(sizes) <= {2, 5, 11, 17, 23, 31} - but
    assert len(set(sizes)) == len(sizes) >= min(3, 6 - len(but))


@given(place=st.integers(0, 5), luck=st.floats(-0.1, 0.1))
def test_a_points_luck_at_calibration_is_no_drift(tiny_scenario: Scenario, place: int, luck: float) -> None:
    """Held against that point alone, the lane would seem faster or slower by all of its luck."""
    launch = launch_of(tiny_scenario, [1.0, 1.0])

    def lucky(device: Device) -> Device:
        assert device.profile is not None
        points = list(device.profile.points)
        one = points[place]
        update = {"forward_s": one.forward_s * (1 + luck), "backward_s": one.backward_s * (1 + luck)}
        points[place] = one.model_copy(update=update)
        return device.model_copy(update={"profile": device.profile.model_copy(update={"points": points})})

    (node,) = tiny_scenario.cluster.nodes
    nodes = [node.model_copy(update={"devices": [lucky(each) for each in node.devices]})]
    cluster = tiny_scenario.cluster.model_copy(update={"nodes": nodes})
    found = Drift.of(tiny_scenario.model_copy(update={"cluster": cluster}), [launch]).percent
    assert max(map(abs, found.values())) <= 100 * abs(luck) / 2 + 1e-6


def test_the_sizes_of_plans_do_not_tell_their_speed(tiny_scenario: Scenario) -> None:
    """One size became slower: the plans that do not use it hear of it, those that use it do not."""
    scenario, slow = asking(tiny_scenario, 1), [17, 23, 31]

    def run(tasks: Sequence[Task]) -> LaunchResult:
        found = launch_of(scenario, [1.0, 1.0], tasks)
        slower = launch_of(scenario, [1.5, 1.5], tasks)
        answers = [
            [
                late if task.get("micro_batch") in slow else own
                for task, own, late in zip(found.tasks, a, b, strict=True)
            ]
            for a, b in zip(found.answers, slower.answers, strict=True)
        ]
        return LaunchResult(found.tasks, answers)

    gauge = Gauged.by(scenario, run)
    assert {*slow} < {task["micro_batch"] for task in gauge_tasks(scenario, every=True)}
    assert any(device.slowdown > 1 for device in gauge.at_present_speed()[0].cluster.devices)
    found, notes = gauge.at_present_speed(but=slow)
    assert notes == []
    assert all(device.slowdown == 1 for device in found.cluster.devices)


@given(bias=st.dictionaries(st.sampled_from([5, 11, 17, 23, 31]), st.floats(0.9, 1.1)), level=st.floats(0.5, 2.0))
def test_later_gauges_at_few_sizes_are_held_against_what_each_size_took(
    tiny_scenario: Scenario, bias: dict[int, float], level: float
) -> None:
    """A table whose points are off: the speed is told by how much each size takes longer than before."""
    scenario = asking(tiny_scenario, 2)

    def run(tasks: Sequence[Task], times: float = 1.0) -> LaunchResult:
        by_size = {size: launch_of(scenario, [times * each] * 2, tasks) for size, each in bias.items()}
        plain = launch_of(scenario, [times, times], tasks)
        sizes = [task.get("micro_batch", 0) for task in plain.tasks]
        answers = [
            [by_size.get(size, plain).answers[rank][number] for number, size in enumerate(sizes)] for rank in range(2)
        ]
        return LaunchResult(plain.tasks, answers)

    present, _ = Gauged.by(scenario, run).at_present_speed()
    few = gauge_tasks(present, but=[11, 23])
    found = Drift.of(present, [run(2 * few, level)])
    same = Drift.of(present, [run(2 * few)])
    for name, factor in found.launches[0].items():
        assert factor / same.launches[0][name] == pytest.approx(level)
    assert Scenario.model_validate(present.model_dump(mode="json")) == present
    if all(device.slowdown == 1 for device in present.cluster.devices):
        assert all(abs(factor - 1) <= NOISE_PERCENT / 100 + 1e-9 for factor in same.launches[0].values())


@given(percent=st.floats(-40, 90).filter(lambda percent: abs(abs(percent) - NOISE_PERCENT) > 1e-6))
def test_a_replay_predicts_for_the_lanes_as_they_are(tiny_scenario: Scenario, percent: float) -> None:
    """A lane beyond the noise has its table scaled, once: gauged again it is as it should be."""
    factors = [1.0, 1 + percent / 100]
    gauge = Gauged.by(asking(tiny_scenario, 2), lambda tasks: launch_of(tiny_scenario, factors, tasks))
    found, notes = gauge.at_present_speed()
    expected = factors if abs(percent) > NOISE_PERCENT else [1.0, 1.0]
    assert [device.slowdown for device in found.cluster.devices] == pytest.approx(expected)
    assert len(notes) == sum(each != 1.0 for each in expected)
    again = Drift.of(found, [launch_of(tiny_scenario, factors)]).percent
    assert max(map(abs, again.values())) <= NOISE_PERCENT


def test_no_plans_own_size_tells_of_its_drift(tiny_scenario: Scenario) -> None:
    subjects = [Subject({"sizes": [[17], [13]], "ranks": [0, 1]}, 0.05, [13, 17])]
    tasks = launch_tasks(tiny_scenario, subjects, [4], seed=0, launch=0)
    assert {task["micro_batch"] for task in tasks if task["op"] == "gauge"} <= {2, 5, 11, 23, 31}


def test_refined_tables_are_no_drift(tiny_scenario: Scenario) -> None:
    """Refining multiplies what plans take; bare passes take as long as before."""

    def refined(device: Device) -> Device:
        assert device.profile is not None
        points = [
            each.model_copy(update={"forward_s": 1.2 * each.forward_s, "backward_s": 0.9 * each.backward_s})
            for each in device.profile.points
        ]
        update = {"points": points, "forward_factor": 1.2, "backward_factor": 0.9}
        return device.model_copy(update={"profile": device.profile.model_copy(update=update)})

    nodes = [
        node.model_copy(update={"devices": [refined(device) for device in node.devices]})
        for node in tiny_scenario.cluster.nodes
    ]
    cluster = tiny_scenario.cluster.model_copy(update={"nodes": nodes})
    scenario = tiny_scenario.model_copy(update={"cluster": cluster})
    found = Drift.of(scenario, [launch_of(tiny_scenario, [1.0, 1.1])]).percent
    assert list(found.values()) == pytest.approx([0.0, 10.0], abs=1e-6)


def test_without_launches_for_it_tables_are_taken_as_they_are(tiny_scenario: Scenario) -> None:
    def refuse(tasks: Sequence[Task]) -> LaunchResult:
        raise AssertionError("nothing is to run")

    asked = asking(tiny_scenario, 0)
    assert Gauged.by(asked, refuse).at_present_speed() == (asked, [])


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_tables_that_are_far_off_are_not_scaled(tiny_scenario: Scenario, factor: float) -> None:
    asked = asking(tiny_scenario, 1)
    found, notes = Gauged.by(asked, lambda tasks: launch_of(asked, [1.0, factor], tasks)).at_present_speed()
    assert [device.slowdown for device in found.cluster.devices] == [1.0, 1.0]
    assert "calibrate again" in notes[0]


def test_lanes_without_a_size_in_common_are_not_gauged(tiny_scenario: Scenario) -> None:
    bare = without_profile(tiny_scenario)
    assert gauge_tasks(bare) == []
    assert Drift.of(bare, [LaunchResult([], [[], []])]).percent == {}
    asked = asking(bare, 1)
    assert Gauged.by(asked, lambda tasks: LaunchResult([], [[], []])).at_present_speed() == (asked, [])


def with_memory(scenario: Scenario, sizes: Sequence[float]) -> Scenario:
    """The scenario whose lanes have so many bytes."""
    (node,) = scenario.cluster.nodes
    devices = [
        each.model_copy(update={"memory_gib": size / GIB}) for each, size in zip(node.devices, sizes, strict=True)
    ]
    cluster = scenario.cluster.model_copy(update={"nodes": [node.model_copy(update={"devices": devices})]})
    return scenario.model_copy(update={"cluster": cluster})


@given(shares=st.lists(st.floats(0.1, 2.0), min_size=2, max_size=2))
def test_lanes_are_gauged_with_what_fits_and_who_has_no_room_is_named(
    tiny_scenario: Scenario, shares: list[float]
) -> None:
    """Room is reckoned by the plans' own formula, and a gauge holds weights and states once more."""
    most = peak_memory_bytes(tiny_scenario.workload, 31)
    scenario = with_memory(tiny_scenario, [share * most for share in shares])
    tasks, notes = gauge_tasks(scenario), not_gauged(scenario)
    gauged = [scenario.cluster.devices[rank] for task in tasks for rank in task["gauged"]]
    for device in scenario.cluster.devices:
        named = any(note.startswith(f"{device.name} is not gauged: ") for note in notes)
        assert named != (device in gauged)
    for task in tasks:
        needed = peak_memory_bytes(scenario.workload, task["micro_batch"])
        assert all(needed < device.memory_bytes for device in gauged)


def test_a_lane_without_room_keeps_its_table(tiny_scenario: Scenario) -> None:
    room = peak_memory_bytes(tiny_scenario.workload, 31)
    scenario = asking(with_memory(tiny_scenario, [4 * room, peak_memory_bytes(tiny_scenario.workload, 2)]), 1)

    def run(tasks: Sequence[Task]) -> LaunchResult:
        assert {tuple(task["gauged"]) for task in tasks} == {(0,)}
        found = launch_of(scenario, [1.5, 1.5], tasks)
        waiting = [{"steps": [], "quiet": []}] * (len(found.tasks) - 1)
        return LaunchResult(found.tasks, [found.answers[0], [*waiting, found.answers[1][-1]]])

    found, notes = Gauged.by(scenario, run).at_present_speed()
    assert [device.slowdown for device in found.cluster.devices] == pytest.approx([1.5, 1.0])
    assert [note.split(" ", 1)[0] for note in [*notes, *not_gauged(scenario)]] == ["full", "sse"]
    alone = Plan.data_parallel(scenario.workload, {"full": 30})
    assert Drift.of(scenario, [run(gauge_tasks(scenario))]).factors(alone) == []


def test_who_is_not_gauged_waits_meanwhile(tiny_scenario: Scenario, tmp_path: Path) -> None:
    room = peak_memory_bytes(tiny_scenario.workload, 31)
    tasks = gauge_tasks(with_memory(tiny_scenario, [room / 100, 4 * room]))
    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
    found = run_group(lanes_of(tiny_scenario), tasks, job, timeout_s=30.0, data=data)
    (names,) = [Drift.of(tiny_scenario, [found]).percent]
    assert list(names) == ["sse"]


def test_training_goes_on_as_if_it_had_not_been_gauged(tiny_scenario: Scenario, tmp_path: Path) -> None:
    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
    lane = lanes_of(tiny_scenario)[0]
    alone = {"lanes": [lane.model_dump(mode="json")], "rooms": [Room(lane).document], "tasks": [], "data": str(data)}

    def losses(*, gauged: bool) -> list[float]:
        member = Member({**job, **alone, "optimizer": "adamw"}, 0, tmp_path)
        found = [member.step([4], 4 * number, None, []) for number in range(3)]
        if gauged:
            gauge(member, gauge_tasks(tiny_scenario)[0])
        return found + [member.step([4], 4 * number, None, []) for number in range(3, 6)]

    assert losses(gauged=True) == losses(gauged=False)
