"""Networks and collectives against their closed forms: rings, trees, adapters, switches, and tables of measurements."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from steelyard.results.errors import InputError
from steelyard.sim.device import Cluster, CollectiveKind, CollectiveTable
from steelyard.sim.fluid import Fluid
from steelyard.sim.network import Network, Transfer, network_of

Document = dict[str, Any]
NVLINK = {"name": "nvlink", "latency_us": 2.0, "bandwidth_gb_per_s": 300.0}
FABRIC = {"name": "fabric", "latency_us": 5.0, "bandwidth_gb_per_s": 25.0}
KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)
GROUPS = [kind for kind in KINDS if kind != "point_to_point"]

latencies = st.floats(0.1, 100.0)
bandwidths = st.floats(0.1, 1000.0)
bytes_sent = st.floats(1.0, 1e11)


def device(name: str) -> Document:
    return {"name": name, "peak_tflops": {"bf16": 100.0}, "memory_gib": 80.0, "memory_bandwidth_gb_per_s": 2000.0}


def cluster(nodes: list[int], link: Document = NVLINK, network: Document | None = FABRIC, **more: Any) -> Cluster:
    """Nodes n0, n1, ... of so many devices n0/0, n0/1, ...; a list under ``node`` says more of each."""
    extra = more.pop("node", [{}] * len(nodes))
    machines = [
        {"name": f"n{i}", "devices": [device(f"n{i}/{j}") for j in range(count)], "link": link, **extra[i]}
        for i, count in enumerate(nodes)
    ]
    return Cluster.model_validate({"nodes": machines, "network": network, **more})


def names(of: Cluster) -> list[str]:
    return [each.name for each in of.devices]


def busiest(network: Network, transfer: Transfer) -> float:
    return max((weight / network.capacities[resource] for resource, weight in transfer.uses), default=0.0)


def load(network: Network, transfer: Transfer) -> dict[str, float]:
    return {network.names[resource]: weight for resource, weight in transfer.uses}


@st.composite
def clusters(draw: st.DrawFn, **fixed: Any) -> Cluster:
    """One to four machines, alike or not, on one network or under switches."""
    link = st.builds(
        lambda latency, there, back, shared: {
            "name": "link",
            "latency_us": latency,
            "bandwidth_gb_per_s": there,
            "reverse_bandwidth_gb_per_s": back,
            "shared": shared,
        },
        latencies,
        bandwidths,
        st.none() | bandwidths,
        st.booleans(),
    )
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    switches = draw(
        st.sampled_from(
            [[], [{"name": "a"}], [{"name": "a"}, {"name": "b", "parent": "a"}], [{"name": "a"}, {"name": "b"}]]
        )
    )
    choices = [None, *(switch["name"] for switch in switches)]
    node = [
        {
            "link": draw(link),
            "nics": draw(st.integers(1, 4)),
            "switch": draw(st.sampled_from(choices)),
            "network": draw(st.none() | link),
        }
        for _ in sizes
    ]
    uplinks = [{**switch, "uplink": draw(link)} for switch in switches]
    settings = {"network": draw(link), "switches": uplinks, "backend": draw(st.sampled_from(["nccl", "gloo"])), **fixed}
    return cluster(sizes, node=node, **settings)


# What holds for every collective on every cluster


@given(clusters(), st.sampled_from(KINDS), bytes_sent)
def test_lone_seconds_are_latency_and_the_busiest_resource(where: Cluster, kind: CollectiveKind, size: float) -> None:
    network, members = Network(where), names(where)
    transfer = network.collective(kind, members, size)
    assert transfer.alone_s == pytest.approx(
        transfer.latency_s + transfer.volume_bytes * busiest(network, transfer), rel=1e-9
    )
    assert transfer.latency_s >= 0
    assert all(weight > 0 for _, weight in transfer.uses)
    if len(members) < 2:
        assert transfer.alone_s == 0
        assert transfer.uses == ()
    else:
        assert transfer.alone_s > 0
        assert transfer.fidelity == "datasheet"


@given(clusters(), st.sampled_from(KINDS), bytes_sent)
def test_alone_in_the_fluid_it_takes_its_lone_seconds(where: Cluster, kind: CollectiveKind, size: float) -> None:
    network = Network(where)
    transfer = network.collective(kind, names(where), size)
    fluid = Fluid(network.capacities)
    fluid.start(transfer.latency_s, transfer.volume_bytes, transfer.uses, "it")
    assert fluid.next_end(transfer.latency_s) == pytest.approx(transfer.alone_s, rel=1e-9)


@given(clusters(), st.sampled_from(KINDS), bytes_sent, st.floats(1.0, 10.0))
def test_more_bytes_never_take_less(where: Cluster, kind: CollectiveKind, size: float, factor: float) -> None:
    network, members = Network(where), names(where)
    less, more = network.collective(kind, members, size), network.collective(kind, members, factor * size)
    assert more.alone_s >= less.alone_s * (1 - 1e-12)


@given(clusters(), st.sampled_from(GROUPS), bytes_sent, st.randoms())
def test_the_order_of_the_others_does_not_matter(
    where: Cluster, kind: CollectiveKind, size: float, random: Any
) -> None:
    root, *others = names(where)
    shuffled = random.sample(others, len(others))
    network = Network(where)
    one, other = network.collective(kind, [root, *others], size), network.collective(kind, [root, *shuffled], size)
    assert other.alone_s == pytest.approx(one.alone_s, rel=1e-12)
    assert dict(other.uses) == pytest.approx(dict(one.uses), rel=1e-12)


def scaled(link: Document, factor: float) -> Document:
    back = link["reverse_bandwidth_gb_per_s"]
    slower = {"latency_us": link["latency_us"] * factor, "bandwidth_gb_per_s": link["bandwidth_gb_per_s"] / factor}
    return {**link, **slower, "reverse_bandwidth_gb_per_s": back and back / factor}


@given(clusters(), st.sampled_from(KINDS), bytes_sent, st.floats(1.0, 100.0))
def test_links_k_times_as_slow_take_k_times_as_long(
    where: Cluster, kind: CollectiveKind, size: float, factor: float
) -> None:
    document = where.model_dump()
    for node in document["nodes"]:
        node["link"] = scaled(node["link"], factor)
        node["network"] = node["network"] and scaled(node["network"], factor)
    document["network"] = scaled(document["network"], factor)
    for switch in document["switches"]:
        switch["uplink"] = scaled(switch["uplink"], factor)
    slower = Network(Cluster.model_validate(document)).collective(kind, names(where), size)
    assert slower.alone_s == pytest.approx(
        factor * Network(where).collective(kind, names(where), size).alone_s, rel=1e-9
    )


@given(st.sampled_from(KINDS), st.sampled_from(["nccl", "gloo"]))
def test_free_links_take_no_time(kind: CollectiveKind, backend: str) -> None:
    free = {"name": "free", "latency_us": 0.0, "bandwidth_gb_per_s": 1e30}
    where = cluster([3, 2], link=free, network=free, backend=backend)
    assert Network(where).collective(kind, names(where), 1e12).alone_s < 1e-20


def test_one_rank_has_nothing_to_send() -> None:
    where = cluster([2])
    for kind in GROUPS:
        for members in (["n0/0"], ["n0/1", "n0/1"]):
            assert network_of(where).collective(kind, members, 1e9) == Transfer(0.0, 0.0, (), 0.0, "profiled")


def test_a_network_is_made_once_per_cluster() -> None:
    where = cluster([2])
    assert network_of(where) is network_of(where)
    assert network_of(where) is not network_of(cluster([2]))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"devices: 'n7/0' is not in the cluster"):
        network_of(cluster([2])).collective("all_reduce", ["n0/0", "n7/0"], 1.0)


def test_an_algorithm_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="algorithm: 'tree' is no way of doing all_gather"):
        Network(cluster([2])).collective("all_gather", ["n0/0", "n0/1"], 1.0, algorithm="tree")
    uneven = cluster([2, 1])
    with pytest.raises(InputError, match="'hierarchical' is no way of doing all_reduce over these 3"):
        Network(uneven).collective("all_reduce", names(uneven), 1.0, algorithm="hierarchical")


# Closed forms within one machine


@given(st.integers(2, 20), latencies, bandwidths, bytes_sent)
def test_ring_formulas(ranks: int, latency_us: float, gb_per_s: float, size: float) -> None:
    """Patarasuk and Yuan 2009; reduce-scatter and all-gather are its halves, all-to-all moves as much as a half."""
    a, b = latency_us * 1e-6, 1e-9 / gb_per_s
    link = {"name": "link", "latency_us": latency_us, "bandwidth_gb_per_s": gb_per_s}
    where = cluster([ranks], link=link, network=None)
    network, members = Network(where), names(where)
    half = (ranks - 1) * a + (ranks - 1) / ranks * size * b
    assert network.collective("all_reduce", members, size).alone_s == pytest.approx(2 * half)
    for kind in ("reduce_scatter", "all_gather", "all_to_all"):
        assert network.collective(kind, members, size).alone_s == pytest.approx(half)  # type: ignore[arg-type]
    assert network.point_to_point(members[0], members[1], size).alone_s == pytest.approx(a + size * b)
    chain = network.collective("broadcast", members, size, algorithm="ring").alone_s
    assert chain == pytest.approx((ranks - 1) * a + size * b)
    binomial = network.collective("broadcast", members, size, algorithm="tree").alone_s
    assert binomial == pytest.approx(math.ceil(math.log2(ranks)) * (a + size * b))


@given(st.integers(2, 40), latencies, bandwidths, bytes_sent)
def test_double_binary_tree_between_machines(machines: int, latency_us: float, gb_per_s: float, size: float) -> None:
    a, b = latency_us * 1e-6, 1e-9 / gb_per_s
    fabric = {"name": "fabric", "latency_us": latency_us, "bandwidth_gb_per_s": gb_per_s}
    where = cluster([1] * machines, network=fabric)
    network, members = Network(where), names(where)
    tree = network.collective("all_reduce", members, size, algorithm="tree").alone_s
    assert tree == pytest.approx(2 * math.ceil(math.log2(machines)) * a + 2 * size * b)
    ring = network.collective("all_reduce", members, size, algorithm="ring").alone_s
    assert network.collective("all_reduce", members, size).alone_s == min(tree, ring)


@given(st.integers(2, 16), bytes_sent)
def test_every_byte_of_a_ring_is_counted(ranks: int, size: float) -> None:
    """Each port sends and receives 2 (p - 1) / p of the buffer: the least that an all-reduce can do."""
    where = cluster([ranks], network=None)
    network = Network(where)
    transfer = network.collective("all_reduce", names(where), size)
    assert len(transfer.uses) == 2 * ranks
    assert [weight for _, weight in transfer.uses] == pytest.approx([2 * (ranks - 1) / ranks] * 2 * ranks)


def test_gloo_has_one_ring_and_scatters_by_reducing_all() -> None:
    where = cluster([4, 4], node=[{"nics": 4}] * 2, backend="gloo")
    network, members = Network(where), names(where)
    reduced = network.collective("all_reduce", members, 1e3)
    assert reduced == network.collective("all_reduce", members, 1e3, algorithm="ring")
    assert network.collective("reduce_scatter", members, 1e3) == reduced
    assert {name for name in load(network, reduced) if "nic" in name} == {
        *("n0: nic 3 out", "n0: nic 0 in"),
        *("n1: nic 3 out", "n1: nic 0 in"),
    }


@given(st.integers(2, 8), latencies, bandwidths, bytes_sent)
def test_a_bus_carries_every_hop(ranks: int, latency_us: float, gb_per_s: float, size: float) -> None:
    bus = {"name": "bus", "latency_us": latency_us, "bandwidth_gb_per_s": gb_per_s, "shared": True}
    where = cluster([ranks], link=bus, network=None)
    network, members = Network(where), names(where)
    assert network.names == ("n0: bus",)
    taken = network.collective("all_reduce", members, size).alone_s
    assert taken == pytest.approx(2 * (ranks - 1) * (latency_us * 1e-6 + size / gb_per_s / 1e9))
    apart = network.collective("all_to_all", members, size)
    assert load(network, apart) == pytest.approx({"n0: bus": ranks - 1})


def test_the_slower_direction_sets_the_pace() -> None:
    where = cluster([2], link={**NVLINK, "reverse_bandwidth_gb_per_s": 3.0}, network=None)
    network = Network(where)
    assert network.names == ("n0/0: nvlink out", "n0/0: nvlink in", "n0/1: nvlink out", "n0/1: nvlink in")
    assert list(network.capacities) == [300e9, 3e9, 300e9, 3e9]
    assert network.point_to_point("n0/0", "n0/1", 3e9).alone_s == pytest.approx(1.0, rel=1e-5)


# Several machines


@st.composite
def plain(draw: st.DrawFn) -> tuple[Cluster, int]:
    """Machines with one adapter each on one network, as clusters of data-parallel lanes are."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    link, fabric = (
        {"name": name, "latency_us": draw(latencies), "bandwidth_gb_per_s": draw(bandwidths)}
        for name in ("in", "between")
    )
    return cluster(sizes, link=link, network=fabric), sum(sizes)


