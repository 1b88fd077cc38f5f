"""Boundaries: when each layer of the whole model was done, forward and backward, without taking the step apart."""

from __future__ import annotations

from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .member import Member, Segment

if TYPE_CHECKING:
    import torch


class Boundaries:
    """Within it, every pass through the model leaves the times of its layers' ends; a hook costs microseconds.

    The gradient of what a layer hands on is there when the backward pass of the next one is done, weights included:
    autograd takes what was made last first.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.handles: list[Any] = []

    def __enter__(self) -> Self:
        """Watch; a model whose layers are not known is one layer."""
        modules = [layer.ends_with[0] for layer in self.member.layers]
        self.handles = [each.register_forward_hook(self._passed) for each in modules if each is not None]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Watch no more."""
        for handle in self.handles:
            handle.remove()

    def _passed(self, module: Any, inputs: Any, output: Any) -> None:
        hidden: torch.Tensor = output if not isinstance(output, tuple) else output[0]
        self.forward.append(self.member.mark())
        hidden.register_hook(self._returned)  # type: ignore[no-untyped-call]  # torch's

    def _returned(self, gradient: Any) -> None:
        self.backward.append(self.member.mark())

    def take(self, segments: list[Segment]) -> list[list[float]]:
        """The moments between layers, both ends included, of the passes of a step of one micro-batch; forgets them."""
        found = []
        for kind, stamps in (("forward", self.forward), ("backward", self.backward)):
            start, end = next((start, end) for name, _, start, end, *_ in segments if name == kind)
            found.append([start, *stamps, end])
            stamps.clear()
        return found


def layer_seconds(edges: list[list[float]]) -> list[list[float]]:
    """Seconds of each layer, in order, forward and backward, from the (settled) moments of :meth:`Boundaries.take`."""
    forward, backward = ([late - early for early, late in pairwise(each)] for each in edges)
    return [forward, backward[::-1]]
