"""What the verb ``search`` does beside calling search(): the study's file, figures, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError

if TYPE_CHECKING:
    from ..policies.search import SearchResult, TrialRow
    from ..sim.spec import Scenario

SHOWN = 10
GAP = "gap to bound %"


def study_file(scenarios: Sequence[Scenario], names: list[str] | None, arguments: dict[str, Any]) -> str:
    """The journal of a search: another scenario, policy, source of one, seed or setting is another search."""
    from ..policies.search import identity
    from ..results.record import digest
    from ..results.store import slug

    name = slug(scenarios[0].name) if len(scenarios) == 1 else f"{slug(scenarios[0].name)}-and-{len(scenarios) - 1}"
    return f"{name}-{digest(identity(scenarios, names, **arguments))[:12]}.journal"


def write_winners(result: SearchResult, out: Path | None) -> list[Path]:
    """The winner as a policy file; of several objectives the front, and each point of it as one."""
    from ..policies.search import write_best, write_front

    if len(result.objectives) > 1:
        return write_front(result, out or Path("front.toml"))
    return [write_best(result, out or Path("best.toml"))]


def write_figures(result: SearchResult, importances: dict[str, float], storage: str, out: Path) -> list[Path]:
    """The figures of a search, in a folder beside its study file; beside ``out`` where the study is in a database."""
    from ..results.search_plots import write

    file = Path(storage)
    folder = out.with_suffix("") if "://" in storage else file.with_suffix("")
    if folder.is_file():
        raise InputError("--figures", f"{folder} is a file", "give the study or --out a name that ends in .journal")
    return write(_findings(result, importances), folder)


def _findings(result: SearchResult, importances: dict[str, float]) -> Any:
    from ..policies.search_goal import LESS_IS_BETTER
    from ..results.search_plots import Findings, Point

    points = [
        Point(row.number, row.policy, row.parameters, tuple(result.figures(row).values()), row.counts)
        for row in result.trials
        if row.value is not None
    ]
    return Findings(
        title=" and ".join(result.scenarios),
        points=points,
        axes=[f"{metric}, {result.unit(metric)}" for metric in result.objectives],
        less=[metric in LESS_IS_BETTER and not result.robust for metric in result.objectives],
        front=[row.number for row in result.front],
        importances=importances,
    )


def document(
    result: SearchResult, importances: dict[str, float], files: Sequence[Path], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What ``--json`` prints; the rows are those of :func:`table`, which begin with the front."""
    gaps = [row[GAP] for row in rows]
    return {
        "best": {
            "policy": result.name,
            "parameters": result.parameters,
            "value": result.value,
            "gap_to_bound_percent": gaps[0],
        },
        "objectives": {metric: result.unit(metric) for metric in result.objectives},
        "front": [
            {**_row(result, row), "gap_to_bound_percent": gap} for row, gap in zip(result.front, gaps, strict=False)
        ],
        "importances": importances,
        "robust": result.robust,
        "scenarios": list(result.scenarios),
        "seeds": result.seeds,
        "pruned": sum(row.state == "pruned" for row in result.trials),
        "trials": [asdict(trial) for trial in result.trials],
        "search_trials": len(result.trials),
        "search_trials_per_s": result.trials_per_s,
        "storage": result.storage,
        "file": str(files[0]),
        "files": [str(file) for file in files],
    }


def table(result: SearchResult) -> list[dict[str, Any]]:
    """The front of several objectives; of one, the best trials and their values; each with its gap to the bound."""
    from ..policies.search import ranked
    from ..policies.search_bound import gaps_percent

    keys = ("number", "policy", "parameters", "value")
    if len(result.objectives) > 1:
        rows = list(result.front)
        shown = [_row(result, row) for row in rows]
    else:
        rows = ranked(result.trials)[:SHOWN]
        shown = [{key: getattr(row, key) for key in keys} for row in rows]
    assert result.goal is not None, "search() says what it was about"
    return [{**each, GAP: gap} for each, gap in zip(shown, gaps_percent(result.goal, rows), strict=True)]


def importance_table(importances: dict[str, float]) -> list[dict[str, Any]]:
    """The most important parameters."""
    return [{"parameter": name, "importance": share} for name, share in list(importances.items())[:SHOWN]]


def headline(result: SearchResult, file: Path) -> str:
    """One line: how many trials, how fast, and where the winner is."""
    pruned = sum(row.state == "pruned" for row in result.trials)
    gave_up = f" ({pruned} given up early)" if pruned else ""
    what = f"; a front of {len(result.front)}" if len(result.objectives) > 1 else ""
    return f"{len(result.trials)} trials{gave_up}, {result.trials_per_s:.0f} per second{what}; wrote {file}"


def _row(result: SearchResult, row: TrialRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "policy": row.policy,
        "parameters": row.parameters,
        **result.figures(row),
    }
