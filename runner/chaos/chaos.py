"""chaos(): the same training undisturbed and under faults, predicted in between, compared at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...results.record import digest
from ...results.store import code_provenance, slug, to_json, write_text
from ...sim.engine import simulate
from ...sim.spec import Scenario
from ...sim.view import Fixed, Policy, describe
from ..calibrate import START_S, Report
from ..devices import fingerprint
from ..journal import Event
from ..replay import lanes_of
from ..train import trainable
from .blows import victims_of
from .drill import Drill, Struck, drill
from .forecast import Costs, Forecast, agreement, forecast, rows, steps_for
from .leftovers import left_behind
from .strikes import TOLD, Kind, Sort, Strike, count, draw, named, within_s

INTERVAL_S = 1.0
"""Predicted seconds of steps between two checkpoints, where the scenario does not say how many steps."""
DROPOUT = 0.1
"""Where the scenario has none: it is what makes the states of random numbers matter."""
MARGIN = 2.0
"""The training is so many times as long as it is predicted to take until the last fault has struck."""
SPARE_FAULTS = 20
"""Faults beyond those that are meant to be, on a busy host."""


@dataclass(frozen=True)
class Chaos:
    """What a training under faults came to, beside the same one undisturbed."""

    folder: Path
    document: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: list[str]
    """What should not have happened, a sentence each."""

    def headline(self) -> str:
        """The result in a line."""
        struck = self.document["struck"]
        return (
            f"{struck['kill']} kills and {struck['hang']} hangs in {self.document['minutes']:.1f} minutes: "
            f"{'bit-identical' if self.document['bit_identical'] else 'NOT the same bytes'}, "
            f"{self.document['lost_results']} lost results, {len(self.document['left_behind'])} left behind, "
            f"{self.document['misnamed']} misnamed, {self.document['late']} noticed late"
            f"{' on a busy host' if self.document['busy'] else ''}"
        )


def chaos(
    scenario: Scenario,
    policy: Policy,
    words: str,
    runs: Path,
    *,
    kills: int,
    hangs: int,
    seed: int,
    report: Report = lambda line: None,
) -> Chaos:
    """Train undisturbed, predict what the faults will cost, train under them, and look for anything that differs.

    Args:
        scenario: its cluster must be lanes.
        policy: divides the work.
        words: the policy as the command line takes it.
        runs: the folder of runs; everything goes to a new folder in it.
        kills: workers that are killed: by SIGKILL, and where their lanes have a limit of memory by that.
        hangs: workers that hang, in each way that their lanes and the host allow in turn (:mod:`.strikes`).
        seed: of the faults.
        report: gets lines for people.

    Raises:
        InputError: it cannot be trained (:func:`~steelyard.runner.train.trainable`); nothing is written.
        WorkerFailedError: a training ended otherwise than well.
    """
    plan, _ = trainable(scenario, policy, runs)
    lanes = {lane.name: (rank, lane) for rank, lane in enumerate(lanes_of(scenario)) if lane.name in plan.samples()}
    members = {name: rank for name, (rank, _) in lanes.items()}
    step_s = simulate(scenario, Fixed(plan, describe(policy))).summary.step_time_s.p50
    timeout_s = scenario.replay.timeout_s
    victims, notes = victims_of([lane for _, lane in lanes.values()], step_s, timeout_s)
    for note in notes:
        report(note)
    strikes = draw(kills, hangs, victims, seed)
    scenario = prepared(scenario, strikes, step_s)
    folder = runs / f"chaos-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{slug(scenario.name)}-{digest(seed)[:6]}"
    file = folder / "scenario.json"
    write_text(file, to_json(scenario.model_dump(mode="json", exclude_none=True)))
    steps, every = scenario.training.steps, scenario.training.checkpoint_every_steps or 0
    report(f"training {steps} steps undisturbed, a checkpoint after every {every}")
    calm = drill(file, words, folder / "undisturbed", members)
    costs = Costs.of(calm.events, calm.spent, steps)
    predicted = forecast(strikes, costs, every=every, steps=steps, timeout_s=timeout_s)
    write_text(folder / "forecast.json", to_json(_forecast_document(predicted, strikes, costs)))
    report(f"predicted: goodput {predicted.goodput:.1%}, {predicted.wall_s:.0f} s; now with {len(strikes)} faults")
    moments = [(strike, strike.after_s(costs.start_s, every * costs.step_s)) for strike in strikes]
    stormy = drill(file, words, folder / "disturbed", members, strikes=moments)
    result = judged(folder, calm, stormy, strikes, predicted)
    result.document.update(seed=seed, not_possible=notes)
    write_text(folder / "chaos.json", to_json(result.document))
    return result


def prepared(scenario: Scenario, strikes: Sequence[Strike], step_s: float) -> Scenario:
    """The scenario with a training long enough to be struck so often, dropout on, checkpoints at known steps."""
    training = scenario.training
    every = training.checkpoint_every_steps or max(1, round(INTERVAL_S / step_s))
    steps = steps_for(strikes, Costs(step_s, 0.0, START_S), every, MARGIN)
    settings = {
        "steps": steps,
        "checkpoint_every_steps": every,
        "dropout": training.dropout or DROPOUT,
        "restarts": len(strikes) + SPARE_FAULTS,
    }
    return scenario.model_copy(update={"training": training.model_copy(update=settings)})


def _forecast_document(predicted: Forecast, strikes: Sequence[Strike], costs: Costs) -> dict[str, Any]:
    return {
        "written_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "costs": vars(costs),
        "strikes": [vars(strike) for strike in strikes],
        **predicted.document(),
    }


def judged(folder: Path, calm: Drill, stormy: Drill, strikes: Sequence[Strike], predicted: Forecast) -> Chaos:
    """Hold the disturbed training against the undisturbed one, the prediction, and what it left on the host."""
    noticed = answers(stormy.struck, stormy.faults)
    timeout_s = stormy.folder.read_about().scenario.replay.timeout_s
    found: dict[str, Any] = {
        "bit_identical": calm.final.manifest.files == stormy.final.manifest.files,
        "lost": lost_results(stormy.events),
        "misnamed": misnamed(noticed),
        "late": late(noticed, timeout_s),
        "busy": stormy.busy,
        "left_behind": [
            *left_behind(calm.sightings),
            *left_behind(stormy.sightings),
            *(f"after a {each.strike.kind}: {what}" for each in stormy.struck for what in each.left),
        ],
        "exposed_listeners": sorted(calm.sightings.exposed | stormy.sightings.exposed),
        "not_struck": len(strikes) - len(stormy.struck),
        "unplanned_faults": len(calm.faults) + len(stormy.faults) - len({id(fault) for _, fault in noticed}),
    }
    table = rows(predicted, stormy.spent, calm.spent)
    delays = _delays(noticed)
    document = {
        **found,
        **_counts(strikes, stormy, noticed),
        **{name: len(found[name]) for name in ("misnamed", "late")},
        "lost_results": len(found["lost"]),
        "noticed_after_s": {kind: _summary(each, within_s(kind, timeout_s)) for kind, each in delays.items()},
        "steps": calm.final.manifest.step,
        "checkpoint_every_steps": stormy.folder.read_about().checkpoint_every_steps,
        "predicted_against_measured": table,
        "agreement": agreement(predicted, strikes, stormy.spent, delays),
        "steps_lost_predicted": sum(predicted.steps_lost),
        "faults": [_row(each, fault, number, predicted) for number, (each, fault) in enumerate(noticed)],
        "minutes": round((calm.spent.wall_s + stormy.spent.wall_s) / 60, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "host": fingerprint(),
        "code": code_provenance(),
    }
    return Chaos(folder, document, table, list(_problems(found)))


def _problems(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["bit_identical"]:
        yield "the disturbed training ended with other bytes than the undisturbed one"
    if found["not_struck"]:
        yield f"{found['not_struck']} faults had not struck when the training ended"
    if found["unplanned_faults"] and not found["busy"]:
        yield f"{found['unplanned_faults']} faults were told of that nobody had struck"
    wrong = ["lost", "misnamed", "left_behind", "exposed_listeners", *([] if found["busy"] else ["late"])]
    for name in wrong:
        yield from (f"{name.replace('_', ' ')}: {each}" for each in found[name])


def misnamed(noticed: Sequence[tuple[Struck, Event]]) -> list[str]:
    """Faults whose culprit the driver did not name."""
    return [
        f"{each.strike.kind} of {each.lane}: {fault['what']}"
        for each, fault in noticed
        if not named(each.strike.kind, each.lane, fault)
    ]


def late(noticed: Sequence[tuple[Struck, Event]], timeout_s: float) -> list[str]:
    """Faults whose lines came into the journal later after they were done than the project states."""
    found = []
    for each, fault in noticed:
        delay_s, limit_s = fault["at_s"] - each.at_s, within_s(each.strike.kind, timeout_s)
        if delay_s > limit_s:
            found.append(f"{each.strike.kind} of {each.lane}: noticed after {delay_s:.1f} s, stated are {limit_s:g} s")
    return found


def _counts(strikes: Sequence[Strike], stormy: Drill, noticed: Sequence[tuple[Struck, Event]]) -> dict[str, Any]:
    done = [each.strike for each in stormy.struck]
    sorts: tuple[Sort, ...] = ("kill", "hang")
    return {
        "asked": {sort: count(strikes, sort) for sort in sorts},
        "struck": {sort: count(done, sort) for sort in sorts},
        "struck_kinds": {kind: sum(each.kind == kind for each in done) for kind in TOLD},
        "steps_lost": sum(fault["steps_lost"] for fault in stormy.faults),
    }


def lost_results(events: Sequence[Event]) -> list[str]:
    """Launches that began before the last checkpoint; later is well: its writer was killed before it could say so."""
    found, saved = [], 0
    for event in events:
        if event["event"] == "launch" and event["step"] < saved:
            found.append(f"launch {event['attempt']} began at step {event['step']}, step {saved} had been saved")
        if event["event"] in ("launch", "saved"):
            saved = max(saved, event["step"])
    return found


def answers(struck: Sequence[Struck], faults: Sequence[Event]) -> list[tuple[Struck, Event]]:
    """Each fault that was done with the first one that the driver wrote down after it."""
    pairs = []
    for each in struck:
        after = [fault for fault in faults if fault["at_s"] > each.at_s]
        if after:
            pairs.append((each, after[0]))
    return pairs


def _delays(noticed: Sequence[tuple[Struck, Event]]) -> dict[Kind, list[float]]:
    """Seconds from each fault to its line in the journal, by kind."""
    found: dict[Kind, list[float]] = {}
    for each, fault in noticed:
        found.setdefault(each.strike.kind, []).append(fault["at_s"] - each.at_s)
    return found


def _summary(delays: Sequence[float], limit_s: float) -> dict[str, float]:
    return {"median": statistics.median(delays), "longest": max(delays), "stated": limit_s}


def _row(struck: Struck, fault: Event, number: int, predicted: Forecast) -> dict[str, Any]:
    return {
        "kind": struck.strike.kind,
        "lane": struck.lane,
        "starting": struck.strike.starting,
        "named": fault["what"],
        "noticed_after_s_predicted": predicted.noticed_s[number],
        "noticed_after_s": fault["at_s"] - struck.at_s,
        "steps_lost_predicted": predicted.steps_lost[number],
        "steps_lost": fault["steps_lost"],
    }
