"""The engine against formulas: gradients, sharded states, local SGD, graphs, tensor groups, shared links, loaders."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import engine
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Link, Switch
from steelyard.sim.plan import Plan
from steelyard.sim.workload import TensorSplit

FEW = settings(max_examples=40)
seconds = st.floats(1e-3, 10.0)
COUNT = st.integers(2, 5)
GB = 10**9


def data_parallel(build: Any, devices: int, layers: int, each: int = 1, **changes: Any) -> Plan:
    """Every device a pipeline of its own, of so many micro-batches of one sample."""
    pipelines = [build.pipeline([0, layers], [f"d{number}"], [1] * each) for number in range(devices)]
    return Plan(pipelines=pipelines, **changes)


def equal_devices(build: Any, count: int, forward: list[float], backward: list[float], **changes: Any) -> list[Any]:
    return [build.device(f"d{number}", forward, backward, **changes) for number in range(count)]


# Gradients


@FEW
@given(work=st.lists(seconds, min_size=2, max_size=5), latency=st.floats(0, 0.1), gigabytes=st.integers(1, 20))
def test_gradients_take_what_the_ring_takes(build: Any, work: list[float], latency: float, gigabytes: int) -> None:
    """2(p - 1)(a + n / (p B)) after the slowest device; gloo has no other all-reduce."""
    p, n = len(work), gigabytes * GB
    devices = [build.device(f"d{number}", [each], [2 * each]) for number, each in enumerate(work)]
    scenario = build.scenario(
        devices, batch=p, latencies=latency, gb_per_s=2.0, parameters=n // 4, cluster={"backend": "gloo"}
    )
    ring = 2 * (p - 1) * (latency + n / (p * 2 * GB))
    for overlap in (False, True):  # one layer: its gradients are complete at the end of the backward pass
        plan = data_parallel(build, p, 1, overlap=overlap)
        assert build.step_s(scenario, plan) == pytest.approx(3 * max(work) + ring)


@FEW
@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0.5, 4.0)), min_size=2, max_size=5, unique=True))
def test_every_link_of_the_ring_counts(build: Any, links: list[tuple[float, float]]) -> None:
    """2(p - 1) max_i (a_i + n / (p B_i)) over the hops: half of either adapter's latency, the slower one's rate."""
    p, n = len(links), 8 * GB
    scenario = build.scenario(
        equal_devices(build, p, [1.0], [2.0]),
        batch=p,
        latencies=[latency for latency, _ in links],
        gb_per_s=[rate for _, rate in links],
        parameters=n // 4,
        cluster={"backend": "gloo"},
    )
    hops = [(links[i], links[(i + 1) % p]) for i in range(p)]
    ring = 2 * (p - 1) * max((a[0] + b[0]) / 2 + n / (p * min(a[1], b[1]) * GB) for a, b in hops)
    plan = data_parallel(build, p, 1, overlap=False)
    assert build.step_s(scenario, plan) == pytest.approx(3.0 + ring)


@FEW
@given(
    backward=st.lists(seconds, min_size=1, max_size=5),
    sizes=st.lists(st.integers(0, 10), min_size=5, max_size=5),
    least=st.floats(0.0, 30.0),
    count=COUNT,
)
def test_overlapped_gradients_are_hidden_as_far_as_they_can_be(
    build: Any, backward: list[float], sizes: list[int], least: float, count: int
) -> None:
    """What is left of the buckets after the backward pass is exposed.

    A bucket closes at the first layer with which it reaches the least size; it waits for its last gradient, and for the
    bucket before it.
    """
    layers = len(backward)
    scenario = build.scenario(
        equal_devices(build, count, [0.5] * layers, backward),
        batch=count,
        gb_per_s=1.0,
        parameters=[size * GB // 4 for size in sizes[:layers]],
    )
    over, bucket = 0.0, 0
    for layer in reversed(range(layers)):
        bucket += sizes[layer]
        if bucket * GB >= least * GB or layer == 0:
            over = max(over, sum(backward[layer:])) + 2 * (count - 1) / count * bucket
            bucket = 0
    whole = sum(backward) + 2 * (count - 1) / count * sum(sizes[:layers])
    expected = max(over, sum(backward))
    plan = data_parallel(build, count, layers, bucket_mib=max(least * GB / 2**20, 1e-9))
    step_s = build.step_s(scenario, plan)
    assert step_s == pytest.approx(0.5 * layers + expected)
    assert step_s <= 0.5 * layers + whole + 1e-9
    at_once = plan.model_copy(update={"bucket_mib": 1e9})
    assert build.step_s(scenario, at_once) == pytest.approx(0.5 * layers + whole)
    after = plan.model_copy(update={"overlap": False})
    assert build.step_s(scenario, after) == pytest.approx(0.5 * layers + whole)


@settings(max_examples=50)
@given(st.data(), st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 4), st.integers(1, 4), st.integers(2, 3))
def test_overlap_never_costs_time_where_links_have_no_latency(
    build: Any, data: st.DataObject, schedule: Any, depth: int, m: int, width: int
) -> None:
    """Pipelines cut alike, each worker in one group, activations for free."""
    layers = 2 * depth
    times = [data.draw(st.lists(seconds, min_size=layers, max_size=layers)) for _ in range(2)]
    slow = data.draw(st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=width * depth, max_size=width * depth))
    devices = [build.device(f"d{number}", *times, slowdown=each) for number, each in enumerate(slow)]
    sizes = data.draw(st.lists(st.integers(0, 8), min_size=layers, max_size=layers))
    scenario = build.scenario(devices, batch=width * m, gb_per_s=1.0, parameters=[each * GB // 4 for each in sizes])
    pipelines = [
        build.pipeline(range(0, layers + 1, 2), [f"d{w * depth + s}" for s in range(depth)], [1] * m)
        for w in range(width)
    ]
    bucket = data.draw(st.sampled_from([1e-9, 3 * GB / 2**20, 1e9]))
    plan = Plan(pipelines=pipelines, schedule=schedule, bucket_mib=bucket)
    after = build.step_s(scenario, plan.model_copy(update={"overlap": False}))
    assert build.step_s(scenario, plan) <= after * (1 + 1e-9)


def test_devices_that_share_their_cores_with_the_network_do_not_overlap(build: Any) -> None:
    for overlaps, expected in ((True, 1.0 + 4.0 + 2.0), (False, 1.0 + 4.0 + 4.0)):
        devices = equal_devices(build, 2, [0.5, 0.5], [2.0, 2.0], overlaps=overlaps)
        scenario = build.scenario(devices, batch=2, gb_per_s=1.0, parameters=2 * GB // 4)
        assert build.step_s(scenario, data_parallel(build, 2, 2, bucket_mib=1e-9)) == pytest.approx(expected)


# Sharded states


@FEW
@given(count=COUNT, gigabytes=st.integers(1, 20), once=seconds, m=st.integers(1, 3))
def test_zero_1_and_2_move_as_much_as_an_all_reduce(
    build: Any, count: int, gigabytes: int, once: float, m: int
) -> None:
    """Reduce-scatter and all-gather are its two halves; the update is divided."""
    devices = equal_devices(build, count, [0.1], [0.2], optimizer=[once])
    scenario = build.scenario(devices, batch=count * m, gb_per_s=1.0, parameters=gigabytes * GB // 4)
    plain = build.step_s(scenario, data_parallel(build, count, 1, m, overlap=False))
    assert plain == pytest.approx(0.3 * m + 2 * (count - 1) / count * gigabytes + once)
    for zero in (1, 2):
        plan = data_parallel(build, count, 1, m, overlap=False, zero=zero)
        assert build.step_s(scenario, plan) == pytest.approx(plain - once * (1 - 1 / count))


@FEW
@given(weights=st.lists(st.integers(1, 8), min_size=2, max_size=4), once=seconds)
def test_unequal_shares_of_the_states(build: Any, weights: list[int], once: float) -> None:
    """Each updates its own share; a ring of unequal chunks is as slow as the largest makes it."""
    count, total = len(weights), sum(weights)
    shares = {f"d{number}": weight / total for number, weight in enumerate(weights)}
    devices = equal_devices(build, count, [0.1], [0.2], optimizer=[once])
    scenario = build.scenario(devices, batch=count, gb_per_s=1.0, parameters=3 * GB // 4)
    plan = data_parallel(build, count, 1, overlap=False, zero=1, state_shares=shares)
    ring = 2 * (count - 1) * 3 * max(weights) / total
    assert build.step_s(scenario, plan) == pytest.approx(0.3 + ring + once * max(weights) / total)


@FEW
@given(count=COUNT, m=st.integers(1, 4), times=st.tuples(seconds, seconds))
def test_zero_3_on_free_links_computes_as_zero_0(build: Any, count: int, m: int, times: tuple[float, float]) -> None:
    devices = equal_devices(build, count, [times[0]] * 2, [times[1]] * 2)
    scenario = build.scenario(devices, batch=count * m, parameters=1000)
    plain = build.step_s(scenario, data_parallel(build, count, 2, m))
    assert build.step_s(scenario, data_parallel(build, count, 2, m, zero=3)) == pytest.approx(plain)


@FEW
@given(
    count=COUNT,
    m=st.integers(1, 3),
    layers=st.integers(1, 4),
    forward=seconds,
    backward=seconds,
    size=st.integers(1, 8),
)
def test_zero_3_gathers_for_every_piece(
    build: Any, count: int, m: int, layers: int, forward: float, backward: float, size: int
) -> None:
    """A gather per pass, and a scatter of the gradients: g, and g + s.

    The first layer's part comes before the pass, the rest beside it: max(g / L + f, g).
    """
    devices = equal_devices(build, count, [forward / layers] * layers, [backward / layers] * layers)
    scenario = build.scenario(devices, batch=count * m, gb_per_s=1.0, parameters=size * GB // 4)
    gather = (count - 1) / count * size * layers
    passes = max(gather / layers + forward, gather) + max(2 * gather / layers + backward, 2 * gather)
    step_s = build.step_s(scenario, data_parallel(build, count, layers, m, zero=3))
    assert step_s == pytest.approx(m * passes)
    assert step_s >= m * 3 * gather * (1 - 1e-9)


def test_zero_3_goes_at_the_pace_of_the_slowest(build: Any) -> None:
    """Peers come together for every pass: three micro-batches of the slow one, even if the sums were equal."""
    devices = [build.device("d0", [1.0], [3.0]), build.device("d1", [3.0], [1.0])]
    scenario = build.scenario(devices, batch=6)
    assert build.step_s(scenario, data_parallel(build, 2, 1, 3)) == pytest.approx(12.0)
    assert build.step_s(scenario, data_parallel(build, 2, 1, 3, zero=3)) == pytest.approx(18.0)


# Local SGD


@FEW
@given(every=st.integers(2, 8), work=st.lists(seconds, min_size=2, max_size=4), size=st.integers(1, 20), once=seconds)
def test_local_sgd_synchronises_every_so_many_steps(
    build: Any, every: int, work: list[float], size: int, once: float
) -> None:
    """The mean step is the slowest device's plus an all-reduce of the weights over k: nobody waits in between."""
    p = len(work)
    devices = [build.device(f"d{n}", [each], [each], optimizer=[once]) for n, each in enumerate(work)]
    scenario = build.scenario(devices, batch=p, gb_per_s=1.0, parameters=size * GB // 4)
    plan = data_parallel(build, p, 1, sync_every=every)
    launch = build.run(scenario, plan, steps=engine.whole_rounds(2 * every + 1, every))
    means = engine.step_durations([launch], every)
    assert len(means) == 2
    assert means == pytest.approx([2 * max(work) + once + 2 * (p - 1) / p * size / every] * 2)


# Tied layers


@pytest.mark.parametrize("p", [2, 4])
def test_tied_layers_cost_an_all_reduce_only_when_cut_apart(build: Any, p: int) -> None:
    """2(a + n / (2B)) between the first stage and the last, when both are through with their backward passes."""
    n, latency = 3 * GB, 0.25
    steps = []
    for tie in (None, "l0"):
        layers = [{}] * (p - 1) + [{"tied_with": tie}]
        scenario = build.chain(
            [1.0] * p, [2.0] * p, 4, layers=layers, parameters=[n // 4] + [0] * (p - 1), latencies=latency, gb_per_s=1.0
        )
        steps.append(build.step_s(scenario, build.straight(p, 4, "1f1b")))
        whole = Plan(pipelines=[build.pipeline([0, p], ["d0"], [1] * 4)])
        assert build.step_s(scenario, whole) == pytest.approx(4 * 3.0 * p)
    assert steps[1] - steps[0] == pytest.approx(2 * (latency + n / (2 * GB)))


# Graphs


@settings(max_examples=60)
@given(st.data(), st.integers(2, 5), st.integers(1, 4), st.sampled_from(["gpipe", "1f1b"]))
def test_a_stage_starts_when_all_its_inputs_are_there(
    build: Any, data: st.DataObject, p: int, m: int, schedule: str
) -> None:
    """Skip edges and branches: max over the inputs, the same way back; each message is late by c."""
    inputs = [
        data.draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True).map(sorted)) if i else [] for i in range(p)
    ]
    times = [data.draw(st.lists(seconds, min_size=p, max_size=p)) for _ in range(2)]
    c = data.draw(st.floats(0, 5))
    layers = [{"inputs": [f"l{j}" for j in each]} for each in inputs]
    scenario = build.chain(*times, m, layers=layers, latencies=c)
    plan = build.straight(p, m, schedule)
    readers = [[i for i in range(p) if j in inputs[i]] for j in range(p)]
    orders = [
        [(w.pieces[k].backward, w.pieces[k].micro_batch) for k in range(2 * m)]
        for w in compile_plan(scenario, plan).workers
    ]
    ends: dict[tuple[bool, int, int], float] = {}
    clocks = [0.0] * p
    while any(orders):
        for i in range(p):
            while orders[i]:
                backward, j = orders[i][0]
                sources = [(backward, k, j) for k in (readers[i] if backward else inputs[i])]
                if any(source not in ends for source in sources):
                    break
                orders[i].pop(0)
                clocks[i] = max([clocks[i], *[ends[source] + c for source in sources]]) + times[backward][i]
                ends[backward, i, j] = clocks[i]
    assert build.run(scenario, plan, steps=1).ends[0] == pytest.approx(max(clocks))


