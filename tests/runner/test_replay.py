"""Replay: predictions come first and stay as they were; what is measured is whole, consistent and kept."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from steelyard.policies import make_policy
from steelyard.results.compare import compare
from steelyard.results.errors import InputError
from steelyard.results.record import Run, digest
from steelyard.results.report import report
from steelyard.results.store import find_runs, read_run
from steelyard.runner import cli
from steelyard.runner.devices import NamedLane
from steelyard.runner.entries import Entry, distinct_entries, plans_of, twins
from steelyard.runner.held_out import hold_out
from steelyard.runner.protocol import counted_steps
from steelyard.runner.replay import begun_of, replay
from steelyard.runner.runnable import lanes_of
from steelyard.runner.sealing import model_error, predict
from steelyard.runner.unfinished import Launches, Study, keep, recover
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.spec import Scenario, load_scenario
from steelyard.sim.view import Fixed, Policy

from .processes import workers


def fixed(scenario: Scenario, **sizes: Sequence[int]) -> Fixed:
    """The policy that always answers these micro-batches per lane."""
    layers = len(scenario.workload.layers)
    return Fixed(
        Plan(
            pipelines=[
                Pipeline(
                    stages=[Stage(first=0, last=layers, replicas=[Replica(devices=[name])])], micro_batches=list(each)
                )
                for name, each in sizes.items()
            ]
        )
    )


def policies_of(scenario: Scenario) -> list[Policy]:
    return [
        make_policy("uniform"),
        fixed(scenario, full=[30]),
        fixed(scenario, full=[17], sse=[13]),
        fixed(scenario, full=[9, 12], sse=[4, 5]),
        fixed(scenario, full=[15], sse=[15]),  # what uniform does
    ]


# ---- before anything runs ----


def test_equal_plans_are_one_entry_and_a_note(tiny_scenario: Scenario) -> None:
    entries, notes = distinct_entries(tiny_scenario, policies_of(tiny_scenario))
    assert len(entries) == 4
    assert len({entry.plan.sha256 for entry in entries}) == 4
    assert len(notes) == 1
    assert "uniform" in notes[0]


def test_labels_are_unique_though_policies_look_alike(tiny_scenario: Scenario) -> None:
    """Two settings that round to the same label would make a study that nobody can compare."""
    entries, _ = distinct_entries(tiny_scenario, policies_of(tiny_scenario))
    assert len({entry.label for entry in entries}) == len(entries)


def test_sizes_of_the_plans_are_held_out_of_every_lane(tiny_scenario: Scenario) -> None:
    entries, _ = distinct_entries(tiny_scenario, policies_of(tiny_scenario))
    used = {size for entry in entries for pipeline in entry.plan.pipelines for size in pipeline.micro_batches}
    for before, after in zip(
        tiny_scenario.cluster.devices, hold_out(tiny_scenario, plans_of(entries)).cluster.devices, strict=True
    ):
        assert before.profile is not None
        assert after.profile is not None
        sizes = {point.micro_batch for point in before.profile.points}
        assert sizes & used  # the test would prove nothing otherwise
        assert {point.micro_batch for point in after.profile.points} == sizes - used


def test_too_few_points_left_is_refused_and_writes_nothing(tiny_scenario: Scenario, tmp_path: Path) -> None:
    many = [
        fixed(tiny_scenario, full=[2, 5, 11], sse=[12]),
        fixed(tiny_scenario, full=[17], sse=[13]),
    ]
    with pytest.raises(InputError, match="at least 3 are needed"):
        replay(tiny_scenario, many, tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_a_cluster_of_no_lanes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lane"):
        replay(load_scenario("mixed-gpus"), [make_policy("uniform")], tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_an_invalid_plan_is_refused_before_anything_is_written(tiny_scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        replay(tiny_scenario, [fixed(tiny_scenario, full=[29])], tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def predicted_entries(scenario: Scenario, folder: Path) -> tuple[list[Entry], str]:
    entries, _ = distinct_entries(scenario, policies_of(scenario))
    return predict(hold_out(scenario, plans_of(entries)), entries, folder, 3, [])


def test_prediction_file_seals_itself(tiny_scenario: Scenario, tmp_path: Path) -> None:
    entries, sealed = predicted_entries(tiny_scenario, tmp_path / "study")
    document = json.loads((tmp_path / "study" / "predictions.json").read_text())
    assert document["sha256"] == sealed == digest(document["predictions"])
    assert [line["plan_sha256"] for line in document["predictions"]] == [entry.plan.sha256 for entry in entries]
    document["predictions"][0]["step_time_s"]["p50"] *= 1.001
    assert digest(document["predictions"]) != sealed
    again, same = predicted_entries(tiny_scenario, tmp_path / "again")
    assert same == sealed  # one seed, one prediction
    assert len(again) == len(entries)


def test_twins_are_the_fastest_plan_and_others_far_from_it(tiny_scenario: Scenario, tmp_path: Path) -> None:
    entries, _ = predicted_entries(tiny_scenario, tmp_path / "study")
    medians = {entry.label: entry.predicted_s for entry in entries}
    (alone,) = twins(entries, 1)
    assert alone.twin_of == min(medians, key=lambda label: medians[label])
    assert alone.plan == next(entry.plan for entry in entries if entry.label == alone.twin_of)
    made = twins(entries, 3)
    assert made[0] == alone
    assert made[-1].twin_of == max(medians, key=lambda label: medians[label])
    assert len({each.label for each in made} | set(medians)) == len(made) + len(medians)


def test_intervals_know_what_the_model_is_off_by_unless_runs_refined_it(
    tiny_scenario: Scenario, tmp_path: Path
) -> None:
    """Refined tables have that in the launches that they were fitted to."""

    def width(scenario: Scenario, place: str) -> float:
        entries, _ = predicted_entries(scenario, tmp_path / place)
        assert entries[0].prediction is not None
        low, high = entries[0].prediction.summary.median_interval_s
        return (high - low) / entries[0].predicted_s

    off = tiny_scenario.replay.model_copy(update={"model_error_percent": 10.0})
    refined = tiny_scenario.cluster.model_copy(update={"fitted_plans": ["0" * 64]})
    assert model_error(tiny_scenario) == tiny_scenario.replay.model_error_percent / 100
    assert model_error(tiny_scenario.model_copy(update={"cluster": refined})) == 0.0
    assert width(tiny_scenario.model_copy(update={"replay": off}), "off") > max(0.25, width(tiny_scenario, "plain"))


def test_intervals_are_sealed_for_every_number_of_steps_and_narrow_with_it(
    tiny_scenario: Scenario, tmp_path: Path
) -> None:
    entries, _ = predicted_entries(tiny_scenario, tmp_path / "study")
    lines = json.loads((tmp_path / "study" / "predictions.json").read_text())["predictions"]
    for entry, line in zip(entries, lines, strict=True):
        assert entry.prediction is not None
        found = entry.prediction.summary.launch_intervals_s
        assert {count: list(ends) for count, ends in found.items()} == line["launch_intervals_s"]
        assert found[str(counted_steps(tiny_scenario))] == entry.prediction.summary.median_interval_s
        widths = [found[key][1] - found[key][0] for key in sorted(found, key=int)]
        assert widths[-1] < widths[0]


# ---- one real study, looked at from all sides ----


@dataclass
class Watched:
    """A study, and what its driver said: each line with the time and the predictions on disk at that moment."""

    study: Study
    scenario: Scenario
    lines: list[tuple[str, int, bytes | None]] = field(default_factory=list)
    ticks: list[tuple[int, int]] = field(default_factory=list)
    killed: Path = Path()
    """What was on disk when the first launch was complete and the second had not begun."""

    @property
    def measured(self) -> list[Run]:
        return self.study.measured

    def labelled(self, label: str) -> Run:
        return next(run for run in self.measured if run.manifest.label == label)


@pytest.fixture(scope="module")
def watched(tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    runs = tmp_path_factory.mktemp("replay") / "runs"
    killed = tmp_path_factory.mktemp("killed") / "study"
    lines: list[tuple[str, int, bytes | None]] = []
    ticks: list[tuple[int, int]] = []

    def say(line: str) -> None:
        found = next(runs.glob("*/predictions.json"), None)
        lines.append((line, time.time_ns(), found.read_bytes() if found else None))
        if line.startswith("launch 2") and found:
            shutil.copytree(found.parent, killed)

    study = replay(
        tiny_scenario,
        policies_of(tiny_scenario),
        runs,
        seed=3,
        report=say,
        tick=lambda done, total: ticks.append((done, total)),
    )
    return Watched(study, tiny_scenario, lines, ticks, killed)


@pytest.mark.slow
def test_predictions_were_on_disk_before_the_first_measurement(watched: Watched) -> None:
    file = watched.study.folder / "predictions.json"
    document = json.loads(file.read_bytes())
    assert document["sha256"] == digest(document["predictions"])
    launches = [(moment, seen) for line, moment, seen in watched.lines if line.startswith("launch")]
    assert len(launches) == watched.scenario.replay.launches
    for moment, seen in launches:
        assert seen == file.read_bytes()
        assert file.stat().st_mtime_ns <= moment
    for run in watched.study.predicted:
        folder = next(each for each in watched.study.folder.iterdir() if _id_of(each) == run.manifest.run_id)
        assert (folder / "manifest.json").stat().st_mtime_ns <= launches[0][0]
    for run in watched.measured:
        assert run.manifest.prediction_sha256 == document["sha256"]


def _id_of(folder: Path) -> str | None:
    return read_run(folder).manifest.run_id if folder.is_dir() else None


@pytest.mark.slow
def test_no_plan_is_predicted_from_its_own_sizes(watched: Watched) -> None:
    used = {size for run in watched.measured for pipe in run.plan["pipelines"] for size in pipe["micro_batches"]}
    assert {17, 5} <= used  # both were calibrated
    for run in watched.study.predicted:
        for node in run.manifest.scenario["cluster"]["nodes"]:
            for device in node["devices"]:
                assert not used & {point["micro_batch"] for point in device["profile"]["points"]}


@pytest.mark.slow
def test_every_plan_and_the_twin_are_measured_in_every_launch(watched: Watched) -> None:
    settings = watched.scenario.replay
    assert len(watched.measured) == len(watched.study.predicted) + 1
    predicted = {run.manifest.run_id: run for run in watched.study.predicted}
    for run in watched.measured:
        prediction = predicted[run.manifest.predicted_run_id or ""]
        assert prediction.plan == run.plan
        assert prediction.manifest.plan_sha256 == run.manifest.plan_sha256
        assert run.summary.fidelity == "measured"
        assert prediction.summary.fidelity == "profiled"
        assert len(run.summary.launch_median_step_time_s) == settings.launches
        assert run.summary.steps == settings.launches * settings.steps
        low, high = run.summary.median_interval_s
        assert 0 < low <= high
    (own,) = [run for run in watched.measured if run.manifest.twin_of is not None]
    original = watched.labelled(own.manifest.twin_of or "")
    assert own.plan == original.plan
    assert own.manifest.predicted_run_id == original.manifest.predicted_run_id
    assert not own.events.equals(original.events)
    assert watched.ticks[-1][0] == watched.ticks[-1][1]


@pytest.mark.slow
def test_ledger_of_every_device_sums_to_the_mean_step(watched: Watched) -> None:
    for run in watched.measured:
        for line in run.summary.devices.values():
            assert line.total_s() == pytest.approx(run.summary.step_time_s.mean, rel=1e-9)
            assert min(value for name, value in line.model_dump().items() if name.endswith("_s")) >= 0
        assert sum(line.samples for line in run.summary.devices.values()) == watched.scenario.workload.global_batch


@pytest.mark.slow
def test_events_are_consistent(watched: Watched) -> None:
    for run in watched.measured:
        events = run.events
        assert (events["end_s"] >= events["start_s"]).all()
        assert events["start_s"].min() >= 0
        for _, own in events.groupby(["launch", "device"]):
            ordered = own.sort_values(["start_s", "end_s"])
            gaps = ordered["start_s"].to_numpy()[1:] - ordered["end_s"].to_numpy()[:-1]
            assert (gaps >= -1e-9).all()  # a device does one thing at a time
        for _, step in events.groupby(["launch", "round", "step"]):
            waits, sums = step[step["kind"] == "wait"], step[step["kind"] == "communication"]
            assert set(waits["device"]) == set(sums["device"])
            for device in sums["device"]:
                wait, comm = waits[waits["device"] == device].iloc[0], sums[sums["device"] == device].iloc[0]
                assert wait["end_s"] == comm["start_s"]
            if len(sums):  # the last to enter does not wait
                assert (waits["end_s"] - waits["start_s"]).min() == pytest.approx(0.0, abs=1e-9)
        blocks = events.groupby(["launch", "round"])["step"].agg(["min", "max"])
        per_round = watched.scenario.replay.steps // watched.scenario.replay.rounds
        assert set(blocks["min"]) == {0}  # the lead-in
        assert set(blocks["max"]) == {per_round}


@pytest.mark.slow
def test_every_micro_batch_is_done_in_every_step(watched: Watched) -> None:
    for run in watched.measured:
        sizes = {
            pipe["stages"][0]["replicas"][0]["devices"][0]: pipe["micro_batches"] for pipe in run.plan["pipelines"]
        }
        compute = run.events[run.events["kind"].isin(["forward", "backward"])]
        counts = compute.groupby(["launch", "round", "step", "device", "kind"]).size()
        for key, count in counts.items():
            assert count == len(sizes[key[3]])


@pytest.mark.slow
def test_single_device_plan_runs_on_that_device_alone(watched: Watched) -> None:
    run = next(run for run in watched.measured if len(run.plan["pipelines"]) == 1 and run.manifest.twin_of is None)
    assert set(run.events["device"]) == {"full"}
    assert not set(run.events["kind"]) & {"communication", "wait"}
    idle = run.summary.devices["sse"]
    assert idle.samples == 0
    assert idle.idle_s == pytest.approx(run.summary.step_time_s.mean)


@pytest.mark.slow
def test_the_study_says_how_disturbed_it_was(watched: Watched) -> None:
    for run in watched.measured:
        contention = run.manifest.provenance["contention"]
        assert 0 <= contention["contended_percent"] <= 100
        assert contention["busy"] == bool(contention["reasons"])
        assert contention["retries"] >= 0
        assert set(run.manifest.provenance["lanes"]) == {"full", "sse"}


@pytest.mark.slow
def test_the_folder_is_read_by_compare_and_report(watched: Watched, tmp_path: Path) -> None:
    stored = [read_run(folder) for folder in find_runs([watched.study.folder])]
    assert len(stored) == len(watched.study.runs)
    found = compare(stored)
    assert len([row for row in found.plans if row.twin_of is None]) == 4
    assert found.noise_floor_percent is not None
    assert found.fidelity == "profiled"
    assert found.launches == 2
    assert found.model_dump() == compare(watched.study.runs).model_dump()
    assert report(stored, tmp_path / "report").is_file()


# ---- cut short ----


@pytest.mark.slow
def test_a_budget_that_is_too_small_measures_once_and_says_so(tiny_scenario: Scenario, tmp_path: Path) -> None:
    study = replay(tiny_scenario, policies_of(tiny_scenario)[:2], tmp_path / "runs", budget_s=0.01)
    for run in study.measured:
        assert len(run.summary.launch_median_step_time_s) == 1
        assert run.summary.steps == tiny_scenario.replay.rounds
        assert "the budget allowed 1 of 2 launches" in run.manifest.notes


LONGER = ["--set", "replay.launches=3", "--set", "replay.steps=60"]


def command(calibrated: Path, runs: Path, place: Path, *settings: str) -> subprocess.Popen[str]:
    """``steelyard replay`` as a process of its own; its temporary files go to ``place``."""
    (calibrated / "runs").rename(runs)
    words = [sys.executable, "-m", "steelyard.runner.cli", "replay", str(calibrated / "tiny.toml"), "-p", "uniform"]
    return subprocess.Popen(
        [*words, "-p", "linear-cost", *LONGER, *settings, "--runs", str(runs), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(place)},
    )


UNMEASURED = 1
"""Groups of workers before the first launch: the proof of the gradients; nothing is gauged."""


def workers_in_launch(process: subprocess.Popen[str], number: int) -> list[psutil.Process]:
    """All workers so far, in order, once the two of the ``number``-th launch have met and are at work.

    The first launch proves the plans; nothing is timed in it.
    """
    seen: list[psutil.Process] = []
    launch = 0
    while process.poll() is None:
        found = [each for each in workers(process.pid) if each not in seen]
        if len(found) == 2 and all(_connected(each) for each in found):
            launch += 1
            seen += found
            if launch == number:
                return seen
        time.sleep(0.05)
    raise AssertionError(process.communicate())


def _connected(process: psutil.Process) -> bool:
    try:
        return len(process.net_connections("tcp")) > 0
    except psutil.NoSuchProcess:
        return False


def kept_launches(runs: Path, error: str) -> int:
    """Launches in the measured runs of the one study; the folder must be whole."""
    (folder,) = runs.glob("replay-*")
    assert not list(folder.glob(".*"))
    stored = [read_run(each) for each in find_runs([folder])]
    measured = [run for run in stored if run.manifest.kind == "measured"]
    assert len(measured) == 3, error
    assert compare(stored).launches == len(measured[0].summary.launch_median_step_time_s)
    assert all(any("launches" in note for note in run.manifest.notes) for run in measured)
    return compare(stored).launches


@pytest.mark.slow
def test_interrupt_keeps_complete_launches_and_leaves_no_process(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with command(calibrated, tmp_path / "runs", tmp_path / "tmp") as process:
        workers = workers_in_launch(process, UNMEASURED + 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert json.loads(out)["launches"] == 1
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert not list((tmp_path / "tmp").glob("steelyard-*"))
    assert kept_launches(tmp_path / "runs", err) == 1


@pytest.mark.slow
def test_a_worker_that_dies_late_is_named_and_earlier_launches_are_kept(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with command(calibrated, tmp_path / "runs", tmp_path / "tmp") as process:
        workers = workers_in_launch(process, UNMEASURED + 2)
        victim = next(each for each in workers[2 * (UNMEASURED + 1) :] if each.cmdline()[-1] == "1")
        victim.kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "worker 'sse' (rank 1) was killed by SIGKILL" in err
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert kept_launches(tmp_path / "runs", err) == 1


@pytest.mark.slow
def test_interrupt_in_the_first_launch_leaves_the_predictions_alone(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with command(calibrated, tmp_path / "runs", tmp_path / "tmp") as process:
        workers = workers_in_launch(process, UNMEASURED + 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    (folder,) = (tmp_path / "runs").glob("replay-*")
    assert {read_run(each).manifest.kind for each in find_runs([folder])} == {"simulated"}
    assert (folder / "predictions.json").is_file()


@pytest.mark.slow
def test_a_killed_driver_loses_no_complete_launch(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL in the second launch: the next command that looks at the study makes runs of the first.

    Launches begin with gauges, and what was written down before the plans of the first one ran is there too.
    """
    (tmp_path / "tmp").mkdir()
    gauging = ("--set", "replay.gauge_launches=1")
    with command(calibrated, tmp_path / "runs", tmp_path / "tmp", *gauging) as process:
        workers = workers_in_launch(process, 1 + UNMEASURED + 2)
        process.kill()
        _, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    (folder,) = (tmp_path / "runs").glob("replay-*")
    assert {read_run(each).manifest.kind for each in find_runs([folder])} == {"simulated"}
    assert cli.run(["compare", str(folder), "--json"]) == 0
    out, told = capsys.readouterr()
    assert json.loads(out)["launches"] == 1
    assert json.loads(out)["steadied"]["foretold"]
    assert "the driver was killed" in told
    assert kept_launches(tmp_path / "runs", err) == 1
    assert not Launches(folder).folder.exists()
    assert len((tmp_path / "runs" / "history.jsonl").read_text().splitlines()) >= 1
    assert recover([folder]) == []


