"""Figures of a search: history, Pareto front, importances, and the best values over each parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plots import Look, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^vDPX*<>hp"
COLOURS = ("#2171b5", "#e6550d", "#31a354", "#756bb1", "#636363", "#d6a400", "#17a2b8", "#c51b8a")
COLUMNS = 4


@dataclass(frozen=True)
class Point:
    """One trial with values: figures in their units, by objective."""

    number: int
    policy: str
    parameters: Mapping[str, Any]
    figures: tuple[float, ...]
    counts: bool = True
    """Whether it keeps to the limits."""


@dataclass(frozen=True)
class Findings:
    """What a search found, as its figures show it."""

    title: str
    points: Sequence[Point]
    axes: Sequence[str]
    """Name and unit of each objective."""
    less: Sequence[bool]
    """Per objective, whether less is better."""
    front: Sequence[int] = ()
    """Numbers of the trials that none is better than."""
    importances: Mapping[str, float] = field(default_factory=dict)


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write the figures that the findings have something for (equal findings give equal bytes) and return the paths."""
    figures = {"history": history(findings)}
    if len(findings.axes) > 1:
        figures["front"] = front(findings)
    if findings.importances:
        figures["importances"] = importances(findings)
    if any(_numbers(point) for point in findings.points):
        figures["slices"] = slices(findings)
        figures["parallel"] = parallel(findings)
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


