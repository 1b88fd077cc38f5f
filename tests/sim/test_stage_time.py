"""Times of a run of layers on one device of a group: parts add up, groups divide, what was measured is kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.record import Fidelity
from steelyard.sim import cost, roofline
from steelyard.sim.cost import Indivisible, Recompute
from steelyard.sim.decoder import decoder
from steelyard.sim.device import Device, LayerProfile, Profile, Saturation
from steelyard.sim.workload import Layer, Workload

MODEL = decoder(layers=4, hidden=512, heads=8, vocabulary=1024, sequence_length=256, scores_kept=True, name="small")
WORKLOAD = Workload(model=MODEL, global_batch=64, sequence_length=256, dtype="bf16")
LAYERS = len(MODEL.layers)
SIZES = (1, 2, 4, 8)

cuts = st.integers(1, LAYERS - 1)
samples = st.integers(1, 64)
degrees = st.sampled_from([1, 2, 4, 8])
recomputes: st.SearchStrategy[Recompute] = st.sampled_from(["none", "selective", "full"])


def device(**changes: Any) -> Device:
    fields: dict[str, Any] = {
        "name": "device",
        "peak_tflops": {"bf16": 100.0},
        "memory_gib": 40.0,
        "memory_bandwidth_gb_per_s": 1000.0,
    }
    return Device.model_validate({**fields, **changes})


def profile(workload: Workload = WORKLOAD) -> Profile:
    points = [{"micro_batch": n, "forward_s": 1e-3 + 2e-3 * n, "backward_s": 2e-3 + 5e-3 * n} for n in SIZES]
    return Profile.model_validate({"workload": workload.key, "points": points, "optimizer_s": 3e-3})


def layer_profile(degrees: tuple[int, ...] = (1, 2), sizes: tuple[int, ...] = SIZES) -> LayerProfile:
    """Layer i takes (i + 1) (1 + n) / degree ms forward, twice that backward, and i us of update."""
    points = [
        {
            "micro_batch": n,
            "tensor_degree": degree,
            "forward_s": [(i + 1) * (1 + n) / degree * 1e-3 for i in range(LAYERS)],
            "backward_s": [2 * (i + 1) * (1 + n) / degree * 1e-3 for i in range(LAYERS)],
            "optimizer_s": [i * 1e-6 for i in range(LAYERS)],
        }
        for degree in degrees
        for n in sizes
    ]
    return LayerProfile.model_validate({"model": "small", "sequence_length": 256, "dtype": "bf16", "points": points})


def total(times: cost.StageTime) -> float:
    return times.forward_s + times.backward_s


DEVICES = {
    "datasheet": device(),
    "saturating": device(
        compute_efficiency={"best": 0.8, "half_us": 30.0}, memory_efficiency={"best": 0.9}, dispatch_us=20.0
    ),
    "profiled": device(profile=profile().model_dump()),
    "by layer": device(layer_profile=layer_profile().model_dump()),
}
any_device = st.sampled_from(sorted(DEVICES)).map(DEVICES.__getitem__)


# The whole and its parts


@given(any_device, samples)
def test_all_layers_on_one_device_take_what_the_whole_takes(where: Device, n: int) -> None:
    whole, times = cost.device_cost(where, WORKLOAD), cost.stage_time(where, WORKLOAD, 0, LAYERS, n)
    if where.layer_profile is None:
        assert times.forward_s == pytest.approx(whole.forward.at(n), rel=1e-12)
        assert times.backward_s == pytest.approx(whole.backward.at(n), rel=1e-12)
    assert times.fidelity == whole.fidelity


@pytest.mark.parametrize("n", SIZES)
def test_the_whole_of_a_layer_profile_at_measured_sizes(n: int) -> None:
    whole = cost.device_cost(DEVICES["by layer"], WORKLOAD)
    times = cost.stage_time(DEVICES["by layer"], WORKLOAD, 0, LAYERS, n)
    assert whole.forward.at(n) == pytest.approx(times.forward_s)
    assert whole.backward.at(n) == pytest.approx(times.backward_s)
    assert whole.optimizer_s == pytest.approx(cost.update_s(DEVICES["by layer"], WORKLOAD, 0, LAYERS))


@given(any_device, cuts, samples, recomputes)
def test_parts_add_up(where: Device, cut: int, n: int, recompute: Recompute) -> None:
    whole = cost.stage_time(where, WORKLOAD, 0, LAYERS, n, recompute=recompute)
    parts = [
        cost.stage_time(where, WORKLOAD, first, last, n, recompute=recompute)
        for first, last in ((0, cut), (cut, LAYERS))
    ]
    assert sum(part.forward_s for part in parts) == pytest.approx(whole.forward_s)
    # What is recomputed of a measured whole is a share of all of it, of a part a share of the part.
    tolerance = 0.1 if recompute != "none" and where.layer_profile is None and where.profile is not None else 1e-9
    tolerance = 0.1 if recompute == "selective" else tolerance
    assert sum(part.backward_s for part in parts) == pytest.approx(whole.backward_s, rel=tolerance)


@given(any_device, samples)
def test_layers_add_up_to_the_stage(where: Device, n: int) -> None:
    layers = sum(cost.layer_backward_s(where, WORKLOAD, layer, n) for layer in range(LAYERS))
    assert layers == pytest.approx(cost.stage_time(where, WORKLOAD, 0, LAYERS, n).backward_s)


@given(any_device, cuts, degrees, recomputes)
def test_no_samples_take_no_time(where: Device, cut: int, degree: int, recompute: Recompute) -> None:
    times = cost.stage_time(where, WORKLOAD, 0, cut, 0, tensor_degree=degree, recompute=recompute)
    assert (times.forward_s, times.backward_s, times.guessed_s) == (0.0, 0.0, 0.0)


@given(any_device, cuts, st.integers(1, 63), degrees)
def test_more_samples_never_take_less(where: Device, cut: int, n: int, degree: int) -> None:
    less, more = (cost.stage_time(where, WORKLOAD, 0, cut, k, tensor_degree=degree) for k in (n, n + 1))
    assert total(more) >= total(less) * (1 - 1e-12)


@given(any_device, cuts, samples, st.floats(0.1, 10.0))
def test_a_straggler_takes_so_many_times_as_long(where: Device, cut: int, n: int, slow: float) -> None:
    times, slowed = (
        cost.stage_time(each, WORKLOAD, 0, cut, n) for each in (where, where.model_copy(update={"slowdown": slow}))
    )
    assert total(slowed) == pytest.approx(slow * total(times))
    assert cost.update_s(where.model_copy(update={"slowdown": slow}), WORKLOAD, 0, cut) == pytest.approx(
        slow * cost.update_s(where, WORKLOAD, 0, cut)
    )


@given(any_device, cuts, samples)
def test_devices_that_differ_in_name_share_their_times(where: Device, cut: int, n: int) -> None:
    other = where.model_copy(update={"name": "another"})
    assert cost.stage_time(other, WORKLOAD, 0, cut, n) is cost.stage_time(where, WORKLOAD, 0, cut, n)


# Groups


def layer(divided: float) -> Layer:
    operator = {"kind": "matmul", "kernels": 0, "flops": [0.0, 1e9], "elements": [0.0], "divided": divided}
    return Layer.model_validate(
        {
            "name": "only", "parameters": 0, "trainable_parameters": 0, "forward": [operator], "backward": [operator],
            "activation_elements": [0.0], "output_elements": [0.0], "tensor": {"divisor": 8},
        }
    )  # fmt: skip


@given(st.floats(0.0, 1.0), degrees, samples)
def test_a_group_divides_what_can_be_divided(divided: float, degree: int, n: int) -> None:
    """F (d / T + 1 - d) on each; with sequence parallelism F / T."""
    model = MODEL.model_copy(update={"layers": [layer(divided)]})
    workload = WORKLOAD.model_copy(update={"model": model})
    flat = device(compute_efficiency={"best": 1.0}, memory_efficiency={"best": 1.0})
    alone_s = cost.stage_time(flat, workload, 0, 1, n).forward_s
    one_s = cost.stage_time(flat, workload, 0, 1, n, tensor_degree=degree).forward_s
    all_s = cost.stage_time(flat, workload, 0, 1, n, tensor_degree=degree, sequence_parallel=True).forward_s
    assert one_s == pytest.approx(alone_s * (divided / degree + 1 - divided))
    assert all_s == pytest.approx(alone_s / degree)


def test_a_degree_that_does_not_divide() -> None:
    with pytest.raises(Indivisible, match=r"'blocks\.0' cannot be divided over 3 devices") as caught:
        cost.stage_time(device(), WORKLOAD, 1, 3, 4, tensor_degree=3)
    assert caught.value.layer == 1
    whole = MODEL.layers[1].model_copy(update={"tensor": None})
    workload = WORKLOAD.model_copy(update={"model": MODEL.model_copy(update={"layers": [whole]})})
    with pytest.raises(Indivisible, match="how is not known"):
        cost.stage_time(device(), workload, 0, 1, 4, tensor_degree=2)


@given(samples, st.sampled_from(["none", "selective", "full"]))
def test_collectives_of_a_group(n: int, recompute: Recompute) -> None:
    """Two all-reduces of u s h elements per block each way; full recomputation repeats those of the forward pass."""
    found = cost.tensor_collectives(WORKLOAD, 1, 5, n, recompute=recompute)
    assert found.forward == ((n * 256 * 512 * 2.0, 8),)
    assert found.backward == ((n * 256 * 512 * 2.0, 16 if recompute == "full" else 8),)
    assert cost.tensor_collectives(WORKLOAD, 0, 1, n).backward == ()
    assert cost.tensor_collectives(WORKLOAD, 5, 6, n).forward == ()


# Recomputation


@given(any_device, cuts, samples, st.sampled_from([1, 2]))
def test_full_recomputation_repeats_the_forward_pass(where: Device, cut: int, n: int, degree: int) -> None:
    plain, again = (
        cost.stage_time(where, WORKLOAD, 0, cut, n, tensor_degree=degree, recompute=recompute)
        for recompute in ("none", "full")
    )
    assert again.forward_s == plain.forward_s
    assert again.backward_s == pytest.approx(plain.backward_s + plain.forward_s)


@given(any_device, samples)
def test_the_loss_is_not_recomputed(where: Device, n: int) -> None:
    head, plain = (
        cost.stage_time(where, WORKLOAD, LAYERS - 1, LAYERS, n, recompute=recompute) for recompute in ("full", "none")
    )
    assert head == plain


@given(any_device, samples)
def test_selective_recomputation_costs_some_of_the_forward_pass(where: Device, n: int) -> None:
    plain, selective, full = (
        cost.stage_time(where, WORKLOAD, 0, 4, n, recompute=recompute) for recompute in ("none", "selective", "full")
    )
    assert plain.backward_s < selective.backward_s < full.backward_s


# What was measured, and what was guessed


@pytest.mark.parametrize(
    ("name", "fidelity", "guessed"),
    [("datasheet", "datasheet", True), ("saturating", "datasheet", True), ("profiled", "profiled", False),
     ("by layer", "profiled", False)],
)  # fmt: skip
def test_fidelity_of_a_whole_model(name: str, fidelity: Fidelity, guessed: bool) -> None:
    times = cost.stage_time(DEVICES[name], WORKLOAD, 0, LAYERS, 4)
    assert times.fidelity == fidelity
    assert times.guessed_s == (total(times) if guessed else 0.0)


def test_fitted_efficiencies_make_a_calibrated_time() -> None:
    fitted = {"best": 0.8, "half_us": 30.0, "fitted_to": "measured steps"}
    times = cost.stage_time(device(compute_efficiency=fitted, memory_efficiency=fitted), WORKLOAD, 0, LAYERS, 4)
    assert times.fidelity == "calibrated"
    assert times.guessed_s == 0.0


def test_a_part_of_a_measured_whole_is_guessed() -> None:
    part = cost.stage_time(DEVICES["profiled"], WORKLOAD, 0, 3, 4)
    assert part.fidelity == "profiled"
    assert part.guessed_s == total(part)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("n", SIZES)
def test_measured_layers_are_kept(degree: int, n: int) -> None:
    times = cost.stage_time(DEVICES["by layer"], WORKLOAD, 1, 4, n, tensor_degree=degree)
    assert times.forward_s == pytest.approx((2 + 3 + 4) * (1 + n) / degree * 1e-3)
    assert times.backward_s == pytest.approx(2 * times.forward_s)
    assert times.guessed_s == 0.0
    assert times.holds_collectives == (degree > 1)
    assert cost.update_s(DEVICES["by layer"], WORKLOAD, 1, 4, tensor_degree=degree) == pytest.approx(6e-6)


def test_between_measured_sizes_times_are_interpolated() -> None:
    times = cost.stage_time(DEVICES["by layer"], WORKLOAD, 0, 1, 6)
    assert times.forward_s == pytest.approx(7e-3)


@pytest.mark.parametrize("n", SIZES)
def test_a_degree_that_was_not_measured_is_scaled_and_guessed(n: int) -> None:
    where = DEVICES["by layer"]
    times, near = (cost.stage_time(where, WORKLOAD, 1, 4, n, tensor_degree=degree) for degree in (8, 2))
    bare = device()
    ratio = (
        cost.stage_time(bare, WORKLOAD, 1, 4, n, tensor_degree=8).forward_s
        / cost.stage_time(bare, WORKLOAD, 1, 4, n, tensor_degree=2).forward_s
    )
    assert times.forward_s == pytest.approx(near.forward_s * ratio)
    assert times.guessed_s == total(times)


def test_a_single_measured_size_scales_the_roofline() -> None:
    where = device(layer_profile=layer_profile(sizes=(4,)).model_dump())
    measured = cost.stage_time(where, WORKLOAD, 1, 4, 4)
    other = cost.stage_time(where, WORKLOAD, 1, 4, 8)
    bare = [cost.stage_time(device(), WORKLOAD, 1, 4, n).forward_s for n in (4, 8)]
    assert measured.forward_s == pytest.approx(9 * 5e-3)
    assert other.forward_s == pytest.approx(9 * 5e-3 * bare[1] / bare[0])


@pytest.mark.parametrize("changes", [{"model": "other"}, {"sequence_length": 128}, {"dtype": "fp32"}])
def test_a_profile_of_something_else_does_not_count(changes: dict[str, Any]) -> None:
    other = layer_profile().model_copy(update=changes)
    times = cost.stage_time(device(layer_profile=other.model_dump()), WORKLOAD, 0, LAYERS, 4)
    assert times.fidelity == "datasheet"


# The optimizer


@given(any_device, cuts, st.floats(0.01, 1.0))
def test_updates_add_up_and_are_shared(where: Device, cut: int, share: float) -> None:
    free = where.model_copy(update={"launch_overhead_us": 0.0})
    whole = cost.update_s(free, WORKLOAD, 0, LAYERS)
    parts = [cost.update_s(free, WORKLOAD, first, last) for first, last in ((0, cut), (cut, LAYERS))]
    if not isinstance(free.memory_efficiency, Saturation) and free.profile is None and free.layer_profile is None:
        assert sum(parts) >= whole * (1 - 1e-9)  # a smaller piece of traffic reaches less of the peak
        return
    assert sum(parts) == pytest.approx(whole)
    assert cost.update_s(free, WORKLOAD, 0, cut, share=share) == pytest.approx(share * parts[0])


# Efficiency


@given(st.floats(0.01, 1.0), st.floats(0.1, 1e3), st.floats(1e6, 1e15))
def test_half_of_the_best_share_is_reached_at_half(best: float, half_us: float, rate: float) -> None:
    curve = Saturation(best=best, half_us=half_us)
    work = rate * half_us * 1e-6
    assert work / (rate * roofline.busy_s(work, rate, curve)) == pytest.approx(best / 2)
    large = 1e6 * work
    assert large / (rate * roofline.busy_s(large, rate, curve)) == pytest.approx(best, rel=1e-5)


@given(st.integers(1, 64), st.floats(0.0, 1e6))
def test_the_host_is_hidden_behind_the_device(n: int, dispatch_us: float) -> None:
    """A layer takes the longer of the device's time and the host's for its kernels."""
    block = MODEL.layers[1]
    bare, driven = device(), device(dispatch_us=dispatch_us)
    kernels = sum(op.kernels for op in block.forward)
    alone_s, driven_s = (roofline.layer_s(block.forward, each, WORKLOAD, n, roofline.WHOLE) for each in (bare, driven))
    assert driven_s == pytest.approx(max(alone_s, kernels * dispatch_us * 1e-6))
