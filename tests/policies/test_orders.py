"""The programme over orders and cuts, on plain tables: against every cut and order, and textbook partitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies._orders import along, best_cuts, count_sequences, every_order, sequences
from steelyard.policies._stages import Chain

CLOSED = 10_000


class Table(Chain):
    """What the programme reads of a chain, as plain arrays."""

    passes: Any
    sends: Any
    sizes_kept: Any
    room: Any
    blocking: bool

    def __init__(self, **figures: Any) -> None:
        self.__dict__.update(figures, _spans={}, _fits_spans={})

    def stage(self, label: int, behind: int) -> tuple[Any, Any]:
        sends = self.sends[label][behind] if behind >= 0 else np.zeros(self.layers + 1)
        adds = self.passes[label] + sends
        return adds, adds if self.blocking else np.maximum(self.passes[label], sends)

    def fits(self, label: int, behind: int) -> Any:
        return self.sizes_kept * (behind + 1) <= self.room[label]

    def _in_flight(self, behind: int) -> int:
        return behind

    @property
    def least_sum_s(self) -> float:
        return float(np.min([np.diff(each[0, 1:], prepend=0.0) for each in self.passes], axis=0).sum()) * (1 - 1e-9)


def table(draw: Random) -> tuple[Table, list[int]]:
    """A few layers and devices of any speed, memory and links; small whole numbers make ties frequent."""
    layers, kinds = draw.randint(1, 5), draw.randint(1, 3)
    counts = [draw.randint(1, 2) for _ in range(kinds)]
    number = draw.choice([lambda: float(draw.randint(1, 4)), lambda: draw.uniform(0.1, 4.0)])
    passes = []
    for _ in range(kinds):
        sums = np.concatenate(([0.0], np.cumsum([number() for _ in range(layers)])))
        spread = sums[None, :] - sums[:, None]
        passes.append(np.where(np.tri(layers + 1, dtype=bool), np.inf, spread))
    kept = np.arange(layers + 1)[None, :] - np.arange(layers + 1)[:, None]
    sends = [[np.array([number() for _ in range(layers + 1)]) for _ in range(kinds)] for _ in range(kinds)]
    made = Table(
        layers=layers,
        sizes=[1] * draw.choice([1, 2, 5, 40]),
        passes=passes,
        sends=sends,
        sizes_kept=kept,
        room=[draw.choice([1, 3, 6, 100]) for _ in range(kinds)],
        blocking=draw.random() < 0.5,
    )
    return made, counts


def every_cut(made: Table, counts: list[int], least: int) -> Iterator[float]:
    """The closed-form step of every order of every subset, and every cut, that fits: no programme in it."""
    devices = [label for label, count in enumerate(counts) for _ in range(count)]
    for stages in range(least, min(len(devices), made.layers) + 1):
        for order in set(itertools.permutations(devices, stages)):
            for inner in itertools.combinations(range(1, made.layers), stages - 1):
                bounds = (0, *inner, made.layers)
                spans = list(itertools.pairwise(bounds))
                if all(
                    made.sizes_kept[span] * (stages - place) <= made.room[label]
                    for place, (label, span) in enumerate(zip(order, spans, strict=True))
                ):
                    yield closed_form(made, order, spans)


def closed_form(made: Table, order: tuple[int, ...], spans: list[tuple[int, int]]) -> float:
    total, loads = 0.0, []
    for place, (label, (first, last)) in enumerate(zip(order, spans, strict=True)):
        passes = float(made.passes[label][first, last])
        send = float(made.sends[label][order[place + 1]][last]) if place + 1 < len(order) else 0.0
        total += passes + send
        loads.append(passes + send if made.blocking else max(passes, send))
    return total + (made.count - 1) * max(loads)


def check_programme(seed: int) -> None:
    made, counts = table(Random(seed))
    most = min(sum(counts), made.layers)
    least = Random(seed).choice([1, most])
    orders = every_order(counts, most, apart=True, least=least)
    found = best_cuts(made, orders)
    best = min(every_cut(made, counts, least), default=math.inf)
    if not found:
        assert best == math.inf, f"seed {seed}: a cut exists"
        return
    assert found[0].step_s(made.count) == pytest.approx(best, rel=1e-9), f"seed {seed}"
    spans = list(itertools.pairwise(found[0].bounds))
    assert closed_form(made, found[0].order, spans) == pytest.approx(best, rel=1e-9), "and it is what it says"
    assert best_cuts(made, orders, best * (1 + 1e-9))[0].step_s(made.count) == pytest.approx(best, rel=1e-9)
    none = best_cuts(made, orders, best * (1 - 1e-6))
    assert not none or none[0].step_s(made.count) >= best * (1 - 1e-9), "what is given up early is not missed"


@pytest.mark.slow
def test_the_programme_finds_the_best_of_all_cuts_and_orders() -> None:
    """Brute force over all cuts, orders and subsets: 10,000 instances, no miss."""
    for seed in range(CLOSED):
        check_programme(seed)


@given(st.integers(CLOSED, 2**31))
@settings(max_examples=300)
def test_the_programme_finds_the_best_of_other_instances(seed: int) -> None:
    check_programme(seed)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_equal_devices_get_the_linear_partition(work: list[int], stages: int) -> None:
    """With equal devices and free messages the largest load is that of the linear partition (bisection on the sums)."""
    stages = min(stages, len(work))
    sums = np.concatenate(([0.0], np.cumsum(work)))
    passes = np.where(np.tri(len(work) + 1, dtype=bool), np.inf, sums[None, :] - sums[:, None])
    made = Table(
        layers=len(work), sizes=[1] * 1000, passes=[passes], sends=[[np.zeros(len(work) + 1)]], blocking=True,
        sizes_kept=np.zeros_like(passes), room=[1.0],
    )  # fmt: skip
    found = best_cuts(made, along([0] * stages))[0]

    def parts(most: float) -> int:
        count, load = 1, 0
        for each in work:
            count, load = (count, load + each) if load + each <= most else (count + 1, each)
        return count

    assert found.load_s == next(most for most in range(max(work), sum(work) + 1) if parts(most) <= stages)


def test_the_textbook_partitions() -> None:
    """Skiena's examples of the linear partition: nine ones in three, and 1..9 in three parts of at most 17."""
    for work, stages, most in (([1] * 9, 3, 3), (list(range(1, 10)), 3, 17), ([100, 200, 300, 400, 500], 3, 600)):
        sums = np.concatenate(([0.0], np.cumsum(work)))
        passes = np.where(np.tri(len(work) + 1, dtype=bool), np.inf, sums[None, :] - sums[:, None])
        made = Table(
            layers=len(work), sizes=[1] * 9, passes=[passes], sends=[[np.zeros(len(work) + 1)]], blocking=True,
            sizes_kept=np.zeros_like(passes), room=[1.0],
        )  # fmt: skip
        assert best_cuts(made, along([0] * stages))[0].load_s == most


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 6))
def test_orders_are_counted(counts: list[int], stages: int) -> None:
    found = list(sequences(counts, stages))
    assert len(found) == len(set(found)) == count_sequences(counts, stages)
