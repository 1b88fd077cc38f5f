"""The lower bound against brute force: met without an all-reduce, and never above any split."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.bounds import lower_bound_s
from steelyard.sim.cost import Curve, DeviceCost, Line
from steelyard.sim.plan import micro_batches
from steelyard.sim.spec import Scenario
from steelyard.sim.view import DeviceView, View

seconds = st.floats(1e-4, 10.0)
BATCH = st.integers(1, 12)


@st.composite
def curves(draw: st.DrawFn) -> Line | Curve:
    """An affine time, or any non-decreasing one (a cliff at the cache's size, say)."""
    if draw(st.booleans()):
        return Line(draw(st.floats(0, 1)), draw(seconds))
    return Curve(tuple(range(1, 14)), tuple(sorted(draw(st.lists(seconds, min_size=13, max_size=13)))))


@st.composite
def device_views(draw: st.DrawFn, number: int, batch: int, accumulates: bool) -> DeviceView:
    largest = draw(st.integers(1, 5)) if accumulates else None
    return DeviceView(
        name=f"device{number}",
        peak_flops=1.0,
        memory_bandwidth=1.0,
        memory_bytes=1.0,
        capacity=batch if accumulates else draw(st.integers(0, batch)),
        cost=DeviceCost(f"device{number}", "profiled", draw(curves()), Line(0.0, draw(seconds)), draw(seconds)),
        largest_micro_batch=largest,
    )


@st.composite
def instances(draw: st.DrawFn, accumulates: bool) -> tuple[tuple[DeviceView, ...], int]:
    batch = draw(BATCH)
    count = draw(st.integers(1, 3))
    return tuple(draw(device_views(number, batch, accumulates)) for number in range(count)), batch


def view_of(scenario: Scenario, devices: tuple[DeviceView, ...], batch: int) -> View:
    workload = scenario.workload.model_copy(update={"global_batch": batch})
    return View(devices=devices, workload=workload, cluster=scenario.cluster)


def busy_s(device: DeviceView, samples: int) -> float:
    """Time of a device's step, micro-batch by micro-batch as a plan holds them."""
    if samples == 0:
        return 0.0
    sizes = micro_batches(samples, device.largest_micro_batch)
    return sum(device.cost.compute_s(size) for size in sizes) + device.cost.optimizer_s


def brute_force_s(devices: Sequence[DeviceView], batch: int) -> float:
    """The least slowest device over every split of the batch; infinite where none fits."""
    best = float("inf")
    for split in itertools.product(*(range(device.capacity + 1) for device in devices)):
        if sum(split) == batch:
            best = min(best, max(busy_s(device, n) for device, n in zip(devices, split, strict=True)))
    return best


@given(instances(accumulates=False))
def test_bound_is_the_best_split_without_an_all_reduce(
    scenario: Scenario, instance: tuple[tuple[DeviceView, ...], int]
) -> None:
    devices, batch = instance
    assert lower_bound_s(view_of(scenario, devices, batch)) == pytest.approx(brute_force_s(devices, batch), rel=1e-9)


@given(instances(accumulates=True))
def test_bound_is_never_above_a_split(scenario: Scenario, instance: tuple[tuple[DeviceView, ...], int]) -> None:
    """With accumulation one sample more can take less time (two halves, each under a cliff): a bound even then."""
    devices, batch = instance
    assert lower_bound_s(view_of(scenario, devices, batch)) <= brute_force_s(devices, batch) * (1 + 1e-9)


@given(instances(accumulates=True), seconds)
def test_most_within_is_the_most_samples(instance: tuple[tuple[DeviceView, ...], int], limit: float) -> None:
    for device in instance[0]:
        fitting = [n for n in range(device.capacity + 1) if device.step_s(n) <= limit]
        assert device.most_within(limit) == max(fitting)


@given(instances(accumulates=True))
def test_step_is_the_sum_over_the_micro_batches_of_a_plan(instance: tuple[tuple[DeviceView, ...], int]) -> None:
    devices, batch = instance
    for device in devices:
        assert device.step_s(batch) == pytest.approx(busy_s(device, batch), rel=1e-12)


def test_two_equal_devices_halve_the_work(quiet_scenario: Scenario) -> None:
    fast = View.of(quiet_scenario).devices[0]
    view = view_of(quiet_scenario, (fast, fast), 32)
    assert lower_bound_s(view) == pytest.approx(fast.step_s(16), rel=1e-9)


def test_what_fits_nowhere_is_bounded_by_infinity(quiet_scenario: Scenario) -> None:
    fast = View.of(quiet_scenario).devices[0]
    assert lower_bound_s(view_of(quiet_scenario, (fast,), 33)) == float("inf")


@given(fast=st.integers(1, 64), slow=st.integers(1, 64))
def test_bound_of_a_gained_device_is_no_higher(quiet_scenario: Scenario, fast: int, slow: int) -> None:
    """More devices, or more room, cannot raise the least time."""
    one, two = View.of(quiet_scenario).devices
    both = lower_bound_s(view_of(quiet_scenario, (one, two), fast))
    assert both <= lower_bound_s(view_of(quiet_scenario, (one,), fast)) * (1 + 1e-12)
    assert lower_bound_s(view_of(quiet_scenario, (one, two), min(fast, slow))) <= both * (1 + 1e-12)
