"""Chaos: what is drawn, what is predicted of it, what is found on the host; and a whole storm in small."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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
from steelyard.runner.chaos.chaos import answers, late, lost_results, misnamed, not_written
from steelyard.runner.chaos.chaos import chaos as storm
from steelyard.runner.chaos.disk import damaged, refusal, small_disk
from steelyard.runner.chaos.drill import Struck, timed
from steelyard.runner.chaos.forecast import Costs, forecast, moments, noticed_s, steps_for
from steelyard.runner.chaos.leftovers import Holding, Sightings, left_behind
from steelyard.runner.chaos.strikes import (
    HANGS,
    KILLS,
    KINDS,
    SORTS,
    TOLD,
    Kind,
    Strike,
    count,
    draw,
    everyone,
    named,
    within_s,
)
from steelyard.runner.checkpoint import Store
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
every_way = st.integers(1, 5).map(lambda members: {kind: range(members) for kind in KINDS})
others = st.integers(0, 4)


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


@given(kills=counts, hangs=counts, drivers=others, disks=others, small=st.booleans(), seed=st.integers(0))
def test_killed_drivers_and_full_disks_come_in_between_and_change_no_other_strike(
    kills: int, hangs: int, drivers: int, disks: int, small: bool, seed: int
) -> None:
    victims: dict[Kind, Sequence[int]] = {**everyone(2), **({"disk": [0]} if small else {})}
    strikes = draw(kills, hangs, victims, seed, drivers=drivers, disks=disks)
    filled = disks if small else 0  # what no disk can be, a driver is
    assert [count(strikes, sort) for sort in SORTS] == [kills, hangs, drivers + disks - filled, filled]
    without = [replace(each, starting=False) for each in draw(kills, hangs, victims, seed)]
    assert [
        replace(each, starting=False) for each in strikes if each.kind in victims and each.kind != "disk"
    ] == without
    assert not strikes or strikes[-1].ends_launch or count(strikes, "disk") == len(strikes)
    before = [None, *strikes]
    for last, strike in zip(before, strikes, strict=False):
        assert not strike.starting or (last is not None and last.ends_launch and strike.kind != "disk")


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
    """Of a driver, its workers' end is stated: the journal says so when the next driver has begun."""
    predicted_s = noticed_s(kind, timeout_s, Costs(step_s, 0.0, 1.0, driver_s=3.0))
    assert predicted_s - (3.0 if kind == "driver" else 0.0) <= within_s(kind, timeout_s)
    if kind in ("loop", "starve", "cut"):
        assert predicted_s > timeout_s


def test_who_is_named_is_held_against_who_was_struck() -> None:
    link = {"kind": "link", "lane": None, "what": "link between 'a' and 'b' carries nothing"}
    assert named("cut", "a", link)
    assert not named("cut", "c", link)
    assert not named("cut", "a", {"kind": "hung", "lane": "a", "what": "worker 'a' hung"})
    assert named("loop", "a", {"kind": "hung", "lane": "a", "what": ""})
    assert not named("kill", "a", {"kind": "killed", "lane": None, "what": ""})
    assert named("driver", "", {"kind": "driver", "lane": None, "what": ""})
    assert not named("driver", "", {"kind": "killed", "lane": "a", "what": ""})
    assert named("disk", "", {"reason": "No space left on device"})
    assert not named("disk", "", {"reason": "Permission denied"})


def test_what_is_noticed_later_than_stated_is_a_sentence() -> None:
    """Held against the moment of the fault, whatever the driver says of how long it had been silent."""
    struck = [Struck(Strike(kind, 0, False, 0.5), "a", 10.0) for kind in KINDS if kind != "driver"]
    for each in struck:
        limit_s, fault = within_s(each.strike.kind, 5.0, 3.0), {"lane": "a", "kind": "killed", "what": ""}
        assert late([(each, {**fault, "at_s": 10.0 + limit_s})], 5.0, 3.0) == []
        (found,) = late([(each, {**fault, "at_s": 10.1 + limit_s})], 5.0, 3.0)
        assert found.startswith(f"{each.strike.kind} of a: noticed after ")
    driver = Struck(Strike("driver", 0, False, 0.5), "", 10.0, over_s=11.9)
    assert late([(driver, {"at_s": 99.0})], 5.0, 3.0) == []
    (found,) = late([(replace(driver, over_s=12.1), {"at_s": 13.0})], 5.0, 3.0)
    assert found == "driver: all that it had started ended after 2.1 s, stated are 2 s"
    assert [within_s("disk", 30.0, 3.0), within_s("driver", 30.0)] == [5.0, 2.0]
    assert [within_s(kind, 30.0) for kind in ("kill", "memory", "stop", "loop", "cut", "starve")] == [
        *[2.0, 2.0, 7.0, 32.0, 32.0, 62.0]
    ]


