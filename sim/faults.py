"""Faults: what stops a long training run, and how much of its time is useful in the end.

A job is synchronous: whatever takes one of its devices stops all of them. Failures are independent exponential clocks,
one per device, machine and spot device, each with a random stream of its own under its own name: plans that share a
device meet the same failures of it at the same moments, whatever else they use. Because nothing has a memory but the
last checkpoint, what a run keeps is a function of the gaps between its failures, and whole runs are added up as arrays.

What is modelled:

- work advances in whole steps; every so many of them a checkpoint stops the training, the last one at the end of it
- a failure loses what came after the last finished checkpoint, one that was being written included; where the last
  checkpoints before it could not be written (a full disk), those intervals too
- then a restart, which a further failure makes begin anew; the first start of the job costs nothing
- a preempted spot device is first waited for. The wait begins anew when another one goes (the clock of a place runs on
  while it is empty: an offer that is taken back); a failure during it does no further harm
- with a notice of at least a checkpoint's length, steps go on until one can just be written before the device is gone
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..results.errors import InputError
from .checkpoint import HOUR_S, Job, expected_share, job_of
from .noise import Floats, stream
from .plan import Plan
from .spec import Faults, Scenario

DAY_S = 86_400.0

ENOUGH_FAILURES = 10_000
"""A run that was not through after so many failures is given up: its share of useful time is known by then."""
MAX_FAILURES = 5_000_000
"""Failures of all runs together: they are kept in memory."""
AT_ONCE = 2_500
"""Failures per run of the whole cluster that are drawn at once at first; each further draw covers twice the time."""
NEVER_PER_S = 1e-40
"""A rate below it is none: products with it would round to nothing."""
CAUSES = ("recompute", "restart", "checkpoint", "waiting_for_spot")
"""What takes time beside useful steps."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """What failures leave of a training run."""

    share: float
    """Useful time over wall time, mean over the runs: what is left of the throughput."""
    interval: tuple[float, float]
    """10th and 90th percentile of that share over the runs."""
    expected_share: float
    """The same in theory, over an endless run (Daly 2006, with whole steps and preemptions)."""
    checkpoint_interval_s: float | None
    """Work between two checkpoints, in whole steps; None: nothing can fail, none is written."""
    checkpoint_s: float
    """What one checkpoint takes; 0 where none is written."""
    mtbf_s: float | None
    """Mean time between failures of all that the plan uses, preemptions included; None: nothing can fail."""
    failures_per_day: float
    wall_s: float
    """Length of a run, mean over the runs."""
    lost_s: dict[str, float]
    """Seconds of a run by cause, mean over the runs: with the useful time they sum to ``wall_s``.

    ``recompute``: steps done in vain, the unfinished checkpoint among them; ``restart``; ``checkpoint``: written ones;
    ``waiting_for_spot``.
    """
    given_up: float
    """Share of the runs that were not through after :data:`ENOUGH_FAILURES`; the figures hold for the time before."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What stops the job at random moments: exponential gaps, ``per_s`` failures a second on average."""

    kind: Literal["device", "node", "preemption"]
    name: str
    per_s: float


