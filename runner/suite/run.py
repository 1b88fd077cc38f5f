"""run_suite(): every case of a suite, one after the other, what is complete kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from ...results.compare import compare, observations, paired, steadied_observations
from ...results.errors import InputError, WorkerFailedError
from ...results.pooled import CaseResult, Observation, SuiteResult, suite_result
from ...results.record import Run
from ...results.store import code_version, read_text, to_json, write_text
from ...results.suite_report import suite_report
from ...sim.adaptive import is_eventful
from ...sim.spec import MAX_INPUT_BYTES, Scenario, scenario_from
from ..calibrate import Report, Tick, calibrate
from ..history import remember
from ..launch import require_torch
from ..operators import operators_timer
from ..replay import replay
from ..resolving import resolver
from ..runnable import lanes_of
from ..unfinished import Study
from .cases import Case, Suite, runnable

RESULT = "case.json"
LEAST_CASE_S = 150.0
"""A case for which less of the budget is left is not begun: its calibration alone takes most of that."""
GOOD_CASE_S = 300.0
"""A budget too short for all cases gives the first ones so much each, and leaves the others for the next time."""

Bar = Callable[[str], AbstractContextManager[Tick]]


def run_suite(
    suite: Suite,
    runs: Path,
    *,
    seed: int = 0,
    budget_s: float | None = None,
    again: bool = False,
    report: Report = lambda line: None,
    bar: Bar,
) -> SuiteResult:
    """Calibrate, predict and measure case by case; a case that is complete on disk is not made again.

    The suite's folder is ``runs/suite-NAME``; interrupted or out of budget, the same command goes on where it ended.

    Args:
        suite: the cases.
        runs: the folder of runs.
        seed: of predictions and orders.
        budget_s: for all cases that are still to be measured, calibrations included.
        again: measure also what is complete.
        report: gets lines for people.
        bar: shows the progress of a part.

    Raises:
        InputError: torch is not installed, or the suite itself is wrong.
    """
    require_torch()
    code_version()  # asked now, of what is loaded: the checkout may change meanwhile
    place, begin = runs / f"suite-{suite.name}", time.monotonic()
    kept = {} if again else complete_cases(suite, place, seed, report)
    todo = [case for case in suite.cases if case.name not in kept]
    notes: list[str] = []
    interrupted = False
    for number, case in enumerate(todo):
        left_s = None if budget_s is None else budget_s - (time.monotonic() - begin)
        if left_s is not None and left_s < LEAST_CASE_S:
            notes.append(f"the budget ended before {len(todo) - number} of {len(suite.cases)} cases")
            break
        share_s = None if left_s is None else min(left_s, max(GOOD_CASE_S, left_s / (len(todo) - number)))
        try:
            kept[case.name] = run_case(suite, case, place, seed=seed, budget_s=share_s, report=report, bar=bar)
        except KeyboardInterrupt:
            notes.append(f"interrupted in {case.name}")
            interrupted = True
            break
    done = [kept[case.name] for case in suite.cases if case.name in kept]
    asked = [case.name for case in suite.cases]
    notes += other_versions(done)
    result = suite_result(suite.name, done, asked=asked, interrupted=interrupted, notes=notes)
    if done:
        result = result.model_copy(update={"report": str(suite_report(result, place))})
        write_text(place / "suite.json", to_json(result.document()))
    return result


def other_versions(done: Sequence[CaseResult]) -> list[str]:
    """A note where cases were measured by unlike versions: pooled figures are then of no single one."""
    by_code: dict[str, list[str]] = {}
    for case in done:
        by_code.setdefault(case.code or "an unknown version", []).append(case.name)
    told = "; ".join(f"{', '.join(names)} by {code}" for code, names in by_code.items())
    return [f"not one version measured all cases: {told}"] if len(by_code) > 1 else []


def complete_cases(suite: Suite, place: Path, seed: int, report: Report) -> dict[str, CaseResult]:
    """The cases whose results are on disk, each of the suite's present version of it."""
    found = {case.name: read_case(place / case.name, suite.digest(case, seed)) for case in suite.cases}
    kept = {name: result for name, result in found.items() if result is not None}
    for name, result in kept.items():
        report(f"{name}: complete since {result.date}")
    return kept


