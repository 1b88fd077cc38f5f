"""From segments to rows: gaps are explained by the neighbours, and a device's rows cover its step without overlap."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.intervals import step_rows

PROGRAM = {
    "pipelines": [
        {
            "stages": [{"first": 0, "last": 2, "rank": 0}, {"first": 2, "last": 4, "rank": 1}],
            "sizes": [4, 4],
            "first": 0,
        }
    ],
    "schedule": "gpipe",
    "zero": 0,
}


def gpipe(f: float, b: float, c: float) -> dict[int, list[Any]]:
    """Two stages, two micro-batches, every pass as long, every message ``c``."""
    first = [("forward", 0, 0.0, f, f, 0), ("forward", 1, f, 2 * f, f, 0)]
    begin = f + c
    last = [("forward", 0, begin, begin + f, f, 1), ("forward", 1, begin + f, begin + 2 * f, f, 1)]
    turn = begin + 2 * f
    last += [("backward", 0, turn, turn + b, b, 1), ("backward", 1, turn + b, turn + 2 * b, b, 1)]
    first += [("backward", n, turn + (n + 1) * b + c, turn + (n + 2) * b + c, b, 0) for n in (0, 1)]
    for own in (first, last):
        own.append(("optimizer", -1, own[-1][3], own[-1][3] + 1.0, 1.0, -1))
    return {0: first, 1: last}


@given(*[st.floats(0.01, 10.0)] * 3)
def test_gaps_are_the_bubble_until_the_neighbour_is_done_and_then_the_message(f: float, b: float, c: float) -> None:
    rows = list(step_rows(gpipe(f, b, c), {"program": PROGRAM}, {0: 0.0, 1: 0.0}))
    spent: dict[tuple[int, str], float] = {}
    for row in rows:
        key = row["device"], row["kind"]
        spent[key] = spent.get(key, 0.0) + row["end_s"] - row["start_s"]
    assert spent[1, "bubble"] == pytest.approx(f)
    assert spent[1, "communication"] == pytest.approx(c)
    assert spent[0, "communication"] == pytest.approx(c)
    assert spent[0, "bubble"] == pytest.approx(f + c + b)
    for rank in (0, 1):
        own = sorted((row["start_s"], row["end_s"]) for row in rows if row["device"] == rank)
        assert own[0][0] == 0.0
        assert all(late[0] == pytest.approx(early[1]) for early, late in itertools.pairwise(own))


def test_rows_carry_pipeline_stage_and_micro_batch() -> None:
    rows = list(step_rows(gpipe(1.0, 2.0, 0.1), {"program": PROGRAM}))
    passes = {(row["device"], row["stage"], row["micro_batch"]) for row in rows if row["kind"] == "forward"}
    assert passes == {(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)}
    assert {row["pipeline"] for row in rows} == {0}


def test_a_collective_begins_when_the_last_who_shares_weights_has_entered() -> None:
    """Ranks 0 and 1 hold the same layers, rank 2 others: it is not waited for."""
    stages = (
        [{"first": 0, "last": 2, "rank": 0}],
        [{"first": 0, "last": 2, "rank": 1}],
        [{"first": 2, "last": 4, "rank": 2}],
    )
    program = {**PROGRAM, "pipelines": [{"stages": own, "sizes": [4], "first": 0} for own in stages]}
    segments = {
        rank: [("communication", -1, entered, 10.0, 0.0, -1)] for rank, entered in ((0, 1.0), (1, 3.0), (2, 8.0))
    }
    waits = {row["device"]: row for row in step_rows(segments, {"program": program}) if row["kind"] == "wait"}
    assert [(waits[rank]["start_s"], waits[rank]["end_s"]) for rank in (0, 1, 2)] == [(1, 3), (3, 3), (8, 8)]
