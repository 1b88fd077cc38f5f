"""Recurrence: where it answers it says what the event loop says, event by event; where it cannot it says nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import loop, recurrence
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Link
from steelyard.sim.plan import Plan
from steelyard.sim.program import Program
from steelyard.sim.running import Factors, Launch
from steelyard.sim.spec import Scenario

ALL_STEPS = Factors(syncs={-1: []})
"""Noise of nothing: every step and every micro-batch is simulated."""
seconds = st.floats(0.01, 3.0)


def rows(launch: Launch) -> list[tuple[Any, ...]]:
    """Events in an order that both engines share; what is shorter than a rounding is left out."""
    found = [row for row in launch.events or [] if row[9] - row[8] > 1e-9]
    return sorted(found, key=lambda row: (row[3], round(row[8], 6), row[7], row[6]))


def assert_same(first: Launch, second: Launch) -> None:
    one, other = rows(first), rows(second)
    assert [(*row[:8], row[10]) for row in one] == [(*row[:8], row[10]) for row in other]
    assert [row[8:10] for row in one] == [pytest.approx(row[8:10], rel=1e-9, abs=1e-9) for row in other]
    assert first.ends == pytest.approx(second.ends, rel=1e-9)
    assert first.activations == pytest.approx(second.activations)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Two pipelines of different cuts and micro-batches, every device on a machine of its own."""
    stages, layers = draw(st.integers(1, 3)), 4
    cuts = [sorted(draw(st.permutations(range(1, layers)))[: stages - 1]) for _ in range(2)]
    return {
        "times": [draw(st.lists(seconds, min_size=layers, max_size=layers)) for _ in range(2)],
        "cuts": [[0, *each, layers] for each in cuts],
        "sizes": [draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)) for _ in range(2)],
        "plan": {
            "schedule": draw(st.sampled_from(["gpipe", "1f1b"])),
            "overlap": draw(st.booleans()),
            "bucket_mib": draw(st.sampled_from([1.0, 100.0])),
            "sync_every": draw(st.sampled_from([1, 1, 2])),
        },
        "links": {
            "latencies": draw(st.sampled_from([0.0, 0.2])),
            "gb_per_s": draw(st.sampled_from([1.0, 1e12])),
            "outputs": draw(st.sampled_from([0.0, 1e6, 1e8])),
            "parameters": draw(st.sampled_from([1, 10**6])),
        },
    }


def made(build: Any, job: dict[str, Any]) -> tuple[Scenario, Plan]:
    forward, backward = job["times"]
    stages = len(job["cuts"][0]) - 1
    devices = [build.device(f"d{number}", forward, backward, optimizer=[0.1] * 4) for number in range(2 * stages)]
    scenario = build.scenario(devices, batch=sum(map(sum, job["sizes"])), **job["links"])
    names = [[f"d{stages * number + stage}" for stage in range(stages)] for number in range(2)]
    pipelines = [build.pipeline(*each) for each in zip(job["cuts"], names, job["sizes"], strict=True)]
    plan = Plan(pipelines=pipelines, **job["plan"])
    plan.check(scenario)
    return scenario, plan


@settings(max_examples=120)
@given(jobs())
def test_events_are_those_of_the_loop(build: Any, job: dict[str, Any]) -> None:
    """All of them: who did what when, with overlapped and bucketed gradients, local SGD and unequal pipelines."""
    scenario, plan = made(build, job)
    program = compile_plan(scenario, plan)
    assert recurrence.applies(program)
    found = recurrence.run_launch(program, ALL_STEPS, steps=3)
    if found is not None:
        assert_same(found, loop.run_launch(program, ALL_STEPS, steps=3))


@settings(max_examples=60)
@given(jobs(), st.lists(st.floats(0.5, 2.0), min_size=60, max_size=60))
def test_noise_is_that_of_the_loop(build: Any, job: dict[str, Any], noise: list[float]) -> None:
    scenario, plan = made(build, job)
    program = compile_plan(scenario, plan, apart=True)
    names = [name for worker in program.workers for name in worker.devices]
    factors = Factors(
        compute={name: noise[number:] + noise for number, name in enumerate(names)},
        optimizer={names[0]: noise},
        syncs=dict.fromkeys(range(len(program.syncs)), noise),
    )
    found = recurrence.run_launch(program, factors, steps=3)
    if found is not None:
        assert_same(found, loop.run_launch(program, factors, steps=3))


