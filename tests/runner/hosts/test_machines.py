"""Lanes of several machines: where they are, what is refused, how the simulator sees them."""

from __future__ import annotations

import pytest
from steelyard.results.errors import InputError
from steelyard.runner.devices import NamedLane, fingerprint
from steelyard.runner.hosts.machines import Machines, current, further_lanes, machines_for, placed, study_fingerprint
from steelyard.runner.hosts.membership import Membership
from steelyard.runner.isolation.machines import machines
from steelyard.sim.device import Device, Wire

HERE, THERE = NamedLane(name="full"), placed(NamedLane(name="full"), 1)
TWO = Machines(Membership(0, 2, 0, "127.0.0.1", 29500, launcher_store=False), [[THERE]], [{"cpu": "other"}])


def device(lane: NamedLane) -> Device:
    return Device(name=lane.name, peak_tflops={"fp32": 1}, memory_gib=1, memory_bandwidth_gb_per_s=1)


def test_one_machine_needs_nothing() -> None:
    assert machines_for([HERE], [{"op": "train", "folder": "x"}]) is None
    assert further_lanes() == ()
    assert study_fingerprint() == fingerprint()


def test_a_lane_of_a_machine_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="is on machine 1, and this study has machines 0 to 0"):
        machines_for([HERE, THERE], [])


def test_lanes_of_two_machines_have_names_of_their_own_and_what_needs_files_is_refused() -> None:
    token = current.set(TWO)
    try:
        assert THERE.name == "m1-full"
        assert machines_for([HERE, THERE], [{"op": "block"}]) is TWO
        assert machines_for([HERE], [{"op": "course", "folder": "x"}]) is None
        with pytest.raises(InputError, match="works by files"):
            machines_for([HERE, THERE], [{"op": "course", "folder": "x"}])
        with pytest.raises(InputError, match="is a made host beside real ones"):
            machines_for([HERE.model_copy(update={"wire": Wire(host="a")}), THERE], [])
        assert study_fingerprint()["machines"] != ""
        assert TWO.rendezvous()["prefix"] != TWO.rendezvous()["prefix"], "launches must not meet each other"
    finally:
        current.reset(token)


def test_the_simulator_sees_machines_and_their_links() -> None:
    nodes, network = machines([HERE, THERE], [device(HERE), device(THERE)])
    assert [node.name for node in nodes] == ["machine0", "machine1"]
    assert network is not None
    lanes = [
        NamedLane(name=name, wire=Wire(host=name[0], link_mbit_per_s=800, uplink_mbit_per_s=80, uplink_latency_us=7))
        for name in ("a0", "a1", "b0")
    ]
    nodes, _ = machines(lanes, [device(lane) for lane in lanes])
    assert [[each.name for each in node.devices] for node in nodes] == [["a0", "a1"], ["b0"]]
    assert nodes[0].link.bandwidth_gb_per_s == pytest.approx(0.1)
    assert nodes[0].network is not None
    assert nodes[0].network.bandwidth_gb_per_s == pytest.approx(0.01)
    assert nodes[0].network.latency_us == nodes[0].link.latency_us + 7


def test_one_host_is_one_machine_on_loopback() -> None:
    nodes, network = machines([HERE], [device(HERE)])
    assert [node.name for node in nodes] == ["host"]
    assert nodes[0].link.name == "loopback"
    assert network is None
