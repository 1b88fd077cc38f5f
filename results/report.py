"""One self-contained HTML page about some runs, with its figures and a trace beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from . import plots
from .compare import BASELINE_POLICY, NOISY_PERCENT, Comparison, PlanRow, compare, plan_row
from .errors import InputError
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

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 2px solid #1a1a1a; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem;
  padding: 0; margin: 1rem 0; }
.facts div { border: 1px solid #999; border-radius: 4px; padding: .6rem .8rem; break-inside: avoid; }
.facts dt { font-size: .9rem; color: #333; }
.facts dd { margin: 0; }
.facts dd.value { font-size: 1.5rem; font-weight: 600; }
.facts dd.meaning { font-size: .82rem; color: #444; line-height: 1.35; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ccc; vertical-align: top; }
th { border-bottom: 2px solid #666; }
th.text, td.text { text-align: left; }
td.text { overflow-wrap: anywhere; }
td.number { white-space: nowrap; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #333; }
.busy { border: 3px solid #b30000; padding: .6rem 1rem; margin: 1rem 0; }
.busy strong { color: #b30000; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; } tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$lead</p>
$busy
$sections
</main>
</body>
</html>
""")

DRIFT_TOLD_PERCENT = 2.0
TEXT_COLUMNS = {"policy", "parameters", "samples", "device", "run", "name", "value", "lost", "binds", "critical path"}


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
        sections.append(_section("How good the prediction was", _facts(facts(comparison))))
    order = " + ".join(rows[0].plan) if len(rows[0].plan) <= MOST_SHARES else f"{len(rows[0].plan)} devices"
    plans = _table(table_rows(rows), f"Step time per plan, {_fidelities(rows)} predictions; samples on {order}")
    remarks = _bullets(_remarks(runs))
    if by_fidelity := fidelity_table(rows):
        plans += _table(by_fidelity, "The same plans at each fidelity")
    sections.append(_section("Plans", plans, remarks, *(_picture(*picture) for picture in pictures)))
    ledgers = [_table(ledger_table(_sides(runs, row)), f"{plan_name(row)}, mean step") for row in _shown(rows).values()]
    sections.append(_section("Where the time went", *ledgers))
    simulated = [run for run in runs if run.manifest.kind == "simulated"]
    sections.append(_section("What binds", _table(binding_table(simulated), "Of each prediction, what sets its pace")))
    faults = faults_table(simulated)
    if faults:
        sections.append(_section("What failures leave", _table(faults, "Goodput: useful time over wall time")))
    sections.append(_section("What is not validated", _bullets(_limits(runs, rows, comparison))))
    sections.append(_section("Provenance", *(_origin(run) for run in side_by_side(runs))))
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


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def _facts(entries: Sequence[tuple[str, str, str]]) -> str:
    cards = (
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="meaning">{escape(text)}</dd></div>'
        for name, value, text in entries
    )
    return '<dl class="facts">' + "\n".join(cards) + "</dl>"


def _table(rows: Sequence[Mapping[str, str]], caption: str) -> str:
    titles = list(rows[0])
    head = "".join(f'<th scope="col" class="{_kind(title)}">{escape(title)}</th>' for title in titles)
    lines = (
        "<tr>" + "".join(f'<td class="{_kind(title)}">{escape(row[title])}</td>' for title in titles) + "</tr>"
        for row in rows
    )
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _kind(title: str) -> str:
    return "text" if title in TEXT_COLUMNS else "number"


def _picture(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _bullets(items: Sequence[str]) -> str:
    if not items:
        return ""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in dict.fromkeys(items)) + "</ul>"


def _origin(run: Run) -> str:
    rows = [{"name": name, "value": value} for name, value in provenance_table(run)]
    title = f"{run.manifest.kind}: {run.manifest.label}"
    return f"<details><summary>{escape(title)}</summary>{_table(rows, 'Inputs and circumstances')}</details>"


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
