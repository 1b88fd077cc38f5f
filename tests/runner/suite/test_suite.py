"""Suites: what a file may say, what is skipped and why, what is kept when it is cut short; one small one for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w
from steelyard.policies import policy_from_text
from steelyard.results.errors import InputError
from steelyard.results.pooled import CaseResult
from steelyard.results.record import digest
from steelyard.runner.calibrate import Tick
from steelyard.runner.cli import run
from steelyard.runner.suite.cases import SHIPPED, Case, load_suite, moved_splits, runnable
from steelyard.runner.suite.run import other_versions, read_case, run_suite
from steelyard.sim.spec import Scenario


@contextmanager
def no_bar(title: str) -> Iterator[Tick]:
    yield lambda done, total: None


def test_shipped_suites_are_valid_and_their_policies_are_known() -> None:
    for name in SHIPPED:
        for case in load_suite(name).cases:
            assert all(policy_from_text(text) for text in case.policies)


def test_the_full_suite_is_as_wide_as_it_must_be() -> None:
    cases = load_suite("full").cases
    assert {case.family for case in cases} >= {"bert", "gpt-2", "llama"}
    sizes = {len(each["lanes"]) for each in load_suite("full").clusters.values()}
    assert sizes >= {2, 3, 4, 6}
    assert sum(len(case.policies) + len(case.moved) for case in cases) >= 24
    plans = [text for case in cases for text in case.policies]
    assert any("data=2, pipeline=2" in text for text in plans), "a hybrid"
    assert any("zero=1" in text for text in plans)
    assert {schedule for schedule in ("gpipe", "1f1b", "interleaved") if any(schedule in text for text in plans)} == {
        "gpipe",
        "1f1b",
        "interleaved",
    }
    assert any("disturbances" in case.settings and case.settings.get("rebalance") for case in cases), "adaptive"
    wired = [each for cluster in load_suite("full").clusters.values() for each in cluster.get("hosts", ())]
    assert any(host.get("link_mbit_per_s") for host in wired), "links held back"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": []}, "cases"),
        ({"cases": [{"name": "a", "family": "b", "workload": {}}]}, "has no plans"),
        ({"cases": [{"name": "a", "family": "b", "workload": {}, "moved": [1], "cluster": "x"}]}, "is no cluster here"),
        ({"cases": [{"name": "a", "family": "b", "workload": {}, "moved": [1]}] * 2}, "used twice"),
        ({"colour": 1}, "colour"),
        ({"cases": [{"name": "../a", "family": "b", "workload": {}, "moved": [1]}]}, "name"),
        ({"cases": [{"name": "..", "family": "b", "workload": {}, "moved": [1]}]}, "name"),
        ({"name": "x/../../y"}, "name"),
    ],
)
def test_a_mistake_in_a_suite_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    case = {"name": "a", "family": "b", "workload": {}, "moved": [1]}
    (tmp_path / "s.toml").write_text(tomli_w.dumps({"name": "s", "cases": [case], **change}))
    with pytest.raises(InputError, match=message):
        load_suite(str(tmp_path / "s.toml"))


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_a_result_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "case.json").write_text(text)
    with pytest.raises(InputError, match="is no result of this version"):
        read_case(tmp_path, "digest")


def test_cases_of_unlike_versions_are_told() -> None:
    one, other = (CaseResult(name=name, family="bert", code=code) for name, code in (("a", "1234"), ("b", "")))
    assert other_versions([one, one.model_copy(update={"name": "c"})]) == []
    (note,) = other_versions([one, other])
    assert note == "not one version measured all cases: a by 1234; b by an unknown version"


def test_no_such_suite() -> None:
    with pytest.raises(InputError, match="no such suite"):
        load_suite("huge")


def test_moved_splits_keep_the_batch_and_go_both_ways(tiny_scenario: Scenario) -> None:
    found, skipped = moved_splits(tiny_scenario, [-2, 2, 500])
    assert list(skipped) == ["moved 500"]
    splits = [policy.allocate(None).split() for policy in found.values()]  # type: ignore[arg-type]  # fixed plans
    assert all(sum(split.values()) == tiny_scenario.workload.global_batch for split in splits)
    assert splits[0]["full"] == splits[1]["full"] + 4


def test_a_plan_that_lanes_cannot_run_is_skipped_with_its_reason(tiny_scenario: Scenario) -> None:
    case = Case(name="a", family="b", workload={}, policies=["uniform", "grid(tensor=2)"])
    policies, skipped = runnable(tiny_scenario, case)
    assert len(policies) == 1
    assert list(skipped) == ["grid(tensor=2)"]
    assert skipped["grid(tensor=2)"]


def test_options_that_a_suite_does_not_take_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "--suite", "small", "-p", "uniform"]) == 2
    assert "--suite: takes no --policy" in capsys.readouterr().err
    assert run(["replay"]) == 2
    assert "SCENARIO" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_suite_is_measured_whole_and_not_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "--suite", "small", "--json", "--runs", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["whole"]
    assert document["plan_count"] >= 3
    assert document["coverage_count"] == 2 * document["plan_count"]
    assert {plan["case"] for plan in document["plans"]} == {"bert-splits"}
    assert Path(document["report"]).is_file()
    assert not document["judged"]
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert {line["study"] for line in history} == {f"suite-small/runs/{document['cases'][0]['folder']}"}
    assert {line["scenario"] for line in history} == {"bert-splits"}
    (done, nowhere) = document["cases"]
    assert "grid(tensor=2)" in done["skipped"]
    assert "there is no core 60000" in nowhere["skipped"]["all plans"]  # a core that no host has
    study = tmp_path / "suite-small" / "runs" / done["folder"]
    sealed = json.loads((study / "predictions.json").read_text())
    assert sealed["sha256"] == digest(sealed["predictions"]) == done["predictions_sha256"]
    assert json.loads((tmp_path / "suite-small" / "suite.json").read_text()) == document

    said: list[str] = []
    suite = load_suite("small")
    again = run_suite(suite, tmp_path, report=said.append, bar=no_bar)
    assert "complete since" in said[0]
    assert not [line for line in said if line.startswith("launch")]  # what could not be had is tried again, that is all
    assert again.document()["cases"][0] == done
    assert again.skipped == document["skipped"]
    # Another seed is another case; out of budget, nothing is begun and what is missing is said.
    assert read_case(tmp_path / "suite-small" / "bert-splits", suite.digest(suite.cases[0], 1)) is None
    short = run_suite(suite, tmp_path, budget_s=1.0, bar=no_bar)
    assert not short.whole
    assert short.notes == ["the budget ended before 1 of 2 cases"]
    assert short.pooled == again.pooled


def test_a_case_whose_worker_died_is_a_failure_and_no_skipped_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers find a torch that cannot be imported: they die, as any may."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise SystemExit('this torch is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    case = load_suite("small").cases[0].model_dump(exclude={"settings"})
    (tmp_path / "s.toml").write_text(tomli_w.dumps({"name": "s", "cases": [case]}))
    assert run(["replay", "--suite", str(tmp_path / "s.toml"), "--json", "--runs", str(tmp_path)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["whole"]
    assert document["skipped"] == {}
    assert "this torch is broken" in document["failed"]["bert-splits"]
    assert read_case(tmp_path / "suite-s" / "bert-splits", document["cases"][0]["digest"]) is None