@pytest.mark.slow
def test_runs_made_of_what_a_killed_driver_left_are_those_that_it_would_have_made(watched: Watched) -> None:
    """Only the second launch is missing, and the note says so."""
    with Launches(watched.killed).alone() as free:
        assert free
        (line,) = recover([watched.killed])
        assert "is being measured" in line
    assert len(recover([watched.killed])) == 1
    stored = [read_run(folder) for folder in find_runs([watched.killed])]
    found = {each.manifest.label: each for each in stored if each.manifest.kind == "measured"}
    assert set(found) == {each.manifest.label for each in watched.measured}
    changing = {"run_id", "notes", "provenance"}
    for expected in watched.measured:
        own = found[expected.manifest.label]
        first = expected.events[expected.events["launch"] == 0].reset_index(drop=True)
        assert own.events.equals(first)
        assert own.manifest.model_dump(exclude=changing) == expected.manifest.model_dump(exclude=changing)
        assert "stopped: the driver was killed after 1 of 2 launches" in own.manifest.notes
        for key in ("gradient_error", "exact_gradient_error"):
            assert own.manifest.provenance[key] == expected.manifest.provenance[key]
        steps = own.manifest.provenance["protocol"]["steps_per_round"]
        assert steps == expected.manifest.provenance["protocol"]["steps_per_round"][:1]


