"""The shipped scenarios: each asks a question, and what it predicts must not change unnoticed.

Where a change is meant, ``make baselines`` records them all anew, and the diff is reviewed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from steelyard.policies import policies_for
from steelyard.results.gate import read_baseline
from steelyard.runner.cli import run
from steelyard.sim.spec import load_scenario, read_document, shipped_names, shipped_text, simulated_names

BASELINES = Path(__file__).resolve().parents[2] / "results" / "baselines"
NAMES = simulated_names()
LANES = sorted(set(shipped_names("scenarios")) - set(NAMES) - {"demo"})
"""They need the lanes of a host, calibrated; the demo has tests of its own."""
FIRST = ("mixed-gpus", "old-and-new")
"""They came before the others, and have no policies of their own."""


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_the_baseline(name: str, tmp_path: Path) -> None:
    assert run(["simulate", name, "--runs", str(tmp_path / "runs")]) == 0
    assert run(["gate", str(tmp_path / "runs"), "--baseline", str(BASELINES / f"{name}.json")]) == 0


def test_every_baseline_is_of_a_shipped_scenario() -> None:
    assert {file.stem for file in BASELINES.glob("*.json")} == set(NAMES)
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_holds_every_policy_of_its_scenario(name: str) -> None:
    found = read_baseline(BASELINES / f"{name}.json").runs
    assert len(found) == len(policies_for(load_scenario(name)))
    assert all(entry.figures for entry in found.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FIRST])
def test_a_scenario_asks_a_question_and_says_how_to_answer_it(name: str) -> None:
    scenario, text = load_scenario(name), shipped_text("scenarios", name)
    assert scenario.summary.endswith("?")
    assert scenario.source
    assert scenario.name == name
    assert len(scenario.policies) >= 2
    assert f"# steelyard simulate {name}" in text


@pytest.mark.parametrize("name", LANES)
def test_a_scenario_of_lanes_says_what_it_needs_and_how_to_run_it(name: str, tmp_path: Path) -> None:
    document, text = read_document(name)[0], shipped_text("scenarios", name)
    assert document["summary"].endswith("?")
    assert document["name"] == name
    assert 3 <= len(document["cluster"]["lanes"]) <= 6
    assert max(core for lane in document["cluster"]["lanes"] for core in lane["cores"]) <= 1, "two cores must do"
    for verb in ("calibrate", "simulate", "replay"):
        assert f"# steelyard {verb} {name}" in text
    assert run(["simulate", name, "--runs", str(tmp_path)]) == 2, "nothing is predicted before the lanes are measured"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_a_scenario_are_right(name: str, tmp_path: Path) -> None:
    """Those that are given beside the first: other prices, links, rates."""
    text = shipped_text("scenarios", name)
    commands = [
        line.removeprefix("#").split()
        for line in text.splitlines()
        if re.match(r"#\s+steelyard (?!simulate \S+$)", line)
    ]
    quick = ["--set", "sampling.launches=1", "--set", "sampling.steps=2", "--runs", str(tmp_path)]
    for command, *words in commands:
        assert command == "steelyard"
        few = ["--set", "faults.runs=2"] if load_scenario(name).faults else []
        assert run([*words, *quick, *few]) == 0


def recorded(name: str, figure: str) -> dict[str, float]:
    """A figure of each policy of a scenario as the baseline has it, which the first test holds against the code."""
    return {label: entry.figures[figure] for label, entry in read_baseline(BASELINES / f"{name}.json").runs.items()}


def test_images_come_no_faster_than_they_are_decoded() -> None:
    rate = load_scenario("image-input").cluster.nodes[0].loader_samples_per_s
    for throughput in recorded("image-input", "throughput_samples_per_s").values():
        assert throughput == pytest.approx(rate, rel=1e-3)


def test_synchronising_less_often_and_pipelines_are_faster_over_slow_ethernet() -> None:
    found = recorded("slow-ethernet", "throughput_samples_per_s")
    (plain,) = (value for label, value in found.items() if "sync_every" not in label and "pipeline" not in label)
    assert len(found) == 4
    assert min(found.values()) == plain


def test_a_long_training_loses_time_to_failures_and_more_to_preemptions() -> None:
    failing, spot = recorded("failures-at-scale", "goodput"), recorded("spot-training", "goodput")
    assert 0.5 < max(spot.values()) < min(failing.values()) < 1
