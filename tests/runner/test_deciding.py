"""Decision times: measured beside the run, and without any influence on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from steelyard.policies import make_policy
from steelyard.runner.cli import run
from steelyard.runner.deciding import decided
from steelyard.sim.engine import simulate
from steelyard.sim.spec import load_scenario
from steelyard.sim.view import Fixed

QUICK = ["sampling.steps=3", "sampling.launches=2"]


@pytest.mark.parametrize("name", ["makespan", "attention", "grid"])
def test_a_policy_that_was_timed_gives_the_very_same_run(name: str) -> None:
    scenario = load_scenario("mixed-gpus", QUICK)
    policy = make_policy(name)
    made, seconds = decided(scenario, policy)
    assert isinstance(made, Fixed)
    assert seconds > 0
    one, other = simulate(scenario, made), simulate(scenario, policy)
    assert (one.manifest, one.summary, one.plan) == (other.manifest, other.summary, other.plan)


def test_a_policy_that_is_asked_again_stays_a_policy() -> None:
    scenario, policy = load_scenario("straggler-mid-run"), make_policy("lb-bsp")
    assert decided(scenario, policy)[0] is policy


def test_simulate_tells_how_long_each_policy_thought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = [word for setting in QUICK for word in ("--set", setting)]
    assert run(["simulate", "mixed-gpus", "-p", "uniform,makespan", *words, "--json"]) == 0
    said = capsys.readouterr()
    assert "decision ms" in said.err
    assert "decision" not in said.out  # equal questions have equal bytes for an answer
