"""The decoder against the published formulas for FLOPs, parameters and activations of GPT and Llama."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim.decoder import LOGIT_COPIES, decoder
from steelyard.sim.workload import Model, Workload, at

LLAMA_8B: dict[str, Any] = {
    "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "feed_forward": 14336, "vocabulary": 128256,
    "sequence_length": 8192, "gated": True, "tied": False,
}  # fmt: skip

heads = st.sampled_from([1, 2, 8, 16])
widths = st.integers(1, 64)
lengths = st.integers(1, 4096)


def gpt(hidden: int = 1024, number: int = 16, length: int = 1024, **changes: Any) -> Model:
    numbers = {"layers": 3, "hidden": hidden, "heads": number, "vocabulary": 50304, "sequence_length": length}
    return decoder(**{**numbers, "scores_kept": True, **changes})


@given(heads, widths, lengths)
def test_flops_of_a_block_and_of_the_head(a: int, width: int, s: int) -> None:
    """24 s h^2 + 4 s^2 h forward and twice that backward; the head 2 s h V (Narayanan et al. 2021)."""
    h = a * width
    model = gpt(h, a, s)
    forward = 24 * s * h**2 + 4 * s**2 * h
    assert model.layers[1].forward_flops(s) == pytest.approx(forward)
    assert model.layers[1].backward_flops(s) == pytest.approx(2 * forward)
    assert model.layers[-1].forward_flops(s) == pytest.approx(2 * s * h * 50304)


def test_model_flops_are_those_of_megatron() -> None:
    """72 u s L h^2 (1 + s/6h + V/12Lh) without recomputation; 96 ... V/16Lh with it (Narayanan et al. 2021)."""
    s, h, layers, v = 2048, 6144, 40, 51200
    model = decoder(layers=layers, hidden=h, heads=48, vocabulary=v, sequence_length=s)
    workload = Workload(model=model, global_batch=1, sequence_length=s)
    assert workload.flops_per_sample == pytest.approx(
        72 * s * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    )
    again = sum(layer.forward_flops(s) for layer in model.layers[:-1])
    with_recomputation = 96 * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))
    assert workload.flops_per_sample + again == pytest.approx(with_recomputation)


@given(heads, widths, lengths, st.integers(1, 3))
def test_flops_of_a_gated_block(a: int, width: int, s: int, groups: int) -> None:
    """Per token 2 [h^2 (2 + 2 kv/heads) + 3 h f] + 4 s h."""
    h, f = a * groups * width, 3 * a * groups * width
    model = gpt(h, a * groups, s, kv_heads=a, feed_forward=f, gated=True)
    expected = s * (2 * (h**2 * (2 + 2 / groups) + 3 * h * f) + 4 * s * h)
    assert model.layers[1].forward_flops(s) == pytest.approx(expected)


@given(heads, widths, lengths)
def test_activations_of_a_block(a: int, width: int, s: int) -> None:
    """Kept are s h (34 + 5 a s / h) bytes; selective recomputation leaves 34 (Korthikanti et al. 2022)."""
    h = a * width
    block = gpt(h, a, s).layers[1]
    kept, spared = at(block.activation_elements, s), at(block.selective_elements, s)
    assert 2 * kept == pytest.approx(s * h * (34 + 5 * a * s / h))
    assert 2 * (kept - spared) == pytest.approx(34 * s * h)
    assert at(block.selective_flops, s) == pytest.approx(4 * s**2 * h)


@given(heads.filter(lambda a: a > 1), widths, lengths, st.sampled_from([2, 4, 8]))
def test_activations_of_a_divided_block(a: int, width: int, s: int, t: int) -> None:
    """Kept are s h (10 + 24/t + 5 a s / (h t)) bytes on each of t ranks."""
    h = a * width
    block = gpt(h, a, s).layers[1]
    assert block.tensor is not None
    kept, divided = at(block.activation_elements, s), block.tensor.divided_activations
    per_rank = kept * (divided / t + 1 - divided)
    assert 2 * per_rank == pytest.approx(s * h * (10 + 24 / t + 5 * a * s / (h * t)))


def test_a_fused_kernel_keeps_no_scores() -> None:
    block = gpt(scores_kept=False).layers[1]
    assert 2 * at(block.activation_elements, 1024) == pytest.approx(34 * 1024 * 1024)
    assert at(block.selective_elements, 1024) == at(block.selective_flops, 1024) == 0


def test_logits_at_their_gradient() -> None:
    head = gpt(h := 512, 8, s := 128).layers[-1]
    assert at(head.activation_elements, s) == pytest.approx(s * (2 * h + LOGIT_COPIES * 50304))


@pytest.mark.parametrize(
    ("numbers", "billions"),
    [
        ({"layers": 12, "hidden": 768, "heads": 12, "vocabulary": 50257, "sequence_length": 1024}, 0.124_439_808),
        ({"layers": 48, "hidden": 1600, "heads": 25, "vocabulary": 50257, "sequence_length": 1024}, 1.557_611_2),
        ({"layers": 96, "hidden": 12288, "heads": 96, "vocabulary": 50257, "sequence_length": 2048}, 174.6),
        (LLAMA_8B, 8.030_261_248),
    ],
)
def test_parameters_are_the_published_ones(numbers: dict[str, Any], billions: float) -> None:
    total = sum(layer.parameters for layer in decoder(**numbers).layers)
    assert total == pytest.approx(billions * 1e9, rel=1e-3)


@given(heads, widths)
def test_parameters_of_a_block(a: int, width: int) -> None:
    """12 h^2 + 13 h."""
    h = a * width
    assert gpt(h, a, 8).layers[1].parameters == 12 * h**2 + 13 * h


def test_a_block_exchanges_its_output_twice_each_way() -> None:
    split = gpt(512, 8, 128).layers[1].tensor
    assert split is not None
    assert [at(each, 128) for each in split.forward_elements] == [128 * 512] * 2
    assert [at(each, 128) for each in split.backward_elements] == [128 * 512] * 2
    assert split.divisor == 8
    assert gpt(512, 8, 128, kv_heads=2).layers[1].tensor.divisor == 2


def test_tied_weights_count_once() -> None:
    tied, free = gpt(), gpt(tied=False)
    assert tied.layers[-1].tied_with == "embedding"
    difference = sum(layer.parameters for layer in free.layers) - sum(layer.parameters for layer in tied.layers)
    assert difference == 50304 * 1024


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"heads": 7}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"layers": 0}, "layers"),
        ({"vocabulary": 0}, "vocabulary"),
        ({"sequence_length": 0}, "sequence_length"),
    ],
)
def test_numbers_that_make_no_model(changes: dict[str, int], path: str) -> None:
    with pytest.raises(InputError) as caught:
        gpt(**changes)
    assert caught.value.path == path
