"""Pipelines against theory: GPipe's formula, 1F1B's recurrence, bubbles, what is held; each from plan to step time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import memory
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.workload import TensorSplit

FEW = settings(max_examples=40)
seconds = st.floats(1e-3, 10.0)
COUNT = st.integers(1, 8)
SCHEDULES = st.sampled_from(["gpipe", "1f1b"])


@st.composite
def stages(draw: st.DrawFn, least: int = 1) -> tuple[list[float], list[float]]:
    """Seconds of the forward and the backward pass of each stage."""
    count = draw(st.integers(least, 5))
    return tuple(draw(st.lists(seconds, min_size=count, max_size=count)) for _ in range(2))  # type: ignore[return-value]


def latencies(draw: Any, count: int) -> list[float]:
    return draw(st.lists(st.one_of(st.just(0.0), seconds), min_size=count, max_size=count))


def between(adapters: list[float]) -> list[float]:
    """Latency from each node to the next: half of either adapter's."""
    return [(a + b) / 2 for a, b in itertools.pairwise(adapters)]


# GPipe: exact where a message is late, and where it is in the way of the next


@FEW
@given(stages(), COUNT, st.data())
def test_gpipe_with_late_messages(build: Any, times: tuple[list[float], list[float]], m: int, data: Any) -> None:
    """Sum f + (m - 1) max f + sum b + (m - 1) max b + 2 sum c."""
    forward, backward = times
    adapters = latencies(data.draw, len(forward))
    expected = sum(forward) + (m - 1) * max(forward) + sum(backward) + (m - 1) * max(backward)
    scenario = build.chain(forward, backward, m, latencies=adapters)
    step_s = build.step_s(scenario, build.straight(len(forward), m, "gpipe"))
    one = len(forward) == 1  # then micro-batches are accumulated, one forward and one backward in turn
    assert step_s == pytest.approx(m * (forward[0] + backward[0]) if one else expected + 2 * sum(between(adapters)))


@FEW
@given(stages(least=2), COUNT, st.data())
def test_gpipe_with_occupied_links(build: Any, times: tuple[list[float], list[float]], m: int, data: Any) -> None:
    """Links are stations of the line like stages: the (m - 1) terms become max(f, c) and max(b, c)."""
    forward, backward = times
    busy = data.draw(st.lists(seconds, min_size=len(forward), max_size=len(forward)))
    scenario = build.chain(forward, backward, m, gb_per_s=1.0, outputs=[each * 1e9 / 4 for each in busy])
    links = busy[:-1]
    expected = sum(forward) + sum(backward) + 2 * sum(links)
    expected += (m - 1) * (max(forward + links) + max(backward + links))
    assert build.step_s(scenario, build.straight(len(forward), m, "gpipe")) == pytest.approx(expected)


# 1F1B: the recurrence


def one_forward_one_backward(forward: list[float], backward: list[float], late: list[float], m: int) -> float:
    """physics.md: end(F,i,j) = max(previous on i, end(F,i-1,j) + c_{i-1}) + f_i; end(B,i,j) likewise from i + 1.

    Order: min(p - 1 - i, m) forwards to warm up, then one forward, one backward.
    """
    p = len(forward)
    ends: dict[tuple[str, int, int], float] = {}
    clocks, places = [0.0] * p, [0] * p
    orders = []
    for i in range(p):
        warm = min(p - 1 - i, m)
        ops = [("F", j) for j in range(warm)]
        for j in range(m):
            ops += [("F", warm + j)] if warm + j < m else []
            ops += [("B", j)]
        orders.append(ops)
    while any(place < len(ops) for place, ops in zip(places, orders, strict=True)):
        for i in range(p):
            while places[i] < len(orders[i]):
                kind, j = orders[i][places[i]]
                source = i - 1 if kind == "F" else i + 1
                hop = min(i, source)
                if 0 <= source < p and (kind, source, j) not in ends:
                    break
                come = ends[kind, source, j] + late[hop] if 0 <= source < p else 0.0
                clocks[i] = ends[kind, i, j] = max(clocks[i], come) + (forward[i] if kind == "F" else backward[i])
                places[i] += 1
    return max(clocks)


@FEW
@given(stages(), COUNT, st.data())
def test_1f1b_is_its_recurrence(build: Any, times: tuple[list[float], list[float]], m: int, data: Any) -> None:
    forward, backward = times
    adapters = latencies(data.draw, len(forward))
    scenario = build.chain(forward, backward, m, latencies=adapters)
    step_s = build.step_s(scenario, build.straight(len(forward), m, "1f1b"))
    assert step_s == pytest.approx(one_forward_one_backward(forward, backward, between(adapters), m))


