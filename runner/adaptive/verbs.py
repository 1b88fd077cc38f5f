"""The verbs of ``steelyard adaptive``: score the policies that change their plan, and try other parameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..verbs.options import Json, OutFile
from ..verbs.output import emit, give, tabulate

adaptive = typer.Typer(no_args_is_help=True, help="Score the policies that change their plan while a run goes on.")


@adaptive.command()
def score(
    seed: Annotated[int, typer.Option(min=0, help="Of the runs.")] = 11,
    each: Annotated[int, typer.Option(min=1, help="Runs of each family.")] = 4,
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


@adaptive.command()
def tune(
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="One of the scored; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the development runs.")] = 5,
    each: Annotated[int, typer.Option(min=1, help="Runs of each family.")] = 2,
    as_json: Json = False,
) -> None:
    """Try the parameters that decide whether a change is made, on development runs (never on the held-out ones)."""
    from ...results.errors import InputError
    from .scoring import ADAPTIVE
    from .tuning import tune as compare

    names = policy or list(ADAPTIVE)
    for name in names:
        if name not in ADAPTIVE:
            raise InputError("--policy", f"{name!r:.60} is not scored", f"known: {', '.join(ADAPTIVE)}")
    rows = compare(names=names, seed=seed, each=each)
    emit({"seed": seed, "each": each, "rows": rows}, as_json, rows, "development runs")


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Shares in percent."""
    shown = ("median", "p10", "worst", "bound_median", "bound_within_tenth", "after_within_tenth", "gap_median")
    percent = {f"{key} %": f"{100 * found[key]:.1f}" for key in shown}
    aims = {
        "within_tenth %, aim 100": _judged(100 * found["within_tenth"], found["within_tenth"] >= 1),
        "over_static %, aim <= 0": _judged(100 * found["over_static"], found["over_static"] <= 0),
        "over_static_worst %": f"{100 * found['over_static_worst']:.1f}",
    }
    changes = {"changes": f"{found['changes']:.1f}", "price s": f"{found['price_s']:.1f}"}
    worth = {"gain": f"{found['against_still']:.3f}", "not worth": f"{found['not_worth']:.0f}"}
    return {"policy": found["policy"], **percent, **aims, **changes, **worth}


def _judged(value: float, met: bool) -> str:
    return f"{value:.1f} {'met' if met else 'MISSED'}"
