"""Blocks: what the steps of a measured block say, without those that a stranger disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .launch import LaunchResult, Task

MAX_RESIDUALS = 101
"""Residuals are kept as so many quantiles: the same distribution in a file that stays small."""
LEAST_QUIET = 2
"""Undisturbed steps of a size in a launch that are enough to leave the disturbed ones out."""


def quiet_only(answer: Task, values: Sequence[Any]) -> list[Any]:
    """Of what each step of an answer gave, that of undisturbed steps, where they are enough to go by; else all."""
    kept = [value for value, quiet in zip(values, answer["quiet"], strict=True) if quiet]
    return kept if len(kept) >= LEAST_QUIET else list(values)


def quiet_steps(answer: Task) -> list[Any]:
    """The steps that nothing disturbed, where they are enough to go by; else all, and the calibration says how many."""
    return quiet_only(answer, answer["steps"])


def step_blocks(launch: LaunchResult, rank: int, op: str = "profile") -> list[tuple[int, list[tuple[float, float]]]]:
    """Size, and forward and backward seconds of each step that counts, of a rank's blocks in the order measured."""
    return [
        (task["micro_batch"], [(spent_s(step, "forward"), spent_s(step, "backward")) for step in quiet_steps(answer)])
        for task, answer in launch.of(op, rank)
    ]


def spent_s(step: Sequence[Sequence[Any]], *kinds: str) -> float:
    """Seconds of some kinds of segment in a step."""
    return float(sum(end - start for kind, _, start, end, *_ in step if kind in kinds))


def thin(residuals: Sequence[float]) -> list[float]:
    """At most :data:`MAX_RESIDUALS` quantiles of a sample: the same distribution, a smaller file."""
    ordered = sorted(residuals)
    if len(ordered) <= MAX_RESIDUALS:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (MAX_RESIDUALS - 1))] for index in range(MAX_RESIDUALS)]
