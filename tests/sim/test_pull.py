"""Micro-batches that go to whoever is free: against a simulation by hand, and what theory says of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.record import LEDGER_LINES
from steelyard.sim import engine, memory
from steelyard.sim.disturbances import Disturbance
from steelyard.sim.plan import Pipeline, Plan, PlanError, Replica, Stage
from steelyard.sim.spec import Sampling, Scenario, Variation
from steelyard.sim.view import Fixed


def pool(scenario: Scenario, owned: dict[str, list[int]]) -> Plan:
    last = len(scenario.workload.layers)
    pipelines = [
        Pipeline(stages=[Stage(first=0, last=last, replicas=[Replica(devices=[name])])], micro_batches=sizes)
        for name, sizes in owned.items()
    ]
    return Plan(pipelines=pipelines, dispatch="pull")


def by_hand(seconds: dict[str, float], sizes: list[int]) -> tuple[float, dict[str, int]]:
    """Each micro-batch in turn to the device that is free first, ties by name; when all is done, and who did what."""
    free, taken = dict.fromkeys(sorted(seconds), 0.0), dict.fromkeys(seconds, 0)
    for size in sorted(sizes, reverse=True):
        name = min(free, key=lambda each: (free[each], each))
        free[name] += seconds[name] * size
        taken[name] += size
    return max(free.values()), taken


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=4, max_size=12),
)
def test_a_step_is_the_list_schedule(build: Any, paces: list[int], sizes: list[int]) -> None:
    """Free network: the step ends with the last device, and every sample is taken once."""
    seconds = {f"d{number}": float(pace) for number, pace in enumerate(paces)}
    devices = [build.device(name, [pace / 4], [3 * pace / 4]) for name, pace in seconds.items()]
    scenario = build.scenario(devices, batch=sum(sizes), sampling=Sampling(steps=1))
    owned = {name: sizes[place :: len(seconds)] for place, name in enumerate(seconds)}
    plan = pool(scenario, owned)
    plan.check(scenario)
    program, (launch,) = engine.run_plan(scenario, plan, seed=0, launches=1, record=True)
    expected, taken = by_hand(seconds, sizes)
    assert launch.ends == [pytest.approx(expected)]
    assert engine.pull.samples_of(program, launch.events or []) == taken
    # Graham (1966): nobody is idle while the pool has a piece, so all but the last piece fills the devices.
    speed = sum(1 / each for each in seconds.values())
    assert expected <= sum(sizes) / speed + max(seconds.values()) * max(sizes) + 1e-9


def test_memory_is_that_of_the_largest_piece_wherever_it_goes(build: Any) -> None:
    """A device with room for its own micro-batches alone may own them, but not take part in a pool with larger ones."""
    devices = [build.device(f"d{number}", [1.0], [2.0]) for number in range(2)]
    plan = pool(build.scenario(devices, batch=9), {"d0": [5], "d1": [2, 2]})
    own = memory.peak(build.scenario(devices, batch=9).workload, plan)["d1"].total
    scenario = build.scenario([devices[0], devices[1].model_copy(update={"memory_gib": own / 2**30})], batch=9)
    plan.model_copy(update={"dispatch": "static"}).check(scenario)
    with pytest.raises(PlanError, match="'d1'"):
        plan.check(scenario)
    run = engine.simulate(build.scenario(devices, batch=9), Fixed(plan))
    assert run.summary.devices["d1"].peak_memory_bytes > own


@pytest.mark.parametrize("changes", [{"zero": 1}, {"sync_every": 2}])
def test_what_a_pool_cannot_be_is_refused(build: Any, changes: dict[str, Any]) -> None:
    devices = [build.device(f"d{number}", [1.0], [2.0]) for number in range(2)]
    scenario = build.scenario(devices, batch=4)
    with pytest.raises(PlanError, match="dispatch"):
        pool(scenario, {"d0": [2], "d1": [2]}).model_copy(update=changes).check(scenario)


def test_an_input_pipeline_and_a_pool_are_refused(build: Any) -> None:
    devices = [build.device(f"d{number}", [1.0], [2.0]) for number in range(2)]
    scenario = build.scenario(devices, batch=4, nodes=[{"loader_samples_per_s": 10.0}] * 2)
    with pytest.raises(PlanError, match="loader_samples_per_s"):
        pool(scenario, {"d0": [2], "d1": [2]}).check(scenario)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_ledgers_sum_to_the_step_and_samples_to_the_batch(build: Any, noise: float) -> None:
    devices = [build.device(f"d{number}", [1.0], [2.0], optimizer=[0.5]) for number in range(3)]
    scenario = build.scenario(
        devices,
        batch=48,
        parameters=1000,
        gb_per_s=1e-6,
        variation=Variation(step_cv=noise, network_cv=noise),
        sampling=Sampling(steps=6, launches=4),
    )
    run = engine.simulate(scenario, make_policy("stealing", {"pieces": 4}))
    lines = run.summary.devices
    for line in lines.values():
        assert sum(getattr(line, each) for each in LEDGER_LINES) == pytest.approx(run.summary.step_time_s.mean)
    assert sum(line.samples for line in lines.values()) == pytest.approx(48, abs=1)
    assert run.summary.work_bound_step_time_s is not None
    assert run.summary.step_time_s.p50 >= (1 - noise) * run.summary.work_bound_step_time_s


@given(factor=st.floats(1.5, 6.0), victim=st.sampled_from(["d0", "d1", "d2"]))
def test_a_pool_evens_out_what_no_plan_foresaw(build: Any, factor: float, victim: str) -> None:
    """A static split waits for the straggler; a pool loses at most a piece of its time."""
    devices = [build.device(f"d{number}", [1.0], [2.0]) for number in range(3)]
    slow = Disturbance(kind="slowdown", device=victim, from_step=0, factor=factor)
    scenario = build.scenario(devices, batch=48, sampling=Sampling(steps=4, launches=1), disturbances=[slow])
    static, pulled = (
        engine.simulate(scenario, make_policy(name)).summary.step_time_s.mean for name in ("makespan", "stealing")
    )
    speed = 2 / 3 + 1 / (3 * factor)
    piece = 48 / (3 * 8)
    assert static == pytest.approx(48 / 3 * 3 * factor)
    assert pulled <= 48 / speed + 3 * factor * piece
