"""The verb ``steelyard export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...results.errors import InputError
from ..verbs.options import Json, Settings
from ..verbs.output import document_text, terminal

SHOWN = 20
"""Problems that the table has; export.json has all."""


def export(
    plan: Annotated[
        str, typer.Argument(help="Run folder; plan.json with --scenario; or scenario with --policy.", metavar="PLAN")
    ],
    *,
    to: Annotated[str, typer.Option("--to", help="megatron, torchtitan, deepspeed or fsdp.")],
    scenario: Annotated[str | None, typer.Option(help="Scenario that a plan.json is for.")] = None,
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="Policy that plans the scenario.")] = None,
    settings: Settings = [],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; export-TARGET by default.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse a plan that is only the nearest.")] = False,
    as_json: Json = False,
) -> None:
    """Write the arguments and files with which a training framework runs a plan, and say what they cannot say."""
    from .export import export as make
    from .export import write
    from .targets import target_of

    target = target_of(to)
    wanted, world = _wanted(plan, scenario, policy, settings)
    found = make(wanted, world, target)
    if exact and found.not_expressible:
        first = found.not_expressible[0]
        raise InputError(first.path, f"{first.problem} ({target.name})", "without --exact the nearest is written")
    folder = write(found, out or Path(f"export-{to}"))
    _tell({**found.document(), "folder": str(folder)}, as_json)


def _wanted(plan: str, scenario: str | None, policy: str | None, settings: list[str]) -> tuple[Any, Any]:
    """Plan and scenario by what the arguments name."""
    from ...sim.plan import Plan
    from ...sim.spec import load_scenario, parse_file
    from .export import planned_run

    if policy is not None:
        from ...policies import policy_from_text
        from ...sim.view import View, allocate

        if scenario is not None:
            raise InputError("--policy", "is given with --scenario", "give SCENARIO --policy NAME, or a plan.json")
        world = load_scenario(plan, settings)
        return allocate(policy_from_text(policy), View.of(world), world), world
    if scenario is not None:
        return Plan.parse(parse_file(Path(plan))), load_scenario(scenario, settings)
    if not Path(plan).is_dir():
        raise InputError(plan[:200], "is no run folder", "a plan.json needs --scenario, a scenario needs --policy")
    if settings:
        raise InputError("--set", "changes nothing in a run folder", "leave it out, or give its plan.json --scenario")
    wanted, world, _ = planned_run(Path(plan))
    return wanted, world


def _tell(document: dict[str, Any], as_json: bool) -> None:
    from ..show import print_table

    console = terminal(stdout=not as_json)  # one for all: what follows a table may be as wide
    problems = document["not_expressible"]
    if problems:
        print_table(console, problems[:SHOWN], f"not expressible for {document['target']}")
        if len(problems) > SHOWN:
            console.print(f"... and {len(problems) - SHOWN} more in export.json", highlight=False)
    if document["changed"]:
        console.print("nearest plan: " + "; ".join(document["changed"]), highlight=False)
    times = f"{1e3 * document['wanted_step_time_s']:.4g} ms wanted, {1e3 * document['step_time_s']:.4g} ms exported"
    console.print(f"simulated step: {times} ({document['loss_percent']:+.1f} %)", highlight=False)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False)
    console.print(f"wrote {document['folder']}: {', '.join(document['files'])}", highlight=False)
    if as_json:
        sys.stdout.write(document_text(document))
