"""Verdicts on runs and on the simulator: compare, history, report, gate, validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .inputs import read_runs
from .options import RUNS, Json, RunArguments, RunsFolder
from .output import DONE, INCONCLUSIVE, emit, fail, remark, tabulate, terminal


def compare(run: RunArguments, as_json: Json = False) -> int:
    """Hold measured runs against the predictions that were made of them: exit code 4 where none was measured."""
    runs = read_runs(run)
    if all(each.manifest.kind != "measured" for each in runs):
        return fail("inconclusive: none of the runs was measured (`steelyard replay` measures)", INCONCLUSIVE)
    compared(runs, as_json, None)
    return DONE


def compared(runs: list[Any], as_json: bool, folder: Path | None) -> None:
    """Print what a comparison of runs comes to, and write it into their folder, if there is one for it."""
    from ...results.compare import compare as hold
    from ...results.report import headlines, plan_table
    from ...results.store import to_json, write_text
    from ...results.tables import fidelity_table

    comparison = hold(runs)
    document = comparison.model_dump(mode="json")
    if folder is not None:
        write_text(folder / "comparison.json", to_json(document))
        document["folder"] = str(folder)
    emit(document, as_json, plan_table(comparison), str(folder or comparison.scenario))
    if by_fidelity := fidelity_table(comparison.plans):
        tabulate(as_json, by_fidelity, "at each fidelity")
    remark(as_json, headlines(comparison))


def history(
    runs: RunsFolder = RUNS,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to draw; beside the history by default.")] = None,
    as_json: Json = False,
) -> None:
    """Show and draw the error of every replay's predictions, oldest first."""
    from ...results.history import FILE, history_rows, read
    from ...results.history_plots import history_figure
    from ...results.plots import save

    entries = read(runs / FILE)
    path = save(history_figure(entries), out or (runs / FILE).with_suffix(".png"))
    document = {"history": [entry.model_dump(mode="json") for entry in entries], "figure": str(path)}
    emit(document, as_json, history_rows(entries), f"{path}")


def report(
    run: RunArguments,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for report.html, figures and trace.")] = None,
    as_json: Json = False,
) -> None:
    """Write report.html (one file, works offline), the figures as PNG and a Perfetto trace."""
    from ...results.report import report as write

    target = out or run[0]
    path = write(read_runs(run), target)
    emit({"report": str(path)}, as_json, [{"report": str(path)}], "wrote")


def gate(
    run: RunArguments,
    baseline: Annotated[Path, typer.Option(help="Baseline file (JSON).")],
    update: Annotated[bool, typer.Option("--update-baseline", help="Write the baseline from these runs.")] = False,
    tolerance: Annotated[float | None, typer.Option(help="Largest prediction error that passes, in percent.")] = None,
    as_json: Json = False,
) -> int:
    """Compare runs with a baseline: exit code 0 (as before), 3 (regression), 4 (inconclusive)."""
    from ...results.gate import gate as judge

    result = judge(read_runs(run), baseline, update=update, tolerance_percent=tolerance)
    shown = [
        {
            "run": check.run,
            "metric": check.metric,
            "change %": check.change_percent,
            "verdict": check.verdict,
            "why": check.reason,
        }
        for check in result.checks
    ]
    emit(result.model_dump(mode="json"), as_json, shown, f"gate: {result.verdict}")
    remark(as_json, result.notes)
    return result.exit_code


def validate(
    data: Annotated[Path, typer.Argument(help="Folder of published measurements (CSV, JSON).")],
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Score the simulator on measurements that others published, next to two baselines; writes validation.json."""
    from ..validate import validate as score

    report = score(data, seed=seed, output=runs / "validation.json", console=terminal(stdout=not as_json))
    if as_json:
        emit(report, True, [], "")
