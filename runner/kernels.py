"""Kernels that a counted pass runs in place of the library's: fused attention, and the experts of a mixture.

Both do no arithmetic: they make results of the right shape, and tell the meter what a real kernel would have done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

NAME = "steelyard_meter"
"""Name under which the kernels are registered with transformers."""


class Counter(Protocol):
    """What a kernel tells about itself."""

    def attended(self, flops: int, tensors: list[Tensor]) -> None:
        """One fused attention kernel; the first tensor is the queries, or their gradient's."""

    def multiplied(self, flops: int, left: Tensor, right: Tensor, out: Tensor, copies: int) -> None:
        """One product of a kind that torch does not know; each token stands in ``copies`` rows."""


_counters: list[Counter] = []


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Tell a counter about the kernels that run inside."""
    _counters.append(counter)
    try:
        yield
    finally:
        _counters.pop()


def register() -> None:
    """Make the kernels known to transformers as :data:`NAME`."""
    from transformers import AttentionInterface
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(NAME, attention)
    ExpertsInterface.register(NAME, experts)


class _FusedAttention(torch.autograd.Function):
    """Attention as one kernel that keeps no score matrix: q, k, v, its output and one number per row are saved.

    Its FLOPs are those of the two batched products, twice that backward: the scores that a fused kernel computes again
    are recomputation, which model FLOPs leave out.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, rows, depth = query.shape
        out = query.new_empty(batch, rows, heads, value.shape[-1])
        rows_sum = query.new_empty(batch, heads, rows)
        ctx.flops = 2 * batch * heads * rows * key.shape[2] * (depth + value.shape[-1])
        ctx.save_for_backward(query, key, value, out, rows_sum)
        _counters[-1].attended(ctx.flops, [query, key, value, out])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, out, _ = ctx.saved_tensors
        made = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
        _counters[-1].attended(2 * ctx.flops, [query, key, value, out, gradients[0], *made])
        return made


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> tuple[Tensor, None]:
    """The counting attention in the form that transformers calls; the mask costs nothing worth counting."""
    return _FusedAttention.apply(query, key, value), None  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _GroupedProduct(torch.autograd.Function):
    """Rows times the weights of their expert, all experts in one kernel that reads every weight once."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, width: int, copies: int) -> Tensor:
        out = rows.new_empty(rows.shape[0], width)
        ctx.flops, ctx.copies = 2 * rows.shape[0] * rows.shape[1] * width, copies
        ctx.save_for_backward(rows, weights)
        _counters[-1].multiplied(ctx.flops, rows, weights, out, copies)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        made = (torch.empty_like(rows), torch.empty_like(weights))
        _counters[-1].multiplied(ctx.flops, gradients[0], weights, made[0], ctx.copies)
        _counters[-1].multiplied(ctx.flops, rows, gradients[0], made[1], ctx.copies)
        return *made, None, None


def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """A mixture's experts in the form that transformers calls: only what the router chose is multiplied."""
    copies = top_k_index.shape[-1]
    rows = hidden_states.repeat_interleave(copies, dim=0)
    inner = _expert(module, "gate_up_proj" if module.has_gate else "up_proj", rows, top_k_index)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    out = _expert(module, "down_proj", inner, top_k_index)
    if module.has_post_expert_norm:
        out = module.post_expert_norm(out)
    weighted = out * top_k_weights.reshape(-1, 1)
    return weighted.view(-1, copies, out.shape[-1]).sum(dim=1)


def _expert(module: Any, name: str, rows: Tensor, chosen: Tensor) -> Tensor:
    weights = getattr(module, name)
    width = weights.shape[-1 if module.is_transposed else -2]
    out: Tensor = _GroupedProduct.apply(rows, weights, width, chosen.shape[-1])  # type: ignore[no-untyped-call]
    return out + getattr(module, f"{name}_bias")[chosen.reshape(-1)] if module.has_bias else out