@FEW
@given(stages(), COUNT)
def test_1f1b_is_under_its_upper_bound_on_free_links(
    build: Any, times: tuple[list[float], list[float]], m: int
) -> None:
    """At c = 0: no more than GPipe's time, and no less than its slowest stage, or one micro-batch all the way."""
    forward, backward = times
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    step_s = build.step_s(build.chain(forward, backward, m), build.straight(len(forward), m, "1f1b"))
    assert step_s <= (sum(both) + (m - 1) * (max(forward) + max(backward))) * (1 + 1e-9)
    assert step_s >= max(sum(both), m * max(both)) * (1 - 1e-9)


@FEW
@given(st.lists(seconds, min_size=1, max_size=5), st.floats(0.5, 4.0), COUNT)
def test_1f1b_is_under_the_tighter_bound_where_all_stages_have_one_ratio(
    build: Any, forward: list[float], ratio: float, m: int
) -> None:
    """Sum (f + b) + (m - 1) max (f + b) holds where b/f is the same everywhere; else it can be too low."""
    both = [f * (1 + ratio) for f in forward]
    scenario = build.chain(forward, [ratio * f for f in forward], m)
    step_s = build.step_s(scenario, build.straight(len(forward), m, "1f1b"))
    assert step_s <= (sum(both) + (m - 1) * max(both)) * (1 + 1e-9)


def test_the_tighter_bound_is_none_where_the_ratios_differ(build: Any) -> None:
    """The slowest forward and the slowest backward are on different stages: 18 s, and the formula says 17.5."""
    forward, backward = [1.0, 1.0, 1.0, 3.0, 0.5], [1.0, 1.0, 3.0, 1.0, 1.0]
    step_s = build.step_s(build.chain(forward, backward, 2), build.straight(5, 2, "1f1b"))
    assert step_s == one_forward_one_backward(forward, backward, [0.0] * 4, 2) == 18.0


@pytest.mark.parametrize("workers", [2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3])
def test_1f1b_with_late_messages_has_the_period(build: Any, workers: int, share: float) -> None:
    """Equal stages, latency c: a micro-batch more takes f + b + 2c(p - 1)/p, as p of them make p - 1 round trips."""
    f, b = 1.0, 2.0
    c = share * (f + b)
    rounds = [
        build.step_s(
            build.chain([f] * workers, [b] * workers, m, latencies=c), build.straight(workers, m, "1f1b"), steps=2
        )
        for m in (6 * workers, 7 * workers)
    ]
    assert (rounds[1] - rounds[0]) / workers == pytest.approx(f + b + 2 * c * (workers - 1) / workers)


@settings(max_examples=15)
@given(stages(least=2), st.integers(100, 400), st.data())
def test_long_steps_whose_middle_need_not_be_simulated(
    build: Any, times: tuple[list[float], list[float]], m: int, data: Any
) -> None:
    """Hundreds of micro-batches: the same recurrence, and the same formula with links that are occupied."""
    forward, backward = times
    adapters = latencies(data.draw, len(forward))
    late = build.chain(forward, backward, m, latencies=adapters)
    plan = build.straight(len(forward), m, "1f1b")
    expected = one_forward_one_backward(forward, backward, between(adapters), m)
    assert build.step_s(late, plan, steps=2) == pytest.approx(expected, rel=1e-9)
    busy = build.chain(forward, backward, m, gb_per_s=1.0, outputs=0.7 * 1e9 / 4)
    links = [0.7] * (len(forward) - 1)
    expected = sum(forward) + sum(backward) + 2 * sum(links) + (m - 1) * (max(forward + links) + max(backward + links))
    plan = build.straight(len(forward), m, "gpipe")
    assert build.step_s(busy, plan, steps=2) == pytest.approx(expected, rel=1e-9)


# Bubbles


@settings(max_examples=60)
@given(
    schedule=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    workers=st.integers(2, 5),
    chunks=st.integers(1, 3),
    turns=st.integers(1, 3),
    f=seconds,
    b=seconds,
)
def test_bubble_fractions(build: Any, schedule: Any, workers: int, chunks: int, turns: int, f: float, b: float) -> None:
    """Equal stages, free links: (p - 1)/m of the ideal, and (p - 1)/(v m) interleaved; the same on every worker.

    f and b are those of a whole worker, so that a chunk has a v-th.
    """
    chunks = max(2, chunks) if schedule == "interleaved" else 1
    count, m = workers * chunks, workers * turns
    scenario = build.chain([f / chunks] * count, [b / chunks] * count, m)
    launch = build.run(scenario, build.straight(count, m, schedule, workers))
    ideal = m * (f + b)
    step_s = launch.ends[-1] - launch.ends[-2]
    assert step_s / ideal - 1 == pytest.approx((workers - 1) / (chunks * m))
    for line in build.ledgers(launch, [f"d{number}" for number in range(workers)]).values():
        assert line.compute_s == pytest.approx(ideal)
        assert line.bubble_s + line.idle_s + line.wait_s == pytest.approx((workers - 1) * (f + b) / chunks)


