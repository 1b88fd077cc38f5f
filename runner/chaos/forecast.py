"""The simulated counterpart: what the same faults cost by the simulator's model of failures, written down before.

The costs of a step, a checkpoint and a start come from a training that nothing disturbed; when the faults strike, from
their stream; what they undo, from :func:`steelyard.sim.faults.run_one`. There a fault is a failure, and a hang one that
is noticed later: a wait before the restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...sim.checkpoint import Job
from ...sim.faults import Failures, run_one
from ..journal import Event, Spent
from ..watch import GRACE_S, STOPPED_S
from .strikes import REACH, Strike

NOTICED_S = 0.1
"""Between two looks of the driver: half of it passes on average before a death is seen."""
LOOKS_S = 0.75
"""A stopped worker must be silent for a look, and is seen by the next: 0.5 s, and half of 0.5 s on average."""
FOREVER_S = 1e12


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

    @property
    def goodput(self) -> float:
        """Useful time over wall time."""
        return self.useful_s / self.wall_s

    def document(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {**asdict(self), "goodput": self.goodput}


def noticed_s(kind: str, timeout_s: float) -> float:
    """Predicted seconds from a fault to the moment when the driver knows."""
    return GRACE_S + NOTICED_S / 2 if kind == "kill" else min(timeout_s, STOPPED_S) + LOOKS_S


def steps_for(strikes: Sequence[Strike], costs: Costs, every: int, margin: float) -> int:
    """Steps of a training that is still going on when the last fault strikes, so much longer than predicted."""
    up_s = sum(strike.after_s(costs.start_s, every * costs.step_s) for strike in strikes if not strike.starting)
    intervals = margin * up_s / (every * costs.step_s + costs.checkpoint_s) + REACH
    return every * (int(intervals) + 1)


def forecast(strikes: Sequence[Strike], costs: Costs, *, every: int, steps: int, timeout_s: float) -> Forecast:
    """Simulate a training of so many steps under the faults."""
    job = Job(
        steps=steps,
        step_s=costs.step_s,
        every=every,
        checkpoint_s=costs.checkpoint_s,
        restart_s=noticed_s("kill", timeout_s) + costs.start_s,
        wait_s=noticed_s("hang", timeout_s) - noticed_s("kill", timeout_s),
    )
    failures = _failures(strikes, costs, every, timeout_s)
    outcome = run_one(job, failures, FOREVER_S)
    assert outcome is not None, "an endless horizon is long enough"
    recompute_s, restart_s, checkpoint_s, waiting_s = outcome.lost_s
    lost = [0.0 if strike.starting else _lost(strike, job, costs) for strike in strikes]
    return Forecast(outcome.wall_s, outcome.useful_s, checkpoint_s, recompute_s, restart_s + waiting_s, lost)


def _failures(strikes: Sequence[Strike], costs: Costs, every: int, timeout_s: float) -> Failures:
    """When each fault strikes, from the first step on."""
    times: list[float] = []
    launched_s = -costs.start_s
    for strike in strikes:
        after_s = strike.after_s(costs.start_s, every * costs.step_s)
        times.append(launched_s + after_s + (0.0 if strike.starting else costs.start_s))
        launched_s = times[-1] + noticed_s(strike.kind, timeout_s)
    return Failures(np.array(times), np.array([strike.kind == "hang" for strike in strikes], dtype=bool))


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
