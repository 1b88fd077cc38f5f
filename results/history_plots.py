"""The history of prediction error as a figure: one line per fidelity, host and scenario, over the replays in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import InputError
from .history import Entry
from .plots import MARKERS, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"datasheet": "#969696", "calibrated": "#fd8d3c", "profiled": "#08519c"}


@styled
def history_figure(entries: Sequence[Entry]) -> Figure:
    """Mean absolute error of each replay on a logarithmic axis; hollow where the host was busy; crosses: noise floors.

    Raises:
        InputError: there is nothing to draw.
    """
    from matplotlib.figure import Figure

    if not entries:
        raise InputError("history", "is empty", "`steelyard replay` adds to it")
    studies = list(dict.fromkeys(entry.study for entry in entries))
    figure = Figure(figsize=(max(6.4, 2.0 + 0.35 * len(studies)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    series: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        series.setdefault((entry.fidelity, entry.scenario, entry.host), []).append(entry)
    for number, ((fidelity, scenario, host), own) in enumerate(series.items()):
        places = [studies.index(entry.study) for entry in own]
        values = [max(entry.mape_percent, LEAST_PERCENT) for entry in own]
        colour, marker = COLOURS.get(fidelity, "#000000"), MARKERS[number % len(MARKERS)]
        axes.plot(places, values, color=colour, linewidth=1, label=f"{fidelity}: {scenario} on {host}")
        for place, value, entry in zip(places, values, own, strict=True):
            axes.plot(place, value, marker, color=colour, markerfacecolor="none" if entry.busy else colour)
    floors = {entry.study: entry.noise_floor_percent for entry in entries if entry.noise_floor_percent}
    axes.plot(
        [studies.index(each) for each in floors], list(floors.values()), "x", color="#000000", label="noise floor"
    )
    axes.set_yscale("log")
    axes.set_xticks(range(len(studies)), [_date(entries, each) for each in studies], rotation=60, ha="right")
    axes.set_ylabel("mean absolute error, %")
    axes.set_title("Prediction error of each replay (hollow: the host was busy)", loc="left")
    axes.legend(fontsize=8)
    return figure


LEAST_PERCENT = 0.01
"""A logarithmic axis has no zero."""


def _date(entries: Sequence[Entry], study: str) -> str:
    return next(entry.date_utc[:16].replace("T", " ") for entry in entries if entry.study == study)
