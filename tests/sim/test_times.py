"""The table of layer times says of every stage what the cost model says of it, where that adds up at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim import cost
from steelyard.sim.cost import Indivisible, Recompute
from steelyard.sim.decoder import decoder
from steelyard.sim.device import Device, LayerProfile, Profile
from steelyard.sim.times import layer_times
from steelyard.sim.workload import Model, Workload

MODEL = decoder(layers=4, hidden=512, heads=8, vocabulary=1024, sequence_length=256, scores_kept=True, name="small")
WORKLOAD = Workload(model=MODEL, global_batch=64, sequence_length=256, dtype="bf16")
LAYERS = len(MODEL.layers)
SIZES = (2, 4, 8)


def device(**changes: Any) -> Device:
    fields: dict[str, Any] = {
        "name": "device",
        "peak_tflops": {"bf16": 100.0},
        "memory_gib": 40.0,
        "memory_bandwidth_gb_per_s": 1000.0,
    }
    return Device.model_validate({**fields, **changes})


def profile() -> Profile:
    points = [{"micro_batch": n, "forward_s": 1e-3 + 2e-3 * n, "backward_s": 2e-3 + 5e-3 * n} for n in SIZES]
    return Profile.model_validate({"workload": WORKLOAD.key, "points": points, "optimizer_s": 3e-3})


def layer_profile(sizes: tuple[int, ...]) -> LayerProfile:
    """Layer i takes (i + 1) (1 + n) / degree ms forward, twice that backward, and about i us of update."""
    points = [
        {
            "micro_batch": n,
            "tensor_degree": degree,
            "forward_s": [(i + 1) * (1 + n) / degree * 1e-3 for i in range(LAYERS)],
            "backward_s": [2 * (i + 1) * (1 + n) / degree * 1e-3 for i in range(LAYERS)],
            "optimizer_s": [(i + (i + n) % 3) * 1e-6 for i in range(LAYERS)],
        }
        for degree in (1, 2)
        for n in sizes
    ]
    return LayerProfile.model_validate({"model": "small", "sequence_length": 256, "dtype": "bf16", "points": points})


DEVICES = {
    "datasheet": device(slowdown=1.5),
    "saturating": device(
        compute_efficiency={"best": 0.8, "half_us": 30.0}, memory_efficiency={"best": 0.9}, dispatch_us=20.0
    ),
    "profiled": device(profile=profile().model_dump()),
    "by layer": device(layer_profile=layer_profile(SIZES).model_dump()),
    "by layer, one size": device(layer_profile=layer_profile((4,)).model_dump()),
}
any_device = st.sampled_from(sorted(DEVICES)).map(DEVICES.__getitem__)
stages = st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda each: each[0] < each[1])
samples = st.integers(1, 96)
degrees = st.sampled_from([1, 2, 4, 8])
recomputes: st.SearchStrategy[Recompute] = st.sampled_from(["none", "selective", "full"])


@given(any_device, stages, samples, degrees, recomputes, st.booleans())
def test_a_stage_takes_the_sum_of_its_layers(
    where: Device, stage: tuple[int, int], n: int, degree: int, recompute: Recompute, sequence: bool
) -> None:
    table = layer_times(where, WORKLOAD, n, degree, recompute, sequence_parallel=sequence)
    judge = cost.stage_time(
        where, WORKLOAD, *stage, n, tensor_degree=degree, sequence_parallel=sequence, recompute=recompute
    )
    forward, backward = table.stage(*stage)
    assert table.holds_collectives == judge.holds_collectives
    if table.additive:
        assert forward == pytest.approx(judge.forward_s, rel=1e-9)
        assert backward == pytest.approx(judge.backward_s, rel=1e-9)
        assert table.passes[stage] == pytest.approx(judge.forward_s + judge.backward_s, rel=1e-9)
    else:  # the roofline's scale of a whole stage lies between those of its layers
        assert where.layer_profile is not None
        assert judge.forward_s / 2 < forward < judge.forward_s * 2
        assert judge.backward_s / 2 < backward < judge.backward_s * 2


@given(any_device, stages, degrees)
def test_updates_are_those_of_the_cost_model(where: Device, stage: tuple[int, int], degree: int) -> None:
    table = layer_times(where, WORKLOAD, 4, degree)
    assert table.updates[stage] == cost.update_s(where, WORKLOAD, *stage, tensor_degree=degree)
    assert table.updates[stage[::-1]] == 0
    whole = cost.update_s(where, WORKLOAD, 0, LAYERS, tensor_degree=degree)
    assert table.optimizer_sums[-1] == pytest.approx(whole, rel=1e-9)
    assert (table.optimizer_s >= 0).all()


def test_what_is_measured_at_several_sizes_or_not_by_layer_adds_up() -> None:
    by_layer, one = DEVICES["by layer"], DEVICES["by layer, one size"]
    assert layer_times(by_layer, WORKLOAD, 3).additive
    assert not layer_times(by_layer, WORKLOAD, 1).additive, "below the smallest size"
    assert not layer_times(by_layer, WORKLOAD, 3, 4).additive, "another degree"
    assert not layer_times(one, WORKLOAD, 4).additive, "a single size"
    assert all(layer_times(DEVICES[name], WORKLOAD, 3, 2, "selective").additive for name in ("datasheet", "profiled"))


def test_a_loss_before_other_layers_is_no_sum_with_full_recomputation() -> None:
    layers = [MODEL.layers[-1].model_copy(update={"name": "loss", "inputs": None, "tied_with": None}), *MODEL.layers]
    workload = WORKLOAD.model_copy(update={"model": Model(name="early", layers=layers)})
    where = DEVICES["datasheet"]
    assert not layer_times(where, workload, 4, 1, "full").additive
    assert layer_times(where, workload, 4, 1, "none").additive


def test_devices_of_one_kind_share_a_table() -> None:
    first = layer_times(device(name="a"), WORKLOAD, 4)
    assert layer_times(device(name="b"), WORKLOAD, 4) is first
    assert layer_times(device(name="b", slowdown=2.0), WORKLOAD, 4) is not first


def test_a_degree_that_divides_no_layer_is_refused() -> None:
    with pytest.raises(Indivisible):
        layer_times(DEVICES["datasheet"], WORKLOAD, 4, 3)


def test_twice_as_slow_takes_twice_as_long() -> None:
    fast, slow = layer_times(device(), WORKLOAD, 4), layer_times(device(slowdown=2.0), WORKLOAD, 4)
    np.testing.assert_allclose(slow.forward_s, 2 * fast.forward_s)
    np.testing.assert_allclose(slow.updates, 2 * fast.updates)
