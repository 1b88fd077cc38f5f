"""Tables of text: plans, headline figures, ledgers, provenance; the same rows for the terminal and the HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .agreement import LEAST_LAUNCHES
from .compare import BALANCED_PERCENT, JUDGED_FROM, Comparison, PlanRow
from .fidelities import FIDELITIES
from .gap import bounds_s, gap_percent
from .groups import groups
from .record import LEDGER_LINES, Run

NAME_LENGTH = 30
"""Names in figures are cut to this length."""
VALUE_LENGTH = 300
MOST_CAUSES = 3
"""Causes on a critical path that a table tells."""
MOST_SHARES = 4
"""Devices whose samples are told one by one."""
NONE = "-"

Fact = tuple[str, str, str]
"""Name, value with unit, and what it means in one line."""


def plan_table(comparison: Comparison) -> list[dict[str, str]]:
    """One row of text per plan for a terminal, best prediction first, twins last: medians with their spans.

    Six columns, so that 80 characters hold them; :func:`table_rows` has a column for every figure.
    """
    return [_terminal_row(row, gap) for row, gap in zip(comparison.plans, gaps(comparison.plans), strict=True)]


def gaps(rows: Sequence[PlanRow]) -> list[float | None]:
    """Percent that each plan's median step is above the bound: as measured, or as predicted where nobody measured."""
    times = [row.predicted.p50_s if row.measured is None else row.measured.median_s for row in rows]
    return [gap_percent(step_s, bound) for step_s, bound in zip(times, bounds_s(rows), strict=True)]


def _terminal_row(row: PlanRow, gap: float | None) -> dict[str, str]:
    times = row.predicted
    predicted = f"{milliseconds(times.p50_s)} ({milliseconds(times.p10_s)}-{milliseconds(times.p90_s)})"
    measured = NONE
    if row.measured is not None:
        low, high = row.measured.interval_s
        measured = f"{milliseconds(row.measured.median_s)} ({milliseconds(low)}-{milliseconds(high)})"
    return {
        "policy": " ".join(part for part in (plan_name(row), parameters(row.parameters)) if part),
        "samples": _split(row),
        "predicted ms (p10-p90)": predicted,
        "measured ms (80 %)": measured,
        "error": _error(row),
        "gap %": NONE if gap is None else f"{gap:.0f}",
    }


def table_rows(rows: Sequence[PlanRow]) -> list[dict[str, str]]:
    """One row of text per plan, keyed by column title; the measured columns only where some plan was measured."""
    measured = any(row.measured is not None for row in rows)
    return [
        {
            **_predicted_cells(row),
            **(_measured_cells(row) if measured else {}),
            "gap to bound": percent(gap, sign=False),
        }
        for row, gap in zip(rows, gaps(rows), strict=True)
    ]


def _predicted_cells(row: PlanRow) -> dict[str, str]:
    return {
        "policy": plan_name(row),
        "parameters": parameters(row.parameters) or NONE,
        "samples": _split(row),
        "p10 ms": milliseconds(row.predicted.p10_s),
        "p50 ms": milliseconds(row.predicted.p50_s),
        "p90 ms": milliseconds(row.predicted.p90_s),
    }


def _measured_cells(row: PlanRow) -> dict[str, str]:
    return {
        "measured ms": NONE if row.measured is None else milliseconds(row.measured.median_s),
        "80 % interval": NONE if row.measured is None else interval(row.measured.interval_s),
        "error": _error(row),
    }


def _error(row: PlanRow) -> str:
    """The error, marked where it is that of a fit."""
    return percent(row.error_percent) + (" (fit)" if row.in_sample else "")


def plan_name(row: PlanRow) -> str:
    """The policy, with the run's own name before it when it has one, and what it is the twin of."""
    own = row.label.partition("(")[0].strip()
    name = row.policy if row.twin_of or own == row.policy else f"{row.label}: {row.policy}"
    return f"{name}, again (A/A twin)" if row.twin_of else name


def short_name(row: PlanRow) -> str:
    """A name for a figure: the policy or the run's own name, cut to length, and the split of the batch."""
    own = row.policy if row.label.startswith(f"{row.policy}(") else row.label
    name = f"{row.policy}, again" if row.twin_of else own
    return f"{name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + '…'} {_split(row)}"


def shares(row: PlanRow) -> str:
    """The split of the batch, in words."""
    split = _split(row)
    return split if split.endswith("devices") else f"{split} samples"


def _split(row: PlanRow) -> str:
    """Samples per device in the order of the devices; of many devices, how many have any."""
    shares = [str(samples) for samples in row.plan.values()]
    return "+".join(shares) if len(shares) <= MOST_SHARES else f"on {sum(map(bool, row.plan.values()))} devices"


