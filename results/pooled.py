"""Pooled: the verdict over several comparisons, of other workloads and devices, each judged within itself.

Times of different work have no common order: rank agreement and regret are taken within a case and then pooled; errors
and coverage are per plan and launch, and pool as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pydantic import Field

from .agreement import LEAST_LAUNCHES, Agreement, coverage_figures
from .compare import Comparison, PlanRow, balanced_rows
from .criteria import JUDGED_FROM, LEAST_REGRET_LIMIT, Criterion, criteria, shared_criteria
from .fidelities import FIDELITIES, FidelityScore, score
from .metrics import binomial_p_value, error_figures, kendall_tau
from .record import SCHEMA_VERSION, Record
from .steadied import Steadied, steadied


class Observation(Record):
    """One launch of one plan: the unit of coverage."""

    inside: bool
    """Whether the launch's median is in the interval predicted for the median of a fresh launch of as many steps."""
    width_percent: float
    """Of that interval, of the plan's predicted median."""
    steadied_inside: bool | None = None
    """The same by what was known when the launch began (:mod:`.steadied`); None: not gauged."""
    steadied_width_percent: float | None = None

    @property
    def steadied(self) -> tuple[bool, float] | None:
        """Both by what was known when the launch began."""
        if self.steadied_inside is None:
            return None
        width = self.steadied_width_percent
        return self.steadied_inside, self.width_percent if width is None else width


class CaseResult(Record):
    """One case of a suite: what was measured, or why not."""

    name: str
    family: str
    lanes: int = 0
    shaped: bool = False
    """Whether the links between the lanes are held back."""
    shares_cores: bool = False
    """Whether lanes share a core: such cases are judged apart."""
    digest: str = ""
    """Of everything that decides the case: a result of another digest is made anew."""
    predictions_sha256: str = ""
    comparison: Comparison | None = None
    observations: list[Observation] = Field(default_factory=list)
    skipped: dict[str, str] = Field(default_factory=dict)
    """Plans that this host cannot run, or all of them, each with the reason."""
    failed: str = ""
    """Why nothing was measured although the host could: a worker died or hung."""
    seconds: float = 0.0
    folder: str = ""
    date: str = ""
    code: str = ""
    """The version that measured it: its commit, with a + where files were changed since, or the package's version."""

    @property
    def rows(self) -> list[PlanRow]:
        """Its plans without the twins."""
        return [] if self.comparison is None else [row for row in self.comparison.plans if row.twin_of is None]


class Pooled(Agreement):
    """Figures over some cases: those of a comparison, pooled."""

    cases: int
    plan_count: int
    fidelities: list[FidelityScore]
    """Errors of each fidelity over the plans that it predicted, weakest first; no tau: other work has no common order.
    """
    regret_limit_percent: float | None = None
    """What the regret of the worst case may be: its own noise floor, or 1 % where that is less."""
    mean_regret_percent: float | None = None
    """Over cases, negative ones among them: no aim, but what chance alone would leave near 0."""
    picked: str
    """Case and label of the plan picked by prediction, where the regret is worst."""
    measured_best: str
    """The truly best of the same case."""
    regained_percent: float | None = None
    """Of the policy that was predicted to regain most, the measured share of the then best throughput; the least such
    share over cases."""
    least_regained_percent: float | None = None
    """Over policies that were asked after a slowdown, also where they kept their plan: the least share of the then best
    throughput."""
    worst_regained_error_percent: float | None = None
    """How far the predicted shares are from the measured ones, at most."""
    kept_plans: int = 0
    """How many of these policies kept their plan in some launch."""


