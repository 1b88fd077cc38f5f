"""The min-max split is optimal: held against every split of small instances."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.apportion import min_max
from steelyard.policies.makespan import Makespan
from steelyard.policies.overlap import step_s
from steelyard.policies.participants import sets_of
from steelyard.policies.testing import scenarios
from steelyard.sim.bounds import lower_bound_s
from steelyard.sim.cost import DeviceCost, Line
from steelyard.sim.device import WakePoint
from steelyard.sim.disturbances import slowed
from steelyard.sim.engine import objective_value
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario
from steelyard.sim.steps import Steps
from steelyard.sim.view import DeviceView, Fixed, View


def _device(name: str, fixed_s: float, per_sample_s: float, capacity: int, largest: int | None = None) -> DeviceView:
    cost = DeviceCost(name, "profiled", Line(fixed_s, per_sample_s), Line(0.0, 0.0), 0.0)
    return DeviceView(name, 1.0, 1.0, 1.0, capacity, cost, largest)


def _splits(batch: int, limits: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to deal a batch within limits."""
    for head in itertools.product(*(range(min(batch, limit) + 1) for limit in limits[:-1])):
        rest = batch - sum(head)
        if 0 <= rest <= limits[-1]:
            yield (*head, rest)


def _busy(devices: Sequence[DeviceView], split: Sequence[int]) -> float:
    return max(device.step_s(samples) for device, samples in zip(devices, split, strict=True))


def test_the_split_is_the_best_of_all_on_2500_instances() -> None:
    draws = random.Random(1)
    feasible = 0
    for _ in range(2500):
        count, batch = draws.randrange(1, 5), draws.randrange(1, 10)
        devices = [
            _device(
                str(n),
                draws.choice([0.0, 1.0, 5.0]),
                draws.choice([0.5, 1.0, 3.0, draws.random()]),
                draws.randrange(batch + 1),
            )
            for n in range(count)
        ]
        least = draws.choice([0, 0, 1])
        every = [s for s in _splits(batch, [device.capacity for device in devices]) if min(s) >= least]
        split = min_max(Steps(devices, batch), batch, least)
        assert (split is None) == (not every)
        if split is not None:
            feasible += 1
            assert tuple(split) in every
            assert _busy(devices, split) == min(_busy(devices, each) for each in every)
    assert feasible > 1000


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), min_size=1, max_size=6), st.integers(1, 3000))
def test_a_large_batch_takes_the_short_way_to_the_same_split(figures: list[tuple[float, float]], batch: int) -> None:
    """Dealing sample by sample from nothing, as the exchange argument has it."""
    devices = [_device(str(n), fixed, each, batch) for n, (fixed, each) in enumerate(figures)]
    given_out = [0] * len(devices)
    for _ in range(batch):
        best = min(range(len(devices)), key=lambda i: (devices[i].step_s(given_out[i] + 1), i))
        given_out[best] += 1
    split = min_max(Steps(devices, batch), batch)
    assert split is not None
    assert sum(split) == batch
    assert _busy(devices, split) == _busy(devices, given_out)


@settings(max_examples=150)
@given(scenarios())
def test_no_split_with_its_all_reduce_is_better(scenario: Scenario) -> None:
    """Leaving out whom it pays to leave out: against every split of every generated scenario that is small enough."""
    view = View.of(scenario)
    batch, limits = min(view.global_batch, 7), [device.capacity for device in view.devices]
    view = replace(view, workload=view.workload.model_copy(update={"global_batch": batch}))
    if not _monotone(view) or math.prod(min(batch, limit) + 1 for limit in limits) > 20_000:
        return
    every = list(_splits(batch, limits))
    if not every:
        with pytest.raises(Infeasible):
            Makespan().allocate(view)
        return
    split = Makespan(overlap=False).allocate(view).split()
    found = [split.get(device.name, 0) for device in view.devices]
    assert _total(view, found) == pytest.approx(min(_total(view, each) for each in every), rel=1e-12)


def _monotone(view: View) -> bool:
    """Measured curves need not be, where accumulation jumps to smaller micro-batches: there the split is no optimum."""
    for device in view.devices:
        times = [device.step_s(samples) for samples in range(min(view.global_batch, device.capacity) + 1)]
        if times != sorted(times):
            return False
    return True


def _total(view: View, split: Sequence[int]) -> float:
    used = [device.name for device, samples in zip(view.devices, split, strict=True) if samples]
    return _busy(view.devices, split) + view.sync_s(used)


