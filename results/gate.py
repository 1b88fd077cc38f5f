"""The regression gate: simulated figures must repeat exactly, measured ones must not be significantly slower."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from .compare import compare
from .errors import InputError
from .groups import roles
from .metrics import median, stream
from .record import SCHEMA_VERSION, DeviceLedger, Quantiles, Record, Run
from .store import check_version, code_provenance, read_json, to_json, write_text

EXACT = 1e-9
"""Relative difference of a simulated figure that library versions may explain."""
NOTHING_S = 1e-12
"""Idle and wait are what sums leave over: below this they are zero."""
EFFECT_PERCENT = 5.0
"""A measured slow-down below this is no regression, however significant."""
SIGNIFICANCE = 0.95
RESAMPLES = 2000
FEW = 16
"""Devices whose ledgers are recorded one by one."""
PASSED, FAILED, INCONCLUSIVE = 0, 3, 4
HIGHER_IS_BETTER = {"throughput_samples_per_s", "tokens_per_s", "mfu", "goodput"}
HARDWARE = ("cpu", "architecture", "cores", "memory_gib", "system", "gpus")
"""What must be equal of the host: library versions may differ, their effect is what a gate is for."""
FIGURES = (
    "throughput_samples_per_s",
    "tokens_per_s",
    "mfu",
    "goodput",
    "guessed_share",
    "energy_j_per_step",
    "carbon_kg_per_million_samples",
    "cost_usd_per_million_samples",
    "lower_bound_step_time_s",
    "gap_to_bound",
)

Verdict = Literal["same", "better", "worse", "changed", "inconclusive"]


class Check(Record):
    """One figure of one run against the baseline."""

    run: str
    metric: str
    baseline: float | None = None
    now: float | None = None
    change_percent: float | None = None
    verdict: Verdict
    failed: bool = False
    reason: str = ""


class Entry(Record):
    """What the baseline keeps of a run."""

    plan_sha256: str
    figures: dict[str, float] = Field(default_factory=dict)
    """Simulated runs: every figure that must repeat."""
    launch_median_step_time_s: list[float] = Field(default_factory=list)
    """Measured runs: the median step of each launch."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """Measured runs: the host and devices they belong to."""


class Baseline(Record):
    """The file that a gate compares with."""

    schema_version: int = SCHEMA_VERSION
    code: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    runs: dict[str, Entry]


class GateResult(Record):
    """The verdict: exit code 0 passed, 3 failed, 4 inconclusive, and each check behind it."""

    exit_code: int
    verdict: Literal["passed", "failed", "inconclusive", "updated"]
    checks: list[Check] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def gate(
    runs: Sequence[Run],
    baseline: Path,
    *,
    update: bool = False,
    tolerance_percent: float | None = None,
    effect_percent: float = EFFECT_PERCENT,
    seed: int = 0,
) -> GateResult:
    """Hold runs against a baseline file.

    A simulated figure must repeat (relative 1e-9): a change for the better fails too, until the baseline is updated. A
    measured run fails when it is slower by at least ``effect_percent`` and the 95 % bootstrap interval of the change
    (over launches) excludes none. What cannot be judged (no baseline, another machine, a busy host) is inconclusive.

    Args:
        runs: simulated and measured runs.
        baseline: JSON file.
        update: write the baseline from these runs in place of judging them.
        tolerance_percent: with measured runs and their predictions, the mean absolute error above which the gate fails.
        effect_percent: least slow-down of a measured run that counts.
        seed: of the bootstrap.

    Raises:
        InputError: no run, two runs of one name, or the baseline file is damaged.
    """
    named = _named(runs)
    if update:
        write_text(baseline, to_json(_baseline(named).model_dump(mode="json")))
        return GateResult(exit_code=PASSED, verdict="updated", notes=[f"{baseline} holds {len(named)} runs"])
    checks = [] if tolerance_percent is None else [_accuracy(runs, tolerance_percent, seed)]
    notes = []
    if baseline.exists():
        known = read_baseline(baseline)
        for name, run in named.items():
            checks.extend(_checks(name, run, known.runs.get(name), effect_percent, seed))
        notes += [f"{name} is in the baseline and not among the runs" for name in known.runs if name not in named]
    else:
        checks.append(
            Check(run="all", metric="baseline", verdict="inconclusive", reason=f"there is no file {baseline}")
        )
    return _verdict(checks, notes)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        InputError: not JSON, another major version, or a field that does not fit.
    """
    data = read_json(path)
    check_version(data, path)
    try:
        return Baseline.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}", first["msg"], "write it again with --update-baseline") from error


