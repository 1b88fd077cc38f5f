"""The protocol with scripted launches: what is run in which order, what ends it, and what is said of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import WorkerFailedError
from steelyard.runner.condition import changes
from steelyard.runner.gauge import Drift
from steelyard.runner.launch import LaunchResult, Task
from steelyard.runner.present import opening_tasks
from steelyard.runner.protocol import (
    Subject,
    contention,
    counted_steps,
    launch_steps,
    launch_tasks,
    measure,
    spread_out,
    twin_count,
)
from steelyard.sim.spec import Replay, Scenario

SUBJECTS = [
    Subject({"sizes": [[20], [10]], "ranks": [0, 1]}, 0.05),
    Subject({"sizes": [[30], []], "ranks": [0]}, 0.07),
    Subject({"sizes": [[15], [15]], "ranks": [0, 1]}, 0.06),
]
CALM: dict[str, Any] = {
    "host": {"cores": 2, "torch": "1"},
    "boot": "a",
    "governors": [],
    "turbo_off": None,
    "busy_s": 10.0,
    "stolen_s": 0.0,
}


@dataclass
class Script:
    """Launches that never ran: steps as long as predicted, give or take; a clock that they move on."""

    spread: float = 0.01
    start_s: float = 5.0
    fails: dict[int, BaseException] = field(default_factory=dict)
    seconds: float = 0.0
    tasks: list[Sequence[Task]] = field(default_factory=list)
    ticks: list[tuple[int, int]] = field(default_factory=list)

    def clock(self) -> float:
        return self.seconds

    def run(self, tasks: Sequence[Task], before: int, total: int) -> LaunchResult:
        number = len(self.tasks)
        self.tasks.append(tasks)
        self.ticks.append((before + len(tasks), total))
        self.seconds += self.start_s
        if number in self.fails:
            raise self.fails[number]
        source = random.Random(number)
        answers: list[list[Task]] = [[], []]
        for task in tasks:
            steps = self._steps(task, source) if task["op"] == "block" else []
            for rank in (0, 1):
                own = steps if task["op"] == "block" and rank in task["ranks"] else []
                answers[rank].append({"steps": own, "quiet": [], "contended": 0.0, "retries": 0, "warmup": 2})
        return LaunchResult(tasks, answers)

    def _steps(self, task: Task, source: random.Random) -> list[list[tuple[str, int, float, float, float]]]:
        steps = []
        for _ in range(task["steps"] + 1):
            begin = self.seconds
            self.seconds += SUBJECTS[task["index"]].predicted_s * source.gauss(1.0, self.spread)
            steps.append([("forward", 0, begin, self.seconds, self.seconds - begin)])
        return steps


def scenario_of(tiny: Scenario, **replay: int) -> Scenario:
    return tiny.model_copy(update={"replay": Replay(**{"launches": 5, "steps": 12, "rounds": 3, **replay})})


@given(rounds=st.integers(1, 6), steps=st.integers(1, 30), seed=st.integers(0, 99), launch=st.integers(0, 9))
def test_every_round_runs_every_plan_in_an_order_of_its_own(
    tiny_scenario: Scenario, rounds: int, steps: int, seed: int, launch: int
) -> None:
    scenario = scenario_of(tiny_scenario, rounds=rounds, steps=steps)
    tasks = launch_tasks(scenario, SUBJECTS, [2, 3, 4], seed=seed, launch=launch)
    assert tasks == launch_tasks(scenario, SUBJECTS, [2, 3, 4], seed=seed, launch=launch)
    orders = [[task["index"] for task in tasks if task.get("round") == number] for number in range(rounds)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    between = [task["op"] for task in tasks if not task.get("opening")]
    assert between.count("gauge") == rounds + 1  # before every third block and at the end
    assert tasks[: len(tasks) - len(between)] == opening_tasks(scenario)
    assert {(task["index"], task["steps"]) for task in tasks if "index" in task} == {(0, 2), (1, 3), (2, 4)}
    blocks = [task for task in tasks if task.get("index") == 1]
    assert [task["offset"] for task in blocks] == [3 * number for number in range(rounds)]  # no sample twice


def test_orders_differ_between_launches_and_seeds(tiny_scenario: Scenario) -> None:
    scenario = scenario_of(tiny_scenario, rounds=6)
    found = {
        str(launch_tasks(scenario, SUBJECTS, [1] * 3, seed=seed, launch=launch)) for seed in (0, 1) for launch in (0, 1)
    }
    assert len(found) == 4


def test_without_a_budget_the_scenarios_launches_are_made(tiny_scenario: Scenario) -> None:
    script = Script()
    found = measure(scenario_of(tiny_scenario), SUBJECTS, script.run, seed=1, clock=script.clock, look=CALM.copy)
    assert len(found.launches) == 5
    assert not found.notes
    assert script.ticks[-1][0] == script.ticks[-1][1]
    record = found.record(0)
    assert record["steps_per_round"] == [4] * 5
    assert record["warmup_steps"] == [2] * 15
    assert record["unsettled_blocks"] == 0


@pytest.mark.parametrize("budget", [30.0, 60.0, 120.0])
def test_a_budget_is_kept_and_repeats(tiny_scenario: Scenario, budget: float) -> None:
    def once() -> tuple[Script, list[tuple[int, ...]]]:
        script = Script(spread=0.2)
        found = measure(
            scenario_of(tiny_scenario),
            SUBJECTS,
            script.run,
            seed=1,
            budget_s=budget,
            clock=script.clock,
            look=CALM.copy,
        )
        assert found.reason
        return script, [effort.steps for effort in found.efforts]

    (script, efforts), (_, again) = once(), once()
    assert efforts == again
    assert script.seconds <= 1.15 * budget


def test_a_budget_for_fewer_launches_is_marked(tiny_scenario: Scenario) -> None:
    script = Script()
    found = measure(
        scenario_of(tiny_scenario), SUBJECTS, script.run, seed=1, budget_s=1.0, clock=script.clock, look=CALM.copy
    )
    assert len(found.launches) == 1
    assert found.notes == ["the budget allowed 1 of 5 launches"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), WorkerFailedError("worker 'sse' died")])
def test_what_was_complete_is_kept(tiny_scenario: Scenario, error: BaseException) -> None:
    script = Script(fails={2: error})
    found = measure(scenario_of(tiny_scenario), SUBJECTS, script.run, seed=1, clock=script.clock, look=CALM.copy)
    assert len(found.launches) == 2
    assert found.stopped is error
    assert "after 2 of 5 launches" in found.notes[0]
    with pytest.raises(type(error)):
        measure(
            scenario_of(tiny_scenario),
            SUBJECTS,
            Script(fails={0: error}).run,
            seed=1,
            clock=script.clock,
            look=CALM.copy,
        )


def test_a_host_that_changed_is_told_and_marks_the_run(tiny_scenario: Scenario) -> None:
    looks = iter([CALM, {**CALM, "host": {"cores": 1, "torch": "1"}, "busy_s": 20.0, "stolen_s": 3.0}])
    script = Script()
    found = measure(
        scenario_of(tiny_scenario), SUBJECTS, script.run, seed=1, clock=script.clock, look=lambda: next(looks)
    )
    assert found.notes[0] == "the host changed while it was measured: cores was 2 before and is 1 after"
    assert "30.0 %" in found.notes[1]
    assert contention(found, 0, Drift.of(tiny_scenario, found.launches))["busy"]


def test_the_same_condition_is_no_change() -> None:
    assert changes(CALM, CALM) == []
    assert changes({**CALM, "stolen_s": None}, CALM) == []  # a system that does not tell
    assert changes(CALM, {**CALM, "boot": "b"}) == ["boot was 'a' before and is 'b' after"]


@given(times=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20))
def test_twins_are_different_plans_with_the_fastest_first(times: list[float]) -> None:
    chosen = spread_out(times, twin_count(len(times)))
    assert len(set(chosen)) == len(chosen) == twin_count(len(times))
    assert times[chosen[0]] == min(times)
    if len(chosen) > 1:
        assert times[chosen[-1]] == max(times)


@given(rounds=st.integers(1, 6), steps=st.integers(1, 40))
def test_the_steps_that_are_predicted_hold_those_that_are_asked_for(
    tiny_scenario: Scenario, rounds: int, steps: int
) -> None:
    scenario = scenario_of(tiny_scenario, rounds=rounds, steps=steps)
    counts = launch_steps(scenario)
    assert counted_steps(scenario) in counts
    assert counts[0] == rounds
    assert all(count % rounds == 0 for count in counts)
