"""The verb of ``steelyard adaptive``: score the policies that change their plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

adaptive = typer.Typer(no_args_is_help=True, help="Score the policies that change their plan while a run goes on.")


@adaptive.callback()
def group() -> None:
    """Keeps the verb's name: with a single command typer would drop it."""


@adaptive.command()
def score(
    seed: Annotated[int, typer.Option(min=0, help="Of the runs.")] = 11,
    each: Annotated[int, typer.Option(min=1, help="Runs of each family.")] = 5,
    development: Annotated[
        bool, typer.Option(help="The runs that defaults were tuned on, not the held-out ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", dir_okay=False)] = None,
) -> None:
    """Compare adaptive policies with a clairvoyant, over runs with stragglers, drift and losses."""
    from rich.console import Console

    from ..attention.verbs import give
    from ..show import print_table
    from .scoring import score as judge

    document = judge(seed=seed, each=each, purpose="development" if development else "held out")
    console = Console(stderr=as_json)
    print_table(console, [_row(row) for row in document["rows"]], f"{document['scenarios']} runs")
    for family in document["families"]:
        rows = [_row({"policy": label, **found}) for label, found in family["policies"].items()]
        print_table(console, rows, f"{family['family']}: {family['summary']}")
    if as_json or out is not None:
        give(document, out)


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Shares in percent."""
    percent = {f"{key} %": f"{100 * found[key]:.1f}" for key in ("median", "p10", "worst", "within_tenth")}
    changes = {"changes": f"{found['changes']:.1f}", "price s": f"{found['price_s']:.1f}"}
    worth = {"gain": f"{found['against_still']:.3f}", "not worth": f"{found['not_worth']:.0f}"}
    return {"policy": found["policy"], **percent, **changes, **worth}