def figures(run: Run) -> dict[str, float]:
    """The figures of a simulated run that must repeat: step times, rates, costs, and every device's ledger.

    In a large cluster, the mean ledger of the devices of a kind that have the same layers and as many samples.
    """
    summary = run.summary
    times = summary.step_time_s
    found: dict[str, float | None] = {f"step_time_s.{name}": getattr(times, name) for name in Quantiles.model_fields}
    found["median_interval_s.low"], found["median_interval_s.high"] = summary.median_interval_s
    found |= {name: getattr(summary, name) for name in FIGURES}
    ledgers = summary.devices
    if len(ledgers) > FEW:
        ledgers = {group.label: group.ledger(run) for group in roles(run)}
    for device, ledger in ledgers.items():
        found |= {f"devices.{device}.{line}": getattr(ledger, line) for line in DeviceLedger.model_fields}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the name that finds them again: kind, scenario, label, and the seed of a simulated one."""
    if not runs:
        raise InputError("runs", "there are none", "give run folders")
    named: dict[str, Run] = {}
    for run in runs:
        manifest = run.manifest
        seed = f" seed {manifest.seed}" if manifest.kind == "simulated" else ""
        name = f"{manifest.kind} {manifest.scenario.get('name', '')}: {manifest.label}{seed}"
        if name in named:
            raise InputError("runs", f"two are named {name!r}", "gate one study at a time")
        named[name] = run
    return named


def _baseline(named: dict[str, Run]) -> Baseline:
    return Baseline(
        code=code_provenance(),
        machine={"system": platform.system(), "processor": platform.machine(), "python": platform.python_version()},
        runs={name: _entry(run) for name, run in named.items()},
    )


def _entry(run: Run) -> Entry:
    if run.manifest.kind == "simulated":
        return Entry(plan_sha256=run.manifest.plan_sha256, figures=figures(run))
    medians = run.summary.launch_median_step_time_s
    return Entry(plan_sha256=run.manifest.plan_sha256, launch_median_step_time_s=medians, machine=_machine(run))


def _machine(run: Run) -> dict[str, Any]:
    """The hardware that a measured time belongs to."""
    host = run.manifest.provenance.get("host")
    known = host if isinstance(host, dict) else {}
    return {**{name: known[name] for name in HARDWARE if name in known}, "devices": sorted(run.summary.devices)}


def _checks(name: str, run: Run, entry: Entry | None, effect_percent: float, seed: int) -> Iterator[Check]:
    if entry is None:
        reason = "is not in the baseline; --update-baseline takes it in"
        yield Check(run=name, metric="baseline", verdict="inconclusive", reason=reason)
    elif run.manifest.kind == "simulated":
        yield from _exact(name, run, entry)
    else:
        yield _measured(name, run, entry, effect_percent, seed)


def _exact(name: str, run: Run, entry: Entry) -> Iterator[Check]:
    """One check per figure that differs; a single one that says so when none does."""
    same = True
    if run.manifest.plan_sha256 != entry.plan_sha256:
        same = False
        yield Check(
            run=name, metric="plan", verdict="changed", failed=True, reason="the plan changed, update the baseline"
        )
    now = figures(run)
    for metric in sorted(now.keys() | entry.figures.keys()):
        before, after = entry.figures.get(metric), now.get(metric)
        if before is None or after is None or not math.isclose(before, after, rel_tol=EXACT, abs_tol=NOTHING_S):
            same = False
            yield _changed(name, metric, before, after)
    if same:
        throughput = run.summary.throughput_samples_per_s
        yield Check(
            run=name, metric="all figures", now=throughput, baseline=throughput, change_percent=0.0, verdict="same"
        )


def _changed(name: str, metric: str, before: float | None, after: float | None) -> Check:
    change = 100 * (after / before - 1) if before and after is not None else None
    verdict: Verdict = "changed"
    if change is not None and not metric.startswith("devices."):
        verdict = "better" if (change > 0) == (metric in HIGHER_IS_BETTER) else "worse"
    reason = "changed, update the baseline if that is meant" if verdict != "worse" else "regression"
    return Check(
        run=name,
        metric=metric,
        baseline=before,
        now=after,
        change_percent=change,
        verdict=verdict,
        failed=True,
        reason=reason,
    )


def _measured(name: str, run: Run, entry: Entry, effect_percent: float, seed: int) -> Check:
    before, now = entry.launch_median_step_time_s, run.summary.launch_median_step_time_s
    check = Check(run=name, metric="median step time", verdict="inconclusive")
    if entry.machine != _machine(run):
        return check.model_copy(update={"reason": "the baseline was measured on another machine, or does not say"})
    if entry.plan_sha256 != run.manifest.plan_sha256:
        return check.model_copy(update={"reason": "the baseline has another plan under this name"})
    if min(len(before), len(now)) < 2 or min([*before, *now]) <= 0:
        return check.model_copy(update={"reason": "it takes two launches on both sides"})
    change = 100 * (median([now]) / median([before]) - 1)
    low, high = change_interval_percent(before, now, seed)
    update: dict[str, Any] = {"baseline": median([before]), "now": median([now]), "change_percent": change}
    update["reason"] = f"95 % interval of the change {low:+.1f} to {high:+.1f} %"
    if low > 0 and change >= effect_percent:
        busy = _busy(run)
        update |= {"verdict": "inconclusive" if busy else "worse", "failed": not busy}
        update["reason"] += "; the host was busy" if busy else ""
    else:
        update["verdict"] = "better" if high < 0 and change <= -effect_percent else "same"
    return check.model_copy(update=update)


def change_interval_percent(before: Sequence[float], now: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the change of the median, in percent, both sides resampled by launch."""
    import numpy as np

    random = stream(seed, "gate")
    old = np.median(random.choice(np.asarray(before), size=(RESAMPLES, len(before))), axis=1)
    new = np.median(random.choice(np.asarray(now), size=(RESAMPLES, len(now))), axis=1)
    low, high = np.quantile(100 * (new / old - 1), [(1 - SIGNIFICANCE) / 2, (1 + SIGNIFICANCE) / 2])
    return float(low), float(high)


