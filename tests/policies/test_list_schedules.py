"""List schedules on plain numbers: the published example, bounds of the papers, and an exhaustive search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.exact_schedule import best_timetable
from steelyard.policies.list_schedules import earliest_finish, earliest_start, in_order, topological_fill
from steelyard.policies.tasks import NoRoomError, Tasks, Timetable

SCHEDULERS = [earliest_finish, earliest_start, topological_fill, partial(topological_fill, balanced=False)]


def tasks(
    seconds: Sequence[Sequence[float]],
    edges: dict[tuple[int, int], float],
    sizes: Sequence[float] | None = None,
    room: Sequence[float] | None = None,
) -> Tasks:
    """Tasks whose transfers take as long between any two devices."""
    inputs = [[source for source, target in edges if target == task] for task in range(len(seconds))]
    return Tasks(
        seconds=seconds,
        inputs=inputs,
        transfer_s=lambda source, target, *_: edges[source, target],
        mean_transfer_s=lambda source, target: edges[source, target],
        sizes=sizes or [0.0] * len(seconds),
        room=room or [math.inf] * len(seconds[0]),
    )


@st.composite
def graphs(draw: st.DrawFn, most: int = 9, devices: int = 4, equal: bool = False) -> Tasks:
    """Any graph of a few tasks; whole numbers, so that sums are exact."""
    count, width = draw(st.integers(1, most)), draw(st.integers(1, devices))
    times = st.lists(st.integers(0, 20), min_size=count, max_size=count)
    columns = [draw(times)] * width if equal else [draw(times) for _ in range(width)]
    pairs = list(itertools.combinations(range(count), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * count)) if pairs else []
    edges = {pair: float(draw(st.integers(0, 15))) for pair in sorted(chosen)}
    sizes = [float(each) for each in draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))]
    return tasks([[float(each) for each in row] for row in zip(*columns, strict=True)], edges, sizes)


def check(table: Timetable) -> None:
    """Each task once, nobody does two things at once, and what a task reads is there when it begins."""
    assert sorted(slot.task for lane in table.lanes for slot in lane) == list(range(table.tasks.count))
    for device, lane in enumerate(table.lanes):
        for before, after in itertools.pairwise(lane):
            assert before.end <= after.start
        for slot in lane:
            assert slot.end - slot.start == table.tasks.seconds[slot.task][device]
            assert slot.start >= table.fed_s(slot.task, device)
            assert table.device[slot.task] == device


@pytest.mark.parametrize("schedule", SCHEDULERS)
@given(made=graphs())
def test_timetables_can_be_kept(schedule: Any, made: Tasks) -> None:
    table = schedule(made)
    check(table)
    assert table.makespan_s >= max(min(row) for row in made.seconds)


@pytest.mark.parametrize("schedule", SCHEDULERS)
@given(made=graphs())
def test_doing_all_in_the_timetables_order_is_never_later(schedule: Any, made: Tasks) -> None:
    """What a plan holds is the devices and the order; the moments follow, and only a gap may close."""
    table = schedule(made)
    again = in_order(made, table.device, table.sequence)
    check(again)
    assert all(again.slots[task].end <= table.slots[task].end for task in range(made.count))


@pytest.mark.parametrize("schedule", SCHEDULERS)
@given(made=graphs(), data=st.data())
def test_room_is_never_exceeded(schedule: Any, made: Tasks, data: st.DataObject) -> None:
    room = [float(data.draw(st.integers(0, 30))) for _ in made.devices]
    tight = Tasks(**{**vars_of(made), "room": room})
    try:
        table = schedule(tight)
    except NoRoomError:
        return
    for device, limit in enumerate(room):
        assert sum(size for size, own in zip(made.sizes, table.device, strict=True) if own == device) <= limit


def vars_of(made: Tasks) -> dict[str, Any]:
    names = ("seconds", "inputs", "transfer_s", "mean_transfer_s", "sizes", "room")
    return {name: getattr(made, name) for name in names}


# HEFT: the example of Topcuoglu, Hariri and Wu 2002, figures 2 and 3 and table 2

PAPER_SECONDS = [
    [14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10],
    [13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16],
]  # fmt: skip
PAPER_EDGES = {
    (0, 1): 18, (0, 2): 12, (0, 3): 9, (0, 4): 11, (0, 5): 14, (1, 7): 19, (1, 8): 16, (2, 6): 23, (3, 7): 27,
    (3, 8): 23, (4, 8): 13, (5, 7): 15, (6, 9): 17, (7, 9): 11, (8, 9): 13,
}  # fmt: skip
PAPER_RANKS = [108.0, 77.0, 80.0, 80.0, 69.0, 63.333, 42.667, 35.667, 44.333, 14.667]


def test_heft_is_the_papers_example() -> None:
    """Ranks, and a schedule of length 80."""
    made = tasks(PAPER_SECONDS, {pair: float(size) for pair, size in PAPER_EDGES.items()})
    assert made.upward_ranks == pytest.approx(PAPER_RANKS, abs=5e-4)
    table = earliest_finish(made)
    check(table)
    assert table.makespan_s == 80


def test_heft_uses_a_gap() -> None:
    """The second device waits 2 s for what it does longest; the last task, of 1 s, is done before that."""
    made = tasks([[1.0, 99.0], [99.0, 3.0], [99.0, 1.0]], {(0, 1): 1.0})
    table = earliest_finish(made)
    check(table)
    assert [slot.start for slot in table.slots] == [0.0, 2.0, 0.0]
    assert (table.makespan_s, table.device) == (5.0, [0, 1, 1])
    assert table.sequence == [0, 2, 1]


@given(graphs())
def test_upward_ranks_fall_along_every_edge(made: Tasks) -> None:
    """So that the order of ranks is topological (section 4.1)."""
    for task, readers in enumerate(made.readers):
        assert all(made.upward_ranks[task] >= made.upward_ranks[reader] for reader in readers)


# m-ETF: the guarantee of ETF


def longest(made: Tasks, *, transfers: bool) -> float:
    """The longest chain of tasks on equal devices, or of transfers."""
    ends = [0.0] * made.count
    for task, inputs in enumerate(made.inputs):
        own = 0.0 if transfers else made.seconds[task][0]
        ends[task] = own + max(
            (ends[source] + (made.mean_transfer_s(source, task) if transfers else 0.0) for source in inputs),
            default=0.0,
        )
    return max(ends)


@given(graphs(equal=True))
def test_m_etf_is_within_the_bound_of_etf(made: Tasks) -> None:
    """Equal devices, memory to spare: at most (2 - 1/n) of the optimum without transfers, plus a chain's transfers.

    Hwang et al. 1989; the optimum is at least the mean load and the longest chain, which is what the proof uses.
    """
    count = len(made.devices)
    work = sum(row[0] for row in made.seconds)
    rest = 1 - 1 / count
    bound = work / count + rest * longest(made, transfers=False) + longest(made, transfers=True)
    assert earliest_start(made).makespan_s <= bound + 1e-9


@given(graphs())
def test_m_etf_leaves_no_gap_that_closes(made: Tasks) -> None:
    """Starts come in the order of placing, so that replaying them in the order of time changes none."""
    table = earliest_start(made)
    replayed = in_order(made, table.device, table.sequence)
    assert [slot.start for slot in table.slots] == [slot.start for slot in replayed.slots]


def test_m_etf_passes_over_a_device_that_is_full() -> None:
    made = tasks([[1.0, 5.0]] * 3, {}, sizes=[2.0] * 3, room=[3.0, 9.0])
    assert earliest_start(made).device == [0, 1, 1]


# m-TOPO: the cap


@given(graphs())
def test_m_topo_fills_to_the_cap_and_needs_no_more_devices_than_there_are(made: Tasks) -> None:
    """An equal share plus the largest task: every device but the last in use holds more than an equal share."""
    table = topological_fill(made)
    share = sum(made.sizes) / len(made.devices)
    held = [
        sum(made.sizes[task] for task in range(made.count) if table.device[task] == device) for device in made.devices
    ]
    assert max(held) <= share + max(made.sizes)
    assert all(bytes_ > share for bytes_ in held[: max(table.device)])
    assert table.device == sorted(table.device)


def test_m_topo_unbalanced_fills_each_device() -> None:
    made = tasks([[1.0, 1.0]] * 4, {}, sizes=[1.0] * 4, room=[3.0, 3.0])
    assert topological_fill(made).device == [0, 0, 0, 1]
    assert topological_fill(made, balanced=False).device == [0, 0, 0, 1]
    roomy = tasks([[1.0, 1.0]] * 4, {}, sizes=[1.0] * 4, room=[9.0, 9.0])
    assert topological_fill(roomy).device == [0, 0, 0, 1]
    assert topological_fill(roomy, balanced=False).device == [0, 0, 0, 0]


# All of them against an exhaustive search


def orders(made: Tasks, begun: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every order in which each task comes after those that feed it."""
    if len(begun) == made.count:
        yield begun
    for task in range(made.count):
        if task not in begun and set(made.inputs[task]) <= set(begun):
            yield from orders(made, (*begun, task))


