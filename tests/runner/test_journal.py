"""The journal: nothing of it is lost but what was never whole, and its parts sum to the wall time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.journal import Attempt, Event, Journal, parse_events, spent
from steelyard.runner.watch import Fault


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == []
    for step in range(3):
        journal.write("saved", step=step)
    assert [event["step"] for event in journal.read()] == [0, 1, 2]
    assert all(event["when_utc"].endswith("+00:00") for event in journal.read())


@given(cut=st.integers(1))
def test_a_line_that_a_kill_cut_short_costs_that_line_alone(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """The next driver's lines are whole, wherever the cut was."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    journal.write("first")
    before = path.stat().st_size
    journal.write("second")
    data = path.read_bytes()
    path.write_bytes(data[: before + cut % (len(data) - before - 1)])  # without its last byte it is whole
    Journal(path).write("third")
    assert [event["event"] for event in journal.read()] == ["first", "third"]


def test_an_attempt_writes_what_it_hears(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    attempt = Attempt(journal, ["full", "sse"], 20, 3)
    for line in ("waits", "begun 20", *["alive"] * 7, "saved 25 0.5", "unsaved 30 No space left on device"):
        for lane in ("full", "sse"):
            attempt.hear(lane, line)
    attempt.hear("full", "alive")
    assert attempt.reached == 27  # the last step that both have done
    attempt.fail(Fault("killed", "sse", "killed", 0.0))
    kinds = [event["event"] for event in journal.read()]
    assert kinds == ["launch", "begun", "saved", "saved", "unsaved", "unsaved", "fault"]
    fault = journal.read()[-1]
    assert (fault["lane"], fault["steps_lost"], fault["checkpoint_step"]) == ("sse", 2, 25)
    assert journal.read()[-2]["reason"] == "No space left on device"


positive = st.floats(0.01, 10.0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Event], dict[str, float]]:
    """Journals of trainings with random faults, some of them while the next launch starts, and what they cost."""
    now, events = 100.0, []
    cost = {"useful": 0.0, "checkpoint": 0.0, "recompute": 0.0, "detection": 0.0, "restart": 0.0}

    def add(name: str, **fields: Any) -> None:
        events.append({"event": name, "at_s": now, **fields})

    faults = draw(st.lists(st.tuples(st.integers(0, 2), positive, positive, st.booleans()), max_size=5))
    for number, (saves, lost_s, detection_s, starting) in enumerate([*faults, (1, 0.0, 0.0, False)]):
        start_s = draw(positive)
        now += start_s
        cost["restart"] += start_s if number else 0.0
        in_start = starting and 0 < number < len(faults)
        if not in_start:
            add("begun")
            for _ in range(saves):
                useful_s, checkpoint_s = draw(positive), draw(positive)
                now += useful_s + checkpoint_s
                cost["useful"] += useful_s
                cost["checkpoint"] += checkpoint_s
                add("saved", seconds=checkpoint_s)
            now += lost_s
            cost["recompute"] += lost_s
        if number < len(faults):
            now += detection_s
            cost["detection"] += detection_s
            add("fault", detected_after_s=detection_s, recompute_s=0.0 if in_start else lost_s)
    return events, cost


@given(histories(), st.integers(0, 40), st.floats(0.0, 1000.0))
def test_a_host_that_was_started_anew_costs_no_negative_time(
    history: tuple[list[Event], dict[str, float]], at: int, back_s: float
) -> None:
    events, cost = history
    later = [
        {**event, "at_s": event["at_s"] - (back_s if number >= at else 0.0)} for number, event in enumerate(events)
    ]
    assert 0 <= spent(later).wall_s <= sum(cost.values()) + 1e-6


@given(histories())
def test_the_parts_are_what_they_were_made_of_and_sum_to_the_wall_time(
    history: tuple[list[Event], dict[str, float]],
) -> None:
    events, cost = history
    found = spent(events)
    for name, seconds in cost.items():
        assert getattr(found, f"{name}_s") == pytest.approx(seconds, abs=1e-6)
    assert found.wall_s == pytest.approx(sum(cost.values()))
    assert found.goodput == pytest.approx(cost["useful"] / sum(cost.values()))


def test_an_interruption_is_no_fault_and_its_pause_is_not_useful() -> None:
    events = [
        {"event": "begun", "at_s": 0.0},
        {"event": "saved", "at_s": 5.0, "seconds": 1.0},
        {"event": "interrupted", "at_s": 7.0, "recompute_s": 2.0},
        {"event": "begun", "at_s": 107.0},
        {"event": "saved", "at_s": 111.0, "seconds": 1.0},
    ]
    found = spent(events)
    assert (found.useful_s, found.restart_s, found.recompute_s, found.faults) == (7.0, 100.0, 2.0, 0)


def test_lines_that_are_no_events_are_passed_over() -> None:
    lines = ['{"event": "saved"}', '{"event": "sa', "", "7", json.dumps({"event": "done"})]
    assert [event["event"] for event in parse_events(itertools.chain(lines))] == ["saved", "done"]
