"""The ledger on generated events: its lines sum to the mean step, whatever the events are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.results.ledger import critical_path, durations, ledgers, quantiles, step_times
from steelyard.results.record import LEDGER_LINES, LEDGER_OF_KIND, DeviceLedger, Run, event_frame

if TYPE_CHECKING:
    import pandas as pd

KINDS = sorted(LEDGER_OF_KIND)
DEVICES = ["a", "b", "c"]


@st.composite
def event_rows(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Launches of rounds of steps; in each step every device does some work and pauses, one thing after the other."""
    rows = []
    used = draw(st.lists(st.sampled_from(DEVICES), min_size=1, unique=True))
    seconds = st.floats(min_value=0, max_value=10)
    for launch in range(draw(st.integers(1, 3))):
        begin = 0.0
        for block in range(draw(st.integers(1, 2))):
            clock = dict.fromkeys(used, begin)
            for step in range(draw(st.integers(1, 4))):
                for device in used:
                    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)):
                        start = clock[device] + draw(st.sampled_from([0.0, 0.0, 0.5]))
                        clock[device] = start + draw(seconds) + 1e-3
                        rows.append((launch, block, step, device, 0, 0, 0, kind, start, clock[device], 1))
                # No step ends before the one before it: devices meet at its end, as after an all-reduce.
                clock = dict.fromkeys(used, max(clock.values()))
            begin = max(clock.values()) + 1.0
    return rows


@settings(max_examples=60)
@given(event_rows())
def test_lines_sum_to_the_mean_step(rows: list[tuple[Any, ...]]) -> None:
    events = event_frame(rows)
    times = [seconds for each in step_times(events).values() for seconds in each]
    for ledger in ledgers(events, DEVICES).values():
        assert ledger.total_s() == pytest.approx(sum(times) / len(times), rel=1e-9)
        assert all(getattr(ledger, line) >= 0 for line in LEDGER_LINES)


@settings(max_examples=40)
@given(event_rows())
def test_a_device_without_events_is_idle(rows: list[tuple[Any, ...]]) -> None:
    events = event_frame(rows)
    ledger = ledgers(events, ["elsewhere"])["elsewhere"]
    assert ledger.idle_s == pytest.approx(ledger.total_s())
    assert ledger.utilisation() == 0


@pytest.mark.no_cover
@settings(max_examples=40)
@given(event_rows())
def test_the_order_of_rows_does_not_matter(rows: list[tuple[Any, ...]]) -> None:
    forwards, backwards = event_frame(rows), event_frame(rows[::-1])
    assert step_times(forwards) == step_times(backwards)
    for name, ledger in ledgers(forwards, DEVICES).items():
        other = ledgers(backwards, DEVICES)[name]
        for line in LEDGER_LINES:
            assert getattr(other, line) == pytest.approx(getattr(ledger, line), abs=1e-9)


@settings(max_examples=40)
@given(event_rows())
def test_the_lead_in_is_not_counted(rows: list[tuple[Any, ...]]) -> None:
    events = event_frame(rows)
    steps = events.groupby(["launch", "round"])["step"].nunique()
    expected = sum(max(1, count - 1) for count in steps)
    assert sum(map(len, step_times(events).values())) == expected


def two_devices() -> pd.DataFrame:
    """Two steps by hand: `fast` computes 1 s and waits 1 s, `slow` computes 2 s, both talk 0.5 s, and update 0.25 s."""
    rows: list[tuple[Any, ...]] = []
    for step in range(2):
        t = step * 2.75
        rows += [
            (0, 0, step, "fast", 0, 0, 0, "forward", t, t + 1, 1),
            (0, 0, step, "fast", 0, -1, -1, "wait", t + 1, t + 2, 1),
            (0, 0, step, "slow", 1, 0, 0, "backward", t, t + 2, 1),
        ]
        for device in ("fast", "slow"):
            rows.append((0, 0, step, device, 0, -1, -1, "communication", t + 2, t + 2.5, 1))
            rows.append((0, 0, step, device, 0, -1, -1, "optimizer", t + 2.5, t + 2.75, 1))
    return event_frame(rows)


def test_by_hand() -> None:
    found = ledgers(two_devices(), ["fast", "slow", "spare"])
    assert found["fast"] == DeviceLedger(compute_s=1, wait_s=1, communication_s=0.5, optimizer_s=0.25)
    assert found["slow"] == DeviceLedger(compute_s=2, communication_s=0.5, optimizer_s=0.25)
    assert found["spare"] == DeviceLedger(idle_s=2.75)
    assert found["slow"].utilisation() == pytest.approx(2.25 / 2.75)
    assert step_times(two_devices()) == {0: [2.75]}


def test_critical_path_names_who_is_waited_for() -> None:
    found = ledgers(two_devices(), ["fast", "slow", "spare"])
    assert critical_path(found) == "slow: compute takes 73% of the step"
    assert critical_path({"spare": found["spare"]}) == "nothing ran"


def test_the_engines_ledger_sums_to_the_step(study: list[Run]) -> None:
    for run in study:
        for ledger in run.summary.devices.values():
            assert ledger.total_s() == pytest.approx(run.summary.step_time_s.mean)


def test_durations_of_a_single_step_count_it() -> None:
    assert durations([5.0], 2.0) == [3.0]
    assert durations([5.0, 7.0, 10.0], 2.0) == [2.0, 3.0]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_quantiles_are_in_order(values: list[float]) -> None:
    found = quantiles(values)
    slack = 1e-9 * max(values)
    assert min(values) - slack <= found.p10 <= found.p50 + slack <= found.p90 + 2 * slack <= max(values) + 3 * slack
    assert found.mean == pytest.approx(sum(values) / len(values))