def optimum(made: Tasks) -> float:
    """The least makespan of all placements and orders."""
    sequences = list(orders(made))
    return min(
        in_order(made, devices, sequence).makespan_s
        for devices in itertools.product(made.devices, repeat=made.count)
        for sequence in sequences
    )


@settings(max_examples=60)
@given(graphs(most=4, devices=3))
def test_no_heuristic_beats_the_exhaustive_search(made: Tasks) -> None:
    best = optimum(made)
    for schedule in SCHEDULERS:
        assert schedule(made).makespan_s >= best
    if len(made.devices) == 1:
        assert earliest_finish(made).makespan_s == best


# Branch and bound against the same search


def tight(made: Tasks, room: Sequence[float]) -> Tasks:
    return Tasks(**{**vars_of(made), "room": room})


def values(made: Tasks, judge: Any) -> list[float]:
    """Of all timetables within the room."""
    tables = [
        in_order(made, devices, sequence)
        for devices in itertools.product(made.devices, repeat=made.count)
        for sequence in orders(made)
    ]
    return [judge(table) for table in tables if min(table.left) >= 0]


@settings(max_examples=150)
@given(graphs(most=4, devices=3), st.lists(st.integers(0, 20).map(float), min_size=3, max_size=3))
def test_branch_and_bound_finds_the_optimum(made: Tasks, room: list[float]) -> None:
    for each in (made, tight(made, room[: len(made.devices)])):
        found, known = best_timetable(each), values(each, lambda table: table.makespan_s)
        assert found.proven
        assert found.value == min(known, default=math.inf)
        assert (found.table is None) == (not known)
        if found.table is not None:
            check(found.table)
            assert found.table.makespan_s == found.value


