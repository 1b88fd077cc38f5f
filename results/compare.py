"""How far prediction and measurement lie apart: error, rank agreement, regret, coverage, noise floor.

Everything is computed from the step times of the measured launches, by the statistics of :mod:`.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import Field

from .agreement import LEAST_LAUNCHES, Agreement, coverage_figures
from .errors import InputError
from .fidelities import FIDELITIES, FidelityScore, scores
from .ledger import step_times
from .metrics import (
    Launches,
    bootstrap_interval,
    error_figures,
    interval_of,
    kendall_tau,
    median,
    regret_percent,
)
from .record import SCHEMA_VERSION, Record, Run, digest
from .recovery import WITHIN_STEPS, launches_kept
from .steadied import Steadied, is_foretold, steadied, steadied_launches

BASELINE_POLICY = "uniform"
"""What the speed-up is measured against."""
ROUNDING = 1e-9
"""Relative width that an interval has at least: without noise, sums of the same times differ in their last digits."""
JUDGED_FROM = 50
"""Coverage of fewer observations is printed with its count and not judged."""
NOISY_PERCENT = 5.0
"""A plan that differs from itself by more than this was not measured on a quiet host, whatever the clocks say."""
BALANCED_PERCENT = 3.0
"""Plans predicted within this of the best one are at the balance point: the predictions that a choice rests on."""


class Predicted(Record):
    """What was predicted of a plan's step time, in seconds."""

    p10_s: float
    p50_s: float
    p90_s: float
    interval_s: tuple[float, float]
    """80 % interval of the median of a fresh launch."""
    launch_intervals_s: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """The same by the number of steps that a launch has, where that may differ from one to the next."""

    steadied_intervals_s: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """The same of a launch whose lanes' speed is known when it begins."""

    def interval_of(self, steps: int) -> tuple[float, float]:
        """The interval of the median of a fresh launch of so many steps, in seconds."""
        return interval_of(self.launch_intervals_s, steps) or self.interval_s

    def at_known_speed(self) -> Self:
        """The prediction with the intervals of launches whose lanes' speed is known, where it has them."""
        return self.model_copy(update={"launch_intervals_s": self.steadied_intervals_s or self.launch_intervals_s})


class Measured(Record):
    """What was measured of a plan's step time, in seconds."""

    median_s: float
    interval_s: tuple[float, float]
    """80 % bootstrap interval of the median, over launches."""
    launch_medians_s: list[float]


class PlanRow(Record):
    """One plan: who decided what, what was predicted, and what was measured."""

    label: str
    policy: str
    parameters: dict[str, Any]
    plan: dict[str, int]
    """Samples per step of each device."""
    plan_sha256: str
    fidelity: str
    lower_bound_step_time_s: float
    work_bound_step_time_s: float | None = None
    """See :class:`steelyard.results.record.Summary`."""
    predicted: Predicted
    measured: Measured | None = None
    error_percent: float | None = None
    """100 (predicted p50 / measured median - 1): above 0 the prediction was too slow."""
    steadied_error_percent: float | None = None
    """The same by what was known when each launch began (:mod:`.steadied`); None: not gauged."""
    regained_percent: float | None = None
    """Of a policy that was asked again after a slowdown: the share of the then best throughput that it came to."""
    regained_predicted_percent: float | None = None
    kept_plan_launches: int | None = None
    """Launches in which such a policy changed nothing; what it regained is then what its old plan has."""
    twin_of: str | None = None
    """Label of the plan of which this is the A/A repetition; such a row enters no metric but the noise floor."""
    busy: bool = False
    in_sample: bool = False
    """Whether this run, or another one of the same plan, refined the tables that predicted it: its error is of a fit.
    """
    predicted_at: dict[str, float] = Field(default_factory=dict)
    """Median step time in seconds as each fidelity predicted it, this row's own among them."""
    global_batch: int
    """Samples per step; with several stages, more than one device works on each."""


