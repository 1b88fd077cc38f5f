"""Curve: time against micro-batch size, fitted to what was measured or drawn through what was computed."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """An affine time: ``fixed_s + per_sample_s * samples`` (seconds)."""

    fixed_s: float
    per_sample_s: float

    def at(self, samples: float) -> float:
        """Seconds for so many samples."""
        return self.fixed_s + self.per_sample_s * samples


@dataclass(frozen=True, slots=True)
class Curve:
    """Time against micro-batch size, piecewise affine through points, the outer pieces continued."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, samples: float) -> float:
        """Seconds for so many samples."""
        index = min(max(bisect.bisect_left(self.sizes, samples), 1), len(self.sizes) - 1)
        x0, x1 = self.sizes[index - 1], self.sizes[index]
        y0, y1 = self.seconds[index - 1], self.seconds[index]
        if samples == x1:  # exactly: rounding must not make the next size cheaper
            return y1
        return max(y0 + (y1 - y0) * (samples - x0) / (x1 - x0), min(self.seconds) * 1e-3)


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """Affine fit with relative weights and both coefficients kept at or above zero.

    Relative weights: a fit of seconds alone would give the small sizes away (physics: fit relative errors).
    """
    least = min(seconds)
    weights = [(least / y) ** 2 for y in seconds]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, sizes, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, seconds, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, sizes, strict=True))
    joint = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, sizes, seconds, strict=True))
    slope = joint / spread if spread > 0 else 0.0
    fixed = mean_y - slope * mean_x
    if slope <= 0:
        return Line(mean_y, 0.0)
    if fixed < 0:  # through the origin instead
        squares = sum(w * x * x for w, x in zip(weights, sizes, strict=True))
        return Line(0.0, sum(w * x * y for w, x, y in zip(weights, sizes, seconds, strict=True)) / squares)
    return Line(fixed, slope)


def fit_curve(points: Sequence[tuple[int, float]]) -> Line | Curve:
    """The affine fit, or the curve through the points where that predicts left-out points better.

    Both are judged by the mean relative error of leaving out each inner point in turn; the curve must win by a quarter,
    since noise alone favours neither. Times are made non-decreasing first (larger batches never take less).
    """
    ordered = sorted(points)
    sizes = [size for size, _ in ordered]
    seconds = list(non_decreasing([value for _, value in ordered]))
    line = fit_line(sizes, seconds)
    if len(ordered) < 5:
        return line
    errors_line, errors_curve = [], []
    for out in range(1, len(ordered) - 1):
        kept_x = sizes[:out] + sizes[out + 1 :]
        kept_y = seconds[:out] + seconds[out + 1 :]
        errors_line.append(abs(fit_line(kept_x, kept_y).at(sizes[out]) / seconds[out] - 1))
        errors_curve.append(abs(Curve(tuple(kept_x), tuple(kept_y)).at(sizes[out]) / seconds[out] - 1))
    gain = 0.75 * sum(errors_line) - sum(errors_curve)
    return Curve(tuple(sizes), tuple(seconds)) if gain > 1e-9 else line  # not for a rounding of exact points


def non_decreasing(values: Sequence[float]) -> Iterable[float]:
    """Pool adjacent violators: the closest non-decreasing sequence in least squares."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    for value, count in blocks:
        yield from [value] * count
