"""What the words of a command name: scenarios, runs, plans, policies, times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...results.errors import InputError
from .output import say


def open_document(scenario: str, settings: list[str]) -> tuple[dict[str, Any], Path | None]:
    """A scenario as written, with fields overridden, and the folder that it stands in."""
    from ...sim.spec import apply_setting, read_document

    document, folder = read_document(scenario)
    for setting in settings:
        apply_setting(document, setting)
    return document, folder


def load(
    scenario: str, settings: list[str], runs: Path, force: bool, *, without: Sequence[str] = ()
) -> tuple[Any, list[str]]:
    """The scenario with this host's lanes filled in, and what runs should note about that.

    ``without``: fields that the command has no use for are refused before lanes are calibrated.
    """
    from ...sim.disturbances import refuse_events
    from ...sim.spec import load_scenario
    from ..resolving import resolver

    notes: list[str] = []
    fill_in = resolver(runs, force=force, notes=notes)

    def resolve(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        refuse_events(document, without)
        return fill_in(document, folder)

    loaded = load_scenario(scenario, settings, resolve)
    say(notes)  # a search has no record to put them in
    return loaded, notes


def read_runs(folders: list[Path]) -> list[Any]:
    """The runs in some folders, those made of what a killed driver left among them."""
    from ...results.store import find_runs, read_run
    from ..unfinished import recover

    say(recover(folders))
    return [read_run(folder) for folder in find_runs(folders)]


def fixed(file: Path) -> Any:
    """The policy that answers a plan file; its name tells the runs of several files apart."""
    from ...sim.plan import Plan
    from ...sim.spec import parse_file
    from ...sim.view import Fixed, describe

    plan = Plan.parse(parse_file(file))
    record = describe(Fixed(plan))
    return Fixed(plan, record.model_copy(update={"parameters": {"plan": file.name}}))


def policies_of(policy: list[str]) -> list[Any]:
    """The policies of texts; without any, those whose plans the lanes of a host can run."""
    from ...policies import DEFAULTS, policy_from_text

    return [policy_from_text(name) for name in split(policy) or DEFAULTS]


def split(policy: list[str]) -> list[str]:
    """Policies as texts: split at commas, but for those within parentheses."""
    return [name.strip() for text in policy for name in re.split(r",(?![^()]*\))", text) if name.strip()]


def seconds(budget: str | None) -> float | None:
    """Seconds of a budget like 90, 90s or 5m.

    Raises:
        InputError: it is no time above zero.
    """
    if budget is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError("--budget", f"is {budget!r}", "a time above zero, as 90s or 5m")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
