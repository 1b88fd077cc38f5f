"""Significance: whether one policy beats another by more than the luck of the seeds that both met.

Runs of equal seeds are pairs: they met the same noise. Per pair only the difference counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INTERVAL = 0.95
"""Share of repetitions whose interval is to hold the true mean."""
LEVEL = 0.05
"""Below it a difference counts as one."""
ROUNDING = 1e-9
"""Relative difference that is none: sums in another order."""


@dataclass(frozen=True)
class Standing:
    """One competitor over all seeds; larger values are better."""

    name: str
    mean: float
    interval: tuple[float, float]
    """95 % interval of the mean, by Student's t over the seeds: the point itself where all are equal, or there is one.
    """
    rank: float
    """Mean rank over the seeds, 1 the best; equals share the mean of their places."""
    behind_percent: float
    """How much less the mean is than that of the best, of the best's."""
    p_value: float | None
    """Of the paired test against the best, corrected for the number of tests; None for the best itself, and where the
    seeds make no difference to either."""

    @property
    def differs(self) -> bool | None:
        """Whether it is worse than the best by more than luck; None where no test was made."""
        return None if self.p_value is None else self.p_value < LEVEL


def standings(values: Mapping[str, Sequence[float]]) -> list[Standing]:
    """All competitors, the best mean first, each against the best.

    The best is chosen by the same figures that it is then compared by: where several are close, the test against it is
    somewhat too ready to find a difference.

    Args:
        values: per competitor one figure per seed, larger is better; equal places are equal seeds.
    """
    if not values:
        return []
    ranks = mean_ranks(values)
    means = {name: math.fsum(each) / len(each) for name, each in values.items()}
    order = sorted(values, key=lambda name: (-means[name], ranks[name]))
    best, others = order[0], order[1:]
    tested = [name for name in others if not (_same(values[name]) and _same(values[best]))]
    raw = [signed_rank_p(values[best], values[name]) for name in tested]
    p_values = dict(zip(tested, holm(raw), strict=True))
    return [
        Standing(
            name=name,
            mean=means[name],
            interval=mean_interval(values[name]),
            rank=ranks[name],
            behind_percent=100 * (1 - means[name] / means[best]) if means[best] else 0.0,
            p_value=p_values.get(name),
        )
        for name in order
    ]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent values by Student's t."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2 or _same(values):
        return mean, mean
    from scipy.stats import t

    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1) / len(values))
    half = float(t.ppf((1 + INTERVAL) / 2, len(values) - 1)) * spread
    return mean - half, mean + half


def mean_ranks(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean rank of each over the seeds, the largest value first; equals share the mean of their places."""
    names = list(values)
    totals = dict.fromkeys(names, 0.0)
    seeds = list(zip(*values.values(), strict=True))
    for row in seeds:
        for name, rank in zip(names, _ranks([-each for each in row]), strict=True):
            totals[name] += rank
    return {name: total / len(seeds) for name, total in totals.items()}


def signed_rank_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of paired values, exact with ties too.

    Wilcoxon 1945 (Individual comparisons by ranking methods). Pairs without a difference are left out, as there; equal
    differences share the mean of their ranks. The distribution over all signs is counted out, by sums of ranks.
    """
    pairs = zip(first, second, strict=True)
    differences = [a - b for a, b in pairs if not math.isclose(a, b, rel_tol=ROUNDING)]
    if not differences:
        return 1.0
    doubled = [round(2 * rank) for rank in _ranks([abs(each) for each in differences])]
    observed = sum(rank for rank, each in zip(doubled, differences, strict=True) if each > 0)
    ways = [1]
    for rank in doubled:  # ways[s]: choices of signs whose positive ranks sum to s
        ways = [a + b for a, b in zip(ways + [0] * rank, [0] * rank + ways, strict=True)]
    extreme = min(observed, sum(doubled) - observed)
    tail = sum(ways[: extreme + 1])
    return min(1.0, 2 * tail / (1 << len(doubled)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that a wrong one among all below a level is as rare as the level says.

    Holm 1979 (A simple sequentially rejective multiple test procedure): the least times their number, the next times
    one less, and so on, never falling.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = highest
    return corrected


def least_p(seeds: int) -> float:
    """The least p-value that so many pairs can give: all differences of one sign."""
    return 2.0 ** (1 - seeds)


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value, the least first from 1; values that are equal but for rounding share their mean rank."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and math.isclose(values[order[end + 1]], values[order[start]], rel_tol=ROUNDING):
            end += 1
        for place in order[start : end + 1]:
            ranks[place] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def _same(values: Sequence[float]) -> bool:
    return all(math.isclose(each, values[0], rel_tol=ROUNDING) for each in values)
