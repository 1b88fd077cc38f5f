"""Effort: how many steps of which plan the next launch measures; a pure function of what was measured so far.

A measurement serves decisions: which of two plans is faster, near the top above all, and how far a prediction is off.
Time goes where the interval of a plan's median is wide beside what its decisions need, and none is spent once all are
narrow enough. Launches, not steps, are the unit of luck, so there are at least as many as the scenario asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..results.metrics import INTERVAL

LEAST_TARGET, MOST_TARGET = 0.5, 1.0
"""Half-widths in percent of the median, between which a plan's target lies."""
MOST_TIMES = 4
"""A plan gets at most so many times the steps that the scenario asks for, and a study so many times the launches."""
TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution."""
LEAST_SPREAD = 1e-3
"""Relative spread of steps that a plan has at least: a lucky few must not stop it from being measured."""


@dataclass(frozen=True)
class Seen:
    """What is known of a plan while it is measured."""

    predicted_s: float
    """Predicted median of a step."""
    launches: tuple[tuple[float, ...], ...] = ()
    """Seconds of each measured step, per launch."""

    @property
    def step_s(self) -> float:
        """Seconds of a step: measured where there is a measurement."""
        steps = [seconds for launch in self.launches for seconds in launch]
        return median(steps) if steps else self.predicted_s

    @property
    def spread(self) -> float:
        """Relative spread of the steps within a launch, robust against single ones; the same for all before any."""
        deviations = [abs(each / median(launch) - 1) for launch in self.launches if launch for each in launch]
        return max(LEAST_SPREAD, TO_SIGMA * median(deviations)) if deviations else 1.0


@dataclass(frozen=True)
class Rules:
    """What the scenario asks for."""

    launches: int
    """At least, unless the budget forbids it."""
    rounds: int
    steps: int
    """Per plan and round."""
    warmup: int
    """Steps before the counted ones, per plan and round."""


@dataclass(frozen=True)
class Effort:
    """The next launch: steps of each plan in each round; or none, and why."""

    steps: tuple[int, ...]
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is measured."""
        return not self.steps


def next_effort(plans: Sequence[Seen], rules: Rules, *, left_s: float | None, overhead_s: float) -> Effort:
    """What to measure next.

    Args:
        plans: all that are measured, twins included, in order.
        rules: what the scenario asks for.
        left_s: of the budget; None: no budget, the scenario's launches and steps and no more.
        overhead_s: of a launch beside its steps: start of processes, gauging.
    """
    done = len(plans[0].launches)
    if left_s is None:
        return Effort((rules.steps,) * len(plans)) if done < rules.launches else Effort((), "all launches are done")
    least_s = overhead_s + launch_s(plans, rules, (1,) * len(plans))
    if done and left_s < least_s:
        return Effort((), f"the budget is spent after {done} launches")
    if done >= rules.launches:
        if done >= MOST_TIMES * rules.launches:
            return Effort((), f"{done} launches are the most")
        if max(needs(plans)) <= 1:
            return Effort((), f"every median is known as well as its decisions need, after {done} launches")
    whole_s = overhead_s + launch_s(plans, rules, (rules.steps,) * len(plans))
    to_come = max(1, rules.launches - done if done < rules.launches else round(left_s / whole_s))
    return Effort(_dealt(plans, rules, left_s / to_come - overhead_s))


@dataclass(frozen=True)
class Turn:
    """Whose whole run is next; or nobody's, and why."""

    index: int | None
    reason: str = ""