def _accuracy(runs: Sequence[Run], tolerance_percent: float, seed: int) -> Check:
    """The prediction error against the tolerance; inconclusive when nothing was measured, or over it on a busy host."""
    check = Check(run="all", metric="mape_percent", verdict="inconclusive", reason="nothing was measured")
    if not any(run.manifest.kind == "measured" for run in runs):
        return check
    comparison = compare(runs, seed=seed)
    update: dict[str, Any] = {"now": comparison.mape_percent, "reason": f"tolerance {tolerance_percent:g} %"}
    if comparison.mape_percent <= tolerance_percent:
        update["verdict"] = "same"
    elif comparison.busy:
        update["reason"] += "; the host was busy"
    else:
        update |= {"verdict": "worse", "failed": True}
    return check.model_copy(update=update)


def _busy(run: Run) -> bool:
    contention = run.manifest.provenance.get("contention")
    return isinstance(contention, dict) and bool(contention.get("busy"))


def _verdict(checks: list[Check], notes: list[str]) -> GateResult:
    """Failed if any check failed; else inconclusive if any could not be judged; else passed."""
    if any(check.failed for check in checks):
        return GateResult(exit_code=FAILED, verdict="failed", checks=checks, notes=notes)
    if any(check.verdict == "inconclusive" for check in checks):
        return GateResult(exit_code=INCONCLUSIVE, verdict="inconclusive", checks=checks, notes=notes)
    return GateResult(exit_code=PASSED, verdict="passed", checks=checks, notes=notes)
