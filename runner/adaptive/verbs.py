"""The verb of ``steelyard adaptive``: score the policies that change their plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..verbs.options import Json, OutFile
from ..verbs.output import give, tabulate

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
    as_json: Json = False,
    out: OutFile = None,
) -> None:
    """Compare adaptive policies with a clairvoyant, over runs with stragglers, drift and losses."""
    from .scoring import score as judge

    document = judge(seed=seed, each=each, purpose="development" if development else "held out")
    tabulate(as_json, [_row(row) for row in document["rows"]], f"{document['scenarios']} runs")
    for family in document["families"]:
        rows = [_row({"policy": label, **found}) for label, found in family["policies"].items()]
        tabulate(as_json, rows, f"{family['family']}: {family['summary']}")
    if as_json or out is not None:
        give(document, out)


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Shares in percent."""
    percent = {f"{key} %": f"{100 * found[key]:.1f}" for key in ("median", "p10", "worst", "within_tenth")}
    changes = {"changes": f"{found['changes']:.1f}", "price s": f"{found['price_s']:.1f}"}
    worth = {"gain": f"{found['against_still']:.3f}", "not worth": f"{found['not_worth']:.0f}"}
    return {"policy": found["policy"], **percent, **changes, **worth}
