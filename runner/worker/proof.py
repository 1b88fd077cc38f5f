"""The task that proves a plan: its gradient against that of one process that has the whole batch."""

from __future__ import annotations

from typing import Any

from .member import Member
from .parts import part_of

AT_ONCE = 32
"""Samples of a micro-batch of the one process."""


def prove(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """How far the gradient of a plan's first step is from the single process's, by norm over the whole vector.

    Rank 0 makes the reference, with weights that nobody has trained. Every holder of a weight compares its own copy;
    a weight counts once, in equal parts of its holders.

    Returns:
        ``error``: norm of the difference over norm of the reference, the same in all members.
    """
    import torch
    import torch.distributed as dist

    part = part_of(member, task)
    reference = _reference(member)
    own = {id(weight): place for place, weight in enumerate(member.weights)}
    held = torch.zeros(len(member.weights), dtype=torch.float64)
    squares = torch.zeros(len(member.weights), dtype=torch.float64)
    if part is not None:
        part.accumulate(0, [])
        member.settle([])  # nobody asks for these moments
        flat, offset = part.gradient(), 0
        for weight in part.weights:
            gradient = flat[offset : offset + weight.numel()]
            offset += weight.numel()
            place = own[id(weight)]
            held[place] = 1
            squares[place] = (gradient.double() - reference[place].double()).square().sum().item()
        part.clear()
    if member.world > 1:
        both = torch.stack((held, squares)).to(member.device)
        with member.state.waits():
            dist.all_reduce(both)
        held, squares = both.cpu()
    total = sum(float(each.double().square().sum()) for each in reference)
    missing = int((held == 0).sum())
    error = float((squares / held.clamp(min=1)).sum()) ** 0.5 / total**0.5
    return {"error": error if not missing else float("inf"), "missing": missing}


def _reference(member: Member) -> list[Any]:
    """The gradient of the first global batch in one process, weight by weight, known to all members."""
    import torch
    import torch.distributed as dist

    flat = torch.zeros_like(member.flat)
    if member.rank == 0:
        batch = member.job["global_batch"]
        sizes = [min(AT_ONCE, batch - start) for start in range(0, batch, AT_ONCE)]
        member.accumulate(sizes, 0, None, [])
        flat.copy_(member.flat)
        member.flat.zero_()
    if member.world > 1:
        with member.state.waits():
            dist.broadcast(flat, src=0)
    return list(torch.split(flat, [weight.numel() for weight in member.weights]))


TASKS = {"prove": prove}
