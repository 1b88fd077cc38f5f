"""One self-contained HTML page about some runs, with its figures and a trace beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from . import plots
from .compare import BASELINE_POLICY, NOISY_PERCENT, Comparison, PlanRow, compare, plan_row
from .errors import InputError
from .page import PAGE, bullets, cards, embedded, section, table
from .record import Run
from .store import write_text
from .tables import (
    MOST_SHARES,
    binding_table,
    facts,
    faults_table,
    fidelity_table,
    headlines,
    ledger_table,
    plan_name,
    plan_table,
    provenance_table,
    shares,
    table_rows,
)
from .trace import side_by_side, write_trace

__all__ = ["headlines", "plan_table", "report"]

DRIFT_TOLD_PERCENT = 2.0


def report(runs: Sequence[Run], folder: Path, *, seed: int = 0) -> Path:
    """Write ``report.html``, ``figures/*.png`` and ``trace.json`` into a folder, and return the path of the page.

    The page stands alone: figures are embedded, nothing is loaded from elsewhere. Of simulated runs alone it shows what
    was predicted.

    Raises:
        InputError: there is no run, or :func:`~steelyard.results.compare.compare` refuses them.
    """
    if not runs:
        raise InputError("runs", "there are none", "give run folders")
    comparison = compare(runs, seed=seed) if any(run.manifest.kind == "measured" for run in runs) else None
    rows = _rows(runs, comparison)
    pictures = _figures(runs, rows, folder / "figures")
    write_trace(runs, folder / "trace.json")
    page = PAGE.substitute(
        title=escape(_title(runs)),
        lead=escape(_lead(rows, comparison)),
        busy=_busy(runs, comparison),
        sections="\n".join(_sections(runs, rows, comparison, pictures)),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _rows(runs: Sequence[Run], comparison: Comparison | None) -> list[PlanRow]:
    """What was compared, then the simulated runs that nobody measured, best prediction first."""
    used = {run.manifest.predicted_run_id for run in runs}
    alone = [plan_row(run) for run in runs if run.manifest.kind == "simulated" and run.manifest.run_id not in used]
    compared = comparison.plans if comparison else []
    return [*compared, *sorted(alone, key=lambda row: (row.predicted.p50_s, row.label))]


def _figures(runs: Sequence[Run], rows: Sequence[PlanRow], folder: Path) -> list[tuple[str, Path]]:
    """Draw and save every figure; caption and path of each, in the order of the page."""
    drawn = []
    if any(row.measured is not None for row in rows):
        caption = "Each point is a plan. On the dashed line the prediction is exact."
        drawn.append((caption, plots.save(plots.scatter(rows), folder / "scatter.png")))
    caption = "Samples per second of each plan. Dashed: a bound by the same model, no noise, free links."
    drawn.append((caption, plots.save(plots.throughput(rows), folder / "throughput.png")))
    for name, row in _shown(rows).items():
        sides = _sides(runs, row)
        about = f"{plan_name(row)}, {shares(row)}"
        timeline = plots.save(plots.timelines(sides, about), folder / f"timeline-{name}.png")
        drawn.append((f"Typical steps of {about}; one time axis.", timeline))
        ledger = plots.save(
            plots.ledger_bars(sides, f"Where the mean step went: {about}"), folder / f"ledger-{name}.png"
        )
        drawn.append((f"The mean step of each device under {about}; the parts sum to the step.", ledger))
    return drawn


def _shown(rows: Sequence[PlanRow]) -> dict[str, PlanRow]:
    """The plans whose steps are drawn: the simulator's pick, and the baseline when it is another."""
    own = [row for row in rows if row.twin_of is None]
    compared = [row for row in own if row.measured is not None] or own
    picked = min(compared, key=lambda row: (row.predicted.p50_s, row.label))
    baseline = next((row for row in compared if row.policy == BASELINE_POLICY and row is not picked), None)
    return {"pick": picked} if baseline is None else {"pick": picked, BASELINE_POLICY: baseline}


def _sides(runs: Sequence[Run], row: PlanRow) -> list[Run]:
    """The simulated and (where there is one) the measured run of a row."""
    labelled = [run for run in runs if run.manifest.label == row.label and run.manifest.twin_of is None]
    measured = next((run for run in labelled if run.manifest.kind == "measured"), None)
    if measured is None:
        return [next(run for run in labelled if run.manifest.plan_sha256 == row.plan_sha256)]
    wanted = measured.manifest.predicted_run_id
    simulated = [run for run in runs if run.manifest.kind == "simulated"]
    return [next(run for run in simulated if run.manifest.run_id == wanted), measured]


def _title(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(str(run.manifest.scenario.get("name", "")) for run in runs)
    return f"Steelyard: {', '.join(name for name in names if name) or 'runs'}"


def _lead(rows: Sequence[PlanRow], comparison: Comparison | None) -> str:
    if comparison is None:
        fidelity = ", ".join(sorted({row.fidelity for row in rows}))
        return f"{len(rows)} simulated plans, predictions at {fidelity} fidelity. Nothing was measured."
    plans = sum(row.twin_of is None for row in comparison.plans)
    return (
        f"{plans} plans predicted at {comparison.fidelity} fidelity, then measured in {comparison.launches} launches."
    )


def _busy(runs: Sequence[Run], comparison: Comparison | None) -> str:
    """The mark of a busy or noisy host, in plain sight."""
    if comparison is None or not comparison.busy:
        return ""
    told = []
    busy = [run for run in runs if run.manifest.kind == "measured" and _contention(run).get("busy")]
    if busy:
        shares = [_number(_contention(run).get("contended_percent")) for run in busy]
        told = [f"{min(shares):.0f} to {max(shares):.0f} % of a plan's compute segments were disturbed, after retries"]
        told += _drifts(busy)
    if comparison.noise_floor_percent is not None and comparison.noise_floor_percent > NOISY_PERCENT:
        told.append(f"one plan, measured twice, differed from itself by {comparison.noise_floor_percent:.1f} %")
    text = "; ".join(told) + ". Read the errors with that in mind."
    return f'<p class="busy" role="alert"><strong>The host was busy:</strong> {escape(text)}</p>'


def _sections(
    runs: Sequence[Run], rows: Sequence[PlanRow], comparison: Comparison | None, pictures: Sequence[tuple[str, Path]]
) -> list[str]:
    sections = []
    if comparison is not None:
        sections.append(section("How good the prediction was", cards(facts(comparison))))
    order = " + ".join(rows[0].plan) if len(rows[0].plan) <= MOST_SHARES else f"{len(rows[0].plan)} devices"
    plans = table(table_rows(rows), f"Step time per plan, {_fidelities(rows)} predictions; samples on {order}")
    remarks = bullets(_remarks(runs))
    if by_fidelity := fidelity_table(rows):
        plans += table(by_fidelity, "The same plans at each fidelity")
    sections.append(section("Plans", plans, remarks, *(embedded(*each) for each in pictures)))
    ledgers = [table(ledger_table(_sides(runs, row)), f"{plan_name(row)}, mean step") for row in _shown(rows).values()]
    sections.append(section("Where the time went", *ledgers))
    simulated = [run for run in runs if run.manifest.kind == "simulated"]
    sections.append(section("What binds", table(binding_table(simulated), "Of each prediction, what sets its pace")))
    faults = faults_table(simulated)
    if faults:
        sections.append(section("What failures leave", table(faults, "Goodput: useful time over wall time")))
    sections.append(section("What is not validated", bullets(_limits(runs, rows, comparison))))
    sections.append(section("Provenance", *(_origin(run) for run in side_by_side(runs))))
    return sections


def _remarks(runs: Sequence[Run]) -> list[str]:
    """What the makers of the runs noted: plans that are the same, overrides, a device that was left out."""
    return list(dict.fromkeys(note for run in runs for note in run.manifest.notes))


def _limits(runs: Sequence[Run], rows: Sequence[PlanRow], comparison: Comparison | None) -> list[str]:
    """What a reader must not conclude from this page."""
    measured = [run for run in runs if run.manifest.kind == "measured"]
    unsealed = sum(run.manifest.prediction_sha256 is None for run in measured)
    limits = [
        f"Predictions are of {_fidelities(rows)} fidelity; they hold for these devices and this workload.",
        "Energy, cost and memory are modelled; only times were measured."
        if comparison
        else "Nothing here was measured: times are predictions, without a check on real devices.",
        "Only data-parallel plans on the devices of one host can be measured; what else is shown is simulated alone.",
    ]
    if unsealed:
        limits.append(f"{unsealed} measured runs name no hash of a prediction that was written before them.")
    remarks = _remarks(runs)
    return limits + [note for note in (comparison.notes if comparison else []) if note not in remarks]


def _fidelities(rows: Sequence[PlanRow]) -> str:
    return ", ".join(sorted({row.fidelity for row in rows}))


def _origin(run: Run) -> str:
    rows = [{"name": name, "value": value} for name, value in provenance_table(run)]
    title = f"{run.manifest.kind}: {run.manifest.label}"
    return f"<details><summary>{escape(title)}</summary>{table(rows, 'Inputs and circumstances')}</details>"


def _contention(run: Run) -> Mapping[str, object]:
    found = run.manifest.provenance.get("contention")
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _drifts(runs: Sequence[Run]) -> list[str]:
    """Per device, how far its speed was from its table, where that is more than the noise of a good host."""
    seen: dict[str, float] = {}
    for run in runs:
        drift = _contention(run).get("drift_percent")
        for device, value in drift.items() if isinstance(drift, Mapping) else ():
            seen[str(device)] = max(_number(value), seen.get(str(device), 0.0), key=abs)
    return [
        f"{device} ran {abs(value):.0f} % {'slower' if value > 0 else 'faster'} than its table says"
        for device, value in seen.items()
        if abs(value) >= DRIFT_TOLD_PERCENT
    ]