class Comparison(Agreement):
    """The verdict over all plans of one study that were predicted and measured."""

    schema_version: int = SCHEMA_VERSION
    scenario: str
    fidelity: str
    """The weakest among the predictions."""
    plans: list[PlanRow]
    picked: str
    """Label of the plan with the least predicted median."""
    measured_best: str
    """Label of the plan with the least measured median."""
    fidelities: list[FidelityScore] = Field(default_factory=list)
    """How each fidelity did that predicted every plan, weakest first."""
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row with the step times behind its measured side, and the same without the lanes' drift (None: unknown)."""

    row: PlanRow
    launches: Launches
    steadied: Launches | None = None
    foretold: bool = False
    """Whether what each launch's times are divided by was written down before its plans ran."""

    @property
    def predicted_s(self) -> float:
        """Predicted median step time in seconds."""
        return self.row.predicted.p50_s

    @property
    def measured_s(self) -> float:
        """Measured median step time in seconds."""
        return median(self.launches.values())


def compare(runs: Sequence[Run], *, seed: int = 0) -> Comparison:
    """Hold each measured run against the simulated run that predicted it.

    Args:
        runs: measured runs and their predictions, in any order; simulated runs that predict none of them are left out.
        seed: of the bootstrap.

    Raises:
        InputError: no run was measured, one lacks its prediction, two share a label, or they are not of one study.
    """
    pairs = paired(runs, seed=seed)
    if not pairs:
        raise InputError(
            "runs", "none of them was measured", "`steelyard replay` measures; `report` shows simulated runs"
        )
    own = [pair for pair in pairs if pair.row.twin_of is None]
    if not own:
        raise InputError("runs", "hold an A/A twin alone", "give the whole folder of the replay")
    notes = list(dict.fromkeys(note for run in runs if run.manifest.kind == "measured" for note in run.manifest.notes))
    launches = min(len(pair.launches) for pair in own)
    notes += [*_in_sample(own), *_kept(own), *_unjudged(launches)]
    floor = noise_floor_percent(pairs, notes)
    picked = min(own, key=lambda pair: (pair.predicted_s, pair.row.label))
    best = min(own, key=lambda pair: (pair.measured_s, pair.row.label))
    return Comparison(
        scenario=str(runs[0].manifest.scenario.get("name", "")),
        fidelity=weakest(pair.row.fidelity for pair in own),
        launches=launches,
        judged=launches >= LEAST_LAUNCHES,
        plans=[pair.row for pair in pairs],
        picked=picked.row.label,
        measured_best=best.row.label,
        noise_floor_percent=floor,
        speedup_over_uniform=_speedup(own, picked, notes),
        optimum_share_percent=_optimum_share(runs, best.measured_s),
        busy=any(pair.row.busy for pair in pairs) or (floor is not None and floor > NOISY_PERCENT),
        steadied=_steadied(runs, own),
        **_errors(own),
        **_ranking(own, floor, seed, notes),
        **_coverage(own, launches, notes),
        fidelities=scores([pair.row.predicted_at for pair in own], [pair.measured_s for pair in own], floor or 0.0),
        notes=notes,
    )


def paired(runs: Sequence[Run], *, seed: int = 0) -> list[Pair]:
    """Each measured run with its prediction, in order of predicted time, twins last.

    Raises:
        InputError: see :func:`compare`.
    """
    predictions = {run.manifest.run_id: run for run in runs if run.manifest.kind == "simulated"}
    measured = [run for run in runs if run.manifest.kind == "measured"]
    _require_one_study([*measured, *(predictions[each] for each in _predicted_ids(measured) if each in predictions)])
    pairs = []
    for run in measured:
        prediction = predictions.get(run.manifest.predicted_run_id or "")
        if prediction is None:
            raise InputError(
                f"run {run.manifest.label!r}",
                "was measured, and its prediction is not among the runs",
                "give the whole folder of the replay",
            )
        pairs.append(_pair(prediction, run, seed))
    return sorted(pairs, key=lambda pair: (pair.row.twin_of is not None, pair.predicted_s, pair.row.label))


