"""Clocks of devices: what is left in a queue comes back as the times at which a (pretended) device passed it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner.devices import NamedLane, backend_of, candidate_lanes, passes_on
from steelyard.runner.launch import LaunchResult
from steelyard.runner.linking import build_messages
from steelyard.runner.runnable import refuse_lanes
from steelyard.runner.worker.boundaries import layer_seconds
from steelyard.runner.worker.clocks import DeviceClock, clock_of, memory_of
from steelyard.runner.worker.signs import resident_bytes
from steelyard.sim.spec import Scenario


@dataclass
class Passed:
    """An event: when the device got there, in seconds of its own clock."""

    at_s: float

    def elapsed_time(self, other: Passed) -> float:
        return 1e3 * (other.at_s - self.at_s)


@dataclass
class Queued:
    """A device that works through what it is given, behind a host that only hands it on."""

    host_s: float = 1000.0
    done_s: float = 1000.0
    """When all that was handed on is done, on the host's clock."""
    since_s: float = 123.0
    """Of the device's own clock, whose zero is another one."""
    waits: int = 0
    left: list[Passed] = field(default_factory=list)

    def host(self) -> float:
        return self.host_s

    def work(self, seconds: float) -> None:
        self.host_s += 1e-6
        self.done_s = max(self.done_s, self.host_s) + seconds

    def record(self) -> Passed:
        self.left.append(Passed(max(self.done_s, self.host_s) - self.since_s))
        return self.left[-1]

    def wait(self) -> None:
        self.waits += 1
        self.host_s = max(self.host_s, self.done_s)


@given(work=st.lists(st.floats(1e-5, 10.0), min_size=1, max_size=30))
def test_segments_last_as_long_as_the_devices_work_however_far_the_host_is_ahead(work: list[float]) -> None:
    device = Queued()
    clock = DeviceClock(device, device.host)
    steps = []
    for number, seconds in enumerate(work):
        begin = clock.mark()
        device.work(seconds)
        steps.append(("forward", number, begin, clock.mark(), 0.25, -1))
    waited = device.waits
    issued = steps[-1][3] - steps[0][2]
    assert issued < 1e-3  # the host has handed on all of it and waited for nothing
    settled = clock.settle(steps)
    assert device.waits == waited + 1  # once for the whole block
    for (kind, number, begin, end, own, stage), seconds in zip(settled, work, strict=True):
        assert (kind, number, own, stage) == ("forward", number, 0.25, -1)
        assert end - begin == pytest.approx(seconds, abs=2e-6)  # a queue that is empty waits for the host
    assert [each[3] for each in settled[:-1]] == pytest.approx([each[2] for each in settled[1:]], abs=2e-6)


@given(count=st.integers(1, 50))
def test_no_two_moments_are_the_same_though_the_hosts_clock_stands_still(count: int) -> None:
    device = Queued()
    clock = DeviceClock(device, device.host)
    moments = [clock.mark() for _ in range(count)]
    assert len(set(moments)) == count
    assert moments == sorted(moments)
    assert len(clock.settle(moments)) == count


def test_blocks_are_anchored_anew_and_times_go_on() -> None:
    device = Queued()
    clock = DeviceClock(device, device.host)
    first = clock.mark()
    device.work(2.0)
    (before,) = clock.settle([first])
    second = clock.mark()
    (after,) = clock.settle([second])
    assert after - before == pytest.approx(2.0, abs=1e-3)
    assert clock.now() >= after
    assert clock.settle([7.0, "forward"]) == [7.0, "forward"]


def test_the_other_machines_clock_is_added_once() -> None:
    device = Queued()
    clock = DeviceClock(device, device.host)
    clock.offset_s = 50.0
    moment = clock.mark()
    assert clock.settle([moment]) == pytest.approx([device.host_s + 50.0])


def test_a_processors_moments_are_times_and_are_given_back_as_they_are() -> None:
    clock = clock_of(torch.device("cpu"))
    steps = [("forward", 0, clock.mark(), clock.mark(), 0.0, 0)]
    assert clock.settle(steps) is steps
    assert steps[0][2] <= steps[0][3] <= clock.now()
    assert memory_of(torch.device("cpu")) is resident_bytes


def test_layers_are_told_from_their_edges() -> None:
    assert layer_seconds([[0.0, 1.0, 3.0], [3.0, 7.0, 8.0]]) == [[1.0, 2.0], [1.0, 4.0]]


def test_gpus_are_lanes_by_themselves_unless_there_is_one_alone() -> None:
    assert [lane.name for lane in candidate_lanes(["A", "B"])] == ["cuda0", "cuda1"]
    assert [lane.name for lane in candidate_lanes(["A"])] == ["cuda0", "cpu"]
    assert all(lane.torch_device == "cpu" for lane in candidate_lanes([]))


@pytest.mark.parametrize(
    ("devices", "backend", "passes"),
    [
        (["cuda:0", "cuda:1"], "nccl", True),
        (["cpu", "cuda:0"], "gloo", False),
        (["cpu", "cpu"], "gloo", True),
    ],
)
def test_the_library_follows_from_the_lanes(devices: list[str], backend: str, passes: bool) -> None:
    assert backend_of(devices) == backend
    assert passes_on(devices) == passes
    lanes = [NamedLane(name=str(number), torch_device=device) for number, device in enumerate(devices)]
    tasks = [{"op": "message", "bytes": size, "repeats": 1, "ranks": [0, 1]} for size in (4, 8)]
    launch = LaunchResult(tasks, [[{"moments": [0.0, 3.0]}] * 2, [{"moments": [1.0, 2.0]}] * 2])
    (table,) = build_messages(lanes, [launch])
    assert table.backend == backend


def stages(zero: int = 0, cut: bool = False) -> dict[str, object]:
    own = [{"first": 0, "last": 2, "rank": 0}, {"first": 2, "last": 4, "rank": 1}]
    pipelines = [{"stages": own}] if cut else [{"stages": [each]} for each in own]
    return {"program": {"pipelines": pipelines, "zero": zero}, "ranks": [0, 1]}


def with_devices(scenario: Scenario, kinds: list[str]) -> Scenario:
    """The scenario with its lanes on other devices."""
    rest = iter(kinds)

    def moved(device: object) -> object:
        lane = device.lane.model_copy(update={"torch_device": next(rest)})  # type: ignore[attr-defined]
        return device.model_copy(update={"lane": lane})  # type: ignore[attr-defined]

    nodes = [
        node.model_copy(update={"devices": [moved(each) for each in node.devices]}) for node in scenario.cluster.nodes
    ]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def test_what_gloo_cannot_send_between_a_gpu_and_a_processor_is_refused(tiny_scenario: Scenario) -> None:
    mixed = with_devices(tiny_scenario, ["cuda:0", "cpu"])
    with pytest.raises(InputError, match="sends no tensor of a GPU"):
        refuse_lanes(mixed, stages(cut=True))
    with pytest.raises(InputError, match="zero: is 3"):
        refuse_lanes(mixed, stages(zero=3))
    refuse_lanes(mixed, stages(zero=1))
    refuse_lanes(mixed, {"sizes": [[1], [1]], "ranks": [0, 1]})
    for alike in (["cuda:0", "cuda:1"], ["cpu", "cpu"]):
        refuse_lanes(with_devices(tiny_scenario, alike), stages(zero=3, cut=True))
