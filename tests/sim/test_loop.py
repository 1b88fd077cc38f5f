"""The event loop on programs made by hand: sums, periods, bounds, messages, shared links, and what is recorded."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import engine, loop
from steelyard.sim.network import Transfer
from steelyard.sim.program import Beside, Loader, Program, Sync
from steelyard.sim.running import Factors, Launch

FEW = settings(max_examples=40)
seconds = st.floats(1e-6, 10.0)
Cluster = tuple[list[tuple[list[float], list[float], float]], float]
"""Of each device the seconds of its forwards, its backwards and its update; and those of the all-reduce."""


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """One to five devices with any times, and the seconds of their all-reduce."""
    devices = []
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 4))
        times = [draw(st.lists(seconds, min_size=count, max_size=count)) for _ in range(2)]
        devices.append((times[0], times[1], draw(seconds)))
    return devices, draw(seconds)


@pytest.fixture(scope="session")
def launch(build: Any, reference: ModuleType) -> Any:
    """Runs devices side by side: a pipeline of one stage each, and an all-reduce of all."""

    def run(cluster: Cluster, steps: int = 5, record: bool = True) -> Launch:
        devices, sync_s = cluster
        pipes = [
            reference.Pipe(
                f"device{number}-", "1f1b", 1, [forward], [backward], [0.0], [[0.0] * len(forward)], [update]
            )
            for number, (forward, backward, update) in enumerate(devices)
        ]
        members = [(number, 0) for number in range(len(pipes))]
        program = build.program(pipes, [(members, sync_s)] if len(pipes) > 1 else [])
        result: Launch = build.execute(program, steps=steps, record=record)
        return result

    return run


def busy_s(device: tuple[list[float], list[float], float]) -> float:
    return sum(device[0]) + sum(device[1]) + device[2]


@FEW
@given(clusters())
def test_one_device_takes_the_sum_of_its_parts(launch: Any, cluster: Cluster) -> None:
    devices, sync_s = cluster
    result = launch((devices[:1], sync_s))
    assert engine.step_durations([result]) == pytest.approx([busy_s(devices[0])] * 4, rel=1e-9)


def test_one_device_takes_exactly_the_sum_of_its_parts(launch: Any) -> None:
    """Powers of two add without rounding: the equality is exact."""
    assert engine.step_durations([launch(([([0.5, 0.25], [1.0, 0.5], 0.125)], 1.0))]) == [2.375] * 4


@FEW
@given(clusters())
def test_period_is_the_slowest_device_plus_the_all_reduce(launch: Any, cluster: Cluster) -> None:
    """All leave the all-reduce together; device k is back after its optimizer, forward and backward: busy_k later.

    The next all-reduce starts with the last, so its ends are max_k busy_k + sync apart, from the first step on; and so
    are the ends of the steps, which are the same max_k optimizer_k behind it.
    """
    devices, sync_s = cluster
    period = max(map(busy_s, devices)) + (sync_s if len(devices) > 1 else 0.0)
    assert engine.step_durations([launch(cluster)]) == pytest.approx([period] * 4, rel=1e-9)


@FEW
@given(clusters())
def test_step_lies_between_each_device_alone_and_all_in_a_row(launch: Any, cluster: Cluster) -> None:
    devices, sync_s = cluster
    step_s = engine.step_durations([launch(cluster)])[-1] * (1 + 1e-9)
    assert all(step_s >= busy_s(device) for device in devices)
    assert step_s <= (sum(map(busy_s, devices)) + sync_s) * (1 + 2e-9)


@FEW
@given(clusters())
def test_the_last_to_enter_waits_for_nobody(launch: Any, cluster: Cluster) -> None:
    """Whoever waits has a row of kind wait; in each step one device has none, and all get out together."""
    devices, _ = cluster
    result = launch(cluster)
    for step in range(5):
        rows = [row for row in result.events if row[2] == step]
        waiting = {row[3] for row in rows if row[7] == "wait"}
        ends = {row[9] for row in rows if row[7] == "communication"}
        assert len(waiting) < len(devices)
        assert len(ends) == (len(devices) > 1)


@FEW
@given(clusters())
def test_a_device_does_one_thing_at_a_time_without_a_gap(launch: Any, cluster: Cluster) -> None:
    devices, _ = cluster
    clock = {f"device{number}-0": 0.0 for number in range(len(devices))}
    for _, _, _, device, _, _, _, _, start, end, _ in launch(cluster).events:
        assert start == clock[device]
        assert end > start
        clock[device] = end


@FEW
@given(clusters(), st.floats(1e-3, 1e3))
def test_all_times_scaled_scale_the_step(launch: Any, cluster: Cluster, factor: float) -> None:
    devices, sync_s = cluster
    scaled = [
        ([factor * each for each in forward], [factor * each for each in backward], factor * update)
        for forward, backward, update in devices
    ]
    expected = [factor * each for each in launch(cluster).ends]
    assert launch((scaled, factor * sync_s)).ends == pytest.approx(expected, rel=1e-9)


@FEW
@given(clusters())
def test_free_links_equal_no_links(launch: Any, cluster: Cluster) -> None:
    """With an all-reduce that takes no time the step is that of the slowest device on its own."""
    devices, _ = cluster
    alone = max(engine.step_durations([launch(([device], 0.0))])[-1] for device in devices)
    assert engine.step_durations([launch((devices, 0.0))])[-1] == pytest.approx(alone, rel=1e-9)


@FEW
@given(clusters(), st.randoms(use_true_random=False))
def test_the_order_of_devices_changes_nothing(launch: Any, cluster: Cluster, random: Any) -> None:
    devices, sync_s = cluster
    shuffled = random.sample(devices, len(devices))
    assert launch((shuffled, sync_s)).ends == launch(cluster).ends


@FEW
@given(clusters())
def test_what_is_not_recorded_takes_as_long(launch: Any, cluster: Cluster) -> None:
    silent = launch(cluster, record=False)
    assert silent.events is None
    assert silent.ends == launch(cluster).ends


# Noise


@FEW
@given(st.lists(st.floats(0.25, 4.0), min_size=12, max_size=12), st.lists(st.floats(0.25, 4.0), min_size=3, max_size=3))
def test_factors_stretch_the_pieces_of_their_micro_batch(
    build: Any, reference: ModuleType, compute: list[float], update: list[float]
) -> None:
    """Two chunks of two micro-batches in three steps: forward and backward of one have the same factor."""
    pipe = reference.Pipe(
        "p", "gpipe", 1, [[1.0, 2.0], [4.0, 8.0]], [[3.0] * 2, [5.0] * 2], [0.0] * 2, [[0.0] * 2] * 2, [7.0]
    )
    factors = Factors(compute={"p0": compute}, optimizer={"p0": update})
    ends = build.execute(build.program([pipe]), factors, steps=3).ends
    work = [4.0, 5.0, 9.0, 13.0]
    steps = [
        sum(a * b for a, b in zip(work, compute[4 * step :], strict=False)) + 7.0 * update[step] for step in range(3)
    ]
    assert ends == pytest.approx([sum(steps[: step + 1]) for step in range(3)], rel=1e-12)


# Shared links: the fluid model as the loop drives it


def two_senders(
    build: Any, reference: ModuleType, starts: tuple[float, float], volumes: tuple[float, float]
) -> Program:
    """Two pipelines whose only message starts and weighs so much, all on one link of a byte per second."""
    pipes = [
        reference.Pipe(
            f"{label}-", "gpipe", 2, [[start], [0.5]], [[0.25], [0.0]], [0.0, 0.0], [[volume], [0.0]], [0.0] * 2
        )
        for label, start, volume in zip("ab", starts, volumes, strict=True)
    ]
    program = build.program(pipes)

    def on_one(job: Any) -> Any:
        sends = [
            dataclasses.replace(send, transfer=Transfer(0.0, volume, ((0, 1.0),), volume, "profiled"))
            for send in job.sends
            for volume in [send.transfer.volume_bytes]
        ]
        return dataclasses.replace(job, sends=tuple(sends))

    workers = [
        dataclasses.replace(
            worker,
            jobs=(
                tuple(tuple(on_one(job) for job in chunk) for chunk in worker.jobs[0]),
                tuple(
                    tuple(dataclasses.replace(job, sends=_free(job.sends)) for job in chunk) for chunk in worker.jobs[1]
                ),
            ),
        )
        for worker in program.workers
    ]
    return dataclasses.replace(program, workers=tuple(workers), capacities=(1.0,))


def _free(sends: Any) -> Any:
    return tuple(dataclasses.replace(send, transfer=Transfer(0.0, 0.0, (), 0.0, "profiled")) for send in sends)


def arrivals(launch: Launch) -> list[float]:
    """When the second worker of each pipeline began its forward pass."""
    assert launch.events is not None
    begins = {row[3]: row[8] for row in launch.events if row[7] == "forward" and row[3].endswith("1")}
    return [begins["a-1"], begins["b-1"]]


def test_a_long_and_a_short_flow_share_fairly(build: Any, reference: ModuleType) -> None:
    """Four bytes from 1 on, one byte from 3 on, one byte a second.

    Alone from 1 to 3, the long flow moves 2; then each gets a half: the short one is through at 5, when the long one
    has 1 left, and ends at 6.
    """
    assert arrivals(build.execute(two_senders(build, reference, (1.0, 3.0), (4.0, 1.0)), steps=1)) == [6.0, 5.0]


def test_two_equal_flows_at_once_take_twice_as_long(build: Any, reference: ModuleType) -> None:
    assert arrivals(build.execute(two_senders(build, reference, (1.0, 1.0), (4.0, 4.0)), steps=1)) == [9.0, 9.0]


def test_flows_one_after_the_other_do_not_meet(build: Any, reference: ModuleType) -> None:
    assert arrivals(build.execute(two_senders(build, reference, (1.0, 5.0), (4.0, 4.0)), steps=1)) == [5.0, 9.0]


@FEW
@given(starts=st.tuples(seconds, seconds), volumes=st.tuples(seconds, seconds))
def test_two_flows_on_one_link_by_formula(
    build: Any, reference: ModuleType, starts: tuple[float, float], volumes: tuple[float, float]
) -> None:
    """The later one, or the shorter of what is left, decides when sharing begins and ends."""
    first, second = sorted((0, 1), key=lambda number: starts[number])
    done = min(volumes[first], starts[second] - starts[first])
    left = volumes[first] - done
    ends = [0.0, 0.0]
    if left <= volumes[second]:
        ends[first] = max(starts[second], starts[first] + volumes[first]) if left == 0 else starts[second] + 2 * left
        ends[first] = starts[first] + volumes[first] if left == 0 else ends[first]
        ends[second] = starts[second] + volumes[second] + left
    else:
        ends[second] = starts[second] + 2 * volumes[second]
        ends[first] = starts[second] + left + volumes[second]
    found = arrivals(build.execute(two_senders(build, reference, starts, volumes), steps=1))
    assert found == pytest.approx(ends, rel=1e-9)


# Collectives beside the backward pass


def with_beside(program: Program, syncs: list[tuple[float, float]]) -> Program:
    """Every worker enters collectives beside its last backward pass: (rest, seconds) of each."""
    everybody = tuple(range(len(program.workers)))
    made = [Sync(everybody, Transfer(0.0, 0.0, (), s, "profiled"), beside=True) for _, s in syncs]
    beside = tuple(Beside(number, 0, rest) for number, (rest, _) in enumerate(syncs))
    workers = [dataclasses.replace(worker, beside=beside, after=()) for worker in program.workers]
    return dataclasses.replace(program, workers=tuple(workers), syncs=tuple(made))


@FEW
@given(
    backward=st.lists(seconds, min_size=2, max_size=4),
    syncs=st.lists(st.tuples(st.floats(0, 12), seconds), min_size=1, max_size=5),
    update=seconds,
)
def test_collectives_beside_the_backward_pass(
    build: Any, reference: ModuleType, backward: list[float], syncs: list[tuple[float, float]], update: float
) -> None:
    """Each begins when its gradients are complete everywhere (not before the pass) and the one before is over."""
    pipes = [
        reference.Pipe(f"{number}-", "1f1b", 1, [[1.0]], [[each]], [0.0], [[0.0]], [update])
        for number, each in enumerate(backward)
    ]
    program = with_beside(build.program(pipes), syncs)
    over = 0.0
    for rest, each_s in syncs:
        over = max(over, *(1.0 + max(0.0, each - rest) for each in backward)) + each_s
    end = max(over, 1.0 + max(backward)) + update
    assert build.execute(program, steps=1).ends == pytest.approx([end], rel=1e-9)
    exposed = [row for row in loop.run_launch(program, steps=1).events or [] if row[7] in ("wait", "communication")]
    first = min(backward)
    spent = sum(row[9] - row[8] for row in exposed if row[3] == f"{backward.index(first)}-0")
    assert spent == pytest.approx(max(0.0, over - 1.0 - first), abs=1e-9)


# The input pipeline


@FEW
@given(
    rate=st.floats(0.1, 10.0),
    forward=st.lists(seconds, min_size=1, max_size=6),
    update=st.one_of(st.just(0.0), seconds),
)
def test_the_slower_of_loader_and_device_sets_the_pace(
    build: Any, reference: ModuleType, rate: float, forward: list[float], update: float
) -> None:
    """D/D/1: the long-run period is the longer of the two; as little is loaded ahead, they may add up."""
    pipe = reference.Pipe("p", "1f1b", 1, [forward], [[0.0] * len(forward)], [0.0], [[0.0] * len(forward)], [update])
    program = build.program([pipe])
    loader = Loader(rate, tuple((0, number, 1) for number in range(len(forward))))
    workers = (dataclasses.replace(program.workers[0], loader=0),)
    launch = build.execute(dataclasses.replace(program, workers=workers, loaders=(loader,)), steps=20)
    period = (launch.ends[-1] - launch.ends[9]) / 10
    loading, working = len(forward) / rate, sum(forward) + update
    assert period >= max(loading, working) * (1 - 1e-9)
    assert period <= (loading + working) * (1 + 1e-9)
    if len(set(forward)) == 1 and update == 0:
        assert period == pytest.approx(max(loading, working), rel=1e-9)
    lines = build.ledgers(launch, ["p0"])["p0"]
    assert lines.compute_s == pytest.approx(sum(forward), rel=1e-9)
    assert lines.total_s() == pytest.approx((launch.ends[-1] - launch.ends[0]) / 19, rel=1e-9)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_an_event_at_a_moment_is_never_before_it(start: float, ahead: float) -> None:
    """Who comes back when something is over must find it over; delays are rounded, so it may be a rounding later."""
    env = simpy.Environment(start)
    loop.until(env, start + ahead)
    env.run()
    assert start + ahead <= env.now <= start + ahead + 2 * math.ulp(start + ahead)
