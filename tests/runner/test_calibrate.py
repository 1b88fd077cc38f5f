"""Calibration: tables from raw answers, and the file they live in. The truth behind the answers here is known."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner import calibrate as module
from steelyard.runner.blocks import MAX_RESIDUALS, thin
from steelyard.runner.calibrate import (
    BLOCKS_PER_PLAN,
    build_profile,
    calibrate,
    calibration_sizes,
)
from steelyard.runner.calibrations import (
    Calibration,
    calibration_path,
    check_fingerprint,
    read_calibration,
    write_calibration,
)
from steelyard.runner.devices import NamedLane, fingerprint
from steelyard.runner.launch import LaunchResult, Task
from steelyard.runner.linking import build_collective, collective_sizes, in_steps
from steelyard.runner.resolving import job_of, resolver, workload_of
from steelyard.sim import cost
from steelyard.sim.measured import interpolate
from steelyard.sim.spec import Scenario, Training, load_scenario, read_document
from steelyard.sim.workload import Workload

from .conftest import CalibratedLanes

SIZES = (2, 5, 11, 17, 23, 31)
BYTES = (2**14, 2**16, 2**18)


@pytest.fixture
def calibration(tiny_scenario: Scenario, tmp_path: Path) -> Calibration:
    """Tables as if they had just been measured here."""
    cluster = tiny_scenario.cluster.model_copy(update={"fingerprint": fingerprint()})
    return Calibration(
        cluster=cluster,
        workload=tiny_scenario.workload.key,
        path=tmp_path / "calibrations" / "tables.toml",
        reused=False,
        contended_percent=1.25,
    )


# ---- sizes ----


@example(1007, 475, 2)  # the largest size is an equal split's
@given(st.integers(1, 5000), st.none() | st.integers(1, 600), st.integers(1, 8))
def test_calibrated_sizes_span_what_a_plan_can_ask_for(batch: int, most: int | None, lanes: int) -> None:
    workload = _workload(batch, most)
    sizes = calibration_sizes(workload, lanes)
    assert sizes == sorted(set(sizes))
    assert len(sizes) >= 3
    assert sizes[0] >= 1
    assert sizes[-1] >= min(batch, most or batch) or lanes == 1


@given(st.integers(34, 5000), st.integers(2, 8))
def test_an_equal_split_is_not_calibrated(batch: int, lanes: int) -> None:
    """The uniform plan is always replayed: it must not cost a calibrated size."""
    assert not {batch // lanes, -(-batch // lanes)} & set(calibration_sizes(_workload(batch, None), lanes))


def _workload(batch: int, most: int | None) -> Workload:
    layer = {
        "name": "only",
        "parameters": 1000,
        "trainable_parameters": 1000,
        "forward": [{"kind": "matmul", "flops": [1.0], "elements": [1.0]}],
        "backward": [{"kind": "matmul", "flops": [2.0], "elements": [1.0]}],
        "activation_elements": [1.0],
        "output_elements": [1.0],
    }
    document = {"model": {"name": "toy", "layers": [layer]}, "global_batch": batch, "sequence_length": 8}
    return Workload.model_validate({**document, "max_micro_batch": most})


@given(st.integers(1, 10**9))
def test_collective_sizes_close_in_on_the_gradients_and_leave_them_out(parameters: int) -> None:
    workload = _workload(8, None)
    layer = workload.model.layers[0].model_copy(update={"parameters": parameters, "trainable_parameters": parameters})
    model = workload.model.model_copy(update={"layers": [layer]})
    workload = workload.model_copy(update={"model": model})
    sizes = collective_sizes(workload)
    assert sizes == sorted(set(sizes))
    assert len(sizes) >= 2
    assert workload.gradient_bytes not in sizes
    assert sizes[-1] > workload.gradient_bytes
    below = [size for size in sizes if size < workload.gradient_bytes]
    if below:
        assert workload.gradient_bytes <= 8 * below[-1]


# ---- tables from answers ----


def profile_answer(size: int, forward: float, backward: float, optimizer: float, steps: int = 3) -> tuple[Task, Task]:
    """A profile task and the answer of a worker whose every step takes exactly these seconds."""
    segments = []
    now = 100.0
    for _ in range(steps):
        step = []
        for kind, number, seconds in (("forward", 0, forward), ("backward", 0, backward), ("optimizer", -1, optimizer)):
            step.append([kind, number, now, now + seconds, seconds])
            now += seconds
        segments.append(step)
    return {"op": "profile", "micro_batch": size}, {
        "steps": segments,
        "quiet": [True] * steps,
        "contended": 0.0,
        "retries": 0,
    }


def launch_of(speed: float, offset: float = 1.0) -> LaunchResult:
    """A lane whose forward pass takes ``speed`` x (1 ms + 0.1 ms a sample), twice that backward; ``offset`` slower."""
    pairs = [
        profile_answer(size, offset * speed * (1e-3 + 1e-4 * size), offset * speed * (2e-3 + 2e-4 * size), 5e-4)
        for size in SIZES
    ]
    return LaunchResult([task for task, _ in pairs], [[answer for _, answer in pairs]])


@given(st.floats(0.01, 100.0))
def test_profile_recovers_an_affine_lane(speed: float) -> None:
    profile = build_profile(_workload(30, None), [launch_of(speed), launch_of(speed)], 0)
    assert [point.micro_batch for point in profile.points] == list(SIZES)
    found = cost.profiled_cost("lane", profile)
    for size in (1, 7, 20, 40):  # none was measured
        assert found.forward.at(size) == pytest.approx(speed * (1e-3 + 1e-4 * size), rel=1e-6)
        assert found.backward.at(size) == pytest.approx(speed * (2e-3 + 2e-4 * size), rel=1e-6)
    assert profile.optimizer_s == pytest.approx(5e-4, rel=1e-6)
    assert max(map(abs, profile.step_residuals)) < 1e-6
    assert max(map(abs, profile.launch_residuals)) < 1e-6


def test_offset_of_a_launch_becomes_launch_noise_and_not_step_noise() -> None:
    launches = [launch_of(1.0, offset) for offset in (0.98, 1.0, 1.03)]
    profile = build_profile(_workload(30, None), launches, 0)
    per_launch = len(SIZES) // BLOCKS_PER_PLAN
    assert profile.launch_residuals == pytest.approx(np.repeat([-0.02, 0.0, 0.03], per_launch).tolist(), abs=1e-9)
    assert max(map(abs, profile.step_residuals)) < 1e-6
    assert profile.points[0].forward_s == pytest.approx(1e-3 + 1e-4 * SIZES[0])


def test_spread_within_a_launch_becomes_step_noise() -> None:
    """Four steps of 0.9, 1, 1 and 1.2 times the time: the residuals are just these, around their median."""
    tasks, answers = [], []
    for size in SIZES:
        steps = []
        for factor in (0.9, 1.0, 1.0, 1.2):
            task, answer = profile_answer(size, factor * 1e-3 * size, factor * 2e-3 * size, 1e-4, steps=1)
            steps += answer["steps"]
        tasks.append(task)
        answers.append({**answer, "steps": steps, "quiet": [True] * 4})
    profile = build_profile(_workload(30, None), [LaunchResult(tasks, [answers])], 0)
    assert sorted({round(each, 6) for each in profile.step_residuals}) == [-0.1, 0.0, 0.2]


def test_drift_between_blocks_is_no_step_noise() -> None:
    """A host that halves its speed from one block to the next: no step differs from its neighbours."""
    pairs = [profile_answer(size, speed * 1e-3 * size, speed * 2e-3 * size, 1e-4) for speed in (1, 2) for size in SIZES]
    launch = LaunchResult([task for task, _ in pairs], [[answer for _, answer in pairs]])
    profile = build_profile(_workload(30, None), [launch], 0)
    assert max(map(abs, profile.step_residuals)) < 1e-9
    assert max(profile.launch_residuals) > 0.1


def test_disturbed_steps_are_left_out_while_enough_are_left() -> None:
    task, answer = profile_answer(4, 1e-3, 2e-3, 1e-4, steps=4)
    answer["steps"][0][1][3] += 1.0
    quiet = {**answer, "quiet": [False, True, True, True]}
    others = [profile_answer(size, 1e-3, 2e-3, 1e-4) for size in (8, 16)]
    tasks = [task, *(each for each, _ in others)]
    kept = build_profile(_workload(30, None), [LaunchResult(tasks, [[quiet, *(each for _, each in others)]])], 0)
    assert kept.points[0].steps == 3
    assert max(kept.step_residuals) < 1e-9
    loud = {**answer, "quiet": [False] * 4}
    everything = build_profile(_workload(30, None), [LaunchResult(tasks, [[loud, *(each for _, each in others)]])], 0)
    assert everything.points[0].steps == 4
    assert max(everything.step_residuals) > 100


def collective_launch(seconds: dict[int, float], lag: float) -> LaunchResult:
    """Two ranks; the second enters ``lag`` later, and both leave ``seconds`` after that."""
    tasks = [{"op": "all_reduce", "bytes": size, "ranks": [0, 1]} for size in seconds]
    first = [{"times": [[10.0 * n, 10.0 * n + lag + each] for n in range(8)]} for each in seconds.values()]
    second = [{"times": [[10.0 * n + lag, 10.0 * n + lag + each] for n in range(8)]} for each in seconds.values()]
    return LaunchResult(tasks, [first, second])


@given(st.floats(0.0, 1.0), st.floats(1e-5, 1e-1))
def test_waiting_for_the_last_to_enter_is_not_the_collectives_time(lag: float, seconds: float) -> None:
    lanes = [NamedLane(name="a"), NamedLane(name="b")]
    table = build_collective(
        _workload(30, None), lanes, [collective_launch(dict.fromkeys(BYTES, seconds), lag)] * 2, [0, 1]
    )
    assert table.devices == ["a", "b"]
    assert table.backend == "gloo"
    assert [point.bytes for point in table.points] == list(BYTES)
    for point in table.points:
        assert point.seconds == pytest.approx(seconds, rel=1e-6)
    assert interpolate(table.points, 2**15) == pytest.approx(seconds, rel=1e-6)


@given(st.floats(0.2, 5.0), st.floats(0.0, 0.5), st.integers(1, 4))
def test_all_reduces_are_as_slow_as_in_steps_whatever_their_splits(factor: float, wait: float, steps: int) -> None:
    """Blocks sum gradients ``factor`` times as slowly; who comes first waits, which is not the collective's time."""
    workload, lanes = _workload(30, None), [NamedLane(name="a"), NamedLane(name="b")]
    apart = collective_launch({size: 1e-4 + 1e-9 * size for size in BYTES}, 0.1)
    table = build_collective(workload, lanes, [apart], [0, 1])
    inside_s = factor * interpolate(table.points, workload.gradient_bytes)
    ends = [("forward", 0, 0.0, 1.0, 1.0, 0), ("communication", -1, 1.0, 1.0 + wait + inside_s, 0.0, -1)]
    late = [("forward", 0, 0.0, 1.0 + wait, 1.0, 0), ("communication", -1, 1.0 + wait, 1.0 + wait + inside_s, 0.0, -1)]
    block = LaunchResult([{"op": "block"}], [[{"steps": [ends] * steps}], [{"steps": [late] * steps}]])
    both = LaunchResult(
        [*apart.tasks, *block.tasks], [[*a, *b] for a, b in zip(apart.answers, block.answers, strict=True)]
    )
    (found,) = in_steps([table], workload, [both, apart])
    assert found.step_residuals == pytest.approx([0.0] * len(found.step_residuals), abs=1e-9)
    assert found.apart() == table.model_copy(update={"points": found.apart().points})
    again = found.within_steps(1.2)
    assert again.step_residuals == found.step_residuals
    assert again.apart().step_residuals == table.step_residuals
    for point, before in zip(found.points, table.points, strict=True):
        assert point.seconds == pytest.approx(factor * before.seconds, rel=1e-6)
    assert in_steps([table], workload, [apart]) == [table]
    assert in_steps([], workload, [both]) == []


