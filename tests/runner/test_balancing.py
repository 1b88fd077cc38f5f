"""Trainings whose policy is asked again under way: work changes hands, and the losses stay those of one device."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.results.record import PolicyRecord, digest
from steelyard.runner.balancing import Balancing, asks_again, course_of
from steelyard.runner.runnable import lanes_of
from steelyard.runner.surviving import Course as Surviving
from steelyard.runner.surviving import saves, stops, training_tasks
from steelyard.runner.train import Training, replanned, resume, train, trainable
from steelyard.runner.training_folder import About, TrainingFolder
from steelyard.runner.worker.__main__ import _load_for
from steelyard.sim.disturbances import Rebalance
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed, View, describe

from .processes import workers
from .test_pipeline_training import LAYERS, stage, whole
from .test_survival import last, saved, struck, with_training

STEPS, EVERY, ASKED = 24, 8, 6
PLANS: list[dict[str, Any]] = [
    {"pipelines": [whole("full", 21), whole("sse", 9)]},
    {"pipelines": [whole("full", 30)]},  # a lane that is left out
    {"pipelines": [{"stages": [stage(0, 2, "sse"), stage(2, LAYERS, "full")], "micro_batches": [6] * 5}]},
    {"pipelines": [whole("sse", 16, 14)]},  # and the other one
]
"""From one question to the next."""


@dataclass(frozen=True, kw_only=True)
class Wandering:
    """Another plan at every question."""

    name: ClassVar[str] = "wandering"
    adaptive: ClassVar[bool] = True

    def allocate(self, view: View) -> Plan:
        assert view.steps_left is not None
        return Plan.parse(PLANS[(STEPS - view.steps_left) // ASKED])


@dataclass(frozen=True, kw_only=True)
class Watching:
    """Half and half until it has seen a step; then by what it saw."""

    name: ClassVar[str] = "watching"
    adaptive: ClassVar[bool] = True

    def allocate(self, view: View) -> Plan:
        if not view.history:
            return Plan.parse({"pipelines": [whole("full", 15), whole("sse", 15)]})
        spent = {name: sum(each["devices"][name]["compute_s"] for each in view.history) for name in ("full", "sse")}
        slower = max(spent, key=lambda name: spent[name])
        return Plan.parse({"pipelines": [whole(name, 10 if name == slower else 20) for name in ("full", "sse")]})


@pytest.fixture(scope="module")
def asking(tiny_scenario: Scenario) -> Scenario:
    scenario = with_training(tiny_scenario, dropout=0.0, steps=STEPS, checkpoint_every_steps=EVERY)
    replay = scenario.replay.model_copy(update={"timeout_s": 60.0})  # no lane hangs here, and the host may be busy
    return scenario.model_copy(update={"rebalance": Rebalance(every_steps=ASKED, at_most=10), "replay": replay})


@given(steps=st.integers(1, 200), every=st.integers(0, 60), asked=st.integers(1, 50))
def test_questions_stand_between_whole_chunks_and_move_no_checkpoint(steps: int, every: int, asked: int) -> None:
    points = range(asked, steps, asked)
    found = stops(0, steps, every, points)
    assert set(points) <= set(found)
    assert set(stops(0, steps, every)) <= set(found)
    assert [step for step in found if saves(step, steps, every)] == [
        step for step in stops(0, steps, every) if saves(step, steps, every)
    ]


def test_only_policies_that_adapt_are_asked_again_and_only_where_the_scenario_says_so(asking: Scenario) -> None:
    assert asks_again(asking, make_policy("lb-bsp"))
    assert not asks_again(asking, make_policy("uniform"))
    assert not asks_again(asking.model_copy(update={"rebalance": None}), make_policy("lb-bsp"))
    assert not asks_again(asking.model_copy(update={"rebalance": Rebalance(at_most=0)}), make_policy("lb-bsp"))


def about(scenario: Scenario, policy: PolicyRecord, *, adapts: bool) -> About:
    return About(
        written_utc="", scenario=scenario, policy=policy, plan=Plan.parse(PLANS[0]).document(), data_sha256="",
        checkpoint_every_steps=0, predicted={}, adapts=adapts,
    )  # fmt: skip


def test_a_policy_is_made_again_from_what_the_folder_says_of_it(asking: Scenario) -> None:
    policy = make_policy("lb-bsp")
    found = Balancing.of(about(asking, describe(policy), adapts=True), None)
    assert found is not None
    assert found.course.policy == policy
    assert found.points == [6, 12, 18]
    assert Balancing.of(about(asking, describe(policy), adapts=False), policy) is None
    with pytest.raises(InputError, match=r"policy wandering: is asked again .* \(name it with --policy\)"):
        Balancing.of(about(asking, describe(Wandering()), adapts=True), None)


def test_what_was_seen_of_steps_that_are_done_again_is_forgotten(asking: Scenario) -> None:
    course, plans = course_of(asking, Wandering()), [Plan.parse(each) for each in PLANS]
    course.go_on(0, plans[0], changes=0)
    course.history = [{"step": step} for step in range(12)]
    course.plans += [(6, plans[1]), (12, plans[2])]
    course.go_on(8, plans[2], changes=2)
    assert course.plans == [(0, plans[0]), (6, plans[1]), (8, plans[2])]
    assert [each["step"] for each in course.history] == list(range(8))
    assert course.changes_left == 8
    course.go_on(8, plans[2], changes=10)
    assert Balancing(course).points == []
    assert course.plan_at(7) == plans[1]


def test_sharded_states_are_refused_before_anything_is_written(asking: Scenario, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sharding(Wandering):
        def allocate(self, view: View) -> Plan:
            return Plan.parse({**PLANS[0], "zero": 1})

    with pytest.raises(InputError, match=r"plan\.zero: is 1 in a run that may change its plan"):
        trainable(asking, Sharding(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_dropout_is_refused_as_other_members_would_draw_it(asking: Scenario, tmp_path: Path) -> None:
    training = asking.training.model_copy(update={"dropout": 0.1})
    with pytest.raises(InputError, match=r"training\.dropout: is drawn by the members"):
        trainable(asking.model_copy(update={"training": training}), Wandering(), tmp_path)


def test_plans_that_lanes_cannot_run_are_not_gone_on_with(asking: Scenario) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Overreaching(Wandering):
        def allocate(self, view: View) -> Plan:
            if view.history:
                raise Infeasible("no plan", "any more")
            return Plan.parse(PLANS[0])

    course = course_of(asking, Overreaching())
    course.begin()
    spent = {name: {"samples": 1, "compute_s": 1.0, "wait_s": 0.0} for name in ("full", "sse")}
    step = {"step": 0, "step_s": 1.0, "sync_s": 0.0, "plan_sha256": course.plans[0][1].sha256, "devices": spent}
    assert course.ask(6, [step]) == course.divide(Plan.parse(PLANS[0]))
    assert course.decisions[-1]["refused"] == "no plan: any more"


def test_a_policy_that_is_named_again_keeps_what_it_has_come_to(asking: Scenario) -> None:
    policy = make_policy("lb-bsp")
    first = about(asking, describe(policy), adapts=True)
    came_to = first.divided_anew(Plan.parse(PLANS[1]), first.policy, "so it came")
    assert replanned(came_to, policy) == came_to
    anew = replanned(came_to, make_policy("uniform"))
    assert (anew.adapts, anew.divided.samples()) == (False, {"full": 15, "sse": 15})
    assert anew.former_plans == [first.divided.sha256, came_to.divided.sha256]


def test_the_scenario_of_a_folder_is_known_again_by_a_version_with_more_fields(
    asking: Scenario, tmp_path: Path
) -> None:
    folder = TrainingFolder(tmp_path)
    folder.write_about(about(asking, describe(Wandering()), adapts=False))
    document = json.loads((tmp_path / "training.json").read_text())
    for node in document["scenario"]["cluster"]["nodes"]:
        for device in node["devices"]:
            del device["profile"]["launch_groups"]  # as a former version wrote it
    del document["scenario_sha256"]
    (tmp_path / "training.json").write_text(json.dumps(document))
    found = folder.read_about()
    assert found.identity["scenario_sha256"] == digest(document["scenario"])
    folder.write_about(found)
    assert folder.read_about().identity == found.identity


@pytest.mark.parametrize("pipeline", [False, True], ids=["a split", "a pipeline"])
def test_the_members_of_a_training_that_changes_have_its_division_from_one_place(
    asking: Scenario, tmp_path: Path, pipeline: bool
) -> None:
    """A task of its own division would be merged with the newer one: its program would go before a plain split."""
    training, folder = about(asking, describe(Wandering()), adapts=True), TrainingFolder(tmp_path)
    training = training.model_copy(update={"plan": Plan.parse(PLANS[2 if pipeline else 0]).document()})
    balancing, lanes = Balancing(course_of(asking, Wandering())), lanes_of(asking)
    course = Surviving(folder, training, lanes, {}, tmp_path, print, lambda done, total: None, balancing)
    tasks = training_tasks(course, None, tmp_path)
    assert [task["step"] for task in tasks if task["op"] == "rebalance"] == [6, 12, 18]
    assert tasks[0]["division"]["identity"]["plan_sha256"] == training.divided.sha256
    for task in tasks[1:]:
        assert not {"program", "sizes", "ranks", "identity"} & set(task)
    _load_for(tasks)
    still = dataclass_replace(course, balancing=None)
    plain = training_tasks(still, None)
    assert plain[0]["division"] is None
    assert all("ranks" in task for task in plain)
    _load_for(plain)


@pytest.fixture(scope="module")
def steady(asking: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """By the first plan alone."""
    return train(asking, Fixed(Plan.parse(PLANS[0])), tmp_path_factory.mktemp("steady"))


@pytest.mark.slow
def test_work_that_changes_hands_under_way_trains_what_one_plan_does(
    asking: Scenario, steady: Training, tmp_path: Path
) -> None:
    """Splits, a lone lane, a pipeline; a lane that is left out and has all of it in the end."""
    result = train(asking, Wandering(), tmp_path)
    assert result.losses == pytest.approx(steady.losses, rel=1e-4)
    assert len(result.losses) == STEPS
    assert steady.losses[-1] < steady.losses[0]
    assert result.scores["accuracy"] == pytest.approx(steady.scores["accuracy"], abs=0.02)
    assert result.document()["plan"] == {"sse": 30}
    assert result.document()["plan_changes"] == 3
    asked = [event for event in TrainingFolder(result.folder).journal.read() if event["event"] == "asked"]
    assert [(event["step"], event["changed"]) for event in asked] == [(6, True), (12, True), (18, True)]
    assert all(0 < share <= 1 for share in result.utilisation.values())  # of lanes that have no part in the end, too
    assert any("from step 12 on: {'sse': 30, 'full': 30}" in note for note in result.notes), result.notes
    assert last(result).manifest.plan_sha256 == Plan.parse(PLANS[3]).sha256
    assert result.seconds > 0
    assert not workers()


@pytest.mark.slow
def test_a_pipeline_that_becomes_a_split_trains_what_a_split_does(
    asking: Scenario, steady: Training, tmp_path: Path
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Backwards(Wandering):
        def allocate(self, view: View) -> Plan:
            assert view.steps_left is not None
            return Plan.parse(PLANS[max(0, 2 - (STEPS - view.steps_left) // ASKED)])

    result = train(asking, Backwards(), tmp_path)
    assert result.losses == pytest.approx(steady.losses, rel=1e-4)
    assert [part.lane for part in last(result).manifest.parts] == ["full", "sse"]
    assert last(result).manifest.plan_sha256 == Plan.parse(PLANS[0]).sha256


@pytest.mark.slow
def test_a_policy_sees_what_the_lanes_took_and_its_answer_goes_on_after_a_kill(
    asking: Scenario, steady: Training, tmp_path: Path
) -> None:
    """The kill is at a random moment after a checkpoint of the second plan: what it undoes is done again by that."""
    training = asking.training.model_copy(update={"steps": 10 * EVERY})
    scenario = asking.model_copy(update={"training": training})
    moment_s = random.Random(1).uniform(0.0, 0.3)

    def strike(worker: psutil.Process) -> None:
        time.sleep(moment_s)
        worker.kill()

    with struck(tmp_path, (saved(1), strike)):
        result = train(scenario, Watching(), tmp_path)
    split = result.document()["plan"]
    assert split in ({"full": 20, "sse": 10}, {"full": 10, "sse": 20})
    assert result.plan_changes >= 1
    assert len(result.losses) == 10 * EVERY
    assert result.losses[:STEPS] == pytest.approx(steady.losses, rel=1e-3)
    journal = TrainingFolder(result.folder).journal.read()
    assert sum(event["event"] == "fault" for event in journal) == 1
    assert all(event["steps_lost"] >= 0 for event in journal if event["event"] == "fault")
    kept = json.loads((result.folder / "training.json").read_text())
    assert kept["adapts"]
    assert Plan.parse(kept["plan"]).samples() == split
    assert resume(result.folder, policy=Watching()).losses == result.losses
