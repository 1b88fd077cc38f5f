"""Operators on lanes: every kind can be timed, the shortest round counts, and predictions hold three fidelities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steelyard.policies import make_policy
from steelyard.results.record import digest
from steelyard.results.store import read_run
from steelyard.runner.devices import NamedLane
from steelyard.runner.entries import distinct_entries, plans_of
from steelyard.runner.fidelity import at_calibrated, at_datasheet, captured_calls, others, sizes_of
from steelyard.runner.held_out import hold_out
from steelyard.runner.launch import LaunchResult, Task, run_group
from steelyard.runner.operators import (
    REFERENCES,
    at_present_speed,
    build_table,
    grids,
    operator_tasks,
    pass_tasks,
    passes_s,
    reference_calls,
    tables_path,
    write_tables,
)
from steelyard.runner.sealing import predict
from steelyard.sim.operators import OperatorTable
from steelyard.sim.spec import Scenario

PER_UNIT_S = 1e-9
SLOW_ROUND = 1.5


@pytest.fixture(scope="module")
def table() -> OperatorTable:
    """What a lane would give whose operators take time in proportion to their sizes, the first round disturbed."""
    tasks = operator_tasks("fp32")
    seen: set[str] = set()
    answers: list[Task] = []
    for task in tasks:
        slow = SLOW_ROUND if (name := json.dumps(task)) not in seen else 1.0
        seen.add(name)
        if task["op"] == "operators":
            answers.append({"seconds": [slow * (1e-6 + PER_UNIT_S * sum(each["sizes"])) for each in task["points"]]})
        else:
            work = PER_UNIT_S * task["samples"] * task["tokens"] * 1e3
            answers.append({"forward_s": slow * (2e-3 + work), "backward_s": slow * (3e-3 + 2 * work)})
    launch = LaunchResult(tasks, [answers])
    return build_table(launch, 0, 1, "fp32", [reference_calls(*each) for each in REFERENCES])


def test_the_shortest_round_of_an_operator_counts_and_the_median_one_of_a_pass(table: OperatorTable) -> None:
    for grid, made in zip(grids(), table.grids, strict=True):
        expected = [1e-6 + PER_UNIT_S * sum(point) if grid.measured(point) else 0.0 for point in grid.points]
        assert made.seconds == pytest.approx(expected)
    assert len(table.residuals) == len(REFERENCES)
    works = [PER_UNIT_S * samples * tokens * 1e3 for _, samples, tokens in REFERENCES]
    assert table.passes_s == pytest.approx([5e-3 + 3 * work for work in works])


def test_all_three_fidelities_are_sealed_before_anything_runs(
    tiny_scenario: Scenario, table: OperatorTable, lanes: list[NamedLane], tmp_path: Path
) -> None:
    write_tables(tables_path(tmp_path, lanes, "fp32"), {lane.name: table for lane in lanes})
    entries, _ = distinct_entries(tiny_scenario, [make_policy("uniform")])
    weaker, missing = others(tiny_scenario, [entry.plan for entry in entries], tmp_path)
    assert missing == []
    folder = tmp_path / "study"
    predicted, sealed = predict(hold_out(tiny_scenario, plans_of(entries)), entries, folder, 0, [], weaker=weaker)
    document = json.loads((folder / "predictions.json").read_text())
    assert document["sha256"] == sealed == digest(document["predictions"])
    told = document["predictions"][0]["fidelities"]
    assert sorted(told) == ["calibrated", "datasheet"]
    assert all(each["p50_s"] > 0 for each in told.values())
    (stored,) = [read_run(path) for path in folder.iterdir() if path.is_dir()]
    assert stored.manifest.predicted_at == told
    assert predicted[0].prediction is not None
    assert predicted[0].prediction.summary.fidelity == "profiled"


def test_without_tables_a_replay_says_what_is_missing(tiny_scenario: Scenario, tmp_path: Path) -> None:
    entries, _ = distinct_entries(tiny_scenario, [make_policy("uniform")])
    weaker, missing = others(tiny_scenario, [entry.plan for entry in entries], tmp_path)
    assert sorted(weaker) == ["datasheet"]
    assert len(missing) == 1
    assert "calibrate --operators" in missing[0]


def test_what_a_fidelity_says_repeats(tiny_scenario: Scenario, table: OperatorTable) -> None:
    entries, _ = distinct_entries(tiny_scenario, [make_policy("uniform")])
    tables = {device.name: table for device in tiny_scenario.cluster.devices}
    sizes = sizes_of(entry.plan for entry in entries)
    captured, again = (captured_calls(tiny_scenario.workload, sizes) for _ in range(2))
    assert at_calibrated(tiny_scenario, tables, captured) == at_calibrated(tiny_scenario, tables, again)
    assert at_datasheet(tiny_scenario) == at_datasheet(tiny_scenario)


@pytest.mark.slow
def test_every_kind_can_be_timed_on_real_lanes(lanes: list[NamedLane]) -> None:
    points = [{"kind": grid.kind, "sizes": list(grid.points[0])} for grid in grids()]
    passes = [
        next(task for task in operator_tasks(dtype) if task["op"] == "reference") for dtype in ("fp32", "bf16")
    ]  # in the dtype that the tables are of
    tasks: list[Task] = [{"op": "operators", "dtype": "fp32", "points": points}, *passes]
    launch = run_group(lanes, tasks, {}, timeout_s=60.0)
    for rank in range(len(lanes)):
        ((_, answer),) = launch.of("operators", rank)
        assert len(answer["seconds"]) == len(points)
        assert all(0 < seconds < 60 for seconds in answer["seconds"])
        told = [times for _, times in launch.of("reference", rank)]
        assert [times["dtype"] for times in told] == ["torch.float32", "torch.bfloat16"]
        assert all(min(times["forward_s"], times["backward_s"]) > 0 for times in told)


@pytest.mark.slow
def test_tables_are_scaled_by_what_their_lanes_small_models_take_now(
    table: OperatorTable, lanes: list[NamedLane]
) -> None:
    """On real lanes: a table of a faster day is scaled, one that cannot be of its lane is left alone."""
    launch, thens = run_group(lanes, pass_tasks("fp32"), {}, timeout_s=60), (0.6, 1e-3)
    made = {
        lane.name: table.model_copy(update={"passes_s": [then * each for each in passes_s([launch], rank)]})
        for rank, (lane, then) in enumerate(zip(lanes, thens, strict=True))
    }
    scaled, notes = at_present_speed(lanes, made)
    assert len(notes) == len(lanes)
    for note, then, (name, before) in zip(notes, thens, made.items(), strict=True):
        grown = scaled[name].grids[0].seconds[0] / before.grids[0].seconds[0]
        assert f"operators on {name} take" in note
        assert (grown > 1.03) == ("scaled by it" in note)
        if then < 0.1:
            assert "not of this lane, run `steelyard calibrate --operators --again`" in note


def test_tables_that_do_not_say_how_fast_their_lanes_were_stay_and_a_note_says_so(
    table: OperatorTable, lanes: list[NamedLane]
) -> None:
    bare = {lane.name: table.model_copy(update={"passes_s": []}) for lane in lanes}
    same, notes = at_present_speed(lanes, bare)
    assert same == bare
    assert [note.split(" are ")[0] for note in notes] == [f"operators on {lane.name}" for lane in lanes]
