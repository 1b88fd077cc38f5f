"""Decoder: a GPT- or Llama-like language model as a workload model, from its numbers alone; no transformers needed.

The operators are those of an eager implementation, with fused attention or without: products, the attention's two
batched products, and the passes over memory between them; ``kernels`` counts what is launched. FLOPs are
24 s h^2 + 4 s^2 h per block and 2 s h V for the head (Narayanan et al. 2021, appendix). Activations, 34 + 5 a s / h
bytes per token and hidden unit, how a block divides, and its all-reduces: Korthikanti et al. 2022, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..results.errors import InputError
from .workload import Layer, Model, Operator, TensorSplit

Kind = Literal["matmul", "attention", "normalization", "elementwise", "embedding", "loss"]

MASK = 0.5
"""Elements of a dropout mask's entry: one byte beside two of a 16-bit value."""
LOGIT_ACCESSES = 30.0
"""Elements that a loss in fp32 reads and writes per logit, forward and backward, each pass its own kernel: conversion
to fp32 and back, maximum, difference, exponential, sum, quotient, and their gradients (Megatron-LM's
``vocab_parallel_cross_entropy``)."""
LOGIT_COPIES = 6.0
"""Elements per logit when its gradient is there: 16-bit logits and gradient, fp32 copy and softmax (2 elements each).
Korthikanti et al. count the fp32 copy alone."""
TENSORS_PER_BLOCK = 12
"""Parameters whose gradients are accumulated one by one: weights and biases of four products and two norms."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Widths of a block, in elements per token."""

    hidden: int
    heads: int
    key_value: int
    feed_forward: int
    gated: bool
    scores: float
    """Attention scores of a token, over all heads; 0 where a fused kernel keeps none."""
    dropout: bool

    @property
    def widened(self) -> int:
        """Elements that the first product of the feed-forward puts out."""
        return (2 if self.gated else 1) * self.feed_forward

    @property
    def weights(self) -> int:
        """Weights of the block's products."""
        attention = self.hidden * (2 * self.hidden + 2 * self.key_value)
        return attention + self.hidden * (self.widened + self.feed_forward)

    @property
    def biases(self) -> int:
        """Biases of the products whose outputs are divided; a gated block has none."""
        return 0 if self.gated else self.hidden + 2 * self.key_value + self.widened

    @property
    def whole(self) -> int:
        """Parameters that every rank holds: norms, and the biases of the two products that are summed."""
        return 2 * self.hidden if self.gated else 6 * self.hidden


