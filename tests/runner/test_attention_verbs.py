"""The verbs of ``steelyard attention`` on few clusters: documents, files, tables; and mistakes in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from steelyard.policies import make_policy
from steelyard.policies.attention_trained import Weights
from steelyard.runner.attention.graph_worlds import LARGE, SMALL
from steelyard.runner.attention.layers import EXACT_CUT, layer_contestants, layer_families, layer_worlds
from steelyard.runner.attention.operators import BEST_KNOWN, EXACT_PLACEMENT, cutting_contestants, operator_contestants
from steelyard.runner.attention.scoring import EXACT, contestants, tuned
from steelyard.runner.attention.tuning import TUNED
from steelyard.runner.attention.worlds import FAMILIES
from steelyard.runner.cli import run

Capture = pytest.CaptureFixture[str]


def test_train_prints_weights_that_the_policy_reads(capsys: Capture) -> None:
    assert run(["attention", "train", "--seed", "1", "--worlds", "8", "--steps", "2"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["made_by"] == "steelyard attention train --seed 1 --worlds 8 --steps 2"
    assert Weights.parse(document).document()["query"] == document["query"]
    assert said.err.startswith("step 0: ")


def test_train_writes_the_file_that_it_would_print(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["attention", "train", "--worlds", "8", "--steps", "1"]
    assert run([*arguments, "--out", str(tmp_path / "weights.json")]) == 0
    assert capsys.readouterr().out == ""
    assert run(arguments) == 0
    assert (tmp_path / "weights.json").read_text() == capsys.readouterr().out


def test_tune_gives_parameters_that_the_policies_take(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "tuned.json"
    assert run(["attention", "tune", "--worlds", "4", "--trials", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    document = json.loads(out.read_text())
    assert document["made_by"] == "steelyard attention tune --seed 0 --worlds 4 --trials 2"
    assert tuple(document["policies"]) == TUNED["split"]
    for name, found in document["policies"].items():
        make_policy(name, found["parameters"])
        assert found["loss"] >= 0


def test_layers_are_tuned_on_clusters_of_their_own(capsys: Capture) -> None:
    assert run(["attention", "tune", "--layers", "--worlds", "4", "--trials", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["made_by"] == "steelyard attention tune --seed 0 --worlds 4 --trials 2 --layers"
    assert tuple(document["policies"]) == TUNED["layers"]
    for name, found in document["policies"].items():
        make_policy(name, found["parameters"])
    training, held_out = (layer_worlds(purpose, 0, 2) for purpose in ("training", "held out"))
    assert not {each.model_dump_json() for _, each in training} & {each.model_dump_json() for _, each in held_out}


def test_operators_are_tuned_on_graphs(capsys: Capture) -> None:
    assert run(["attention", "tune", "--operators", "--worlds", "4", "--trials", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["made_by"] == "steelyard attention tune --seed 0 --worlds 4 --trials 2 --operators"
    assert tuple(document["policies"]) == TUNED["operators"]
    for name, found in document["policies"].items():
        make_policy(name, found["parameters"])


@pytest.mark.slow
def test_operators_are_held_against_the_best_placement(
    tmp_path: Path, capsys: Capture, module_at: Callable[[str], ModuleType]
) -> None:
    """Alone, so that the file holds nothing else; the README would show every policy."""
    out = tmp_path / "score.json"
    counts = ["--each", "0", "--layers-each", "0", "--operators-each", "1"]
    assert run(["attention", "score", *counts, "--out", str(out)]) == 0
    table, document = capsys.readouterr().out, json.loads(out.read_text())
    assert "rows" not in document
    small, large = document["operators"]["small"], document["operators"]["large"]
    assert small["scenarios"] == small["proven"] == len(SMALL)
    assert large["scenarios"] == len(LARGE)
    shown = "\n".join(module_at("bench/sections.py").operator_lines(document["operators"]))
    uncut, cut = (make(tuned()["attention-operators"]) for make in (operator_contestants, cutting_contestants))
    for found, best in ((small, EXACT_PLACEMENT), (large, BEST_KNOWN)):
        shares = {row["policy"]: row for row in found["rows"]}
        assert list(shares) == [*uncut, *cut, best]
        assert shares[best]["worst"] == 1.0
        assert all(shares[label]["median"] <= 1 + 2e-4 for label in uncut)
        assert shares["attention-operators"]["median"] >= shares["attention-operators, one head"]["median"]
        assert all(policy in table for policy in shares)
        assert all(f"| {policy} |" in shown for policy in shares)
    assert all(row["gap_median"] >= 0 for row in [*small["rows"], *large["rows"]] if row["gap_median"] is not None)


@pytest.mark.slow
def test_layers_are_held_against_the_exact_cut(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "score.json"
    counts = ["--each", "1", "--layers-each", "1", "--operators-each", "0"]
    assert run(["attention", "score", *counts, "--out", str(out)]) == 0
    table, layers = capsys.readouterr().out, json.loads(out.read_text())["layers"]
    assert layers["scenarios"] == len(layer_families()) == len(layers["families"])
    shares = {row["policy"]: row for row in layers["rows"]}
    assert list(shares) == list(layer_contestants(tuned()["attention-layers"]))
    assert shares[EXACT_CUT]["worst"] == 1.0
    assert shares["attention-layers"]["median"] >= shares["attention-layers, one head"]["median"]
    assert all(policy in table for policy in shares)


def test_score_compares_every_contestant_on_every_family(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "score.json"
    counts = ["--each", "1", "--layers-each", "0", "--operators-each", "0"]
    assert run(["attention", "score", *counts, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["scenarios"] == len(FAMILIES)
    assert [row["policy"] for row in document["rows"]] == list(contestants())
    assert [each["family"] for each in document["families"]] == [family.name for family in FAMILIES]
    for row in document["rows"]:
        assert 0 <= row["worst"] <= row["p10"] <= row["median"]
        assert row["policy"] in table
    gaps = {row["policy"]: row["gap_median"] for row in document["rows"]}
    assert 0 <= gaps[EXACT] <= min(gap for gap in gaps.values() if gap is not None)


def test_score_keeps_tables_out_of_the_document(capsys: Capture) -> None:
    assert run(["attention", "score", "--each", "1", "--layers-each", "0", "--operators-each", "0", "--json"]) == 0
    said = capsys.readouterr()
    made = "steelyard attention score --seed 7 --each 1 --layers-each 0 --operators-each 0"
    assert json.loads(said.out)["made_by"] == made
    assert "median %" in said.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train", "--worlds", "7"], "--worlds"),
        (["train", "--steps", "0"], "--steps"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--steps", "many"], "--steps"),
        (["tune", "--worlds", "3"], "--worlds"),
        (["tune", "--trials", "0"], "--trials"),
        (["tune", "--layers", "--operators"], "--layers"),
        (["score", "--each", "-1"], "--each"),
        (["score", "--each", "0", "--layers-each", "0", "--operators-each", "0"], "--each"),
        (["score", "--weights", "x"], "--weights"),
        (["teach"], "teach"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], problem: str, capsys: Capture) -> None:
    assert run(["attention", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("steelyard: ")
    assert problem in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["train", "tune", "score"])
def test_a_folder_is_refused_before_the_work(verb: str, tmp_path: Path, capsys: Capture) -> None:
    assert run(["attention", verb, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("steelyard: ")
    assert "--out" in said.err
    assert "directory" in said.err
    assert said.err.count("\n") == 1