@given(st.lists(st.floats(-0.9, 10.0), min_size=1, max_size=1000))
def test_thin_keeps_the_distribution(residuals: list[float]) -> None:
    kept = thin(residuals)
    assert len(kept) == min(len(residuals), MAX_RESIDUALS)
    assert kept == sorted(kept)
    assert set(kept) <= set(residuals)
    assert (kept[0], kept[-1]) == (min(residuals), max(residuals))
    ordered = sorted(residuals)
    for share in (0.1, 0.5, 0.9):  # within one kept quantile of the sample's own
        rank = ordered.index(kept[round(share * (len(kept) - 1))])
        last = len(ordered) - 1 - ordered[::-1].index(kept[round(share * (len(kept) - 1))])
        slack = len(ordered) / (MAX_RESIDUALS - 1) + 1
        assert rank - slack <= share * (len(ordered) - 1) <= last + slack


# ---- the file ----


def test_the_file_says_what_was_measured(calibration: Calibration) -> None:
    write_calibration(calibration)
    found = read_calibration(calibration.path)
    assert found == replace(calibration, reused=True)
    assert check_fingerprint(found, force=False) == []


def test_tables_of_another_machine_are_refused_with_both_ways_out(calibration: Calibration) -> None:
    there = {**fingerprint(), "cpu": "Another Processor 9000"}
    other = replace(calibration, cluster=calibration.cluster.model_copy(update={"fingerprint": there}))
    write_calibration(other)
    found = read_calibration(other.path)
    with pytest.raises(InputError) as caught:
        check_fingerprint(found, force=False)
    assert "Another Processor 9000" in caught.value.problem
    assert "--again" in caught.value.mend
    assert "--force" in caught.value.mend
    (note,) = check_fingerprint(found, force=True)
    assert "--force" in note
    assert "Another Processor 9000" in note


