"""Training: however a plan divides the samples, the losses are those of one device on its own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.runner.cli import run
from steelyard.runner.surviving import CHUNK, checkpoint_every, saves, stops
from steelyard.runner.train import Training, train
from steelyard.sim.checkpoint import daly_interval_s
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Faults, Scenario, load_scenario
from steelyard.sim.view import Fixed

STEPS = 20
TOLERANCE = 1e-3
"""Relative difference of losses over 20 steps of fp32: instruction sets round differently, and steps add that up."""


def test_the_whole_training_is_cut_into_chunks_that_follow_each_other() -> None:
    assert stops(0, 2 * CHUNK + 3, every=0) == [CHUNK, 2 * CHUNK, 2 * CHUNK + 3]
    assert stops(0, 2 * CHUNK, every=7) == [7, CHUNK, 14, 2 * CHUNK]
    assert stops(14, 2 * CHUNK, every=7) == [2 * CHUNK]
    assert stops(2 * CHUNK, 2 * CHUNK, every=7) == []


@given(steps=st.integers(1, 200), every=st.integers(0, 60), data=st.data())
def test_wherever_it_is_taken_up_the_checkpoints_are_at_the_same_steps(
    steps: int, every: int, data: st.DataObject
) -> None:
    kept = [0] + [step for step in stops(0, steps, every) if saves(step, steps, every)]
    assert kept[-1] == steps
    assert every == 0 or max(after - before for before, after in pairwise(kept)) <= every
    start = data.draw(st.sampled_from(kept))
    again = [step for step in stops(start, steps, every) if saves(step, steps, every)]
    assert again == [step for step in kept if step > start]


def test_checkpoints_are_as_far_apart_as_is_asked_or_as_failures_say(tiny_scenario: Scenario) -> None:
    plan = Plan.data_parallel(tiny_scenario.workload, {"full": 30})

    def every(**settings: object) -> int:
        training = tiny_scenario.training.model_copy(update={"steps": 10_000, **settings})
        return checkpoint_every(tiny_scenario.model_copy(update={"training": training, **more}), plan, 0.5)

    more: dict[str, object] = {}
    assert every(checkpoint_every_steps=0) == 0
    assert every(checkpoint_every_steps=7) == 7
    assert every(checkpoint_every_s=10.0) == 20
    more = {"faults": Faults(device_mtbf_hours=1.0, checkpoint_s=2.0, work_hours=1.4)}
    daly = daly_interval_s(2.0, 3600.0)
    assert every() * 0.5 == pytest.approx(daly, rel=0.01)
    assert every(steps=50) == 50  # never further apart than the training is long


def test_a_cluster_of_no_lanes_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lane"):
        train(load_scenario("mixed-gpus"), make_policy("uniform"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def short(tiny_scenario: Scenario) -> Scenario:
    training = tiny_scenario.training.model_copy(update={"steps": STEPS})
    return tiny_scenario.model_copy(update={"training": training})


def trained(scenario: Scenario, folder: Path, samples: dict[str, int]) -> Training:
    return train(scenario, Fixed(Plan.data_parallel(scenario.workload, samples)), folder)


@pytest.fixture(scope="module")
def alone(short: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return trained(short, tmp_path_factory.mktemp("alone"), {"full": 30})


@pytest.fixture(scope="module")
def divided(short: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return trained(short, tmp_path_factory.mktemp("divided"), {"full": 21, "sse": 9})


@pytest.mark.slow
def test_a_divided_training_has_the_losses_of_a_single_lane(alone: Training, divided: Training) -> None:
    assert len(alone.losses) == len(divided.losses) == STEPS
    assert divided.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    spread = max(alone.losses) - min(alone.losses)
    assert spread > 10 * TOLERANCE * alone.losses[-1]  # it learnt: equal losses are no matter of course


@pytest.mark.slow
def test_a_lane_that_is_left_out_did_nothing(alone: Training, divided: Training) -> None:
    assert alone.utilisation["sse"] == 0
    assert 0 < alone.utilisation["full"] <= 1
    assert all(0 < share <= 1 for share in divided.utilisation.values())


@pytest.mark.slow
def test_the_document_has_what_people_ask(divided: Training) -> None:
    document = json.loads(json.dumps(divided.document(), allow_nan=False))
    assert {"accuracy", "precision", "recall", "f1", "seconds", "samples_per_s", "utilisation"} <= set(document)
    assert document["steps"] == STEPS
    assert document["plan"] == {"full": 21, "sse": 9}
    assert document["final_loss"] == document["losses"][-1]
    assert document["samples_per_s"] == pytest.approx(STEPS * 30 / document["seconds"])
    for name in ("accuracy", "precision", "recall", "f1"):
        assert 0 <= document[name] <= 1
    assert [set(row) >= {"label", "precision", "recall", "f1-score", "support"} for row in divided.rows()] == [True] * 3
    assert "utilisation" in divided.headline()
    assert document["faults"] == 0
    assert 0 < document["goodput"] <= 1


@pytest.mark.slow
def test_the_command_trains_on_calibrated_lanes(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(calibrated / "tiny.toml"), "-p", "makespan", "--runs", str(calibrated / "runs")]
    assert run([*words, "--set", "training.steps=12", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["steps"] == 12
    assert document["policy"] == "makespan"
    assert document["predicted_samples_per_s"] > 0
    assert captured.err