# Tensor parallelism


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_tensor_groups_add_their_collectives(build: Any, degree: int, sequence: bool, recompute: Any) -> None:
    """Per layer and micro-batch two all-reduces forward and two backward, those of the forward again if recomputed.

    With sequence parallelism as many pairs of a reduce-scatter and an all-gather, of the same volume.
    """
    layers, samples, m, latency = 3, 2, 4, 1e-3
    split = TensorSplit(divisor=4, forward_elements=[[GB / 8]] * 2, backward_elements=[[GB / 8]] * 2)
    devices = equal_devices(build, degree, [1.0] * layers, [2.0] * layers, degrees=(1, 2, 4))
    scenario = build.scenario(
        devices,
        batch=samples * m,
        per_node=degree,
        latencies=latency,
        gb_per_s=1.0,
        layers=[{"tensor": split}] * layers,
        cluster={"backend": "nccl"},
    )
    names = [f"d{number}" for number in range(degree)]
    plan = Plan(
        pipelines=[build.pipeline([0, layers], [names], [samples] * m, sequence_parallel=sequence, recompute=recompute)]
    )
    again = recompute == "full"
    n = samples * GB / 8 * 4
    ring = 2 * (degree - 1) * latency + 2 * (degree - 1) / degree * n / GB
    tree = 2 * math.ceil(math.log2(degree)) * latency + 2 * n / GB
    each = ring if sequence else min(ring, tree)
    compute = samples * layers * (3.0 + again) / degree
    expected = m * (compute + (layers * (6 if again else 4) * each if degree > 1 else 0.0))
    assert build.step_s(scenario, plan) == pytest.approx(expected)


