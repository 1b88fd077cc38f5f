"""``steelyard replay --suite``: what the command prints of a suite."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...results.pooled import SuiteResult, lines
from ...results.tables import percent
from ..calibrate import Tick
from .cases import load_suite
from .run import run_suite


def replay_suite(
    name: str,
    runs: Path,
    *,
    seed: int | None,
    budget_s: float | None,
    report: Callable[[str], None],
    bar: Callable[[str], AbstractContextManager[Tick]],
) -> tuple[SuiteResult, list[dict[str, str]], list[str]]:
    """The result of a suite, its table, and its verdict as lines."""
    result = run_suite(load_suite(name), runs, seed=seed or 0, budget_s=budget_s, report=report, bar=bar)
    return result, rows(result), lines(result.document())


def rows(result: SuiteResult) -> list[dict[str, str]]:
    """One row per case."""
    return [_row(case) for case in result.cases]


def _row(case: Any) -> dict[str, str]:
    found = case.comparison
    if found is None:
        return {"case": case.name, "plans": "0", "error": "-", "worst": "-", "floor": "-", "host": "skipped"}
    return {
        "case": case.name,
        "plans": str(len(case.rows)),
        "error": f"{percent(found.mean_error_percent)}, absolute {percent(found.mape_percent, sign=False)}",
        "worst": percent(found.worst_signed_error_percent),
        "floor": percent(found.noise_floor_percent, sign=False),
        "host": "busy" if found.busy else "quiet",
    }
