"""Figures: predicted against measured, throughput, timelines. Each function gives a Figure and touches no global state.

Every kind of bar has a colour of its own lightness and a hatch, so that a black-and-white print still tells them apart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from .compare import PlanRow
from .groups import Group, groups
from .record import LEDGER_LINES, Run
from .tables import percent, short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# parse_math: a dollar sign in a label is a dollar sign.
FONT: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "hatch.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,
}
Look = dict[str, Any]
PREDICTED: Look = {"facecolor": "#9ecae1", "edgecolor": "#08306b", "hatch": "///", "label": "predicted"}
MEASURED: Look = {"facecolor": "#08519c", "edgecolor": "#08306b", "label": "measured"}
KINDS: dict[str, Look] = {
    "forward": {"facecolor": "#9ecae1", "hatch": ""},
    "backward": {"facecolor": "#2171b5", "hatch": ""},
    "compute": {"facecolor": "#6baed6", "hatch": "\\\\"},
    "communication": {"facecolor": "#fdae6b", "hatch": "////"},
    "wait": {"facecolor": "#ffffff", "hatch": "...."},
    "input": {"facecolor": "#fee391", "hatch": "oo"},
    "optimizer": {"facecolor": "#31a354", "hatch": "xxxx"},
    "bubble": {"facecolor": "#f0f0f0", "hatch": "||||"},
    "rebalance": {"facecolor": "#dadaeb", "hatch": "++++"},
    "checkpoint": {"facecolor": "#fcbba1", "hatch": "\\\\\\\\"},
}
LINES: dict[str, Look] = {
    "compute_s": KINDS["backward"],
    "optimizer_s": KINDS["optimizer"],
    "communication_s": KINDS["communication"],
    "wait_s": KINDS["wait"],
    "input_s": KINDS["input"],
    "bubble_s": KINDS["bubble"],
    "rebalance_s": KINDS["rebalance"],
    "checkpoint_s": KINDS["checkpoint"],
    "idle_s": {"facecolor": "#ffffff", "hatch": ""},
}
MARKERS = "os^vDPX*<>hp"
TIMELINE_STEPS = 3
LOG_FROM = 6.0
"""Step times that span more than this factor are drawn on logarithmic axes."""

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with this module's fonts, whatever the caller's matplotlib settings, and leave those as they were."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context(FONT):
            return draw(*args, **kwargs)

    return inner


@styled
def scatter(rows: Sequence[PlanRow]) -> Figure:
    """Predicted against measured step time, the y = x line, both intervals as bars.

    A thin line leads from each point to its entry at the right: names beside the points of nearly equal plans would be
    printed over each other.
    """
    shown = [row for row in rows if row.measured is not None]
    measured = sorted(shown, key=lambda row: (row.predicted.p50_s, row.measured.median_s if row.measured else 0.0))
    height = max(4.8, 1.2 + 0.25 * len(measured))
    entries = max(len(short_name(row)) for row in measured) + len(": +99.9 %")
    figure = _figure(height + 0.4 + 0.08 * entries, height)
    axes = figure.add_subplot()
    low, high = _frame(axes, measured)
    for number, row in enumerate(measured):
        _point(axes, row, number)
    axes.set_xlabel("measured step time, ms (bar: 80 % bootstrap over launches)")
    axes.set_ylabel("predicted step time, ms (bar: 80 % of launches)")
    axes.set_title("Predicted against measured (dashed: equal; band: 5 % either way)", loc="left")
    _entries(axes, measured, low, high)
    return figure


@styled
def throughput(rows: Sequence[PlanRow]) -> Figure:
    """Samples per second of each plan, predicted beside measured, with intervals, and the bound that no split beats."""
    ordered = sorted(rows, key=lambda row: row.predicted.p50_s)
    figure = _figure(9.0, 1.7 + 0.55 * len(ordered))
    axes = figure.add_subplot()
    shift = 0.19 if any(row.measured is not None for row in rows) else 0.0
    for place, row in enumerate(ordered):
        batch, predicted = row.global_batch, row.predicted
        low, high = predicted.interval_s
        _bar(axes, place - shift, batch, (low, predicted.p50_s, high), PREDICTED)
        if row.measured is not None:
            low, high = row.measured.interval_s
            _bar(axes, place + shift, batch, (low, row.measured.median_s, high), MEASURED)
    bounds = [row.global_batch / row.lower_bound_step_time_s for row in ordered if row.lower_bound_step_time_s > 0]
    if bounds:
        axes.axvline(
            max(bounds), color="black", linestyle="--", linewidth=1.2, label="bound (same model, no noise, free links)"
        )
    axes.set_yticks(range(len(ordered)), [short_name(row) for row in ordered])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("samples per second (bars: 80 % intervals)")
    axes.set_title("Throughput of each plan")
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    _legend(figure, axes, columns=3)
    return figure


@styled
def timelines(runs: Sequence[Run], title: str = "", steps: int = TIMELINE_STEPS) -> Figure:
    """A few typical steps of each run, one above the other on one time axis: a row per device, a bar per event.

    Of devices that are equal in everything, one is shown.
    """
    parts = [(run, excerpt(run, steps)) for run in runs]
    shown = groups(runs)
    figure = _figure(9.5, 1.5 + len(runs) * (0.55 + 0.42 * len(shown)))
    grid = figure.subplots(len(runs), 1, sharex=True, squeeze=False)
    for axes, (run, events) in zip(grid[:, 0], parts, strict=True):
        _lanes(axes, events, shown)
        span = 1e3 * float(events.attrs["span_s"])
        axes.set_title(f"{run.manifest.kind}: {_counted(events.attrs['steps'])} in {span:.4g} ms", loc="left")
    grid[-1, 0].set_xlim(0, 1e3 * max(float(events.attrs["span_s"]) for _, events in parts) * 1.01)
    grid[-1, 0].set_xlabel("ms from the end of the step before")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    kinds = {str(kind) for _, events in parts for kind in events["kind"]}
    _kind_legend(figure, [kind for kind in KINDS if kind in kinds])
    return figure


@styled
def ledger_bars(runs: Sequence[Run], title: str = "") -> Figure:
    """Where the mean step of each device went: a stacked bar per device and run; equal devices share one."""
    bars = [(group.label, run, group.ledger(run)) for group in groups(runs) for run in runs]
    figure = _figure(9.0, 1.7 + 0.42 * len(bars))
    axes = figure.add_subplot()
    used = [line for line in LEDGER_LINES if any(getattr(ledger, line) for _, _, ledger in bars)]
    for place, (_, _, ledger) in enumerate(bars):
        left = 0.0
        for line in used:
            value = 1e3 * getattr(ledger, line)
            label = line.removesuffix("_s") if place == 0 else None
            axes.barh(
                place, value, left=left, height=0.7, edgecolor="#333333", linewidth=0.6, label=label, **LINES[line]
            )
            left += value
    axes.set_yticks(range(len(bars)), [f"{name}, {run.manifest.kind}" for name, run, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("ms of the mean step")
    axes.set_title(title or "Where the step went")
    _legend(figure, axes, columns=5)
    return figure


def excerpt(run: Run, steps: int = TIMELINE_STEPS) -> pd.DataFrame:
    """Events of the most typical ``steps`` consecutive steps, cut to them, times from the end of the step before.

    Typical: the total is closest to that many median steps. ``attrs`` holds ``span_s`` and ``steps``.
    """
    typical = run.summary.step_time_s.p50
    candidates = []
    for _, block in run.events.groupby(["launch", "round"], sort=True):
        marks = block.groupby("step", sort=True)["end_s"].max().tolist()
        if len(marks) == 1:
            marks.insert(0, float(block["start_s"].min()))
        count = min(steps, len(marks) - 1)
        spans = [(begin, end) for begin, end in zip(marks, marks[count:], strict=False)]
        candidates += [(-count, abs((end - begin) / count - typical), begin, end, block) for begin, end in spans]
    count, _, begin, end, block = min(candidates, key=lambda each: each[:2])
    inside: pd.DataFrame = block[(block["end_s"] > begin) & (block["start_s"] < end)]
    inside = inside.assign(
        start_s=inside["start_s"].clip(lower=begin) - begin, end_s=inside["end_s"].clip(upper=end) - begin
    )
    inside.attrs.update(span_s=end - begin, steps=-count)
    return inside


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG (equal figures give equal bytes) and return the path."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(FONT):
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
    return path


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places in ascending order moved apart to at least ``gap``, as little as can be, kept in [0, 1] where they fit."""
    blocks: list[tuple[float, int]] = []  # mean and size of runs that touch (pool adjacent violators)
    for number, place in enumerate(places):
        blocks.append((place - number * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    moved = [mean for mean, size in blocks for _ in range(size)]
    highest = max(0.0, 1 - (len(moved) - 1) * gap)
    return [min(max(place, 0.0), highest) + number * gap for number, place in enumerate(moved)]


def _counted(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _frame(axes: Axes, rows: Sequence[PlanRow]) -> tuple[float, float]:
    """Equal axes that hold all points and bars, with the y = x line and the band of 5 %; gives their ends in ms."""
    from matplotlib.ticker import LogLocator, NullFormatter

    times = [1e3 * value for row in rows for value in _times(row)]
    low, high = min(times), max(times)
    if high / low > LOG_FROM:
        axes.set(xscale="log", yscale="log")
        # Labels at every digit of a decade run into each other: fewer, the more decades there are.
        labelled = ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,))
        subs = labelled[min(2, int(math.log10(high / low)))]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        low, high = low / 1.15, high * 1.15
    else:
        margin = max(0.08 * (high - low), 0.02 * high)
        low, high = max(0.0, low - margin), high + margin
    ends = [low, high]
    axes.fill_between(ends, [0.95 * end for end in ends], [1.05 * end for end in ends], color="#eeeeee", zorder=0)
    axes.plot(ends, ends, color="#555555", linewidth=1, linestyle="--", zorder=1)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_box_aspect(1)
    axes.set_anchor("W")
    return low, high


def _times(row: PlanRow) -> list[float]:
    measured = row.measured
    assert measured is not None
    return [row.predicted.p50_s, *row.predicted.interval_s, measured.median_s, *measured.interval_s]


def _style(row: PlanRow, number: int) -> Look:
    """Marker of a row: a shape of its own; hollow for a twin."""
    filled = row.twin_of is None
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 7,
        "markerfacecolor": MEASURED["facecolor"] if filled else "none",
        "markeredgecolor": "black",
        "markeredgewidth": 0.8,
        "linestyle": "none",
    }


