"""Checkpoints: what one holds and takes, how far apart they should be, and what failures then leave in theory.

Daly (2006), A higher order estimate of the optimum checkpoint interval for restart dumps, carried on to whole steps and
to preemptions; :mod:`steelyard.sim.faults` simulates the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .spec import Faults, Scenario
from .workload import Workload

HOUR_S = 3600.0
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Job:
    """A training run and how it survives failures; times in seconds."""

    steps: float
    step_s: float
    every: float
    """Steps from checkpoint to checkpoint."""
    checkpoint_s: float
    restart_s: float
    wait_s: float = 0.0
    noticed: bool = False
    """Whether a preemption leaves the time for a checkpoint."""
    saving: bool = True
    """Whether checkpoints are written at all."""

    @property
    def segment_s(self) -> float:
        """From checkpoint to checkpoint."""
        return self.every * self.step_s + self.checkpoint_s


def checkpoint_bytes(workload: Workload) -> int:
    """Bytes of one checkpoint: weights, fp32 master weights and optimizer states, once for all replicas.

    Gradients are not in it: the next step makes them anew.
    """
    return workload.state_bytes - workload.gradient_bytes


def checkpoint_s(scenario: Scenario) -> float:
    """Seconds that a checkpoint stops the training: as given, else its bytes over the storage's bandwidth."""
    faults = scenario.faults or Faults()
    if faults.checkpoint_s is not None:
        return faults.checkpoint_s
    return checkpoint_bytes(scenario.workload) / (faults.storage_gb_per_s * 1e9)


def job_of(scenario: Scenario, step_s: float, failing: float, preempting: float) -> Job:
    """The training run of a scenario, its checkpoints as far apart as asked for, else as is best.

    Args:
        scenario: with its faults.
        step_s: seconds of a step; the interval is a whole number of them.
        failing: failures per second.
        preempting: preemptions per second.
    """
    faults = scenario.faults or Faults()
    steps = max(1.0, float(round(faults.work_hours * HOUR_S / step_s)))
    save_s = checkpoint_s(scenario)
    job = Job(steps, step_s, steps, save_s, faults.restart_s, faults.preemption_wait_s)
    job = replace(job, noticed=faults.preemption_notice_s >= save_s)
    if faults.checkpoint_interval_s is not None:
        return replace(job, every=min(max(1.0, float(round(faults.checkpoint_interval_s / step_s))), steps))
    if failing + preempting == 0:  # what cannot fail needs no checkpoint
        return replace(job, checkpoint_s=0.0, saving=False)
    return replace(job, every=best_every(job, failing, preempting))


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Best work between checkpoints by Daly's higher-order estimate (2006), in seconds."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    part = checkpoint_s / (2 * mtbf_s)
    return math.sqrt(2 * checkpoint_s * mtbf_s) * (1 + math.sqrt(part) / 3 + part / 9) - checkpoint_s


def expected_wall_s(work_s: float, interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Expected length of a job, M e^(R/M) (e^((tau+d)/M) - 1) T/tau (Daly 2006), in seconds.

    Exact where the work is a whole number of intervals, each followed by a checkpoint; infinite where it overflows.
    """
    job = Job(1.0, interval_s, 1.0, checkpoint_s, restart_s)
    share = expected_share(job, 1 / mtbf_s, 0.0)
    return work_s / share if share > 0 else math.inf


def best_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Work between checkpoints that makes :func:`expected_wall_s` smallest, found numerically, in seconds.

    Both arguments must be above zero: a checkpoint that takes no time should be written all the time.
    """
    low, high = 1e-3 * min(mtbf_s, math.sqrt(2 * checkpoint_s * mtbf_s)), mtbf_s

    def share(interval_s: float) -> float:
        return expected_share(Job(1.0, interval_s, 1.0, checkpoint_s, 0.0), 1 / mtbf_s, 0.0)

    return _highest(share, low, high)


def best_every(job: Job, failing: float, preempting: float) -> float:
    """Steps between checkpoints that give the highest expected share."""

    def share(every: float) -> float:
        # Restart and wait scale every interval alike; left in, they could make all of them zero.
        return expected_share(replace(job, every=every, restart_s=0.0, wait_s=0.0), failing, preempting)

    if job.steps == 1:
        return 1.0
    best = _highest(share, 1.0, job.steps)
    return max(1.0, math.floor(best), min(math.ceil(best), job.steps), key=share)


def expected_share(job: Job, failing: float, preempting: float) -> float:
    """Share of useful time of an endless job: what a gap between failures keeps over the mean gap, M.

    Gaps are exponential, so the job is up at all with probability e^(-R/M - W p) (W p: no preemption while waiting),
    and up for an exponential time again, of which floor(up / (tau + d)) intervals are kept: Daly's formula. Before a
    noticed preemption the steps that leave room for a checkpoint count too: a sum over whole steps.
    """
    per_s = failing + preempting
    if per_s == 0:
        return job.every * job.step_s / job.segment_s
    save, step, segment = (per_s * each for each in (job.checkpoint_s, job.step_s, job.segment_s))
    missed = -math.expm1(-segment)  # probability that a failure comes before the checkpoint is written
    steps = job.every * math.exp(-segment) / missed
    if job.noticed:
        reached = math.exp(-save - step) * math.expm1(-job.every * step) / math.expm1(-step)
        steps += preempting / per_s * (reached - job.every * math.exp(-segment)) / missed
    return min(1.0, step * steps * math.exp(-per_s * job.restart_s - preempting * job.wait_s))


def _highest(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one maximum between two positive numbers has it: golden section of its logarithm."""
    left, right = math.log(low), math.log(high)
    first, second = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
    at_first, at_second = value(math.exp(first)), value(math.exp(second))
    while right - left > 1e-8:  # finer than rounding lets the values differ
        if at_first >= at_second:
            right, second, at_second = second, first, at_first
            first = right - GOLDEN * (right - left)
            at_first = value(math.exp(first))
        else:
            left, first, at_first = first, second, at_second
            second = left + GOLDEN * (right - left)
            at_second = value(math.exp(second))
    return math.exp((left + right) / 2)
