"""What each launch's plans will take is written down between its gauge and its first plan, and at no other time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.compare import compare
from steelyard.results.record import digest
from steelyard.runner.gauge import Drift, gauge_tasks
from steelyard.runner.launch import Hold, LaunchResult, Task, run_group
from steelyard.runner.present import FILE, Present, at_known_speed, opening_tasks, sealed_steps_s
from steelyard.runner.protocol import Subject, launch_tasks
from steelyard.runner.replay import replay
from steelyard.runner.resolving import job_of
from steelyard.runner.runnable import lanes_of
from steelyard.sim.device import GIB, Device
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario

from .processes import workers

BLOCK = {"op": "block", "index": 0, "round": 0, "warmup": 1, "steps": 2, "offset": 0, "ranks": [0, 1]}


def asking(scenario: Scenario) -> Scenario:
    """The scenario with a launch to gauge its lanes."""
    return scenario.model_copy(update={"replay": scenario.replay.model_copy(update={"gauge_launches": 1})})


def changed(scenario: Scenario, **update: object) -> Scenario:
    """The scenario with its first device changed."""
    node = scenario.cluster.nodes[0]
    devices = [node.devices[0].model_copy(update=update), *node.devices[1:]]
    nodes = [node.model_copy(update={"devices": devices})]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def opening(scenario: Scenario, factors: Sequence[float], later: float = 1.0) -> LaunchResult:
    """A launch that begins with gauges of such lanes, and has others later that are of no account."""
    tasks: list[Task] = [*opening_tasks(scenario), *(4 * gauge_tasks(scenario))]
    return LaunchResult(tasks, [_answers(*each, tasks, later) for each in zip(lanes(scenario), factors, strict=True)])


def lanes(scenario: Scenario) -> Sequence[Device]:
    return scenario.cluster.devices


def _answers(device: Device, factor: float, tasks: Sequence[Task], later: float) -> list[Task]:
    assert device.profile is not None
    table = {each.micro_batch: each.forward_s + each.backward_s for each in device.profile.points}
    found = []
    for task in tasks:
        spent = table[task["micro_batch"]] * (factor if task.get("opening") else later)
        step = [("forward", 0, 0.0, spent / 3, spent / 3), ("backward", 0, spent / 3, spent, spent * 2 / 3)]
        found.append({"steps": [step] * 3, "quiet": [True] * 3})
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(each=st.lists(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_launch_is_predicted_at_the_speed_that_it_begins_with(
    tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory, each: list[list[float]]
) -> None:
    scenario, folder = asking(tiny_scenario), tmp_path_factory.mktemp("present")
    plans = {
        "even": Plan.data_parallel(scenario.workload, {"full": 15, "sse": 15}),
        "first": Plan.data_parallel(scenario.workload, {"full": 30}),
    }
    present = Present(scenario, {name: (plan, 0.25) for name, plan in plans.items()}, folder)
    launches = [opening(scenario, factors, later=3.0) for factors in each]
    before, begun = "", list[LaunchResult]()
    for launch in launches:
        hold = present.hold(launch.tasks)
        assert hold is not None
        first = LaunchResult(launch.tasks[: hold.after], [own[: hold.after] for own in launch.answers])
        begun.append(first)
        hold.look(first)
        text = (folder / FILE).read_text()
        assert text.startswith(before)
        before = text
    lines = [json.loads(line) for line in before.splitlines()]
    drift = Drift.of(scenario, begun)
    for number, (line, factors) in enumerate(zip(lines, each, strict=True)):
        assert line["launch"] == number
        assert line.pop("sha256") == digest(line)
        assert list(line["lanes"].values()) == pytest.approx(factors)
        for name, plan in plans.items():
            assert line["step_s"][name] == pytest.approx(0.25 * drift.factors(plan)[number])
        assert min(factors) - 1e-9 <= line["step_s"]["first"] / 0.25 <= max(factors) + 1e-9
    alone = Drift.of(scenario, launches).factors(plans["even"])
    assert alone != pytest.approx(drift.factors(plans["even"]))  # later gauges are of no account


@given(
    launches=st.lists(st.lists(st.floats(-0.2, 0.2), min_size=3, max_size=3), min_size=1, max_size=4),
    shifts=st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_where_the_speed_of_a_launch_is_known_only_what_lies_within_launches_is_noise(
    tiny_scenario: Scenario, launches: list[list[float]], shifts: list[float]
) -> None:
    def with_noise(residuals: list[float], groups: int) -> Scenario:
        (node,) = tiny_scenario.cluster.nodes
        update = {"launch_residuals": residuals, "launch_groups": groups}
        devices = [
            device.model_copy(update={"profile": device.profile and device.profile.model_copy(update=update)})
            for device in node.devices
        ]
        nodes = [node.model_copy(update={"devices": devices})]
        return tiny_scenario.model_copy(update={"cluster": tiny_scenario.cluster.model_copy(update={"nodes": nodes})})

    def left(residuals: list[float], groups: int = 3) -> list[float]:
        known = at_known_speed(with_noise(residuals, groups))
        assert known is not None
        profile = known.cluster.devices[0].profile
        assert profile is not None
        return profile.launch_residuals

    own = [each for launch in launches for each in launch]
    if len(launches) == 1:
        assert at_known_speed(with_noise(own, 3)) is None
        return
    found = left(own)
    moved = [each + shift for launch, shift in zip(launches, shifts, strict=False) for each in launch]
    assert left(moved) == pytest.approx(found, abs=1e-9)
    assert len(found) == 2 * len(launches)
    deviations = [each - sum(launch) / 3 for launch in launches for each in launch]
    gauged = 1 + 3  # blocks of a plan, and of a gauge that is made within one
    assert sum(each**2 for each in found) == pytest.approx(gauged * sum(each**2 for each in deviations), abs=1e-12)
    assert at_known_speed(with_noise(own, 1)) is None


@pytest.mark.parametrize("damage", ["short", "changed", "missing", "in another place", "nothing", "no line"])
def test_what_is_not_whole_counts_as_not_written_down(tiny_scenario: Scenario, tmp_path: Path, damage: str) -> None:
    scenario = asking(tiny_scenario)
    plan = Plan.data_parallel(scenario.workload, {"full": 15, "sse": 15})
    present = Present(scenario, {"even": (plan, 0.25)}, tmp_path)
    for factor in (1.0, 1.1, 1.2):
        launch = opening(scenario, [factor, factor])
        hold = present.hold(launch.tasks)
        assert hold is not None
        hold.look(LaunchResult(launch.tasks[: hold.after], [own[: hold.after] for own in launch.answers]))
    known = [each["even"] for each in sealed_steps_s(tmp_path, 2)]  # the third launch was not complete
    assert known == pytest.approx([0.25, 0.275], rel=0.02)
    lines = (tmp_path / FILE).read_text().splitlines()
    lines[1] = {
        "short": lines[1][:40],
        "changed": lines[1].replace('"even": 0.2', '"even": 0.3'),
        "missing": lines[2],
        "in another place": lines[0],
        "nothing": "",
        "no line": "[1]",
    }[damage]
    (tmp_path / FILE).write_text("".join(f"{line}\n" for line in lines))
    assert sealed_steps_s(tmp_path, 2) == []
    assert sealed_steps_s(tmp_path / "elsewhere", 1) == []


def test_launches_begin_with_gauges_where_all_lanes_can_hold(tiny_scenario: Scenario) -> None:
    scenario = asking(tiny_scenario)
    subjects = [Subject({"sizes": [[17], [13]], "ranks": [0, 1]}, 1.0, [13, 17])]
    tasks = launch_tasks(scenario, subjects, [4], seed=0, launch=0)
    begun = [bool(task.get("opening")) for task in tasks]
    assert begun.index(False) == sum(begun) > 0
    assert all(task["micro_batch"] not in (13, 17) for task in tasks if task.get("opening"))
    lane = scenario.cluster.devices[0].lane
    assert lane is not None
    for other in (
        tiny_scenario,  # it gauges nothing
        changed(scenario, memory_gib=1e-9 / GIB),
        changed(scenario, lane=lane.model_copy(update={"machine": "elsewhere"})),
    ):
        assert not opening_tasks(other)
        assert Present(other, {}, Path()).hold(launch_tasks(other, subjects, [4], seed=0, launch=0)) is None


@pytest.mark.slow
def test_no_plan_runs_before_the_driver_has_looked(tiny_scenario: Scenario, tmp_path: Path) -> None:
    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
    tasks = [*opening_tasks(asking(tiny_scenario)), {**BLOCK, "sizes": [[15], [15]]}]
    looked: list[tuple[float, LaunchResult]] = []

    def look(found: LaunchResult) -> None:
        time.sleep(0.5)
        looked.append((time.monotonic(), found))

    hold = Hold(len(tasks) - 1, look)
    launch = run_group(lanes_of(tiny_scenario), tasks, job, timeout_s=30.0, data=data, hold=hold)
    ((at_s, found),) = looked
    assert len(found.tasks) == len(tasks) - 1
    assert [own[: hold.after] for own in launch.answers] == [list(own) for own in found.answers]
    ends = [segment[3] for own in found.answers for answer in own for step in answer["steps"] for segment in step]
    begins = [segment[2] for own in launch.answers for step in own[-1]["steps"] for segment in step]
    assert max(ends) < at_s < min(begins)


@pytest.mark.slow
def test_a_driver_that_cannot_write_it_down_runs_no_plan(tiny_scenario: Scenario, tmp_path: Path) -> None:
    job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
    tasks = [*opening_tasks(asking(tiny_scenario))[:1], {**BLOCK, "sizes": [[15], [15]]}]

    def look(found: LaunchResult) -> None:
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        run_group(lanes_of(tiny_scenario), tasks, job, timeout_s=30.0, data=data, hold=Hold(1, look))
    assert not workers()


@pytest.mark.slow
def test_a_replay_seals_the_predictions_of_every_launch(tiny_scenario: Scenario, tmp_path: Path) -> None:
    scenario = asking(tiny_scenario)
    study = replay(scenario, [make_policy("uniform"), make_policy("linear-cost")], tmp_path / "runs")
    lines = [json.loads(line) for line in (study.folder / FILE).read_text().splitlines()]
    assert [line["launch"] for line in lines] == list(range(scenario.replay.launches))
    predicted_s = {run.manifest.run_id: run.summary.step_time_s.p50 for run in study.predicted}
    for run in study.measured:
        factors = run.manifest.provenance["contention"]["foretold_factors"]
        assert run.manifest.predicted_run_id is not None
        sealed_s = predicted_s[run.manifest.predicted_run_id]
        for line, factor in zip(lines, factors, strict=True):
            assert line["step_s"][run.manifest.label] == pytest.approx(sealed_s * factor)
    found = compare(study.runs).steadied
    assert found is not None
    assert found.foretold