@settings(max_examples=40)
@given(jobs(), st.integers(4, 40))
def test_steps_that_repeat_are_those_that_are_simulated(build: Any, job: dict[str, Any], rounds: int) -> None:
    scenario, plan = made(build, job)
    program = compile_plan(scenario, plan)
    steps = 1 + rounds * plan.sync_every
    expected = recurrence.run_launch(program, ALL_STEPS, steps=steps, record=False)
    found = recurrence.run_launch(program, steps=steps, record=False)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert len(found.ends) == steps
        assert found.ends == pytest.approx(expected.ends, rel=1e-9)
        assert found.repeats > 1


# Where it has no answer


def on_one_adapter(build: Any, nics: int) -> Program:
    """Two pipelines whose first stages are on one machine, and send at the same moments."""
    devices = [build.device(f"d{number}", [1.0, 1.0], [1.0, 1.0]) for number in range(4)]
    scenario = build.scenario(
        devices, batch=4, per_node=2, outputs=1e8, gb_per_s=1.0, nodes=[{"nics": nics}] * 2, parameters=0
    )
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], pair, [1, 1]) for pair in (("d0", "d2"), ("d1", "d3"))])
    plan.check(scenario)
    return compile_plan(scenario, plan)


def test_messages_that_meet_on_an_adapter_are_for_the_loop(build: Any) -> None:
    shared, own = on_one_adapter(build, 1), on_one_adapter(build, 2)
    assert recurrence.applies(shared)
    assert recurrence.run_launch(shared, steps=2) is None
    alone = recurrence.run_launch(own, steps=2)
    assert alone is not None
    assert alone.ends[0] < loop.run_launch(shared, steps=2).ends[0]


def test_messages_that_follow_each_other_do_not_meet(build: Any) -> None:
    """Over one adapter, but one begins when the other has left it: a shared link is no shared moment."""
    devices = [build.device(f"d{n}", [1.0 + n % 2, 1.0], [1.0, 1.0]) for n in range(4)]
    scenario = build.scenario(devices, batch=2, per_node=2, outputs=1e6, gb_per_s=1.0, parameters=0)
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], pair, [1]) for pair in (("d0", "d2"), ("d1", "d3"))])
    program = compile_plan(scenario, plan)
    found = recurrence.run_launch(program, ALL_STEPS, steps=1)
    assert found is not None
    assert_same(found, loop.run_launch(program, ALL_STEPS, steps=1))


@pytest.mark.parametrize("case", ["loader", "zero 3", "senders that wait"])
def test_what_it_does_not_know_it_does_not_try(build: Any, case: str) -> None:
    overlaps = case != "senders that wait"
    devices = [build.device(f"d{number}", [1.0, 1.0], [1.0, 1.0], overlaps=overlaps) for number in range(4)]
    nodes = [{"loader_samples_per_s": 1.0}] if case == "loader" else []
    scenario = build.scenario(devices, batch=4, outputs=1.0, nodes=nodes)
    pairs = (("d0", "d1"), ("d2", "d3"))
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], pair, [1, 1]) for pair in pairs], zero=3 * (case == "zero 3"))
    plan.check(scenario)
    assert not recurrence.applies(compile_plan(scenario, plan))


def test_a_medium_of_all_is_for_the_loop_when_it_is_busy(build: Any) -> None:
    devices = [build.device(f"d{number}", [1.0, 1.0], [1.0, 1.0]) for number in range(4)]
    medium = Link(name="air", latency_us=0.0, bandwidth_gb_per_s=0.1, shared=True)
    scenario = build.scenario(devices, batch=4, outputs=1e7, parameters=0)
    nodes = [node.model_copy(update={"network": None}) for node in scenario.cluster.nodes]
    cluster = scenario.cluster.model_copy(update={"network": medium, "nodes": nodes})
    scenario = scenario.model_copy(update={"cluster": cluster})
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], pair, [1, 1]) for pair in (("d0", "d1"), ("d2", "d3"))])
    assert recurrence.run_launch(compile_plan(scenario, plan), steps=1) is None