costs = st.builds(Costs, st.floats(0.01, 1.0), st.floats(0.001, 2.0), st.floats(0.5, 20.0), st.floats(0.5, 9.0))
storms = st.builds(draw, counts, counts, every_way, st.integers(0, 999), drivers=others, disks=others)


def by_hand(strikes: Sequence[Strike], costs: Costs, every: int, steps: int, timeout_s: float) -> tuple[float, float]:
    """Wall time and time done in vain, launch by launch: what the simulator does with arrays.

    Of a launch, ``up_s`` is its age when the last thing happened, ``kept`` the number of its checkpoints up to the last
    one that was written.
    """
    wall_s, lost_s, done, start_s = 0.0, 0.0, 0, 0.0
    segment_s = every * costs.step_s + costs.checkpoint_s
    up_s, kept = 0.0, 0
    for strike in strikes:
        after_s = strike.after_s(costs.start_s, every * costs.step_s)
        if strike.starting:
            wall_s += after_s + noticed_s(strike.kind, timeout_s, costs)
            start_s = costs.start_s
            continue
        written = int(after_s / segment_s)
        full = round(up_s / segment_s)
        kept = full + written if written else kept
        if strike.kind == "disk":
            up_s = (full + written + 1) * segment_s
            continue
        up_s += after_s
        wall_s += start_s + up_s + noticed_s(strike.kind, timeout_s, costs)
        lost_s += up_s - kept * segment_s
        done += kept * every
        start_s, up_s, kept = costs.start_s, 0.0, 0
    return wall_s + start_s + (steps - done) // every * segment_s, lost_s


@given(strikes=storms, costs=costs, every=st.integers(1, 50), timeout_s=st.floats(1.0, 60.0))
def test_the_forecast_is_what_one_adds_up_by_hand(
    strikes: list[Strike], costs: Costs, every: int, timeout_s: float
) -> None:
    steps = steps_for(strikes, costs, every, 1.5)
    assert all(each.unsaved <= each.up_s / costs.segment_s(every) + 1e-6 for each in moments(strikes, costs, every))
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
    difference_s = noticed_s(kind, timeout_s, given) - noticed_s("kill", timeout_s, given)
    assert other.wall_s - quick.wall_s == pytest.approx(difference_s)
    assert other.recompute_s == quick.recompute_s


@given(place=st.floats(0.0, 0.3), costs=costs, every=st.integers(1, 50))
def test_a_full_disk_costs_nothing_until_a_fault_comes_before_the_next_checkpoint(
    place: float, costs: Costs, every: int
) -> None:
    """Then it costs that interval, once more; no restart, and no step, for itself."""
    costs = replace(costs, checkpoint_s=min(costs.checkpoint_s, 0.1 * every * costs.step_s))
    disk, kill, later = (Strike(kind, 0, False, at) for kind, at in (("disk", 0.5), ("kill", place), ("kill", 0.9)))
    plain, alone = (forecast(each, costs, every=every, steps=20 * every, timeout_s=5.0) for each in ([], [disk]))
    assert alone == replace(plain, steps_lost=[0.0], noticed_s=alone.noticed_s, unsaved=1)
    soon, late_one = (
        forecast([disk, each], costs, every=every, steps=20 * every, timeout_s=5.0) for each in (kill, later)
    )
    into_s = place * 3.0 * every * costs.step_s
    assert soon.recompute_s == pytest.approx(into_s + costs.segment_s(every), rel=1e-6)
    assert soon.steps_lost[1] == pytest.approx(every + min(every, into_s / costs.step_s))
    assert late_one.recompute_s < costs.segment_s(every)
    assert soon.down_s == pytest.approx(late_one.down_s)


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
    faults = [{"event": "fault", "at_s": 2.0, "lane": "full"}, {"event": "fault", "at_s": 12.0, "lane": "sse"}]
    assert answers(struck, faults) == [(struck[0], faults[0]), (struck[1], faults[1])]
    disk = Struck(Strike("disk", 0, False, 0.5), "", 1.5, over_s=3.5)
    line = {"event": "unsaved", "at_s": 3.0, "attempt": 0, "step": 5, "reason": "No space left on device"}
    assert answers([disk], [faults[0], line]) == [(disk, line)]
    assert misnamed([(disk, line)]) == []
    assert misnamed([(disk, {**line, "reason": "Permission denied"})]) == ["disk: Permission denied"]


def test_a_checkpoint_that_is_not_written_though_there_is_room_is_a_sentence() -> None:
    disk = Struck(Strike("disk", 0, False, 0.5), "", 1.5, over_s=3.5)
    line = {"event": "unsaved", "at_s": 3.4, "attempt": 0, "step": 5, "reason": "No space left on device"}
    other = {**line, "at_s": 3.6}  # another member's line of the same checkpoint
    assert not_written([line, other], [disk]) == []
    later = {**line, "at_s": 4.0, "step": 10}
    assert not_written([line, other, later], [disk]) == ["step 10 of launch 0: No space left on device"]


