"""Chaos: what is drawn, what is predicted of it, what is found on the host; and a whole storm in small."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.runner.chaos.blows import STARVED_CORES, victims_of
from steelyard.runner.chaos.chaos import answers, late, lost_results
from steelyard.runner.chaos.chaos import chaos as storm
from steelyard.runner.chaos.drill import Struck
from steelyard.runner.chaos.forecast import Costs, forecast, noticed_s, steps_for
from steelyard.runner.chaos.leftovers import Holding, Sightings, left_behind
from steelyard.runner.chaos.strikes import HANGS, KILLS, TOLD, Kind, Strike, count, draw, everyone, named, within_s
from steelyard.runner.cli import run
from steelyard.runner.declared import declared
from steelyard.runner.devices import NamedLane
from steelyard.runner.isolation.capabilities import this_host
from steelyard.sim.device import Device, Wire
from steelyard.sim.disturbances import Disturbance, Rebalance
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, read_document
from steelyard.sim.view import Fixed

counts = st.integers(0, 12)
kinds = st.sampled_from([*TOLD])
every_way = st.integers(1, 5).map(lambda members: {kind: range(members) for kind in TOLD})


@given(kills=counts, hangs=counts, victims=st.one_of(every_way, st.integers(1, 5).map(everyone)), seed=st.integers(0))
def test_so_many_are_drawn_and_equal_seeds_draw_the_same(
    kills: int, hangs: int, victims: dict[Kind, Sequence[int]], seed: int
) -> None:
    strikes = draw(kills, hangs, victims, seed)
    assert strikes == draw(kills, hangs, victims, seed)
    assert (count(strikes, "kill"), count(strikes, "hang")) == (kills, hangs)
    assert all(strike.member in victims[strike.kind] and 0 <= strike.place < 1 for strike in strikes)
    assert not any(strike.starting for strike in strikes if strike.kind not in ("kill", "stop"))
    assert not any(strike.starting for strike in strikes[:1])
    for kinds in (KILLS, HANGS):  # each way that there is has its turn
        possible = [kind for kind in kinds if kind in victims]
        drawn = [strike.kind for strike in strikes if strike.kind in kinds]
        for kind in set(possible):
            assert drawn.count(kind) >= len(drawn) // len(possible) * possible.count(kind)


def test_seeds_differ() -> None:
    assert draw(5, 2, everyone(2), 0) != draw(5, 2, everyone(2), 1)
    strikes = draw(200, 100, everyone(3), 0)
    assert {strike.member for strike in strikes} == {0, 1, 2}
    assert 0.1 < sum(strike.starting for strike in strikes) / 300 < 0.3


def test_what_a_lane_has_can_be_taken_from_it_and_the_rest_is_said_once() -> None:
    plain, wire = NamedLane(name="plain"), Wire(host="there")
    rich = NamedLane(name="rich", cpu_share=0.5, memory_limit_gib=1.0, wire=wire)
    victims, notes = victims_of([plain, plain], 0.1, 5.0)
    assert victims == {"kill": [0, 1], "stop": [0, 1], "loop": [0, 1]}
    assert len(notes) == 3
    victims, _ = victims_of([plain, rich], 0.1, 5.0)
    assert victims["memory"] == victims["starve"] == [1]
    _, notes = victims_of([rich, rich], 0.9 * STARVED_CORES, 5.0)
    assert any("ends on a thousandth of a core" in note for note in notes)


def test_make_chaos_leaves_out_what_a_host_has_not_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lanes are those of a file beside it; a host without anything trains on plain ones."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    whole = importlib.import_module("chaos")
    none = replace(this_host(), capabilities=[replace(each, available=False) for each in this_host().capabilities])
    document, folder = read_document(whole.SCENARIO)
    _, found = declared(document, folder) or pytest.fail("no lanes")
    assert all(lane.cpu_share < 1 and lane.memory_limit_gib for lane in found.lanes)
    assert [lane for host in found.hosts for lane in host.lanes] == [lane.name for lane in found.lanes]
    assert [each.split(":")[0] for each in whole.leave_out(document, none)] == [
        *["without cpu_share", "without memory_limit_gib", "without hosts"]
    ]
    _, found = declared(document, folder) or pytest.fail("no lanes")
    assert not found.hosts
    assert all(lane.cpu_share == 1 and not lane.memory_limit_gib for lane in found.lanes)
    assert whole.leave_out(document, none) == []


@given(kind=kinds, timeout_s=st.floats(0.1, 100.0), step_s=st.floats(1e-3, 10.0))
def test_what_is_predicted_of_noticing_is_within_what_is_stated(kind: Kind, timeout_s: float, step_s: float) -> None:
    assert noticed_s(kind, timeout_s, step_s) <= within_s(kind, timeout_s)
    if kind in ("loop", "starve", "cut"):
        assert noticed_s(kind, timeout_s, step_s) > timeout_s


def test_who_is_named_is_held_against_who_was_struck() -> None:
    link = {"kind": "link", "lane": None, "what": "link between 'a' and 'b' carries nothing"}
    assert named("cut", "a", link)
    assert not named("cut", "c", link)
    assert not named("cut", "a", {"kind": "hung", "lane": "a", "what": "worker 'a' hung"})
    assert named("loop", "a", {"kind": "hung", "lane": "a", "what": ""})
    assert not named("kill", "a", {"kind": "killed", "lane": None, "what": ""})


def test_what_is_noticed_later_than_stated_is_a_sentence() -> None:
    """Held against the moment of the fault, whatever the driver says of how long it had been silent."""
    struck = [Struck(Strike(kind, 0, False, 0.5), "a", 10.0) for kind in TOLD]
    for each in struck:
        limit_s, fault = within_s(each.strike.kind, 5.0), {"lane": "a", "kind": "killed", "what": "", "silent_s": 0.0}
        assert late([(each, {**fault, "at_s": 10.0 + limit_s})], 5.0) == []
        (found,) = late([(each, {**fault, "at_s": 10.1 + limit_s})], 5.0)
        assert found.startswith(f"{each.strike.kind} of a: noticed after ")
    assert [within_s(kind, 30.0) for kind in ("kill", "memory", "stop", "loop", "cut", "starve")] == [
        *[2.0, 2.0, 7.0, 32.0, 32.0, 62.0]
    ]


costs = st.builds(Costs, st.floats(0.01, 1.0), st.floats(0.001, 2.0), st.floats(0.5, 20.0))
storms = st.builds(draw, counts, counts, every_way, st.integers(0, 999))


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
        wall_s += noticed_s(strike.kind, timeout_s, costs.step_s)
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


@given(kind=kinds)
def test_a_fault_costs_what_it_takes_to_notice_it(kind: Kind) -> None:
    kill = Strike("kill", 0, False, 0.5)
    given, timeout_s = Costs(0.1, 0.1, 5.0), 3.0
    other, quick = (
        forecast([replace(kill, kind=each)], given, every=5, steps=50, timeout_s=timeout_s)
        for each in (kind, kill.kind)
    )
    difference_s = noticed_s(kind, timeout_s, 0.1) - noticed_s("kill", timeout_s, 0.1)
    assert other.wall_s - quick.wall_s == pytest.approx(difference_s)
    assert other.recompute_s == quick.recompute_s


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


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_what_a_launch_still_holds_is_found_and_what_the_next_one_has_is_not(tmp_path: Path) -> None:
    """A process and its port outlive the launch; then another one, begun since, has the place of both."""
    with listening("127.0.0.1", tmp_path) as process:
        holding = Holding.of(os.getpid())
        assert process.pid in [each.pid for each in holding.processes]
        assert any(f"process {process.pid} " in found for found in holding.left())
    with listening("127.0.0.1", tmp_path) as other:
        gone = (f"process {process.pid} ", f"process {other.pid} ")
        assert [found for found in holding.left() if found.startswith(gone)] == []


def test_a_file_that_was_left_is_found(tmp_path: Path) -> None:
    """By its place in the run: what comes of it is published."""
    marker = tmp_path / "undisturbed" / "tmp"
    (marker / "steelyard-abc").mkdir(parents=True)
    assert left_behind(Sightings(marker)) == ["undisturbed/tmp/steelyard-abc is still there"]


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
        "zero": scenario,
    }[name]


def sharded(scenario: Scenario) -> Fixed:
    """Gradients in shards, one on each lane."""
    plan = Plan.data_parallel(scenario.workload, {"full": 15, "sse": 15})
    return Fixed(plan.model_copy(update={"zero": 2}))


@pytest.mark.parametrize("path", ["disturbances", "rebalance", "workload.dtype", "cluster device full", "zero"])
def test_what_cannot_be_trained_is_refused_before_anything_is_begun(
    tiny_scenario: Scenario, tmp_path: Path, path: str
) -> None:
    scenario, said = changed(tiny_scenario, path), list[str]()
    policy = sharded(scenario) if path == "zero" else make_policy("uniform")
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


def in_groups(scenario: Scenario) -> Scenario:
    """Every lane with a quota, a limit of memory and a host of its own, as far as this host has them."""
    host = this_host()
    wanted: dict[str, dict[str, object]] = {
        "cpu_quota": {"cpu_share": 0.9},
        "memory_limit": {"memory_limit_gib": 1.0},
    }
    values = {
        key: value for name, own in wanted.items() if host.capability(name).available for key, value in own.items()
    }

    def bound(device: Device) -> Device:
        assert device.lane is not None
        wire = {"wire": Wire(host=device.name)} if host.capability("namespaces").available else {}
        return device.model_copy(update={"lane": device.lane.model_copy(update={**values, **wire})})

    nodes = [node.model_copy(update={"devices": list(map(bound, node.devices))}) for node in scenario.cluster.nodes]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


@pytest.mark.slow
def test_a_storm_in_small(tiny_scenario: Scenario, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five kills and two hangs: the same bytes, nothing lost, nothing left, whoever was struck was named in time."""
    file, out = tmp_path / "tiny.json", tmp_path / "chaos.json"
    file.write_text(in_groups(tiny_scenario).model_dump_json(exclude_none=True))
    words = ["chaos", str(file), "--policy", "uniform", "--kills", "5", "--hangs", "2", "--json"]
    short = ["--set", "replay.timeout_s=5", "--set", "training.checkpoint_every_steps=20"]
    runs = tmp_path / "runs"
    code = run([*words, *short, "--runs", str(runs), "--out", str(out)])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["misnamed"] == 0, captured.err
    assert code == 0, captured.err
    assert document == json.loads(out.read_text())
    assert document["struck"] == {"kill": 5, "hang": 2}
    assert document["bit_identical"] is True
    for name in ("lost", "left_behind", "exposed_listeners"):
        assert document[name] == []
    assert document["late"] == 0 or document["busy"]
    if len(document["not_possible"]) == 0:
        assert document["struck_kinds"] == {"kill": 4, "memory": 1, "stop": 0, "loop": 0, "starve": 1, "cut": 1}
    check_forecast(document, runs)


def check_forecast(document: dict[str, Any], runs: Path) -> None:
    """What must hold on any host: it was written before, and no fault is noticed before it can be."""
    (folder,) = runs.glob("chaos-*")
    written = json.loads((folder / "forecast.json").read_text())
    rows = {row["what"]: row for row in document["predicted_against_measured"]}
    assert rows["goodput"]["predicted"] == written["goodput"]
    assert 0 < rows["goodput"]["measured"] < 1
    agreement = document["agreement"]
    assert agreement["goodput_off"] == pytest.approx(rows["goodput"]["predicted"] - rows["goodput"]["measured"])
    assert abs(agreement["goodput_off"]) < 3 * agreement["goodput_tolerance"] or document["busy"]
    for kind, noticed in document["noticed_after_s"].items():
        assert agreement["noticed"][kind]["measured_s"] == noticed["median"] <= noticed["longest"]
        assert noticed["median"] > (0.5 if kind in KILLS else 5.0)
        assert noticed["longest"] <= noticed["stated"] or document["busy"]
    (journal,) = (folder / "disturbed").glob("train-*/journal.jsonl")
    first = json.loads(journal.read_text().splitlines()[0])
    assert written["written_utc"] <= first["when_utc"]