def decoder(
    *,
    layers: int,
    hidden: int,
    heads: int,
    vocabulary: int,
    sequence_length: int,
    kv_heads: int | None = None,
    feed_forward: int | None = None,
    gated: bool = False,
    scores_kept: bool = False,
    dropout: bool | None = None,
    tied: bool = True,
    logit_accesses: float = LOGIT_ACCESSES,
    name: str = "decoder",
) -> Model:
    """A decoder-only language model: embedding, equal blocks, and a head with the loss.

    Args:
        layers: blocks.
        hidden: width of the residual stream.
        heads: attention heads; they divide ``hidden``.
        vocabulary: tokens that the head tells apart.
        sequence_length: the longest sequence: learned positions, and the share of activations that tensor parallelism
            divides, which depends on it.
        kv_heads: heads of keys and values (grouped-query attention); all by default.
        feed_forward: inner width of the feed-forward; 4 hidden by default.
        gated: Llama's form: gated feed-forward, RMS norms, no biases, rotary positions; else GPT's.
        scores_kept: attention scores go through memory and are kept for the backward pass; else a fused kernel.
        dropout: whether masks are drawn, kept and applied; by default where the form is GPT's.
        tied: the head uses the embedding's weights.
        logit_accesses: elements that the loss reads and writes per logit, forward and backward together.
        name: of the model.

    Raises:
        InputError: a number that makes no model.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    _check(layers=layers, hidden=hidden, heads=heads, vocabulary=vocabulary, kv_heads=kv_heads, length=sequence_length)
    shape = _Shape(
        hidden=hidden,
        heads=heads,
        key_value=hidden // heads * kv_heads,
        feed_forward=4 * hidden if feed_forward is None else feed_forward,
        gated=gated,
        scores=float(heads) if scores_kept else 0.0,
        dropout=(not gated) if dropout is None else dropout,
    )
    block = _block(shape, sequence_length, kv_heads)
    return Model(
        name=name,
        summary=f"{layers} blocks, hidden {hidden}, {heads} heads, vocabulary {vocabulary}",
        layers=[
            _embedding(shape, vocabulary, sequence_length, kv_heads),
            *(block.model_copy(update={"name": f"blocks.{number}"}) for number in range(layers)),
            _head(shape, vocabulary, kv_heads, logit_accesses, tied=tied),
        ],
    )


def _check(*, layers: int, hidden: int, heads: int, vocabulary: int, kv_heads: int, length: int) -> None:
    numbers = {"layers": layers, "hidden": hidden, "heads": heads, "vocabulary": vocabulary, "kv_heads": kv_heads}
    for field, value in {**numbers, "sequence_length": length}.items():
        if value < 1:
            raise InputError(field, f"is {value}", "must be at least 1")
    if hidden % heads:
        raise InputError("heads", f"is {heads}, which does not divide hidden {hidden}", "choose one that does")
    if heads % kv_heads:
        raise InputError("kv_heads", f"is {kv_heads}, which does not divide heads {heads}", "choose one that does")


def _operator(
    kind: Kind,
    kernels: int,
    *,
    flops: float = 0.0,
    square_flops: float = 0.0,
    elements: float = 0.0,
    square_elements: float = 0.0,
    weight_elements: int = 0,
    divided: float = 1.0,
) -> Operator:
    """An operator from its work per token (and per pair of tokens)."""
    return Operator(
        kind=kind,
        kernels=kernels,
        flops=[0.0, flops, square_flops],
        elements=[0.0, elements, square_elements],
        weight_elements=weight_elements,
        divided=divided,
    )


def _block(shape: _Shape, length: int, kv_heads: int) -> Layer:
    h = shape.hidden
    parameters = shape.weights + shape.biases + shape.whole
    whole, divided, scores = _kept(shape)
    kept = whole + divided + scores * length
    reduced = [[0.0, float(h)]] * 2
    return Layer(
        name="blocks.0",
        parameters=parameters,
        trainable_parameters=parameters,
        forward=_block_forward(shape),
        backward=_block_backward(shape),
        activation_elements=[0.0, whole + divided, scores],
        selective_elements=[0.0, 0.0, scores],
        selective_flops=[0.0, 0.0, 4.0 * h if scores else 0.0],
        output_elements=[0.0, float(h)],
        tensor=TensorSplit(
            divisor=kv_heads,
            forward_elements=reduced,
            backward_elements=reduced,
            divided_activations=1 - whole / kept,
            divided_parameters=(shape.weights + shape.biases) / parameters,
        ),
    )


def _kept(shape: _Shape) -> tuple[float, float, float]:
    """Elements kept per token by every rank and by one of them, and per pair of tokens by one of them.

    Of 34 h bytes per token, 10 h are not divided: the inputs of the norms and of the first products, and the masks.
    """
    h, mask = shape.hidden, MASK if shape.dropout else 0.0
    whole = (4 + 2 * mask) * h
    attention = 2 * h + 2 * shape.key_value
    feed_forward = (4 if shape.gated else 2) * shape.feed_forward
    return whole, float(attention + feed_forward), shape.scores * ((2 + mask) if shape.dropout else 1.0)


def _block_forward(shape: _Shape) -> list[Operator]:
    h, q, f = shape.hidden, shape.hidden + 2 * shape.key_value, shape.feed_forward
    mask = 1 + MASK if shape.dropout else 0.0
    inputs_and_outputs = 4 * h + q + shape.widened + f
    return [
        _operator("matmul", 4, flops=2.0 * shape.weights, elements=inputs_and_outputs, weight_elements=shape.weights),
        *_attention(shape, products=2, score_passes=2 + (1 + mask if shape.dropout else 0.0)),
        _operator("elementwise", 3, elements=shape.widened + f + 2 * h),
        _operator("elementwise", 2, elements=2 * (3 + (MASK if shape.dropout else 0.0)) * h, divided=0.0),
        _operator("normalization", 2, elements=4 * h, weight_elements=shape.whole, divided=0.0),
    ]


def _block_backward(shape: _Shape) -> list[Operator]:
    h, q, f = shape.hidden, shape.hidden + 2 * shape.key_value, shape.feed_forward
    mask = MASK if shape.dropout else 0.0
    inputs_and_outputs = 4 * h + q + shape.widened + f
    return [
        _operator(
            "matmul", 8, flops=4.0 * shape.weights, elements=2 * inputs_and_outputs, weight_elements=2 * shape.weights
        ),
        *_attention(shape, products=4, score_passes=3 + (2 + mask if shape.dropout else 0.0)),
        _operator("elementwise", 5, elements=2 * shape.widened + 2 * f + q + 3 * h),
        _operator("elementwise", 6, elements=2 * (6 + mask) * h, divided=0.0),
        _operator("normalization", 4, elements=8 * h, weight_elements=2 * shape.whole, divided=0.0),
        # The gradient of this micro-batch and the sum so far are read, the new sum is written.
        _operator("elementwise", TENSORS_PER_BLOCK, weight_elements=3 * (shape.weights + shape.biases)),
    ]


def _attention(shape: _Shape, *, products: int, score_passes: float) -> list[Operator]:
    """The batched products of queries, keys and values; where scores are kept, also the passes over them.

    Each product reads or writes the scores once.
    """
    h, vectors = float(shape.hidden), products * (shape.hidden + shape.key_value)
    if not shape.scores:
        return [_operator("attention", products // 2, square_flops=2.0 * products * h, elements=vectors)]
    return [
        _operator(
            "attention",
            products,
            square_flops=2.0 * products * h,
            elements=vectors,
            square_elements=products * shape.scores,
        ),
        _operator("elementwise", 2 if shape.dropout else 1, square_elements=score_passes * shape.scores),
    ]


def _embedding(shape: _Shape, vocabulary: int, length: int, kv_heads: int) -> Layer:
    h = shape.hidden
    words, positions = vocabulary * h, 0 if shape.gated else length * h
    mask = MASK if shape.dropout else 0.0
    return Layer(
        name="embedding",
        parameters=words + positions,
        trainable_parameters=words + positions,
        forward=[_operator("embedding", 5, elements=(5 + (2 + mask if shape.dropout else 0.0)) * h, divided=0.0)],
        backward=[
            _operator("embedding", 4, elements=(4 + mask) * h, divided=0.0),
            # A dense gradient: set to zero, scattered into, added to the sum so far.
            _operator("elementwise", 3, weight_elements=4 * (words + positions)),
        ],
        activation_elements=[0.0, mask * h],
        output_elements=[0.0, float(h)],
        tensor=TensorSplit(
            divisor=kv_heads,
            forward_elements=[[0.0, float(h)]],
            divided_activations=0.0,
            divided_parameters=words / (words + positions),
        ),
    )


def _head(shape: _Shape, vocabulary: int, kv_heads: int, logit_accesses: float, *, tied: bool) -> Layer:
    """Final norm, product with the vocabulary, and the loss in fp32."""
    h, v = shape.hidden, vocabulary
    norm = h if shape.gated else 2 * h
    parameters = norm + (0 if tied else v * h)
    flops, forward_share = 2.0 * h * v, 0.6
    return Layer(
        name="head",
        parameters=parameters,
        trainable_parameters=parameters,
        forward=[
            _operator("normalization", 1, elements=2 * h, weight_elements=norm, divided=0.0),
            _operator("matmul", 1, flops=flops, elements=h + v, weight_elements=v * h),
            _operator("loss", 8, elements=forward_share * logit_accesses * v),
        ],
        backward=[
            _operator("loss", 4, elements=(1 - forward_share) * logit_accesses * v),
            _operator("matmul", 2, flops=2 * flops, elements=2 * (h + v), weight_elements=2 * v * h),
            _operator("elementwise", 1, weight_elements=3 * v * h),
            _operator("normalization", 2, elements=4 * h, weight_elements=2 * norm, divided=0.0),
        ],
        activation_elements=[0.0, 2 * h + LOGIT_COPIES * v],
        output_elements=[0.0, 1.0],
        tied_with="embedding" if tied else None,
        tensor=TensorSplit(
            divisor=kv_heads,
            backward_elements=[[0.0, float(h)]],
            divided_activations=LOGIT_COPIES * v / (2 * h + LOGIT_COPIES * v),
            divided_parameters=(v * h) / parameters if not tied else 0.0,
        ),
    )