def test_the_moment_of_a_drivers_death_parts_what_was_in_vain_from_the_wait() -> None:
    """The one who goes on knows of the last line alone; a launch that had not begun has done nothing in vain."""
    launch, begun = {"event": "launch", "at_s": 1.0, "attempt": 0, "step": 0}, {"event": "begun", "at_s": 4.0}
    fault = {"event": "fault", "kind": "driver", "at_s": 20.0, "recompute_s": 0.0, "detected_after_s": 8.0}
    saved, driver = {"event": "saved", "at_s": 12.0, "step": 5}, Strike("driver", 0, False, 0.5)
    (*_, found) = timed([launch, begun, saved, fault], [Struck(driver, "", 15.0)])
    assert (found["recompute_s"], found["detected_after_s"]) == (3.0, 5.0)
    (*_, found) = timed([launch, fault], [Struck(driver, "", 3.0)])
    assert (found["recompute_s"], found["detected_after_s"]) == (0.0, 17.0)


def test_a_small_disk_is_full_inside_and_the_host_never_sees_it(tmp_path: Path) -> None:
    """A checkpoint that it holds stays whole; what is on it stays when it goes."""
    if problem := refusal():
        pytest.skip(f"this host lets us have no small disk: {problem}")
    place, mounts = tmp_path / "place", Path("/proc/self/mountinfo")
    with small_disk() as disk:
        disk.mount(place, 2**20)
        inside = disk.inside(place)
        (inside / "file").write_text("kept")
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (inside / "other").write_bytes(b"x")
        (inside / "other").unlink()
        assert list(place.iterdir()) == []
        assert str(place) not in mounts.read_text()
        store = Store(inside)
        assert damaged(store, [], 0) == []
        assert damaged(store, [], 5) == ["the checkpoint of step 5 is gone"]
        (inside / "step-00000005").mkdir()
        (found,) = damaged(store, [5], 5)
        assert "cannot be read" in found
        disk.free()
        (inside / "other").write_bytes(bytes(2**18))
        disk.fill()
    assert {each.name for each in place.iterdir()} == {"file", "other", "step-00000005"}
    assert (place / "file").read_text() == "kept"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_mount_that_was_left_is_found(disk_of: Callable[[str], Path], tmp_path: Path) -> None:
    disk_of("16k")
    marker = tmp_path / "tmp"
    marker.mkdir()
    assert left_behind(Sightings(marker)) == [f"{tmp_path.name}/disk is still mounted"]


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
        "sync_every": scenario,
    }[name]


def local(scenario: Scenario) -> Fixed:
    """Lanes that train alone for some steps."""
    plan = Plan.data_parallel(scenario.workload, {"full": 15, "sse": 15})
    return Fixed(plan.model_copy(update={"sync_every": 4}))


@pytest.mark.parametrize("path", ["disturbances", "rebalance", "workload.dtype", "cluster device full", "sync_every"])
def test_what_cannot_be_trained_is_refused_before_anything_is_begun(
    tiny_scenario: Scenario, tmp_path: Path, path: str
) -> None:
    scenario, said = changed(tiny_scenario, path), list[str]()
    policy = local(scenario) if path == "sync_every" else make_policy("uniform")
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
    """Five kills, two hangs, a killed driver, a full disk: the same bytes, nothing lost or left, all named in time."""
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
    small = not any("no small disk" in note for note in document["not_possible"])
    assert document["struck"] == {"kill": 5, "hang": 2, "driver": 1 if small else 2, "disk": 1 if small else 0}
    assert document["bit_identical"] is True
    for name in ("lost", "left_behind", "exposed_listeners", "not_written"):
        assert document[name] == []
    assert document["late"] == 0 or document["busy"]
    assert document["driver_ended_after_s"]["longest"] <= 2.0 or document["busy"]
    if len(document["not_possible"]) == 0:
        workers = {"kill": 4, "memory": 1, "stop": 0, "loop": 0, "starve": 1, "cut": 1}
        assert document["struck_kinds"] == {**workers, "driver": 1, "disk": 1}
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
        assert noticed["median"] > (0.5 if kind in KILLS else 5.0 if kind in HANGS else 0.0)
        assert noticed["stated"] is None or noticed["longest"] <= noticed["stated"] or document["busy"]
    (journal,) = (folder / "disturbed").glob("train-*/journal.jsonl")
    first = json.loads(journal.read_text().splitlines()[0])
    assert written["written_utc"] <= first["when_utc"]