def test_a_driver_that_was_killed_before_its_first_launch_was_complete_left_nothing_to_keep(
    tiny_scenario: Scenario, tmp_path: Path
) -> None:
    entries, sealed = predicted_entries(tiny_scenario, tmp_path / "study")
    launches = Launches(tmp_path / "study")
    with launches.measuring(begun_of(tiny_scenario, entries, 3, sealed, [])):
        assert launches.folder.exists()
        shutil.copytree(tmp_path / "study", tmp_path / "killed")
    assert not launches.folder.exists()
    torn = Launches(tmp_path / "killed").folder / "0000.json"
    torn.write_text('{"tasks": [')
    with pytest.raises(InputError, match="is damaged") as refused:
        recover([tmp_path / "killed"])
    assert refused.value.path == str(torn)
    torn.unlink()
    (line,) = recover([tmp_path / "killed"])
    assert "no launch was complete" in line
    assert not Launches(tmp_path / "killed").folder.exists()


Spoil = Callable[[dict[str, Any]], object]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "another version": (lambda begun: begun.update(schema_version=99), "schema_version"),
    "no version": (lambda begun: begun.pop("schema_version"), "schema_version"),
    "another kind": (lambda begun: begun.update(kind=["plans"]), "kind"),
    "no entries": (lambda begun: begun.pop("entries"), "entries"),
    "an entry without its label": (lambda begun: begun["entries"][0].pop("label"), "entries.0.label"),
    "an entry whose plan is none": (lambda begun: begun["entries"][0].update(plan={"pipelines": 1}), "pipelines"),
    "a scenario that is none": (lambda begun: begun["scenario"].update(workload=1), "scenario.workload"),
    "a seed in words": (lambda begun: begun.update(seed="three"), "seed"),
    "a course without its gradients": (lambda begun: begun.update(kind="courses"), "gradient_errors"),
}