class SuiteResult(Record):
    """The document of a suite: pooled figures of the cases with a core per lane, by family, and of those without."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    fidelity: str
    asked: list[str]
    """Names of all cases of the suite."""
    whole: bool
    """Whether every case was run or skipped for a reason: False after a spent budget, an interrupt, a failure."""
    interrupted: bool
    pooled: Pooled | None
    families: dict[str, Pooled]
    shared_cores: Pooled | None
    criteria: list[Criterion]
    skipped: dict[str, str]
    failed: dict[str, str] = Field(default_factory=dict)
    """Cases that the host could have run, each with what went wrong."""
    report: str = ""
    """Path of the page about it."""
    cases: list[CaseResult]
    notes: list[str] = Field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The keys of the demo's document at the top, then what only a suite has. Nothing was searched."""
        own = self.model_dump(mode="json")
        pooled = {"picked": None, "measured_best": None, **(own.pop("pooled") or {})}
        nothing = {"search_trials": 0, "search_trials_per_s": 0.0, "best": None}
        return {**pooled, **nothing, "scenario": self.suite, "plans": self._plans(), **own}

    def _plans(self) -> list[dict[str, Any]]:
        """The rows of all cases, twins too, each under the name of its case."""
        found = []
        for case in self.cases:
            for row in case.comparison.plans if case.comparison else []:
                names = {"label": f"{case.name}: {row.label}", "case": case.name}
                twin = {"twin_of": None if row.twin_of is None else f"{case.name}: {row.twin_of}"}
                found.append({**row.model_dump(mode="json"), **names, **twin})
        return found


def suite_result(
    name: str,
    cases: Sequence[CaseResult],
    *,
    asked: Sequence[str] = (),
    interrupted: bool = False,
    notes: Sequence[str] = (),
) -> SuiteResult:
    """The verdict over the cases of a suite, of which ``asked`` names all (by default there are no others)."""
    asked = list(asked) or [case.name for case in cases]
    failed = {case.name: case.failed for case in cases if case.failed}
    done = [case for case in cases if case.comparison is not None]
    alone = [case for case in done if not case.shares_cores]
    shared = [case for case in done if case.shares_cores]
    families = {case.family: [each for each in alone if each.family == case.family] for case in alone}
    main = pool(alone) if alone else None
    apart = pool(shared) if shared else None
    found = {case.comparison.fidelity for case in done if case.comparison is not None}
    return SuiteResult(
        suite=name,
        fidelity=next((each for each in FIDELITIES if each in found), "none"),
        asked=asked,
        whole=not failed and {case.name for case in cases} >= set(asked),
        interrupted=interrupted,
        pooled=main,
        families={family: pool(each) for family, each in sorted(families.items())},
        shared_cores=apart,
        criteria=[*(criteria(main) if main else []), *(shared_criteria(apart) if apart else [])],
        skipped={f"{case.name}: {what}": why for case in cases for what, why in case.skipped.items()},
        failed=failed,
        cases=list(cases),
        notes=list(notes),
    )


def pool(cases: Sequence[CaseResult]) -> Pooled:
    """Figures over some measured cases."""
    comparisons = [case.comparison for case in cases if case.comparison is not None]
    assert comparisons, "nothing was measured"
    errors = [(f"{case.name}: {row.label}", _error(row)) for case in cases for row in case.rows]
    balanced = [row for case in cases for row in balanced_rows(case.rows)]
    observations = [each for case in cases for each in case.observations]
    floors = [each.noise_floor_percent for each in comparisons if each.noise_floor_percent is not None]
    speedups = [each.speedup_over_uniform for each in comparisons if each.speedup_over_uniform is not None]
    optima = [each.optimum_share_percent for each, case in zip(comparisons, cases, strict=True) if case.lanes == 2]
    known = [each for each in optima if each is not None]
    launches = min(each.launches for each in comparisons)
    return Pooled(
        cases=len(cases),
        plan_count=len(errors),
        launches=launches,
        judged=launches >= LEAST_LAUNCHES,
        fidelities=_by_fidelity([row for case in cases for row in case.rows]),
        **_regrets(cases),
        noise_floor_percent=math.sqrt(fmean(floor**2 for floor in floors)) if floors else None,
        speedup_over_uniform=math.exp(fmean(math.log(each) for each in speedups)) if speedups else None,
        optimum_share_percent=min(known, default=None),
        **_regained(cases),
        steadied=_steadied(cases, balanced, launches),
        busy=any(each.busy for each in comparisons),
        **error_figures(errors, [_error(row) for row in balanced]),
        **_ranking(cases),
        **coverage_figures([(each.inside, each.width_percent) for each in observations], JUDGED_FROM, launches),
    )


