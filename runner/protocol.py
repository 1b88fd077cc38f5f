"""Protocol: how plans are measured so that an error means something.

Each launch is a fresh group of processes that runs all plans, interleaved in rounds whose order is drawn anew: what the
host does meanwhile meets all of them. Every block warms up until its steps stop getting faster (:mod:`.stationary`),
the next launch spends its time where the uncertainty is (:mod:`.effort`), and the host is looked at before and after
(:mod:`.condition`). This module starts nothing itself: it is given the way to run a launch.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..results.errors import WorkerFailedError
from ..results.ledger import durations
from ..sim.noise import stream
from ..sim.spec import Scenario
from .calibrate import START_S, Report
from .condition import changes, condition, stolen_percent
from .effort import MOST_TIMES, Effort, Rules, Seen, launch_s, next_effort
from .gauge import PLANS_PER_GAUGE, SECONDS, Drift, gauge_tasks
from .launch import LaunchResult, Task
from .present import opening_tasks
from .stationary import MOST_WARMUP, drifting

BUSY_PERCENT = 5.0
"""More disturbed compute segments than this, and the host counts as busy."""
DRIFT_PERCENT = 5.0
"""A host that runs this much faster or slower than the tables say is not the host that was predicted for."""
PROTOCOL_VERSION = 3
"""Cases of suites that were measured otherwise are measured anew. 2: launches begin with gauges. 3: predictions have
intervals of launches whose speed is known, gauges know what each size took."""
MOST_TWINS = 3
PLANS_PER_TWIN = 3
"""One A/A twin for so many plans."""

Launcher = Callable[[Sequence[Task], int, int], LaunchResult]
"""Runs the tasks of one launch; also told how many tasks were done before, and how many there are likely to be."""


@dataclass(frozen=True)
class Subject:
    """A plan as the protocol sees it: what its task says beside the steps, and how long a step is expected to take."""

    task: Task
    """``sizes``, ``ranks`` and whatever else the workers need to know of the plan."""
    predicted_s: float
    micro_batches: Sequence[int] = ()
    """Sizes that the plan has: the lanes are gauged at others."""


@dataclass
class Measurement:
    """All launches that were complete, what ended them, and how they were made."""

    launches: list[LaunchResult] = field(default_factory=list)
    efforts: list[Effort] = field(default_factory=list)
    """Steps of each plan and round, per launch."""
    stopped: KeyboardInterrupt | WorkerFailedError | None = None
    reason: str = ""
    """Why there is no further launch."""
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    asked: int = 0
    """Launches that the scenario asks for."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Code, host, libraries and lanes of whoever measured, where another process makes the runs."""

    @property
    def changes(self) -> list[str]:
        """What is different of the host after the measurement."""
        return changes(self.before, self.after) if self.after else []

    def busy_reasons(self, contended_percent: float) -> list[str]:
        """Why runs of the measurement are marked as busy, as far as the host and disturbed segments tell."""
        disturbed = f"{contended_percent:.0f} % of the compute segments were disturbed"
        return [*self.changes, *([disturbed] if contended_percent > BUSY_PERCENT else [])]

    @property
    def notes(self) -> list[str]:
        """What a reader of any run of the measurement must know."""
        notes = [f"the host changed while it was measured: {each}" for each in self.changes]
        if self.stopped is not None:
            reason = "interrupted" if isinstance(self.stopped, KeyboardInterrupt) else f"stopped: {self.stopped}"
            notes.append(f"{reason} after {len(self.launches)} of {self.asked} launches")
        elif len(self.launches) < self.asked:
            notes.append(f"the budget allowed {len(self.launches)} of {self.asked} launches")
        return notes

    def record(self, index: int) -> dict[str, Any]:
        """How the ``index``-th plan was measured, for its run's provenance."""
        blocks = [each for launch in self.launches for each in _blocks(launch, index)]
        return {
            "launches": len(self.launches),
            "steps_per_round": [effort.steps[index] for effort in self.efforts],
            "warmup_steps": [answer.get("warmup", task["warmup"]) for task, answer in blocks],
            "unsettled_blocks": sum(not answer.get("settled", True) for _, answer in blocks),
            "drifting_launches": sum(drifting(_block_times(launch, index)) for launch in self.launches),
            "reason": self.reason,
            "before": self.before,
            "after": self.after,
            "stolen_percent": stolen_percent(self.before, self.after) if self.after else None,
        }