def test_what_another_version_began_is_refused_by_the_name_of_its_file(tiny_scenario: Scenario, tmp_path: Path) -> None:
    """Whatever is different; and no launch is used or removed for it."""
    entries, sealed = predicted_entries(tiny_scenario, tmp_path / "study")
    launches, killed = Launches(tmp_path / "study"), Launches(tmp_path / "killed")
    with launches.measuring(begun_of(tiny_scenario, entries, 3, sealed, [])):
        shutil.copytree(launches.study, killed.study)
    whole = killed.begun.read_text()
    assert killed.read()[0] == json.loads(whole)
    killed.add({"tasks": [], "answers": []})
    for name, (spoil, field_name) in SPOILT.items():
        begun = json.loads(whole)
        spoil(begun)
        killed.begun.write_text(json.dumps(begun))
        with pytest.raises(InputError) as refused:
            recover([killed.study])
        assert refused.value.path.startswith(f"{killed.begun}: {field_name}"), name
        assert "the version of steelyard that measured" in refused.value.mend
    for damaged in (whole[:-1], "[]", "[" * 100_000):
        killed.begun.write_text(damaged)
        with pytest.raises(InputError) as refused:
            recover([killed.study])
        assert refused.value.path == str(killed.begun)
        assert "cannot be used" in refused.value.mend
    assert len(killed.files) == 1


