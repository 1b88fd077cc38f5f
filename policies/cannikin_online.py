"""Cannikin's way of learning: a straight line per device through what was measured, and the best split over these."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np

from ..sim.cost import Curve, DeviceCost
from ..sim.plan import Plan
from ..sim.view import DeviceView, View
from ._base import Range, canonical, capacities, round_shares
from .apportion import min_max
from .online import LEAST_S, settled, split_s, steps_ahead
from .outlook import predicted

Point = tuple[int, float]
"""Samples and seconds of a device in a step."""


@dataclass(frozen=True, kw_only=True)
class CannikinOnline:
    """Learn each device's time as a line in its samples from the measured past, and split by the lines' optimum."""

    name: ClassVar[str] = "cannikin-online"
    source: ClassVar[str] = "Nie et al. 2024, Cannikin, arXiv 2402.05302: linear compute models, fitted online"
    adaptive: ClassVar[bool] = True

    shift: Annotated[float, Range(0.02, 1.0)] = 0.1
    """Relative change of a device's time at equal samples from which on older steps are forgotten."""
    hysteresis: Annotated[float, Range(0.0, 10.0)] = 1.0
    """How many times its price a change must save over the steps that are left."""
    least_gain: Annotated[float, Range(0.0, 0.5)] = 0.04
    """Share of the step that a change must save."""

    def allocate(self, view: View) -> Plan:
        """Equal shares at first, as nothing is known; then what the fitted lines say, where a change is worth it."""
        view = canonical(view)
        if view.current is None or not any(points_of(view, each.name, self.shift) for each in view.devices):
            return round_shares(view, [1.0] * len(view.devices))
        known = canonical(fitted(view, self.shift))  # what was measured tells devices of one kind apart
        capacities(known)
        split = min_max(known.steps, view.global_batch)
        assert split is not None, "capacities() has judged"
        plan = known.plan(split)
        if not view.current.is_data_parallel:
            return plan
        return settled(view, plan, partial(split_s, known), hysteresis=self.hysteresis, least_gain=self.least_gain)


def fitted(view: View, shift: float) -> View:
    """The view with every device's times replaced by the line through its past; those without one keep the estimate.

    A device that has had one number of samples only gets a line through the origin, as in Cannikin's first epochs.
    """
    devices = []
    for device in view.devices:
        points = points_of(view, device.name, shift)
        if points:
            fixed_s, per_sample_s = line_through(points)
            # Where the newest points leave the line, the device drifts; the whole line goes with it.
            ratios = [seconds / (fixed_s + per_sample_s * samples) for samples, seconds in points]
            factor = predicted(ratios, 0.5, steps_ahead(view))
            device = _with_line(device, factor * fixed_s, factor * per_sample_s)  # noqa: PLW2901
        devices.append(device)
    return dataclasses.replace(view, devices=tuple(devices))


def line_through(points: Sequence[Point]) -> tuple[float, float]:
    """Intercept and slope by least squares, neither below zero; through the origin where all have equal samples."""
    samples = np.array([point[0] for point in points], dtype=float)
    seconds = np.array([point[1] for point in points])
    middle, mean = samples.mean(), seconds.mean()
    spread = float(((samples - middle) ** 2).sum())
    slope = float(((samples - middle) * (seconds - mean)).sum()) / spread if spread > 0 else mean / middle
    slope = min(max(slope, 0.0), mean / middle)
    return float(mean - slope * middle), float(slope)


def points_of(view: View, name: str, shift: float) -> list[Point]:
    """What was measured of a device, oldest first, back to where its time at like samples was another.

    Two measurements contradict each other if both more samples took less time, or the time per sample differs by more
    than ``shift`` at equal samples.
    """
    found: list[Point] = []
    for entry in reversed(view.history):
        past = entry["devices"].get(name)
        if past is None or not past["samples"] or past["compute_s"] <= LEAST_S:
            continue
        point = past["samples"], past["compute_s"]
        if any(_contradict(point, other, shift) for other in _extremes(found)):
            break
        found.append(point)
    return found[::-1]


def _extremes(points: Sequence[Point]) -> list[Point]:
    """The newest, and those with the fewest and the most samples: what an older one is held against."""
    return [points[0], min(points), max(points)] if points else []


def _contradict(one: Point, other: Point, shift: float) -> bool:
    """Whether no line with a slope and an intercept of at least zero goes near two points."""
    (few, short), (many, long) = sorted((one, other))
    return short > (1 + shift) * long or long / many > (1 + shift) * short / few


def _with_line(device: DeviceView, intercept: float, slope: float) -> DeviceView:
    cost = DeviceCost(
        device=device.name,
        fidelity=device.cost.fidelity,
        forward=Curve((1, 2), (slope, 2 * slope)),
        backward=Curve((1, 2), (intercept, intercept)),
        optimizer_s=0.0,
    )
    return dataclasses.replace(device, cost=cost, largest_micro_batch=None)
