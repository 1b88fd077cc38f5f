"""Operators: exact on the grid, growing where the work grows, in equal units; a profile is a sum of calls."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from steelyard.sim.cost import device_cost, stage_time
from steelyard.sim.device import Device
from steelyard.sim.operators import (
    Call,
    LayerCalls,
    OperatorGrid,
    OperatorTable,
    Surplus,
    calibrated_profile,
    call_s,
    estimate,
    optimizer_s,
    pass_s,
)
from steelyard.sim.spec import load_scenario
from steelyard.sim.workload import Workload

AXES = [[4.0, 32.0, 256.0], [16.0, 64.0, 512.0]]


def law(rows: float, width: float) -> float:
    """A time that grows with both sizes: overhead and work."""
    return 2e-6 + 1e-9 * rows * width


def grid(kind: str = "softmax", most: float = math.inf) -> OperatorGrid:
    points = list(itertools.product(*AXES))
    seconds = [law(*point) if point[0] * point[1] <= most else 0.0 for point in points]
    return OperatorGrid(kind=kind, axes=AXES, powers=[1, 1], seconds=seconds)


def flat(kind: str, per_element: float = 1e-9) -> OperatorGrid:
    sizes = [64.0, 4096.0, 2.0**20]
    return OperatorGrid(kind=kind, axes=[sizes], powers=[1], seconds=[1e-6 + per_element * size for size in sizes])


def table(**changes: object) -> OperatorTable:
    return OperatorTable.model_validate({"dtype": "fp32", "grids": [grid(), flat("add"), flat("mul", 2e-9)], **changes})


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_scenario("laptop").workload


def test_a_point_of_the_grid_is_exact_and_called_measured() -> None:
    for point, seconds in zip(itertools.product(*AXES), grid().seconds, strict=True):
        assert grid().at(point) == (pytest.approx(seconds, rel=1e-12), "measured")


sizes = st.tuples(st.floats(1, 4096), st.floats(1, 8192))


@given(point=sizes, factor=st.floats(1, 16), axis=st.integers(0, 1), most=st.sampled_from([math.inf, 4096.0, 1024.0]))
def test_more_work_never_takes_less_time(point: tuple[float, float], factor: float, axis: int, most: float) -> None:
    more = [size * (factor if number == axis else 1) for number, size in enumerate(point)]
    assert grid(most=most).at(more)[0] >= grid(most=most).at(point)[0] * (1 - 1e-9)


@given(point=sizes, scale=st.floats(1e-3, 1e3))
def test_a_device_that_is_k_times_as_slow_takes_k_times_as_long(point: tuple[float, float], scale: float) -> None:
    slow = grid().model_copy(update={"seconds": [scale * each for each in grid().seconds]})
    assert slow.at(point)[0] == pytest.approx(scale * grid().at(point)[0], rel=1e-9)


@given(point=st.tuples(st.floats(4, 256), st.floats(16, 512)))
def test_between_points_lies_between_the_cells_corners(point: tuple[float, float]) -> None:
    seconds, source = grid().at(point)
    inner = [max(each for each in axis if each <= size) for axis, size in zip(AXES, point, strict=True)]
    outer = [min(each for each in axis if each >= size) for axis, size in zip(AXES, point, strict=True)]
    assert law(*inner) * (1 - 1e-9) <= seconds <= law(*outer) * (1 + 1e-9)
    assert source in ("measured", "interpolated")


def test_beyond_the_grid_the_largest_point_gives_the_rate() -> None:
    seconds, source = grid().at([512.0, 512.0])
    assert seconds == pytest.approx(2 * law(256, 512))
    assert source == "extrapolated"


def test_a_point_that_was_too_large_takes_the_rates_of_those_below_and_is_not_called_measured() -> None:
    seconds, source = grid(most=256 * 64).at([256.0, 512.0])
    assert seconds == pytest.approx(8 * math.sqrt(law(256, 64) * law(32, 512)))
    assert source == "extrapolated"


def test_a_kind_that_was_not_measured_is_guessed_from_its_elements() -> None:
    seconds, source = call_s(table(), Call("erfinv", (7.0,), 4096.0))
    assert (seconds, source) == (pytest.approx(1e-6 + 4096e-9), "guessed")
    assert estimate(table(), [Call("erfinv", (7.0,), 4096.0)]).guessed_share == 1.0


def test_equal_calls_counted_together_are_as_long_as_one_by_one() -> None:
    call = Call("mul", (500.0,), 500.0)
    assert estimate(table(), [call._replace(times=5)]).seconds == pytest.approx(estimate(table(), [call] * 5).seconds)
    assert estimate(table(), [call._replace(times=5)]).calls == 5


def layers(workload: Workload, size: int) -> list[LayerCalls]:
    return [
        LayerCalls(
            name=layer.name,
            forward=(Call("mul", (100.0 * size,), 100.0 * size, times=3),),
            backward=(Call("mul", (100.0 * size,), 100.0 * size, times=7),),
            tensors=4,
            trainable=layer.trainable_parameters,
        )
        for layer in workload.layers
    ]


def test_a_profile_is_what_its_calls_take_times_the_factor_and_the_price_of_a_call(workload: Workload) -> None:
    surplus = table(forward=Surplus(call_s=1e-5, factor=1.5))
    profile = calibrated_profile(surplus, workload, {4: layers(workload, 4), 8: layers(workload, 8)})
    one, _ = call_s(surplus, Call("mul", (400.0,), 400.0))
    assert profile.points[0].forward_s == pytest.approx([1.5 * 3 * one + 3e-5] * len(workload.layers))
    assert profile.points[0].backward_s == pytest.approx([7 * one] * len(workload.layers))
    assert profile.fidelity == "calibrated"


def test_a_devices_times_say_that_they_are_calibrated_and_stages_add_up(workload: Workload) -> None:
    profile = calibrated_profile(table(), workload, {size: layers(workload, size) for size in (1, 4, 16)})
    device = Device(
        name="lane", peak_tflops={"fp32": 1}, memory_gib=8, memory_bandwidth_gb_per_s=10, layer_profile=profile
    )
    last = len(workload.layers)
    parts = [stage_time(device, workload, 0, 1, 4), stage_time(device, workload, 1, last, 4)]
    whole = stage_time(device, workload, 0, last, 4)
    assert whole.fidelity == device_cost(device, workload).fidelity == "calibrated"
    assert whole.forward_s == pytest.approx(sum(part.forward_s for part in parts))
    assert whole.guessed_s == 0.0


@given(factor=st.floats(0.1, 10))
def test_a_scaled_table_takes_so_many_times_as_long_whatever_was_read_of_it_before(factor: float) -> None:
    own = table(forward=Surplus(call_s=1e-5, factor=1.5), passes_s=[1.0, 2.0])
    calls = [Call("mul", (400.0,), 400.0, times=3), Call("softmax", (40.0, 300.0), 12000.0), Call("sort", (9.0,), 9e9)]
    before = estimate(own, calls)
    after = estimate(own.scaled(factor), calls)
    assert after.seconds == pytest.approx(factor * before.seconds)
    assert pass_s(after, own.scaled(factor).forward) == pytest.approx(factor * pass_s(before, own.forward))
    assert own.scaled(factor).passes_s == pytest.approx([factor, 2 * factor])


def test_an_update_of_no_parameters_is_free_and_more_take_longer() -> None:
    steps = OperatorGrid(
        kind="optimizer sgd", axes=[[4.0, 64.0], [1e4, 1e6]], powers=[0, 1], seconds=[1e-5, 1e-3, 2e-5, 1.1e-3]
    )
    own = table(grids=[flat("add"), steps])
    assert optimizer_s(own, "sgd", 0, 0) == 0.0
    assert optimizer_s(own, "sgd", 4, 1e5) < optimizer_s(own, "sgd", 4, 1e6) < optimizer_s(own, "sgd", 64, 1e6)
    assert optimizer_s(own, "sgd", 4, 2e6) == pytest.approx(2e-3)


def test_a_table_survives_json() -> None:
    assert OperatorTable.model_validate_json(table().model_dump_json()) == table()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"grids": [flat("mul")]}, "no grid of kind add"),
        ({"grids": [flat("add"), flat("add")]}, "same kind"),
        ({"grids": []}, "at least 1"),
    ],
)
def test_a_wrong_table_is_refused_with_the_reason(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        table(**change)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"axes": [[4.0, 4.0], [1.0, 2.0]], "seconds": [1.0] * 4}, "does not rise"),
        ({"seconds": [1.0]}, "one entry per point"),
        ({"powers": [1]}, "differ in length"),
        ({"seconds": [0.0] * 9}, "smallest point"),
    ],
)
def test_a_wrong_grid_is_refused_with_the_reason(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        OperatorGrid.model_validate({**grid().model_dump(), **change})
