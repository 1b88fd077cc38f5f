"""Proof: before a plan is timed, its gradient must be that of a single process that has the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .devices import NamedLane
from .launch import Task, run_group

MOST_GRADIENT_ERROR = 1e-6
"""Norm of the difference over norm of the single process's gradient: more is no rounding of equal kernels in fp32.

Lanes held to other instruction sets have other kernels: one and the same batch on a lane held to SSE was 1.8e-6 from
that on an unheld one, in fp32. So what fp32 does not prove is asked in fp64, where the same was 7e-8.
"""


def is_proven(error: float | None) -> bool:
    """Whether a plan's gradient is the single process's; one that is no number (NaN) is not."""
    return error is not None and error <= MOST_GRADIENT_ERROR


def prove(
    lanes: Sequence[NamedLane],
    divisions: Sequence[Task],
    job: Task,
    data: Path,
    *,
    timeout_s: float,
    dtype: str = "fp32",
) -> list[float]:
    """The distance of each plan's gradient from a single process's, as a share; all in one launch of its own.

    Args:
        lanes: one worker each.
        divisions: what tasks say of the plans (:func:`.execution.division`).
        job: model, optimizer, batch.
        data: encoded samples.
        timeout_s: as for :func:`.launch.run_group`.
        dtype: ``fp32``, or ``fp64`` for plans whose lanes round differently.

    Raises:
        WorkerFailedError: a worker died or hung.
    """
    tasks = [{"op": "prove", **division} for division in divisions]
    launch = run_group(lanes, tasks, {**job, "dtype": dtype}, timeout_s=timeout_s, data=data)
    return [answer["error"] for _, answer in launch.of("prove", 0)]


def prove_exactly(
    lanes: Sequence[NamedLane],
    divisions: Sequence[Task],
    errors: Sequence[float],
    job: Task,
    data: Path,
    *,
    timeout_s: float,
) -> list[float | None]:
    """The same in fp64 for the plans that fp32 did not prove, in one more launch; None for those that it did.

    Raises:
        WorkerFailedError: a worker died or hung.
    """
    open_ = [number for number, error in enumerate(errors) if not is_proven(error)]
    if not open_:
        return [None] * len(errors)
    asked = [divisions[number] for number in open_]
    found = dict(zip(open_, prove(lanes, asked, job, data, timeout_s=timeout_s, dtype="fp64"), strict=True))
    return [found.get(number) for number in range(len(errors))]
