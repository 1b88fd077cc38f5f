"""``steelyard adaptive score`` on few runs: the document, the tables, the two lots of runs; and mistakes in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steelyard.policies import policy_from_text
from steelyard.runner.adaptive.clairvoyants import bound_s, steps_s
from steelyard.runner.adaptive.scoring import STATIC, Best, Outcome, contestants, figures, outcome, still_s
from steelyard.runner.adaptive.worlds import FAMILIES, RULES, worlds
from steelyard.runner.cli import run
from steelyard.sim.disturbances import gone_at
from steelyard.sim.spec import Scenario

Capture = pytest.CaptureFixture[str]


def _events(purpose: str, seed: int) -> list[str]:
    return [scenario.model_dump_json() for _, scenario in worlds(purpose, seed, 2)]  # type: ignore[arg-type]


def test_runs_repeat_and_the_two_lots_share_none() -> None:
    assert _events("held out", 3) == _events("held out", 3)
    assert not set(_events("held out", 3)) & set(_events("development", 3))
    assert not set(_events("held out", 3)) & set(_events("held out", 4))


def test_every_family_has_what_it_is_named_for() -> None:
    for family, scenario in worlds("development", 5, 3):
        kinds = {each.kind for each in scenario.disturbances}
        lost = max(len(gone_at(scenario.disturbances, step)) for step in range(scenario.sampling.steps))
        machines = [len(node.devices) for node in scenario.cluster.nodes]
        assert len(scenario.cluster.devices) >= 4
        assert len(scenario.disturbances) > 0
        if family.name in ("loss", "machine"):
            assert lost == 1 if family.name == "loss" else lost in machines
        else:
            assert lost == 0
            assert kinds == ({"drift"} if family.name == "drift" else {"slowdown"})


def _calm() -> Scenario:
    (_, scenario), *_ = worlds("development", 2, 1)
    short = scenario.sampling.model_copy(update={"steps": 20})
    return scenario.model_copy(update={"sampling": short, "disturbances": []})


def test_where_nothing_happens_the_exact_split_is_the_clairvoyant() -> None:
    scenario = _calm()
    best = Best.of(scenario, "makespan-adaptive")
    found = outcome(scenario, contestants()["static (makespan)"], best)
    assert (found.share, found.bound, found.after) == (pytest.approx(1.0, rel=1e-9),) * 3
    assert (found.changes, found.price_s, found.run_s) == (0, 0.0, found.still_s)
    assert (found.over_static, found.static_s) == (pytest.approx(0.0), pytest.approx(found.run_s))
    assert found.gap >= 0
    assert outcome(scenario, contestants()["makespan-adaptive"], best).share == pytest.approx(1.0, rel=1e-9)


def test_figures_are_of_all_outcomes() -> None:
    one = Outcome(10.0, 12.0, 9.0, 9.5, 1.0, 1.0, 2, static_s=15.0, work_s=8.0)
    other = Outcome(20.0, 15.0, 10.0, 12.0, 0.8, 1.0, 4, static_s=23.0, work_s=8.0)
    found = figures([one, other])
    assert (found["worst"], found["bound_worst"], found["after_worst"]) == (0.5, 0.6, 0.8)
    assert found["within_tenth"] == 0.5
    assert (found["changes"], found["most_changes"], found["not_worth"]) == (3.0, 4.0, 1.0)
    assert found["worst_loss"] == 0.25
    assert found["against_still"] == 0.9
    assert (found["over_static"], found["over_static_worst"]) == (-0.25, pytest.approx(-1 / 6, abs=1e-4))
    assert (found["gap_median"], found["gap_worst"]) == (pytest.approx((0.25 + 1.5) / 2), 1.5)


def test_rows_name_parameters_that_are_not_the_defaults() -> None:
    for label, policy in contestants().items():
        if label != STATIC:
            assert policy_from_text(label) == policy, "the label is what --policy takes"


def test_who_is_bound_is_between_the_free_one_and_the_static_split() -> None:
    """Its plans hold the static split's, and it changes for a price only: in every family."""
    static = contestants()["static (makespan)"]
    for _, scenario in worlds("development", 3, 1):
        free = sum(steps_s(scenario, [static])[1:])
        bound = bound_s(scenario, [static])
        assert free <= bound * (1 + 1e-9)
        assert bound <= still_s(scenario, static) * (1 + 1e-9)


@pytest.mark.slow
def test_tune_compares_parameters_on_development_runs(capsys: Capture) -> None:
    assert run(["adaptive", "tune", "-p", "lb-bsp", "--each", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["tried"] == "defaults"
    assert len({row["tried"] for row in rows}) == len(rows) >= 5
    assert all(0 < row["p10 %"] <= 100 for row in rows)


def test_tune_names_the_policies_it_knows(capsys: Capture) -> None:
    assert run(["adaptive", "tune", "-p", "makespan"]) == 2
    assert "lb-bsp" in capsys.readouterr().err


@pytest.mark.slow
def test_score_judges_everybody_on_every_family(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "adaptive.json"
    assert run(["adaptive", "score", "--each", "1", "--out", str(out)]) == 0
    table, document = capsys.readouterr().out, json.loads(out.read_text())
    assert document["made_by"] == "steelyard adaptive score --seed 11 --each 1"
    assert document["scenarios"] == len(FAMILIES)
    assert document["rows"][0]["over_static"] == pytest.approx(0.0)
    assert [row["policy"] for row in document["rows"]] == list(contestants())
    assert [each["family"] for each in document["families"]] == [family.name for family in FAMILIES]
    for row in document["rows"]:
        assert 0 < row["worst"] <= row["p10"] <= row["median"]
        assert row["most_changes"] <= RULES["at_most"]
        assert row["gap_median"] > 0
        assert row["policy"] in table


@pytest.mark.parametrize("arguments", [["--each", "0"], ["--seed", "-1"], ["--weights", "x"]])
def test_a_mistake_is_bad_input(arguments: list[str], capsys: Capture) -> None:
    assert run(["adaptive", "score", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err
