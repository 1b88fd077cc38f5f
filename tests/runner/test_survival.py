"""Training under faults, with real processes: what is resumed ends with the same bytes as what was never disturbed.

Nothing is pretended: signals, a link set down between namespaces, a limit of memory, a disk (a small tmpfs) that is
full. What a host does not allow is skipped with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from steelyard.results.errors import InputError, WorkerFailedError
from steelyard.runner.chaos.blows import cut, exceed_memory
from steelyard.runner.chaos.busy import Busy
from steelyard.runner.chaos.leftovers import Holding
from steelyard.runner.checkpoint import Checkpoint
from steelyard.runner.devices import NamedLane
from steelyard.runner.isolation.capabilities import this_host
from steelyard.runner.journal import Event
from steelyard.runner.launch import run_group
from steelyard.runner.train import Training, resume, train
from steelyard.runner.training_folder import TrainingFolder
from steelyard.runner.watch import FaultError, noticed_within_s
from steelyard.runner.worker.signs import HANG_SIGNAL
from steelyard.sim.device import Device, Wire
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed

from .processes import workers

pytestmark = pytest.mark.slow

STEPS, EVERY, TIMEOUT_S = 120, 20, 5.0
AT_ONCE_S = 2.0
"""Within which the workers of a killed driver have ended, on a quiet host."""
ROOM = 1_750_000
"""Bytes for the samples, the training's folder, and one checkpoint of the tiny model, not two."""
SAMPLES = {"full": 15, "sse": 15}
"""As ``uniform`` divides them."""


def with_training(scenario: Scenario, **settings: Any) -> Scenario:
    training = scenario.training.model_copy(
        update={"steps": STEPS, "checkpoint_every_steps": EVERY, "dropout": 0.1, **settings}
    )
    replay = scenario.replay.model_copy(update={"timeout_s": TIMEOUT_S})
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


Strike = tuple[Callable[[list[Event]], bool], Callable[[psutil.Process], None]]


@dataclass
class Storm:
    """When each thing was done (monotonic clock, s), and what the launch had on the host then."""

    busy: Busy = field(default_factory=Busy)
    done: list[tuple[float, Holding]] = field(default_factory=list)

    def faults(self, runs: Path) -> list[Event]:
        """What the driver wrote down of each, in time: from the moment of the fault to the line in the journal."""
        written = [event for event in events_of(runs) if event["event"] == "fault"]
        found = [next(fault for fault in written if fault["at_s"] > at_s) for at_s, _ in self.done]
        late = [
            f"{fault['what']}: after {fault['at_s'] - at_s:.1f} s"
            for fault, (at_s, _) in zip(found, self.done, strict=True)
            if fault["at_s"] - at_s > noticed_within_s(fault["kind"], TIMEOUT_S)
        ]
        assert not late or self.busy.reasons(), late
        return found


@contextmanager
def struck(runs: Path, *strikes: Strike) -> Iterator[Storm]:
    """Do things to the worker of rank 1, one after another, when the journal shows that it is time for each.

    In the end nothing is there of any launch that was struck: neither process nor group, namespace or port.
    """
    left, over, storm = list(strikes), threading.Event(), Storm()

    def lurk() -> None:
        while left and not over.wait(0.005):
            when, how = left[0]
            if when(events_of(runs)) and len(found := workers()) == 2:
                storm.done.append((time.monotonic(), Holding.of(os.getpid())))
                how(found[1])
                del left[0]

    thread = threading.Thread(target=lurk, daemon=True)
    thread.start()
    try:
        yield storm
        assert not left
        assert [each for _, holding in storm.done for each in holding.left()] == []
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
    strikes: list[Strike] = [(saved(2), psutil.Process.kill), (saved(4), psutil.Process.suspend), (saved(5), loop)]
    with struck(tmp_path, *strikes) as storm:
        result = train(scenario, fixed(scenario, SAMPLES), tmp_path)
    told = [(fault["kind"], fault["lane"]) for fault in storm.faults(tmp_path)]
    assert told == [("killed", "sse"), ("stopped", "sse"), ("hung", "sse")]
    faults = [event for event in events_of(tmp_path) if event["event"] == "fault"]
    for fault in faults:
        assert 0 <= fault["steps_lost"] == fault["reached_step"] - fault["checkpoint_step"]
    assert faults[0]["checkpoint_step"] >= 2 * EVERY
    assert same_bytes(result, undisturbed)
    assert result.spent.faults == len(faults)
    assert 0 < result.spent.goodput < 1
    assert not workers()


