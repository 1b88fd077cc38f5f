"""Whole loops by the commands, on three lanes: all kinds of plan measured and compared, tables refined, replayed again.

With the least effort that the protocol knows: these are about the road, not the accuracy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from steelyard.results.record import LEDGER_LINES, Run
from steelyard.results.store import find_runs, read_run
from steelyard.runner.devices import available_cpus
from steelyard.sim.spec import parse_file

from .conftest import Watched

pytestmark = pytest.mark.slow

BATCH, LAYERS = 24, 6


def stage(first: int, last: int, name: str) -> dict[str, Any]:
    return {"first": first, "last": last, "replicas": [{"devices": [name]}]}


def whole(name: str, *sizes: int) -> dict[str, Any]:
    return {"stages": [stage(0, LAYERS, name)], "micro_batches": list(sizes)}


PLANS: dict[str, dict[str, Any]] = {
    "pipeline": {
        "pipelines": [
            {"stages": [stage(0, 1, "a"), stage(1, 3, "b"), stage(3, LAYERS, "c")], "micro_batches": [6] * 4},
        ],
        "schedule": "1f1b",
    },
    "unequal hybrid": {
        "pipelines": [
            {"stages": [stage(0, 1, "a"), stage(1, LAYERS, "b")], "micro_batches": [5, 5, 5]},
            whole("c", 9),
        ],
        "schedule": "gpipe",
    },
    **{f"zero {level}": {"pipelines": [whole(name, 8) for name in "abc"], "zero": level} for level in (1, 2, 3)},
    "split": {"pipelines": [whole("a", 10), whole("b", 8), whole("c", 6)]},
    "other split": {"pipelines": [whole("a", 12), whole("b", 6), whole("c", 6)]},
    "third split": {"pipelines": [whole("a", 9), whole("b", 9), whole("c", 6)]},
    "split not seen": {"pipelines": [whole("a", 11), whole("b", 8), whole("c", 5)]},
}
SPLITS = ("split", "other split", "third split")
UNSEEN = "split not seen"


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, watched: Watched) -> Path:
    """A folder where three lanes were calibrated and all plans but one replayed."""
    folder, last = tmp_path_factory.mktemp("loop"), len(available_cpus()) - 1
    cores = {"a": 0, "b": last, "c": last}
    scenario = {
        "name": "three",
        "cluster": {"lanes": [{"name": name, "cores": [core]} for name, core in cores.items()]},
        "workload": {"model": "bert-tiny-text", "global_batch": BATCH, "sequence_length": 16, "dtype": "fp32"},
        "training": {"data": "random"},
        "calibration": {"launches": 1, "rounds": 1, "seconds_per_point": 0.02},
        "sampling": {"launches": 4, "steps": 4, "search_launches": 1},
        "replay": {"launches": 1, "steps": 2, "rounds": 1, "warmup_steps": 1, "gauge_launches": 0},
    }
    (folder / "three.toml").write_text(tomli_w.dumps(scenario))
    (folder / "plans").mkdir()
    for name, plan in PLANS.items():
        (folder / "plans" / f"{name}.json").write_text(json.dumps(plan))
    watched.run("calibrate", str(folder / "three.toml"), "--runs", str(folder / "runs"))
    return folder


def replayed(folder: Path, watched: Watched, *names: str) -> dict[str, Any]:
    plans = [word for name in names for word in ("--plan", str(folder / "plans" / f"{name}.json"))]
    words = ["replay", str(folder / "three.toml"), "--runs", str(folder / "runs"), *plans, "--json"]
    found: dict[str, Any] = json.loads(watched.run(*words))
    return found


@pytest.fixture(scope="module")
def study(loop: Path, watched: Watched) -> Path:
    """The replay of all plans but one."""
    return Path(replayed(loop, watched, *(name for name in PLANS if name != UNSEEN))["folder"])


@pytest.fixture(scope="module")
def measured(study: Path) -> list[Run]:
    """Its measured runs."""
    return [run for run in map(read_run, find_runs([study])) if run.manifest.kind == "measured"]


def test_every_kind_of_plan_was_proven_and_measured(measured: list[Run]) -> None:
    own = [run for run in measured if run.manifest.twin_of is None]
    assert len(own) == len(PLANS) - 1
    for run in own:
        told = run.manifest.provenance
        errors = [told["gradient_error"], told["exact_gradient_error"]]
        assert min(each for each in errors if each is not None) <= 1e-6
        assert run.manifest.prediction_sha256


def test_the_ledgers_of_every_lane_sum_to_the_step(measured: list[Run]) -> None:
    for run in measured:
        steps = {name: ledger.total_s() for name, ledger in run.summary.devices.items()}
        assert max(steps.values()) == pytest.approx(min(steps.values()), rel=1e-6)
        for ledger in run.summary.devices.values():
            assert all(getattr(ledger, line) >= -1e-9 for line in LEDGER_LINES)
    piped = next(run for run in measured if len(run.plan["pipelines"]) == 1)
    assert all(ledger.compute_s > 0 for ledger in piped.summary.devices.values())


def test_compare_says_the_same_of_the_folder_as_the_replay(study: Path, watched: Watched) -> None:
    again = json.loads(watched.run("compare", str(study), "--json"))
    written = json.loads((study / "comparison.json").read_text())
    assert again == {key: value for key, value in written.items() if key != "folder"}
    assert {row["global_batch"] for row in again["plans"]} == {BATCH}
    assert not again["judged"]


def test_tables_are_refined_and_predict_a_plan_that_refined_nothing(
    loop: Path, study: Path, measured: list[Run], watched: Watched
) -> None:
    words = ["calibrate", str(loop / "three.toml"), "--runs", str(loop / "runs"), "--from-runs", str(study), "--json"]
    refined = json.loads(watched.run(*words))
    file = parse_file(Path(refined["path"]))
    assert file["cluster"]["fitted_plans"]
    document = replayed(loop, watched, UNSEEN, SPLITS[0])
    rows = {row["label"]: row for row in document["plans"] if row["twin_of"] is None}
    assert sorted(row["in_sample"] for row in rows.values()) == [False, True]  # the other one is of the tables' runs
    history = json.loads(watched.run("history", "--runs", str(loop / "runs"), "--json"))
    studies = [each["study"] for each in history["history"]]
    assert list(dict.fromkeys(studies)) == [study.name, Path(document["folder"]).name]
    assert Path(history["figure"]).is_file()


def test_a_replay_that_changes_its_plan_under_way(loop: Path, watched: Watched) -> None:
    slow = [
        "--set",
        'disturbances=[{device="a", kind="slowdown", from_step=4, factor=2.0}]',
        "--set",
        "rebalance.every_steps=3",
    ]
    words = ["replay", str(loop / "three.toml"), "--runs", str(loop / "runs"), "-p", "lb-bsp", "--json"]
    document = json.loads(watched.run(*words, *slow, "--set", "replay.steps=10"))
    assert [row["policy"] for row in document["plans"] if row["twin_of"] is None] == ["lb-bsp"]


def test_nothing_was_unpickled_in_any_of_these(measured: list[Run], watched: Watched) -> None:
    watched.require_nothing(processes=12)
