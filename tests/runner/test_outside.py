"""Step times of a cluster elsewhere come back, and its next plan is predicted better: the fit, and the commands."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.results.store import read_run
from steelyard.runner.cli import run
from steelyard.runner.export.nearest import step_s
from steelyard.runner.outside import LINKS, Row, kinds, refine_outside, scaled, shrunk
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, load_scenario, scenario_from
from steelyard.sim.view import Fixed

TRUE = {"new-0": math.log(1.4), "old-0": math.log(0.75)}
"""What nobody knows of the cluster but the pretended measurement."""
SPLITS = ([12, 12], [16, 8], [8, 16], [20, 4])
UNSEEN = [6, 18]


def document() -> dict[str, Any]:
    """One machine with a device of either kind."""
    figures = {"memory_gib": 80.0, "memory_bandwidth_gb_per_s": 2000.0}
    devices = [
        {**figures, "name": name, "count": 1, "peak_tflops": {"bf16": peak, "fp32": peak / 4}}
        for name, peak in (("new-0", 300.0), ("old-0", 150.0))
    ]
    link = {"name": "pcie", "latency_us": 5.0, "bandwidth_gb_per_s": 20.0}
    return {
        "name": "elsewhere",
        "cluster": {"nodes": [{"name": "one", "link": link, "devices": devices}]},
        "workload": {"model": "gpt2-small", "global_batch": 24, "sequence_length": 128, "dtype": "bf16"},
        "sampling": {"launches": 2, "steps": 3, "search_launches": 1},
    }


def split(scenario: Scenario, sizes: list[int]) -> Plan:
    return Plan.data_parallel(scenario.workload, dict(zip(scenario.cluster.by_name, sizes, strict=True)))


def off(scenario: Scenario, truth: Scenario, sizes: list[int]) -> float:
    plan = split(scenario, sizes)
    return abs(math.log(step_s(scenario, plan) / step_s(truth, plan)))


def imported(folder: Path, truth: Scenario, sizes: list[int], factors: tuple[float, ...]) -> list[str]:
    """A run of step times that a split takes in truth, times a factor for each launch, by ``steelyard import``."""
    name, plan = "-".join(map(str, sizes)), split(truth, sizes)
    rows = [f"{launch},{factor * step_s(truth, plan)}" for launch, factor in enumerate(factors) for _ in range(5)]
    (folder / f"{name}.csv").write_text("\n".join(["launch,step_time_s", *rows]))
    (folder / f"{name}.json").write_text(json.dumps(plan.document()))
    out = folder / f"run-{name}"
    words = ["import", str(folder / f"{name}.csv"), "--scenario", str(folder / "s.toml"), "--label", name]
    assert run([*words, "--plan", str(folder / f"{name}.json"), "--out", str(out)]) == 0
    return [str(out / each) for each in ("00-predicted", "01-measured")]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Scenario:
    (tmp_path / "s.toml").write_text(tomli_w.dumps(document()))
    return scenario_from(document())


def test_measured_steps_make_the_next_plan_s_prediction_better(
    elsewhere: Scenario, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CSV, import, refine, simulate: by the commands, with a plan that refined nothing."""
    truth = elsewhere.model_copy(update={"cluster": scaled(elsewhere.cluster, TRUE)})
    noise = ((1.0, 1.01), (0.99, 1.0), (1.0, 1.02), (0.995, 1.005))
    runs = [word for sizes, each in zip(SPLITS, noise, strict=True) for word in imported(tmp_path, truth, sizes, each)]
    capsys.readouterr()
    words = ["calibrate", str(tmp_path / "s.toml"), "--runs", str(tmp_path / "runs"), "--json"]
    assert run([*words, *(word for each in runs for word in ("--from-runs", each))]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["factors"]) == {"new-0", "old-0"}
    assert told["held_out_after_percent"] < told["held_out_before_percent"] / 3
    refined = load_scenario(told["path"])
    assert off(refined, truth, UNSEEN) < off(elsewhere, truth, UNSEEN) / 3
    assert set(refined.cluster.fitted_plans) == {split(elsewhere, sizes).sha256 for sizes in SPLITS}
    plan = tmp_path / "unseen.json"
    plan.write_text(json.dumps(split(elsewhere, UNSEEN).document()))
    assert run(["simulate", told["path"], "--plan", str(plan), "--runs", str(tmp_path / "runs"), "--json"]) == 0
    (predicted,) = json.loads(capsys.readouterr().out)["runs"]
    measured_s = step_s(truth, split(truth, UNSEEN))
    assert predicted["summary"]["step_time_s"]["p50"] == pytest.approx(measured_s, rel=0.03)


