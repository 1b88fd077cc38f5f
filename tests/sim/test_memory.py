"""Memory: Korthikanti's and ZeRO's formulas, micro-batches in flight, ties, skips, shares, and what a refusal says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim import cost, footprint, memory
from steelyard.sim.device import GIB, Device
from steelyard.sim.memory import Memory, held_per_micro_batch, peak
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.schedule import deal_samples
from steelyard.sim.workload import Layer, Model, TensorSplit, Workload

TOKENS, HIDDEN, HEADS = 2048, 1024, 16
SH = TOKENS * HIDDEN
SCORES = 5 * HEADS * TOKENS / HIDDEN
"""5 a s / h."""


def block(name: str, **changes: Any) -> Layer:
    """A 16-bit GPT block with a 4h MLP, dropout masks (a byte is half an element) and attention scores kept."""
    fields: dict[str, Any] = {
        "name": name,
        "parameters": 12 * HIDDEN**2,
        "trainable_parameters": 12 * HIDDEN**2,
        "forward": [],
        "backward": [],
        "activation_elements": [0.0, 17.0 * HIDDEN, 2.5 * HEADS],
        "selective_elements": [0.0, 0.0, 2.5 * HEADS],
        "output_elements": [0.0, float(HIDDEN)],
        "tensor": TensorSplit(
            divisor=HEADS,
            forward_elements=[[0.0, float(HIDDEN)]] * 2,
            backward_elements=[[0.0, float(HIDDEN)]] * 2,
            divided_activations=(24 + SCORES) / (34 + SCORES),
        ),
    }
    return Layer.model_validate({**fields, **changes})


def workload(layers: Sequence[Layer] | int = 8, **changes: Any) -> Workload:
    chosen = [block(f"h.{number}") for number in range(layers)] if isinstance(layers, int) else list(layers)
    fields: dict[str, Any] = {
        "model": Model(name="gpt", layers=chosen),
        "global_batch": 64,
        "sequence_length": TOKENS,
        "dtype": "bf16",
    }
    return Workload(**{**fields, **changes})


def stage(first: int, last: int, *replicas: Sequence[str], **changes: Any) -> Stage:
    shares = changes.pop("shares", [1 / len(replicas)] * len(replicas))
    named = [Replica(devices=list(names), share=share) for names, share in zip(replicas, shares, strict=True)]
    return Stage(first=first, last=last, replicas=named, **changes)


def plan(*pipelines: tuple[Sequence[Stage], Sequence[int]], **changes: Any) -> Plan:
    return Plan(pipelines=[Pipeline(stages=list(s), micro_batches=list(m)) for s, m in pipelines], **changes)


def line(bounds: Sequence[int], sizes: Sequence[int], name: str = "", **changes: Any) -> tuple[list[Stage], list[int]]:
    """A pipeline cut at the bounds, device ``name`` + number for each stage."""
    stages = [
        stage(first, last, [f"{name}{number}"], **changes)
        for number, (first, last) in enumerate(itertools.pairwise(bounds))
    ]
    return stages, list(sizes)


# Activations of one micro-batch: Korthikanti et al. 2022, table 2, bytes per s u h


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("recompute", "sequence", "formula"),
    [
        ("none", False, lambda t: 10 + 24 / t + SCORES / t),
        ("none", True, lambda t: (34 + SCORES) / t),
        ("selective", False, lambda t: 10 + 24 / t),
        ("selective", True, lambda t: 34 / t),
        ("full", False, lambda t: 2),
        ("full", True, lambda t: 2 / t),
    ],
)
def test_activations_of_a_block(degree: int, samples: int, recompute: Any, sequence: bool, formula: Any) -> None:
    blocks = stage(2, 7, [str(n) for n in range(degree)], recompute=recompute, sequence_parallel=sequence)
    held = held_per_micro_batch(workload(), blocks, samples, degree)
    assert held == pytest.approx(5 * samples * SH * formula(degree))


@pytest.mark.parametrize("degree", [1, 4])
def test_what_recomputation_brings_back_is_one_layer(degree: int) -> None:
    """Full: all of one block; selective: its scores."""
    names = [str(number) for number in range(degree)]
    for recompute, per_sh in (("none", 0), ("selective", SCORES / degree), ("full", (34 + SCORES) / degree)):
        whole = stage(0, 8, names, recompute=recompute, sequence_parallel=True)
        found = peak(workload(), plan(([whole], [3, 2])))["0"]
        assert found.recomputed == pytest.approx(3 * SH * per_sh)


def test_the_first_layer_reads_nothing_that_is_kept() -> None:
    whole = stage(0, 8, ["a"], recompute="full")
    assert held_per_micro_batch(workload(), whole, 1, 1) == 7 * 2 * SH


def test_a_layer_that_cannot_be_divided_is_whole_on_every_rank() -> None:
    lone = workload([block("h", tensor=None)])
    for sequence in (False, True):
        held = held_per_micro_batch(lone, stage(0, 1, ["a", "b"], sequence_parallel=sequence), 1, 2)
        assert held == pytest.approx(SH * (34 + SCORES))
    assert peak(lone, plan(([stage(0, 1, ["a", "b"])], [1])))["b"].weights == 2 * 12 * HIDDEN**2


def test_sequence_parallelism_gathers_one_input() -> None:
    for sequence, gathered in ((False, 0), (True, 3 * 2 * SH)):
        whole = stage(0, 8, ["a", "b"], sequence_parallel=sequence)
        assert peak(workload(), plan(([whole], [2, 3])))["a"].collective == gathered


# States


@pytest.mark.parametrize(
    ("dtype", "optimizer", "weights", "gradients", "states"),
    [
        ("bf16", "adamw", 2, 2, 12),
        ("fp16", "sgd", 2, 2, 4),
        ("fp32", "adamw", 4, 4, 8),
        ("fp32", "momentum", 4, 4, 4),
        ("fp32", "sgd", 4, 4, 0),
        ("fp64", "sgd", 8, 8, 0),
    ],
)
def test_bytes_per_parameter(dtype: Any, optimizer: Any, weights: int, gradients: int, states: int) -> None:
    chosen = workload(dtype=dtype, optimizer=optimizer)
    found, count = peak(chosen, plan(([stage(0, 8, ["a"])], [1])))["a"], chosen.parameters
    assert (found.weights, found.gradients, found.optimizer) == (weights * count, gradients * count, states * count)
    assert found.weights + found.gradients + found.optimizer == chosen.state_bytes


@pytest.mark.parametrize("peers", [1, 2, 5, 64])
@pytest.mark.parametrize(
    ("zero", "formula"),
    [(0, lambda d: 16), (1, lambda d: 4 + 12 / d), (2, lambda d: 2 + 14 / d), (3, lambda d: 16 / d)],
)
def test_sharded_states_per_parameter(peers: int, zero: int, formula: Any) -> None:
    """ZeRO, mixed-precision Adam: 4 + 12/d, 2 + 14/d, 16/d."""
    chosen = workload()
    wide = plan(*[line([0, 8], [1], f"p{number}/") for number in range(peers)], zero=zero)
    for found in peak(chosen, wide).values():
        states = found.weights + found.gradients + found.optimizer
        assert states == pytest.approx(chosen.parameters * formula(peers))


def test_replicas_of_a_stage_are_peers_and_other_tensor_degrees_are_not() -> None:
    chosen = workload()
    mixed = plan(
        ([stage(0, 4, ["a"], ["b"]), stage(4, 8, ["c", "d"])], [2]),
        ([stage(0, 8, ["e", "f"])], [2]),
        zero=1,
    )
    found, half = peak(chosen, mixed), 12.0 * chosen.parameters / 2
    assert found["a"].optimizer == found["b"].optimizer == pytest.approx(half / 2)  # two peers
    assert found["c"].optimizer == pytest.approx(half / 2 / 2)  # two ranks, and the same rank of e, f
    assert found["e"].optimizer == pytest.approx(half / 2 + half / 2 / 2)  # alone in the first half


def test_pipelines_that_are_cut_otherwise_share_what_both_hold() -> None:
    chosen = workload()
    found = peak(chosen, plan(line([0, 2, 8], [1], "x"), line([0, 5, 8], [1], "y"), line([0, 8], [1], "z"), zero=2))
    for name, layers in (("x0", 2), ("x1", 6), ("y0", 5), ("y1", 3), ("z0", 8)):
        assert found[name].optimizer == pytest.approx(12 * 12 * HIDDEN**2 * layers / 3)
        assert found[name].gradients == pytest.approx(2 * 12 * HIDDEN**2 * layers / 3)
        assert found[name].weights == 2 * 12 * HIDDEN**2 * layers


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 3))
def test_unequal_state_shares(weights: list[int], zero: int) -> None:
    """Cephalo: 16 r per parameter, the shares of a peer group whole."""
    chosen = workload()
    shares = {f"p{number}/0": each / sum(weights) for number, each in enumerate(weights)}
    pipelines = [line([0, 8], [1], f"p{number}/") for number in range(len(weights))]
    shared = plan(*pipelines, zero=zero, state_shares=shares)
    assert memory.check_shares(shared) is None
    found = peak(chosen, shared)
    for name, share in shares.items():
        assert found[name].optimizer == pytest.approx(12 * share * chosen.parameters)
        assert found[name].weights == pytest.approx(2 * (share if zero == 3 else 1) * chosen.parameters)
    assert sum(each.optimizer for each in found.values()) == pytest.approx(12 * chosen.parameters)


def test_equal_state_shares_say_what_none_says() -> None:
    lines = [line([0, 3, 8], [2, 1], name) for name in "abcd"]
    equal = dict.fromkeys([f"{name}{number}" for name in "abcd" for number in (0, 1)], 0.25)
    for zero in (1, 2, 3):
        said = peak(workload(), plan(*lines, zero=zero, state_shares=equal, schedule="1f1b"))
        assert said == peak(workload(), plan(*lines, zero=zero, schedule="1f1b"))


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"a0": 0.5, "a1": 0.5, "b0": 0.4, "b1": 0.5}, "sum to 0.9 over a0, b0, which hold the same part of layers 0"),
        ({"a0": 0.5, "a1": 0.2, "b0": 0.5, "b1": 0.9}, "sum to 1.1 over a1, b1, which hold the same part of layers 4"),
        ({"a0": 0.5, "a1": 0.5, "b0": 0.5}, "lack 'b1'"),
        ({"a0": 0.5, "a1": 0.5, "b0": 0.5, "b1": 0.5, "c": 0.0}, "name 'c'"),
    ],
)
def test_state_shares_that_do_not_add_up(shares: dict[str, float], says: str) -> None:
    wrong = memory.check_shares(plan(line([0, 4, 8], [1], "a"), line([0, 4, 8], [1], "b"), zero=1, state_shares=shares))
    assert wrong is not None
    assert wrong[0] == "state_shares"
    assert says in wrong[1]


def test_frozen_parameters_are_weights_only() -> None:
    frozen = workload([block("a", trainable_parameters=0), block("b", trainable_parameters=100)])
    found = peak(frozen, plan(([stage(0, 2, ["x"])], [1])))["x"]
    assert (found.weights, found.gradients, found.optimizer) == (2 * 24 * HIDDEN**2, 200, 1200)


def test_parameters_that_every_rank_holds() -> None:
    split = TensorSplit(divisor=4, divided_parameters=0.75)
    chosen = workload([block("h", parameters=800, trainable_parameters=400, tensor=split)])
    found = peak(chosen, plan(([stage(0, 1, list("abcd"))], [1])))["c"]
    assert found.weights == pytest.approx(2 * 800 * (0.75 / 4 + 0.25))
    assert found.gradients == pytest.approx(2 * 400 * (0.75 / 4 + 0.25))


# One device: what the cost model says


@given(
    st.integers(0, 12),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.sampled_from(["fp32", "bf16", "fp64", "fp8"]),
    st.sampled_from(["sgd", "momentum", "adamw"]),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=3),
)
def test_one_device_is_the_closed_form_of_the_cost_model(
    more: int, sizes: list[int], dtype: Any, optimizer: Any, elements: list[float]
) -> None:
    """Exactly: policies cap micro-batches by the one, plans are judged by the other."""
    layers = [block(f"h.{number}", activation_elements=elements) for number in range(1 + more)]
    chosen = workload(layers, dtype=dtype, optimizer=optimizer)
    for schedule in ("gpipe", "1f1b"):
        found = peak(chosen, plan(line([0, 1 + more], sizes, "a"), line([0, 1 + more], [1], "b"), schedule=schedule))
        assert found["a0"].total == cost.peak_memory_bytes(chosen, max(sizes))
        assert found["b0"].total == cost.peak_memory_bytes(chosen, 1)


# In flight


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
def test_micro_batches_in_flight(count: int) -> None:
    """GPipe holds all m; stage i of 1F1B min(m, p - i)."""
    for schedule in ("gpipe", "1f1b"):
        found = peak(workload(), plan(line([0, 2, 4, 6, 8], [3] * count), schedule=schedule))
        for number in range(4):
            flying = count if schedule == "gpipe" else min(count, 4 - number)
            assert found[str(number)].activations == pytest.approx(flying * 2 * 3 * SH * (34 + SCORES))
            assert found[str(number)].stage == number


@pytest.mark.parametrize("count", [4, 8, 12])
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_chunks_in_flight_when_interleaved(count: int, chunks: int) -> None:
    """min(m v, 2 (p - 1 - i) + (v - 1) p + 1) chunks, each 1/v of the worker's layers."""
    stages = [stage(number, number + 1, [str(number % 4)]) for number in range(4 * chunks)]
    found = peak(workload(4 * chunks), plan((stages, [2] * count), schedule="interleaved"))
    for number in range(4):
        flying = min(count * chunks, 2 * (3 - number) + (chunks - 1) * 4 + 1)
        assert found[str(number)].activations == pytest.approx(flying * 2 * SH * (34 + SCORES))
        assert found[str(number)].stage == number