@dataclass(frozen=True, slots=True)
class Failures:
    """The failures of one run in order of time (s), and which of them are preemptions."""

    times: Floats
    preempted: NDArray[np.bool_]

    def then(self, later: Failures) -> Failures:
        """These and later ones."""
        return Failures(np.concatenate([self.times, later.times]), np.concatenate([self.preempted, later.preempted]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the time of one run went."""

    useful_s: float
    """Steps that a checkpoint holds."""
    lost_s: tuple[float, ...]
    """In the order of :data:`CAUSES`."""
    finished: bool

    @property
    def wall_s(self) -> float:
        """Length of the run."""
        return self.useful_s + sum(self.lost_s)

    @property
    def share(self) -> float:
        """Useful time over wall time."""
        return self.useful_s / self.wall_s


def goodput(scenario: Scenario, plan: Plan, *, step_s: float, seed: int) -> Goodput | None:
    """What failures leave of a training run of ``faults.work_hours`` with the plan; None without ``[faults]``.

    Args:
        scenario: cluster, workload and faults.
        plan: whose devices can fail; a failure of anything else does not matter to it.
        step_s: seconds of a step without failures.
        seed: of the clocks; the same for all plans that are compared.

    Raises:
        InputError: more failures than can be kept.
    """
    faults = scenario.faults
    if faults is None:
        return None
    used = {name for pipeline in plan.pipelines for name in pipeline.devices}
    clocks = clocks_of(scenario, used)
    failing, preempting = rates(clocks)
    job = job_of(scenario, step_s, failing, preempting)
    share = expected_share(job, failing, preempting)
    _check_size(faults, job, failing + preempting, share)
    outcomes = run_all(job, clocks, span_s=_span_s(scenario), runs=faults.runs, seed=seed)
    return _goodput(outcomes, job, failing + preempting, share)


def _goodput(outcomes: Sequence[Outcome], job: Job, per_s: float, expected: float) -> Goodput:
    shares = [outcome.share for outcome in outcomes]
    low, high = np.quantile(shares, [0.1, 0.9])
    lost = np.mean([outcome.lost_s for outcome in outcomes], axis=0)
    return Goodput(
        share=float(np.mean(shares)),
        interval=(float(low), float(high)),
        expected_share=expected,
        checkpoint_interval_s=job.every * job.step_s if job.saving else None,
        checkpoint_s=job.checkpoint_s,
        mtbf_s=1 / per_s if per_s > 0 else None,
        failures_per_day=DAY_S * per_s,
        wall_s=float(np.mean([outcome.wall_s for outcome in outcomes])),
        lost_s=dict(zip(CAUSES, lost.tolist(), strict=True)),
        given_up=float(np.mean([not outcome.finished for outcome in outcomes])),
    )


# Who fails, and how often


def clocks_of(scenario: Scenario, used: Collection[str]) -> list[Clock]:
    """The clocks of the devices in use, of the machines that hold them, and of spot devices.

    Raises:
        InputError: failures follow each other faster than can be counted.
    """
    faults = scenario.faults or Faults()
    clocks = []
    for node in scenario.cluster.nodes:
        devices = [device for device in node.devices if device.name in used]
        for device in devices:
            clocks.append(Clock("device", device.name, _per_s(device.mtbf_hours or faults.device_mtbf_hours)))
            clocks.append(Clock("preemption", device.name, device.preemptions_per_hour / HOUR_S))
        if devices:  # names of nodes may recur, those of devices do not; their order must not show
            first = min(device.name for device in node.devices)
            clocks.append(Clock("node", f"{node.name}/{first}", _per_s(node.mtbf_hours or faults.node_mtbf_hours)))
    if sum(clock.per_s for clock in clocks) > 1e15:
        raise InputError("faults", "have the devices fail over 10^15 times a second", "raise mtbf_hours")
    return [clock for clock in clocks if clock.per_s > NEVER_PER_S]


def rates(clocks: Collection[Clock]) -> tuple[float, float]:
    """Failures and preemptions per second, all clocks together."""
    preempting = math.fsum(clock.per_s for clock in clocks if clock.kind == "preemption")
    return math.fsum(clock.per_s for clock in clocks if clock.kind != "preemption"), preempting


def _per_s(mtbf_hours: float | None) -> float:
    return 1 / (mtbf_hours * HOUR_S) if mtbf_hours is not None else 0.0


def draw(
    clocks: Sequence[Clock], start_s: float, length_s: float, *, part: int, runs: int, seed: int
) -> list[Failures]:
    """The failures of each run in ``[start_s, start_s + length_s)``, from each clock's stream for this part.

    The runs are laid end to end: over their whole length a clock strikes a Poisson number of times, at uniform places.
    """
    places, preempted = [np.empty(0)], [np.empty(0, dtype=bool)]
    for clock in clocks:
        random = stream(seed, "fault", clock.kind, clock.name, part)
        found = random.random(random.poisson(clock.per_s * length_s * runs)) * runs
        places.append(found)
        preempted.append(np.full(len(found), clock.kind == "preemption"))
    place, kind = np.concatenate(places), np.concatenate(preempted)
    order = np.argsort(place, kind="stable")
    place, kind = place[order], kind[order]
    times = start_s + length_s * (place - np.floor(place))
    ends = np.searchsorted(place, np.arange(1, runs))
    return [Failures(*each) for each in zip(np.split(times, ends), np.split(kind, ends), strict=True)]


def _span_s(scenario: Scenario) -> float:
    """Time that is drawn at first: twice the work's, halved while the whole cluster fails over :data:`AT_ONCE` times.

    It depends on the scenario alone, so that all plans meet the same failures.
    """
    assert scenario.faults is not None
    everything = clocks_of(scenario, {device.name for device in scenario.cluster.devices})
    span_s = 2 * scenario.faults.work_hours * HOUR_S
    expected = sum(rates(everything)) * span_s
    return span_s * 0.5 ** max(0, math.ceil(math.log2(expected / AT_ONCE))) if expected > 0 else span_s


def _check_size(faults: Faults, job: Job, per_s: float, share: float) -> None:
    each = min(ENOUGH_FAILURES, per_s * job.steps * job.step_s / share if share > 0 else math.inf)
    if per_s > 0 and each * faults.runs > MAX_FAILURES:
        problem = f"asks for {each * faults.runs:.3g} failures, at most {MAX_FAILURES:.3g}"
        raise InputError("faults.runs", problem, "lower it, or faults.work_hours")


# What a run keeps


def run_all(job: Job, clocks: Sequence[Clock], *, span_s: float, runs: int, seed: int) -> list[Outcome]:
    """Simulate runs of a job until each is through (or given up), drawing failures as far as they are needed."""
    seen = [Failures(np.empty(0), np.empty(0, dtype=bool))] * runs
    outcomes: list[Outcome | None] = [None] * runs
    horizon_s, length_s, part = 0.0, span_s, 0
    while any(outcome is None for outcome in outcomes):
        drawn = draw(clocks, horizon_s, length_s, part=part, runs=runs, seed=seed)
        horizon_s, length_s, part = horizon_s + length_s, 2 * length_s, part + 1
        for run in range(runs):
            if outcomes[run] is None:
                seen[run] = seen[run].then(drawn[run])
                outcomes[run] = run_one(job, seen[run], horizon_s)
    return [outcome for outcome in outcomes if outcome is not None]


def run_one(job: Job, failures: Failures, horizon_s: float, unsaved: NDArray[np.int_] | None = None) -> Outcome | None:
    """Add up one run, gap by gap between its failures; None when it is not through by the horizon.

    The first gap begins with the job, the last is open: what fails after the horizon is not known.

    Args:
        job: steps, checkpoints, restarts.
        failures: in order.
        horizon_s: until when they are known.
        unsaved: per failure, how many checkpoints in a row, the last ones before it, could not be written, at most as
            many as were due in its gap; None: all could.
    """
    times = failures.times
    start = np.concatenate([[0.0], times])
    end = np.concatenate([times, [horizon_s]])
    back = np.maximum(start, _all_back(job, failures))
    ready = back + job.restart_s
    ready[0] = 0.0
    up = np.maximum(end - ready, 0.0)
    missing = np.zeros(len(up)) if unsaved is None else np.concatenate([unsaved, [0.0]])
    kept, written = _kept(job, up, np.concatenate([failures.preempted, [False]]), missing)
    left = np.maximum(job.steps - np.concatenate([[0.0], np.cumsum(kept)[:-1]]), 0.0)
    needed = left * job.step_s + np.ceil(left / job.every) * job.checkpoint_s
    through = np.flatnonzero(needed <= up)
    if not through.size and len(times) < ENOUGH_FAILURES:
        return None
    gaps = int(through[0]) + 1 if through.size else len(times)
    if through.size:
        last = gaps - 1
        up[last], kept[last], written[last] = needed[last], left[last], np.ceil(left[last] / job.every)
    useful_s, saving_s = float(kept[:gaps].sum()) * job.step_s, float(written[:gaps].sum()) * job.checkpoint_s
    waiting_s = float(np.maximum(np.minimum(end, back) - start, 0.0)[:gaps].sum())
    restarting_s = float(np.maximum(np.minimum(end, ready) - back, 0.0)[:gaps].sum())
    in_vain_s = max(0.0, float(up[:gaps].sum()) - useful_s - saving_s)  # below zero by a rounding
    return Outcome(useful_s, (in_vain_s, restarting_s, saving_s, waiting_s), finished=bool(through.size))


def _all_back(job: Job, failures: Failures) -> Floats:
    """Per gap, the moment at which every spot device that was lost before it is back (0: none was)."""
    returns = np.where(failures.preempted, failures.times + job.wait_s, 0.0)
    return np.concatenate([[0.0], np.maximum.accumulate(returns)]) if returns.size else np.zeros(1)


def _kept(job: Job, up: Floats, preempted_next: NDArray[np.bool_], missing: Floats) -> tuple[Floats, Floats]:
    """Per gap, the steps that a finished checkpoint holds and the number of those, given how long the job was up."""
    full = np.floor(up / job.segment_s)
    written = np.maximum(full - missing, 0.0)
    kept = written * job.every
    if job.noticed:
        spare_s = up - full * job.segment_s - job.checkpoint_s
        saved = preempted_next & (spare_s >= 0)
        kept = kept + np.where(saved, np.clip(np.floor(spare_s / job.step_s), 0.0, job.every), 0.0)
        written = written + saved
    return kept, written
