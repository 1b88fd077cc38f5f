"""The simulated counterpart: what the same faults cost by the simulator's model of failures, written down before.

The costs of a step, a checkpoint and a start come from a training that nothing disturbed; when the faults strike, from
their stream; what they undo, from :func:`steelyard.sim.faults.run_one`. There a fault is a failure: a restart.
Until the driver knows, nothing is done and nothing further undone, so that time is put in between: for each kind, what
it takes to notice.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...sim.checkpoint import Job
from ...sim.faults import Failures, run_one
from ..journal import Event, Spent
from ..watch import GRACE_S, STOPPED_S
from .blows import STARVED_CORES
from .strikes import REACH, Kind, Strike

NOTICED_S = 0.1
"""Between two looks of the driver: half of it passes on average before a death is seen."""
LOOKS_S = 0.75
"""A stopped worker must be silent for a look, and is seen by the next: 0.5 s, and half of 0.5 s on average."""
EATING_S = 0.3
"""Until a process has started that takes what a limit of memory leaves (control groups of version 1)."""
FOREVER_S = 1e12
GOODPUT_TOLERANCE = 0.1
"""Predicted and measured goodput are to be so close, on a quiet host."""
NOTICED_TOLERANCE_S = 1.5
"""And so are, for each kind, the predicted time until a fault is noticed and the median of those measured."""


@dataclass(frozen=True)
class Costs:
    """What a training takes where nothing goes wrong; seconds."""

    step_s: float
    checkpoint_s: float
    start_s: float
    """From the launch of the processes to the first step."""

    @classmethod
    def of(cls, events: Sequence[Event], spent: Spent, steps: int) -> Costs:
        """As an undisturbed journal says."""
        saved = [event["seconds"] for event in events if event["event"] == "saved"]
        begun = [event["start_s"] for event in events if event["event"] == "begun"]
        return cls(spent.useful_s / steps, sum(saved) / len(saved), begun[0])


@dataclass(frozen=True)
class Forecast:
    """What the faults are predicted to cost; seconds, from the first step to the last checkpoint."""

    wall_s: float
    useful_s: float
    checkpoint_s: float
    recompute_s: float
    down_s: float
    """Until a fault is noticed, and until the first step again."""
    steps_lost: list[float]
    """Per fault, steps that are done again."""
    noticed_s: list[float]
    """Per fault, until it is noticed."""

    @property
    def goodput(self) -> float:
        """Useful time over wall time."""
        return self.useful_s / self.wall_s

    def document(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {**asdict(self), "goodput": self.goodput}


def noticed_s(kind: Kind, timeout_s: float, step_s: float) -> float:
    """Predicted seconds from a fault to the moment when the driver knows.

    A starved lane goes on with the step under way, a thousandth as fast: where little is left of that, it ends, and the
    silence begins then. The mean over the place in the step: r/2 of the share r of steps that end within ``timeout_s``.
    """
    if kind in ("kill", "memory"):
        return GRACE_S + NOTICED_S / 2 + (EATING_S if kind == "memory" else 0.0)
    if kind == "stop":
        return min(timeout_s, STOPPED_S) + LOOKS_S
    ends = min(1.0, timeout_s * STARVED_CORES / step_s) if kind == "starve" else 0.0
    return timeout_s + NOTICED_S / 2 + ends * timeout_s / 2


def steps_for(strikes: Sequence[Strike], costs: Costs, every: int, margin: float) -> int:
    """Steps of a training that is still going on when the last fault strikes, so much longer than predicted."""
    up_s = sum(strike.after_s(costs.start_s, every * costs.step_s) for strike in strikes if not strike.starting)
    intervals = margin * up_s / (every * costs.step_s + costs.checkpoint_s) + REACH
    return every * (int(intervals) + 1)


def forecast(strikes: Sequence[Strike], costs: Costs, *, every: int, steps: int, timeout_s: float) -> Forecast:
    """Simulate a training of so many steps under the faults."""
    job = Job(steps=steps, step_s=costs.step_s, every=every, checkpoint_s=costs.checkpoint_s, restart_s=costs.start_s)
    failures = _failures(strikes, costs, every)
    outcome = run_one(job, failures, FOREVER_S)
    assert outcome is not None, "an endless horizon is long enough"
    recompute_s, restart_s, checkpoint_s, _ = outcome.lost_s
    noticed = [noticed_s(strike.kind, timeout_s, costs.step_s) for strike in strikes]
    unaware_s = sum(each for each, at_s in zip(noticed, failures.times, strict=True) if at_s < outcome.wall_s)
    lost = [0.0 if strike.starting else _lost(strike, job, costs) for strike in strikes]
    wall_s, down_s = outcome.wall_s + unaware_s, restart_s + unaware_s
    return Forecast(wall_s, outcome.useful_s, checkpoint_s, recompute_s, down_s, lost, noticed)


def _failures(strikes: Sequence[Strike], costs: Costs, every: int) -> Failures:
    """When each fault strikes, from the first step on, if each were noticed at once."""
    times: list[float] = []
    launched_s = -costs.start_s
    for strike in strikes:
        after_s = strike.after_s(costs.start_s, every * costs.step_s)
        times.append(launched_s + after_s + (0.0 if strike.starting else costs.start_s))
        launched_s = times[-1]
    return Failures(np.array(times), np.zeros(len(strikes), dtype=bool))


def _lost(strike: Strike, job: Job, costs: Costs) -> float:
    into_s = strike.after_s(costs.start_s, job.every * job.step_s) % job.segment_s
    return min(job.every, into_s / job.step_s)


def rows(predicted: Forecast, measured: Spent, undisturbed: Spent) -> list[dict[str, Any]]:
    """Predicted beside measured, for a table."""
    down_s = measured.detection_s + measured.restart_s
    pairs = [
        ("wall s", predicted.wall_s, measured.wall_s),
        ("useful steps s", predicted.useful_s, measured.useful_s),
        ("done in vain s", predicted.recompute_s, measured.recompute_s),
        ("noticing and restarting s", predicted.down_s, down_s),
        ("checkpoints s", predicted.checkpoint_s, measured.checkpoint_s),
        ("goodput", predicted.goodput, measured.goodput),
    ]
    lost = ("lost to faults s", predicted.recompute_s + predicted.down_s, measured.recompute_s + down_s)
    without = {"what": "wall s, undisturbed", "predicted": None, "measured": undisturbed.wall_s, "error %": None}
    found = [
        {"what": name, "predicted": guess, "measured": seen, "error %": 100 * (guess / seen - 1) if seen else None}
        for name, guess, seen in [*pairs, lost]
    ]
    return [without, *found]


def agreement(
    predicted: Forecast, strikes: Sequence[Strike], measured: Spent, delays: Mapping[Kind, Sequence[float]]
) -> dict[str, Any]:
    """How far the forecast was off, beside what is tolerated on a quiet host.

    Args:
        predicted: the forecast.
        strikes: what it is of.
        measured: where the time went.
        delays: per kind, the measured seconds until a fault was noticed.
    """
    off = predicted.goodput - measured.goodput
    noticed: dict[str, Any] = {}
    for kind, own in delays.items():
        guess_s = next(s for strike, s in zip(strikes, predicted.noticed_s, strict=True) if strike.kind == kind)
        median_s = statistics.median(own)
        within = abs(guess_s - median_s) <= NOTICED_TOLERANCE_S
        noticed[kind] = {"predicted_s": guess_s, "measured_s": median_s, "within": within}
    return {
        "goodput_off": off,
        "goodput_tolerance": GOODPUT_TOLERANCE,
        "noticed": noticed,
        "noticed_tolerance_s": NOTICED_TOLERANCE_S,
        "within": abs(off) <= GOODPUT_TOLERANCE and all(each["within"] for each in noticed.values()),
    }