@pytest.mark.parametrize("key", sorted(fingerprint()))
def test_every_part_of_the_fingerprint_counts(calibration: Calibration, key: str) -> None:
    there = {name: value for name, value in fingerprint().items() if name != key}
    other = replace(calibration, cluster=calibration.cluster.model_copy(update={"fingerprint": there}))
    with pytest.raises(InputError, match=key):
        check_fingerprint(other, force=False)


@pytest.mark.parametrize(
    "content", ["", "a = ", "schema_version = 2\nworkload = 'w'", "schema_version = 1", "\x00", "[["]
)
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tables.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"tables\.toml"):
        read_calibration(file)


JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_junk_in_a_file_is_an_input_error_and_nothing_else(calibration: Calibration, data: st.DataObject) -> None:
    if not calibration.path.is_file():
        write_calibration(calibration)
    document = tomllib.loads(calibration.path.read_text())
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JUNK.filter(lambda value: value is not None) | st.dictionaries(st.text(), st.integers()))
    file = calibration.path.with_name("junk.toml")
    try:
        file.write_text(tomli_w.dumps(document), encoding="utf-8")
    except UnicodeEncodeError:
        assume(False)
    refusal = refused(file)
    assert refusal is None or (refusal.path and str(refusal).isprintable())


def refused(file: Path) -> InputError | None:
    """The refusal of a file; None where it reads. Any other exception fails the test."""
    try:
        read_calibration(file)
    except InputError as error:
        return error
    return None