@settings(max_examples=60)
@given(graphs(most=4, devices=3), st.randoms(use_true_random=False))
def test_branch_and_bound_minimises_any_value_above_the_makespan(made: Tasks, random: Any) -> None:
    """A judge that adds something for every device and order; an operator that some device must not have."""
    more: dict[Any, float] = {}
    banned = random.randrange(made.count), random.randrange(len(made.devices))

    def judge(table: Timetable) -> float:
        key = tuple(tuple(slot.task for slot in lane) for lane in table.lanes)
        return table.makespan_s + more.setdefault(key, float(random.randint(0, 9)))

    def fits(devices: Sequence[int], task: int) -> bool:
        return devices[banned[0]] != banned[1]

    allowed = min(values(made, lambda table: judge(table) if fits(table.device, 0) else math.inf))
    found = best_timetable(made, judge, fits=fits)
    assert found.proven
    assert found.value == allowed


@settings(max_examples=100)
@given(graphs(most=4, devices=3), st.data())
def test_branch_and_bound_adds_the_updates_of_a_ways_first_device(made: Tasks, data: st.DataObject) -> None:
    """As a judge that looks at every way through edges and lanes, written down again here."""
    few = st.lists(st.integers(0, 9).map(float), min_size=len(made.devices), max_size=len(made.devices))
    updates = [data.draw(few) for _ in range(made.count)]

    def judge(table: Timetable) -> float:
        worst = table.makespan_s
        before = {b.task: a.task for lane in table.lanes for a, b in itertools.pairwise(lane)}
        for first in made.devices:

            def end(task: int, first: int = first) -> float:
                here = table.device[task]
                ways = [end(before[task], first)] if task in before else []
                ways += [end(s, first) + (0.0 if table.device[s] == here else 15.0) for s in made.inputs[task]]
                return max([0.0 if here == first else -math.inf, *ways]) + made.seconds[task][here]

            own = sum(updates[slot.task][first] for slot in table.lanes[first])
            worst = max(worst, max(map(end, range(made.count))) + own)
        return worst

    made = Tasks(**{**vars_of(made), "transfer_s": lambda *_: 15.0, "mean_transfer_s": lambda *_: 15.0})
    found = best_timetable(made, judge, updates=updates)
    assert found.proven
    assert found.value == min(values(made, judge))


@given(graphs(most=5, devices=4, equal=True))
def test_devices_that_can_be_exchanged_are_tried_once(made: Tasks) -> None:
    assert best_timetable(made, alike=[0] * len(made.devices)).value == best_timetable(made).value


@settings(max_examples=60)
@given(graphs(most=6, devices=3))
def test_a_search_knows_what_it_has_not_seen(made: Tasks) -> None:
    """From a known value on, nothing but what beats it; with little time, no proof; no heuristic is better."""
    best = best_timetable(made)
    assert best_timetable(made, known=best.value) == type(best)(None, best.value, True)
    assert best_timetable(made, known=2 * best.value + 1, within=0.5).value <= 2 * best.value + 1
    assert not best_timetable(made, most=1).proven
    for schedule in SCHEDULERS:
        assert schedule(made).makespan_s >= best.value


def test_heft_is_nearer_to_the_optimum_than_the_others_where_devices_differ() -> None:
    """Over 60 random graphs of five tasks on two devices of which one is twice as fast."""
    import random

    draws = random.Random(4)
    ratios: dict[str, list[float]] = {}
    for _ in range(60):
        fast = [draws.randint(2, 20) for _ in range(5)]
        pairs = [pair for pair in itertools.combinations(range(5), 2) if draws.random() < 0.5]
        made = tasks(
            [[float(each), 2.0 * each] for each in fast],
            {pair: float(draws.randint(0, 8)) for pair in pairs},
            sizes=[1.0] * 5,
        )
        best = optimum(made)
        for name, schedule in (("heft", earliest_finish), ("m-etf", earliest_start), ("m-topo", topological_fill)):
            ratios.setdefault(name, []).append(schedule(made).makespan_s / best)
    means = {name: sum(each) / len(each) for name, each in ratios.items()}
    # The figures of docs/policies.md.
    assert {name: round(each, 2) for name, each in means.items()} == {"heft": 1.02, "m-etf": 1.22, "m-topo": 1.6}
    assert {name: round(max(each), 2) for name, each in ratios.items()} == {"heft": 1.19, "m-etf": 2.0, "m-topo": 2.34}
    assert sum(each == 1 for each in ratios["heft"]) == 44
