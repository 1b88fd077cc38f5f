"""Bottleneck: why a step takes as long as it does, and what it would gain if its main cause took half as long.

The critical path says where the time goes, but not what it would help: beside the path there may be another one, as
long. So the gain is simulated, cause by cause. No cause can gain more than half of its part of the path (what is left
of the path is still there), except where transfers share links; so the search ends early.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import loop, recurrence
from .causes import Cause, Causes
from .compiler import compile_plan
from .critical import Part, critical_path
from .plan import Plan
from .program import Program
from .relief import relieved
from .running import Launch
from .spec import Scenario
from .tracing import Trace

MOST_PIECES = 200_000
"""Pieces of work from one synchronisation to the next that are still looked into."""
ROUNDS = 24
"""Rounds that are simulated of a program that does not repeat itself."""
LAPS = 3
"""Times that a pattern of several rounds is seen before it counts as one."""
MOST_SEGMENTS = 100
"""Parts of a path that are kept in a record."""
MOST_CAUSES = 6
"""Causes whose gain is simulated."""
AS_GOOD = 0.99
"""Of the gain of a group: where one of it gains as much, the one is named."""
IN_BALANCE = 0.1
"""Of what a cause could gain: below it, others that take as long stand in its place."""
ROUNDING = 1e-12
"""A gain of less is none."""
SAME = 1e-9
"""Of a pattern of rounds: those that differ by less are the same, but for rounding."""


@dataclass(frozen=True)
class Segment:
    """A part of the critical path."""

    device: str
    """Whose work it is, or who waits for the transfer or the load."""
    what: str
    """``forward``, ``backward``, ``optimizer``, or what is transferred."""
    link: str | None
    """What limits the transfer."""
    cause: str
    seconds: float


@dataclass(frozen=True)
class Bottleneck:
    """Why a step takes its time."""

    step_s: float
    """Seconds of the mean step without noise."""
    path: list[Segment]
    """In order of time: one step, or the steps of a round (of several, where none is like the one before)."""
    by_cause: dict[str, float]
    """Seconds of the step by cause, the longest first; they sum to ``step_s``."""
    binding: str
    """The cause with the largest gain."""
    kind: str
    gain: float
    """Share of the step that is saved when it takes half as long."""
    devices: int = 0
    """How many do the work, where it is work that binds."""
    settled: bool = True
    """Whether all steps that were compared repeat themselves; else the gains are of a finite window, and about right.

    Pipelines that nothing holds together, or an input pipeline that falls behind slowly, may take long to settle.
    """
    gains: dict[str, float] = field(default_factory=dict)
    """The same of all causes that were tried, the largest first."""

    def line(self) -> str:
        """The answer in one line."""
        about = "" if self.settled else "about "
        return f"{self._subject()}; half of it would save {about}{100 * self.gain:.0f} % of the step"

    def document(self) -> dict[str, Any]:
        """For a record, where a long path has no place."""
        whole = asdict(self)
        return whole if len(self.path) <= MOST_SEGMENTS else {**whole, "path": None}

    def _subject(self) -> str:
        """What binds; of a link also what goes over it, of transfers also the link that limits them."""
        if self.kind == "device" and not self.binding.startswith("all "):
            return f"device{'s' * (self.devices > 1)} {self.binding}"
        found: dict[str, float] = {}
        for each in self.path:
            if self.kind == "link" and self.binding in (each.cause, each.link):
                found[each.what] = found.get(each.what, 0.0) + each.seconds
            if self.kind == "communication" and each.what == self.binding and each.link is not None:
                found[each.cause] = found.get(each.cause, 0.0) + each.seconds
        return f"{self.binding} ({max(found, key=lambda name: (found[name], name))})" if found else self.binding


def explain(scenario: Scenario, plan: Plan, program: Program | None = None) -> Bottleneck | str:
    """Why a step of a plan takes its time, without noise.

    Steps overlap, and how the last one ends does not keep the next from beginning. So the path is followed back from a
    later end than the one that it is told from: then it goes through what sets the pace, and halving a cause saves at
    most half of its part. It is told of the rounds that repeat themselves; where none do, of half of those simulated.

    Args:
        scenario: whose plan it is.
        plan: as :meth:`Plan.check` accepts it.
        program: the plan's, if it has been compiled without noise.

    Returns:
        The answer; of programs of more than :data:`MOST_PIECES` pieces of work in a round, that there is none.
    """
    program = program or compile_plan(scenario, plan, folded=True)
    pieces = sum(len(worker.pieces) for worker in program.workers) * program.sync_every
    if pieces > MOST_PIECES:
        return f"(half of it was not simulated: over {MOST_PIECES} pieces of work)"
    rounds = max(2, min(ROUNDS, 2 * MOST_PIECES // pieces))
    trial = _Trial(program, steps=1 + program.sync_every * rounds)
    return _answer(trial, Causes(scenario, plan, program))


@dataclass(slots=True)
class _Weighed:
    """A cause, its part of the path, and those within it."""

    cause: Cause
    seconds: float = 0.0
    within: dict[str, _Weighed] = field(default_factory=dict)

    @property
    def order(self) -> tuple[float, str]:
        """The longest first; ties by name."""
        return -self.seconds, self.cause.name


class _Trial:
    """A program without noise, and what it gains by relief."""

    def __init__(self, program: Program, *, steps: int) -> None:
        self.program = program
        self.steps = steps
        trace = Trace.of(program)
        launch = _run(program, steps, trace)
        self.settled = launch.repeats > 1
        first, last = _window(launch, program.sync_every)
        lap = program.sync_every
        begin, end = launch.ends[first - lap], launch.ends[last - lap]
        self.counted = last - first
        self.step_s = (end - begin) / self.counted
        self.parts = critical_path(program, trace, begin=begin, end=end, last_step=last)
        self.gains: dict[str, float] = {}

    def gain(self, cause: Cause) -> float:
        """Share of the step that is saved when a cause takes half as long."""
        if cause.name not in self.gains:
            launch = _run(relieved(self.program, cause.relief), self.steps)
            self.settled = self.settled and launch.repeats > 1
            first, last = _window(launch, self.program.sync_every)
            step_s = (launch.ends[last] - launch.ends[first]) / (last - first)
            gain = 1 - step_s / self.step_s
            self.gains[cause.name] = gain if abs(gain) > ROUNDING else 0.0
        return self.gains[cause.name]


def _run(program: Program, steps: int, trace: Trace | None = None) -> Launch:
    """Some steps, by the recurrence where it holds."""
    if recurrence.applies(program):
        launch = recurrence.run_launch(program, steps=steps, record=False, trace=trace)
        if launch is not None:
            return launch
        if trace is not None:
            trace.clear()
    return loop.run_launch(program, steps=steps, record=False, trace=trace)


def _window(launch: Launch, cycle: int) -> tuple[int, int]:
    """The last step before the steps that count, and the last of them: what repeats itself, or the later half.

    A program without noise settles into a pattern, but not always one of a single round: with a slow input pipeline,
    for one, a fast round and a slow one may take turns. The mean of a window that cuts such a pattern is not the pace.
    """
    last = len(launch.ends) - 1
    if launch.repeats > 1:
        last -= (launch.repeats - 1) * cycle
        return last - cycle, last
    rounds = np.diff(np.asarray(launch.ends)[last % cycle :: cycle])
    return last - cycle * _pattern(rounds), last


def _pattern(rounds: NDArray[np.float64]) -> int:
    """How many of the last rounds are the pattern that repeats itself; if none does, the later half."""
    for length in range(1, len(rounds) // LAPS + 1):
        seen = rounds[-max(LAPS * length, len(rounds) // 2) :]
        if np.abs(seen[length:] - seen[:-length]).max() <= SAME * seen.max():
            return length
    return max(1, (len(rounds) + 1) // 2)


def _answer(trial: _Trial, causes: Causes) -> Bottleneck:
    weighed = _weigh(trial, causes)
    binding = _binding(trial, causes, [*weighed.values(), *_wholes(trial, causes)])
    name, gain = binding.name, trial.gains[binding.name]
    return Bottleneck(
        step_s=trial.step_s,
        path=_segments(trial.parts, causes),
        by_cause={each.cause.name: each.seconds for each in sorted(weighed.values(), key=lambda each: each.order)},
        binding=name,
        kind=binding.kind,
        gain=gain,
        devices=binding.devices,
        settled=trial.settled,
        gains=dict(sorted(trial.gains.items(), key=lambda item: (-item[1], item[0]))),
    )


def _weigh(trial: _Trial, causes: Causes) -> dict[str, _Weighed]:
    """Seconds of the step by cause, and by what is within each."""
    found: dict[str, _Weighed] = {}
    for part in trial.parts:
        within = found
        for cause in causes.of(part):
            each = within.setdefault(cause.name, _Weighed(cause))
            each.seconds += part.seconds / trial.counted
            within = each.within
    return found


def _wholes(trial: _Trial, causes: Causes) -> list[_Weighed]:
    """Transfers for one purpose, whatever limits them: where it is not one thing alone."""
    found: dict[str, tuple[_Weighed, set[str]]] = {}
    for part in trial.parts:
        if part.transfer is not None:
            whole, limits = found.setdefault(part.what, (_Weighed(causes.whole(part.what)), set()))
            whole.seconds += part.seconds / trial.counted
            limits.add(causes.of(part)[0].name)
    return [whole for whole, limits in found.values() if len(limits) > 1]


def _binding(trial: _Trial, causes: Causes, candidates: list[_Weighed]) -> Cause:
    """The cause with the largest gain; a narrower one that gains as much goes before."""
    ordered = sorted(candidates, key=lambda each: each.order)
    best, most = ordered[0], trial.gain(ordered[0].cause)
    for each in ordered[1:MOST_CAUSES]:
        if each.seconds / 2 <= most * trial.step_s:
            break
        if trial.gain(each.cause) > most:
            best, most = each, trial.gain(each.cause)
    everything = causes.everything()
    if _balanced(trial, ordered, most) and trial.gain(everything) > most:
        return everything
    return _narrowed(trial, best)


def _balanced(trial: _Trial, ordered: list[_Weighed], most: float) -> bool:
    """Whether the devices with most of the path gain next to nothing, because others take as long."""
    work = [each for each in ordered if each.cause.kind == "device"]
    # Where transfers share links, halving one may lose time: then most is below 0, and no device need be on the path.
    if not work or sum(each.seconds for each in work) / 2 <= most * trial.step_s:
        return False
    return trial.gain(work[0].cause) * trial.step_s < IN_BALANCE * work[0].seconds / 2


def _narrowed(trial: _Trial, best: _Weighed) -> Cause:
    """The narrowest cause within one that gains as much."""
    needed = AS_GOOD * trial.gain(best.cause)
    while best.within:
        longest = min(best.within.values(), key=lambda each: each.order)
        if longest.seconds / 2 < needed * trial.step_s or trial.gain(longest.cause) < needed:
            break
        best = longest
    return best.cause


def _segments(parts: Iterable[Part], causes: Causes) -> list[Segment]:
    return [
        Segment(
            device=causes.place(part),
            what=part.what if part.kind != "latency" else f"latency of {part.what}",
            link=causes.of(part)[-1].name if part.kind == "volume" else None,
            cause=causes.of(part)[0].name,
            seconds=part.seconds,
        )
        for part in parts
    ]
