"""validate(): predictions against measurements that others published, next to two baselines, in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from ..results.errors import InputError
from ..sim import sources
from .show import table
from .validation import collectives, steps
from .validation.fit import document
from .validation.scores import Figures, Score

SCHEMA_VERSION = 1
OUTPUT = Path("runs") / "validation.json"


def validate(
    folder: Path, *, seed: int = 0, output: Path | None = OUTPUT, console: Console | None = None
) -> dict[str, Any]:
    """Score the simulator on a folder of published measurements; print one table, write one document.

    What files may be in the folder: training steps (:mod:`.validation.rows`), layer profiles
    (:mod:`steelyard.sim.layer_profiles`) and NCCL all-reduces (:mod:`.validation.collectives`).

    Args:
        folder: of the measurements.
        seed: of the folds.
        output: where the document goes; None: nowhere.
        console: where progress and table go; None: nothing is printed.

    Returns:
        The document: scores with baselines and outliers, the fitted parameters, how many catalog figures are recalled.

    Raises:
        InputError: no such folder, nothing in it to validate on, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "is no folder", "give the folder of the measurements")
    told = (lambda text: console.print(f"[dim]{text}[/dim]")) if console else (lambda _: None)
    cases, world = steps.read_cases(folder)
    scores = steps.validate(cases, world, seed=seed, told=told)
    parameters = document(steps.fitted(cases)) if scores else {}
    scores += collectives.validate(folder)
    if not scores:
        raise InputError(str(folder), "holds no measurements", "it needs CSV files with step times or all-reduces")
    report = _document(folder, seed, scores, parameters)
    if console is not None:
        _print(console, scores, report)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _document(folder: Path, seed: int, scores: Sequence[Score], parameters: Mapping[str, Any]) -> dict[str, Any]:
    recalled, figures = sources.recalled_figures()
    return {
        "schema_version": SCHEMA_VERSION,
        "folder": folder.name,
        "seed": seed,
        "scores": [score.document() for score in scores],
        "parameters": dict(parameters),
        "catalog": {"figures": figures, "recalled": recalled},
    }


def _print(console: Console, scores: Sequence[Score], report: Mapping[str, Any]) -> None:
    console.print(table([row for score in scores for row in _rows(score)], "Errors in percent; rows were held out"))
    for score in scores:
        for note in score.notes:
            console.print(f"{score.data}, {score.split}: {note}")
    catalog = report["catalog"]
    console.print(f"{catalog['recalled']} of {catalog['figures']} figures of the catalog are recalled, not looked up")


def _rows(score: Score) -> list[dict[str, Any]]:
    head = {"data": score.data, "held out": score.split, "rows": score.rows}
    blank = {"data": "", "held out": "", "rows": ""}
    lines = [{**head, **_line("steelyard", score.model)}]
    return lines + [{**blank, **_line(name, found)} for name, found in score.baselines.items()]


def _line(name: str, found: Figures) -> dict[str, Any]:
    values = asdict(found)
    return {"method": name, **{key: None if value is None else round(value, 2) for key, value in values.items()}}