# Links that are shared


def racks(build: Any, uplink_gb_per_s: float, gigabytes: float, pipelines: int) -> tuple[Any, Plan]:
    """Pipelines of two stages, the first in one rack and the second in the other; adapters of 1 GB/s."""
    devices = equal_devices(build, 2 * pipelines, [1.0, 1.0], [2.0, 2.0])
    uplink = Link(name="uplink", latency_us=0.0, bandwidth_gb_per_s=uplink_gb_per_s)
    scenario = build.scenario(
        devices,
        batch=pipelines,
        gb_per_s=1.0,
        outputs=[gigabytes * GB / 4, 0.0],
        parameters=0,
        nodes=[{"switch": f"rack{number % 2}"} for number in range(2 * pipelines)],
        cluster={"switches": [Switch(name=f"rack{number}", uplink=uplink) for number in range(2)]},
    )
    made = [build.pipeline([0, 1, 2], [f"d{2 * n}", f"d{2 * n + 1}"], [1]) for n in range(pipelines)]
    return scenario, Plan(pipelines=made)


@FEW
@given(pipelines=st.integers(1, 4), uplink=st.floats(0.25, 6.0), gigabytes=st.floats(0.1, 10.0))
def test_transfers_at_once_share_the_uplink(build: Any, pipelines: int, uplink: float, gigabytes: float) -> None:
    """Each gets its part of the uplink, or its adapter's rate; forward and back: 6 + 2 n / min(1, u / k)."""
    scenario, plan = racks(build, uplink, gigabytes, pipelines)
    rate = min(1.0, uplink / pipelines)
    assert build.step_s(scenario, plan) == pytest.approx(6.0 + 2 * gigabytes / rate)


