"""Where the time went: events to a ledger per device, one pure function for both executors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .record import LEDGER_LINES, LEDGER_OF_KIND, DeviceLedger, Quantiles

if TYPE_CHECKING:
    import pandas as pd


def durations(ends: Sequence[float], begin: float) -> list[float]:
    """Seconds of each counted step of a block of steps without a pause, given when each was over on the last device.

    Devices do not wait for each other after the optimizer, so a step has no common start; the period between the ends
    is what a training run pays. The first step is the lead-in; a block of a single step counts it, from ``begin``.
    """
    if len(ends) == 1:
        return [ends[0] - begin]
    return [late - early for early, late in itertools.pairwise(ends)]


def step_times(events: pd.DataFrame) -> dict[int, list[float]]:
    """Per launch, the seconds of each counted step."""
    begins = events.groupby(["launch", "round"])["start_s"].min().to_dict()
    ends: dict[tuple[int, int], list[float]] = {}
    last = events.groupby(["launch", "round", "step"], sort=True, as_index=False)["end_s"].max()
    for launch, block, end in zip(last["launch"], last["round"], last["end_s"], strict=True):
        ends.setdefault((launch, block), []).append(end)
    times: dict[int, list[float]] = {}
    for (launch, block), each in ends.items():
        times.setdefault(launch, []).extend(durations(each, begins[launch, block]))
    return times


def ledgers(
    events: pd.DataFrame, devices: Iterable[str], *, repeats: int = 1, cycle: int = 1
) -> dict[str, DeviceLedger]:
    """Mean seconds per counted step of each ledger line, per device; the lines sum to the mean step time.

    Each event counts with the part of it that lies in the counted window of its block. A device that has no events
    (left out of the plan) is idle for the whole step.

    Args:
        events: of all launches.
        devices: whose ledgers are wanted.
        repeats: how often the last ``cycle`` steps of each block were: they are recorded once.
        cycle: steps of a round.
    """
    windows = _windows(events)
    spent, steps, total = _spent(events, windows)
    if repeats > 1:
        tail, tail_steps, tail_total = _spent(events, _tails(events, windows, cycle))
        spent = spent.add((repeats - 1) * tail, fill_value=0.0)
        steps, total = steps + (repeats - 1) * tail_steps, total + (repeats - 1) * tail_total
    result = {}
    for device in devices:
        own = {line: float(spent.get((device, line), 0.0)) / steps for line in LEDGER_LINES if line != "idle_s"}
        # Rounding of the sums may leave a few ulps below zero on the busiest device.
        idle = max(0.0, total / steps - sum(own.values()))
        result[device] = DeviceLedger(**own, idle_s=idle)
    return result


def _spent(events: pd.DataFrame, windows: pd.DataFrame) -> tuple[pd.Series[float], int, float]:
    """Seconds inside the windows by device and line; and the steps and seconds of the windows themselves."""
    joined = events.join(windows, on=["launch", "round"])
    inside = (joined["end_s"].clip(upper=joined["end"]) - joined["start_s"].clip(lower=joined["begin"])).clip(lower=0)
    lines = joined["kind"].map(LEDGER_OF_KIND)
    spent = inside.groupby([joined["device"], lines]).sum()
    return spent, int(windows["steps"].sum()), float((windows["end"] - windows["begin"]).sum())


def _tails(events: pd.DataFrame, windows: pd.DataFrame, cycle: int) -> pd.DataFrame:
    """The windows of the last ``cycle`` steps of each block."""
    ends = events.groupby(["launch", "round", "step"], sort=True)["end_s"].max()
    tails = windows.copy()
    tails["begin"] = ends.groupby(level=["launch", "round"]).nth(-1 - cycle).droplevel("step")
    tails["steps"] = cycle
    return tails


def _windows(events: pd.DataFrame) -> pd.DataFrame:
    """Per (launch, round): begin and end of the counted steps, and how many they are."""
    ends = events.groupby(["launch", "round", "step"], sort=True)["end_s"].max()
    blocks = ends.groupby(level=["launch", "round"])
    single = blocks.size() == 1
    begins = blocks.first().where(~single, events.groupby(["launch", "round"])["start_s"].min())
    windows = begins.to_frame("begin")
    windows["end"] = blocks.last()
    windows["steps"] = (blocks.size() - 1).clip(lower=1)
    return windows


def quantiles(values: Sequence[float]) -> Quantiles:
    """Mean, p10, p50, p90 of a sample (linear interpolation between order statistics)."""
    import numpy as np

    p10, p50, p90 = (float(q) for q in np.quantile(values, [0.1, 0.5, 0.9]))
    return Quantiles(mean=float(np.mean(values)), p10=p10, p50=p50, p90=p90)


def critical_path(devices: dict[str, DeviceLedger]) -> str:
    """The one device, link or wait that binds, in one line.

    The device that waits least sets the pace (everybody else waits for it); of its step, the largest line is named.
    """
    working = {name: ledger for name, ledger in devices.items() if ledger.samples or ledger.compute_s}
    if not working:
        return "nothing ran"
    name, ledger = min(working.items(), key=lambda item: (item[1].wait_s + item[1].idle_s, item[0]))
    line = max((line for line in LEDGER_LINES if line != "idle_s"), key=lambda line: getattr(ledger, line))
    share = getattr(ledger, line) / ledger.total_s() if ledger.total_s() > 0 else 0.0
    return f"{name}: {line.removesuffix('_s')} takes {share:.0%} of the step"