def measure(
    scenario: Scenario,
    subjects: Sequence[Subject],
    run: Launcher,
    *,
    seed: int,
    budget_s: float | None = None,
    report: Report = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    look: Callable[[], dict[str, Any]] = condition,
) -> Measurement:
    """Run launches until the scenario's are done or, with a budget, until it is spent or nothing is left to learn.

    A launch that fails or is interrupted ends the measurement; those that were complete before it are kept.

    Args:
        scenario: says how many launches, rounds and steps.
        subjects: the plans, twins included.
        run: starts the processes of one launch.
        seed: of the order of the rounds.
        budget_s: for all launches together; without one the scenario's launches and steps are made.
        report: gets lines for people.
        clock: seconds that pass.
        look: the host's condition.

    Raises:
        KeyboardInterrupt, WorkerFailedError: not one launch was complete.
    """
    rules = rules_of(scenario)
    sizes = sizes_of(subjects)
    begin, overhead_s, done = clock(), START_S + SECONDS * len(opening_tasks(scenario, but=sizes)), 0
    result = Measurement(before=look(), asked=rules.launches)
    seen = [Seen(subject.predicted_s) for subject in subjects]

    def left_s() -> float | None:
        return None if budget_s is None else budget_s - (clock() - begin)

    while not (effort := next_effort(seen, rules, left_s=left_s(), overhead_s=overhead_s)).over:
        number, started = len(result.launches), clock()
        tasks = launch_tasks(scenario, subjects, effort.steps, seed=seed, launch=number)
        report(f"launch {number + 1} of {max(rules.launches, number + 1)}: a fresh process per lane")
        try:
            launch = run(tasks, done, done + len(tasks) * max(1, rules.launches - number))
        except (KeyboardInterrupt, WorkerFailedError) as stopped:
            if not result.launches:
                raise
            result.stopped, effort = stopped, Effort((), str(stopped) or "interrupted")
            break
        done += len(tasks)
        result.launches.append(launch)
        result.efforts.append(effort)
        seen = [Seen(each.predicted_s, (*each.launches, _steps(launch, i))) for i, each in enumerate(seen)]
        overhead_s = max(0.0, clock() - started - launch_s(seen, rules, effort.steps))
    result.reason, result.after = effort.reason, look()
    return result


def rules_of(scenario: Scenario) -> Rules:
    """What a scenario asks for."""
    settings = scenario.replay
    return Rules(settings.launches, settings.rounds, steps_per_round(scenario), max(1, settings.warmup_steps))


