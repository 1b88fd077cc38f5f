"""A member's part in a plan: what a task says, as something that does steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..execution import ranks_of
from .member import Member, Segment

if TYPE_CHECKING:
    import torch


class Part(Protocol):
    """What a member does of each step of a plan."""

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """The weights that it holds."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What updates them."""
        ...

    def accumulate(self, batch_start: int, segments: list[Segment]) -> float:
        """Gradients of a global batch, summed over the holders; the loss of what it has the last stage of.

        On a GPU the loss is a tensor of one number, as to ask for it would be to wait.
        """
        ...

    def gradient(self) -> torch.Tensor:
        """Their gradients in the same order, flat; where they are sharded, all who take part must ask."""
        ...

    def clear(self) -> None:
        """Gradients are zero again."""
        ...

    def step(self, batch_start: int, segments: list[Segment]) -> float:
        """The same, and the optimizer's step; then the gradients are zero."""
        ...

    def hand_back(self) -> None:
        """The member's model has the weights that it trained; where they are sharded, all who take part must ask."""
        ...


class Whole:
    """A member that holds the whole model: data parallelism."""

    def __init__(self, member: Member, sizes: list[int], first: int, group: Any) -> None:
        self.member, self.sizes, self.first, self.group = member, sizes, first, group
        self.weights, self.optimizer = member.weights, member.optimizer

    def gradient(self) -> torch.Tensor:
        """As in :class:`Part`."""
        return self.member.flat

    def clear(self) -> None:
        """As in :class:`Part`."""
        self.member.flat.zero_()

    def accumulate(self, batch_start: int, segments: list[Segment]) -> float:
        """As in :class:`Part`."""
        return self.member.accumulate(self.sizes, batch_start + self.first, self.group, segments, batch_start)

    def step(self, batch_start: int, segments: list[Segment]) -> float:
        """As in :class:`Part`."""
        return self.member.step(self.sizes, batch_start + self.first, self.group, segments, batch_start)

    def hand_back(self) -> None:
        """As in :class:`Part`: it trains that model."""


def at_present(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """A task with the division of the moment, where a training may change that under way: it has none of its own."""
    return task if member.division is None else {**task, **member.division}


def part_of(member: Member, task: dict[str, Any]) -> Part | None:
    """A member's part in a task's plan; None: it has none. All members must ask, as they make groups together.

    Args:
        member: whose part.
        task: has a ``program`` (:mod:`..execution`); or for plain data parallelism ``sizes``, the micro-batches of
            each rank, and ``ranks``, those that take part.
    """
    if "program" in task:
        return _staged(member, task["program"])
    sizes, group = task["sizes"], member.group(task["ranks"])
    if not sizes[member.rank]:
        return None
    first = sum(sum(each) for each in sizes[: member.rank])
    return Whole(member, sizes[member.rank], first, group)


def _staged(member: Member, program: dict[str, Any]) -> Part | None:
    """Made once a launch: its schedule has buffers, its optimizer states."""
    from .fully import Fully
    from .staged import Staged

    key, ranks = json.dumps(program, sort_keys=True), ranks_of(program)
    if key not in member.parts:
        sharded = program["zero"] > 1 and len(ranks) > 1
        member.parts[key] = Fully(member, program, ranks) if sharded else Staged(member, program)
    found: Fully | Staged = member.parts[key]
    return found if found.pipeline is not None else None


def holders_of(member: Member, division: Mapping[str, Any]) -> list[set[int]]:
    """Per weight of the model, the ranks that hold it."""
    if "program" not in division:
        return [set(division["ranks"]) for _ in member.weights]
    from .staged import holding

    return holding(member, division["program"])


def hand_weight(member: Member, place: int, way: tuple[int, int]) -> None:
    """The values of a weight from one member to another; the rest take no part."""
    import torch
    import torch.distributed as dist

    weight, (source, target) = member.weights[place], way
    if member.rank == source:
        dist.send(weight.detach().contiguous().to(member.wire), target)
    elif member.rank == target:
        fresh = torch.empty_like(weight, requires_grad=False, device=member.wire)
        dist.recv(fresh, source)
        with torch.no_grad():
            weight.copy_(fresh)
