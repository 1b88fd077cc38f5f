"""Which tensors of a pass a tensor-parallel group would divide, followed from operator to operator.

The division is Megatron-LM's (Shoeybi et al. 2019). Inside a block a product of a whole tensor with a weight is divided
by the weight's columns and makes a divided tensor; a product of a divided tensor with a weight is divided by the
weight's rows, and the group sums its results to a whole tensor (an all-reduce). Any other operator hands on what it
reads: divided if one input is. So the residual stream, its norms and its sums are whole on every rank; heads, scores
and the inner width of an MLP are divided. A router is whole, so that every rank chooses the same experts. Outside
blocks only the vocabulary is divided: its embedding table by rows, the head of a language model by columns.

The same rule holds backward: a gradient is divided as its tensor is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor, nn

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Kind(IntEnum):
    """What a tensor is to a tensor-parallel group; an operator's result is the highest of what it reads."""

    CONSTANT = 0
    """A weight, or something that depends on no sample (a mask, a position)."""
    WHOLE = 1
    """The same on every rank."""
    DIVIDED = 2
    """Each rank has a part."""
    SCORES = 3
    """Divided, and a matrix of attention scores: what selective recomputation gives back."""


class Work(NamedTuple):
    """What dividing one operator means."""

    divided: bool = False
    """Whether its FLOPs are divided."""
    gathered: Tensor | None = None
    """A whole input of a column-parallel product: its gradient is summed over the group."""
    reduced: Tensor | None = None
    """A result that is summed over the group."""
    width: int = 0
    """The width along which a row-parallel product is divided, which the degree must divide."""
    scores: bool = False
    """Whether the product makes or uses attention scores."""
    strange: bool = False
    """Whether it is not known how to divide the operator."""


def storage_key(tensor: Tensor) -> int:
    """A number that tensors share that share their memory."""
    return int(tensor.untyped_storage()._cdata)


class Division:
    """The kind of every tensor of a pass, and which weights are divided."""

    def __init__(self, model: nn.Module, vocabulary: int | None, experts: Iterable[int]) -> None:
        self._vocabulary = vocabulary
        self._experts = set(experts)
        self._kinds: dict[int, Kind] = {}
        self._parameters = {storage_key(each) for each in model.parameters()}
        self._divided: set[int] = set()

    def kind(self, tensor: Tensor) -> Kind:
        """What a tensor is."""
        return self._kinds.get(storage_key(tensor), Kind.CONSTANT)

    def divides(self, tensor: Tensor) -> bool:
        """Whether each rank has only a part of a tensor."""
        key = storage_key(tensor)
        return key in self._divided if key in self._parameters else self._kinds.get(key, Kind.CONSTANT) >= Kind.DIVIDED

    def mark(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Say what some tensors are."""
        for tensor in tensors:
            if (key := storage_key(tensor)) not in self._parameters:
                self._kinds[key] = kind

    def follow(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, block: bool) -> Work:
        """Follow one operator of torch, in a block of the model or outside."""
        if name in PRODUCTS:
            work = self.product(inputs[-2], inputs[-1], outputs[0], block=block)
            if len(inputs) == 3:  # a bias is divided as the result is
                self._share(inputs[:1], self.kind(outputs[0]))
            return work
        if name == "convolution":
            return self._convolution(inputs[0], inputs[1], outputs)
        if name == "embedding":
            return self._embedding(inputs[0], outputs[0])
        if name == "embedding_dense_backward":
            of_vocabulary = self._vocabulary in outputs[0].shape
            self.mark(outputs, Kind.DIVIDED if of_vocabulary else Kind.WHOLE)
            return Work()
        kind = max((self.kind(each) for each in inputs), default=Kind.CONSTANT)
        self.mark(outputs, kind)
        self._share(inputs, kind)
        return Work(divided=kind >= Kind.DIVIDED)

    def product(self, left: Tensor, right: Tensor, out: Tensor, *, block: bool) -> Work:
        """Follow one product of two matrices."""
        lower, upper = sorted((left, right), key=self.kind)
        kinds = self.kind(lower), self.kind(upper)
        if kinds[0] > Kind.CONSTANT:
            scores = kinds == (Kind.DIVIDED, Kind.DIVIDED)
            divided = kinds[1] >= Kind.DIVIDED
            self.mark([out], Kind.SCORES if scores else Kind.DIVIDED if divided else Kind.WHOLE)
            return Work(divided=divided, scores=scores or kinds[1] == Kind.SCORES)
        if kinds[1] == Kind.CONSTANT or not self._is_divided(lower, block):
            self.mark([out], kinds[1])
            return Work(divided=kinds[1] >= Kind.DIVIDED)
        self._divided.add(storage_key(lower))
        if kinds[1] == Kind.WHOLE:
            self.mark([out], Kind.DIVIDED)
            return Work(divided=True, gathered=upper)
        self.mark([out], Kind.WHOLE)
        return Work(divided=True, reduced=out, width=upper.shape[-1])

    def _is_divided(self, weight: Tensor, block: bool) -> bool:
        if storage_key(weight) in self._divided:
            return True
        if not block:
            return self._vocabulary in weight.shape
        return weight.ndim != 2 or self._experts.isdisjoint(weight.shape)

    def _embedding(self, table: Tensor, out: Tensor) -> Work:
        self.mark([out], Kind.WHOLE)
        if self._vocabulary not in table.shape:
            return Work()
        self._divided.add(storage_key(table))
        return Work(reduced=out)

    def _convolution(self, samples: Tensor, weight: Tensor, outputs: Sequence[Tensor]) -> Work:
        """Whole inputs: every rank does all of it. Divided channels stay so if each has a filter of its own."""
        divided = self.kind(samples) >= Kind.DIVIDED
        self.mark(outputs, Kind.DIVIDED if divided else Kind.WHOLE)
        self._share([weight], self.kind(outputs[0]))
        return Work(divided=divided, strange=divided and weight.shape[1] != 1)

    def _share(self, inputs: Iterable[Tensor], kind: Kind) -> None:
        """Weights that act on a divided tensor, element by element, are divided with it."""
        if kind >= Kind.DIVIDED:
            self._divided.update(key for each in inputs if (key := storage_key(each)) in self._parameters)