def _steadied(cases: Sequence[CaseResult], balanced: Sequence[PlanRow], launches: int) -> Steadied | None:
    """By what was known when each launch began. Cases in which that is not asked have what was sealed first."""
    own = [case.comparison.steadied for case in cases if case.comparison is not None]
    foretold = any(own) and all(each.foretold for each in own if each is not None)

    def error(row: PlanRow) -> float | None:
        return row.error_percent if foretold and row.steadied_error_percent is None else row.steadied_error_percent

    seen = [
        each.steadied or ((each.inside, each.width_percent) if foretold else None)
        for case in cases
        for each in case.observations
    ]
    errors = {f"{case.name}: {row.label}": error(row) for case in cases for row in case.rows}
    found = steadied(errors, [error(row) for row in balanced], seen, foretold=foretold)
    if found is None:
        return None
    optima = [
        (case.comparison.steadied or case.comparison).optimum_share_percent
        for case in cases
        if case.comparison is not None and case.lanes == 2
    ]
    judged = found.coverage_count >= JUDGED_FROM and launches >= LEAST_LAUNCHES
    covered = sum(each[0] for each in seen if each is not None)
    update = {
        "optimum_share_percent": min((each for each in optima if each is not None), default=None),
        "coverage_p_value": binomial_p_value(covered, found.coverage_count) if judged else None,
    }
    return found.model_copy(update=update)


def _regrets(cases: Sequence[CaseResult]) -> dict[str, Any]:
    """The case whose regret is furthest above what it may be; where no case has any, the first."""
    found = [(case.name, case.comparison) for case in cases if case.comparison is not None]
    known = [(name, each, each.regret_percent) for name, each in found if each.regret_percent is not None]
    limits = {name: max(LEAST_REGRET_LIMIT, each.noise_floor_percent or 0.0) for name, each in found}
    name, worst, regret = max(known, key=lambda each: each[2] - limits[each[0]], default=(*found[0], None))
    return {
        "regret_percent": regret,
        "regret_limit_percent": None if regret is None else limits[name],
        "mean_regret_percent": fmean(regret for _, _, regret in known) if known else None,
        "picked": f"{name}: {worst.picked}",
        "measured_best": f"{name}: {worst.measured_best}",
    }


def _ranking(cases: Sequence[CaseResult]) -> dict[str, Any]:
    """Concordant less discordant pairs of all cases, over the pairs that differ by twice their case's noise floor."""
    score, judged, total = 0.0, 0, 0
    for case in cases:
        rows = case.rows
        floor = (case.comparison.noise_floor_percent if case.comparison else None) or 0.0
        measured = [row.measured.median_s for row in rows if row.measured is not None]
        tau, pairs = kendall_tau([row.predicted.p50_s for row in rows], measured, 2 * floor)
        score, judged, total = score + (tau or 0.0) * pairs, judged + pairs, total + len(rows) * (len(rows) - 1) // 2
    return {"kendall_tau": score / judged if judged else None, "kendall_pairs": judged, "kendall_pairs_total": total}


def _regained(cases: Sequence[CaseResult]) -> dict[str, Any]:
    rows = [row for case in cases for row in case.rows]
    by_case = [
        [
            (row.regained_predicted_percent, row.regained_percent)
            for row in case.rows
            if row.regained_predicted_percent is not None and row.regained_percent is not None
        ]
        for case in cases
    ]
    known = [each for own in by_case for each in own]
    errors = [abs(100 * (foreseen / found - 1)) for foreseen, found in known]
    return {
        "regained_percent": min((_of_most(own) for own in by_case if own), default=None),
        "least_regained_percent": min((found for _, found in known), default=None),
        "worst_regained_error_percent": max(errors, default=None),
        "kept_plans": sum(bool(row.kept_plan_launches) for row in rows),
    }


def _of_most(regained: Sequence[tuple[float, float]]) -> float:
    """What was measured where most was predicted; of equal predictions the least."""
    most = max(foreseen for foreseen, _ in regained)
    return min(found for foreseen, found in regained if foreseen == most)


def _by_fidelity(rows: Sequence[PlanRow]) -> list[FidelityScore]:
    scored = []
    for name in FIDELITIES:
        known = [
            (row.predicted_at[name], row.measured.median_s) for row in rows if row.measured and name in row.predicted_at
        ]
        if known:
            one = score(name, [predicted for predicted, _ in known], [seconds for _, seconds in known], 0.0)
            scored.append(one.model_copy(update={"kendall_tau": None}))
    return scored


def _error(row: PlanRow) -> float:
    assert row.error_percent is not None, "a row of a comparison was measured"
    return row.error_percent
