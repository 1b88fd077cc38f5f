"""Tensor parallelism of traced models: against smaller models that are one rank's part, and Korthikanti's formulas."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest
from steelyard.runner import families, workload
from steelyard.runner.division import Division
from steelyard.runner.meter import measure
from steelyard.runner.polynomial import BATCHES
from steelyard.runner.workload import REFERENCE_TOKENS, model_from_config
from steelyard.sim.workload import Layer, Model, Operator, at

TINY: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 64}
BERT = {"model_type": "bert", **TINY, "num_attention_heads": 4, "intermediate_size": 128}
GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
OPT = {"model_type": "opt", **TINY, "num_attention_heads": 4, "ffn_dim": 128, "word_embed_proj_dim": 16}
VIT = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}
BART = {
    "model_type": "bart",
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def llama(degree: int = 1) -> dict[str, Any]:
    """A Llama, or the part of it that one rank of a group holds: its heads, its share of the MLP and vocabulary."""
    return {
        "model_type": "llama",
        **TINY,
        "vocab_size": 96 // degree,
        "num_attention_heads": 8 // degree,
        "num_key_value_heads": 4 // degree,
        "head_dim": 4,
        "intermediate_size": 80 // degree,
        "tie_word_embeddings": False,
    }


def mixtral(degree: int = 1) -> dict[str, Any]:
    moe = {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None}
    return {**llama(degree), "model_type": "mixtral", **moe}


def t5(degree: int = 1) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "vocab_size": 96 // degree,
        "d_model": 32,
        "d_kv": 4,
        "d_ff": 64 // degree,
        "num_layers": 2,
        "num_heads": 8 // degree,
        "relative_attention_num_buckets": 4,
    }


def described(config: dict[str, Any], task: str) -> Model:
    return _described(json.dumps(config), task)


@cache
def _described(text: str, task: str) -> Model:
    return model_from_config(json.loads(text), task=task)


def blocks(model: Model) -> list[Layer]:
    return model.layers[1:-1]


def traffic(operator: Operator) -> float:
    return at(operator.elements, REFERENCE_TOKENS) + operator.weight_elements


def flops(operator: Operator) -> float:
    return at(operator.flops, REFERENCE_TOKENS)


def of_rank(value: float, share: float, degree: int) -> float:
    return value * (share / degree + 1 - share)


CASES = [
    (make, task, degree)
    for make, task in ((llama, "causal-lm"), (mixtral, "causal-lm"), (t5, "seq2seq-lm"))
    for degree in (2, 4)
]


@pytest.mark.parametrize(("make", "task", "degree"), CASES, ids=[f"{a.__name__}-{c}" for a, _, c in CASES])
def test_a_ranks_share_is_what_a_model_of_its_size_does(make: Any, task: str, degree: int) -> None:
    """FLOPs, traffic of what has none, kept activations and parameters of one rank, counted on its part as a model.

    T5's relative positions (one number per bucket and head) are counted as whole, though a rank needs those of its
    heads only: they are its first block's, and few parameters, hence the tolerance.
    """
    whole, part = described(make(), task), described(make(degree), task)
    for mine, ranks in zip(whole.layers, part.layers, strict=True):
        assert mine.tensor is not None
        assert mine.tensor.divisor % degree == 0
        kept = at(mine.activation_elements, REFERENCE_TOKENS)
        assert of_rank(kept, mine.tensor.divided_activations, degree) == pytest.approx(
            at(ranks.activation_elements, REFERENCE_TOKENS), rel=1e-3
        )
        assert of_rank(mine.parameters, mine.tensor.divided_parameters, degree) == pytest.approx(
            ranks.parameters, rel=0.02
        )
        for operator, other in zip(mine.forward + mine.backward, ranks.forward + ranks.backward, strict=True):
            assert operator.kind == other.kind
            if mine.name.endswith("block.0") and operator.kind in ("elementwise", "embedding"):
                continue  # where T5 makes its relative positions
            value, tolerance = (flops, 1e-5) if any(operator.flops) else (traffic, 0.02)
            assert of_rank(value(operator), operator.divided, degree) == pytest.approx(value(other), rel=tolerance)


@pytest.mark.parametrize("config", [BERT, GPT2, OPT, llama(), mixtral()], ids=lambda each: str(each["model_type"]))
def test_a_block_reduces_its_output_twice_each_way(config: dict[str, Any]) -> None:
    """Shoeybi et al. 2019: after attention and after the MLP forward, before them backward."""
    task = "sequence-classification" if config is BERT else "causal-lm"
    for block in blocks(described(config, task)):
        assert block.tensor is not None
        assert block.tensor.forward_elements == [block.output_elements] * 2
        assert block.tensor.backward_elements == [block.output_elements] * 2


def test_a_decoder_block_with_cross_attention_reduces_thrice_forward_and_four_times_backward() -> None:
    """Self-attention, cross-attention, MLP; backward the cross-attention's queries, and its keys with its values."""
    layers = [each for each in described(t5(), "seq2seq-lm").layers if "decoder.block" in each.name]
    assert [len(each.tensor.forward_elements) for each in layers if each.tensor] == [3, 3]
    assert [len(each.tensor.backward_elements) for each in layers if each.tensor] == [4, 4]


