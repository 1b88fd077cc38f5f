"""Proof: before a plan is timed, its gradient must be that of a single process that has the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .devices import NamedLane
from .launch import Task, run_group

MOST_GRADIENT_ERROR = 1e-6
"""Norm of the difference over norm of the single process's gradient, in fp32: more is no rounding."""


def is_proven(error: float | None) -> bool:
    """Whether a plan's gradient is the single process's; one that is no number (NaN) is not."""
    return error is not None and error <= MOST_GRADIENT_ERROR


def prove(
    lanes: Sequence[NamedLane], divisions: Sequence[Task], job: Task, data: Path, *, timeout_s: float
) -> list[float]:
    """The distance of each plan's gradient from a single process's, as a share; all in one launch of its own, in fp32.

    Args:
        lanes: one worker each.
        divisions: what tasks say of the plans (:func:`.execution.division`).
        job: model, optimizer, batch.
        data: encoded samples.
        timeout_s: as for :func:`.launch.run_group`.

    Raises:
        WorkerFailedError: a worker died or hung.
    """
    tasks = [{"op": "prove", **division} for division in divisions]
    launch = run_group(lanes, tasks, {**job, "dtype": "fp32"}, timeout_s=timeout_s, data=data)
    return [answer["error"] for _, answer in launch.of("prove", 0)]
