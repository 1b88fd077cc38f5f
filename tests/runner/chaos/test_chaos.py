"""Chaos: what is drawn, what is predicted of it, what is found on the host; and a whole storm in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.runner.chaos.chaos import answers, lost_results
from steelyard.runner.chaos.chaos import chaos as storm
from steelyard.runner.chaos.drill import Struck
from steelyard.runner.chaos.forecast import Costs, forecast, noticed_s, steps_for
from steelyard.runner.chaos.leftovers import Sightings, left_behind
from steelyard.runner.chaos.strikes import Strike, count, draw
from steelyard.runner.cli import run
from steelyard.sim.disturbances import Disturbance, Rebalance
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed

counts = st.integers(0, 12)


@given(kills=counts, hangs=counts, members=st.integers(1, 5), seed=st.integers(0, 99))
def test_so_many_are_drawn_and_equal_seeds_draw_the_same(kills: int, hangs: int, members: int, seed: int) -> None:
    strikes = draw(kills, hangs, members, seed)
    assert strikes == draw(kills, hangs, members, seed)
    assert (count(strikes, "kill"), count(strikes, "hang")) == (kills, hangs)
    assert all(strike.member < members and 0 <= strike.place < 1 for strike in strikes)
    assert not any(strike.starting for strike in strikes[:1])


def test_seeds_differ() -> None:
    assert draw(5, 2, 2, 0) != draw(5, 2, 2, 1)
    strikes = draw(200, 100, 3, 0)
    assert {strike.member for strike in strikes} == {0, 1, 2}
    assert 0.1 < sum(strike.starting for strike in strikes) / 300 < 0.3


costs = st.builds(Costs, st.floats(0.01, 1.0), st.floats(0.001, 2.0), st.floats(0.5, 20.0))
storms = st.builds(draw, counts, counts, st.integers(1, 4), st.integers(0, 999))


def by_hand(strikes: Sequence[Strike], costs: Costs, every: int, steps: int, timeout_s: float) -> tuple[float, float]:
    """Wall time and steps done in vain, launch by launch: what the simulator does with arrays."""
    wall_s, lost, done, started = 0.0, 0.0, 0, False
    segment_s = every * costs.step_s + costs.checkpoint_s
    for strike in strikes:
        needed_s = (steps - done) // every * segment_s
        after_s = strike.after_s(costs.start_s, every * costs.step_s)
        if not strike.starting and after_s >= needed_s:
            break
        if strike.starting:
            wall_s += after_s
        else:
            wall_s += after_s + (costs.start_s if started else 0.0)
            kept = int(after_s / segment_s)
            lost += after_s - kept * segment_s
            done += kept * every
        started = True
        wall_s += noticed_s(strike.kind, timeout_s)
    return wall_s + (costs.start_s if started else 0.0) + (steps - done) // every * segment_s, lost


@given(strikes=storms, costs=costs, every=st.integers(1, 50), timeout_s=st.floats(1.0, 60.0))
def test_the_forecast_is_what_one_adds_up_by_hand(
    strikes: list[Strike], costs: Costs, every: int, timeout_s: float
) -> None:
    steps = steps_for(strikes, costs, every, 1.5)
    found = forecast(strikes, costs, every=every, steps=steps, timeout_s=timeout_s)
    wall_s, lost_s = by_hand(strikes, costs, every, steps, timeout_s)
    assert found.wall_s == pytest.approx(wall_s)
    assert found.recompute_s == pytest.approx(lost_s, abs=1e-6)
    parts = found.useful_s + found.checkpoint_s + found.recompute_s + found.down_s
    assert parts == pytest.approx(found.wall_s)
    assert found.useful_s == pytest.approx(steps * costs.step_s)


@given(strikes=storms, costs=costs, every=st.integers(1, 50))
def test_the_training_is_long_enough_for_the_last_fault(strikes: list[Strike], costs: Costs, every: int) -> None:
    steps = steps_for(strikes, costs, every, 1.0)
    longer = forecast(strikes, costs, every=every, steps=steps + every, timeout_s=9.0)
    shorter = forecast(strikes, costs, every=every, steps=steps, timeout_s=9.0)
    assert longer.down_s == pytest.approx(shorter.down_s)  # no fault came after the end
    assert shorter.down_s == pytest.approx(forecast(strikes, costs, every=every, steps=2 * steps, timeout_s=9.0).down_s)


def test_a_hang_takes_longer_to_notice_than_a_kill() -> None:
    kill = Strike("kill", 0, False, 0.5)
    given = Costs(0.1, 0.1, 5.0)
    slow, quick = (forecast([each], given, every=5, steps=50, timeout_s=3.0) for each in (hang(kill), kill))
    assert slow.wall_s - quick.wall_s == pytest.approx(noticed_s("hang", 3.0) - noticed_s("kill", 3.0))


def hang(strike: Strike) -> Strike:
    return replace(strike, kind="hang")


def test_a_launch_behind_the_last_checkpoint_is_a_lost_result() -> None:
    good = [{"event": "launch", "attempt": 0, "step": 0}, {"event": "saved", "step": 5}]
    assert lost_results([*good, {"event": "launch", "attempt": 1, "step": 5}]) == []
    assert (
        lost_results([*good, {"event": "launch", "attempt": 1, "step": 10}]) == []
    )  # written, and killed in that breath
    (found,) = lost_results([*good, {"event": "launch", "attempt": 1, "step": 0}])
    assert "step 5 had been saved" in found


def test_each_fault_is_answered_by_the_next_one_in_the_journal() -> None:
    struck = [Struck(Strike("kill", 0, False, 0.5), "full", at) for at in (1.0, 10.0, 20.0)]
    faults = [{"at_s": 2.0, "lane": "full"}, {"at_s": 12.0, "lane": "sse"}]
    assert answers(struck, faults) == [(struck[0], faults[0]), (struck[1], faults[1])]


LISTEN = "import socket, sys; s = socket.create_server((sys.argv[1], 0)); print('ready', flush=True); sys.stdin.read()"


@contextmanager
def listening(address: str, marker: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(marker)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(("address", "reachable"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_orphan_and_its_listener_are_found(tmp_path: Path, address: str, reachable: bool) -> None:
    """The checks can fail: a real process that should not be there, listening where others can reach it."""
    seen = Sightings(tmp_path)
    with listening(address, tmp_path) as process:
        seen.look(os.getpid())
        assert bool(seen.exposed) is reachable
        (found,) = left_behind(seen)
        assert f"process {process.pid} " in found
        assert f"listens at {address}:" in found
    assert left_behind(seen) == []


def test_a_file_that_was_left_is_found(tmp_path: Path) -> None:
    (tmp_path / "steelyard-abc").mkdir()
    assert left_behind(Sightings(tmp_path)) == [f"{tmp_path / 'steelyard-abc'} is still there"]


def on_another_machine(scenario: Scenario) -> Scenario:
    node = scenario.cluster.nodes[0]
    first = node.devices[0]
    assert first.lane is not None
    there = first.model_copy(update={"lane": first.lane.model_copy(update={"machine": 1})})
    nodes = [node.model_copy(update={"devices": [there, *node.devices[1:]]})]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def changed(scenario: Scenario, name: str) -> Scenario:
    """The scenario with something in it that no training has."""
    slower = Disturbance(kind="slowdown", device="full", from_step=2, factor=2.0)
    workload = scenario.workload.model_copy(update={"dtype": "fp16"})
    return {
        "disturbances": scenario.model_copy(update={"disturbances": [slower]}),
        "rebalance": scenario.model_copy(update={"rebalance": Rebalance(every_steps=5)}),
        "workload.dtype": scenario.model_copy(update={"workload": workload}),
        "cluster device full": on_another_machine(scenario),
        "pipelines.0": scenario,
    }[name]


def pipelined(scenario: Scenario) -> Fixed:
    """Two stages, one on each lane."""
    cuts = [(0, 1, "full"), (1, len(scenario.workload.layers), "sse")]
    stages = [{"first": first, "last": last, "replicas": [{"devices": [name]}]} for first, last, name in cuts]
    return Fixed(Plan.parse({"pipelines": [{"stages": stages, "micro_batches": [15, 15]}]}))


@pytest.mark.parametrize("path", ["disturbances", "rebalance", "workload.dtype", "cluster device full", "pipelines.0"])
def test_what_cannot_be_trained_is_refused_before_anything_is_begun(
    tiny_scenario: Scenario, tmp_path: Path, path: str
) -> None:
    scenario, said = changed(tiny_scenario, path), list[str]()
    policy = pipelined(scenario) if path == "pipelines.0" else make_policy("uniform")
    with pytest.raises(InputError) as caught:
        storm(scenario, policy, "uniform", tmp_path, kills=1, hangs=0, seed=0, report=said.append)
    assert caught.value.path == path
    assert caught.value.mend
    assert not said
    assert not list(tmp_path.glob("chaos-*"))


def test_disturbances_are_refused_before_the_lanes_are_asked_for(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, nothing written; the lanes of this folder were never calibrated."""
    slower = 'disturbances=[{kind="slowdown", device="full", from_step=2, factor=2.0}]'
    words = ["chaos", str(tiny_folder / "tiny.toml"), "--set", slower, "--runs", str(tiny_folder / "runs")]
    assert run(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("steelyard: disturbances: is simulated and replayed only (")
    assert not (tiny_folder / "runs").exists()


@pytest.mark.slow
def test_a_storm_in_small(calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five kills and two hangs: the same bytes, nothing lost, nothing left, whoever was struck was named."""
    words = ["chaos", str(calibrated / "tiny.toml"), "--kills", "5", "--hangs", "2", "--json"]
    short = ["--set", "replay.timeout_s=30", "--set", "training.checkpoint_every_steps=20"]
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "calibrations").symlink_to(calibrated / "runs" / "calibrations")
    code = run([*words, *short, "--runs", str(runs), "--out", str(tmp_path / "chaos.json")])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert code == 0, captured.err
    assert document == json.loads((tmp_path / "chaos.json").read_text())
    assert document["struck"] == {"kill": 5, "hang": 2}
    assert document["bit_identical"] is True
    for name in ("lost", "left_behind", "exposed_listeners"):
        assert document[name] == []
    assert document["misnamed"] == 0
    (folder,) = runs.glob("chaos-*")
    written = json.loads((folder / "forecast.json").read_text())
    rows = {row["what"]: row for row in document["predicted_against_measured"]}
    assert rows["goodput"]["predicted"] == written["goodput"]
    assert 0 < rows["goodput"]["measured"] < 1
    (journal,) = (folder / "disturbed").glob("train-*/journal.jsonl")
    first = json.loads(journal.read_text().splitlines()[0])
    assert written["written_utc"] <= first["when_utc"]
