"""Statistics of launches: median, bootstrap, rank agreement, regret, coverage; pure functions over step times.

A launch, not a step, is the unit that is resampled: the steps of one launch share its luck.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTERVAL = 0.8
"""Share of fresh launches whose median an interval is meant to hold."""
RESAMPLES = 2000
ALL_SPLITS_UP_TO = 12

Launches = Mapping[int, Sequence[float]]
"""Seconds of each step, per launch."""


def median(launches: Iterable[Sequence[float]]) -> float:
    """Median over all steps of some launches, in seconds."""
    return statistics.median([seconds for times in launches for seconds in times])


def bootstrap_interval(launches: Sequence[Sequence[float]], seed: int) -> tuple[float, float]:
    """80 % interval of the median by resampling whole launches; of a single launch, the point itself.

    With few launches a percentile interval is somewhat narrow; it is widened to hold the median, never narrowed.
    """
    import numpy as np

    middle = median(launches)
    if len(launches) < 2:
        return middle, middle
    medians = _resampled_medians(launches, stream(seed, "bootstrap"))
    low, high = np.quantile(medians, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return min(float(low), middle), max(float(high), middle)


def _resampled_medians(launches: Sequence[Sequence[float]], random: np.random.Generator) -> NDArray[np.float64]:
    """Medians over launches drawn with replacement: all steps in order, each counted as often as its launch."""
    import numpy as np

    chosen = random.integers(len(launches), size=(RESAMPLES, len(launches)))
    often = (chosen[:, :, None] == np.arange(len(launches))).sum(axis=1)
    steps = np.concatenate([np.asarray(times, dtype=float) for times in launches])
    owner = np.repeat(np.arange(len(launches)), [len(times) for times in launches])
    order = np.argsort(steps, kind="stable")
    counted = np.cumsum(often[:, owner[order]], axis=1)
    total = counted[:, -1:]
    lower, upper = ((counted > place).argmax(axis=1) for place in ((total - 1) // 2, total // 2))
    medians: NDArray[np.float64] = (steps[order][lower] + steps[order][upper]) / 2
    return medians


def launch_intervals(
    launches: Sequence[Sequence[float]], counts: Iterable[int], model_error: float = 0.0
) -> dict[str, tuple[float, float]]:
    """80 % interval of the median of so many steps of a fresh launch, by the count; a launch must be that long.

    Args:
        launches: seconds of each simulated step, per launch.
        counts: steps of a measured launch; keys of the answer, as texts.
        model_error: standard deviation of what the model is off by (:func:`with_model_error`).
    """
    import numpy as np

    found = {}
    for count in sorted(set(counts)):
        medians = [
            statistics.median(times[start : start + count])
            for times in launches
            for start in range(0, len(times) - count + 1, count)
        ]
        if medians:
            low, middle, high = map(float, np.quantile(medians, [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2]))
            found[str(count)] = with_model_error((low, high), middle, model_error)
    return found


def with_model_error(interval: tuple[float, float], middle: float, model_error: float) -> tuple[float, float]:
    """An interval of what launches take, wide enough for a model that is off by a share of the middle, too.

    The simulated launches differ as measured ones do from each other. What the model is off by is common to them, so
    it is not seen in them, and adds to each arm as independent errors add: by their squares.
    """
    if not model_error:
        return interval
    own = statistics.NormalDist().inv_cdf((1 + INTERVAL) / 2) * model_error * middle
    return middle - math.hypot(middle - interval[0], own), middle + math.hypot(interval[1] - middle, own)


def interval_of(intervals: Mapping[str, tuple[float, float]], steps: int) -> tuple[float, float] | None:
    """The interval of a launch of so many steps: by logarithm between the counts at hand, else the nearest."""
    if not intervals:
        return None
    counts = sorted(map(int, intervals))
    upper = next((count for count in counts if count >= steps), counts[-1])
    lower = next((count for count in reversed(counts) if count <= steps), counts[0])
    (low, high), (other_low, other_high) = intervals[str(lower)], intervals[str(upper)]
    if lower >= upper:
        return other_low, other_high
    part = math.log(steps / lower) / math.log(upper / lower)
    return low + part * (other_low - low), high + part * (other_high - high)


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The random stream of a purpose: equal seed and names give equal draws, in any process and order of use."""
    import numpy as np

    text = "".join(f"{len(str(name))}:{name}" for name in names)
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(np.random.SeedSequence([seed, key]))


def kendall_tau(
    predicted: Sequence[float], measured: Sequence[float], differ_percent: float
) -> tuple[float | None, int]:
    """Kendall's tau over the pairs whose measured times differ by more than ``differ_percent``, and how many they are.

    (concordant - discordant) / pairs; a pair that the prediction cannot tell apart counts as neither.
    """
    score = pairs = 0
    for i, j in itertools.combinations(range(len(measured)), 2):
        low, high = sorted((measured[i], measured[j]))
        if 100 * (high / low - 1) > differ_percent:
            pairs += 1
            score += _sign(measured[i] - measured[j]) * _sign(predicted[i] - predicted[j])
    return (score / pairs if pairs else None), pairs


def regret_percent(predicted: Sequence[float], measured: Sequence[Launches], seed: int = 0) -> float | None:
    """How much slower the plan with the best prediction is than the truly best one; None with a single launch.

    The best is chosen on one half of the launches and scored, with the pick, on the other, and the result averaged over
    the splits: choosing and scoring on the same launches would favour the luckiest plan. It may be below 0 by noise.
    """
    shared = sorted(set.intersection(*(set(launches) for launches in measured)))
    if len(shared) < 2:
        return None
    pick = min(range(len(predicted)), key=lambda i: (predicted[i], i))
    ratios = []
    for chosen in halves(shared, seed):
        scored = [launch for launch in shared if launch not in chosen]
        best = min(range(len(measured)), key=lambda i: (median(measured[i][each] for each in chosen), i))
        times = [median(measured[i][launch] for launch in scored) for i in (pick, best)]
        ratios.append(times[0] / times[1] - 1)
    return 100 * sum(ratios) / len(ratios)


def halves(launches: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Every half of the launches (of an odd number, both sizes); a seeded thousand of them where there are many."""
    small, large = len(launches) // 2, (len(launches) + 1) // 2
    if len(launches) <= ALL_SPLITS_UP_TO:
        return [each for size in sorted({small, large}) for each in itertools.combinations(launches, size)]
    random = stream(seed, "halves")
    return [tuple(sorted(random.permutation(launches)[:small].tolist())) for _ in range(1000)]


def binomial_p_value(inside: int, count: int, share: float = INTERVAL) -> float:
    """Two-sided exact binomial test of ``inside`` of ``count`` against a share.

    It takes observations as independent; plans of one launch are not quite, so a small value
    is less sure than it looks.
    """
    from scipy.stats import binomtest

    return float(binomtest(inside, count, share).pvalue)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def error_figures(errors: Sequence[tuple[str, float]], balanced: Sequence[float]) -> dict[str, Any]:
    """What the errors of plans come to.

    Args:
        errors: label and signed error in percent of each plan, one at least.
        balanced: the errors of those at the balance point.
    """
    worst_plan, worst = max(errors, key=lambda each: abs(each[1]))
    return {
        "mean_error_percent": statistics.fmean(error for _, error in errors),
        "balance_error_percent": statistics.fmean(balanced),
        "balance_plans": len(balanced),
        "mape_percent": statistics.fmean(abs(error) for _, error in errors),
        "worst_error_percent": abs(worst),
        "worst_signed_error_percent": worst,
        "worst_plan": worst_plan,
    }
