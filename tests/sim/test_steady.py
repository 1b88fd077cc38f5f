"""Steady: micro-batches that are left out of a step were like those that are simulated, and only such are left out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import loop, recurrence, steady
from steelyard.sim.compiler import compile_plan
from steelyard.sim.plan import Plan
from steelyard.sim.running import Factors
from steelyard.sim.schedule import Piece, order
from steelyard.sim.spec import Scenario

ALL_STEPS = Factors(syncs={-1: []})
"""Noise of nothing: every step and every micro-batch is simulated."""
EACH = 1e9 / 4
"""Elements that a link of 1 GB/s takes a second for."""


@st.composite
def long_steps(draw: st.DrawFn) -> dict[str, Any]:
    """Pipelines of many micro-batches; those of several pipelines share the adapters of a machine, or do not."""
    schedule = draw(st.sampled_from(["gpipe", "1f1b", "1f1b", "interleaved"]))
    workers, chunks = draw(st.integers(1, 4)), 1
    if schedule == "interleaved" and workers > 1:
        chunks = draw(st.integers(2, 3))
    turns = draw(st.integers(60, 130))
    equal = draw(st.booleans())
    times = [1.0] * workers * chunks if equal else [draw(st.floats(0.2, 2.0)) for _ in range(workers * chunks)]
    return {
        "schedule": schedule if workers > 1 else "gpipe",
        "workers": workers,
        "micro_batches": turns // workers * workers if schedule == "interleaved" else turns,
        "pipelines": draw(st.integers(1, 3)),
        "times": times,
        "links": {
            "outputs": EACH * draw(st.sampled_from([0.01, 0.2, 1.5])),
            "latencies": draw(st.sampled_from([0.0, 0.1, 2.0])),
            "together": draw(st.booleans()),
        },
        "overlaps": draw(st.booleans()),
    }


def made(build: Any, job: dict[str, Any]) -> tuple[Scenario, Plan]:
    """Worker w of all pipelines on one machine, where they are together."""
    workers, count, times = job["workers"], job["pipelines"], job["times"]
    devices = [
        build.device(f"d{w}-{p}", times, [2 * each for each in times], overlaps=job["overlaps"])
        for w in range(workers)
        for p in range(count)
    ]
    scenario = build.scenario(
        devices,
        batch=job["micro_batches"] * count,
        per_node=count if job["links"]["together"] else 1,
        outputs=job["links"]["outputs"],
        latencies=job["links"]["latencies"],
        gb_per_s=1.0,
    )
    names = [[f"d{stage % workers}-{p}" for stage in range(len(times))] for p in range(count)]
    pipelines = [build.pipeline(range(len(times) + 1), own, [1] * job["micro_batches"]) for own in names]
    plan = Plan(pipelines=pipelines, schedule=job["schedule"])
    plan.check(scenario)
    return scenario, plan


@settings(max_examples=60)
@given(long_steps())
def test_steps_with_and_without_their_middle_are_the_same(build: Any, job: dict[str, Any]) -> None:
    """Both engines, free links and shared ones, against the loop that simulates every micro-batch."""
    scenario, plan = made(build, job)
    program = compile_plan(scenario, plan)
    expected = loop.run_launch(program, ALL_STEPS, steps=2, record=False).ends
    assert loop.run_launch(program, steps=2, record=False).ends == pytest.approx(expected, rel=1e-9)
    if recurrence.applies(program):
        other = recurrence.run_launch(program, steps=2, record=False)
        assert other is None or other.ends == pytest.approx(expected, rel=1e-9)
        whole = recurrence.run_launch(program, ALL_STEPS, steps=2, record=False)
        assert (other is None) == (whole is None)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
@pytest.mark.parametrize("together", [False, True])
def test_long_steps_are_no_more_events_than_short_ones(build: Any, schedule: str, together: bool) -> None:
    """What is left out is left out: the same number of pieces whatever the number of micro-batches."""
    pieces = []
    for count in (800, 1600):
        job = {
            "schedule": schedule,
            "workers": 4,
            "micro_batches": count,
            "pipelines": 2,
            "times": [1.0] * (8 if schedule == "interleaved" else 4),
            "links": {"outputs": EACH * 0.2, "latencies": 0.1, "together": together},
            "overlaps": True,
        }
        program = compile_plan(*made(build, job))
        run = loop._Run(program, Factors(), steps=1, launch=0, record=False)
        run.run()
        pieces.append(sum(len(process.todo) for process in run.processes))
        assert run.watch.skipped_s > 0
    assert max(pieces) < 8 * 2 * 800
    assert pieces[1] - pieces[0] <= max(pieces) / 10


def test_nothing_is_left_out_of_a_record(build: Any) -> None:
    job = {
        "schedule": "1f1b",
        "workers": 3,
        "micro_batches": 90,
        "pipelines": 1,
        "times": [1.0, 1.2, 0.9],
        "links": {"outputs": EACH * 0.2, "latencies": 0.1, "together": False},
        "overlaps": True,
    }
    program = compile_plan(*made(build, job))
    for run_launch in (loop.run_launch, recurrence.run_launch):
        launch = run_launch(program, steps=1, record=True)
        assert launch is not None
        assert sum(row[7] in {"forward", "backward"} for row in launch.events or []) == 2 * 3 * 90


# Cycles


@given(
    kind=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    workers=st.integers(1, 5),
    chunks=st.integers(1, 3),
    turns=st.integers(1, 24),
    data=st.data(),
)
def test_cycles_recur_in_the_order(kind: Any, workers: int, chunks: int, turns: int, data: st.DataObject) -> None:
    """Piece by piece the same work, some micro-batches later; and nearly all of a long step is in cycles."""
    chunks = 1 if kind != "interleaved" or workers == 1 else chunks  # gpipe with several has no phases
    count = turns * workers if kind == "interleaved" else turns
    if kind == "interleaved" and chunks == 1:
        kind = "1f1b"
    position = data.draw(st.integers(0, workers - 1))
    pieces = order(kind, workers, position, chunks, count)
    worker = _Shape(stages=tuple(range(chunks)), classes=(0,) * count, pieces=pieces)
    found = steady.cycles(worker, workers)  # type: ignore[arg-type]
    for each in found:
        assert each.first + each.total * each.length <= len(pieces)
        for place in range(each.first, each.first + (each.total - 1) * each.length):
            now, later = pieces[place], pieces[place + each.length]
            assert later == now._replace(micro_batch=now.micro_batch + each.shift)
    outside = len(pieces) - sum(each.total * each.length for each in found)
    assert outside <= 4 * chunks * workers


class _Shape:
    """What cycles need to know of a worker."""

    def __init__(self, stages: tuple[int, ...], classes: tuple[int, ...], pieces: tuple[Piece, ...]) -> None:
        self.stages, self.classes, self.pieces = stages, classes, pieces


@given(
    kind=st.sampled_from(["gpipe", "1f1b"]),
    workers=st.integers(1, 4),
    count=st.integers(10, 30),
    data=st.data(),
)
def test_leaving_out_leaves_the_order_of_fewer_micro_batches(
    kind: Any, workers: int, count: int, data: st.DataObject
) -> None:
    for position in range(workers):
        pieces = order(kind, workers, position, 1, count)
        worker = _Shape(stages=(0,), classes=(0,) * count, pieces=pieces)
        cycles = steady.cycles(worker, workers)  # type: ignore[arg-type]
        out = data.draw(st.integers(0, cycles[0].total - 1))
        done = data.draw(st.integers(0, cycles[0].total - 1 - out))
        tasks = [(place, piece, 100 * piece.backward + piece.micro_batch) for place, piece in enumerate(pieces)]
        # from the last phase to the first, since places are those of the whole order
        for each in reversed(cycles):
            phase = steady.Phase((each.first,), each.length, each.shift, each.total)
            steady.leave_out(tasks, each.first + done * each.length, out, phase)
        assert [task[1] for task in tasks] == list(order(kind, workers, position, 1, count - out))
        assert [task[2] for task in tasks] == [100 * task[1].backward + task[1].micro_batch for task in tasks]


def test_unequal_micro_batches_have_no_phase(build: Any) -> None:
    devices = [build.device(f"d{number}", [1.0, 1.0], [1.0, 1.0]) for number in range(2)]
    for sizes, phases in (([1] * 100, 1), ([2] + [1] * 98, 0)):
        scenario = build.scenario(devices, batch=100)
        plan = Plan(pipelines=[build.pipeline([0, 1, 2], ["d0", "d1"], sizes)], schedule="1f1b")
        plan.check(scenario)
        assert len(steady.phases(compile_plan(scenario, plan))) == phases


# Repeating moments


@st.composite
def periodic(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int, float]:
    """Logs of 40 cycles that begin anyhow and then repeat every few cycles."""
    count, sizes = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    cycle = 1.0
    logs = []
    for size in sizes:
        shape = sorted(draw(st.lists(st.integers(0, 999), min_size=count * size, max_size=count * size)))
        anyhow = sorted(draw(st.lists(st.floats(-9.0, -1.0), min_size=2 * size, max_size=2 * size)))
        steps = range(40 // count)
        logs.append([*anyhow, *[count * cycle * step + each / 1000 * count for step in steps for each in shape]])
    return logs, sizes, count, count * cycle


@settings(max_examples=100)
@given(periodic(), st.data())
def test_what_repeats_is_found_and_what_does_not_is_not(
    case: tuple[list[list[float]], list[int], int, float], data: st.DataObject
) -> None:
    logs, sizes, count, period = case
    window = 24
    found = steady.repeat(logs, sizes, window)
    assert found is not None
    assert count % found.cycles == 0
    assert found.seconds == pytest.approx(period * found.cycles / count)
    which = data.draw(st.integers(0, len(logs) - 1))
    late = data.draw(st.integers(1, window * sizes[which]))
    broken = [list(log) for log in logs]
    broken[which][-late] += 0.3
    assert steady.repeat(broken, sizes, window) is None
    assert (
        steady.repeat([log[-window * size + 1 :] for log, size in zip(logs, sizes, strict=True)], sizes, window) is None
    )


def test_a_drift_is_no_repetition() -> None:
    """A queue that grows: every log is regular, but one falls behind the other."""
    fast, slow = [1.0 * n for n in range(60)], [1.001 * n for n in range(60)]
    assert steady.repeat([fast, fast], [1, 1], 40) is not None
    assert steady.repeat([fast, slow], [1, 1], 40) is None
    late = [each - 35.0 for each in fast]  # so far behind that the window does not show both at one time
    assert steady.repeat([fast, late], [1, 1], 40) is None


def test_looks_are_ever_further_apart() -> None:
    phase = steady.Phase(first=(3, 2, 1, 0), length=2, shift=1, total=1000)
    looks = list(phase.looks)
    assert looks[0] >= steady.LEAST + 4 * 3
    assert all(2 * a == b for a, b in itertools.pairwise(looks))
    assert 2 * looks[-1] < 1000 <= 4 * looks[-1]
    assert not list(steady.Phase(first=(3, 2, 1, 0), length=2, shift=1, total=40).looks)
