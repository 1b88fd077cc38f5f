"""Comparison studies: several policies under several seeds, as a function and by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import policy_from_text
from steelyard.results.errors import InputError
from steelyard.results.significance import signed_rank_p
from steelyard.runner.cli import run
from steelyard.runner.listing import listing, more
from steelyard.runner.study import study
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario

NAMES = ["uniform", "makespan"]


def policies(names: list[str]) -> list[Any]:
    return [policy_from_text(name) for name in names]


def test_every_figure_is_that_of_single_runs(scenario: Scenario) -> None:
    found = study(scenario, policies(NAMES), seeds=6, seed=3)
    assert found.seeds == (3, 4, 5, 6, 7, 8)
    assert found.seeds_matter
    single = {
        name: [simulate(scenario, policy_from_text(name), seed=seed).summary for seed in found.seeds] for name in NAMES
    }
    for entry in found.entries:
        summaries = single[entry.standing.name]
        assert entry.throughputs == tuple(each.throughput_samples_per_s for each in summaries)
        assert entry.standing.mean == pytest.approx(sum(entry.throughputs) / 6)
        gaps = [100 * (each.step_time_s.p50 / each.lower_bound_step_time_s - 1) for each in summaries]
        assert entry.gap_percent == pytest.approx(sum(gaps) / 6)
    best, other = found.entries
    assert best.standing.mean > other.standing.mean
    assert other.standing.p_value == signed_rank_p(best.throughputs, other.throughputs)


def test_equal_policies_are_as_fast_and_never_called_slower(scenario: Scenario) -> None:
    same = policies(["throughput", "attention(speed=1.0)"])
    rows = study(scenario, same, seeds=6).rows()
    assert [row["verdict"] for row in rows] == ["best", "as fast"]
    assert [row["mean rank"] for row in rows] == [1.5, 1.5]


def test_without_noise_it_says_that_seeds_change_nothing(quiet_scenario: Scenario) -> None:
    found = study(quiet_scenario, policies(NAMES), seeds=3)
    assert not found.seeds_matter
    assert "seeds change nothing" in found.notes()[0]
    assert [row["verdict"] for row in found.rows()] == ["best", "slower, and no seed changes it"]


def test_too_few_seeds_are_said_to_be_too_few(scenario: Scenario) -> None:
    assert "too few" in study(scenario, policies(NAMES), seeds=4).notes()[1]
    assert len(study(scenario, policies(NAMES), seeds=6).notes()) == 1


def test_a_policy_without_a_plan_is_listed_with_its_reason(scenario: Scenario) -> None:
    names = ["makespan", "grid(pipeline=3)"]
    found = study(scenario, policies(names), seeds=2)
    assert [each.standing.name for each in found.entries] == ["makespan"]
    assert "there are 2" in found.infeasible["grid(pipeline=3)"]
    assert found.rows()[-1]["verdict"].startswith("no plan: ")
    none = study(scenario, policies([names[1], "grid(pipeline=4)"]), seeds=2)
    assert none.notes() == ["no policy has a plan"]
    assert len(none.rows()) == 2
    with pytest.raises(Infeasible, match="there are 2"):
        study(scenario, policies(names[1:]), seeds=2)


@pytest.mark.parametrize(
    ("names", "seeds", "problem"), [(NAMES, 0, "is 0"), (["uniform", "uniform"], 2, "twice"), ([], 2, "names none")]
)
def test_what_cannot_be_compared_is_one_line(scenario: Scenario, names: list[str], seeds: int, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        study(scenario, policies(names), seeds=seeds)


def test_the_command_prints_one_document_and_writes_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    assert run(["simulate", "stragglers", "-p", "uniform,makespan", "--seeds", "3", "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [len(each["throughput_by_seed"]) for each in document["policies"]] == [3, 3]
    assert document["policies"][0]["p_value"] is None
    assert "mean rank" in said.err
    assert list(tmp_path.iterdir()) == []
    assert run(["simulate", "stragglers", "-p", "uniform,uniform", "--seeds", "3"]) == 2
    assert "twice" in capsys.readouterr().err


def test_listed_policies_tell_parameters_ranges_and_defaults() -> None:
    entries = {each["name"]: each for each in listing("policies", Path("runs"))}
    assert more(entries["throughput"]) == {"parameters": "gamma = 1.0: 0 to 2"}
    grid = more(entries["grid"])["parameters"].splitlines()
    assert "data = 0, not searched" in grid
    assert "zero = 0: 0, 1, 2, 3" in grid
    assert "tensor = 1: 1 to 256, logarithmic" in grid
    assert "sequence_parallel = false: false, true" in grid
    for name, each in entries.items():
        assert each["summary"].endswith("."), name
        assert each["source"], name


def test_the_table_of_policies_shows_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert run(["list", "policies"]) == 0
    shown = capsys.readouterr().out
    assert "gamma = 1.0: 0 to 2" in shown
    assert "Megatron-LM" in shown
    assert run(["list", "links"]) == 0
    assert "parameters" not in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_the_only_policy_without_a_plan_is_one_line(as_json: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "stragglers", "-p", "grid(pipeline=250)", "--seeds", "3", *as_json]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("steelyard: ")
    assert "pipeline" in said.err
    assert said.err.count("\n") == 1
