"""The verb search: several objectives, several scenarios, pruning, figures; what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from steelyard.runner.cli import run
from steelyard.sim.bounds import lower_bound_s, work_bound_s
from steelyard.sim.spec import load_scenario
from steelyard.sim.view import View

QUICK = ["--set", "sampling.steps=3", "--set", "sampling.search_launches=2", "--workers", "0"]
PRICED = "mixed-gpus"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _search(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["search", *words, *QUICK, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_several_objectives_give_a_front_and_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    found = _search(capsys, PRICED, "--trials", "24", "--objective", "throughput,cost,memory_headroom", "--figures")
    assert found["objectives"] == {
        "throughput": "samples/s",
        "cost": "USD per million samples",
        "memory_headroom": "share of memory",
    }
    assert found["file"] == "front.toml"
    assert found["files"][: 1 + len(found["front"])] == [
        "front.toml",
        *(f"front-{number}.toml" for number in range(1, 1 + len(found["front"]))),
    ]
    assert all(Path(file).is_file() for file in found["files"])
    drawn = [Path(file) for file in found["files"] if file.endswith(".png")]
    assert {"history.png", "front.png"} <= {file.name for file in drawn}
    assert drawn[0].parent.parent == Path("runs/studies")
    assert drawn[0].parent.with_suffix(".journal").is_file(), "beside the study"
    assert run(["simulate", PRICED, "-p", "front-1.toml"]) == 0


def test_limits_and_importance_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["old-and-new", "--trials", "40", "--sampler", "random", "-p", "attention"]
    free = _search(capsys, *words, "--importance", "mdi")
    assert sum(free["importances"].values()) == pytest.approx(1)
    values = sorted(row["value"] for row in free["trials"] if row["value"] is not None)
    floor = (values[0] + values[-1]) / 2
    tight = _search(capsys, *words, "--limit", f"throughput={floor}", "--limit", "memory_headroom=0.001")
    assert {row["number"] for row in tight["trials"] if row["violation"] > 0} == {
        row["number"] for row in free["trials"] if row["value"] is not None and row["value"] < floor
    }
    assert tight["best"]["value"] == free["best"]["value"], "another study, and the same draws"


def test_every_row_tells_its_gap_to_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """Of splits by the bound of splits; beside plans of another kind, by the bound of all plans."""
    scenario = load_scenario(PRICED)
    batch = scenario.workload.global_batch
    splits = _search(capsys, PRICED, "--trials", "8", "-p", "uniform,makespan,throughput")
    step_s = batch / splits["best"]["value"]
    assert splits["best"]["gap_to_bound_percent"] == pytest.approx(
        100 * (step_s / lower_bound_s(View.of(scenario)) - 1)
    )
    words = ["--trials", "6", "-p", "makespan,cut-uniform,uniform", "--objective", "throughput,memory_headroom"]
    front = _search(capsys, PRICED, *words)["front"]
    assert len(front) > 1
    for row in front:
        step_s = batch / row["throughput"]
        assert row["gap_to_bound_percent"] == pytest.approx(100 * (step_s / work_bound_s(scenario) - 1))
    assert run(["search", PRICED, "--trials", "8", *QUICK]) == 0
    assert "gap to bound %" in capsys.readouterr().out


def test_a_robust_winner_over_scenarios_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["old-and-new", "two-gpus-one-box", "--trials", "16", "--seeds", "2", "--robust", "worst", "-o", "w.toml"]
    found = _search(capsys, *words)
    assert found["scenarios"] == ["old-and-new", "two-gpus-one-box"]
    assert found["robust"] == "worst"
    assert found["best"]["gap_to_bound_percent"] > 0
    assert found["best"]["value"] >= max(row["value"] for row in found["trials"] if row["value"] is not None)
    assert 'robust = "worst"' in Path("w.toml").read_text()
    again = _search(capsys, *words)
    assert again["search_trials_per_s"] == 0, "the same words are the same study"


def test_pruning_keeps_the_winner_and_says_how_many_it_gave_up(capsys: pytest.CaptureFixture[str]) -> None:
    whole = _search(capsys, "old-and-new", "--trials", "40", "--sampler", "random")
    pruned = _search(capsys, "old-and-new", "--trials", "40", "--sampler", "random", "--pruner", "bound")
    assert pruned["best"] == whole["best"]
    assert pruned["pruned"] > whole["pruned"] == 0
    assert run(["search", "old-and-new", "--trials", "40", "--sampler", "random", "--pruner", "bound", *QUICK]) == 0
    assert "given up early" in capsys.readouterr().out


def test_figures_are_beside_the_winner_where_the_study_is_in_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["old-and-new", "--trials", "48", "--storage", "sqlite:///s.db", "--figures", "-o", "mine.toml"]
    found = _search(capsys, *words)
    assert Path("mine/history.png").is_file()
    assert found["importances"]
    assert sum(found["importances"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["old-and-new", "--objective", "speed"], "objective"),
        (["old-and-new", "--robust", "worst"], "no effect"),
        (["old-and-new", "--objective", "throughput,memory_headroom", "--pruner", "median"], "pruner"),
        (["old-and-new", "--set", "objective.least_throughput_samples_per_s=1e9"], "limits"),
        (["old-and-new", "nowhere"], "no such scenario"),
        (["old-and-new", "--limit", "energy"], "--limit"),
        (["old-and-new", "--limit", "speed=3"], "limit"),
        (["old-and-new", "--importance", "guess"], "importance"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", *words, "--trials", "8", *QUICK]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steelyard:")]
    assert len(said) == 1
    assert named in said[0]