def loop(worker: psutil.Process) -> None:
    """Its next pass does not end."""
    worker.send_signal(HANG_SIGNAL)


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
    assert 0 < alone.utilisation["sse"] < 1  # of the half that it had a part in
    assert alone.losses[:30] == whole.losses[:30]
    assert alone.losses[30:] == pytest.approx(whole.losses[30:], rel=1e-6)
    assert any("divided anew" in note for note in alone.notes)


def test_two_drivers_never_train_in_one_folder(undisturbed: Training) -> None:
    with TrainingFolder(undisturbed.folder).alone(), pytest.raises(InputError, match="another process"):
        resume(undisturbed.folder)
    assert (undisturbed.folder / "result.json").is_file()


def test_a_cut_link_is_told_from_a_hung_worker(
    tiny_scenario: Scenario, undisturbed: Training, tmp_path: Path, tools: Callable[..., None]
) -> None:
    """``ip link set down`` inside the namespaces of a launch; the next one has a network of its own."""
    tools("nsenter", "ip")
    need("namespaces")
    scenario = wired(with_training(tiny_scenario))
    with struck(tmp_path, (saved(2), cut)) as storm:
        result = train(scenario, fixed(scenario, SAMPLES), tmp_path)
    (fault,) = storm.faults(tmp_path)
    assert fault["kind"] == "link", fault
    assert fault["what"].startswith(("link of 'sse'", "link between 'full' and 'sse'"))
    assert same_bytes(result, undisturbed)


def need(capability: str) -> None:
    found = this_host().capability(capability)
    if not found.available:
        pytest.skip(f"this host has no {found.title}: {found.reason}")


def wired(scenario: Scenario) -> Scenario:
    """Each lane on a made host of its own."""
    return moved(scenario, lambda device: {"wire": Wire(host=device.name)})


def moved(scenario: Scenario, change: Callable[[Device], dict[str, Any]]) -> Scenario:
    """The scenario with something else said of its lanes."""

    def changed(device: Device) -> Device:
        assert device.lane is not None
        return device.model_copy(update={"lane": device.lane.model_copy(update=change(device))})

    nodes = [node.model_copy(update={"devices": list(map(changed, node.devices))}) for node in scenario.cluster.nodes]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def test_a_lack_of_memory_is_named(lanes: list[NamedLane]) -> None:
    """The kernel kills a real process in a real control group; what signal it was says nothing of why."""
    need("memory_limit")
    tight = lanes[0].model_copy(update={"memory_limit_gib": 0.12})
    with pytest.raises(FaultError, match="exceeded its memory") as failed:
        run_group([tight], [{"op": "figures"}], {}, timeout_s=60.0)
    assert (failed.value.fault.kind, failed.value.fault.lane) == ("memory", "full")


def test_a_limit_of_memory_below_what_is_used_is_named_and_without_it_the_training_goes_on(
    tiny_scenario: Scenario, undisturbed: Training, tmp_path: Path
) -> None:
    """In the midst of it, the limit of one lane's own group is lowered; the next launch has the scenario's again."""
    need("memory_limit")
    scenario = limited(with_training(tiny_scenario), 1.0)
    with struck(tmp_path, (saved(2), exceed_memory)) as storm:
        result = train(scenario, fixed(scenario, SAMPLES), tmp_path)
    (fault,) = storm.faults(tmp_path)
    assert (fault["kind"], fault["lane"]) == ("memory", "sse"), fault
    assert "exceeded its memory limit of 1 GiB" in fault["what"]
    assert fault["checkpoint_step"] >= 2 * EVERY
    assert same_bytes(result, undisturbed)


