"""demo(): the whole loop on this machine, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..policies import DEFAULTS, make_policy
from ..policies.search import SearchResult, distinct_plans, search, write_best
from ..results.compare import Comparison, compare
from ..results.report import headlines, plan_table
from ..results.report import report as write_report
from ..results.store import to_json, write_text
from ..results.tables import fidelity_table
from ..sim.disturbances import refuse_events
from ..sim.spec import Scenario, apply_setting, load_scenario, read_document
from ..sim.view import Fixed, Policy, View, allocate, describe
from .calibrate import Report, Tick, calibrate
from .operators import operators_timer
from .replay import replay
from .resolving import resolver

LEAST_PLANS = 7
"""Distinct plans to measure: winners of the search fill up what baselines that agree leave open."""
SCENARIO = "demo"
MEASURE_S = 150.0
"""What the measurement may take by default: with it the whole demo stays under six minutes on two busy cores."""

Bar = Callable[[str], AbstractContextManager[Tick]]


@dataclass(frozen=True)
class Demo:
    """What the demo came to."""

    document: dict[str, Any]
    rows: list[dict[str, Any]]
    lines: list[str]
    interrupted: bool
    by_fidelity: list[dict[str, str]]
    """One row per plan: what each fidelity predicted."""


def demo(
    runs: Path,
    *,
    settings: Sequence[str] = (),
    trials: int = 200,
    budget_s: float = MEASURE_S,
    seed: int | None = None,
    report: Report = lambda line: None,
    bar: Bar,
) -> Demo:
    """Calibrate this host's lanes, search in simulation, replay winners and baselines, compare, and write the report.

    The calibration is made anew: a host's speed drifts, and a demo should not be judged by yesterday's.

    Raises:
        InputError: torch, transformers or the texts are not installed; a setting is wrong.
        WorkerFailedError: a lane died.
    """
    document, folder = read_document(SCENARIO)
    for setting in settings:
        apply_setting(document, setting)
    refuse_events(document)
    before = operators_timer(runs, again=True, report=report)
    with bar("calibrating") as tick:
        calibrate(document, folder, runs, again=True, before=before, report=report, tick=tick)
    scenario = load_scenario(SCENARIO, settings, resolver(runs))
    report(f"searching {trials} trials over {len(DEFAULTS)} policies in simulation")
    with bar("searching") as tick:
        found = search(scenario, policies=DEFAULTS, trials=trials, seed=seed, progress=tick)
    policies = chosen_policies(scenario, found)
    with bar("measuring") as tick:
        study = replay(
            scenario,
            policies,
            runs,
            seed=seed,
            budget_s=budget_s,
            report=report,
            tick=tick,
        )
    write_best(found, study.folder / "best.toml")
    comparison = compare(study.runs)
    return finish(comparison, found, study.folder, study.runs, study.interrupted)


def chosen_policies(scenario: Scenario, found: SearchResult) -> list[Policy]:
    """Every default policy, then the best plans of the search that none of them makes."""
    baselines = [make_policy(name) for name in DEFAULTS]
    plans = [allocate(policy, View.of(scenario), scenario) for policy in baselines]
    count = max(scenario.replay.winners, LEAST_PLANS - len({plan.sha256 for plan in plans}))
    winners = distinct_plans(scenario, found, count, exclude=plans)
    return [*baselines, *(Fixed(plan, describe(policy)) for policy, plan in winners)]


def finish(comparison: Comparison, found: SearchResult, folder: Path, runs: Sequence[Any], interrupted: bool) -> Demo:
    """Write comparison and report, and put together what the command prints."""
    path = write_report(runs, folder)
    document = {
        **comparison.model_dump(mode="json"),
        "search_trials": len(found.trials),
        "search_trials_per_s": found.trials_per_s,
        "best": {"policy": found.name, "parameters": found.parameters, "value": found.value},
        "report": str(path),
    }
    write_text(folder / "comparison.json", to_json(document))
    lines = [
        *headlines(comparison),
        f"search: {len(found.trials)} trials, {found.trials_per_s:.0f} per second",
        f"report: {path}",
    ]
    rows = [dict(row) for row in plan_table(comparison)]
    return Demo(document, rows, lines, interrupted, fidelity_table(comparison.plans))
