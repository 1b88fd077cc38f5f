"""The simulated counterpart: what the same faults cost by the simulator's model of failures, written down before.

The costs of a step, a checkpoint and a start come from a training that nothing disturbed; when the faults strike, from
their stream; what they undo, from :func:`steelyard.sim.faults.run_one`. There a fault is a failure: a restart.
Until the driver knows, nothing is done and nothing further undone, so that time is put in between: for each kind, what
it takes to notice; where it is the driver that was killed, what it takes until the next one has written that down. A
full disk is no failure: the next checkpoint cannot be written, and what fails before the one after it undoes an
interval more.
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
ENDED_S = 0.25
"""Until all that a killed driver had started has ended, and the next one is started."""
FOREVER_S = 1e12
GOODPUT_TOLERANCE = 0.1
"""Predicted and measured goodput are to be so close, on a quiet host."""
NOTICED_TOLERANCE_S = 1.5
"""And so are, for each kind, the medians of the times until a fault is noticed, predicted and measured."""


@dataclass(frozen=True)
class Costs:
    """What a training takes where nothing goes wrong; seconds."""

    step_s: float
    checkpoint_s: float
    start_s: float
    """From the launch of the processes to the first step."""
    driver_s: float = 0.0
    """From the start of a driver to its first launch."""

    @classmethod
    def of(cls, events: Sequence[Event], spent: Spent, steps: int, driver_s: float) -> Costs:
        """As an undisturbed journal says."""
        saved = [event["seconds"] for event in events if event["event"] == "saved"]
        begun = [event["start_s"] for event in events if event["event"] == "begun"]
        return cls(spent.useful_s / steps, sum(saved) / len(saved), begun[0], driver_s)

    def segment_s(self, every: int) -> float:
        """From checkpoint to checkpoint."""
        return every * self.step_s + self.checkpoint_s


@dataclass(frozen=True)
class Moment:
    """When a fault strikes, if each one is noticed at once; seconds."""

    at_s: float
    """From the first step of the training."""
    up_s: float
    """From the first step of the launch; 0 where the launch has not come so far."""
    due_s: float
    """Until the next checkpoint is due."""
    unsaved: int
    """How many checkpoints in a row, the last ones before it, could not be written."""


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
    """Per fault, until it is in the journal."""
    unsaved: int
    """Checkpoints that cannot be written."""
    segment_s: float
    """From checkpoint to checkpoint."""

    @property
    def goodput(self) -> float:
        """Useful time over wall time."""
        return self.useful_s / self.wall_s

    def document(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {**asdict(self), "goodput": self.goodput}


def noticed_s(kind: Kind, timeout_s: float, costs: Costs) -> float:
    """Predicted seconds from a fault that ends a launch to its line in the journal.

    A starved lane goes on with the step under way, a thousandth as fast: where little is left of that, it ends, and the
    silence begins then. The mean over the place in the step: r/2 of the share r of steps that end within ``timeout_s``.
    """
    if kind == "driver":
        return ENDED_S + costs.driver_s
    if kind in ("kill", "memory"):
        return GRACE_S + NOTICED_S / 2 + (EATING_S if kind == "memory" else 0.0)
    if kind == "stop":
        return min(timeout_s, STOPPED_S) + LOOKS_S
    ends = min(1.0, timeout_s * STARVED_CORES / costs.step_s) if kind == "starve" else 0.0
    return timeout_s + NOTICED_S / 2 + ends * timeout_s / 2


def steps_for(strikes: Sequence[Strike], costs: Costs, every: int, margin: float) -> int:
    """Steps of a training that is still going on when the last fault strikes, so much longer than predicted."""
    up_s = 0.0
    for number, (strike, moment) in enumerate(zip(strikes, moments(strikes, costs, every), strict=True)):
        if strike.ends_launch or number == len(strikes) - 1:
            up_s += moment.up_s + (0.0 if strike.ends_launch else moment.due_s)
    return every * (int(margin * up_s / costs.segment_s(every) + REACH) + 1)


def forecast(strikes: Sequence[Strike], costs: Costs, *, every: int, steps: int, timeout_s: float) -> Forecast:
    """Simulate a training of so many steps under the faults."""
    job = Job(steps=steps, step_s=costs.step_s, every=every, checkpoint_s=costs.checkpoint_s, restart_s=costs.start_s)
    when = moments(strikes, costs, every)
    ends = [(strike, moment) for strike, moment in zip(strikes, when, strict=True) if strike.ends_launch]
    times = np.array([moment.at_s for _, moment in ends], dtype=float)
    unsaved = np.array([moment.unsaved for _, moment in ends], dtype=int)
    outcome = run_one(job, Failures(times, np.zeros(len(ends), dtype=bool)), FOREVER_S, unsaved)
    assert outcome is not None, "an endless horizon is long enough"
    recompute_s, restart_s, checkpoint_s, _ = outcome.lost_s
    unaware_s = sum(noticed_s(strike.kind, timeout_s, costs) for strike, moment in ends if moment.at_s < outcome.wall_s)
    return Forecast(
        wall_s=outcome.wall_s + unaware_s,
        useful_s=outcome.useful_s,
        checkpoint_s=checkpoint_s,
        recompute_s=recompute_s,
        down_s=restart_s + unaware_s,
        steps_lost=[_lost(*each, costs, every) for each in zip(strikes, when, strict=True)],
        noticed_s=[
            noticed_s(strike.kind, timeout_s, costs) if strike.ends_launch else moment.due_s
            for strike, moment in zip(strikes, when, strict=True)
        ],
        unsaved=len(strikes) - len(ends),
        segment_s=job.segment_s,
    )


def moments(strikes: Sequence[Strike], costs: Costs, every: int) -> list[Moment]:
    """When each fault strikes, if each were noticed at once.

    What follows a full disk strikes the same launch, so long after there is room again: when the checkpoint that was
    due could not be written.
    """
    found: list[Moment] = []
    segment_s = costs.segment_s(every)
    launched_s, due, unsaved = -costs.start_s, 0, 0
    for strike in strikes:
        after_s = strike.after_s(costs.start_s, every * costs.step_s)
        whole, into_s = divmod(after_s, segment_s)
        if strike.starting:
            found.append(Moment(launched_s + after_s, 0.0, 0.0, 0))
        else:
            up_s = due * segment_s + after_s
            at_s = launched_s + costs.start_s + up_s
            found.append(Moment(at_s, up_s, segment_s - into_s, 0 if whole else unsaved))
        if strike.ends_launch:
            launched_s, due, unsaved = found[-1].at_s, 0, 0
        else:
            due, unsaved = due + int(whole) + 1, found[-1].unsaved + 1
    return found


def _lost(strike: Strike, moment: Moment, costs: Costs, every: int) -> float:
    """Steps that are done again after a fault."""
    if strike.starting or not strike.ends_launch:
        return 0.0
    into_s = costs.segment_s(every) - moment.due_s
    return min(every, into_s / costs.step_s) + moment.unsaved * every


def rows(predicted: Forecast, measured: Spent, undisturbed: Spent, unsaved: int) -> list[dict[str, Any]]:
    """Predicted beside measured, for a table; ``unsaved``: checkpoints that could not be written."""
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
    if predicted.unsaved or unsaved:
        pairs.append(("checkpoints not written", predicted.unsaved, unsaved))
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
        delays: per kind, the measured seconds until a fault was in the journal.
    """
    off = predicted.goodput - measured.goodput
    noticed: dict[str, Any] = {}
    for kind, own in delays.items():
        guesses = [s for strike, s in zip(strikes, predicted.noticed_s, strict=True) if strike.kind == kind]
        guess_s, median_s = statistics.median(guesses), statistics.median(own)
        within = abs(guess_s - median_s) <= NOTICED_TOLERANCE_S
        noticed[kind] = {"predicted_s": guess_s, "measured_s": median_s, "within": within}
    return {
        "goodput_off": off,
        "goodput_tolerance": GOODPUT_TOLERANCE,
        "noticed": noticed,
        "noticed_tolerance_s": NOTICED_TOLERANCE_S,
        "within": abs(off) <= GOODPUT_TOLERANCE and all(each["within"] for each in noticed.values()),
    }