def plan_row(prediction: Run) -> PlanRow:
    """The row of a simulated run, its measured side empty."""
    summary, manifest = prediction.summary, prediction.manifest
    times = summary.step_time_s
    for value in (times.p10, times.p50, times.p90, *summary.median_interval_s):
        _require_positive(value, f"run {manifest.label!r}: step_time_s")
    return PlanRow(
        label=manifest.label,
        policy=manifest.policy.name,
        parameters=manifest.policy.parameters,
        plan={name: ledger.samples for name, ledger in summary.devices.items()},
        global_batch=sum(sum(pipeline["micro_batches"]) for pipeline in prediction.plan["pipelines"]),
        plan_sha256=manifest.plan_sha256,
        fidelity=summary.fidelity,
        in_sample=manifest.plan_sha256 in (_cluster(prediction).get("fitted_plans") or ()),
        lower_bound_step_time_s=summary.lower_bound_step_time_s,
        work_bound_step_time_s=summary.work_bound_step_time_s,
        predicted=Predicted(
            p10_s=times.p10,
            p50_s=times.p50,
            p90_s=times.p90,
            interval_s=summary.median_interval_s,
            launch_intervals_s=summary.launch_intervals_s,
            steadied_intervals_s=summary.steadied_intervals_s,
        ),
        predicted_at={**_others(manifest.predicted_at), summary.fidelity: times.p50},
    )


def _others(predicted_at: Mapping[str, Any]) -> dict[str, float]:
    """Median step times of other fidelities; what is no time tells nothing."""
    told = {name: _mapping(found).get("p50_s") for name, found in predicted_at.items()}
    return {name: float(value) for name, value in told.items() if isinstance(value, int | float) and value > 0}


def _pair(prediction: Run, run: Run, seed: int) -> Pair:
    launches = {launch: times for launch, times in step_times(run.events).items() if times}
    if not launches:
        raise InputError(f"run {run.manifest.label!r}", "has no measured step", "replay again")
    for times in launches.values():
        _require_positive(min(times), f"run {run.manifest.label!r}: events")
    row = plan_row(prediction)
    middle = median(launches.values())
    measured = Measured(
        median_s=middle,
        interval_s=bootstrap_interval(list(launches.values()), seed),
        launch_medians_s=[median([times]) for times in launches.values()],
    )
    contention = _mapping(run.manifest.provenance.get("contention"))
    update = {
        "label": run.manifest.label,
        "measured": measured,
        "error_percent": 100 * (row.predicted.p50_s / middle - 1),
        "twin_of": run.manifest.twin_of,
        "busy": bool(contention.get("busy")),
        **_regained(prediction, run),
        "in_sample": row.in_sample or run.manifest.run_id in (_cluster(prediction).get("fitted_from") or ()),
    }
    steady = steadied_launches(launches, contention)
    if steady is not None:
        update["steadied_error_percent"] = 100 * (row.predicted.p50_s / median(steady.values()) - 1)
    return Pair(row=row.model_copy(update=update), launches=launches, steadied=steady, foretold=is_foretold(contention))


def _regained(prediction: Run, run: Run) -> dict[str, Any]:
    """What a run regained, and was to regain, where its policy could change the plan under way."""
    foreseen, found, kept = prediction.summary.recovery, run.summary.recovery, launches_kept(run)
    if foreseen is None or found is None or kept is None:
        return {}
    return {
        "regained_percent": found.share_percent,
        "regained_predicted_percent": foreseen.share_percent,
        "kept_plan_launches": kept,
    }


