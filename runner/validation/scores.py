"""Scores of predictions against measurements that others published: errors, rank agreement, regret."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from ...results.metrics import kendall_tau

LISTED = 5
"""Rows with the largest errors that a score names."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How far predictions lie from measurements; errors are ``|predicted / measured - 1|`` in percent."""

    mape: float
    median: float
    p90: float
    worst: float
    bias: float
    """Mean signed error in percent: above 0 the predictions are too slow."""
    tau: float | None
    """Kendall's rank agreement within groups of rows that compete, pooled over their pairs."""
    regret: float | None
    """Mean over groups of how much slower the row predicted fastest is than the truly fastest, in percent."""


@dataclass(frozen=True, slots=True)
class Score:
    """One data set under one way of holding rows out."""

    data: str
    split: str
    rows: int
    model: Figures
    baselines: dict[str, Figures] = field(default_factory=dict)
    outliers: list[dict[str, Any]] = field(default_factory=list)
    """Rows with the largest errors, the worst first."""
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The score as a JSON document."""
        return asdict(self)


def figures(predicted: Sequence[float], measured: Sequence[float], groups: Sequence[Hashable] | None = None) -> Figures:
    """Score predictions of seconds.

    Args:
        predicted: one per row.
        measured: one per row, above 0.
        groups: rows of one group compete (the same work done in different ways); None: no ranking is scored.
    """
    signed = [100 * (guess / truth - 1) for guess, truth in zip(predicted, measured, strict=True)]
    errors = sorted(map(abs, signed))
    tau, regret = (None, None) if groups is None else _ranking(predicted, measured, groups)
    return Figures(
        mape=fmean(errors),
        median=median(errors),
        p90=errors[max(0, math.ceil(0.9 * len(errors)) - 1)],
        worst=errors[-1],
        bias=fmean(signed),
        tau=tau,
        regret=regret,
    )


def outliers(
    predicted: Sequence[float], measured: Sequence[float], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows with the largest errors, each with its signed error in percent."""
    errors = [100 * (guess / truth - 1) for guess, truth in zip(predicted, measured, strict=True)]
    worst = sorted(range(len(rows)), key=lambda index: (-abs(errors[index]), index))[:LISTED]
    return [{**rows[index], "predicted_s": predicted[index], "error_percent": errors[index]} for index in worst]


def _ranking(
    predicted: Sequence[float], measured: Sequence[float], groups: Sequence[Hashable]
) -> tuple[float | None, float | None]:
    """Pooled tau and mean regret over the groups of two rows or more."""
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    agreement, pairs, regrets = 0.0, 0, []
    for indices in members.values():
        if len(indices) < 2:
            continue
        guesses, truths = [predicted[i] for i in indices], [measured[i] for i in indices]
        tau, count = kendall_tau(guesses, truths, 0.0)
        agreement, pairs = agreement + (tau or 0.0) * count, pairs + count
        regrets.append(100 * (truths[guesses.index(min(guesses))] / min(truths) - 1))
    return (agreement / pairs if pairs else None), (fmean(regrets) if regrets else None)
