"""Training by pipelines, hybrids and sharded states, with real processes: what is resumed ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from steelyard.results.errors import InputError
from steelyard.runner.cli import run
from steelyard.runner.train import Training, resume, train, trainable
from steelyard.runner.training_folder import TrainingFolder
from steelyard.sim.device import Lane
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed

from .processes import workers
from .test_survival import events_of, last, same_bytes, saved, struck, with_training

LAYERS, STEPS, EVERY = 4, 24, 8


def stage(first: int, last: int, lane: str) -> dict[str, Any]:
    return {"first": first, "last": last, "replicas": [{"devices": [lane]}]}


def fixed(*pipelines: dict[str, Any], **others: Any) -> Fixed:
    return Fixed(Plan.parse({"pipelines": list(pipelines), **others}))


def whole(lane: str, *sizes: int) -> dict[str, Any]:
    return {"stages": [stage(0, LAYERS, lane)], "micro_batches": list(sizes)}


PIPELINE = fixed(
    {"stages": [stage(0, 2, "sse"), stage(2, LAYERS, "full")], "micro_batches": [6] * 5},
    schedule="1f1b",
)
ROUNDS = [stage(number, number + 1, lane) for number, lane in enumerate(["full", "sse"] * 2)]
HYBRID = fixed({"stages": ROUNDS, "micro_batches": [5] * 4}, whole("third", 7, 3), schedule="interleaved")
SHARDED = fixed(whole("full", 12), whole("sse", 10), whole("third", 8), zero=1)


@pytest.fixture(scope="module")
def three(tiny_scenario: Scenario) -> Scenario:
    """With one lane more, and nothing drawn at random, so that it may be divided anew."""
    (node,) = tiny_scenario.cluster.nodes
    third = node.devices[-1].model_copy(update={"name": "third"})
    nodes = [node.model_copy(update={"devices": [*node.devices, third]})]
    cluster = tiny_scenario.cluster.model_copy(update={"nodes": nodes})
    scenario = tiny_scenario.model_copy(update={"cluster": cluster})
    return with_training(scenario, dropout=0.0, steps=STEPS, checkpoint_every_steps=EVERY)


@pytest.mark.slow
def test_a_stage_is_killed_at_any_step_and_the_training_ends_bit_by_bit_as_if_nothing_had_been(
    tiny_scenario: Scenario, tmp_path: Path
) -> None:
    """With dropout: each stage has random states of its own."""
    scenario = with_training(tiny_scenario, steps=10 * EVERY, checkpoint_every_steps=EVERY)
    undisturbed = train(scenario, PIPELINE, tmp_path / "undisturbed")
    moment_s = random.Random(0).uniform(0.0, undisturbed.seconds / 2)

    def strike(worker: psutil.Process) -> None:
        time.sleep(moment_s)
        worker.kill()

    with struck(tmp_path / "struck", (saved(1), strike)):
        result = train(scenario, PIPELINE, tmp_path / "struck")
    (fault,) = [event for event in events_of(tmp_path / "struck") if event["event"] == "fault"]
    assert (fault["kind"], fault["lane"]) == ("killed", "sse")
    assert fault["checkpoint_step"] >= EVERY
    assert same_bytes(result, undisturbed)
    manifest = last(result).manifest
    assert len({part.state for part in manifest.parts}) == 2  # a stage each
    assert result.document()["plan"] == {"full": 30, "sse": 30}
    assert all(0 < share <= 1 for share in result.utilisation.values())
    assert not workers()


@pytest.fixture(scope="module")
def hybrid(three: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return train(three, HYBRID, tmp_path_factory.mktemp("hybrid"))


def back_to(training: Training, step: int) -> Path:
    """A copy of a training's folder, as it was after a step."""
    folder = training.folder.with_name(f"train-{step}-{training.folder.name}")
    shutil.copytree(training.folder, folder)
    for each in (folder / "checkpoints").glob("step-*"):
        if int(each.name.removeprefix("step-")) > step:
            shutil.rmtree(each)
    return folder


