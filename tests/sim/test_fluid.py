"""Max-min fair sharing: known topologies, the definition of fairness, and a slow reference that shares no code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.fluid import Fluid

Uses = tuple[tuple[int, float], ...]


def rates_of(capacities: list[float], flows: list[Uses]) -> list[float]:
    fluid = Fluid(capacities)
    for number, uses in enumerate(flows):
        fluid.start(0.0, 1.0, uses, number)
    found = dict(fluid.rates(0.0))
    return [found[number] for number in range(len(flows))]


def ends_of(capacities: list[float], starts: list[tuple[float, float, Uses]]) -> list[float]:
    """When each flow of (moment, volume, uses) ends, driven as an engine drives it."""
    fluid, ends, waiting = (
        Fluid(capacities),
        [math.nan] * len(starts),
        sorted(range(len(starts)), key=lambda i: starts[i][0]),
    )
    now = 0.0
    while True:
        coming = fluid.next_end(now)
        start = starts[waiting[0]][0] if waiting else math.inf
        if coming is None and not waiting:
            return ends
        now = min(start, math.inf if coming is None else coming)
        for token in fluid.finish(now):
            assert isinstance(token, int)
            ends[token] = now
        while waiting and starts[waiting[0]][0] <= now:
            number = waiting.pop(0)
            fluid.start(now, starts[number][1], starts[number][2], number)


# An independent reference: every rate anew at every moment, all flows rising together in the plainest way.


def reference_rates(capacities: list[float], flows: list[Uses]) -> list[float]:
    rates: list[float | None] = [None] * len(flows)
    while any(rate is None for rate in rates):
        levels = {}
        for resource, capacity in enumerate(capacities):
            taken = sum(
                w * r for uses, r in zip(flows, rates, strict=True) if r is not None for n, w in uses if n == resource
            )
            rising = sum(w for uses, r in zip(flows, rates, strict=True) if r is None for n, w in uses if n == resource)
            if rising > 0:
                levels[resource] = (capacity - taken) / rising
        full = min(levels, key=lambda resource: levels[resource])
        for number, uses in enumerate(flows):
            if rates[number] is None and any(resource == full for resource, _ in uses):
                rates[number] = levels[full]
    return [rate for rate in rates if rate is not None]


@dataclass
class Running:
    number: int
    left: float
    uses: Uses


def reference_ends(capacities: list[float], starts: list[tuple[float, float, Uses]]) -> list[float]:
    ends, running, now = [math.nan] * len(starts), list[Running](), 0.0
    waiting = sorted(range(len(starts)), key=lambda number: starts[number][0])
    while running or waiting:
        rates = reference_rates(capacities, [each.uses for each in running])
        done_in = min((each.left / rate for each, rate in zip(running, rates, strict=True)), default=math.inf)
        step = min(done_in, starts[waiting[0]][0] - now if waiting else math.inf)
        for each, rate in zip(running, rates, strict=True):
            each.left -= rate * step
        now += step
        for each in [each for each in running if each.left <= 1e-9 * starts[each.number][1]]:
            ends[each.number] = now
            running.remove(each)
        while waiting and starts[waiting[0]][0] <= now + 1e-12:
            number = waiting.pop(0)
            running.append(Running(number, starts[number][1], starts[number][2]))
    return ends


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[float], list[Uses]]:
    capacities = draw(st.lists(st.integers(1, 50).map(float), min_size=1, max_size=6))
    weights = st.sampled_from([0.25, 0.5, 1.0, 1.75, 2.0])
    uses = st.dictionaries(st.integers(0, len(capacities) - 1), weights, min_size=1, max_size=4)
    flows = draw(st.lists(uses.map(lambda each: tuple(each.items())), min_size=1, max_size=12))
    return capacities, flows


@given(networks())
def test_rates_are_those_of_the_reference(network: tuple[list[float], list[Uses]]) -> None:
    assert rates_of(*network) == pytest.approx(reference_rates(*network), rel=1e-9)


@given(networks())
def test_nothing_is_overfull_and_every_flow_has_its_bottleneck(network: tuple[list[float], list[Uses]]) -> None:
    """The definition: on some full resource of each flow, no other flow is faster."""
    capacities, flows = network
    rates = rates_of(capacities, flows)
    on = [
        [(rate, dict(uses)[r]) for uses, rate in zip(flows, rates, strict=True) if r in dict(uses)]
        for r in range(len(capacities))
    ]
    load = [sum(rate * weight for rate, weight in each) for each in on]
    assert all(used <= capacity * (1 + 1e-9) for used, capacity in zip(load, capacities, strict=True))
    for uses, rate in zip(flows, rates, strict=True):
        full = [r for r, _ in uses if load[r] >= capacities[r] * (1 - 1e-9)]
        assert any(rate >= max(other for other, _ in on[r]) * (1 - 1e-9) for r in full)


@given(networks(), st.data())
def test_a_whole_history_is_that_of_the_reference(network: tuple[list[float], list[Uses]], data: st.DataObject) -> None:
    capacities, flows = network
    volumes, moments = st.integers(1, 100).map(float), st.integers(0, 20).map(float)
    starts = [(data.draw(moments), data.draw(volumes), uses) for uses in flows]
    assert ends_of(capacities, starts) == pytest.approx(reference_ends(capacities, starts), rel=1e-6)


@given(networks(), st.data())
def test_times_follow_the_units(network: tuple[list[float], list[Uses]], data: st.DataObject) -> None:
    """Bytes in other units change nothing; with resources k times as slow and starts k times as late, so are ends."""
    capacities, flows = network
    starts = [(float(data.draw(st.integers(0, 20))), float(data.draw(st.integers(1, 100))), uses) for uses in flows]
    ends = ends_of(capacities, starts)
    other = ends_of([1e9 * c for c in capacities], [(at, 1e9 * volume, uses) for at, volume, uses in starts])
    assert other == pytest.approx(ends, rel=1e-9)
    slower = ends_of([c / 4 for c in capacities], [(4 * at, volume, uses) for at, volume, uses in starts])
    assert slower == pytest.approx([4 * end for end in ends], rel=1e-9)


@given(networks(), networks())
def test_what_happens_elsewhere_changes_nothing(
    here: tuple[list[float], list[Uses]], there: tuple[list[float], list[Uses]]
) -> None:
    capacities, flows = here
    moved = [tuple((r + len(capacities), w) for r, w in uses) for uses in there[1]]
    assert rates_of(capacities + there[0], flows + moved)[: len(flows)] == rates_of(capacities, flows)


@given(networks(), st.randoms())
def test_the_order_of_starts_does_not_matter(network: tuple[list[float], list[Uses]], random: object) -> None:
    capacities, flows = network
    order = list(range(len(flows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    rates = rates_of(capacities, [flows[number] for number in order])
    assert rates == pytest.approx([rates_of(capacities, flows)[number] for number in order], rel=1e-12)


# Known topologies


def test_parking_lot() -> None:
    """One flow over every link and one on each link: all get half (Bertsekas and Gallager 1992)."""
    links = [10.0] * 5
    flows: list[Uses] = [tuple((r, 1.0) for r in range(5)), *(((r, 1.0),) for r in range(5))]
    assert rates_of(links, flows) == [5.0] * 6


def test_parking_lot_of_unequal_links() -> None:
    """The long flow is held by the thinnest link; the others take what it leaves."""
    rates = rates_of([4.0, 10.0], [((0, 1.0), (1, 1.0)), ((0, 1.0),), ((1, 1.0),)])
    assert rates == [2.0, 2.0, 8.0]


def test_dumbbell() -> None:
    """Three pairs behind one middle link share it; one with a thin access link leaves its part to the others."""
    middle, thin = 9.0, 1.0
    flows: list[Uses] = [((0, 1.0), (1, 1.0)), ((0, 1.0), (2, 1.0)), ((0, 1.0), (3, 1.0))]
    assert rates_of([middle, 100.0, 100.0, 100.0], flows) == [3.0, 3.0, 3.0]
    assert rates_of([middle, thin, 100.0, 100.0], flows) == [1.0, 4.0, 4.0]


@given(st.integers(1, 40), st.floats(0.1, 1e12))
def test_star(flows: int, capacity: float) -> None:
    """All into one port: equal parts, and all end together in one go."""
    fluid = Fluid([capacity, *[10 * capacity] * flows])
    for number in range(flows):
        fluid.start(0.0, 5.0, ((0, 1.0), (1 + number, 1.0)), number)
    end = fluid.next_end(0.0)
    assert end == pytest.approx(5.0 * flows / capacity)
    assert end is not None
    assert fluid.finish(end) == list(range(flows))
    assert fluid.next_end(end) is None


def test_a_flow_speeds_up_when_its_rival_ends() -> None:
    """Two on one link, one half as long: it ends at 2 x its own time, the other at the sum of both."""
    assert ends_of([1.0], [(0.0, 1.0, ((0, 1.0),)), (0.0, 2.0, ((0, 1.0),))]) == [2.0, 3.0]


def test_a_flow_that_comes_later_takes_its_part_from_then_on() -> None:
    assert ends_of([1.0], [(0.0, 2.0, ((0, 1.0),)), (1.0, 0.5, ((0, 1.0),))]) == [2.5, 2.0]


def test_weights_count_crossings() -> None:
    """A flow that crosses a link twice fills it at half the rate; the fair quantity is the flow's own rate."""
    assert rates_of([6.0], [((0, 2.0),)]) == [3.0]
    assert rates_of([6.0], [((0, 2.0),), ((0, 1.0),)]) == [2.0, 2.0]