def test_a_single_stage_accumulates_whatever_the_schedule() -> None:
    for schedule in ("gpipe", "1f1b"):
        found = peak(workload(), plan(line([0, 8], [1, 3, 2]), schedule=schedule))
        assert found["0"].activations == pytest.approx(8 * 3 * SH * (34 + SCORES))


@st.composite
def pipelines(draw: st.DrawFn, name: str = "") -> tuple[list[Stage], list[int]]:
    """Stages of unequal size, one to three replicas of one to four devices each, unequal micro-batches."""
    bounds = [0, *sorted(draw(st.sets(st.integers(1, 7), max_size=4))), 8]
    stages = []
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        degree, weights = draw(st.sampled_from([1, 2, 4])), draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
        names = [[f"{name}{number}/{r}/{rank}" for rank in range(degree)] for r in range(len(weights))]
        how = {
            "recompute": draw(st.sampled_from(["none", "selective", "full"])),
            "sequence_parallel": draw(st.booleans()),
        }
        stages.append(stage(first, last, *names, shares=[each / sum(weights) for each in weights], **how))
    return stages, draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))


def walk(schedule: str, stages: int, number: int, held: Sequence[float]) -> float:
    """The most that a stage holds, from the definition: how many forwards lead its backwards by at most."""
    lead = len(held) if schedule == "gpipe" and stages > 1 else min(len(held), stages - number)
    return max(sum(held[first : first + lead]) for first in range(len(held) - lead + 1))


