"""Lanes declared by hand: cores by place, hosts, who shares a core, and what is refused by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner.declared import LaneFile, declared, lanes_from
from steelyard.runner.devices import NamedLane, available_cpus, mark_shared
from steelyard.runner.isolation.capabilities import this_host

CORES = available_cpus()


def lane_file(*lanes: dict[str, Any], hosts: list[dict[str, Any]] | None = None) -> LaneFile:
    return LaneFile.model_validate({"lanes": list(lanes), "hosts": hosts or []})


@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=1, max_size=6))
def test_lanes_share_a_core_exactly_where_two_have_it(cpus: list[set[int]]) -> None:
    lanes = [NamedLane(name=f"lane{number}", cpus=sorted(own)) for number, own in enumerate(cpus)]
    for index, lane in enumerate(mark_shared(lanes)):
        others = set().union(*(own for number, own in enumerate(cpus) if number != index))
        assert lane.shares_core == bool(cpus[index] & others)


def test_cores_are_counted_among_those_that_may_be_used() -> None:
    (lane,) = lanes_from(lane_file({"name": "last", "cores": [len(CORES) - 1]}))
    assert lane.cpus == [CORES[-1]]


def test_a_lane_of_another_machine_has_that_machines_cores() -> None:
    """Whether they are there, that machine says."""
    lanes = lanes_from(lane_file({"name": "here"}, {"name": "there", "machine": 1, "cpus": [65_000], "cpu_share": 0.5}))
    assert lanes[1].cpus == [65_000]


@pytest.mark.parametrize(
    ("lanes", "hosts", "path"),
    [
        ([{"name": "a", "cores": [len(CORES)]}], None, "cluster.lanes.0.cores"),
        ([{"name": "a", "cores": [0], "cpus": [CORES[0]]}], None, "cluster.lanes.0.cores"),
        ([{"name": "a"}, {"name": "a"}], None, "cluster.lanes.0.name"),
        ([{"name": "a"}], [{"name": "h", "lanes": ["b"]}], "cluster.hosts.0.lanes.0"),
        ([{"name": "a"}], [{"name": "h", "lanes": ["a", "a"]}], "cluster.hosts.0.lanes.1"),
        ([{"name": "a"}, {"name": "b"}], [{"name": "h", "lanes": ["a"]}], "cluster.hosts"),
    ],
)
def test_what_does_not_fit_is_named(lanes: list[Any], hosts: list[Any] | None, path: str) -> None:
    with pytest.raises(InputError) as error:
        lanes_from(lane_file(*lanes, hosts=hosts), "cluster.")
    assert error.value.path == path
    assert error.value.mend


def test_hosts_wire_their_lanes() -> None:
    if not this_host().capability("link_rate").available:
        pytest.skip(this_host().capability("link_rate").reason)
    hosts = [{"name": "h", "lanes": ["a", "b"], "uplink_mbit_per_s": 10}, {"name": "i", "lanes": ["c"]}]
    wires = [each.wire for each in lanes_from(lane_file({"name": "a"}, {"name": "b"}, {"name": "c"}, hosts=hosts))]
    assert [wire.host for wire in wires] == ["h", "h", "i"]
    assert [wire.uplink_mbit_per_s for wire in wires] == [10, 10, 0]


def test_a_scenario_declares_lanes_in_three_ways(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[[lanes]]\nname = "only"\n')
    assert declared({"cluster": {"lanes": "auto"}}, tmp_path) is None
    assert declared({"cluster": {"nodes": []}}, tmp_path) is None
    by_file = declared({"cluster": {"lanes": "mine.toml"}}, tmp_path)
    inline = declared({"cluster": {"lanes": [{"name": "only"}]}}, None)
    assert by_file is not None
    assert inline is not None
    assert by_file[0] == "mine"
    assert inline[0] == "inline"
    assert by_file[1] == inline[1]


@pytest.mark.parametrize(
    ("cluster", "path"),
    [
        ({"lanes": 3}, "cluster.lanes"),
        ({"lanes": []}, "cluster.lanes"),
        ({"lanes": ["full"]}, "cluster.lanes.0"),
        ({"lanes": [{"name": "a", "cpu_share": 2}]}, "cluster.lanes.0.cpu_share"),
        ({"lanes": [{"name": "a"}], "hosts": [{"name": "h", "lanes": ["a"], "uplink": 3}]}, "cluster.hosts.0.uplink"),
    ],
)
def test_a_bad_declaration_is_named(cluster: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError) as error:
        declared({"cluster": cluster}, None)
    assert error.value.path == path
