"""Real runs on this host's lanes: measure plans, train, go through the whole loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...results.errors import InputError
from .inputs import fixed, load, policies_of, seconds
from .options import RUNS, Budget, Force, Json, Live, Policies, RunsFolder, ScenarioArgument, Seed, Settings
from .output import CRASH, DONE, INTERRUPTED, emit, following, remark, tabulate, terminal
from .verdicts import compared


def replay(
    scenario: Annotated[
        str | None, typer.Argument(help="Scenario file or shipped name; with --suite, the suite's.", metavar="SCENARIO")
    ] = None,
    policy: Policies = [],
    plan: Annotated[list[Path], typer.Option(help="A plan (JSON) to run as it is. Repeatable.")] = [],
    settings: Settings = [],
    seed: Seed = None,
    budget: Budget = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="Replay a whole suite (full, small or a file), going on where it ended.")
    ] = False,
    live: Live = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Run the plans of policies on this host's lanes, measured against predictions written before."""
    from ..replay import replay as measure

    budget_s = seconds(budget)
    if suite:
        return _suite(scenario or "full", policy, plan, settings, runs, seed, budget_s, as_json)
    if scenario is None:
        raise InputError("SCENARIO", "is missing", "give a scenario, or --suite")
    policies = [*(policies_of(policy) if policy or not plan else []), *map(fixed, plan)]
    loaded, notes = load(scenario, settings, runs, force)
    console = terminal()
    with following(console, "measuring", live, as_json) as tick:
        study = measure(
            loaded,
            policies,
            runs,
            seed=seed,
            budget_s=budget_s,
            notes=notes,
            report=console.print,
            tick=tick,
        )
    compared(study.runs, as_json, study.folder)
    return INTERRUPTED if study.interrupted else DONE


def _suite(
    name: str,
    policy: list[str],
    plan: list[Path],
    settings: list[str],
    runs: Path,
    seed: int | None,
    budget_s: float | None,
    as_json: bool,
) -> int:
    from ..show import progress
    from ..suite.verbs import replay_suite

    if policy or plan or settings:
        raise InputError("--suite", "takes no --policy, --plan or --set", "write them into a suite file")
    console = terminal()
    result, rows, lines = replay_suite(
        name, runs, seed=seed, budget_s=budget_s, report=console.print, bar=lambda title: progress(console, title)
    )
    emit(result.document(), as_json, rows, f"suite {result.suite}")
    remark(as_json, lines)
    if result.interrupted:
        return INTERRUPTED
    return CRASH if result.failed else DONE


def train(
    scenario: ScenarioArgument = "demo",
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="One policy; makespan by default.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan (JSON) to train by, in place of a policy.")] = None,
    settings: Settings = [],
    folder: Annotated[
        Path | None,
        typer.Option("--resume", help="Go on in this folder of a training, as it was divided (or as --policy says)."),
    ] = None,
    live: Live = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Train the classifier on the lanes as a policy divides the work, and evaluate it on held-out texts."""
    from ...policies import policy_from_text
    from ..train import resume
    from ..train import train as fit

    if plan is not None and policy is not None:
        raise InputError("--plan", "stands beside --policy", "give one of them")
    asked = fixed(plan) if plan is not None else policy_from_text(policy) if policy else None
    console = terminal()
    if folder is not None:
        with following(console, "training", live, as_json) as tick:
            result = resume(folder, policy=asked, report=console.print, tick=tick)
    else:
        loaded, notes = load(scenario, settings, runs, force, without=["disturbances"])
        chosen = asked if asked is not None else policy_from_text("makespan")
        with following(console, "training", live, as_json) as tick:
            result = fit(loaded, chosen, runs, notes=notes, report=console.print, tick=tick)
    document = result.document()
    emit(document, as_json, result.rows(), result.headline())


def demo(
    settings: Settings = [],
    trials: Annotated[int, typer.Option(min=1, help="Search trials.")] = 200,
    budget: Budget = None,
    seed: Seed = None,
    live: Live = None,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Do the whole loop on this machine: calibrate, simulate, search, replay, compare, report."""
    from ..demo import MEASURE_S
    from ..demo import demo as whole

    console = terminal()
    result = whole(
        runs,
        settings=settings,
        trials=trials,
        budget_s=seconds(budget) or MEASURE_S,
        seed=seed,
        report=console.print,
        bar=lambda title: following(console, title, live if title == "measuring" else False, as_json),
    )
    emit(result.document, as_json, result.rows, "")
    if result.by_fidelity:
        tabulate(as_json, result.by_fidelity, "at each fidelity")
    remark(as_json, result.lines)
    return INTERRUPTED if result.interrupted else DONE
