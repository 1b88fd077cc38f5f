"""Pooled: the verdict over several comparisons, of other workloads and devices, each judged within itself.

Times of different work have no common order: rank agreement and regret are taken within a case and then pooled; errors
and coverage are per plan and launch, and pool as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from .agreement import Agreement, coverage_figures, error_figures, mean
from .compare import Comparison, PlanRow, balanced_rows
from .fidelities import FIDELITIES
from .metrics import kendall_tau
from .record import SCHEMA_VERSION, Record
from .recovery import WITHIN_STEPS
from .steadied import steadied

JUDGED_FROM = 200
"""Launch medians from which on the coverage of several cases is judged."""
MOST_MAPE, MOST_WORST, LEAST_TAU, LEAST_REGRET_LIMIT = 3.0, 8.0, 0.9, 1.0
MOST_CALIBRATED_MAPE = 8.0
LEAST_REGAINED, MOST_REGAINED_ERROR = 85.0, 5.0
MOST_WIDTH, MOST_BALANCE, LEAST_OPTIMUM, LEAST_P = 10.0, 2.0, 95.0, 0.05
SHARED_TIMES, SHARED_PERCENT = 1.5, 3.0
"""Lanes that share a core: their error may be so many times their own noise floor, plus so much."""


class Observation(Record):
    """One launch of one plan: the unit of coverage."""

    inside: bool
    """Whether the launch's median is in the interval predicted for the median of a fresh launch of as many steps."""
    width_percent: float
    """Of that interval, of the plan's predicted median."""
    steadied_inside: bool | None = None
    """Whether it would be, with the lanes' drift since the predictions divided out; None: not gauged."""


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
    """Plans that this host cannot run, or the whole case under its own name, each with the reason."""
    seconds: float = 0.0
    folder: str = ""
    date: str = ""

    @property
    def rows(self) -> list[PlanRow]:
        """Its plans without the twins."""
        return [] if self.comparison is None else [row for row in self.comparison.plans if row.twin_of is None]


class Pooled(Agreement):
    """Figures over some cases: the keys of a comparison, pooled."""

    cases: int
    plans: int
    mape_by_fidelity: dict[str, float]
    """Mean absolute error of each fidelity over the plans that it predicted."""
    worst_regret_percent: float | None
    least_regained_percent: float | None = None
    """Over policies that were asked after a slowdown, also where they kept their plan: the least share of the then best
    throughput."""
    worst_regained_error_percent: float | None = None
    """How far the predicted shares are from the measured ones, at most."""
    kept_plans: int = 0
    """How many of these policies kept their plan in some launch."""


class Criterion(Record):
    """One aim: the figure, the limit, and whether it was met; None: it could not be judged."""

    what: str
    value: float | None
    limit: str
    met: bool | None


class SuiteResult(Record):
    """The document of a suite: pooled figures of the cases with a core per lane, by family, and of those without."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    fidelity: str
    whole: bool
    """Whether every case was run or skipped for a reason: False where the budget or an interrupt ended it."""
    interrupted: bool
    pooled: Pooled | None
    families: dict[str, Pooled]
    shared_cores: Pooled | None
    criteria: list[Criterion]
    skipped: dict[str, str]
    cases: list[CaseResult]
    notes: list[str] = Field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The keys of a comparison at the top, then what only a suite has."""
        own = self.model_dump(mode="json")
        return {**(own.pop("pooled") or {}), **own}


def suite_result(
    name: str, cases: Sequence[CaseResult], *, whole: bool, interrupted: bool = False, notes: Sequence[str] = ()
) -> SuiteResult:
    """The verdict over the cases of a suite."""
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
        whole=whole,
        interrupted=interrupted,
        pooled=main,
        families={family: pool(each) for family, each in sorted(families.items())},
        shared_cores=apart,
        criteria=[*(criteria(main) if main else []), *(shared_criteria(apart) if apart else [])],
        skipped={f"{case.name}: {what}": why for case in cases for what, why in case.skipped.items()},
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
    regrets = [each.regret_percent for each in comparisons if each.regret_percent is not None]
    speedups = [each.speedup_over_uniform for each in comparisons if each.speedup_over_uniform is not None]
    optima = [each.optimum_share_percent for each, case in zip(comparisons, cases, strict=True) if case.lanes == 2]
    known = [each for each in optima if each is not None]
    return Pooled(
        cases=len(cases),
        plans=len(errors),
        launches=min(each.launches for each in comparisons),
        mape_by_fidelity=_by_fidelity([row for case in cases for row in case.rows]),
        regret_percent=mean(regrets) if regrets else None,
        worst_regret_percent=max(regrets, default=None),
        noise_floor_percent=math.sqrt(mean([floor**2 for floor in floors])) if floors else None,
        speedup_over_uniform=math.exp(mean([math.log(each) for each in speedups])) if speedups else None,
        optimum_share_percent=min(known, default=None),
        **_regained([row for case in cases for row in case.rows]),
        steadied=steadied(
            {f"{case.name}: {row.label}": row.steadied_error_percent for case in cases for row in case.rows},
            [row.steadied_error_percent for row in balanced],
            [each.steadied_inside for each in observations],
        ),
        busy=any(each.busy for each in comparisons),
        **error_figures(errors, [_error(row) for row in balanced]),
        **_ranking(cases),
        **coverage_figures([(each.inside, each.width_percent) for each in observations], JUDGED_FROM),
    )