def test_too_few_plans_and_other_workloads_are_refused(elsewhere: Scenario, tmp_path: Path) -> None:
    runs = [read_run(Path(word)) for sizes in SPLITS[:2] for word in imported(tmp_path, elsewhere, sizes, (1.0,))]
    with pytest.raises(InputError, match="2 plans were measured"):
        refine_outside(elsewhere, runs)
    other = elsewhere.model_copy(update={"workload": elsewhere.workload.model_copy(update={"sequence_length": 64})})
    with pytest.raises(InputError, match="another workload"):
        refine_outside(other, runs)


def test_runs_that_tell_communication_have_a_factor_for_the_links(elsewhere: Scenario) -> None:
    """Events of each device's own work, as traces have them; nothing of it is hidden behind other work here."""
    truth = elsewhere.model_copy(update={"cluster": scaled(elsewhere.cluster, {**TRUE, LINKS: math.log(2.0)})})
    runs = []
    for sizes in SPLITS:
        plan = split(elsewhere, sizes).model_copy(update={"overlap": False})
        made = simulate(truth, Fixed(plan))
        own = made.manifest.model_copy(update={"kind": "measured", "scenario": elsewhere.model_dump(mode="json")})
        runs.append(dataclasses.replace(made, manifest=own))
    found = refine_outside(elsewhere, runs)
    wanted = {**{name: math.exp(each) for name, each in TRUE.items()}, LINKS: 2.0}
    assert found.factors == pytest.approx(wanted, rel=0.05)
    assert [row["what"] for row in found.rows()] == ["new-0", "old-0", LINKS, "each plan held out"]


# ---- the fit, by itself ----


def rows(theta: list[float], noise: list[float]) -> list[Row]:
    """Times that are exact products of factors, each plan leaning on others of them, but for some noise."""
    random, found = np.random.default_rng(0), []
    for number, error in enumerate(noise):
        gradient = random.dirichlet(np.ones(len(theta)))
        value = float(gradient @ np.array(theta)) + error
        found.append(Row(str(number), gradient, value, value))
    return found


@given(theta=st.lists(st.floats(0.1, 0.5), min_size=2, max_size=3))
def test_what_exact_times_say_is_learned(theta: list[float]) -> None:
    assert shrunk(rows(theta, [0.0] * 12), len(theta)) == pytest.approx(theta, abs=0.02)


@given(sign=st.lists(st.sampled_from((-1.0, 1.0)), min_size=12, max_size=12), count=st.integers(1, 3))
def test_factors_are_never_larger_than_what_was_seen(sign: list[float], count: int) -> None:
    """Shrinking goes towards none, by norm."""
    noisy = rows([0.0] * count, [0.05 * each for each in sign])
    assert np.linalg.norm(shrunk(noisy, count)) <= 0.05 * math.sqrt(len(sign))


def test_nothing_is_learned_where_nothing_is_off() -> None:
    assert shrunk(rows([0.0, 0.0], [0.0] * 8), 2) == pytest.approx([0.0, 0.0])


def test_devices_that_are_alike_are_one_kind_and_links_scale_too(elsewhere: Scenario) -> None:
    assert list(kinds(elsewhere.cluster)) == ["new-0", "old-0"]
    slower = scaled(elsewhere.cluster, {"old-0": math.log(2.0), LINKS: math.log(4.0)})
    assert [device.slowdown for device in slower.devices] == pytest.approx([1.0, 2.0])
    assert slower.nodes[0].link.bandwidth_gb_per_s == pytest.approx(5.0)
    assert slower.nodes[0].link.latency_us == pytest.approx(20.0)