def test_measured_runs_are_numbered_as_their_predictions_whatever_was_left_out(
    tiny_scenario: Scenario, tmp_path: Path
) -> None:
    """Of all but the first plan, and of the last one's twin."""
    entries, _ = predicted_entries(tiny_scenario, tmp_path / "study")
    predicted = [entry.prediction for entry in entries if entry.prediction is not None]
    measured = []
    for run, twin_of in [*((each, None) for each in predicted[1:]), (predicted[-1], predicted[-1].manifest.label)]:
        own = {"kind": "measured", "predicted_run_id": run.manifest.run_id, "twin_of": twin_of}
        measured.append(dataclasses.replace(run, manifest=run.manifest.model_copy(update=own)))
    study = keep(Launches(tmp_path / "study"), predicted, measured, None)
    number_of = {read_run(each).manifest.run_id: each.name[:2] for each in study.folder.glob("*-predicted")}
    found = {each.name[:2]: read_run(each).manifest for each in study.folder.glob("*-measured")}
    assert sorted(found) == [f"{number:02d}" for number in range(1, len(predicted) + 1)]
    for number, manifest in found.items():
        expected = f"{len(predicted):02d}" if manifest.twin_of else number_of[manifest.predicted_run_id]
        assert number == expected


def test_lanes_of_a_scenario_are_its_devices(tiny_scenario: Scenario, lanes: list[NamedLane]) -> None:
    assert lanes_of(tiny_scenario) == lanes