def _kept(pairs: Sequence[Pair]) -> list[str]:
    """A note on every policy that was asked after a slowdown and changed nothing."""
    return [
        f"{pair.row.label} was asked and kept its plan in {pair.row.kept_plan_launches} of {len(pair.launches)} "
        f"launches: from step {WITHIN_STEPS} after the slowdown it has {pair.row.regained_percent:.0f} % of the "
        "throughput that is possible then"
        for pair in pairs
        if pair.row.kept_plan_launches
    ]


def _in_sample(pairs: Sequence[Pair]) -> list[str]:
    """A note where predictions are judged by plans whose own times refined the tables behind them."""
    fitted = sum(pair.row.in_sample for pair in pairs)
    if not fitted:
        return []
    which = "this plan" if len(pairs) == 1 else f"{fitted} of these {len(pairs)} plans"
    return [f"measured times of {which} refined the tables that predicted them: their errors are those of a fit"]


def _unjudged(launches: int) -> list[str]:
    """A note where there are too few launches to judge by."""
    enough = launches >= LEAST_LAUNCHES
    return [] if enough else [f"these figures are not judged: {launches} launches, it takes {LEAST_LAUNCHES}"]


def _cluster(run: Run) -> Mapping[str, Any]:
    """The devices that a run was of, as its record has them."""
    return _mapping(run.manifest.scenario.get("cluster"))


def noise_floor_percent(pairs: Sequence[Pair], notes: list[str]) -> float | None:
    """How far the same plan is from itself, |twin / original - 1|; the root of the mean square over several twins.

    Not the largest of them: that grows with their number, and everything is judged against it.
    """
    originals = {pair.row.label: pair for pair in pairs if pair.row.twin_of is None}
    found = []
    for twin in (pair for pair in pairs if pair.row.twin_of is not None):
        original = originals.get(twin.row.twin_of or "")
        if original is None:
            notes.append(f"the twin of {twin.row.twin_of!r} has no original among the runs")
        else:
            found.append(100 * abs(twin.measured_s / original.measured_s - 1))
    if not found:
        notes.append("no noise floor: no plan was measured twice")
    return math.sqrt(sum(each**2 for each in found) / len(found)) if found else None


def balanced_rows(rows: Iterable[PlanRow]) -> list[PlanRow]:
    """The plans of one study that are predicted within 3 % of the best one."""
    own = list(rows)
    least_s = min(row.predicted.p50_s for row in own)
    return [row for row in own if row.predicted.p50_s <= (1 + BALANCED_PERCENT / 100) * least_s]


def weakest(fidelities: Iterable[str]) -> str:
    """The least of some fidelities: datasheet, calibrated, profiled."""
    found = set(fidelities)
    return next((each for each in FIDELITIES if each in found), ", ".join(sorted(found)))


def _errors(pairs: Sequence[Pair]) -> dict[str, Any]:
    errors = {pair.row.label: 100 * (pair.predicted_s / pair.measured_s - 1) for pair in pairs}
    balanced = [errors[row.label] for row in balanced_rows(pair.row for pair in pairs)]
    return error_figures(list(errors.items()), balanced)


def _ranking(pairs: Sequence[Pair], floor: float | None, seed: int, notes: list[str]) -> dict[str, Any]:
    predicted = [pair.predicted_s for pair in pairs]
    tau, judged = kendall_tau(predicted, [pair.measured_s for pair in pairs], 2 * (floor or 0.0))
    if tau is None:
        notes.append("no rank agreement: no two plans differ by more than twice the noise floor")
    regret = regret_percent(predicted, [pair.launches for pair in pairs], seed)
    if regret is None:
        notes.append("no regret: it takes two launches, one to choose the best plan and one to score it")
    total = len(pairs) * (len(pairs) - 1) // 2
    return {"kendall_tau": tau, "kendall_pairs": judged, "kendall_pairs_total": total, "regret_percent": regret}