def test_the_engine_agrees_with_the_estimate_that_is_optimised(quiet_scenario: Scenario) -> None:
    """Without noise, no split of the two devices is faster in the engine than the makespan's."""
    view = View.of(quiet_scenario)
    best = objective_value(quiet_scenario, Makespan(), seed=0, launches=1)

    class Split:
        def __init__(self, fast: int) -> None:
            self.fast = fast

        def allocate(self, view: View) -> Any:
            return view.plan([self.fast, view.global_batch - self.fast])

    values = [objective_value(quiet_scenario, Split(fast), seed=0, launches=1) for fast in range(33)]
    assert best == pytest.approx(max(values), rel=1e-9)
    assert lower_bound_s(view) <= view.global_batch / best * (1 + 1e-9)


EXTRAS = st.lists(st.floats(0.0, 0.02), min_size=3, max_size=3).map(sorted)


@settings(max_examples=15)
@given(extras=st.tuples(EXTRAS, EXTRAS), factor=st.floats(0.5, 3.0))
def test_what_waking_costs_is_minimised_too(
    quiet_scenario: Scenario, extras: tuple[list[float], list[float]], factor: float
) -> None:
    """No split is faster in the engine, whatever the tables of waking say; the step is known to a rounding."""
    scenario = _waking(quiet_scenario, extras)
    slower = slowed(scenario.cluster, {"slow": factor})
    scenario = scenario.model_copy(update={"cluster": slower})
    view = View.of(scenario)
    plans = [view.plan([fast, view.global_batch - fast]) for fast in range(view.global_batch + 1)]
    times = [view.global_batch / objective_value(scenario, Fixed(plan), seed=0, launches=1) for plan in plans]
    assert times == pytest.approx([step_s(view, plan) for plan in plans], rel=1e-9)
    assert step_s(view, Makespan().allocate(view)) == pytest.approx(min(times), rel=1e-9)


def test_a_lane_that_wakes_slowly_gets_fewer_samples(quiet_scenario: Scenario) -> None:
    nothing, much = [0.0, 0.0, 0.0], [0.02, 0.02, 0.02]
    splits = [
        Makespan(leave_out=False).allocate(View.of(_waking(quiet_scenario, each))).split()
        for each in ((nothing, nothing), (much, nothing), (much, much))
    ]
    assert splits[1]["fast"] < splits[0]["fast"]
    assert splits[2] == splits[0]


def _waking(scenario: Scenario, extras: Sequence[Sequence[float]]) -> Scenario:
    """The lanes with tables of waking, and without communication beside their work."""
    node = scenario.cluster.nodes[0]
    devices = []
    for device, each in zip(node.devices, extras, strict=True):
        assert device.profile is not None
        points = [
            WakePoint(blocked_s=blocked, extra_s=extra) for blocked, extra in zip((1e-3, 1e-2, 0.1), each, strict=True)
        ]
        profile = device.profile.model_copy(update={"waking": points})
        devices.append(device.model_copy(update={"profile": profile, "overlaps": False}))
    cluster = scenario.cluster.model_copy(update={"nodes": [node.model_copy(update={"devices": devices})]})
    return scenario.model_copy(update={"cluster": cluster})


def test_a_device_is_left_out_where_its_all_reduce_costs_more_than_it_gives(quiet_scenario: Scenario) -> None:
    table = quiet_scenario.cluster.collectives[0]
    points = [point.model_copy(update={"seconds": point.seconds + 10.0}) for point in table.points]
    cluster = quiet_scenario.cluster.model_copy(update={"collectives": [table.model_copy(update={"points": points})]})
    view = View.of(quiet_scenario.model_copy(update={"cluster": cluster}))
    assert Makespan().allocate(view).split() == {"fast": 32}
    assert set(Makespan(leave_out=False).allocate(view).split()) == {"fast", "slow"}


def test_many_devices_and_a_large_batch_are_dealt_exactly(quiet_scenario: Scenario) -> None:
    """More sets than are all tried: all samples, within the caps, not worse than everybody at work."""
    draws = random.Random(0)
    count = 38
    devices = tuple(
        _device(f"d{n}", draws.random() * 1e-3, 1e-4 + draws.random() * 1e-3, draws.choice([50, 500, 20_000]))
        for n in range(count)
    )
    workload = quiet_scenario.workload.model_copy(update={"global_batch": 20_000})
    link = quiet_scenario.cluster.nodes[0].model_copy(
        update={
            "devices": [quiet_scenario.cluster.devices[0].model_copy(update={"name": each.name}) for each in devices]
        }
    )
    cluster = quiet_scenario.cluster.model_copy(update={"nodes": [link], "collectives": []})
    view = View(devices=devices, workload=workload, cluster=cluster)
    assert len(sets_of(view)) < 2**count - 1
    split = Makespan(overlap=False).allocate(view).split()
    everybody = Makespan(overlap=False, leave_out=False).allocate(view).split()
    assert sum(split.values()) == 20_000
    assert all(split[device.name] <= device.capacity for device in devices if device.name in split)
    found = [split.get(device.name, 0) for device in devices]
    assert _total(view, found) <= _total(view, [everybody.get(device.name, 0) for device in devices]) * (1 + 1e-12)