@given(pipelines(), st.sampled_from(["gpipe", "1f1b"]))
def test_peak_is_that_of_an_independent_walk(chosen: tuple[list[Stage], list[int]], schedule: Any) -> None:
    stages, sizes = chosen
    found = peak(workload(), plan(chosen, schedule=schedule))
    for number, each in enumerate(stages):
        shares = [replica.share for replica in each.replicas]
        for index, replica in enumerate(each.replicas):
            degree = len(replica.devices)
            held = [held_per_micro_batch(workload(), each, deal_samples(size, shares)[index], degree) for size in sizes]
            for name in replica.devices:
                assert found[name].activations == pytest.approx(walk(schedule, len(stages), number, held))
                assert found[name].stage == number
    assert found.keys() == set(plan(chosen).pipelines[0].devices)


@given(pipelines("a"), pipelines("b"), st.sampled_from(["gpipe", "1f1b"]))
def test_pipelines_are_independent_when_nothing_is_sharded(one: Any, other: Any, schedule: Any) -> None:
    together = peak(workload(), plan(one, other, schedule=schedule))
    apart = peak(workload(), plan(one, schedule=schedule)) | peak(workload(), plan(other, schedule=schedule))
    assert together == apart


@given(pipelines("a"), st.integers(0, 3), st.sampled_from(["gpipe", "1f1b"]))
def test_pipelines_of_one_shape_need_the_same(one: tuple[list[Stage], list[int]], zero: int, schedule: Any) -> None:
    twin = plan(one).pipelines[0].model_dump_json().replace('"a', '"b')
    both = Plan(pipelines=[plan(one).pipelines[0], Pipeline.model_validate_json(twin)], zero=zero, schedule=schedule)
    found = peak(workload(), both)
    assert all(found[name] == found["b" + name[1:]] for name in found if name[0] == "a")
    assert memory.check_shares(both) is None