def test_the_law_of_llama_405b(build: Any) -> None:
    """PP8 VP8: k(m + 7/8) + c, where c is what a step does once (the optimizer here)."""
    p = v = 8
    f, b, once = 1.0, 2.0, 5.0
    devices = [
        build.device(f"d{number}", [f / v] * (p * v), [b / v] * (p * v), optimizer=[once / v] * (p * v))
        for number in range(p * v)
    ]
    for m in (8, 16, 64):
        scenario = build.scenario(devices, batch=m)
        step_s = build.step_s(scenario, build.straight(p * v, m, "interleaved", p), steps=2)
        assert step_s == pytest.approx((f + b) * (m + 7 / 8) + once)


@FEW
@given(
    schedule=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    workers=st.integers(2, 4),
    turns=st.integers(1, 3),
    f=seconds,
    b=seconds,
    c=seconds,
)
def test_gpipe_and_1f1b_differ_in_what_they_hold_and_interleaving_in_time(
    build: Any, schedule: Any, workers: int, turns: int, f: float, b: float, c: float
) -> None:
    """No schedule beats the one long way of the first micro-batch, and interleaving goes it once per chunk."""
    chunks = 2 if schedule == "interleaved" else 1
    count, m = workers * chunks, workers * turns
    scenario = build.chain([f / chunks] * count, [b / chunks] * count, m, latencies=c)
    step_s = build.step_s(scenario, build.straight(count, m, schedule, workers))
    assert step_s >= (f + b) * workers + 2 * c * (count - 1) - 1e-9
    assert step_s >= m * (f + b) + (workers - 1) * (f + b) / chunks - 1e-9


# Memory: the engine's peak is that of the closed form, exactly


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, int]:
    """Any pipeline of twelve layers: schedule, cuts, recomputation, unequal micro-batches and replicas."""
    schedule = draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "accumulate"]))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    count = draw(st.integers(1, 4))
    chunks = draw(st.integers(2, 3)) if schedule == "interleaved" and count > 1 else 1
    if chunks > 1:
        sizes = (sizes * count)[: count * max(1, len(sizes) // count)]
    elif schedule == "interleaved":
        schedule = "1f1b"
    cuts = sorted(
        draw(st.lists(st.integers(1, 11), min_size=count * chunks - 1, max_size=count * chunks - 1, unique=True))
    )
    held = []
    for worker in range(count):
        shares = draw(st.sampled_from([[1.0], [0.5, 0.5], [0.25, 0.75], [0.2, 0.3, 0.5]]))
        degree = draw(st.sampled_from([1, 2]))
        held.append(
            [
                Replica(devices=[f"d{(worker * 3 + rank) * 2 + each}" for each in range(degree)], share=share)
                for rank, share in enumerate(shares)
            ]
        )
    made = [
        Stage(
            first=first,
            last=last,
            replicas=held[number % count],
            recompute=draw(st.sampled_from(["none", "selective", "full"])),
            sequence_parallel=draw(st.booleans()),
        )
        for number, (first, last) in enumerate(zip([0, *cuts], [*cuts, 12], strict=True))
    ]
    return Plan(pipelines=[Pipeline(stages=made, micro_batches=sizes)], schedule=schedule), sum(sizes)


@FEW
@given(plans())
def test_activations_held_are_those_of_the_closed_form(build: Any, made: tuple[Plan, int]) -> None:
    """Whole numbers of elements, and powers of two as degrees: equal to the last bit."""
    plan, batch = made
    split = TensorSplit(divisor=4, forward_elements=[[4.0]], backward_elements=[[4.0]], divided_activations=0.5)
    layers = [{"tensor": split, "selective_elements": [2.0]} for _ in range(12)]
    devices = [build.device(f"d{number}", [1.0] * 12, [2.0] * 12, degrees=(1, 2)) for number in range(24)]
    scenario = build.scenario(
        devices, batch=batch, outputs=[float(n % 4) for n in range(12)], layers=layers, per_node=2
    )
    launch = build.run(scenario, plan, steps=2)
    peaks = memory.peak(scenario.workload, plan)
    found = {name: peaks[name].activations for name in launch.activations}
    assert launch.activations == found
    assert len(found) > 0