def criteria(pooled: Pooled) -> list[Criterion]:
    """The aims for predictions of lanes with a core each."""
    floor = pooled.noise_floor_percent or 0.0
    regret = max(LEAST_REGRET_LIMIT, floor)
    found = [
        _at_most("signed error at the balance point, %", pooled.balance_error_percent, MOST_BALANCE, absolute=True),
        _at_most("mean absolute error, %", pooled.mape_percent, MOST_MAPE),
        _at_most("worst error, %", pooled.worst_error_percent, MOST_WORST),
        _at_least("rank agreement", pooled.kendall_tau, LEAST_TAU),
        _at_most("regret, mean over cases, %", pooled.regret_percent, regret),
        Criterion(
            what="coverage of 80 % intervals: p of the exact binomial test",
            value=pooled.coverage_p_value,
            limit=f">= {LEAST_P} over {JUDGED_FROM} launch medians or more",
            met=None if pooled.coverage_p_value is None else pooled.coverage_p_value >= LEAST_P,
        ),
        _at_most("width of the intervals, %", pooled.interval_width_percent, MOST_WIDTH),
        _at_most(
            "mean absolute error, calibrated (the model never ran), %",
            pooled.mape_by_fidelity.get("calibrated"),
            MOST_CALIBRATED_MAPE,
        ),
        _at_least("share of the optimum, two lanes, %", pooled.optimum_share_percent, LEAST_OPTIMUM),
        _at_least(
            f"regained {WITHIN_STEPS} steps after a slowdown, of the then best throughput, %",
            pooled.least_regained_percent,
            LEAST_REGAINED,
        ),
        _at_most("error of that prediction, %", pooled.worst_regained_error_percent, MOST_REGAINED_ERROR),
    ]
    return found


def shared_criteria(pooled: Pooled) -> list[Criterion]:
    """The aim for lanes that share a core."""
    floor = pooled.noise_floor_percent
    if floor is None:
        return [Criterion(what="mean absolute error, shared cores, %", value=pooled.mape_percent, limit="-", met=None)]
    limit = SHARED_TIMES * floor + SHARED_PERCENT
    return [_at_most("mean absolute error, shared cores, %", pooled.mape_percent, limit)]


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


def _regained(rows: Sequence[PlanRow]) -> dict[str, Any]:
    pairs = [(row.regained_predicted_percent, row.regained_percent) for row in rows]
    known = [(foreseen, found) for foreseen, found in pairs if foreseen is not None and found is not None]
    errors = [abs(100 * (foreseen / found - 1)) for foreseen, found in known]
    return {
        "least_regained_percent": min((found for _, found in known), default=None),
        "worst_regained_error_percent": max(errors, default=None),
        "kept_plans": sum(bool(row.kept_plan_launches) for row in rows),
    }


def _by_fidelity(rows: Sequence[PlanRow]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, seconds in row.predicted_at.items():
            if row.measured is not None:
                found.setdefault(name, []).append(100 * abs(seconds / row.measured.median_s - 1))
    return {name: mean(errors) for name, errors in found.items()}


def _error(row: PlanRow) -> float:
    assert row.error_percent is not None, "a row of a comparison was measured"
    return row.error_percent


def _at_most(what: str, value: float | None, limit: float, *, absolute: bool = False) -> Criterion:
    size = None if value is None else abs(value) if absolute else value
    text = f"within {limit:.3g}" if absolute else f"<= {limit:.3g}"
    return Criterion(what=what, value=value, limit=text, met=None if size is None else size <= limit)


def _at_least(what: str, value: float | None, limit: float) -> Criterion:
    return Criterion(what=what, value=value, limit=f">= {limit:.3g}", met=None if value is None else value >= limit)


def lines(document: Mapping[str, Any]) -> list[str]:
    """The verdict of a suite's document as lines of text: aims first, then what was skipped."""
    found = [
        f"{each['what']}: {'-' if each['value'] is None else format(each['value'], '.3g')} "
        f"({each['limit']}; {'not judged' if each['met'] is None else 'met' if each['met'] else 'MISSED'})"
        for each in document["criteria"]
    ]
    busy = ["the host was busy or noisy: read the errors with that in mind"] if document.get("busy") else []
    skipped = [f"skipped: {what}: {why}" for what, why in document["skipped"].items()]
    return [*busy, *found, *skipped, *(f"note: {note}" for note in document["notes"])]
