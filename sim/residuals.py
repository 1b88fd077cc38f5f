"""Residuals: what is left of a measurement after a prediction, and the small bias that can be learned from it.

A residual is the logarithm of measured over predicted seconds of one kind of work on one device in one launch. The bias
of each (device, kind) is the mean over runs, shrunk towards none by how sure it is (empirical Bayes with a normal
prior, Efron and Morris 1973, recalled): few runs that disagree change nothing, many that agree change much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import NamedTuple

from scipy.stats import t as student

LEAST_SD = 1e-6
"""Residuals of simulated or rounded times may have no spread at all."""
COVERED = 0.8


class Key(NamedTuple):
    """What a bias belongs to."""

    device: str
    kind: str
    """``forward``, ``backward``, ``optimizer`` or ``communication``."""


class Residual(NamedTuple):
    """One observation: log (measured / predicted) of a key in one launch of one run."""

    key: Key
    run: str
    """Names what was measured: repetitions of one plan are one run."""
    launch: str
    """Names a group of processes: runs of one replay share their launches, and what the host did to them."""
    value: float


@dataclass(frozen=True, slots=True)
class Bias:
    """What was learned of one key."""

    bias: float
    """Logarithm of the factor on the predicted time, shrunk."""
    raw: float
    """The same as it was seen."""
    sd: float
    """Of a fresh launch of a fresh run around the corrected prediction."""
    runs: int

    @property
    def factor(self) -> float:
        """On the predicted seconds."""
        return math.exp(self.bias)

    def interval(self) -> tuple[float, float]:
        """80 % interval of a fresh residual."""
        half = float(student.ppf(0.5 + COVERED / 2, max(self.runs - 1, 1))) * self.sd
        return self.bias - half, self.bias + half


def fit_biases(residuals: Iterable[Residual]) -> dict[Key, Bias]:
    """The bias of every key that was seen in two runs or more."""
    by_key: dict[Key, dict[str, list[float]]] = {}
    for each in residuals:
        by_key.setdefault(each.key, {}).setdefault(each.run, []).append(each.value)
    seen = {key: _Seen.of(runs) for key, runs in by_key.items() if len(runs) > 1}
    if not seen:
        return {}
    # What the true biases spread over, by what their estimates do beyond their own error.
    spread = max(0.0, fmean(each.mean**2 - each.error**2 for each in seen.values()))
    return {key: each.shrunk(spread) for key, each in sorted(seen.items())}


@dataclass(frozen=True, slots=True)
class _Seen:
    mean: float
    error: float
    """Standard error of the mean over runs."""
    scatter: float
    """Standard deviation of one launch of one run."""
    runs: int

    @classmethod
    def of(cls, runs: Mapping[str, Sequence[float]]) -> _Seen:
        means = [fmean(values) for values in runs.values()]
        between = variance(means)
        within = fmean(variance(values) if len(values) > 1 else 0.0 for values in runs.values())
        return cls(fmean(means), math.sqrt(between / len(means)), math.sqrt(between + within), len(means))

    def shrunk(self, spread: float) -> Bias:
        known = spread + self.error**2
        trust = spread / known if known > 0 else 1.0
        left = self.mean * (1 - trust)
        sd = math.sqrt(self.scatter**2 + self.error**2 + left**2)
        return Bias(self.mean * trust, self.mean, max(sd, LEAST_SD), self.runs)


class HeldOut(NamedTuple):
    """How biases did on data that they were not fitted to: mean absolute log residuals, and the share covered."""

    observations: int
    before: float
    after: float
    covered: float
    width: float
    """Mean width of the intervals, in logarithms."""


def held_out(residuals: Sequence[Residual]) -> HeldOut | None:
    """Judge every launch of every run by what all *other* launches of all *other* runs say; None where none is left.

    Runs of a replay share launches, so leaving out the run alone would let the host's mood leak in.
    """
    before, after, widths, inside = [], [], [], 0
    for run, launch in dict.fromkeys((each.run, each.launch) for each in residuals):
        fitted = fit_biases(each for each in residuals if each.run != run and each.launch != launch)
        for each in residuals:
            if (each.run, each.launch) != (run, launch) or each.key not in fitted:
                continue
            low, high = fitted[each.key].interval()
            before.append(abs(each.value))
            after.append(abs(each.value - fitted[each.key].bias))
            widths.append(high - low)
            inside += low <= each.value <= high
    if not before:
        return None
    return HeldOut(len(before), fmean(before), fmean(after), inside / len(before), fmean(widths))
