"""The exact integer split: against dynamic programming on 10,000 instances, and what rounding loses."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import gaps
from steelyard.policies._base import largest_remainder
from steelyard.policies.apportion import min_max
from steelyard.sim.cost import Curve, DeviceCost, Line
from steelyard.sim.steps import Steps
from steelyard.sim.view import DeviceView

INSTANCES = 10_000


def device(
    name: str,
    forward: Line | Curve,
    backward: Line | Curve = Line(0.0, 0.0),  # noqa: B008 - frozen
    *,
    capacity: int,
    largest: int | None = None,
    optimizer_s: float = 0.0,
) -> DeviceView:
    return DeviceView(
        name, 1.0, 1.0, 1.0, capacity, DeviceCost(name, "profiled", forward, backward, optimizer_s), largest
    )


def some_curve(draws: random.Random, batch: int) -> Line | Curve:
    """Affine times, steps and plateaus; a few that fall."""
    if draws.random() < 0.5:
        return Line(draws.choice([0.0, 1.0, 5.0, draws.random()]), draws.choice([0.0, 0.5, 1.0, draws.random()]) + 1e-9)
    sizes = sorted(draws.sample(range(1, batch + 4), draws.randrange(2, 5)))
    seconds = [draws.choice([1.0, 2.0, 10 * draws.random()]) for _ in sizes]
    return Curve(tuple(sizes), tuple(sorted(seconds) if draws.random() < 0.8 else seconds))


def some_devices(draws: random.Random, batch: int) -> list[DeviceView]:
    """One to five devices, some of them equal, with and without accumulation and memory limits."""
    kinds = [
        {
            "forward": some_curve(draws, batch),
            "backward": some_curve(draws, batch),
            "capacity": draws.randrange(batch + 1),
            "largest": draws.choice([None, None, draws.randrange(1, batch + 1)]),
            "optimizer_s": draws.choice([0.0, 1.0, draws.random()]),
        }
        for _ in range(draws.randrange(1, 4))
    ]
    return [device(str(number), **draws.choice(kinds)) for number in range(draws.randrange(1, 6))]


def least_s(tables: Sequence[Sequence[float]], batch: int, least: int) -> float:
    """The least maximum over all splits, device by device: infinite where none fits."""
    best = np.full(batch + 1, np.inf)
    best[0] = 0.0
    for table in tables:
        after = np.full(batch + 1, np.inf)
        for samples in range(least, len(table)):
            reached = np.maximum(best[: batch + 1 - samples], table[samples])
            after[samples:] = np.minimum(after[samples:], reached)
        best = after
    return float(best[batch])


def test_the_split_is_the_best_of_all_on_ten_thousand_instances() -> None:
    """Whether times rise or fall; to a rounding, by which times that rise may fall."""
    draws = random.Random(20)
    misses = feasible = falling = 0
    for _ in range(INSTANCES):
        batch, least = draws.randrange(1, draws.choice([6, 12, 40])), draws.choice([0, 0, 1])
        devices = some_devices(draws, batch)
        tables = [[each.step_s(n) for n in range(min(each.capacity, batch) + 1)] for each in devices]
        times = Steps(devices, batch)
        split, best = min_max(times, batch, least), least_s(tables, batch, least)
        assert (split is None) == (best == np.inf)
        if split is None:
            continue
        feasible, falling = feasible + 1, falling + (not times.rising)
        assert sum(split) == batch
        assert all(least <= n <= each.capacity for n, each in zip(split, devices, strict=True))
        misses += max(table[n] for table, n in zip(tables, split, strict=True)) > best * (1 + 1e-12)
    assert misses == 0
    assert feasible > INSTANCES / 2
    assert falling > INSTANCES / 20


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_times_as_arrays_are_those_of_the_view_to_the_last_bit(number: int, batch: int) -> None:
    devices = some_devices(random.Random(number), batch)
    times = Steps(devices, batch)
    for each, row in zip(devices, times.row_of.tolist(), strict=True):
        samples = np.arange(int(times.capacity[row]) + 1)
        assert times.at(np.full(len(samples), row), samples).tolist() == [each.step_s(n) for n in samples.tolist()]


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_times_that_are_said_to_rise_do(number: int, batch: int) -> None:
    devices = some_devices(random.Random(number), batch)
    if Steps(devices, batch).rising:
        for each in devices:
            table = np.array([each.step_s(n) for n in range(min(each.capacity, batch) + 1)])
            assert (np.diff(table) >= -1e-12 * table[1:]).all()


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 5000))
def test_both_ways_agree_on_times_that_rise(number: int, batch: int) -> None:
    """Bracketing the time, and sums over bits, which need no order of the times."""
    draws = random.Random(number)
    devices = [
        device(str(n), Line(draws.random(), draws.random() + 0.01), capacity=batch, largest=draws.choice([None, 7]))
        for n in range(draws.randrange(1, min(batch, 20)))
    ]
    times = Steps(devices, batch)
    assert times.rising
    one, other = min_max(times, batch, 1), gaps.min_max(times, batch, 1)
    assert one is not None
    slowest = [max(d.step_s(n) for d, n in zip(devices, split, strict=True)) for split in (one, other)]
    assert slowest[0] == slowest[1]


def test_a_cliff_is_gone_around() -> None:
    """Five samples in one micro-batch fall off a cliff that four, or six in two halves, do not know."""
    cliff = Curve((1, 4, 5), (1.0, 4.0, 20.0))
    one = device("one", cliff, capacity=6, largest=5)
    split = min_max(Steps([one, device("two", Line(0.0, 6.0), capacity=6)], 6), 6)
    assert split == [6, 0]
    assert one.step_s(6) == pytest.approx(6.0)
    assert one.step_s(5) == pytest.approx(20.0)


def test_largest_remainder_is_often_worse_than_the_best_split() -> None:
    """Four devices of random speed share 16 to 32 samples: rounding exact shares loses in a third of cases."""
    draws = random.Random(2)
    losses = []
    for _ in range(1000):
        batch = draws.choice([16, 24, 32])
        devices = [device(str(n), Line(0.0, draws.uniform(0.2, 1.0)), capacity=batch) for n in range(4)]
        rounded = largest_remainder(batch, [1 / each.step_s(1) for each in devices], [batch] * 4)
        exact = min_max(Steps(devices, batch), batch)
        assert exact is not None
        slowest = [max(d.step_s(n) for d, n in zip(devices, split, strict=True)) for split in (rounded, exact)]
        assert slowest[1] <= slowest[0]
        losses.append(slowest[0] / slowest[1] - 1)
    worse = [loss for loss in losses if loss > 1e-9]
    assert 0.2 < len(worse) / len(losses) < 0.5
    assert max(worse) > 0.1


def test_a_fixed_cost_makes_rounding_lose_without_limit() -> None:
    """A device that is slow to start gets a proportional share, and everybody waits for it."""
    devices = [device("fast", Line(0.0, 1.0), capacity=4), device("slow", Line(0.0, 5.0), capacity=4)]
    rounded = largest_remainder(4, [1.0, 0.2], [4, 4])
    exact = min_max(Steps(devices, 4), 4)
    assert (rounded, exact) == ([3, 1], [4, 0])


@given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(1, 400), st.randoms(use_true_random=False))
def test_who_does_how_much_does_not_depend_on_the_order(slopes: list[int], batch: int, draws: random.Random) -> None:
    def roles(order: Sequence[int]) -> list[tuple[int, int]]:
        devices = [device(str(n), Line(0.0, float(slopes[n])), capacity=batch) for n in order]
        split = min_max(Steps(devices, batch), batch)
        assert split is not None
        return sorted(zip([slopes[n] for n in order], split, strict=True))

    order = list(range(len(slopes)))
    draws.shuffle(order)
    found = [[slope * samples for slope, samples in roles(each)] for each in (order, range(len(slopes)))]
    assert max(found[0]) == max(found[1])
    if len(set(slopes)) == len(slopes) and len({s * n for s in slopes for n in range(1, batch + 1)}) == batch * len(
        slopes
    ):
        assert roles(order) == roles(range(len(slopes)))  # no ties: one split only
