"""Poplar and Cephalo: equal numbers of micro-steps, batches by speed, states by memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.policies.cephalo import Cephalo, even_shares
from steelyard.policies.poplar import Poplar, best_size
from steelyard.policies.rounds import Dealer, Passes, Team, counts, micro_batches
from steelyard.sim import memory
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, load_scenario
from steelyard.sim.view import Fixed, View


def with_memory(scenario: Scenario, gib: dict[str, float]) -> Scenario:
    """The scenario with other memory on some kinds of devices (by the beginning of their names)."""

    def changed(device: Any) -> Any:
        found = [size for start, size in gib.items() if device.name.startswith(start)]
        return device.model_copy(update={"memory_gib": found[0]}) if found else device

    nodes = [
        node.model_copy(update={"devices": [changed(device) for device in node.devices]})
        for node in scenario.cluster.nodes
    ]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def with_links(scenario: Scenario, scale: float) -> Scenario:
    """The scenario with a faster or slower network between machines."""
    network = scenario.cluster.network
    assert network is not None
    faster = network.model_copy(update={"bandwidth_gb_per_s": network.bandwidth_gb_per_s * scale})
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"network": faster})})


def sizes_of(plan: Plan) -> dict[str, list[int]]:
    return {pipeline.devices[0]: pipeline.micro_batches for pipeline in plan.pipelines}


@pytest.fixture(scope="module")
def servers() -> Scenario:
    return load_scenario("mixed-servers")


def swept(view: View, zero: int = 3) -> Plan:
    return Poplar(least_zero=zero).allocate(view)


def test_poplar_goes_through_zero_3_in_equally_many_steps_of_unequal_sizes(servers: Scenario) -> None:
    """The paper's point: unequal micro-batches, so that no device waits for another in any of the shared steps."""
    near = with_links(servers, 100.0)
    plan = swept(View.of(near))
    plan.check(near)
    sizes = sizes_of(plan)
    assert plan.zero == 3
    assert len({len(each) for each in sizes.values()}) == 1
    assert max(sizes["a100-0"]) > max(sizes["v100-0"])
    equal = {name: [4, 4] for name in sizes}
    even = plan.model_copy(update={"pipelines": [_sized(each, equal[each.devices[0]]) for each in plan.pipelines]})
    step = [simulate(near, Fixed(each)).summary.step_time_s.p50 for each in (plan, even)]
    assert step[0] < step[1]


def _sized(pipeline: Any, sizes: Sequence[int]) -> Any:
    return pipeline.model_copy(update={"micro_batches": list(sizes)})


def test_poplar_sweeps_all_times_of_a_micro_step() -> None:
    """Against every pair of sizes of two devices, rounds of equal size, by the same estimate."""
    scenario = load_scenario("old-and-new")
    view = View.of(scenario)
    team = Team(view, view.devices, 3)
    plan = swept(view)
    sizes = sizes_of(plan)
    pairs = list(zip(*(sizes[device.name] for device in view.devices), strict=True))
    found = sum(team.round_s(pair) for pair in pairs)
    batch = view.global_batch
    for one, other in itertools.product(range(1, batch), repeat=2):
        if batch % (one + other) == 0:
            assert found <= batch // (one + other) * team.round_s([one, other]) * (1 + 1e-9)


def test_poplar_takes_fewer_steps_over_a_slower_network(servers: Scenario) -> None:
    """Every micro-step pays for the weights: the slower the links, the larger its batches."""
    found = []
    for scale in (100.0, 1.0, 0.1):
        plan = swept(View.of(with_memory(with_links(servers, scale), {"a100": 8.0})))
        found.append(len(plan.pipelines[0].micro_batches))
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_poplar_lets_devices_accumulate_on_their_own_below_zero_2(servers: Scenario) -> None:
    plan = Poplar().allocate(View.of(servers))
    plan.check(servers)
    sizes = sizes_of(plan)
    assert plan.zero == 0
    assert len(sizes["a100-0"]) != len(sizes["v100-0"])
    view = View.of(servers)
    for device in view.devices:
        passes = Passes([device], [Team(view, view.devices, 0).room(device)], view.global_batch)
        best = best_size(passes, 0)
        assert set(sizes[device.name][:-1]) <= {best}


def test_poplar_takes_the_next_stage_where_the_model_does_not_fit() -> None:
    scenario = load_scenario("h100-box")
    plan = Poplar().allocate(View.of(scenario))
    plan.check(scenario)
    assert plan.zero == 1
    with pytest.raises(Infeasible, match="no device has room"):
        Poplar().allocate(View.of(with_memory(scenario, {"h100": 2.0})))


def test_poplar_takes_the_fastest_that_have_room_where_there_are_fewer_samples_than_devices(servers: Scenario) -> None:
    """The first devices in the order of speed have no room, and the batch is no larger than their number."""
    tight = with_memory(servers, {"a100": 0.001})
    workload = tight.workload.model_copy(update={"global_batch": 2})
    few = tight.model_copy(update={"workload": workload})
    plan = Poplar().allocate(View.of(few))
    plan.check(few)
    assert all(name.startswith("v100") for name in sizes_of(plan))