def _point(axes: Axes, row: PlanRow, number: int) -> None:
    assert row.measured is not None
    x, y = 1e3 * row.measured.median_s, 1e3 * row.predicted.p50_s
    bars: Look = {"xerr": _arms(x, row.measured.interval_s), "yerr": _arms(y, row.predicted.interval_s)}
    axes.errorbar(x, y, **bars, ecolor="#333333", elinewidth=1, capsize=2, zorder=3, **_style(row, number))


def _arms(middle: float, interval_s: tuple[float, float]) -> list[list[float]]:
    return [[max(0.0, middle - 1e3 * interval_s[0])], [max(0.0, 1e3 * interval_s[1] - middle)]]


def _entries(axes: Axes, rows: Sequence[PlanRow], low: float, high: float) -> None:
    """The list at the right, longest predicted time on top, each entry tied to its point by a thin line."""
    to_axes = axes.transScale + axes.transLimits
    heights = [float(to_axes.transform((low, 1e3 * row.predicted.p50_s))[1]) for row in rows]
    thin: Look = {"color": "#999999", "linewidth": 0.6, "zorder": 1}
    for number, (row, height, place) in enumerate(
        zip(rows, heights, spread(heights, 1 / max(len(rows), 20)), strict=True)
    ):
        assert row.measured is not None
        y = 1e3 * row.predicted.p50_s
        axes.plot([1e3 * row.measured.median_s, high], [y, y], **thin)
        axes.plot([1.0, 1.05], [height, place], transform=axes.transAxes, clip_on=False, **thin)
        axes.plot([1.07], [place], transform=axes.transAxes, clip_on=False, **_style(row, number))
        text = f"{short_name(row)}: {percent(row.error_percent)}"
        axes.text(1.10, place, text, transform=axes.transAxes, va="center", fontsize=9.5)