def run_case(
    suite: Suite, case: Case, place: Path, *, seed: int, budget_s: float | None, report: Report, bar: Bar
) -> CaseResult:
    """One case: its lanes are calibrated, its plans predicted and measured; what cannot be had here is a reason."""
    folder, runs, begin = place / case.name, place / "runs", time.monotonic()
    document = write_scenario(suite, case, folder)
    result = CaseResult(
        name=case.name, family=case.family, digest=suite.digest(case, seed), date=_today(), code=code_version()
    )
    notes: list[str] = []
    try:
        with bar(f"{case.name}: calibrating") as tick:
            # A host drifts: tables of an hour ago would be judged for it.
            before = operators_timer(runs, again=False, notes=notes, report=report)  # once for all cases of such lanes
            calibrate(document, folder, runs, again=True, before=before, report=report, tick=tick)
        resolve = resolver(runs, notes=notes)
        scenario = scenario_from(resolve(document, folder), folder)
        policies, skipped = runnable(scenario, case)
        left_s = None if budget_s is None else max(1.0, budget_s - (time.monotonic() - begin))
        with bar(f"{case.name}: measuring") as tick:
            study = replay(
                scenario,
                policies,
                runs,
                seed=seed,
                # Runs that change under way are whole: with one of five left out nothing of the suite would be judged.
                budget_s=None if is_eventful(scenario) else left_s,
                notes=notes,
                report=report,
                tick=tick,
            )
    except InputError as reason:
        report(f"{case.name}: skipped: {reason}")
        result = result.model_copy(update={"skipped": {"all plans": str(reason)}})
    except WorkerFailedError as reason:
        report(f"{case.name}: FAILED: {reason}")
        result = result.model_copy(update={"failed": str(reason)})
    else:
        if study.interrupted:
            raise KeyboardInterrupt  # a part of a case is none
        remember(study.runs, place.parent, f"{place.name}/runs/{study.folder.name}")
        result = result.model_copy(update={**judged(study, scenario), "skipped": skipped})
    result = result.model_copy(update={"seconds": time.monotonic() - begin})
    write_text(folder / RESULT, to_json(result.model_dump(mode="json")))
    return result


def judged(study: Study, scenario: Scenario) -> dict[str, Any]:
    """What a case's result says of a study."""
    lanes = lanes_of(scenario)
    return {
        "lanes": len(lanes),
        "shares_cores": any(lane.shares_core for lane in lanes),
        "shaped": any(lane.wire.link_mbit_per_s or lane.wire.uplink_mbit_per_s for lane in lanes),
        "predictions_sha256": study.measured[0].manifest.prediction_sha256 or "",
        "comparison": compare(study.runs),
        "observations": observed(study.runs),
        "folder": study.folder.name,
    }


def observed(runs: Sequence[Run]) -> list[Observation]:
    """Every launch of every plan but the twins', against its predicted interval."""
    found = []
    for pair in paired(runs):
        if pair.row.twin_of is None:
            first = [Observation(inside=inside, width_percent=width) for inside, width in observations(pair)]
            for each, (inside, width) in zip(first, steadied_observations(pair) or [], strict=False):
                each.steadied_inside, each.steadied_width_percent = inside, width
            found += first
    return found


def write_scenario(suite: Suite, case: Case, folder: Path) -> dict[str, Any]:
    """A case as the file that a user would write, and the document: it can be replayed alone."""
    document = suite.document(case)
    write_text(folder / "scenario.toml", tomli_w.dumps(document))
    return document


def read_case(folder: Path, digest: str) -> CaseResult | None:
    """The result of a case that was measured; None where there is none, or it is of another version of the case.

    One that was skipped or failed is tried again: the host may have changed.

    Raises:
        InputError: the file is damaged, or of another version of Steelyard.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    try:
        found = CaseResult.model_validate_json(read_text(file, MAX_INPUT_BYTES))
    except ValidationError as error:
        raise InputError(str(file), "is no result of this version", "remove it: the case is measured anew") from error
    return found if found.comparison is not None and found.digest == digest else None


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