def limited(scenario: Scenario, gib: float) -> Scenario:
    """Each lane with a limit of memory."""
    return moved(scenario, lambda device: {"memory_limit_gib": gib})


def test_a_full_disk_costs_checkpoints_and_not_the_training(
    tiny_scenario: Scenario, undisturbed: Training, disk_of: Callable[[str], Path]
) -> None:
    """What could not be written leaves nothing behind; with room, it goes on from the last whole checkpoint."""
    scenario = with_training(tiny_scenario)
    small_disk = disk_of("5m")
    (small_disk / "ballast").write_bytes(bytes(5 * 2**20 - ROOM))
    with pytest.raises(WorkerFailedError, match="No space left on device"):
        train(scenario, fixed(scenario, SAMPLES), small_disk)
    (path,) = small_disk.glob("train-*")
    folder = TrainingFolder(path)
    kept, _ = folder.store(3).newest()
    assert kept is not None
    assert not list((path / "checkpoints").glob(".*"))
    (small_disk / "ballast").unlink()
    result = resume(path)
    events = folder.journal.read()
    assert any(event["event"] == "unsaved" and event["reason"] == "No space left on device" for event in events)
    assert [event["step"] for event in events if event["event"] == "launch"] == [0, kept.manifest.step]
    assert same_bytes(result, undisturbed)


def command(runs: Path, marker: Path, *words: str) -> subprocess.Popen[str]:
    """``steelyard train`` as a process of its own; its temporary files go to ``marker``."""
    return subprocess.Popen(
        [sys.executable, "-m", "steelyard.runner.cli", "train", *words, "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(marker)},
    )


def training_under_way(process: subprocess.Popen[str], runs: Path, launch: int) -> list[psutil.Process]:
    """The workers of a driver, once its launch of that number has begun and written a checkpoint."""
    while process.poll() is None:
        own = [event for event in events_of(runs) if event.get("attempt", 0) >= launch]
        found = workers(process.pid)
        if len(found) == 2 and any(event["event"] == "saved" for event in own):
            return found
        time.sleep(0.005)
    raise AssertionError(process.communicate())


def test_a_driver_that_ends_takes_everything_along_and_the_next_one_goes_on(
    tiny_scenario: Scenario, undisturbed: Training, tmp_path: Path, tools: Callable[..., None]
) -> None:
    """SIGTERM: clean at once. SIGKILL, with a worker stopped besides: no process is left, and the next run sweeps."""
    tools("ss")
    runs, marker = tmp_path / "runs", tmp_path / "tmp"
    marker.mkdir()
    scenario = with_training(tiny_scenario)
    file = tmp_path / "scenario.json"
    file.write_text(scenario.model_dump_json(exclude_none=True))
    with command(runs, marker, str(file), "--policy", "uniform") as process:
        found = training_under_way(process, runs, 0)
        assert listening_addresses(found) <= {"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"}
        process.terminate()
        output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "--resume" in output
    assert not psutil.wait_procs(found, timeout=30)[1]
    assert not list(marker.iterdir())
    (folder,) = runs.glob("train-*")
    with command(runs, marker, "--resume", str(folder)) as process:
        found = training_under_way(process, runs, 1)
        found[1].suspend()
        busy, killed = Busy(), time.monotonic()
        process.kill()
        process.communicate()
    assert not psutil.wait_procs(found, timeout=30)[1]
    assert time.monotonic() - killed < AT_ONCE_S or busy.reasons()
    assert list(marker.glob("steelyard-*"))
    with command(runs, marker, "--resume", str(folder)) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert not list(marker.iterdir())
    newest, _ = TrainingFolder(folder).store(3).newest()
    assert newest is not None
    assert newest.manifest.files == last(undisturbed).manifest.files
    kinds = [event["kind"] for event in TrainingFolder(folder).journal.read() if event["event"] == "fault"]
    assert kinds == ["driver"]


def listening_addresses(found: list[psutil.Process]) -> set[str]:
    """Addresses at which processes listen, as ``ss`` says."""
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line for line in lines if any(f"pid={each.pid}," in line for each in found)]
    assert own  # gloo's
    return {line.split()[3].rpartition(":")[0] for line in own}