def _bar(axes: Axes, place: float, batch: int, times_s: tuple[float, float, float], look: Look) -> None:
    """One throughput bar with its interval, from (least, middle, most) time: as rates the arms change sides."""
    least, middle, most = times_s
    rate = batch / middle
    arms = [[max(0.0, rate - batch / most)], [max(0.0, batch / least - rate)]]
    known = axes.get_legend_handles_labels()[1]
    axes.barh(
        place, rate, height=0.36, linewidth=0.8, **{**look, "label": None if look["label"] in known else look["label"]}
    )
    axes.errorbar(rate, place, xerr=arms, ecolor="black", elinewidth=1.2, capsize=3, linestyle="none")


def _lanes(axes: Axes, events: pd.DataFrame, shown: Sequence[Group]) -> None:
    """The bars of one timeline, first device on top; of a group, the first device that did anything."""
    active = set(events["device"])
    lane_of = {next((n for n in group.names if n in active), group.names[0]): lane for lane, group in enumerate(shown)}
    for (device, kind), part in events.groupby(["device", "kind"], sort=True):
        if device not in lane_of:
            continue
        spans = [(1e3 * start, 1e3 * (end - start)) for start, end in zip(part["start_s"], part["end_s"], strict=True)]
        look = KINDS.get(str(kind), {"facecolor": "#cccccc", "hatch": ""})
        axes.broken_barh(spans, (lane_of[device] - 0.38, 0.76), edgecolor="#333333", linewidth=0.5, **look)
    axes.set_yticks(range(len(shown)), [group.label for group in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _kind_legend(figure: Figure, kinds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(edgecolor="#333333", linewidth=0.5, label=kind, **KINDS[kind]) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handleheight=1.2)
