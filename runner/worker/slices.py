"""Layers of a workload as modules: what a stage of a pipeline computes, whatever the cut.

The layers of :func:`steelyard.runner.workload.model_from_config` are the embeddings, the blocks and the head. Each is a
small module here that takes what the layer before hands on (the first one: token ids) and the mask of padding, whole
numbers of shape [samples, tokens] with 1 for a token. Masks are not sent along: whoever holds a stage has the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..execution import FAMILIES


class Context:
    """What all layers of a slice share of a micro-batch: the mask, and what is made of it once."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made when it is first asked for."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]


Compute = Callable[[Tensor, Context], Tensor]


class Layer(nn.Module):
    """One layer: modules of the whole model, which keeps them, and what to do with them."""

    def __init__(self, held: Sequence[nn.Module], compute: Compute, end: nn.Module | None = None) -> None:
        super().__init__()
        self.held = nn.ModuleList(held)
        self.compute = compute
        self.ends_with = (end,)
        """The module of the whole model whose answer is the layer's (in a tuple: not one of its own); None: the last.
        """

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """What the layer hands on: hidden states of shape [samples, tokens, hidden], or the logits."""
        return self.compute(x, context)


class Slice(nn.Module):
    """A run of layers; with ``recompute``, only what goes in is kept, and all is computed again in the backward pass.

    The last layer of the model is not recomputed: its backward pass follows its forward pass at once.
    """

    def __init__(self, layers: Sequence[Layer], *, recompute: bool, last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.repeated = len(layers) - last if recompute else 0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Through all layers."""
        context = Context(mask)
        if self.repeated:
            again: Any = checkpoint(self._through, x, context, 0, self.repeated, use_reentrant=False)
            x = again
        return self._through(x, context, self.repeated, len(self.layers))

    def _through(self, x: Tensor, context: Context, first: int, last: int) -> Tensor:
        for layer in self.layers[first:last]:
            x = layer(x, context)
        return x


def layers_of(model: Any) -> list[Layer]:
    """The layers of a transformers model of :data:`FAMILIES`; of another, the whole as one layer."""
    family = model.config.model_type
    maker = {"bert": _bert, "gpt2": _gpt2, "llama": _llama}.get(family)
    if maker is None or hasattr(model, "lm_head") == (FAMILIES[family] == "sequence-classification"):
        return [Layer([model], lambda ids, context: model(input_ids=ids, attention_mask=context.mask).logits)]
    return maker(model)


def _bert(model: Any) -> list[Layer]:
    from transformers.masking_utils import create_bidirectional_mask

    base = model.bert

    def block(module: Any) -> Compute:
        def compute(hidden: Tensor, context: Context) -> Tensor:
            wide = context.once(
                "wide",
                lambda: create_bidirectional_mask(
                    config=base.config, inputs_embeds=hidden, attention_mask=context.mask
                ),
            )
            return module(hidden, wide)  # type: ignore[no-any-return]  # a transformers module

        return compute

    blocks = [Layer([each], block(each), each) for each in base.encoder.layer]
    embeddings = Layer([base.embeddings], lambda ids, _: base.embeddings(input_ids=ids), base.embeddings)
    head = Layer(
        [base.pooler, model.classifier], lambda hidden, _: model.classifier(model.dropout(base.pooler(hidden)))
    )
    return [embeddings, *blocks, head]


def _gpt2(model: Any) -> list[Layer]:
    base = model.transformer

    def embed(ids: Tensor, _: Context) -> Tensor:
        return base.drop(base.wte(ids) + base.wpe(_positions(ids)))  # type: ignore[no-any-return]  # transformers'

    def block(module: Any) -> Compute:
        return lambda hidden, context: module(hidden, None, _causal(base.config, hidden, context))

    blocks = [Layer([each], block(each), each) for each in base.h]
    head = Layer([base.ln_f, model.lm_head], lambda hidden, _: model.lm_head(base.ln_f(hidden)))
    return [Layer([base.wte, base.wpe], embed, base.drop), *blocks, head]


def _llama(model: Any) -> list[Layer]:
    base = model.model

    def block(module: Any) -> Compute:
        def compute(hidden: Tensor, context: Context) -> Tensor:
            positions = context.once("positions", lambda: _positions(hidden))
            turned = context.once("turned", lambda: base.rotary_emb(hidden, position_ids=positions))
            return module(  # type: ignore[no-any-return]  # a transformers module
                hidden,
                attention_mask=_causal(base.config, hidden, context),
                position_ids=positions,
                position_embeddings=turned,
            )

        return compute

    blocks = [Layer([each], block(each), each) for each in base.layers]
    embeddings = Layer([base.embed_tokens], lambda ids, _: base.embed_tokens(ids), base.embed_tokens)
    head = Layer([base.norm, model.lm_head], lambda hidden, _: model.lm_head(base.norm(hidden)))
    return [embeddings, *blocks, head]


def _positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)


def _causal(config: Any, hidden: Tensor, context: Context) -> Any:
    from transformers.masking_utils import create_causal_mask

    def make() -> Any:
        return create_causal_mask(
            config=config,
            inputs_embeds=hidden,
            attention_mask=context.mask,
            past_key_values=None,
            position_ids=_positions(hidden),
        )

    return context.once("wide", make)
