"""The cost model against closed forms: fits, rooflines, the ring, memory; and that more work never takes less time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim import cost, roofline
from steelyard.sim.cost import Curve, Line
from steelyard.sim.curve import non_decreasing
from steelyard.sim.device import Device, EfficiencyStep, Profile, WakePoint
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.workload import Workload

Document = dict[str, Any]
times = st.floats(1e-6, 1e3)
sizes = st.lists(st.integers(1, 10_000), min_size=2, max_size=12, unique=True).map(sorted)


@st.composite
def points(draw: st.DrawFn, least: int = 2) -> list[tuple[int, float]]:
    """Measured points in any order, with any noise: larger batches may have been faster."""
    chosen = draw(st.lists(st.integers(1, 512), min_size=least, max_size=10, unique=True))
    return [(size, draw(times)) for size in chosen]


# Fits


@given(sizes, st.floats(0, 10), st.floats(1e-6, 10))
def test_fit_recovers_an_affine_time(xs: list[int], fixed: float, slope: float) -> None:
    line = cost.fit_line(xs, [fixed + slope * x for x in xs])
    for x in (*xs, 20_000):
        assert line.at(x) == pytest.approx(fixed + slope * x, rel=1e-6)


@given(points(), st.floats(1e-6, 1e6))
def test_fit_follows_the_unit_of_time(measured: list[tuple[int, float]], factor: float) -> None:
    xs, ys = [x for x, _ in measured], [y for _, y in measured]
    line, scaled = cost.fit_line(xs, ys), cost.fit_line(xs, [factor * y for y in ys])
    assert scaled.at(7) == pytest.approx(factor * line.at(7), rel=1e-6)


@given(points())
def test_fit_has_no_negative_part(measured: list[tuple[int, float]]) -> None:
    line = cost.fit_line([x for x, _ in measured], [y for _, y in measured])
    assert line.fixed_s >= 0
    assert line.per_sample_s >= 0
    assert line.at(1) > 0


def test_fit_weighs_relative_errors() -> None:
    """Two points 10 % off, one small and one large: an absolute fit would give the small one away."""
    line = cost.fit_line([1, 2, 100, 200], [1.1, 2.0, 100.0, 220.0])
    errors = [abs(line.at(x) / y - 1) for x, y in ((1, 1.1), (2, 2.0), (100, 100.0), (200, 220.0))]
    assert max(errors) < 0.1


def test_fit_of_extreme_times_is_finite() -> None:
    line = cost.fit_line([1, 2, 3], [1e-300, 1.0, 1e30])
    assert math.isfinite(line.at(10))


@given(sizes, st.data())
def test_curve_passes_through_its_points(xs: list[int], data: st.DataObject) -> None:
    ys = sorted(data.draw(st.lists(times, min_size=len(xs), max_size=len(xs))))
    curve = Curve(tuple(xs), tuple(ys))
    assert [curve.at(x) for x in xs[1:]] == ys[1:]
    assert curve.at(xs[0]) == pytest.approx(ys[0], rel=1e-12)


@given(sizes.filter(lambda xs: len(xs) >= 5), st.floats(1e-3, 10), st.floats(1e-6, 10))
def test_affine_points_give_the_line(xs: list[int], fixed: float, slope: float) -> None:
    assert isinstance(cost.fit_curve([(x, fixed + slope * x) for x in xs]), Line)


def test_a_kink_gives_the_curve() -> None:
    """Flat until the device is busy, then affine."""
    measured = [(x, max(1.0, x / 8)) for x in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
    fitted = cost.fit_curve(measured)
    assert isinstance(fitted, Curve)
    assert fitted.at(5) == 1.0
    assert fitted.at(20) == pytest.approx(2.5)
    assert fitted.at(64) == pytest.approx(8.0)


def test_few_points_give_the_line() -> None:
    assert isinstance(cost.fit_curve([(1, 1.0), (2, 1.0), (4, 9.0), (8, 99.0)]), Line)


@given(st.lists(times, min_size=1, max_size=20))
def test_pooling_is_non_decreasing_and_keeps_the_sum(values: list[float]) -> None:
    pooled = list(non_decreasing(values))
    assert len(pooled) == len(values)
    assert pooled == sorted(pooled)
    assert sum(pooled) == pytest.approx(sum(values))
    if values == sorted(values):
        assert pooled == values


# More work never takes less time


def assert_never_less(device_cost: cost.DeviceCost, up_to: int) -> None:
    for part in (device_cost.forward, device_cost.backward):
        assert part.at(1) > 0
        values = [part.at(size) for size in range(1, up_to + 1)]
        assert all(late >= early * (1 - 1e-12) for early, late in itertools.pairwise(values))


@given(points(), points(5))
def test_profiled_times_never_fall(few: list[tuple[int, float]], many: list[tuple[int, float]]) -> None:
    for measured in (few, many):
        document = [{"micro_batch": size, "forward_s": s, "backward_s": 2 * s} for size, s in measured]
        profile = Profile.model_validate({"workload": "any", "points": document, "optimizer_s": 1.0})
        assert_never_less(cost.profiled_cost("device", profile), 600)


tables = st.lists(
    st.builds(EfficiencyStep, at_least=st.floats(0, 1e12), share=st.floats(1e-3, 1.0)), min_size=1, max_size=5
)


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """Any datasheet, its efficiency tables as steep as they like."""
    return Device(
        name="device",
        peak_tflops={"fp32": draw(st.floats(1e-3, 1e3))},
        memory_gib=draw(st.floats(1e-3, 100)),
        memory_bandwidth_gb_per_s=draw(st.floats(1e-2, 1e4)),
        launch_overhead_us=draw(st.sampled_from([0.0, 4.0])),
        compute_efficiency=draw(tables),
        memory_efficiency=draw(tables),
    )


@given(devices(), st.integers(1, 200))
def test_datasheet_times_never_fall(scenario: Scenario, device: Device, batch: int) -> None:
    workload = scenario.workload.model_copy(update={"global_batch": batch})
    assert_never_less(cost.datasheet_cost(device, workload), batch + 1)


@given(tables, st.floats(1.0, 1e15))
def test_a_share_lies_within_its_table(table: list[EfficiencyStep], size: float) -> None:
    shares = [step.share for step in table]
    assert min(shares) * (1 - 1e-12) <= roofline.share(table, size) <= max(shares) * (1 + 1e-12)


@pytest.mark.parametrize(("size", "expected"), [(1e6, 0.1), (1e9, 0.6), (16e9, 0.9), (128e9, 0.95), (1e15, 0.95)])
def test_shares_at_the_steps_are_those_of_the_table(scenario: Scenario, size: float, expected: float) -> None:
    assert roofline.share(scenario.cluster.devices[0].compute_efficiency, size) == pytest.approx(expected)


# Datasheet: roofline and optimizer


def flat_device(**changes: object) -> Device:
    """1 TFLOP/s and 100 GB/s, always reached."""
    full = [EfficiencyStep(at_least=0, share=1.0)]
    fields: Document = {
        "name": "flat",
        "peak_tflops": {"fp32": 1.0, "bf16": 4.0},
        "memory_gib": 4.0,
        "memory_bandwidth_gb_per_s": 100.0,
        "launch_overhead_us": 5.0,
        "compute_efficiency": full,
        "memory_efficiency": full,
    }
    return Device.model_validate({**fields, **changes})


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 8, 31, 32])
def test_roofline_of_a_compute_bound_model(scenario: Scenario, samples: int) -> None:
    """Four layers, one kernel forward and two backward: FLOPs over the peak, and the launches."""
    times = cost.datasheet_cost(flat_device(memory_bandwidth_gb_per_s=1e6), scenario.workload)
    flops = samples * 2e6 * 32
    assert times.forward.at(samples) == pytest.approx(4 * (flops / 1e12 + 5e-6))
    assert times.backward.at(samples) == pytest.approx(4 * (2 * flops / 1e12 + 10e-6))


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 8, 31, 32])
def test_roofline_of_a_memory_bound_model(scenario: Scenario, samples: int) -> None:
    times = cost.datasheet_cost(flat_device(peak_tflops={"fp32": 1e6}), scenario.workload)
    moved = 4 * (samples * 3e3 * 32 + 250_000)
    assert times.forward.at(samples) == pytest.approx(4 * (moved / 100e9 + 5e-6))


@pytest.mark.parametrize(
    ("dtype", "optimizer", "bytes_each"),
    [("fp32", "sgd", 12), ("fp32", "momentum", 20), ("fp32", "adamw", 28), ("bf16", "adamw", 28)],
)
def test_optimizer_step_is_memory_traffic(scenario: Scenario, dtype: str, optimizer: str, bytes_each: int) -> None:
    """fp32 AdamW: weight, gradient, two states read (16), weight and states written (12); bf16: 2+4+8 and 4+2+8."""
    workload = scenario.workload.model_copy(update={"dtype": dtype, "optimizer": optimizer})
    times = cost.datasheet_cost(flat_device(), workload)
    assert times.optimizer_s == pytest.approx(1_000_000 * bytes_each / 100e9 + 5e-6)


def test_an_unlisted_dtype_runs_at_the_rate_of_fp32() -> None:
    device = flat_device()
    assert device.peak("bf16") == 4e12
    assert device.peak("fp16") == device.peak("fp32") == 1e12
    assert flat_device(peak_tflops={"bf16": 4.0, "fp8": 8.0}).peak("fp32") == 4e12


def test_a_model_that_does_nothing_still_takes_time(make_document: Callable[..., Document]) -> None:
    document = make_document()["workload"]
    nothing = {"kind": "matmul", "flops": [0.0], "elements": [0.0], "kernels": 0}
    for layer in document["model"]["layers"]:
        layer.update(forward=[nothing], backward=[nothing], parameters=0, trainable_parameters=0)
    times = cost.datasheet_cost(flat_device(launch_overhead_us=0.0), Workload.model_validate(document))
    assert 0 < times.compute_s(8) < 1e-9


# Memory


@pytest.mark.parametrize(
    ("dtype", "optimizer", "bytes_each"),
    [
        ("fp32", "adamw", 16),
        ("bf16", "adamw", 16),
        ("fp16", "adamw", 16),
        ("fp32", "momentum", 12),
        ("fp32", "sgd", 8),
        ("bf16", "sgd", 8),
        ("fp64", "sgd", 16),
    ],
)
def test_bytes_per_parameter(scenario: Scenario, dtype: str, optimizer: str, bytes_each: int) -> None:
    """Weights, gradients, optimizer states (ZeRO, section 3.1): 16 bytes for AdamW in fp32 and in mixed precision."""
    workload = scenario.workload.model_copy(update={"dtype": dtype, "optimizer": optimizer})
    assert workload.state_bytes == 1_000_000 * bytes_each


@given(st.integers(0, 4096), st.sampled_from(["fp32", "bf16"]))
def test_peak_memory_is_states_plus_one_micro_batch(scenario: Scenario, micro_batch: int, dtype: str) -> None:
    workload = scenario.workload.model_copy(update={"dtype": dtype})
    per_sample = {"fp32": 4, "bf16": 2}[dtype] * 4 * (2e3 * 32 + 4.0 * 32**2)
    assert cost.peak_memory_bytes(workload, micro_batch) == pytest.approx(16e6 + micro_batch * per_sample)


@given(st.floats(1e-3, 1.0), st.integers(1, 300))
def test_largest_micro_batch_is_the_last_that_fits(scenario: Scenario, memory_gib: float, batch: int) -> None:
    workload = scenario.workload.model_copy(update={"global_batch": batch})
    device = flat_device(memory_gib=memory_gib)
    fits = [n for n in range(1, batch + 1) if cost.peak_memory_bytes(workload, n) <= device.memory_bytes]
    assert cost.largest_micro_batch(workload, device) == len(fits)


def test_frozen_parameters_have_no_gradient(scenario: Scenario) -> None:
    layers = [layer.model_copy(update={"trainable_parameters": 0}) for layer in scenario.workload.layers]
    frozen = scenario.workload.model_copy(
        update={"model": scenario.workload.model.model_copy(update={"layers": layers})}
    )
    assert frozen.state_bytes == 4_000_000
    assert frozen.gradient_bytes == 0


# Collectives


# Held-out sizes


def test_held_out_sizes_do_not_predict(scenario: Scenario) -> None:
    profile = scenario.cluster.devices[0].profile
    assert profile is not None
    kept = cost.without_sizes(profile, [4, 16, 5])
    assert [point.micro_batch for point in kept.points] == [1, 2, 8, 32]
    assert kept.optimizer_s == profile.optimizer_s
    waking = [WakePoint(blocked_s=size * 1e-3, extra_s=1e-3, micro_batch=size) for size in (4, 8)]
    asleep = profile.model_copy(update={"waking": waking})
    assert cost.without_sizes(asleep, [4]).waking == waking[1:]
    with pytest.raises(InputError, match=r"^profile\.points: has 1 points beside .* \(calibrate at more sizes\)"):
        cost.without_sizes(profile, [1, 2, 4, 8, 16])


def test_costs_are_computed_once(scenario: Scenario) -> None:
    device = scenario.cluster.devices[0]
    assert cost.device_cost(device, scenario.workload) is cost.device_cost(device, scenario.workload)
    other = scenario.workload.model_copy(update={"global_batch": 8})
    assert cost.device_cost(device, other).fidelity == "profiled"
    assert cost.device_cost(device.model_copy(update={"profile": None}), other).fidelity == "datasheet"


def test_a_model_that_trains_nothing_has_no_optimizer_step(make_document: Callable[..., dict[str, Any]]) -> None:
    """However long the profile says that one takes: for a whole device as for its stages."""
    document = make_document()
    document["workload"]["model"]["layers"] = [
        {**layer, "trainable_parameters": 0} for layer in document["workload"]["model"]["layers"]
    ]
    key = Workload.model_validate(document["workload"]).key
    for device in document["cluster"]["nodes"][0]["devices"]:
        device["profile"]["workload"] = key
    frozen = scenario_from(document)
    for device in frozen.cluster.devices:
        found = cost.device_cost(device, frozen.workload)
        assert found.fidelity == "profiled"
        assert found.optimizer_s == cost.update_s(device, frozen.workload, 0, 4) == 0.0
