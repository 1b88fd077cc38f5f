"""Figures of a search: equal findings give equal bytes, and each shows what it is about."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest
from steelyard.results.search_plots import Findings, Point, front, history, importances, parallel, slices, write

POINTS = [
    Point(0, "uniform", {}, (10.0, 5.0)),
    Point(1, "attention", {"speed": 1.0, "kind": "plain", "flag": True}, (14.0, 4.0)),
    Point(2, "attention", {"speed": 0.5, "kind": "plain", "flag": False}, (20.0, 9.0), counts=False),
    Point(4, "throughput", {"gamma": 2.0}, (12.0, 3.0)),
]
FINDINGS = Findings(
    title="two lanes",
    points=POINTS,
    axes=["throughput, samples/s", "cost, $ per million samples"],
    less=[False, True],
    front=[1, 4],
    importances={"policy": 0.75, "attention.speed": 0.25},
)


def test_equal_findings_give_equal_bytes(tmp_path: Path) -> None:
    first = write(FINDINGS, tmp_path / "one")
    mpl.rcParams["font.size"] = 20.0
    second = write(FINDINGS, tmp_path / "two")
    mpl.rcParams["font.size"] = mpl.rcParamsDefault["font.size"]
    assert [path.name for path in first] == [
        "history.png",
        "front.png",
        "importances.png",
        "slices.png",
        "parallel.png",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_only_what_there_is_something_for_is_drawn(tmp_path: Path) -> None:
    one = Findings(title="t", points=[POINTS[0]], axes=["throughput"], less=[False])
    assert [path.name for path in write(one, tmp_path)] == ["history.png"]


@pytest.mark.parametrize(("less", "best"), [(False, [10.0, 14.0, 14.0]), (True, [10.0, 10.0, 10.0])])
def test_the_history_shows_the_best_that_counts(less: bool, best: list[float]) -> None:
    figure = history(Findings(title="t", points=POINTS, axes=["x"], less=[less]))
    assert list(figure.axes[0].lines[0].get_ydata()) == best
    assert figure.axes[0].get_title(loc="left") == "t"


def test_the_front_is_joined_and_says_what_is_better() -> None:
    axes = front(FINDINGS).axes[0]
    assert sorted(axes.lines[0].get_xdata()) == [12.0, 14.0]
    assert "more is better" in axes.get_xlabel()
    assert "less is better" in axes.get_ylabel()
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "attention, over a limit" in entries
    three = Findings(
        title="t", points=[Point(0, "p", {}, (1.0, 2.0, 3.0))], axes=["a", "b", "c"], less=[False] * 3, front=[0]
    )
    assert len(front(three).axes) == 3


def test_slices_have_a_panel_for_each_number_the_best_policy_first() -> None:
    labels = [axes.get_xlabel() for axes in slices(FINDINGS).axes]
    assert labels == ["attention.speed", "throughput.gamma"]
    ticks = [tick.get_text() for tick in parallel(FINDINGS).axes[0].get_xticklabels()]
    assert ticks == ["speed", "throughput, samples/s"]
    assert len(importances(FINDINGS).axes[0].patches) == 2
