"""Launches on disk: whatever is damaged in one, runs are made of it or it is refused by its name, with the mend."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.results.record import Run
from steelyard.runner import courses, replay
from steelyard.runner.course import Course
from steelyard.runner.courses import assembled_courses, predict_courses
from steelyard.runner.entries import distinct_entries, plans_of
from steelyard.runner.followed import Followed
from steelyard.runner.held_out import hold_out
from steelyard.runner.kept import MEND
from steelyard.runner.launch import LaunchResult, Task
from steelyard.runner.measured import assembled_plans
from steelyard.runner.protocol import launch_tasks
from steelyard.runner.replay import begun_common
from steelyard.runner.sealing import predict
from steelyard.runner.unfinished import Launches
from steelyard.sim.disturbances import Disturbance, Rebalance
from steelyard.sim.spec import Scenario

Document = dict[str, Any]
RANKS = range(2)


@dataclass(frozen=True)
class Killed:
    """A study whose driver was killed after its first launch."""

    launches: Launches
    whole: Document
    assemble: Callable[[list[Document]], list[Run]]

    def made(self, launch: object) -> list[Run]:
        """The runs that are made where the file of the launch holds this."""
        self.launches.files[0].write_text(json.dumps(launch))
        _, complete = self.launches.read()
        return self.assemble(complete)

    def made_or_refused(self, launch: object) -> list[Run] | InputError:
        """The same, or why not."""
        try:
            return self.made(launch)
        except InputError as error:
            return error


class Clock:
    """Seconds that pass from segment to segment."""

    def __init__(self) -> None:
        self.now = 100.0

    def step(self, size: int, *, alone: bool) -> list[list[Any]]:
        """What a member measures of a step."""
        found: list[list[Any]] = []
        kinds = [("forward", 0, 0), ("backward", 0, 0), ("communication", -1, -1), ("optimizer", -1, -1)]
        for kind, number, stage in kinds:
            if kind != "communication" or not alone:
                start, self.now = self.now, self.now + 1e-3 * (1 + size)
                found.append([kind, number, start, self.now, self.now - start, stage])
        return found


def answered(tasks: Sequence[Task]) -> list[list[Task]]:
    """What the members answer to the tasks of a launch of plans."""
    clock, answers = Clock(), [list[Task]() for _ in RANKS]
    for task in tasks:
        for rank, own in enumerate(answers):
            taking_part = task["op"] == "gauge" or rank in task["ranks"]
            count = 3 if task["op"] == "gauge" else 1 + task["steps"]
            steps = [clock.step(4, alone=len(task.get("ranks", ())) < 2) for _ in range(count)] if taking_part else []
            rest = {"contended": 0.0, "retries": 0, "quiet": [True] * len(steps)}
            own.append({"steps": steps, **rest})
    return answers


@pytest.fixture(scope="module")
def plans(tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    gauging = tiny_scenario.replay.model_copy(update={"gauge_launches": 1})
    scenario = tiny_scenario.model_copy(update={"replay": gauging})
    folder = tmp_path_factory.mktemp("plans") / "study"
    entries, _ = distinct_entries(scenario, [make_policy("uniform"), make_policy("makespan")])
    entries, sealed = predict(hold_out(scenario, plans_of(entries)), entries, folder, 3, [])
    subjects = replay.subjects_of(scenario, entries)
    tasks = launch_tasks(scenario, subjects, [2] * len(entries), seed=0, launch=0)
    begun = replay.begun_of(scenario, entries, 3, sealed, [])
    predicted = [entry.prediction for entry in entries if entry.prediction is not None]
    whole = {"tasks": list(tasks), "answers": answered(tasks)}
    return killed(folder, begun, whole, lambda complete: assembled_plans(begun, complete, predicted, folder=folder))


@pytest.fixture(scope="module")
def followed(tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("courses") / "study"
    slower = Disturbance(kind="slowdown", device="full", from_step=2, factor=2.0)
    sampling = tiny_scenario.sampling.model_copy(update={"steps": 6, "launches": 2})
    update = {"rebalance": Rebalance(every_steps=3), "disturbances": [slower], "sampling": sampling}
    scenario = tiny_scenario.model_copy(update=update)
    named = [("uniform", make_policy("uniform"))]
    contenders, sealed = predict_courses(scenario, named, folder, seed=0, notes=[])
    course = Course(scenario, named[0][1])
    task = {"op": "course", "division": course.begin()}
    clock = Clock()
    steps = [[clock.step(15, alone=False) for _ in RANKS] for _ in range(course.total)]
    answers = [[{"steps": [each[rank] for each in steps], "stood": [], "losses": []}] for rank in RANKS]
    course.history = course.measured(0, [dict(enumerate(each)) for each in steps])
    begun = {**begun_common(scenario, 0, sealed, []), **courses.begun_of(contenders, [])}
    predicted = [contender.prediction for contender in contenders]
    whole = Followed(0, course, LaunchResult([task], answers)).document()
    return killed(folder, begun, whole, lambda complete: assembled_courses(begun, complete, predicted))


def killed(folder: Path, begun: Document, whole: Document, assemble: Callable[[list[Document]], list[Run]]) -> Killed:
    launches = Launches(folder)
    launches.folder.mkdir()
    launches.begun.write_text(json.dumps(begun))
    launches.add(whole)
    return Killed(launches, json.loads(json.dumps(whole)), assemble)


JUNK: list[Any] = [None, "x", "1", -1, 10**9, 0.5, [], {}, True, float("nan"), [[]], {"op": "block"}]


def damaged(whole: Document, source: random.Random) -> Document:
    """The launch with one of its values, wherever, gone or another."""
    found = copy.deepcopy(whole)
    place: Any = found
    while True:
        key = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if isinstance(inner, list | dict) and inner and source.random() < 0.8:
            place = inner
            continue
        if source.random() < 0.3:
            del place[key]
        else:
            place[key] = source.choice(JUNK)
        return found


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("kind", ["plans", "followed"])
def test_a_damaged_launch_is_used_or_refused_by_its_name(request: pytest.FixtureRequest, kind: str, seed: int) -> None:
    study: Killed = request.getfixturevalue(kind)
    found = study.made_or_refused(damaged(study.whole, random.Random(seed)))
    if isinstance(found, InputError):
        assert found.path.startswith(f"{study.launches.files[0]}: ")
        assert found.mend == MEND
    else:
        assert {run.manifest.kind for run in found} == {"measured"}


@pytest.mark.parametrize("kind", ["plans", "followed"])
def test_what_is_whole_is_used(request: pytest.FixtureRequest, kind: str) -> None:
    study: Killed = request.getfixturevalue(kind)
    runs = study.made(study.whole)
    assert runs
    assert all(run.summary.steps > 0 for run in runs)


@pytest.mark.parametrize(
    ("kind", "spoil", "path"),
    [
        ("plans", lambda launch: launch.update(tasks=[]), "tasks"),
        ("plans", lambda launch: launch["tasks"][0].update(op="dance"), "tasks.0"),
        ("plans", lambda launch: launch["tasks"][-1].update(micro_batch=7), f"tasks.{-1}.micro_batch"),
        ("plans", lambda launch: launch["answers"].pop(), "answers"),
        ("plans", lambda launch: launch["answers"][1].pop(), "answers.1"),
        ("plans", lambda launch: launch["answers"][0][0].pop("steps"), "answers.0.0.steps"),
        ("plans", lambda launch: launch["answers"][1][-2]["steps"].pop(), "answers.1.-2.steps"),
        ("plans", lambda launch: launch["answers"][1][-2]["steps"].reverse(), "answers.1.-2.steps.1"),
        ("followed", lambda launch: launch.update(index=3), "index"),
        ("followed", lambda launch: launch["plans"][0].pop(), "plans.0.1"),
        ("followed", lambda launch: launch["plans"][0][1].update(pipelines=[]), "plans.0.1.pipelines"),
        ("followed", lambda launch: launch["history"].pop(), "history"),
        ("followed", lambda launch: launch["answers"][0][0]["steps"].pop(), "answers.0.0.steps"),
        ("followed", lambda launch: launch["answers"][0][0]["steps"].__setitem__(2, []), "answers"),
    ],
)
def test_the_line_names_the_field(
    request: pytest.FixtureRequest, kind: str, spoil: Callable[[Document], object], path: str
) -> None:
    study: Killed = request.getfixturevalue(kind)
    launch = copy.deepcopy(study.whole)
    spoil(launch)
    for back in (1, 2):
        path = path.replace(f"-{back}", str(len(study.whole["tasks"]) - back))
    with pytest.raises(InputError) as refused:
        study.made(launch)
    assert refused.value.path == f"{study.launches.files[0]}: {path}"
    assert refused.value.mend == MEND
