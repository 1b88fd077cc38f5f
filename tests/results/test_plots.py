"""Figures: nothing overlaps or is cut off, print tells the bars apart, and what is drawn is what was measured."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from steelyard.results.compare import PlanRow, compare, plan_row
from steelyard.results.plots import KINDS, excerpt, ledger_bars, save, scatter, spread, throughput, timelines
from steelyard.results.record import LEDGER_OF_KIND, Run


@pytest.fixture(scope="module")
def rows(study: list[Run]) -> list[PlanRow]:
    return compare(study).plans


@pytest.fixture(scope="module")
def crowd(rows: list[PlanRow]) -> list[PlanRow]:
    """Twenty plans of nearly the same time, with long names and signs that mean something to other programs."""
    assert rows[0].measured is not None
    many = []
    for number in range(20):
        factor = 1 + number * 1e-4
        predicted = rows[0].predicted.model_copy(update={"p50_s": rows[0].predicted.p50_s * factor})
        label = f"$a policy$ with a name that does not end & <number> {number}"
        many.append(rows[0].model_copy(update={"label": label, "predicted": predicted}))
    return many


def written(figure: Figure) -> list[Text]:
    """Every text that is drawn: titles, labels of axes and ticks, entries of legends."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        low, high = sorted(axes.get_ylim())
        left, right = sorted(axes.get_xlim())
        for axis, ends in ((axes.xaxis, (left, right)), (axes.yaxis, (low, high))):
            for tick in axis.get_major_ticks():
                if tick.label1.get_visible() and ends[0] <= tick.get_loc() <= ends[1]:
                    found.append(tick.label1)
            found.append(axis.label)
        found += [*axes.texts, axes.title, axes._left_title]  # type: ignore[attr-defined]  # no public way to it
    found += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in found if text.get_text().strip()]


def assert_readable(figure: Figure) -> None:
    boxes = {text: text.get_window_extent() for text in written(figure)}
    assert len(boxes) >= 3
    for text, box in boxes.items():
        assert text.get_fontsize() >= 8
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        along = min(first.y1, second.y1) - max(first.y0, second.y0)
        # Boxes hold the room for letters with tails: a pixel or two of it may be shared.
        assert across <= 1 or along <= 3, (one.get_text(), other.get_text())


def test_figures_of_a_study_are_readable(study: list[Run], rows: list[PlanRow]) -> None:
    assert_readable(scatter(rows))
    assert_readable(throughput(rows))
    assert_readable(timelines(study[:2], "uniform"))
    assert_readable(ledger_bars(study[:2]))


def test_nearly_equal_plans_are_not_printed_over_each_other(crowd: list[PlanRow]) -> None:
    assert_readable(scatter(crowd))
    assert_readable(throughput(crowd))


def test_one_plan_alone(rows: list[PlanRow], study: list[Run]) -> None:
    assert_readable(scatter(rows[:1]))
    assert_readable(throughput([plan_row(study[0])]))
    assert_readable(timelines(study[:1]))


def test_times_of_other_orders_of_magnitude(rows: list[PlanRow]) -> None:
    assert rows[0].measured is not None
    slow = rows[0].model_copy(
        update={
            "measured": rows[0].measured.model_copy(update={"median_s": 9.0, "interval_s": (8.0, 10.0)}),
            "predicted": rows[0].predicted.model_copy(update={"p50_s": 9.5, "interval_s": (9.0, 10.0)}),
        }
    )
    figure = scatter([*rows, slow])
    assert figure.axes[0].get_xscale() == "log"
    assert_readable(figure)


def test_the_scatter_has_the_line_of_equality_and_a_point_per_plan(rows: list[PlanRow]) -> None:
    axes = scatter(rows).axes[0]
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    assert any(len(line) == 2 and np.allclose(line[:, 0], line[:, 1]) and line[0, 0] < line[1, 0] for line in lines)
    points = {tuple(np.round(line[0], 6)) for line in lines if len(line) == 1}
    for row in rows:
        assert row.measured is not None
        assert (round(1e3 * row.measured.median_s, 6), round(1e3 * row.predicted.p50_s, 6)) in points


def test_bars_have_the_heights_of_the_table(rows: list[PlanRow]) -> None:
    axes = throughput(rows).axes[0]
    widths = sorted(patch.get_width() for patch in axes.patches)  # type: ignore[attr-defined]  # bars are rectangles
    expected = []
    for row in rows:
        assert row.measured is not None
        expected += [row.global_batch / row.predicted.p50_s, row.global_batch / row.measured.median_s]
    assert widths == pytest.approx(sorted(expected))


def lightness(colour: str) -> float:
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_bars_survive_black_and_white() -> None:
    assert set(KINDS) == set(LEDGER_OF_KIND)
    for one, other in itertools.combinations(KINDS.values(), 2):
        if one["hatch"] == other["hatch"]:
            assert abs(lightness(one["facecolor"]) - lightness(other["facecolor"])) > 0.2


def test_excerpt_is_of_consecutive_typical_steps(study: list[Run]) -> None:
    for run in study:
        events = excerpt(run, 3)
        assert events.attrs["steps"] == 3
        assert events.attrs["span_s"] / 3 == pytest.approx(run.summary.step_time_s.p50, rel=0.05)
        assert events["launch"].nunique() == 1
        assert (events["end_s"] > 0).all()
        assert (events["start_s"] < events.attrs["span_s"]).all()
        spent = (events["end_s"] - events["start_s"]).groupby(events["device"]).sum()
        assert (spent <= events.attrs["span_s"] * (1 + 1e-9)).all()


def test_excerpt_of_a_single_step(study: list[Run]) -> None:
    first = dataclasses.replace(study[0], events=study[0].events[study[0].events["step"] == 0])
    events = excerpt(first, 3)
    assert events.attrs["steps"] == 1
    assert events["start_s"].min() == 0


@given(st.lists(st.floats(0, 1), max_size=30).map(sorted))
def test_spread_keeps_order_distance_and_bounds(places: list[float]) -> None:
    moved = spread(places, 0.03)
    assert len(moved) == len(places)
    assert all(after - before >= 0.03 - 1e-9 for before, after in itertools.pairwise(moved))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in moved)


def test_spread_moves_only_what_is_too_close() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_equal_figures_are_equal_files_and_settings_are_left_alone(rows: list[PlanRow], tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    first, second = (save(scatter(rows), tmp_path / name / "x.png") for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
