"""Judge the document that ``steelyard demo --json`` printed: its structure and what must hold on any host.

Accuracy is not judged here: a busy host may be as wrong as it says it is. The scoreboard holds the accuracy.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

NUMBERS = (
    "mape_percent",
    "worst_error_percent",
    "coverage_percent",
    "noise_floor_percent",
    "regret_percent",
    "speedup_over_uniform",
    "search_trials",
    "search_trials_per_s",
)
LEAST_PLANS = 6


def problems(document: dict[str, Any]) -> list[str]:
    """What is wrong with the document; nothing if nothing is."""
    found = [f"{key} is {document.get(key)!r}" for key in NUMBERS if not _finite(document.get(key))]
    if "kendall_tau" not in document:
        found.append("kendall_tau is missing")
    if not Path(document.get("report", "")).is_file():
        found.append(f"report {document.get('report')!r} is no file")
    plans = [plan for plan in document.get("plans", []) if plan["twin_of"] is None]
    if len({plan["plan_sha256"] for plan in plans}) < LEAST_PLANS:
        found.append(f"only {len(plans)} distinct plans were replayed")
    for plan in plans:
        predicted, measured = plan["predicted"], plan["measured"]
        if not 0 < predicted["p10_s"] <= predicted["p50_s"] <= predicted["p90_s"]:
            found.append(f"{plan['label']}: quantiles out of order")
        if not 0 < measured["interval_s"][0] <= measured["median_s"] <= measured["interval_s"][1]:
            found.append(f"{plan['label']}: the median is not in its interval")
        error = 100 * (predicted["p50_s"] / measured["median_s"] - 1)
        if not math.isclose(error, plan["error_percent"], rel_tol=1e-6, abs_tol=1e-9):
            found.append(f"{plan['label']}: the error is not that of its numbers")
        if sum(plan["plan"].values()) != sum(plans[0]["plan"].values()):
            found.append(f"{plan['label']}: samples do not add up")
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def main() -> None:
    """Read the document from the file named on the command line; say what is wrong and exit with 1, or say OK."""
    document = json.loads(Path(sys.argv[1]).read_text())
    found = problems(document)
    for each in found:
        print(f"demo: {each}")
    if found:
        sys.exit(1)
    print(
        f"demo: {len(document['plans'])} measured runs, MAPE {document['mape_percent']:.1f} %, "
        f"noise floor {document['noise_floor_percent']:.1f} %, busy: {document['busy']}"
    )


if __name__ == "__main__":
    main()