@given(plain(), bytes_sent)
def test_a_lock_step_ring_is_as_slow_as_its_slowest_link(case: tuple[Cluster, int], size: float) -> None:
    """2 (p - 1) max_i(a_i + n / (p B_i)) over the links that the ring uses, each adapter once out and once in."""
    where, ranks = case
    links = [node.link for node in where.nodes if len(node.devices) > 1]
    if len(where.nodes) > 1:
        assert where.network is not None
        links.append(where.network)
    expected = max((2 * (ranks - 1) * (each.latency_s + size / ranks / each.bandwidth) for each in links), default=0.0)
    transfer = Network(where).collective("all_reduce", names(where), size, algorithm="ring")
    assert transfer.alone_s == pytest.approx(expected, rel=1e-12)


@given(st.integers(2, 6), st.integers(1, 8), st.integers(1, 8), bytes_sent)
def test_hierarchical_all_reduce(machines: int, local: int, nics: int, size: float) -> None:
    """RS_g(n) + AR_m(n/g) + AG_g(n), the adapters shared by the devices that they are dealt to."""
    where = cluster([local] * machines, node=[{"nics": nics}] * machines)
    sharing = max([index * nics // local for index in range(local)].count(nic) for nic in range(nics))
    inner = 2 * ((local - 1) * 2e-6 + (local - 1) / local * size / 300e9)
    outer = 2 * (machines - 1) * (5e-6 + size / local / machines * sharing / 25e9)
    taken = Network(where).collective("all_reduce", names(where), size, algorithm="hierarchical")
    assert taken.alone_s == pytest.approx(inner + outer)


@given(st.integers(2, 4), st.integers(1, 4))
def test_nccl_runs_a_ring_per_adapter(machines: int, nics: int) -> None:
    """Eight devices a machine: each adapter carries its part of the ring's bytes once out and once in."""
    where = cluster([8] * machines, node=[{"nics": nics}] * machines)
    network = Network(where)
    weights = load(network, network.collective("all_reduce", names(where), 1e9, algorithm="ring"))
    ranks = 8 * machines
    adapters = {name: weight for name, weight in weights.items() if "nic" in name}
    assert len(adapters) == 2 * nics * machines
    assert list(adapters.values()) == pytest.approx([2 * (ranks - 1) / ranks / nics] * len(adapters))


def test_an_adapter_is_shared_by_its_devices() -> None:
    """Four senders on one adapter take four times as long as one, on four adapters no longer."""
    for nics, factor in ((1, 4.0), (2, 2.0), (4, 1.0)):
        network = Network(cluster([4, 4], node=[{"nics": nics}] * 2))
        fluid = Fluid(network.capacities)
        for number in range(4):
            sent = network.point_to_point(f"n0/{number}", f"n1/{number}", 25e9)
            fluid.start(0.0, sent.volume_bytes, sent.uses, number)
        end = fluid.next_end(0.0)
        assert end == pytest.approx(factor)
        assert end is not None
        assert fluid.finish(end) == [0, 1, 2, 3]


def racks(uplink: float, **more: Any) -> Cluster:
    """Two racks of two machines with one device each."""
    link = {"name": "up", "latency_us": 7.0, "bandwidth_gb_per_s": uplink, **more}
    switches = [{"name": "left", "uplink": link}, {"name": "right", "uplink": link}]
    node = [{"switch": "left"}, {"switch": "left"}, {"switch": "right"}, {"switch": "right"}]
    return cluster([1] * 4, switches=switches, node=node)


def test_an_oversubscribed_uplink_halves_what_two_machines_send() -> None:
    network = Network(racks(25.0))
    fluid = Fluid(network.capacities)
    for source, target in (("n0/0", "n2/0"), ("n1/0", "n3/0")):
        sent = network.point_to_point(source, target, 25e9)
        assert sent.alone_s == pytest.approx(1.0 + 5e-6 + 2 * 7e-6)
        fluid.start(0.0, sent.volume_bytes, sent.uses, source)
    assert dict(fluid.rates(0.0)) == pytest.approx({"n0/0": 12.5e9, "n1/0": 12.5e9})


def test_a_route_climbs_no_higher_than_it_must() -> None:
    network = Network(racks(10.0, reverse_bandwidth_gb_per_s=5.0))
    near, far = network.point_to_point("n0/0", "n1/0", 5e9), network.point_to_point("n1/0", "n2/0", 5e9)
    assert set(load(network, near)) == {"n0: nic 0 out", "n1: nic 0 in"}
    assert set(load(network, far)) == {"n1: nic 0 out", "left: uplink up", "right: uplink down", "n2: nic 0 in"}
    assert near.alone_s == pytest.approx(0.2 + 5e-6)
    assert far.alone_s == pytest.approx(1.0 + 5e-6 + 2 * 7e-6)


def test_switches_in_a_tree() -> None:
    """Two racks in one row and one in another: the row's uplink is crossed only when the row is left."""
    link = {"name": "up", "latency_us": 1.0, "bandwidth_gb_per_s": 10.0}
    switches = [
        {"name": "row", "uplink": link},
        *(
            {"name": name, "uplink": link, "parent": parent}
            for name, parent in (("a", "row"), ("b", "row"), ("c", None))
        ),
    ]
    where = cluster([1] * 4, switches=switches, node=[{"switch": "a"}, {"switch": "b"}, {"switch": "c"}, {}])
    network = Network(where)

    def uplinks(source: str, target: str) -> set[str]:
        return {name for name in load(network, network.point_to_point(source, target, 1.0)) if "uplink" in name}

    assert uplinks("n0/0", "n1/0") == {"a: uplink up", "b: uplink down"}
    assert uplinks("n1/0", "n2/0") == {"b: uplink up", "row: uplink up", "c: uplink down"}
    assert uplinks("n3/0", "n0/0") == {"row: uplink down", "a: uplink down"}


def test_a_ring_leaves_a_rack_once() -> None:
    """Whatever the order in which the machines were listed."""
    where = racks(10.0)
    crossed = where.model_copy(update={"nodes": [where.nodes[0], where.nodes[2], where.nodes[1], where.nodes[3]]})
    network = Network(crossed)
    weights = load(network, network.collective("all_reduce", names(crossed), 1e9, algorithm="ring"))
    assert weights["left: uplink up"] == weights["n0: nic 0 out"] == 2 * 3 / 4


def test_machines_with_their_own_adapters() -> None:
    """Half of each end's latency; the thinner adapter limits; a shared one carries both directions."""
    slow = {"name": "slow", "latency_us": 25.0, "bandwidth_gb_per_s": 1.0, "shared": True}
    network = Network(cluster([1, 1], node=[{}, {"network": slow}]))
    assert network.names[4:5] == ("n1: nic 0",)
    assert network.point_to_point("n0/0", "n1/0", 1e9).alone_s == pytest.approx(1.0 + 15e-6)
    both = network.collective("all_reduce", ["n0/0", "n1/0"], 1e9, algorithm="ring")
    assert load(network, both)["n1: nic 0"] == 2.0


def test_a_shared_network_is_one_medium() -> None:
    where = cluster([1] * 4, network={**FABRIC, "shared": True})
    network = Network(where)
    assert "network: fabric" in network.names
    assert load(network, network.collective("all_reduce", names(where), 1.0, algorithm="ring")) == {
        "network: fabric": pytest.approx(4 * 2 * 3 / 4)
    }


@given(clusters())
def test_all_to_all_is_all_the_messages(where: Cluster) -> None:
    """Its closed form counts what every pair's message crosses."""
    network, members = Network(where), names(where)
    expected: dict[int, float] = {}
    latency = 0.0
    for source, target in itertools.permutations(members, 2):
        message = network.point_to_point(source, target, 0.0)
        latency = max(latency, message.alone_s)
        for resource, weight in message.uses:
            expected[resource] = expected.get(resource, 0.0) + weight / len(members)
    transfer = network.collective("all_to_all", members, 0.0)
    assert dict(transfer.uses) == pytest.approx(expected)
    assert transfer.alone_s == pytest.approx((len(members) - 1) * latency)


@given(clusters(), bytes_sent)
def test_reduce_scatter_and_all_gather_are_an_all_reduce(where: Cluster, size: float) -> None:
    nccl = where.model_copy(update={"backend": "nccl"})
    network, members = Network(nccl), names(where)
    parts = [network.collective(kind, members, size).alone_s for kind in ("reduce_scatter", "all_gather")]  # type: ignore[arg-type]
    assert sum(parts) == pytest.approx(network.collective("all_reduce", members, size, algorithm="ring").alone_s)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(["tree", "ring"]), st.data())
def test_a_broadcast_comes_to_everyone_once(sizes: list[int], algorithm: Any, data: st.DataObject) -> None:
    """Into each device but the root, whichever that is, the buffer flows once, by its own port or its adapter's."""
    where = cluster(sizes)
    network, members = Network(where), names(where)
    root = data.draw(st.sampled_from(members))
    transfer = network.collective("broadcast", [root, *members], 1e9, algorithm=algorithm)
    received = sum(weight for name, weight in load(network, transfer).items() if name.endswith(" in"))
    assert received == pytest.approx(len(members) - 1)


# Tables


def table(**fields: Any) -> Document:
    points = fields.pop("points", {1000: 1e-4, 10_000: 2e-4, 1_000_000: 4e-3})
    return {"backend": "nccl", "points": [{"bytes": n, "seconds": s} for n, s in points.items()], **fields}


def test_a_table_over_these_devices() -> None:
    """Its points; log-log between them; below the first its time, above the last its rate."""
    where = cluster([3], network=None, collectives=[table(devices=["n0/0", "n0/1", "n0/2"])])
    network, members = Network(where), names(where)
    for size, seconds in ((1000, 1e-4), (10_000, 2e-4), (1_000_000, 4e-3), (1, 1e-4), (2_000_000, 8e-3)):
        found = network.collective("all_reduce", members, size)
        assert found.alone_s == pytest.approx(seconds)
        assert found.fidelity == "profiled"
    assert network.collective("all_reduce", members, math.sqrt(1e7)).alone_s == pytest.approx(math.sqrt(2) * 1e-4)
    assert network.collective("all_gather", members, 1000).fidelity == "datasheet"
    assert network.measured("all_reduce", members) is where.collectives[0]


def test_a_table_over_more_devices_is_scaled_by_what_a_ring_moves() -> None:
    where = cluster([3], network=None, collectives=[table(devices=["n0/0", "n0/1", "n0/2"])])
    found = Network(where).collective("all_reduce", ["n0/2", "n0/0"], 1_000_000)
    assert found.alone_s == pytest.approx(4e-3 * (1 / 2) / (2 / 3))
    assert found.fidelity == "calibrated"


def test_contention_stretches_only_what_flows() -> None:
    """What the smallest message takes is latency; the rest flows, and so shares the link with others."""
    where = cluster([2], network=None, collectives=[table(devices=["n0/0", "n0/1"])])
    network = Network(where)
    transfer = network.collective("all_reduce", names(where), 1_000_000)
    assert transfer.latency_s == pytest.approx(1e-4)
    assert transfer.alone_s == pytest.approx(transfer.latency_s + transfer.volume_bytes * busiest(network, transfer))
    fluid = Fluid(network.capacities)
    for token in range(2):
        fluid.start(0.0, transfer.volume_bytes, transfer.uses, token)
    assert fluid.next_end(0.0) == pytest.approx(2 * (4e-3 - 1e-4))


CURVE = {10**power: 2e-5 + 10**power * 5e-11 + 4e-5 * (power > 5) for power in range(2, 10)}


def measured(*of: tuple[int, int, float]) -> list[Document]:
    """Tables over so many ranks on so many nodes, the curve times a factor."""
    return [table(ranks=p, nodes=m, points={n: s * k for n, s in CURVE.items()}) for p, m, k in of]


def test_like_ranks_take_what_their_table_says() -> None:
    where = cluster([8], network=None, collectives=measured((2, 1, 1.0), (4, 1, 1.5), (8, 1, 1.75)))
    network = Network(where)
    for ranks, factor in ((2, 1.0), (4, 1.5), (8, 1.75)):
        for size, seconds in CURVE.items():
            found = network.collective("all_reduce", names(where)[-ranks:], size)
            assert found.alone_s == pytest.approx(factor * seconds)
            assert found.fidelity == "calibrated"


@given(st.floats(1.0, 1e11))
def test_between_measured_ranks_lies_between_them(size: float) -> None:
    where = cluster([8], network=None, collectives=measured((4, 1, 1.5), (8, 1, 1.75)))
    network, members = Network(where), names(where)
    few, some, many = (network.collective("all_reduce", members[:ranks], size).alone_s for ranks in (4, 6, 8))
    assert few * 0.99 <= some <= many * 1.01


@given(st.floats(1.0, 1e11), st.floats(1.0, 100.0), st.integers(2, 8))
def test_tables_of_like_ranks_never_fall_with_the_size(size: float, factor: float, ranks: int) -> None:
    """A spike in a table is no reason to: the message could have been padded."""
    spiked = {**CURVE, 1000: 5e-3}
    where = cluster([8], network=None, collectives=[table(ranks=4, points=spiked)])
    network, members = Network(where), names(where)[:ranks]
    less, more = (network.collective("all_reduce", members, each).alone_s for each in (size, size * factor))
    assert more >= less * (1 - 1e-9)
    assert network.collective("all_reduce", members[:4], 1000).alone_s < 1e-4 or ranks != 4


def test_a_formula_that_is_k_times_off_is_mended() -> None:
    """Measured at 4 ranks to be 2.5 x the formula at every size: so it is taken to be at 8."""
    where = cluster([8], network=None)
    formula = Network(where)
    launch = where.devices[0].launch_overhead_us * 1e-6
    seconds = {
        10**power: 2.5 * (launch + formula.collective("all_reduce", names(where)[:4], 10**power).alone_s)
        for power in range(1, 10)
    }
    mended = Network(cluster([8], network=None, collectives=[table(ranks=4, points=seconds)]))
    for size in (1e3, 1e6, 1e9, 1e11):
        expected = 2.5 * (launch + formula.collective("all_reduce", names(where), size).alone_s)
        assert mended.collective("all_reduce", names(where), size).alone_s == pytest.approx(expected, rel=0.01)


def test_machines_and_networks_are_two_worlds() -> None:
    """A table from inside a machine says nothing of the network, nor one of another backend."""
    within = cluster([2, 2], collectives=measured((2, 1, 1.0)))
    network = Network(within)
    assert network.collective("all_reduce", ["n0/0", "n0/1"], 1e6).fidelity == "calibrated"
    assert network.collective("all_reduce", ["n0/0", "n1/0"], 1e6).fidelity == "datasheet"
    between = Network(cluster([2, 2], collectives=measured((4, 2, 1.0))))
    assert between.collective("all_reduce", ["n0/0", "n0/1"], 1e6).fidelity == "datasheet"
    assert between.collective("all_reduce", ["n0/0", "n1/0"], 1e6).fidelity == "calibrated"
    other = Network(within.model_copy(update={"backend": "gloo"}))
    assert other.collective("all_reduce", ["n0/0", "n0/1"], 1e6).fidelity == "datasheet"


def test_of_two_tables_of_as_many_ranks_the_nearer_one_counts() -> None:
    where = cluster([2] * 4, collectives=measured((4, 2, 1.0), (4, 4, 3.0)))
    network = Network(where)
    spread = network.collective("all_reduce", ["n0/0", "n1/0", "n2/0", "n3/0"], 1e3).alone_s
    packed = network.collective("all_reduce", ["n0/0", "n0/1", "n1/0", "n1/1"], 1e3).alone_s
    assert packed == pytest.approx(CURVE[1000])
    assert spread == pytest.approx(3 * CURVE[1000])


def test_an_explicit_algorithm_is_the_formula() -> None:
    where = cluster([2], network=None, collectives=[table(devices=["n0/0", "n0/1"])])
    found = Network(where).collective("all_reduce", names(where), 1e6, algorithm="ring")
    assert found.fidelity == "datasheet"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "needs either devices"),
        ({"devices": ["a", "b"], "ranks": 2}, "needs either devices"),
        ({"devices": ["a", "a"]}, "fewer than two"),
        ({"ranks": 1}, "greater than or equal to 2"),
        ({"ranks": 4, "nodes": 8}, "more than the 4 ranks"),
    ],
)
def test_a_table_says_who_took_part(fields: Document, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        CollectiveTable.model_validate(table(**fields))