@pytest.mark.slow
def test_an_unequal_hybrid_goes_on_bit_by_bit(hybrid: Training) -> None:
    """Two lanes take turns at four stages, the third has the whole model."""
    again = resume(back_to(hybrid, 2 * EVERY))
    assert [event["step"] for event in TrainingFolder(again.folder).journal.read() if event["event"] == "launch"] == [
        0,
        2 * EVERY,
    ]
    assert same_bytes(again, hybrid)
    assert hybrid.losses[-1] < hybrid.losses[0]


@pytest.mark.slow
def test_what_pipelines_held_is_taken_on_by_whole_models_with_sharded_states(hybrid: Training) -> None:
    """And that goes on bit by bit, too: each lane with its shard."""
    sharded = resume(back_to(hybrid, EVERY), policy=SHARDED)
    assert sharded.losses[:EVERY] == hybrid.losses[:EVERY]
    assert sharded.losses[EVERY:] == pytest.approx(hybrid.losses[EVERY:], rel=1e-6)
    assert any("divided anew" in note for note in sharded.notes)
    assert same_bytes(resume(back_to(sharded, 2 * EVERY)), sharded)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_sharded_gradients_and_weights_are_kept_in_pieces_and_divided_anew(
    hybrid: Training, three: Scenario, tmp_path: Path, zero: int
) -> None:
    """Three pieces become two, those a hybrid's stages, and what was whole becomes pieces."""
    thrice = train(three, fixed(whole("full", 12), whole("sse", 10), whole("third", 8), zero=zero), tmp_path)
    assert thrice.losses == pytest.approx(hybrid.losses, rel=1e-5)
    assert thrice.scores["accuracy"] == pytest.approx(hybrid.scores["accuracy"], abs=0.02)
    manifest = last(thrice).manifest
    assert len({part.state for part in manifest.parts}) == 3
    assert same_bytes(resume(back_to(thrice, 2 * EVERY)), thrice)
    twice = resume(back_to(thrice, EVERY), policy=fixed(whole("full", 16), whole("third", 14), zero=zero))
    assert twice.losses[:EVERY] == thrice.losses[:EVERY]
    assert twice.losses == pytest.approx(thrice.losses, rel=1e-5)
    assert resume(back_to(twice, 2 * EVERY), policy=HYBRID).losses == pytest.approx(thrice.losses, rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (fixed(whole("full", 16), whole("sse", 14), sync_every=4), "sync_every: is 4"),
        (
            fixed({"stages": [stage(0, 2, "full"), stage(2, LAYERS, "sse")], "micro_batches": [16, 14]}),
            "are of 2 sizes",
        ),
    ],
    ids=["local SGD", "unequal micro-batches"],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tiny_scenario: Scenario, tmp_path: Path, policy: Fixed, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        trainable(tiny_scenario, policy, tmp_path)
    assert not list(tmp_path.iterdir())


def test_stages_are_refused_on_a_lane_that_does_its_work_again(tiny_scenario: Scenario, tmp_path: Path) -> None:
    (node,) = tiny_scenario.cluster.nodes
    first, second = node.devices
    assert second.lane is not None
    lane = Lane.model_validate({**second.lane.model_dump(), "cap": "full", "repeat": 2})
    nodes = [node.model_copy(update={"devices": [first, second.model_copy(update={"lane": lane})]})]
    scenario = tiny_scenario.model_copy(update={"cluster": tiny_scenario.cluster.model_copy(update={"nodes": nodes})})
    with pytest.raises(InputError, match="does its work 2 times"):
        trainable(scenario, PIPELINE, tmp_path)


def test_a_model_that_is_no_classifier_is_refused_before_it_has_been_trained(
    tiny_scenario: Scenario, tmp_path: Path
) -> None:
    model = tiny_scenario.workload.model
    other = model.model_copy(update={"config": {**model.config, "task": "causal-lm"}})
    workload = tiny_scenario.workload.model_copy(update={"model": other})
    with pytest.raises(InputError, match=r"workload\.model: is no classifier"):
        trainable(tiny_scenario.model_copy(update={"workload": workload}), PIPELINE, tmp_path)


def test_a_plan_and_a_policy_are_not_asked_for_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "demo", "--policy", "uniform", "--plan", "plan.json"]) == 2
    assert "--plan" in capsys.readouterr().err