def steps_per_round(scenario: Scenario) -> int:
    """Measured steps per plan, launch and round that the scenario asks for."""
    return max(1, scenario.replay.steps // scenario.replay.rounds)


def counted_steps(scenario: Scenario) -> int:
    """Measured steps per plan and launch that the scenario asks for: whole rounds."""
    return scenario.replay.rounds * steps_per_round(scenario)


def launch_steps(scenario: Scenario) -> list[int]:
    """Numbers of steps that a plan may have in a launch, from one a round by doublings to the most."""
    per_round, rounds = steps_per_round(scenario), scenario.replay.rounds
    counts = {1, per_round, MOST_TIMES * per_round}
    counts |= {2**power for power in range((MOST_TIMES * per_round).bit_length())}
    return sorted(rounds * count for count in counts)


def twin_count(plans: int) -> int:
    """How many of some plans are measured a second time, as if they were others."""
    return max(1, min(MOST_TWINS, plans // PLANS_PER_TWIN))


def spread_out(times: Sequence[float], count: int) -> list[int]:
    """Which of some plans to measure twice: the fastest, the slowest, then evenly between them by predicted time."""
    order = sorted(range(len(times)), key=lambda index: (times[index], index))
    if count == 1:
        return order[:1]
    return [order[round(place * (len(order) - 1) / (count - 1))] for place in range(min(count, len(order)))]


def sizes_of(subjects: Sequence[Subject]) -> list[int]:
    """The sizes that some plans have: lanes are gauged at others."""
    return [size for subject in subjects for size in subject.micro_batches]


def launch_tasks(
    scenario: Scenario, subjects: Sequence[Subject], steps: Sequence[int], *, seed: int, launch: int
) -> list[Task]:
    """One launch: every plan in every round, in an order of the round's own; first and in between lanes are gauged."""
    order = random.Random(int(stream(seed, "rounds", launch).integers(2**32)))  # noqa: S311 - an order, not a secret
    sizes = sizes_of(subjects)
    tasks = opening_tasks(scenario, but=sizes)
    gauging = itertools.cycle([[task] for task in gauge_tasks(scenario, but=sizes)] or [[]])
    for number in range(scenario.replay.rounds):
        indices = list(range(len(subjects)))
        order.shuffle(indices)
        for place, index in enumerate(indices):
            tasks += next(gauging) if place % PLANS_PER_GAUGE == 0 else []
            tasks.append(
                {
                    "op": "block",
                    "index": index,
                    "round": number,
                    **subjects[index].task,
                    "steps": steps[index],
                    "warmup": max(1, scenario.replay.warmup_steps),
                    "most_warmup": MOST_WARMUP,
                    "offset": number * steps[index],
                }
            )
    return tasks + next(gauging)


def contention(measurement: Measurement, index: int, drift: Drift) -> dict[str, Any]:
    """How disturbed the measurement was: segments that took longer than their processor time, and the lanes' drift.

    The drift is of all launches together, from tables that are of the lanes' speed before the predictions. It sees
    what processor time cannot: a neighbour on the same physical core, or another clock rate.
    """
    launches = measurement.launches
    blocks = [
        answer
        for launch in launches
        for rank in range(len(launch.answers))
        for task, answer in launch.of("block", rank)
        if task["index"] == index and answer["steps"]
    ]
    contended = 100 * sum(block["contended"] for block in blocks) / len(blocks)
    reasons = measurement.busy_reasons(contended)
    for name, percent in drift.percent.items():
        if abs(percent) > DRIFT_PERCENT:
            how = "slower" if percent > 0 else "faster"
            reasons.append(f"{name} runs {abs(percent):.0f} % {how} than its table says")
    return {
        "busy": bool(reasons),
        "reasons": reasons,
        "contended_percent": contended,
        # All ranks retry by common decision: one of them tells how often.
        "retries": sum(
            answer["retries"] for launch in launches for task, answer in launch.of("block", 0) if task["index"] == index
        ),
        "drift_percent": drift.percent,
    }


def _blocks(launch: LaunchResult, index: int) -> list[tuple[Task, Task]]:
    """The blocks of a plan in a launch, each with the answer of the first rank that takes part."""
    first = next(task for task in launch.tasks if task["op"] == "block" and task["index"] == index)["ranks"][0]
    return [(task, answer) for task, answer in launch.of("block", first) if task["index"] == index]


def _block_times(launch: LaunchResult, index: int) -> list[list[float]]:
    """Seconds of each counted step, per block of a plan in a launch: from the last end of a step to the next one's."""
    found = []
    ranks = next(task for task in launch.tasks if task["op"] == "block" and task["index"] == index)["ranks"]
    own = [[answer for task, answer in launch.of("block", rank) if task["index"] == index] for rank in ranks]
    for answers in zip(*own, strict=True):
        steps = list(zip(*(answer["steps"] for answer in answers), strict=True))
        ends = [max(segment[3] for segments in step for segment in segments) for step in steps]
        begin = min(segment[2] for segments in steps[0] for segment in segments)
        found.append(durations(ends, begin))
    return found


def _steps(launch: LaunchResult, index: int) -> tuple[float, ...]:
    return tuple(seconds for block in _block_times(launch, index) for seconds in block)
