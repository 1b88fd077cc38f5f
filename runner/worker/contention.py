"""Whether something else on the host disturbed a measurement; measuring again where it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .member import Member, Segment, group_max

CONTENDED_SHARE = 0.05
"""A block with more disturbed segments than this is measured again."""
RETRIES = 2
"""How often a block is measured again, at most."""


def undisturbed(member: Member, once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure; measure again, by common decision, where some member was disturbed and the launch's retries last.

    Returns:
        The least disturbed attempt, with its own share of disturbed segments (``contended``) and the ``retries``.
    """
    attempts = []
    for _ in range(RETRIES + 1):
        answer = once()
        answer["contended"] = contended_share(member, answer["steps"])
        attempts.append((group_max(member, answer["contended"]), answer))
        if attempts[-1][0] <= CONTENDED_SHARE or member.retries_left == 0 or len(attempts) > RETRIES:
            break
        member.retries_left -= 1
    _, best = min(attempts, key=lambda attempt: attempt[0])
    return {**best, "retries": len(attempts) - 1}


def contended_share(member: Member, steps: list[list[Segment]]) -> float:
    """Share of the compute segments that something else on the host disturbed; 0 where that cannot be told."""
    compute = [each for step in steps for each in step if each[0] != "communication"]
    return sum(member.disturbed(each) for each in compute) / len(compute) if compute else 0.0
