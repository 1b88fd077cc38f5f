"""Waking: what a member pays after a wait; never for devices without a table, never more than its wait allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import (
    Cluster,
    CollectivePoint,
    CollectiveTable,
    Device,
    Link,
    Node,
    Profile,
    ProfilePoint,
    WakePoint,
)
from steelyard.sim.disturbances import slowed
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed
from steelyard.sim.waking import extra_s, extras
from steelyard.sim.workload import Layer, Model, Operator, Workload


def table(*pairs: tuple[float, float]) -> list[WakePoint]:
    return [WakePoint(blocked_s=blocked, extra_s=extra) for blocked, extra in pairs]


TABLE = table((0.002, 0.0005), (0.02, 0.004), (0.06, 0.005))
TABLES = st.lists(st.tuples(st.floats(1e-4, 0.2), st.floats(0, 0.02)), max_size=5, unique_by=lambda pair: pair[0]).map(
    lambda pairs: table(*zip(sorted(b for b, _ in pairs), sorted(e for _, e in pairs), strict=True))
)


def test_straight_to_and_between_the_points_and_level_beyond_them() -> None:
    assert extra_s([], 1.0) == 0.0
    assert extra_s(TABLE, 0.0) == 0.0
    assert extra_s(TABLE, 0.001) == pytest.approx(0.00025)
    assert extra_s(TABLE, 0.002) == 0.0005
    assert extra_s(TABLE, 0.02) == 0.004
    assert extra_s(TABLE, 0.011) == pytest.approx(0.00225)
    assert extra_s(TABLE, 9.0) == 0.005


@given(work=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=5), collective=st.floats(1e-4, 0.05), data=st.data())
def test_who_waits_pays_no_more_than_its_wait(work: list[float], collective: float, data: st.DataObject) -> None:
    tables = [data.draw(TABLES) for _ in work]
    found = extras(work, collective, tables)
    ends = [seconds + extra for seconds, extra in zip(work, found, strict=True)]
    last = max(seconds + extra_s(points, collective) for seconds, points in zip(work, tables, strict=True))
    assert max(ends) <= last + 1e-9
    for end, extra, points in zip(ends, found, tables, strict=True):
        assert extra >= 0
        if points and end < last - 1e-6:  # it waits: what it pays is what its own wait costs
            assert extra == pytest.approx(extra_s(points, last - end + collective), abs=1e-6)


@given(work=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=5), collective=st.floats(1e-4, 0.05))
def test_without_tables_nobody_pays(work: list[float], collective: float) -> None:
    assert extras(work, collective, [[] for _ in work]) == [0.0] * len(work)


def scenario_of(waking: list[WakePoint]) -> Scenario:
    operator = Operator(kind="matmul", flops=[1e6], elements=[100.0])
    layer = Layer(
        name="layer",
        parameters=1000,
        trainable_parameters=1000,
        forward=[operator],
        backward=[operator],
        activation_elements=[100.0],
        output_elements=[10.0],
    )
    workload = Workload(model=Model(name="tiny", layers=[layer]), global_batch=32)
    points = [ProfilePoint(micro_batch=n, forward_s=1e-3 * (1 + n), backward_s=2e-3 * (1 + n)) for n in (1, 8, 32)]
    profile = Profile(workload=workload.key, points=points, optimizer_s=1e-3, waking=waking)
    devices = [
        Device(
            name=name,
            peak_tflops={"fp32": 1},
            memory_gib=1,
            memory_bandwidth_gb_per_s=10,
            profile=profile,
            overlaps=False,
        )
        for name in ("left", "right")
    ]
    sizes = [CollectivePoint(bytes=size, seconds=2e-3) for size in (1000, 100_000)]
    cluster = Cluster(
        nodes=[Node(name="here", devices=devices, link=Link(name="host", latency_us=1, bandwidth_gb_per_s=10))],
        collectives=[CollectiveTable(backend="gloo", devices=["left", "right"], points=sizes)],
    )
    return Scenario(name="waking", cluster=cluster, workload=workload)


@pytest.mark.parametrize("split", [(16, 16), (20, 12), (32, 0)])
def test_the_step_grows_by_what_the_last_to_come_pays(split: tuple[int, int]) -> None:
    """It is blocked for the collective alone; a plan without a collective never sleeps."""
    times = []
    for waking in ([], TABLE):
        scenario = scenario_of(waking)
        plan = Plan.data_parallel(scenario.workload, dict(zip(("left", "right"), split, strict=True)))
        times.append(simulate(scenario, Fixed(plan)).summary.step_time_s.p50)
    collective = 2e-3
    paid = extra_s(TABLE, collective) if 0 not in split else 0.0
    assert times[1] - times[0] == pytest.approx(paid, abs=1e-9)


@given(factor=st.floats(0.25, 4.0))
def test_a_lane_so_many_times_as_slow_wakes_as_many_times_as_slowly(factor: float) -> None:
    """All work of the step is that many times as long; the collective, by which it was blocked, is as it was."""
    scenario = scenario_of(TABLE)
    plan = Plan.data_parallel(scenario.workload, {"left": 16, "right": 16})
    slow = scenario.model_copy(update={"cluster": slowed(scenario.cluster, {"left": factor, "right": factor})})
    times = [simulate(each, Fixed(plan)).summary.step_time_s.p50 for each in (scenario, slow)]
    collective = 2e-3
    assert times[1] - collective == pytest.approx(factor * (times[0] - collective))


def test_a_device_alone_never_waits() -> None:
    scenario = scenario_of(TABLE)
    plan = Plan.data_parallel(scenario.workload, {"left": 32})
    assert compile_plan(scenario, plan) == compile_plan(scenario_of([]), plan)
