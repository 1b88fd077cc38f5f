"""Lanes become as slow as a scenario says, whatever a quota of so much less makes of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.launch import LaunchResult, Task
from steelyard.runner.pacing import LEAST_PACE, MOST_PACE, Pacing
from steelyard.sim.device import Device
from steelyard.sim.disturbances import Disturbance
from steelyard.sim.spec import Scenario

FACTOR = 3.0


def slowing(scenario: Scenario, *events: Disturbance) -> Scenario:
    events = events or (Disturbance(kind="slowdown", device="full", from_step=4, factor=FACTOR),)
    replay = scenario.replay.model_copy(update={"gauge_launches": 1})
    return scenario.model_copy(update={"disturbances": list(events), "replay": replay})


def work_s(device: Device, size: int) -> float:
    assert device.profile is not None
    return next(each.forward_s + each.backward_s for each in device.profile.points if each.micro_batch == size)


def gauged(scenario: Scenario, gained: float, but: Collection[int] = ()) -> tuple[Pacing, list[Task]]:
    """The pacing where whoever is slowed takes ``gained`` times as long, and what was asked of the workers."""
    seen: list[Task] = []

    def run(tasks: Sequence[Task], slowed: Collection[str]) -> LaunchResult:
        seen.extend(tasks)
        answers = []
        for rank, device in enumerate(scenario.cluster.devices):
            own = []
            for task in tasks:
                slow = "slow" in task and task["slow"][rank] > 1
                assert not slow or device.name in slowed
                seconds = work_s(device, task["micro_batch"]) * (gained if slow else 1.0)
                own.append({"steps": [[("forward", 0, 0.0, seconds, seconds, 0)]] * 3, "quiet": [True] * 3})
            answers.append(own)
        return LaunchResult(list(tasks), answers)

    return Pacing.by(scenario, run, but), seen


@given(share=st.floats(1 / MOST_PACE, 1 / LEAST_PACE))
def test_asking_for_what_it_says_gives_the_factor(tiny_scenario: Scenario, share: float) -> None:
    """A quota that gives so much of what is asked beyond 1: asked for the answer, it gives what the scenario says."""
    scenario = slowing(tiny_scenario)
    pacing, _ = gauged(scenario, 1 + share * (FACTOR - 1))
    slow = [own[0] for own in pacing.slowness()]
    assert slow[:4] == [1.0] * 4
    assert 1 + share * (slow[4] - 1) == pytest.approx(FACTOR)
    assert set(slow[4:]) == {slow[4]} == {pacing.asked["full"]}
    assert all(own[1] == 1.0 for own in pacing.slowness())
    (note,) = pacing.notes()
    assert f"{slow[4]:.2f} is asked instead" in note


def test_a_lane_that_is_far_off_is_corrected_by_no_more_than_its_limit(tiny_scenario: Scenario) -> None:
    for gained, limit in ((0.9, MOST_PACE), (1.0, MOST_PACE), (1.01, MOST_PACE), (100.0, LEAST_PACE)):
        pacing, _ = gauged(slowing(tiny_scenario), gained)
        assert pacing.slowness()[-1][0] == pytest.approx(1 + limit * (FACTOR - 1))
        (note,) = pacing.notes()
        assert "as far as a correction goes" in note


def test_a_drift_is_corrected_in_proportion_and_other_lanes_are_left_alone(tiny_scenario: Scenario) -> None:
    drift = Disturbance(kind="drift", device="sse", from_step=2, until_step=5, factor=FACTOR)
    every = [2, 5, 11, 17, 23, 31]
    pacing, seen = gauged(slowing(tiny_scenario), FACTOR, but=every)
    assert seen == []
    assert pacing.slowness()[-1][0] == FACTOR
    assert pacing.notes() == [
        "full is not gauged while it is slowed: no calibrated size that no plan has fits into its memory"
    ]
    pacing, seen = gauged(slowing(tiny_scenario, drift), 1 + 1.25 * (FACTOR - 1))
    said = [drift.factor_at(step) for step in range(tiny_scenario.sampling.steps)]
    assert [1 + 1.25 * (own[1] - 1) for own in pacing.slowness()] == pytest.approx(said)
    assert {tuple(task["slow"]) for task in seen if "slow" in task} == {(1.0, FACTOR)}


def test_no_size_of_a_plan_is_gauged_and_nothing_where_nobody_is_slowed(tiny_scenario: Scenario) -> None:
    _, seen = gauged(slowing(tiny_scenario), FACTOR, but=[11, 31])
    assert seen
    assert not {task["micro_batch"] for task in seen} & {11, 31}
    pacing, seen = gauged(slowing(tiny_scenario).model_copy(update={"disturbances": []}), FACTOR)
    assert seen == pacing.notes() == []
    assert {each for own in pacing.slowness() for each in own} == {1.0}