def test_two_transfers_over_an_oversubscribed_switch_take_twice_as_long(build: Any) -> None:
    alone, both = (build.step_s(*racks(build, 1.0, 3.0, number)) for number in (1, 2))
    assert alone == pytest.approx(6.0 + 2 * 3.0)
    assert both == pytest.approx(6.0 + 2 * 3.0 * 2)


# The input pipeline


@FEW
@given(
    rate=st.floats(0.05, 20.0), work=seconds, m=st.integers(1, 4), samples=st.integers(1, 3), width=st.integers(1, 3)
)
def test_a_loader_that_is_too_slow_sets_the_throughput(
    build: Any, rate: float, work: float, m: int, samples: int, width: int
) -> None:
    """The smaller of what the node's loader delivers and what its devices compute."""
    devices = equal_devices(build, width, [work], [work])
    scenario = build.scenario(
        devices, batch=width * m * samples, per_node=width, nodes=[{"loader_samples_per_s": rate}]
    )
    plan = Plan(pipelines=[build.pipeline([0, 1], [f"d{n}"], [samples] * m) for n in range(width)])
    launch = build.run(scenario, plan, steps=24)
    step_s = (launch.ends[-1] - launch.ends[7]) / 16
    assert width * m * samples / step_s == pytest.approx(min(rate, width / (2 * work)), rel=1e-9)


@pytest.mark.parametrize("rate", [0.5, 1.0, 100.0])
def test_what_waits_for_data_is_a_line_of_its_own(build: Any, rate: float) -> None:
    scenario = build.scenario(equal_devices(build, 1, [0.5], [0.5]), batch=2, nodes=[{"loader_samples_per_s": rate}])
    launch = build.run(scenario, Plan(pipelines=[build.pipeline([0, 1], ["d0"], [1, 1])]), steps=9)
    line = build.ledgers(launch, ["d0"])["d0"]
    assert line.input_s == pytest.approx(max(0.0, 2 / rate - 2.0), abs=1e-9)
    assert line.compute_s == pytest.approx(2.0)


def test_pipelines_are_fed_at_their_first_stages_only(build: Any) -> None:
    """A loader on the second stage's node has nothing to do."""
    for node, expected in ((0, 2 / 0.1), (1, 3.0 * 3)):
        nodes = [{"loader_samples_per_s": 0.1} if number == node else {} for number in range(2)]
        scenario = build.chain([1.0, 1.0], [2.0, 2.0], 2, nodes=nodes)
        assert build.step_s(scenario, build.straight(2, 2, "1f1b"), steps=12) == pytest.approx(expected), node