def test_poplar_turns_to_less_sharding_where_no_rounds_give_each_device_a_sample(servers: Scenario) -> None:
    """A prime batch in micro-batches of one: with ZeRO 2 and 3 all devices have equally many, so it cannot be dealt."""
    batch = 2 * len(servers.cluster.devices) + 1
    workload = servers.workload.model_copy(update={"global_batch": batch, "max_micro_batch": 1})
    odd = servers.model_copy(update={"workload": workload})
    plan = Poplar(least_zero=2).allocate(View.of(odd))
    plan.check(odd)
    assert plan.zero == 1
    assert len(plan.pipelines) == len(servers.cluster.devices)


def test_cephalo_splits_by_speed_where_equal_shares_leave_no_room(servers: Scenario) -> None:
    """The paper's point: fast devices with little memory keep their work, and slow ones with much hold the states."""
    tight = with_memory(with_links(servers, 100.0), {"a100": 4.0, "v100": 16.0})
    view = View.of(tight)
    plan = Cephalo().allocate(view)
    plan.check(tight)
    assert plan.state_shares is not None
    assert plan.state_shares["a100-0"] < plan.state_shares["v100-0"]
    assert "a100-0" in plan.samples()
    equal = swept(view)
    assert "a100-0" not in equal.samples()
    times = [simulate(tight, Fixed(each)).summary.throughput_samples_per_s for each in (plan, equal)]
    assert times[0] > times[1]


def test_cephalo_computes_alike_whoever_holds_the_states() -> None:
    """The same memory in other hands: the same samples on every device, other shares of the states."""
    scenario = load_scenario("old-and-new")
    worlds = [with_memory(scenario, {"rtx": rtx, "t4": t4}) for rtx, t4 in ((3.0, 5.0), (6.0, 2.0))]
    plans = [Cephalo().allocate(View.of(world)) for world in worlds]
    for plan, world in zip(plans, worlds, strict=True):
        plan.check(world)
    assert plans[0].samples() == plans[1].samples()
    assert plans[0].samples()["rtx-3090"] > plans[0].samples()["t4"]
    shares = [plan.state_shares["rtx-3090"] for plan in plans if plan.state_shares is not None]
    assert shares[0] < 0.5 < shares[1]


def test_cephalo_fills_no_memory_beyond_its_limit(servers: Scenario) -> None:
    for gib in (5.0, 6.0, 8.0, 20.0):
        scenario = with_memory(servers, {"a100": gib})
        plan = Cephalo().allocate(View.of(scenario))
        plan.check(scenario)
        peaks = memory.peak(scenario.workload, plan)
        assert all(peaks[name].total <= scenario.cluster.by_name[name].memory_bytes for name in peaks)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=8))
def test_even_shares_are_as_equal_as_the_limits_allow(limits: list[float]) -> None:
    shares = even_shares(limits)
    assert (shares is None) == (sum(limits) < 1)
    if shares is not None:
        assert sum(shares) == pytest.approx(1.0)
        top = max(shares)
        assert all(share <= limit for share, limit in zip(shares, limits, strict=True))
        assert all(share >= min(limit, top) * (1 - 1e-12) for share, limit in zip(shares, limits, strict=True))


@given(st.integers(1, 500), st.integers(1, 12), st.integers(0, 2000))
def test_counts_are_those_that_fit(batch: int, devices: int, room: int) -> None:
    found = list(counts(batch, devices, room))
    assert all(-(-batch // count) <= max(room, 1) and batch // count >= devices for count in found)
    fitting = [c for c in range(1, batch + 1) if -(-batch // c) <= max(room, 1) and batch // c >= devices]
    assert set(found) <= set(fitting)
    assert not fitting or {fitting[0], fitting[-1]} <= set(found)


@given(count=st.integers(1, 8))
def test_rounds_hold_the_batch(count: int) -> None:
    view = View.of(load_scenario("mixed-gpus"))
    team = Team(view, view.devices, 3)
    found = Dealer(team, [view.global_batch] * 2).rounds(count)
    assert found is not None
    sizes = micro_batches(found)
    assert sum(map(sum, sizes)) == view.global_batch
    assert all(len(each) == count and min(each) > 0 for each in sizes)


SPLITS = ("uniform", "flops", "throughput", "proportional", "linear-cost", "makespan", "attention")


@pytest.mark.parametrize("name", ["poplar", "cephalo", "cannikin", "proportional"])
def test_each_differs_from_every_other_split(name: str) -> None:
    """On a shipped scenario: in who does what, not only in what it is called or in the size of messages."""
    others = [other for other in (*SPLITS, "poplar", "cephalo", "cannikin") if other != name]
    apart: set[str] = set()
    for scenario in ("mixed-gpus", "old-and-new", "mixed-servers", "laptop", "two-gpus-one-box"):
        view = View.of(load_scenario(scenario))
        own = make_policy(name).allocate(view)
        plans = {other: make_policy(other).allocate(view) for other in others}
        same = {"bucket_mib": own.bucket_mib}
        apart |= {other for other, plan in plans.items() if plan.model_copy(update=same).sha256 != own.sha256}
    assert apart == set(others)