@pytest.mark.parametrize("config", [GPT2, llama(), OPT], ids=["gpt2", "llama", "opt"])
def test_embedding_and_head_divide_the_vocabulary(config: dict[str, Any]) -> None:
    """One all-reduce of the embedding's output forward, one of the head's input backward; logits are divided."""
    embeddings, *_, head = described(config, "causal-lm").layers
    assert embeddings.tensor is not None
    assert head.tensor is not None
    width = 16.0 if config is OPT else 32.0  # OPT projects its embeddings, and what it projects is whole
    assert (embeddings.tensor.forward_elements, embeddings.tensor.backward_elements) == ([[0.0, width]], [])
    assert (head.tensor.forward_elements, head.tensor.backward_elements) == ([], [[0.0, width]])
    logits = 96 * REFERENCE_TOKENS
    divided = head.tensor.divided_activations * at(head.activation_elements, REFERENCE_TOKENS)
    assert divided == pytest.approx(logits, rel=0.01)


def test_a_classification_head_is_whole_on_every_rank() -> None:
    head = described(BERT, "sequence-classification").layers[-1]
    assert head.tensor is not None
    assert head.tensor.forward_elements == head.tensor.backward_elements == []
    assert head.tensor.divided_parameters == head.tensor.divided_activations == 0
    assert {operator.divided for operator in head.forward + head.backward} == {0}


def test_fused_attention_keeps_no_scores() -> None:
    """Korthikanti et al. 2022 without scores and masks, in elements: 4 + 12/T of 16 (bytes: 8 + 24/T of 32)."""
    hidden, heads = 32, 4
    for block in blocks(described(BERT, "sequence-classification")):
        assert block.tensor is not None
        assert (block.selective_elements, block.selective_flops) == ([0.0], [0.0])
        expected = (12 * hidden + heads) / (16 * hidden + heads + 4)  # a sum per row and head, statistics of two norms
        assert block.tensor.divided_activations == pytest.approx(expected, abs=1e-6)


def written_out(config: dict[str, Any]) -> list[Layer]:
    """Layers of a classifier whose attention keeps its scores; no mask, since none can be looked at without data."""
    import torch

    settled = families.settle(dict(config))
    loss = families.make_loss("sequence-classification", settled)
    with torch.device("meta"):
        model = families.assemble(settled, "sequence-classification", "eager").train()
        passes = {
            (samples, tokens): measure(
                model, {"input_ids": torch.zeros(samples, tokens, dtype=torch.long)}, loss, Division(model, 96, [])
            )
            for samples in BATCHES
            for tokens in (8, 16, 32)
        }
    return workload._layers(passes, families.heads(settled))


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_written_out_attention_follows_korthikanti(degree: int) -> None:
    """Bytes of a 16-bit layer: s h (10 + 24/T + 5 a s/(h T)), dropout masks added, which are off here.

    The masks: one byte for each of 2 s h (whole) and of a s^2, and the scores after dropout 2 a s^2. The layer keeps
    the statistics of its norms beside: 8 bytes a token, hence the tolerance.
    """
    hidden, heads, tokens = 32, 4, REFERENCE_TOKENS
    for block in written_out(BERT)[1:-1]:
        assert block.tensor is not None
        assert block.selective_elements == [0.0, 0.0, heads]
        assert block.selective_flops == [0.0, 0.0, 4.0 * hidden]
        kept = of_rank(at(block.activation_elements, tokens), block.tensor.divided_activations, degree)
        stored = 2 * kept + 2 * tokens * hidden + 3 * heads * tokens**2 / degree
        law = tokens * hidden * (10 + 24 / degree + 5 * heads * tokens / (hidden * degree))
        assert stored == pytest.approx(law, rel=0.005)


def test_selective_recomputation_gives_the_scores_back() -> None:
    """Bloom writes its attention out: a s^2 scores kept, 4 s^2 h FLOPs to make and use them again."""
    config = {"model_type": "bloom", "vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    for block in blocks(described(config, "causal-lm")):
        assert block.selective_elements == [0.0, 0.0, 4.0]
        assert block.selective_flops == [0.0, 0.0, 4.0 * 32]


def test_the_degree_must_divide_heads_key_value_heads_and_inner_widths() -> None:
    assert {each.tensor.divisor for each in blocks(described(llama(), "causal-lm")) if each.tensor} == {4}
    odd = {**llama(), "intermediate_size": 78}
    assert {each.tensor.divisor for each in blocks(described(odd, "causal-lm")) if each.tensor} == {2}
    whole = described(BART, "seq2seq-lm").layers
    assert {each.tensor.divisor for each in whole if each.tensor} == {math.gcd(4, 8)}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "convnext", "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "image_size": 32},
        {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    ],
    ids=["convnext", "resnet"],
)
def test_a_model_without_heads_cannot_be_divided(config: dict[str, Any]) -> None:
    assert all(layer.tensor is None for layer in described(config, "sequence-classification").layers)


def test_convolutions_over_whole_images_are_done_by_every_rank() -> None:
    embeddings = described(VIT, "sequence-classification").layers[0]
    assert embeddings.tensor is not None
    assert next(each.divided for each in embeddings.forward if each.kind == "matmul") == 0
    assert embeddings.tensor.divided_parameters == 0
