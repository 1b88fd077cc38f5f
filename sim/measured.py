"""Measured collectives: tables of time by size, and what they say of other sizes and other numbers of ranks."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Self

from .device import CollectivePoint, CollectiveTable


def interpolate(points: Sequence[CollectivePoint], size_bytes: float) -> float:
    """Seconds at a size: log-log between the table's points; below the first its time, above the last its rate."""
    ordered = sorted(points, key=lambda point: point.bytes)
    if size_bytes <= ordered[0].bytes:
        return ordered[0].seconds
    if size_bytes >= ordered[-1].bytes:
        return ordered[-1].seconds * size_bytes / ordered[-1].bytes
    index = bisect.bisect_left(ordered, size_bytes, key=lambda point: point.bytes)
    low, high = ordered[index - 1], ordered[index]
    part = math.log(size_bytes / low.bytes) / math.log(high.bytes / low.bytes)
    return math.exp(math.log(low.seconds) + part * (math.log(high.seconds) - math.log(low.seconds)))


@dataclass(frozen=True, slots=True)
class Own:
    """A table that was measured over these very devices, or over more of them.

    With more, it is scaled by what each rank moves in a ring, (p - 1) / p.
    """

    table: CollectiveTable
    ranks: int

    @property
    def fidelity(self) -> Literal["profiled", "calibrated"]:
        """Profiled where nobody else took part."""
        return "profiled" if self.ranks == len(self.table.devices) else "calibrated"

    @property
    def least_s(self) -> float:
        """The shortest time in the table: what the smallest message pays."""
        return self._moved * min(point.seconds for point in self.table.points)

    def seconds(self, size_bytes: float) -> float:
        """Seconds at a size."""
        return self._moved * interpolate(self.table.points, size_bytes)

    @property
    def _moved(self) -> float:
        measured = len(self.table.devices)
        return (self.ranks - 1) / self.ranks * measured / (measured - 1)


@dataclass(frozen=True, slots=True)
class Straight:
    """A time that is a latency and so many seconds per byte."""

    latency_s: float
    per_byte_s: float

    def at(self, size_bytes: float) -> float:
        """Seconds at a size."""
        return self.latency_s + size_bytes * self.per_byte_s


@dataclass(frozen=True, slots=True)
class Curve:
    """A table of like ranks, taken apart: its latency and its rate relative to a formula's, and the excess between.

    The excess is what protocols cost where they change over: between 10 kB and 10 MB, NCCL on A100s needs some 50 us
    more than latency and bandwidth, nearly whatever the number of ranks.
    """

    position: float
    """Logarithm of the number of ranks."""
    latency: float
    """Logarithm of the table's latency over the formula's."""
    rate: float
    """The same of the seconds per byte."""
    straight: Straight
    """The line through the table's ends."""
    sizes: tuple[float, ...]
    """Logarithms."""
    ratios: tuple[float, ...]
    """Logarithms of the table's times over the line's."""

    @classmethod
    def of(cls, table: CollectiveTable, formula: Straight) -> Self:
        """Take a table apart, given the formula's line for the same ranks.

        A message that took longer than a larger one could have been padded to it: such times count as the larger one's.
        """
        assert table.ranks is not None, "only tables of like ranks are set against a formula"
        points = sorted(table.points, key=lambda point: point.bytes)
        sizes = [float(point.bytes) for point in points]
        seconds = list(accumulate((point.seconds for point in reversed(points)), min))[::-1]
        straight = _straight(sizes, seconds, formula)
        return cls(
            position=math.log(table.ranks),
            latency=math.log(straight.latency_s / formula.latency_s),
            rate=math.log(straight.per_byte_s / formula.per_byte_s),
            straight=straight,
            sizes=tuple(math.log(size) for size in sizes),
            ratios=tuple(math.log(value / straight.at(size)) for size, value in zip(sizes, seconds, strict=True)),
        )

    def excess_s(self, size_bytes: float) -> float:
        """Seconds beside the line's: the ratio to it interpolated in the logarithm of the size; level at the ends."""
        log_size = min(max(math.log(max(size_bytes, 1.0)), self.sizes[0]), self.sizes[-1])
        return self.straight.at(math.exp(log_size)) * math.expm1(_between(self.sizes, self.ratios, log_size))


def _straight(sizes: Sequence[float], seconds: Sequence[float], formula: Straight) -> Straight:
    """The line through the ends of a table; what a table does not show is the formula's."""
    per_byte = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
    if seconds[-1] < 2 * seconds[0]:  # its largest message is still mostly latency
        per_byte = formula.per_byte_s
    latency = seconds[0] - per_byte * sizes[0]
    if latency < seconds[0] / 2:  # its smallest message is already mostly bytes
        latency = formula.latency_s
    return Straight(latency, per_byte)


@dataclass(frozen=True, slots=True)
class Like:
    """Tables of like ranks, for a group of which a formula gives the line.

    Between the measured numbers of ranks, the corrections of latency and rate are interpolated as logarithms, and the
    excess as seconds, all in the logarithm of the ranks; beyond the smallest and the largest they stay as they are.
    """

    curves: tuple[Curve, ...]
    """By rising number of ranks."""
    position: float
    """Logarithm of the group's number of ranks."""
    formula: Straight
    fidelity: Literal["calibrated"] = "calibrated"

    @property
    def least_s(self) -> float:
        """What an empty message takes."""
        return self.seconds(0.0)

    def seconds(self, size_bytes: float) -> float:
        """Seconds at a size; never less than the latency, or the rate, alone."""
        latency = self.formula.latency_s * math.exp(self._at([curve.latency for curve in self.curves]))
        moving = size_bytes * self.formula.per_byte_s * math.exp(self._at([curve.rate for curve in self.curves]))
        excess = self._at([curve.excess_s(size_bytes) for curve in self.curves])
        return max(latency + moving + excess, latency, moving)

    def _at(self, values: Sequence[float]) -> float:
        return _between([curve.position for curve in self.curves], values, self.position)


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Straight between the points (x rising), level beyond them."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1]
    index = bisect.bisect_left(xs, x)
    part = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
    return ys[index - 1] + part * (ys[index] - ys[index - 1])
