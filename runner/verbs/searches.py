"""Searches: the policy and parameters that win in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...results.errors import InputError
from .inputs import load, split
from .options import RUNS, Force, Json, RunsFolder, Seed, Settings
from .output import emit, tabulate, terminal


def search(
    scenario: Annotated[
        list[str], typer.Argument(help="Scenario files, or names of shipped ones.", metavar="SCENARIO...")
    ],
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            "-p",
            help="Names only (or module:Class): the search sets the parameters. Repeatable; commas too. Default: "
            "those that the scenario names, without their settings.",
        ),
    ] = [],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of a resumed study included.")] = 200,
    settings: Settings = [],
    seed: Seed = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL, or a journal file.")] = None,
    sampler: Annotated[
        str, typer.Option(help="Optuna sampler: tpe, random, nsgaii, nsgaiii, qmc, cmaes or gp; or grid: all settings.")
    ] = "tpe",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that evaluate trials.")] = None,
    objective: Annotated[
        str, typer.Option(help="Objectives, comma-separated: several give a Pareto front. Default: the scenario's.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Simulate the noise of so many seeds.")] = 1,
    robust: Annotated[str | None, typer.Option(help="Over scenarios and seeds: mean (the default) or worst.")] = None,
    pruner: Annotated[
        str, typer.Option(help="Give up hopeless trials: bound, median, percentile, halving or hyperband.")
    ] = "none",
    limit: Annotated[
        list[str],
        typer.Option(
            help="Who counts: objective=value, the most (of throughput and memory_headroom the least). Repeatable."
        ),
    ] = [],
    importance: Annotated[str, typer.Option(help="Of parameters: ped-anova, fanova or mdi.")] = "ped-anova",
    figures: Annotated[bool, typer.Option("--figures", help="Draw figures, in a folder beside the study.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The winner as a policy file: best.toml, or front.toml.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Look for the policy and parameters that win in simulation; writes best.toml, or the Pareto front."""
    from ...policies.search import search as find
    from ...policies.search_importance import check_evaluator
    from ...policies.search_importance import importances as weigh
    from ..searching import document, headline, importance_table, study_file, table, write_figures, write_winners
    from ..show import progress

    check_evaluator(importance)  # before anything is searched
    names = _bare(split(policy)) or None
    loaded = [load(each, settings, runs, force)[0] for each in scenario]
    arguments: dict[str, Any] = {
        "seed": seed,
        "sampler": sampler,
        "objectives": split([objective]),
        "seeds": seeds,
        "robust": robust,
        "pruner": pruner,
        "limits": dict(map(_limit, split(limit))),
    }
    place = storage or str(runs / "studies" / study_file(loaded, names, arguments))
    with progress(terminal(), "searching") as tick:
        result = find(loaded, policies=names, trials=trials, storage=place, workers=workers, progress=tick, **arguments)
    files, shares = write_winners(result, out), weigh(result, importance)
    drawn = write_figures(result, shares, place, files[0]) if figures else []
    rows = table(result)
    emit(document(result, shares, [*files, *drawn], rows), as_json, rows, headline(result, files[0]))
    if shares:
        tabulate(as_json, importance_table(shares), "importance of parameters")


def _limit(text: str) -> tuple[str, float]:
    """A limit from the command line."""
    metric, equals, value = text.partition("=")
    try:
        return metric.strip(), float(value if equals else "")
    except ValueError:
        raise InputError("--limit", f"{text!r} is not objective=number", "for instance energy=2e9") from None


def _bare(names: list[str]) -> list[str]:
    """The names, if they are names alone."""
    for name in names:
        if name.endswith(".toml"):
            raise InputError("--policy", f"{name!r} is a policy with its parameters set", "give the policy's name")
        if "=" in name:
            bare = ":".join(part for part in name.partition("(")[0].split(":") if "=" not in part)
            raise InputError("--policy", f"{name!r} sets parameters, which a search does", f"give {bare}")
    return names