@given(pipelines(), st.sampled_from(["gpipe", "1f1b"]))
def test_less_is_kept_with_more_recomputation_and_fewer_samples(chosen: Any, schedule: Any) -> None:
    stages, sizes = chosen

    def activations(recompute: str, counts: list[int]) -> list[float]:
        same = [each.model_copy(update={"recompute": recompute}) for each in stages]
        return [each.activations for each in peak(workload(), plan((same, counts), schedule=schedule)).values()]

    none, selective, full = (activations(each, sizes) for each in ("none", "selective", "full"))
    assert all(a >= b >= c for a, b, c in zip(none, selective, full, strict=True))
    fewer = activations("none", [-(-size // 2) for size in sizes])
    if all(len(each.replicas) == 1 for each in stages):  # largest remainders are not monotone in the samples
        assert all(a >= b for a, b in zip(none, fewer, strict=True))


@given(st.sets(st.integers(1, 7), max_size=5), st.integers(1, 7), st.integers(1, 9))
def test_a_cut_more_divides_what_there_is(cuts: set[int], more: int, samples: int) -> None:
    bounds, finer = [0, *sorted(cuts), 8], [0, *sorted(cuts | {more}), 8]
    coarse, fine = (peak(workload(), plan(line(each, [samples]))).values() for each in (bounds, finer))
    for term in ("weights", "gradients", "optimizer", "activations"):
        assert max(getattr(each, term) for each in fine) <= max(getattr(each, term) for each in coarse)
        assert sum(getattr(each, term) for each in fine) == sum(getattr(each, term) for each in coarse)


@given(st.integers(1, 200), st.lists(st.integers(1, 1000), min_size=1, max_size=7))
def test_dealing(samples: int, weights: list[int]) -> None:
    shares = [each / sum(weights) for each in weights]
    dealt = deal_samples(samples, shares)
    assert sum(dealt) == samples
    assert all(abs(each - samples * share) < 1 + 1e-9 for each, share in zip(dealt, shares, strict=True))


def test_dealing_goes_by_the_largest_remainder_and_then_in_order() -> None:
    assert deal_samples(7, [0.5, 0.5]) == [4, 3]
    assert deal_samples(10, [0.26, 0.37, 0.37]) == [2, 4, 4]
    assert deal_samples(1, [0.3, 0.4, 0.3]) == [0, 1, 0]
    assert deal_samples(3, [1 / 3, 1 / 3, 1 / 3]) == [1, 1, 1]


# Ties, skips, buffers


def tied(cut: int | None) -> Workload:
    layers = [block("embedding", parameters=1000, trainable_parameters=1000), *[block(f"h.{n}") for n in range(2)]]
    return workload([*layers, block("head", parameters=10, trainable_parameters=10, tied_with="embedding")])


def test_a_tied_layer_is_copied_where_the_cut_parts_it_from_its_twin() -> None:
    chosen, inner = tied(None), 2 * 12 * HIDDEN**2
    whole = peak(chosen, plan(line([0, 4], [1])))["0"]
    assert whole.weights == 2 * (1000 + inner + 10)
    found = peak(chosen, plan(line([0, 3, 4], [1])))
    for name, count in (("0", 1000 + inner), ("1", 1000 + 10)):
        assert (found[name].weights, found[name].gradients, found[name].optimizer) == (2 * count, 2 * count, 12 * count)


def test_a_device_that_holds_both_ends_of_a_tie_holds_it_once() -> None:
    stages = [stage(0, 1, ["a"]), stage(1, 3, ["b"]), stage(3, 4, ["a"])]
    assert peak(tied(None), plan((stages, [1])))["a"].weights == 2 * 1010


def test_a_copy_is_sharded_like_the_layer_that_needs_it() -> None:
    found = peak(tied(None), plan(line([0, 3, 4], [1], "a"), line([0, 3, 4], [1], "b"), zero=1))
    assert found["a1"].optimizer == 12 * 1010 / 2


def u_net() -> Workload:
    """Five layers, the first of which feeds the last too, and is read by the second."""
    sizes = {"a": 100.0, "b": 50.0, "c": 10.0, "d": 50.0, "e": 100.0}
    feeds: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["b"], "d": ["c", "b"], "e": ["d", "a"]}
    return workload(
        [
            block(name, activation_elements=[7.0], output_elements=[size], inputs=feeds[name], tensor=None)
            for name, size in sizes.items()
        ],
        sequence_length=1,
    )


def test_what_skips_a_stage_waits_at_its_sender() -> None:
    """Cut after a: nobody in its stage reads a's output, which e needs much later; else b's activations hold it."""
    found = peak(u_net(), plan(line([0, 1, 3, 5], [1], "s")))
    assert found["s0"].activations == 2 * (7 + 100)
    assert found["s1"].activations == 2 * (14 + 0)
    assert peak(u_net(), plan(line([0, 2, 3, 5], [1], "s")))["s0"].activations == 2 * (14 + 50)
    assert peak(u_net(), plan(line([0, 4, 5], [1], "s")))["s0"].activations == 2 * 28


def test_receive_buffers_count_every_edge_twice() -> None:
    """Stages a | b c | d e: the first gets the gradients of a's output from both others."""
    found = peak(u_net(), plan(line([0, 1, 3, 5], [3, 5], "s")))
    assert found["s0"].transfer == 2 * 5 * 2 * (100 + 100)
    assert found["s1"].transfer == 2 * 5 * 2 * (100 + 50 + 10)
    assert found["s2"].transfer == 2 * 5 * 2 * (10 + 50 + 100)


def test_full_recomputation_keeps_what_is_read_once() -> None:
    """b, c, d, e read a, b, c and d; b and a twice. a's own input is the sample."""
    whole = stage(0, 5, ["x"], recompute="full")
    assert held_per_micro_batch(u_net(), whole, 1, 1) == 2 * (100 + 50 + 10 + 50)


def test_no_buffers_where_a_stage_ends_on_the_same_device() -> None:
    same = plan(([stage(0, 3, ["a"]), stage(3, 8, ["a"])], [2]))
    assert peak(workload(), same)["a"].transfer == 0
    apart = peak(workload(), plan(line([0, 3, 8], [2])))
    assert apart["0"].transfer == apart["1"].transfer == 2 * 2 * 2 * SH


def test_gradients_are_reduced_in_place_until_they_are_sharded() -> None:
    """A bucket: layers from the last on until it has its size; ZeRO-3: a gathered layer besides."""
    chosen, layer = workload(), 2 * 12 * HIDDEN**2
    lines = [line([0, 8], [1], name) for name in "ab"]
    for zero, layers in ((0, 0), (1, 0), (2, 5), (3, 6)):
        found = peak(chosen, plan(*lines, zero=zero, bucket_mib=4.5 * layer / 2**20))["a0"]
        assert found.collective == layers * layer
    assert peak(chosen, plan(*lines, zero=2, bucket_mib=1e6))["a0"].collective == 8 * layer
    assert peak(chosen, plan(lines[0], zero=3))["a0"].collective == 0


# The record, and the refusal


memories = st.builds(Memory, *[st.integers(0, 10**12).map(float)] * 7)


@given(memories)
def test_terms_sum_to_the_total(found: Memory) -> None:
    terms = found.terms()
    assert sum(terms.values()) == found.total == found.static + found.activations
    assert found.largest_term() == (next(iter(terms)), max(terms.values()))
    assert list(terms.values()) == sorted(terms.values(), reverse=True)


def device(name: str, gib: float) -> Device:
    return Device(name=name, peak_tflops={"bf16": 1.0}, memory_gib=gib, memory_bandwidth_gb_per_s=1.0)


def test_what_does_not_fit_is_named_with_device_stage_terms_and_amount() -> None:
    chosen = plan(line([0, 2, 5, 8], [2] * 6, "d"), schedule="gpipe")
    need = peak(workload(), chosen)["d1"]
    devices = {"d0": device("d0", 80), "d1": device("d1", 4), "d2": device("d2", 80)}
    violation = memory.check(workload(), devices, chosen)
    assert violation is not None
    path, problem, mend = violation
    assert path == "pipelines.0.stages.1"
    assert problem.startswith(f"needs {need.total / GIB:.4g} GiB on 'd1', which has 4 GiB: activations")
    over = re.search(r"; ([\d.]+) GiB too much$", problem)
    assert over is not None
    assert float(over[1]) == pytest.approx(need.total / GIB - 4, rel=1e-3)
    named = {name: float(size) * GIB for name, size in re.findall(r"(\w+) ([\d.]+)[,;]", problem)}
    assert named == {name: pytest.approx(getattr(need, name), rel=1e-3) for name in named}
    assert sum(named.values()) == pytest.approx(need.total, rel=0.02)
    assert mend == "smaller micro-batches, or schedule 1f1b, or recompute selective or full"


@pytest.mark.parametrize(
    ("chosen", "gib", "mend"),
    [
        (
            plan(line([0, 8], [2], "d")),
            1.6,
            "give it fewer samples or a max_micro_batch, or recompute selective or full",
        ),
        (plan(line([0, 8], [2], "d")), 1.2, "divide its layers over more stages or devices"),
        (plan(*[line([0, 8], [1], n) for n in "de"], zero=1), 0.5, "divide its layers .*, or zero = 2"),
        (plan(line([0, 8], [9], "d", recompute="full")), 1.6, "give it fewer samples or a max_micro_batch"),
    ],
)
def test_what_helps_is_said(chosen: Plan, gib: float, mend: str) -> None:
    violation = memory.check(workload(), {name: device(name, gib) for name in peak(workload(), chosen)}, chosen)
    assert violation is not None
    assert re.fullmatch(mend, violation[2])


def test_a_bucket_that_is_too_large_is_said_to_be() -> None:
    short = workload(sequence_length=16)
    chosen = plan(*[line([0, 8], [1], name) for name in "abcdefghijklmnopqrst"], zero=3, bucket_mib=1e6)
    need = peak(short, chosen)["a0"]
    assert need.largest_term()[0] == "collective"
    devices = {name: device(name, need.total / GIB * 0.99) for name in peak(short, chosen)}
    violation = memory.check(short, devices, chosen)
    assert violation is not None
    assert violation[2] == "a smaller bucket_mib, or smaller micro-batches"


@given(pipelines(), st.integers(0, 3), st.floats(-0.01, 0.01))
def test_a_plan_is_refused_where_memory_is_exceeded(chosen: Any, zero: int, spare: float) -> None:
    whole = plan(chosen, zero=zero)
    found = peak(workload(), whole)
    room = max(each.total for each in found.values()) * (1 + spare)
    devices = {name: device(name, room / GIB) for name in found}
    fits = all(each.total <= devices[name].memory_bytes for name, each in found.items())
    assert (memory.check(workload(), devices, whole) is None) == fits


def test_overhead_is_not_the_models() -> None:
    chosen = plan(line([0, 8], [1], "d"))
    need = peak(workload(), chosen)["d0"].total / GIB
    roomy = device("d0", need + 1)
    assert memory.check(workload(), {"d0": roomy}, chosen) is None
    taken = roomy.model_copy(update={"overhead_gib": 1.001})
    assert memory.check(workload(), {"d0": taken}, chosen) is not None


def test_sums_are_taken_once_per_cut() -> None:
    """Thousands of plans over one model: what a stage takes is summed once."""
    chosen = workload()
    footprint.kept_bytes.cache_clear()
    for _ in range(3):
        peak(chosen, plan(*[line([0, 3, 8], [1, 2, 3], f"p{number}/") for number in range(20)]))
    assert footprint.kept_bytes.cache_info().misses == 2