def next_turn(runs: Sequence[Seen], launches: int, *, left_s: float | None, run_s: float) -> Turn:
    """Whose run is made next where runs are made whole: all in turns first, then whose mean is known worst.

    Args:
        runs: all that are followed, twins included; each launch has the mean step of one run.
        launches: runs of each that the scenario asks for.
        left_s: of the budget; None: no budget, the scenario's runs and no more.
        run_s: seconds of one run.
    """
    counts = [len(each.launches) for each in runs]
    fewest, done = min(counts), sum(counts)
    if left_s is None or not fewest:  # one run of each is made whatever the budget
        return Turn(counts.index(fewest)) if fewest < launches else Turn(None, "all launches are done")
    if left_s < run_s:
        return Turn(None, f"the budget is spent after {done} runs")
    if fewest < launches:
        return Turn(counts.index(fewest))
    wanting = {index: need for index, need in enumerate(needs(runs)) if counts[index] < MOST_TIMES * launches}
    if not wanting:
        return Turn(None, f"{MOST_TIMES * launches} runs of each are the most")
    index = max(wanting, key=lambda each: wanting[each])
    if wanting[index] <= 1:
        return Turn(None, f"every mean is known as well as its decisions need or can be, after {done} runs")
    return Turn(index)


def launch_s(plans: Sequence[Seen], rules: Rules, steps: Sequence[int]) -> float:
    """Seconds of a launch's steps, warm-up included."""
    return rules.rounds * sum((rules.warmup + count) * plan.step_s for plan, count in zip(plans, steps, strict=True))


def half_width_percent(launches: Sequence[Sequence[float]]) -> float:
    """Half-width of the 80 % interval of the median over launches, by Student's t of their medians; inf below two.

    With so few launches a bootstrap is too narrow, and a decision to stop must not be.
    """
    medians = [median(each) for each in launches if each]
    if len(medians) < 2:
        return math.inf
    from scipy.stats import t

    mean = sum(medians) / len(medians)
    variance = sum((each - mean) ** 2 for each in medians) / (len(medians) - 1)
    quantile = float(t.ppf((1 + INTERVAL) / 2, len(medians) - 1))
    return 100 * quantile * math.sqrt(variance / len(medians)) / median(medians)


def targets(plans: Sequence[Seen]) -> list[float]:
    """Half-width that each plan's median should have, in percent: what tells it from its neighbours.

    Two intervals that reach half of the way to each other just touch. A pair with the best plan, measured or predicted,
    decides what is picked; of other pairs only the order is at stake, and half of the sharpness does.
    """
    times = [plan.step_s for plan in plans]
    top = {times.index(min(times)), min(range(len(plans)), key=lambda i: plans[i].predicted_s)}
    found = []
    for i, own in enumerate(times):
        gaps = [
            100 * abs(other / own - 1) / (2 if {i, j} & top else 1)
            for j, other in enumerate(times)
            if j != i and plans[j].predicted_s != plans[i].predicted_s  # a twin is to agree, not to be told apart
        ]
        found.append(min(MOST_TARGET, max(LEAST_TARGET, min(gaps, default=MOST_TARGET))))
    return found


def needs(plans: Sequence[Seen]) -> list[float]:
    """Per plan, how many times as wide its interval is as it should be; above 1 it wants more."""
    return [half_width_percent(plan.launches) / target for plan, target in zip(plans, targets(plans), strict=True)]


def _dealt(plans: Sequence[Seen], rules: Rules, seconds: float) -> tuple[int, ...]:
    """Steps of each plan and round that fit in some seconds: the most where a step is worth most.

    Neyman's allocation (1934, recalled): a plan gets steps in proportion to its spread, by what it may have, over the
    root of what a step costs. Every plan has one: all of them share the luck of every launch.
    """
    aims = targets(plans)
    worth = [
        plan.spread / target / math.sqrt(plan.step_s) if plan.launches else 1.0
        for plan, target in zip(plans, aims, strict=True)
    ]
    most = MOST_TIMES * rules.steps

    def steps(scale: float) -> tuple[int, ...]:
        return tuple(max(1, min(most, int(scale * each))) for each in worth)

    # Steps change only where scale * worth passes a whole number: those are all the answers that there are.
    scales = sorted({0.0, *(count / each * (1 + 1e-12) for each in worth for count in range(1, most + 1))})
    fitting = [scale for scale in scales if launch_s(plans, rules, steps(scale)) <= seconds]
    return steps(max(fitting, default=0.0))