# ---- which file belongs to which scenario ----


def test_missing_tables_name_the_command(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steelyard calibrate"):
        load_scenario(tiny_folder / "tiny.toml", resolve=resolver(tmp_path / "runs"))


def placed(folder: Path, runs: Path, calibration: Calibration) -> Path:
    """Writes tables where the scenario in the folder looks for them."""
    document, place = read_document(folder / "tiny.toml")
    path = calibration_path(document, place, runs, workload_of(document, place))
    write_calibration(replace(calibration, path=path, workload=workload_of(document, place).key))
    return path


def test_resolved_scenario_has_the_measured_devices(
    tiny_folder: Path, tmp_path: Path, calibration: Calibration, lanes: list[NamedLane]
) -> None:
    placed(tiny_folder, tmp_path / "runs", calibration)
    notes: list[str] = []
    found = load_scenario(tiny_folder / "tiny.toml", resolve=resolver(tmp_path / "runs", notes=notes))
    assert found.cluster == calibration.cluster
    assert [device.name for device in found.cluster.devices] == [lane.name for lane in lanes]
    assert notes == []


def test_forced_tables_of_another_machine_leave_a_note(
    tiny_folder: Path, tmp_path: Path, calibration: Calibration
) -> None:
    cluster = calibration.cluster.model_copy(update={"fingerprint": {**fingerprint(), "cores": 4096}})
    placed(tiny_folder, tmp_path / "runs", replace(calibration, cluster=cluster))
    with pytest.raises(InputError, match="4096"):
        load_scenario(tiny_folder / "tiny.toml", resolve=resolver(tmp_path / "runs"))
    notes: list[str] = []
    load_scenario(tiny_folder / "tiny.toml", resolve=resolver(tmp_path / "runs", force=True, notes=notes))
    assert len(notes) == 1
    assert "4096" in notes[0]


def test_an_edited_lane_file_has_no_tables_yet(tiny_folder: Path, tmp_path: Path, calibration: Calibration) -> None:
    """Lanes decide the times: tables of what the file said before must not be taken for what it says now."""
    placed(tiny_folder, tmp_path / "runs", calibration)
    file = tiny_folder / "lanes.toml"
    document = tomllib.loads(file.read_text())
    document["lanes"][1]["repeat"] = 3
    file.write_text(tomli_w.dumps(document))
    with pytest.raises(InputError, match="not calibrated"):
        load_scenario(tiny_folder / "tiny.toml", resolve=resolver(tmp_path / "runs"))


def test_named_tables_of_another_workload_are_refused(
    tiny_folder: Path, tmp_path: Path, calibration: Calibration
) -> None:
    write_calibration(replace(calibration, path=tiny_folder / "own.toml", workload="another"))
    document, _ = read_document(tiny_folder / "tiny.toml")
    document["cluster"]["calibration"] = "own.toml"
    for use in (resolver(tmp_path / "runs"), lambda raw, place: calibrate(raw, place, tmp_path / "runs")):
        with pytest.raises(InputError, match="another workload"):
            use(copy.deepcopy(document), tiny_folder)


@pytest.mark.parametrize(
    ("cluster", "path"),
    [
        ({"lanes": "../lanes.toml"}, "cluster.lanes"),
        ({"lanes": "auto", "calibration": "/tables.toml"}, "cluster.calibration"),
        ({"lanes": 3}, "cluster.lanes"),
        ({"lanes": ["full"]}, "cluster.lanes.0"),
    ],
)
def test_paths_that_climb_out_or_are_none(
    tiny_folder: Path, tmp_path: Path, cluster: dict[str, Any], path: str
) -> None:
    document, folder = read_document(tiny_folder / "tiny.toml")
    document["cluster"] = cluster
    with pytest.raises(InputError) as caught:
        resolver(tmp_path / "runs")(document, folder)
    assert caught.value.path == path


def test_what_cannot_run_on_lanes_says_so(tiny_workload: Workload, tmp_path: Path) -> None:
    for update, path in (
        ({"dtype": "fp16"}, "workload.dtype"),
        ({"model": tiny_workload.model.model_copy(update={"config": {}})}, "workload.model"),
        ({"model": tiny_workload.model.model_copy(update={"config": {"model_type": "vit"}})}, "workload.model"),
    ):
        with pytest.raises(InputError) as caught:
            job_of(tiny_workload.model_copy(update=update), Training(data="random"), tmp_path, seed=0)
        assert caught.value.path == path
    assert not list(tmp_path.iterdir())


def test_tasks_are_shuffled_by_launch_and_repeatable(tiny_scenario: Scenario) -> None:
    effort, workload = tiny_scenario.calibration, tiny_scenario.workload
    plans = [module._tasks(calibration_sizes(workload, 2), 2, workload, effort, number) for number in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    key: Callable[[Task], str] = str
    assert sorted(plans[0], key=key) == sorted(plans[2], key=key)


# ---- for real ----


@pytest.mark.slow
def test_calibrating_real_lanes_gives_tables_that_are_reused(calibrated_lanes: CalibratedLanes) -> None:
    assert any(
        "about" in line and line.rstrip().endswith("s") for line in calibrated_lanes.said
    )  # how long, beforehand
    assert "reusing" in calibrated_lanes.said[-1]
    assert calibrated_lanes.same_again
    assert calibrated_lanes.ticks[-1][0] == calibrated_lanes.ticks[-1][1]
    assert calibrated_lanes.ticks == sorted(calibrated_lanes.ticks)
    document, folder = read_document(calibrated_lanes.folder / "tiny.toml")
    workload = workload_of(document, folder)
    made = calibrate(document, folder, calibrated_lanes.folder / "runs")
    assert made.reused
    for device in made.cluster.devices:
        assert device.profile is not None
        assert [point.micro_batch for point in device.profile.points] == calibration_sizes(workload, 2)
        groups = len(device.profile.points) // BLOCKS_PER_PLAN
        assert len(device.profile.launch_residuals) == 2 * groups
        assert cost.device_cost(device, workload).fidelity == "profiled"
    assert [point.bytes for point in made.cluster.collectives[0].points] == collective_sizes(workload)
