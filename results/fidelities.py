"""How each fidelity's predictions of the same plans did against the same measurements."""

from __future__ import annotations

from collections.abc import Sequence

from .metrics import kendall_tau
from .record import Record

FIDELITIES = ("datasheet", "calibrated", "profiled")
"""Weakest first."""


class FidelityScore(Record):
    """Errors of one fidelity over the plans that it predicted; percents."""

    fidelity: str
    plans: int
    mean_error_percent: float
    mape_percent: float
    worst_error_percent: float
    """Largest absolute error, without its sign."""
    kendall_tau: float | None
    """Over the pairs of plans that differ by more than twice the noise floor."""


def score(
    fidelity: str, predicted_s: Sequence[float], measured_s: Sequence[float], floor_percent: float
) -> FidelityScore:
    """The errors of some predictions.

    Args:
        fidelity: its name.
        predicted_s: median step times.
        measured_s: those of the same plans.
        floor_percent: the noise floor.
    """
    errors = [100 * (p / m - 1) for p, m in zip(predicted_s, measured_s, strict=True)]
    tau, _ = kendall_tau(list(predicted_s), list(measured_s), 2 * floor_percent)
    return FidelityScore(
        fidelity=fidelity,
        plans=len(errors),
        mean_error_percent=sum(errors) / len(errors),
        mape_percent=sum(map(abs, errors)) / len(errors),
        worst_error_percent=max(map(abs, errors)),
        kendall_tau=tau,
    )


def scores(
    predicted_at: Sequence[dict[str, float]], measured_s: Sequence[float], floor_percent: float
) -> list[FidelityScore]:
    """The score of each fidelity that predicted every plan, weakest first.

    Args:
        predicted_at: per plan, its median step time at each fidelity.
        measured_s: per plan.
        floor_percent: the noise floor.
    """
    known = set.intersection(*map(set, predicted_at)) if predicted_at else set()
    return [
        score(name, [each[name] for each in predicted_at], measured_s, floor_percent)
        for name in FIDELITIES
        if name in known
    ]
