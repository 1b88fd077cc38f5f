"""Training under faults, with real processes: what is resumed ends with the same bytes as what was never disturbed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from steelyard.results.errors import InputError, WorkerFailedError
from steelyard.runner.checkpoint import Checkpoint
from steelyard.runner.journal import Event
from steelyard.runner.train import Training, resume, train
from steelyard.runner.training_folder import TrainingFolder
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed

pytestmark = pytest.mark.slow

STEPS, EVERY = 120, 20
SAMPLES = {"full": 21, "sse": 9}


def with_training(scenario: Scenario, **settings: Any) -> Scenario:
    training = scenario.training.model_copy(
        update={"steps": STEPS, "checkpoint_every_steps": EVERY, "dropout": 0.1, **settings}
    )
    replay = scenario.replay.model_copy(update={"timeout_s": 5.0})
    return scenario.model_copy(update={"training": training, "replay": replay})


def fixed(scenario: Scenario, samples: dict[str, int]) -> Fixed:
    return Fixed(Plan.data_parallel(scenario.workload, samples))


def last(training: Training) -> Checkpoint:
    found, reasons = TrainingFolder(training.folder).store(3).newest()
    assert found is not None, reasons
    return found


def same_bytes(one: Training, other: Training) -> bool:
    """Weights, optimizer, random states and losses of all members: every file of the last checkpoints."""
    assert one.losses == other.losses
    return last(one).manifest.files == last(other).manifest.files


def events_of(runs: Path) -> list[Event]:
    folders = list(runs.glob("train-*"))
    return TrainingFolder(folders[0]).journal.read() if folders else []


def workers() -> list[psutil.Process]:
    """The workers of this very process, by rank."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if "steelyard.runner.worker" in (words := each.cmdline()):
                found.append((words[-1], each))
        except psutil.NoSuchProcess:
            continue
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


Strike = tuple[Callable[[list[Event]], bool], Callable[[psutil.Process], None]]


@contextmanager
def struck(runs: Path, *strikes: Strike) -> Iterator[None]:
    """Do things to the worker of rank 1, one after another, when the journal shows that it is time for each."""
    left, over = list(strikes), threading.Event()

    def lurk() -> None:
        while left and not over.wait(0.005):
            when, how = left[0]
            if when(events_of(runs)) and len(found := workers()) == 2:
                how(found[1])
                del left[0]

    thread = threading.Thread(target=lurk, daemon=True)
    thread.start()
    try:
        yield
        assert not left
    finally:
        over.set()
        thread.join()


def saved(count: int) -> Callable[[list[Event]], bool]:
    return lambda events: sum(event["event"] == "saved" for event in events) >= count


@pytest.fixture(scope="module")
def undisturbed(tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Training:
    scenario = with_training(tiny_scenario)
    return train(scenario, fixed(scenario, SAMPLES), tmp_path_factory.mktemp("undisturbed"))


def test_lost_workers_are_named_and_the_training_ends_bit_by_bit_as_if_nothing_had_been(
    tiny_scenario: Scenario, undisturbed: Training, tmp_path: Path
) -> None:
    scenario = with_training(tiny_scenario)
    with struck(tmp_path, (saved(2), psutil.Process.kill), (saved(4), psutil.Process.suspend)):
        result = train(scenario, fixed(scenario, SAMPLES), tmp_path)
    faults = [event for event in events_of(tmp_path) if event["event"] == "fault"]
    assert (faults[0]["kind"], faults[0]["lane"]) == ("killed", "sse")
    assert ("stopped", "sse") in [(fault["kind"], fault["lane"]) for fault in faults]
    for fault in faults:
        assert 0 <= fault["steps_lost"] == fault["reached_step"] - fault["checkpoint_step"]
    assert faults[0]["checkpoint_step"] >= 2 * EVERY
    assert same_bytes(result, undisturbed)
    assert result.spent.faults == len(faults)
    assert 0 < result.spent.goodput < 1
    assert not workers()


def test_what_was_given_up_goes_on_from_the_newest_checkpoint_that_is_whole(
    tiny_scenario: Scenario, undisturbed: Training, tmp_path: Path
) -> None:
    scenario = with_training(tiny_scenario, restarts=0)
    with struck(tmp_path, (saved(3), psutil.Process.kill)), pytest.raises(WorkerFailedError) as failed:
        train(scenario, fixed(scenario, SAMPLES), tmp_path)
    assert "killed by SIGKILL" in str(failed.value)
    assert "--resume" in str(failed.value)
    (path,) = tmp_path.glob("train-*")
    folder = TrainingFolder(path)
    newest, _ = folder.store(3).newest()
    assert newest is not None
    flip_a_bit(newest.folder / newest.manifest.parts[0].state)
    result = resume(path)
    events = folder.journal.read()
    assert [event["reason"] for event in events if event["event"] == "damaged"]
    resumed_from = [event["step"] for event in events if event["event"] == "launch"][1]
    assert resumed_from == newest.manifest.step - EVERY
    assert same_bytes(result, undisturbed)
    with pytest.raises(InputError, match="dropout"):
        resume(path, policy=fixed(scenario, {"full": 30}))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_divided_anew_it_is_the_same_but_for_rounding(
    tiny_scenario: Scenario, undisturbed: Training, tmp_path: Path
) -> None:
    """Fewer lanes: the one that is left goes on with the state of the first."""
    scenario = with_training(tiny_scenario, dropout=0.0, steps=60, checkpoint_every_steps=30)
    whole = train(scenario, fixed(scenario, SAMPLES), tmp_path / "whole")
    assert whole.losses[0] != undisturbed.losses[0]  # dropout was really on there
    (final,) = (whole.folder / "checkpoints").glob("step-*60")
    for each in final.iterdir():
        each.unlink()
    final.rmdir()
    alone = resume(whole.folder, policy=fixed(scenario, {"full": 30}))
    assert alone.utilisation["sse"] == 0
    assert alone.losses[:30] == whole.losses[:30]
    assert alone.losses[30:] == pytest.approx(whole.losses[30:], rel=1e-6)
    assert any("divided anew" in note for note in alone.notes)


def test_two_drivers_never_train_in_one_folder(undisturbed: Training) -> None:
    with TrainingFolder(undisturbed.folder).alone(), pytest.raises(InputError, match="another process"):
        resume(undisturbed.folder)
    assert (undisturbed.folder / "result.json").is_file()
