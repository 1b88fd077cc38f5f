"""The trace: a valid document whose durations are those of the events and of the ledger."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.results.ledger import step_times
from steelyard.results.record import LEDGER_LINES, LEDGER_OF_KIND, Run
from steelyard.results.trace import side_by_side, trace, typical_launch, write_trace
from steelyard.sim.engine import simulate
from steelyard.sim.spec import Scenario


def spans(document: dict[str, Any], process: int) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == "X" and event["pid"] == process]


def test_every_event_has_what_a_viewer_needs(study: list[Run]) -> None:
    document = trace(study)
    assert document["displayTimeUnit"] == "ms"
    for event in document["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= 0
            assert event["name"] in LEDGER_OF_KIND
        else:
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")


def test_processes_are_named_and_stand_side_by_side(study: list[Run]) -> None:
    document = trace(study)
    names = [event["args"]["name"] for event in document["traceEvents"] if event["name"] == "process_name"]
    assert names[:3] == ["simulated: uniform", "measured: uniform", "measured: uniform (again)"]
    threads = [event["args"]["name"] for event in document["traceEvents"] if event["name"] == "thread_name"]
    assert threads == ["left", "right"] * len(study)
    assert sorted(run.manifest.run_id for run in side_by_side(study)) == sorted(run.manifest.run_id for run in study)


def test_a_measured_run_without_its_prediction_is_kept(study: list[Run]) -> None:
    alone = [study[1], study[2]]
    assert side_by_side(alone) == [study[2], study[1]]


def test_events_of_a_thread_do_not_overlap(study: list[Run]) -> None:
    lanes = defaultdict(list)
    for event in trace(study)["traceEvents"]:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(lanes) >= len(study)
    for times in lanes.values():
        for (_, end), (start, _) in itertools.pairwise(times):
            assert start >= end - 1e-3


def test_durations_sum_to_the_ledger(make_scenario: Callable[..., Scenario]) -> None:
    # A single step is counted from its beginning, so nothing is cut off at the edge of the window.
    run = simulate(make_scenario(noisy=False, steps=1), make_policy("uniform"))
    document = trace([run])
    for thread, (_, ledger) in enumerate(run.summary.devices.items(), start=1):
        own = [event for event in spans(document, 1) if event["tid"] == thread]
        for line in LEDGER_LINES:
            if line != "idle_s":
                total = sum(event["dur"] for event in own if LEDGER_OF_KIND[event["name"]] == line)
                assert total == pytest.approx(1e6 * getattr(ledger, line), abs=1e-6)


def test_durations_sum_to_the_events_of_the_typical_launch(study: list[Run]) -> None:
    for process, run in enumerate(side_by_side(study), start=1):
        events = run.events[run.events["launch"] == typical_launch(run)]
        expected = 1e6 * (events["end_s"] - events["start_s"]).sum()
        assert sum(event["dur"] for event in spans(trace(study), process)) == pytest.approx(expected)


def test_the_typical_launch_is_nearest_the_median(study: list[Run]) -> None:
    run = study[1]
    times = step_times(run.events)
    middle = run.summary.step_time_s.p50
    gaps = {launch: abs(run.summary.launch_median_step_time_s[launch] - middle) for launch in times}
    assert gaps[typical_launch(run)] == pytest.approx(min(gaps.values()))


def test_the_file_is_json(study: list[Run], tmp_path: Path) -> None:
    path = write_trace(study[:2], tmp_path / "trace.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(trace(study[:2])))
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]


def test_nothing_to_trace_is_refused(study: list[Run]) -> None:
    with pytest.raises(InputError, match="there are none"):
        trace([])
    empty = dataclasses.replace(study[0], events=study[0].events.iloc[:0])
    with pytest.raises(InputError, match="has no events"):
        trace([empty])
