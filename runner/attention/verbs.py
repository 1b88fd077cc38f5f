"""The verbs of ``steelyard attention``: train the weights, tune the parameters, and score both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...results.errors import InputError
from ..verbs.options import Json, OutFile
from ..verbs.output import give, tabulate

if TYPE_CHECKING:
    from .tuning import Work

attention = typer.Typer(no_args_is_help=True, help="Train, tune and score the attention policies.")

Seed = Annotated[int, typer.Option(min=0, help="Of the clusters.")]


@attention.command()
def train(
    seed: Seed = 0,
    worlds: Annotated[int, typer.Option(min=8, help="Training clusters.")] = 160,
    steps: Annotated[int, typer.Option(min=1, help="Of gradient descent.")] = 300,
    out: OutFile = None,
) -> None:
    """Train the weights of attention-trained on random clusters (needs torch)."""
    from .training import train as fit

    found = fit(seed=seed, worlds=worlds, steps=steps, report=lambda line: typer.echo(line, err=True))
    give(found.document, out)


@attention.command()
def tune(
    seed: Seed = 0,
    worlds: Annotated[int, typer.Option(min=4, help="Training clusters.")] = 60,
    trials: Annotated[int, typer.Option(min=1, help="Per policy.")] = 120,
    layers: Annotated[bool, typer.Option("--layers", help="Of attention-layers, not of those that split.")] = False,
    operators: Annotated[bool, typer.Option("--operators", help="Of attention-operators, on random graphs.")] = False,
    out: OutFile = None,
) -> None:
    """Look for the best parameters of the policies that have no weights on random clusters, with Optuna."""
    from .tuning import tune as look

    if layers and operators:
        raise InputError("--layers", "and --operators exclude each other", "tune one, then the other")
    work: Work = "layers" if layers else "operators" if operators else "split"
    give(look(seed=seed, worlds=worlds, trials=trials, work=work), out)


@attention.command()
def score(
    seed: Seed = 7,
    each: Annotated[int, typer.Option(min=0, help="Clusters of each family; 0: none.")] = 8,
    layers_each: Annotated[int, typer.Option(min=0, help="The same, to place layers on; 0: none.")] = 13,
    operators_each: Annotated[int, typer.Option(min=0, help="The same, to place operators on; 0: none.")] = 13,
    as_json: Json = False,
    out: OutFile = None,
) -> None:
    """Compare attention with the exact split, cut and placement, on clusters and graphs that it has not seen."""
    from .scoring import score as judge

    if not (each or layers_each or operators_each):
        raise InputError("--each", "and the others are 0: there is nothing to score", "give one of them at least 1")
    document = judge(seed=seed, each=each, layers_each=layers_each, operators_each=operators_each)
    operators = document.get("operators", {})
    for found, what in (
        (document, "clusters"),
        (document.get("layers"), "clusters to place layers on"),
        (operators.get("small"), "small graphs of operators"),
        (operators.get("large"), "large graphs of operators"),
    ):
        if found is None or "rows" not in found:
            continue
        tabulate(as_json, [_row(row) for row in found["rows"]], f"{found['scenarios']} {what}")
        for family in found["families"]:
            rows = [_row({"policy": label, **each_}) for label, each_ in family["policies"].items()]
            tabulate(as_json, rows, f"{family['family']}: {family['summary']}" + (", trained" * family["trained"]))
    if as_json or out is not None:
        give(document, out)


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Shares in percent."""
    percent = {f"{key} %": f"{100 * found[key]:.1f}" for key in ("median", "p10", "worst", "at_optimum")}
    extra: dict[str, Any] = {"decision ms": found["decision_ms"]} if "decision_ms" in found else {}
    if "gap_median" in found:
        gap = found["gap_median"]
        extra["gap to bound %"] = None if gap is None else f"{100 * gap:.1f}"
    return {"policy": found["policy"], **percent, **extra}