def facts(comparison: Comparison) -> list[Fact]:
    """The figures to read first."""
    each = comparison
    return [
        *_error_facts(each),
        *_choice_facts(each),
        _coverage_fact(each),
        *_fidelity_fact(each),
        ("noise floor", percent(each.noise_floor_percent, sign=False), "the same plan measured against itself (A/A)"),
        ("host", "busy" if each.busy else "quiet", "by disturbed compute, drift of the lanes, noise floor"),
        (
            "speed-up over uniform",
            NONE if each.speedup_over_uniform is None else f"{each.speedup_over_uniform:.2f} x",
            f"of the simulator's pick, {each.picked}, as measured",
        ),
        *_optimum(each),
        *_gap(each),
        *_steadied(each),
    ]


def _error_facts(each: Comparison) -> list[Fact]:
    return [
        (
            "mean error",
            percent(each.mean_error_percent),
            f"with its sign; above 0: predicted too slow. At the balance point {percent(each.balance_error_percent)} "
            f"({each.balance_plans} plans predicted within {BALANCED_PERCENT:.0f} % of the best)",
        ),
        (
            "mean absolute error",
            percent(each.mape_percent, sign=False),
            f"of the median step time, {each.fidelity} predictions",
        ),
        ("worst error", percent(each.worst_signed_error_percent), each.worst_plan),
    ]


def _choice_facts(each: Comparison) -> list[Fact]:
    """How well the predictions choose among plans."""
    tau = (
        f"over {each.kendall_pairs} of {each.kendall_pairs_total} pairs of plans: those apart by twice the noise floor"
    )
    return [
        ("rank agreement", NONE if each.kendall_tau is None else f"{each.kendall_tau:.2f}", f"Kendall's tau {tau}"),
        (
            "regret",
            percent(each.regret_percent),
            "how much slower the simulator's pick is than the truly best plan; below 0: noise",
        ),
    ]


def _coverage_fact(each: Comparison) -> Fact:
    judged = (
        f"80 % expected; p = {each.coverage_p_value:.2g}"
        if each.coverage_p_value is not None
        else f"not judged under {JUDGED_FROM} and {LEAST_LAUNCHES} launches"
    )
    return (
        "coverage",
        percent(each.coverage_percent, sign=False),
        f"of {each.coverage_count} launch medians in the predicted interval ({judged}); "
        f"mean width {each.interval_width_percent:.1f} %",
    )


def _steadied(comparison: Comparison) -> list[Fact]:
    each = comparison.steadied
    if each is None:
        return []
    what, how = "mean error without drift", "had the lanes kept the speed predicted for"
    if each.foretold:
        what, how = "mean error, launch by launch", "of what was predicted between each launch's gauge and its plans"
    meaning = (
        f"absolute, {how}; worst {each.worst_error_percent:.1f} %, at the "
        f"balance point {percent(each.balance_error_percent)}, coverage {each.coverage_percent:.0f} %"
        + ("" if each.interval_width_percent is None else f", mean width {each.interval_width_percent:.1f} %")
    )
    return [(what, percent(each.mape_percent, sign=False), meaning)]


def _optimum(comparison: Comparison) -> list[Fact]:
    share = comparison.optimum_share_percent
    meaning = "throughput of the best plan measured, of what the tables allow any split with its all-reduce"
    return [] if share is None else [("share of the optimum", percent(share, sign=False), meaning)]


def _gap(comparison: Comparison) -> list[Fact]:
    known = [gap for gap in gaps(comparison.plans) if gap is not None]
    meaning = "of the best plan measured: above a step that no plan can beat, without noise and with free links"
    return [("gap to the bound", percent(min(known), sign=False), meaning)] if known else []


def _fidelity_fact(comparison: Comparison) -> list[Fact]:
    """The mean absolute error of every fidelity, where there are several."""
    if len(comparison.fidelities) < 2:
        return []
    told = [f"{each.fidelity} {percent(each.mape_percent, sign=False)}" for each in comparison.fidelities]
    return [("by fidelity", ", ".join(told), "mean absolute error of the same plans by each")]


def fidelity_table(rows: Sequence[PlanRow]) -> list[dict[str, str]]:
    """One row of text per plan: what each fidelity predicted, with its error; empty where there is one fidelity."""
    names = [name for name in FIDELITIES if any(name in row.predicted_at for row in rows)]
    if len(names) < 2:
        return []
    return [
        {
            "policy": plan_name(row),
            "samples": shares(row),
            "measured ms": NONE if row.measured is None else milliseconds(row.measured.median_s),
            **{f"{name} ms (error)": _told(row, name) for name in names},
        }
        for row in rows
        if row.twin_of is None
    ]


def _told(row: PlanRow, fidelity: str) -> str:
    found = row.predicted_at.get(fidelity)
    if found is None:
        return NONE
    error = "" if row.measured is None else f" ({percent(100 * (found / row.measured.median_s - 1))})"
    return f"{milliseconds(found)}{error}"


def headlines(comparison: Comparison) -> list[str]:
    """The same figures as lines for a terminal, a busy host first and the notes last."""
    busy = ["the host was busy or noisy: read the errors with that in mind"] if comparison.busy else []
    lines = [f"{name}: {value} ({meaning})" for name, value, meaning in facts(comparison)]
    return [*busy, *lines, *(f"note: {note}" for note in comparison.notes)]


