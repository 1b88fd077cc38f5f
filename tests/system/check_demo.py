"""Judge the document that ``steelyard demo --json`` printed: its structure and what must hold on any host.

``replay --suite --json`` prints the same structure (:func:`structure`), without a search.

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
    "launches",
    "search_trials",
    "search_trials_per_s",
)
TEXTS = ("scenario", "fidelity", "picked", "measured_best", "worst_plan", "report")
LEAST_PLANS, LEAST_LAUNCHES = 6, 5
FIDELITIES = ["datasheet", "calibrated", "profiled"]


def problems(document: dict[str, Any]) -> list[str]:
    """What is wrong with a demo's document; nothing if nothing is."""
    found = structure(document)
    plans = own_plans(document)
    if len({plan["plan_sha256"] for plan in plans}) < LEAST_PLANS:
        found.append(f"only {len(plans)} distinct plans were replayed")
    if not document.get("search_trials", 0) > 0:
        found.append("nothing was searched")
    found += [
        f"{plan['label']}: samples do not add up"
        for plan in plans
        if sum(plan["plan"].values()) != plan["global_batch"] or plan["global_batch"] != plans[0]["global_batch"]
    ]
    scored = [each.get("fidelity") for each in document.get("fidelities", [])]
    if scored != FIDELITIES:
        found.append(f"scored at {scored}, and not at {FIDELITIES}")
    found += [
        f"{plan['label']}: not predicted at {name}"
        for plan in plans
        for name in FIDELITIES
        if not _finite(plan["predicted_at"].get(name))
    ]
    return found


def structure(document: dict[str, Any]) -> list[str]:
    """What is wrong with the shape of a document of a demo or a suite, and with the sums in it."""
    found = [f"{key} is {document.get(key)!r}" for key in NUMBERS if not _finite(document.get(key))]
    found += [f"{key} is missing" for key in ("kendall_tau", "best", "busy", "judged") if key not in document]
    found += [f"{key} is {document.get(key)!r}" for key in TEXTS if not isinstance(document.get(key), str)]
    if not Path(document.get("report", "")).is_file():
        found.append(f"report {document.get('report')!r} is no file")
    if document.get("judged") and document["launches"] < LEAST_LAUNCHES:
        found.append(f"judged by {document['launches']} launches")
    labels = {plan["label"] for plan in document.get("plans", [])}
    for key in ("picked", "measured_best", "worst_plan"):
        if document.get(key) not in labels:
            found.append(f"{key} {document.get(key)!r} is no plan")
    for each in document.get("fidelities", []):
        if not _finite(each.get("mape_percent")):
            found.append(f"no error at {each.get('fidelity')}")
    for plan in own_plans(document):
        found += _plan_problems(plan)
    return found


def own_plans(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The plans without the A/A twins."""
    return [plan for plan in document.get("plans", []) if plan["twin_of"] is None]


def _plan_problems(plan: dict[str, Any]) -> list[str]:
    found = []
    predicted, measured = plan["predicted"], plan["measured"]
    if not 0 < predicted["p10_s"] <= predicted["p50_s"] <= predicted["p90_s"]:
        found.append(f"{plan['label']}: quantiles out of order")
    if not 0 < measured["interval_s"][0] <= measured["median_s"] <= measured["interval_s"][1]:
        found.append(f"{plan['label']}: the median is not in its interval")
    error = 100 * (predicted["p50_s"] / measured["median_s"] - 1)
    if not math.isclose(error, plan["error_percent"], rel_tol=1e-6, abs_tol=1e-9):
        found.append(f"{plan['label']}: the error is not that of its numbers")
    if sum(plan["plan"].values()) < plan["global_batch"]:
        found.append(f"{plan['label']}: samples are missing")
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
