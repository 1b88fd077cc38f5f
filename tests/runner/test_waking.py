"""Waking is read from blocks that were measured: what a wait adds to the work after it, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.launch import LaunchResult, Task
from steelyard.runner.waking import STEPS, waking_points, waking_tasks

SIZES = [2, 6, 10, 14, 18, 22, 26, 30, 34]
PER_SAMPLE, COLLECTIVE = (0.001, 0.003), 0.002


def work_s(rank: int, size: int) -> float:
    return 0.001 + PER_SAMPLE[rank] * size


def answer_of(task: Task, rank: int, asleep_s: float) -> Task:
    """Steps of a lane whose work after a wait takes ``asleep_s`` times the wait longer."""
    sizes = [each[0] for each in task["sizes"]]
    wait = max(work_s(other, size) for other, size in enumerate(sizes)) - work_s(rank, sizes[rank])
    step = [
        ("forward", 0, 0.0, work_s(rank, sizes[rank]) - 0.001 + asleep_s * wait, 0.0),
        ("communication", -1, 1.0, 1.0 + wait + COLLECTIVE, 0.0),
        ("optimizer", -1, 2.0, 2.001, 0.0),
    ]
    return {"steps": [step] * (STEPS + 1), "contended": 0.0, "retries": 0}


def measured(asleep_s: float) -> LaunchResult:
    profiles = [{"op": "profile", "micro_batch": size} for size in SIZES]
    blocks = waking_tasks(SIZES, 2)
    answers = [
        [
            *({"steps": [[("forward", 0, 0.0, work_s(rank, task["micro_batch"]), 0.0)]] * 3} for task in profiles),
            *(answer_of(task, rank, asleep_s) for task in blocks),
        ]
        for rank in (0, 1)
    ]
    return LaunchResult([*profiles, *blocks], answers)


def test_every_lane_comes_last_once_and_only_calibrated_sizes_are_used() -> None:
    tasks = waking_tasks(SIZES, 3)
    assert [max(range(3), key=lambda rank, task=task: task["sizes"][rank][0]) for task in tasks[:3]] == [0, 1, 2]
    assert {size for task in tasks for (size,) in task["sizes"]} <= set(SIZES)
    assert waking_tasks(SIZES, 1) == []


@given(asleep=st.floats(0.0, 0.2), launches=st.integers(1, 4))
def test_what_a_wait_adds_is_found(asleep: float, launches: int) -> None:
    for rank in (0, 1):
        points = waking_points([measured(asleep)] * launches, rank)
        assert points[0].blocked_s == pytest.approx(COLLECTIVE)
        assert [point.blocked_s for point in points] == sorted(point.blocked_s for point in points)
        for point in points:
            assert point.extra_s == pytest.approx(asleep * (point.blocked_s - COLLECTIVE), abs=1e-9)


def test_a_point_knows_the_size_of_its_step() -> None:
    used = {task["sizes"][1][0] for task in waking_tasks(SIZES, 2)}
    found = {point.micro_batch for point in waking_points([measured(0.1)], 1)}
    assert found
    assert found <= used


def test_a_lane_that_speeds_up_by_sleeping_is_noise() -> None:
    assert all(point.extra_s == 0 for point in waking_points([measured(-0.1)], 0))


def test_what_one_launch_does_not_show_is_noise() -> None:
    assert all(point.extra_s == 0 for point in waking_points([measured(0.1), measured(0.1), measured(-0.1)], 0))


def test_a_launch_without_such_blocks_has_no_table() -> None:
    whole = measured(0.1)
    plain = LaunchResult(whole.tasks[: len(SIZES)], [each[: len(SIZES)] for each in whole.answers])
    assert waking_points([plain], 0) == []