def observations(pair: Pair) -> list[tuple[bool, float]]:
    """What coverage counts: of each launch of a plan, whether its median is in the interval, and how wide that is.

    The interval is the one predicted for the median of a fresh launch of as many steps; its width is in percent of the
    predicted median.
    """
    found = []
    for times in pair.launches.values():
        low, high = pair.row.predicted.interval_of(len(times))
        inside = low * (1 - ROUNDING) <= median([times]) <= high * (1 + ROUNDING)
        found.append((inside, 100 * (high - low) / pair.predicted_s))
    return found


def steadied_observations(pair: Pair) -> list[tuple[bool, float]] | None:
    """The same of a plan's launches with the lanes' drift divided out; None where that is not known."""
    if pair.steadied is None:
        return None
    row = pair.row.model_copy(update={"predicted": pair.row.predicted.at_known_speed()})
    return observations(replace(pair, row=row, launches=pair.steadied))


def _steadied(runs: Sequence[Run], pairs: Sequence[Pair]) -> Steadied | None:
    errors = {pair.row.label: pair.row.steadied_error_percent for pair in pairs}
    balanced = [row.steadied_error_percent for row in balanced_rows(pair.row for pair in pairs)]
    unknown: list[tuple[bool, float] | None] = [None]
    seen = [each for pair in pairs for each in steadied_observations(pair) or unknown]
    found = steadied(errors, balanced, seen, foretold=all(pair.foretold for pair in pairs))
    steady = [median(pair.steadied.values()) for pair in pairs if pair.steadied is not None]
    if found is None:
        return None
    return found.model_copy(update={"optimum_share_percent": _optimum_share(runs, min(steady))})


def _coverage(pairs: Sequence[Pair], launches: int, notes: list[str]) -> dict[str, Any]:
    seen = [each for pair in pairs for each in observations(pair)]
    if len(seen) < JUDGED_FROM:
        notes.append(f"coverage is not judged: {len(seen)} observations, it takes {JUDGED_FROM}")
    return coverage_figures(seen, JUDGED_FROM, launches)


def _speedup(pairs: Sequence[Pair], picked: Pair, notes: list[str]) -> float | None:
    uniform = next((pair for pair in pairs if pair.row.policy == BASELINE_POLICY), None)
    if uniform is None:
        notes.append(f"no speed-up: the {BASELINE_POLICY} plan was not measured")
        return None
    return uniform.measured_s / picked.measured_s


def _optimum_share(runs: Sequence[Run], best_s: float) -> float | None:
    """The bound over the best median, in percent; above 100 the lanes were faster than their tables."""
    bounds = [run.summary.split_bound_step_time_s for run in runs if run.manifest.kind == "measured"]
    known = [each for each in bounds if each is not None]
    return 100 * min(known) / best_s if known else None


def _predicted_ids(measured: Sequence[Run]) -> list[str]:
    return [run.manifest.predicted_run_id for run in measured if run.manifest.predicted_run_id is not None]


def _require_one_study(runs: Sequence[Run]) -> None:
    """Times of different work or devices have no common order, and labels tell the rows apart."""
    if len({_study(run) for run in runs}) > 1:
        raise InputError("runs", "are of different workloads or devices", "compare one scenario at a time")
    labels = [run.manifest.label for run in runs if run.manifest.kind == "measured" and run.manifest.twin_of is None]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise InputError("runs", f"two measured runs are named {twice[0]!r}", "compare one replay at a time")


def _study(run: Run) -> str:
    """Digest of workload and devices. Profiles are left out: a plan's own sizes are held out of what predicts it."""
    return digest([run.manifest.scenario.get("workload"), sorted(run.summary.devices)])


def _mapping(value: object) -> Mapping[str, Any]:
    """Provenance is free-form: what is not a table tells nothing."""
    return value if isinstance(value, Mapping) else {}


def _require_positive(value: float, path: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(path, f"is {value!r}, a time is above 0", "the run folder is damaged; make the run again")