def ledger_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Where the mean step of each device went, in ms: a row per device and run, without lines that are 0 everywhere.

    Devices that are equal in everything share a row.
    """
    entries = [(group.label, run, group.ledger(run)) for group in groups(runs) for run in runs]
    used = [line for line in LEDGER_LINES if any(getattr(ledger, line) > 1e-9 for _, _, ledger in entries)]
    return [
        {
            "device": name,
            "run": run.manifest.kind,
            "samples": str(ledger.samples),
            **{f"{line.removesuffix('_s')} ms": milliseconds(getattr(ledger, line)) for line in used},
            "step ms": milliseconds(ledger.total_s()),
            "busy": percent(100 * ledger.utilisation(), sign=False),
        }
        for name, run, ledger in entries
    ]


def faults_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What failures leave of a long training run, one row per run whose scenario has any; times in hours."""
    return [{"run": run.manifest.label, **_fault_cells(run.summary.faults)} for run in runs if run.summary.faults]


def _fault_cells(faults: Mapping[str, Any]) -> dict[str, str]:
    low, high = faults["interval"]
    every, wall_s = faults["checkpoint_interval_s"], faults["wall_s"]
    return {
        "goodput": f"{percent(100 * faults['share'], sign=False)} ({100 * low:.1f}-{100 * high:.1f})",
        "in theory": percent(100 * faults["expected_share"], sign=False),
        "failures a day": f"{faults['failures_per_day']:.3g}",
        "checkpoint every h": NONE if every is None else f"{every / 3600:.3g}",
        "lost": ", ".join(
            f"{cause.replace('_', ' ')} {percent(100 * lost_s / wall_s, sign=False)}"
            for cause, lost_s in faults["lost_s"].items()
            if lost_s > 0
        )
        or NONE,
    }


def binding_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Of each run what its figures rest on, the fullest device, energy and carbon where known, and what binds."""
    rows = [_binding_cells(run) for run in runs]
    unknown = {name for name in rows[0] if all(row[name] == NONE for row in rows)} if rows else set()
    return [{name: value for name, value in row.items() if name not in unknown} for row in rows]


def _binding_cells(run: Run) -> dict[str, str]:
    summary = run.summary
    peaks = [each.peak_memory_bytes for each in summary.devices.values() if each.peak_memory_bytes is not None]
    energy, carbon = summary.energy_j_per_step, summary.carbon_kg_per_million_samples
    return {
        "run": run.manifest.label,
        "fidelity": fidelity(run),
        "peak GiB": f"{max(peaks) / 2**30:.4g}" if peaks else NONE,
        "J/step": NONE if energy is None else f"{energy:.4g}",
        "kg CO2/M samples": NONE if carbon is None else f"{carbon:.4g}",
        "binds": summary.critical_path,
        "critical path": path_text(summary.binding) if summary.binding else NONE,
    }


def path_text(binding: Mapping[str, Any]) -> str:
    """The main causes on a critical path, each with its share of the step."""
    shares = {cause: 100 * seconds / binding["step_s"] for cause, seconds in binding["by_cause"].items()}
    return ", ".join(f"{share:.0f} % {cause}" for cause, share in list(shares.items())[:MOST_CAUSES] if share >= 1)


def fidelity(run: Run) -> str:
    """How good a prediction can be: its fidelity, and of the seconds of work the share that was guessed."""
    summary = run.summary
    if run.manifest.kind == "measured":
        return summary.fidelity
    return f"{summary.fidelity}, {100 * summary.guessed_share:.0f} % guessed"


def provenance_table(run: Run) -> list[tuple[str, str]]:
    """Name and value of everything that tells how a run came to be, nested tables as dotted names."""
    manifest = run.manifest
    own = {
        "run": manifest.run_id,
        "kind": manifest.kind,
        "fidelity": run.summary.fidelity,
        "plan sha256": manifest.plan_sha256,
        "policy source sha256": manifest.policy.source_sha256,
        "prediction sha256": manifest.prediction_sha256,
        "seed": manifest.seed,
        "model version": manifest.model_version,
        "schema version": manifest.schema_version,
        "launches": run.summary.launches,
        "steps": run.summary.steps,
    }
    return [(name, text[:VALUE_LENGTH]) for name, text in _flat({**own, **manifest.provenance}, "")]


def milliseconds(seconds: float) -> str:
    """A time in ms, to four digits and no further than the microsecond."""
    value = 1e3 * seconds
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3
    return f"{value:.{digits}f}"


def interval(times_s: tuple[float, float]) -> str:
    """Both ends of an interval of time, in ms."""
    return f"{milliseconds(times_s[0])} to {milliseconds(times_s[1])}"


def percent(value: float | None, *, sign: bool = True) -> str:
    """A percentage with one decimal, never minus zero; a dash for None."""
    if value is None:
        return NONE
    rounded = round(value, 1) + 0.0
    return f"{rounded:+.1f} %" if sign and rounded else f"{rounded:.1f} %"


def parameters(values: Mapping[str, Any]) -> str:
    """Hyper-parameters in one line."""
    shown = (f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
    return ", ".join(shown)


def _flat(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif value is not None and value != "":
        yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