@styled
def history(findings: Findings) -> Figure:
    """The first objective of each trial by number, and the best so far."""
    figure, axes = _one(9.0, 4.5)
    _by_policy(axes, findings, lambda point: float(point.number), lambda point: point.figures[0])
    better = min if findings.less[0] else max
    numbers: list[int] = []
    best: list[float] = []
    for point in findings.points:
        if point.counts:
            numbers.append(point.number)
            best.append(better([*best[-1:], point.figures[0]]))
    axes.step(numbers, best, where="post", color="black", linewidth=1.2, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(findings.axes[0])
    return _finished(figure, axes, findings.title)


@styled
def front(findings: Findings) -> Figure:
    """Every pair of objectives; the front is joined where there are two."""
    pairs = [(one, other) for one in range(len(findings.axes)) for other in range(one + 1, len(findings.axes))]
    figure = _figure(5.5 * min(len(pairs), 3) + 1.5, 4.5 * -(-len(pairs) // 3))
    chosen = sorted((point for point in findings.points if point.number in findings.front), key=lambda p: p.figures)
    for place, (one, other) in enumerate(pairs):
        axes = figure.add_subplot(-(-len(pairs) // 3), min(len(pairs), 3), place + 1)
        _by_policy(axes, findings, lambda point, at=one: point.figures[at], lambda point, at=other: point.figures[at])
        style = "-" if len(pairs) == 1 else ""
        x, y = [point.figures[one] for point in chosen], [point.figures[other] for point in chosen]
        axes.plot(x, y, f"k{style}", marker="o", fillstyle="none", markersize=10, linewidth=1.0, label="front")
        axes.set_xlabel(_wanted(findings, one))
        axes.set_ylabel(_wanted(findings, other))
        axes.grid(color="#e5e5e5", linewidth=0.6)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(findings.title, x=0.01, ha="left", fontsize=11)
    return figure


@styled
def importances(findings: Findings) -> Figure:
    """A bar per parameter, the most important on top."""
    shown = list(findings.importances.items())[:20]
    figure, axes = _one(8.0, 1.4 + 0.3 * len(shown))
    axes.barh(range(len(shown)), [share for _, share in shown], color="#9ecae1", edgecolor="#08306b")
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("share in what makes a trial one of the best")
    return _finished(figure, axes, f"{findings.title}: importance of parameters", legend=False)


@styled
def slices(findings: Findings) -> Figure:
    """The first objective over each number that a policy takes; a panel each, the best policy's first."""
    panels = _panels(findings)
    rows = -(-len(panels) // COLUMNS)
    figure = _figure(3.2 * min(len(panels), COLUMNS) + 0.5, 2.8 * rows + 0.6)
    for place, (policy, key) in enumerate(panels):
        axes = figure.add_subplot(rows, min(len(panels), COLUMNS), place + 1)
        points = [point for point in findings.points if point.policy == policy]
        x, y = [float(point.parameters[key]) for point in points], [point.figures[0] for point in points]
        axes.scatter(x, y, s=14, c=[point.number for point in points], cmap="viridis", linewidths=0)
        axes.set_xlabel(f"{policy}.{key}", fontsize=8)
        axes.tick_params(labelsize=7)
        if place % COLUMNS == 0:
            axes.set_ylabel(findings.axes[0], fontsize=8)
    figure.suptitle(f"{findings.title} (later trials are lighter)", x=0.01, ha="left", fontsize=11)
    return figure


@styled
def parallel(findings: Findings) -> Figure:
    """Parallel coordinates of the policy that has parameters and is best: a line per trial, the best ones dark."""
    policy = _panels(findings)[0][0]
    keys = [key for name, key in _panels(findings) if name == policy]
    points = sorted((point for point in findings.points if point.policy == policy), key=_order(findings), reverse=True)
    figure, axes = _one(1.6 * (len(keys) + 1) + 1.5, 4.5)
    columns = [[float(point.parameters[key]) for point in points] for key in keys]
    columns.append([point.figures[0] for point in points])
    spans = [(min(column), max(column)) for column in columns]
    for place, _ in enumerate(points):
        heights = [_height(column[place], span) for column, span in zip(columns, spans, strict=True)]
        share = (place + 1) / len(points)
        axes.plot(range(len(columns)), heights, color="#08519c", alpha=0.05 + 0.75 * share**4, linewidth=1.0)
    axes.set_xticks(range(len(columns)), [*keys, findings.axes[0]], fontsize=8)
    axes.set_yticks([])
    for place, (low, high) in enumerate(spans):
        for height, value in ((-0.05, low), (1.03, high)):
            axes.text(place, height, f"{value:.4g}", ha="center", fontsize=7)
    return _finished(figure, axes, f"{findings.title}: {policy}", legend=False)


def _by_policy(axes: Axes, findings: Findings, x: Any, y: Any) -> None:
    """Points with a mark and colour per policy; those that miss a limit are hollow."""
    for place, policy in enumerate(sorted({point.policy for point in findings.points})):
        look: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "s": 22}
        colour = COLOURS[place % len(COLOURS)]
        for counts in (True, False):
            shown = [point for point in findings.points if point.policy == policy and point.counts == counts]
            label = policy if counts else f"{policy}, over a limit"
            if shown:
                fill: Look = {"color": colour} if counts else {"facecolors": "none", "edgecolors": colour}
                axes.scatter([x(point) for point in shown], [y(point) for point in shown], label=label, **look, **fill)


def _panels(findings: Findings) -> list[tuple[str, str]]:
    """Policy and parameter of each number, the policy with the best trial first."""
    best: dict[str, float] = {}
    keys: dict[str, list[str]] = {}
    for point in findings.points:
        if numbers := _numbers(point):
            value = _order(findings)(point)
            best[point.policy] = min(value, best.get(point.policy, math.inf))
            keys[point.policy] = numbers
    return [(policy, key) for policy in sorted(best, key=lambda name: (best[name], name)) for key in keys[policy]]


def _numbers(point: Point) -> list[str]:
    values = point.parameters.items()
    return [key for key, value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def _order(findings: Findings) -> Any:
    """Best first by the first objective."""
    sign = 1 if findings.less[0] else -1
    return lambda point: sign * point.figures[0]


def _height(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return (value - low) / (high - low) if high > low else 0.5


def _wanted(findings: Findings, place: int) -> str:
    return f"{findings.axes[place]} ({'less' if findings.less[place] else 'more'} is better)"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _finished(figure: Figure, axes: Axes, title: str, *, legend: bool = True) -> Figure:
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8, loc="best")
    return figure
