"""``steelyard replay --suite``: what the command prints of a suite."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ...results.pooled import SuiteResult
from ...results.suite_report import case_rows, lines
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
    return result, case_rows(result), lines(result.document())