def test_nothing_to_send_ends_at_once() -> None:
    fluid = Fluid([1.0])
    fluid.start(3.0, 0.0, ((0, 1.0),), "empty")
    fluid.start(3.0, 7.0, (), "nowhere")
    assert fluid.next_end(3.0) == 3.0
    assert fluid.finish(3.0) == ["empty", "nowhere"]
    assert fluid.next_end(3.0) is None


def test_a_moment_that_a_sum_of_delays_missed_by_a_rounding() -> None:
    fluid = Fluid([3.0])
    fluid.start(0.1, 1.0, ((0, 1.0),), "flow")
    end = fluid.next_end(0.1)
    assert end is not None
    assert fluid.finish(math.nextafter(end, 0.0)) == ["flow"]


def test_before_its_end_nothing_is_finished() -> None:
    fluid = Fluid([1.0])
    fluid.start(0.0, 1.0, ((0, 1.0),), "flow")
    assert fluid.finish(0.5) == []
    assert fluid.next_end(0.5) == 1.0


def test_many_changes_leave_no_trace() -> None:
    """After thousands of flows, never fewer than three at once, a last one has the resources for itself."""
    fluid, now = Fluid([7.0, 3.0]), 0.0
    for number in range(3000):
        fluid.start(now, 1.0 + number % 7, ((number % 2, 0.3),) if number % 5 else ((0, 0.7), (1, 0.1)), number)
        if number > 3:
            now = fluid.next_end(now) or now
            assert fluid.finish(now)
    while (end := fluid.next_end(now)) is not None:
        now = end
        assert fluid.finish(now)
    fluid.start(now, 7.0, ((0, 1.0),), "last")
    assert fluid.next_end(now) == pytest.approx(now + 1.0, rel=1e-12)
