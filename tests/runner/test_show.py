"""Tables for people: what a terminal of any width keeps."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from steelyard.runner.show import LONGEST_WORD, print_table

WORD = st.text("abcdefghij-_%", min_size=1, max_size=LONGEST_WORD)
CELL = st.lists(WORD, min_size=1, max_size=6).map(" ".join)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    keys = draw(st.lists(CELL, min_size=1, max_size=9, unique=True))
    return [{key: draw(CELL | st.integers(0, 10**6)) for key in keys} for _ in range(draw(st.integers(1, 4)))]


@given(rows=tables(), width=st.integers(2 * (LONGEST_WORD + 3) + 1, 200))
def test_a_terminal_of_any_width_keeps_words_whole_and_every_column(rows: list[dict[str, Any]], width: int) -> None:
    printed = io.StringIO()
    print_table(Console(file=printed, width=width, force_terminal=True, color_system=None), rows, "all of it")
    lines = printed.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    shown = {word for line in lines for word in line.replace("┃", "│").replace("│", " ").split()}
    cells = [str(value) for row in rows for pair in row.items() for value in pair]
    assert shown >= {word for cell in cells for word in cell.split()}


def test_further_tables_are_led_by_the_column_that_names_the_rows() -> None:
    rows = [{"rank": 1, "policy": name, **{f"figure-{n}": 10**20 for n in range(5)}} for name in ("hybrid", "amp")]
    printed = io.StringIO()
    print_table(Console(file=printed, width=60, force_terminal=True, color_system=None), rows)
    assert [line.count("hybrid") for line in printed.getvalue().splitlines() if "hybrid" in line] == [1] * 3


def test_rows_that_two_columns_name_together_are_led_by_both() -> None:
    rows = [
        {"run": run, "device": device, "ms": index, **{f"figure-{n}": 10**20 for n in range(4)}}
        for index, (run, device) in enumerate([("one", "near"), ("one", "far"), ("two", "near"), ("two", "far")])
    ]
    printed = io.StringIO()
    print_table(Console(file=printed, width=64, force_terminal=True, color_system=None), rows)
    lines = [line.replace("│", " ").split()[:2] for line in printed.getvalue().splitlines() if "near" in line]
    assert len(lines) > 2
    assert all(line in (["one", "near"], ["two", "near"]) for line in lines)


def test_no_rows_are_no_table() -> None:
    printed = io.StringIO()
    print_table(Console(file=printed, width=60, force_terminal=True), [])
    assert "┃" not in printed.getvalue()
