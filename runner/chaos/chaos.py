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
from ..watch import STOPPED_S
from .drill import Drill, Struck, drill
from .forecast import Costs, Forecast, forecast, rows, steps_for
from .leftovers import left_behind
from .strikes import Kind, Strike, count, draw

INTERVAL_S = 1.0
"""Predicted seconds of steps between two checkpoints, where the scenario does not say how many steps."""
DROPOUT = 0.1
"""Where the scenario has none: it is what makes the states of random numbers matter."""
MARGIN = 2.0
"""The training is so many times as long as it is predicted to take until the last fault has struck."""
SPARE_FAULTS = 20
"""Faults beyond those that are meant to be, on a busy host."""
DIED_S = 2.0
"""Within which a death is to be noticed; a worker that was stopped, after its patience and as much again."""


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
        kills: workers that get SIGKILL.
        hangs: workers that get SIGSTOP.
        seed: of the faults.
        report: gets lines for people.

    Raises:
        InputError: it cannot be trained (:func:`~steelyard.runner.train.trainable`); nothing is written.
        WorkerFailedError: a training ended otherwise than well.
    """
    plan, _ = trainable(scenario, policy, runs)
    ranks = {lane.name: rank for rank, lane in enumerate(lanes_of(scenario))}
    split = plan.split()
    members = {name: rank for name, rank in ranks.items() if name in split}
    step_s = simulate(scenario, Fixed(plan, describe(policy))).summary.step_time_s.p50
    strikes = draw(kills, hangs, len(members), seed)
    scenario = prepared(scenario, strikes, step_s)
    folder = runs / f"chaos-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{slug(scenario.name)}-{digest(seed)[:6]}"
    file = folder / "scenario.json"
    write_text(file, to_json(scenario.model_dump(mode="json", exclude_none=True)))
    steps, every = scenario.training.steps, scenario.training.checkpoint_every_steps or 0
    report(f"training {steps} steps undisturbed, a checkpoint after every {every}")
    calm = drill(file, words, folder / "undisturbed", members)
    costs = Costs.of(calm.events, calm.spent, steps)
    timeout_s = scenario.replay.timeout_s
    predicted = forecast(strikes, costs, every=every, steps=steps, timeout_s=timeout_s)
    write_text(folder / "forecast.json", to_json(_forecast_document(predicted, strikes, costs)))
    report(f"predicted: goodput {predicted.goodput:.1%}, {predicted.wall_s:.0f} s; now with {len(strikes)} faults")
    moments = [(strike, strike.after_s(costs.start_s, every * costs.step_s)) for strike in strikes]
    stormy = drill(file, words, folder / "disturbed", members, strikes=moments)
    result = judged(folder, calm, stormy, strikes, predicted)
    result.document["seed"] = seed
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
    left = [*left_behind(calm.sightings), *left_behind(stormy.sightings)]
    found: dict[str, Any] = {
        "bit_identical": calm.final.manifest.files == stormy.final.manifest.files,
        "lost": lost_results(stormy.events),
        "misnamed": [f"{each.lane}: {fault['what']}" for each, fault in noticed if fault["lane"] != each.lane],
        "left_behind": left,
        "exposed_listeners": sorted(calm.sightings.exposed | stormy.sightings.exposed),
        "not_struck": len(strikes) - len(stormy.struck),
    }
    table = rows(predicted, stormy.spent, calm.spent)
    document = {
        **found,
        **_counts(strikes, stormy, noticed),
        "lost_results": len(found["lost"]),
        "misnamed": len(found["misnamed"]),
        "steps": calm.final.manifest.step,
        "checkpoint_every_steps": stormy.folder.read_about().checkpoint_every_steps,
        "predicted_against_measured": table,
        "steps_lost_predicted": sum(predicted.steps_lost),
        "faults": [_row(each, fault, predicted.steps_lost[number]) for number, (each, fault) in enumerate(noticed)],
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
    for name in ("lost", "misnamed", "left_behind", "exposed_listeners"):
        yield from (f"{name.replace('_', ' ')}: {each}" for each in found[name])


def _counts(strikes: Sequence[Strike], stormy: Drill, noticed: Sequence[tuple[Struck, Event]]) -> dict[str, Any]:
    timeout_s = stormy.folder.read_about().scenario.replay.timeout_s
    limits: dict[Kind, float] = {"kill": DIED_S, "hang": min(timeout_s, STOPPED_S) + DIED_S}
    delays = {kind: _delays(noticed, kind) for kind in limits}
    return {
        "asked": {kind: count(strikes, kind) for kind in limits},
        "struck": {kind: sum(each.strike.kind == kind for each in stormy.struck) for kind in limits},
        "unplanned_faults": len(stormy.faults) - len(noticed),
        "late": sum(delay > limits[kind] for kind, each in delays.items() for delay in each),
        "noticed_after_s": {kind: _summary(each, limits[kind]) for kind, each in delays.items()},
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


def _delays(noticed: Sequence[tuple[Struck, Event]], kind: Kind) -> list[float]:
    return [fault["at_s"] - each.at_s for each, fault in noticed if each.strike.kind == kind]


def _summary(delays: Sequence[float], limit_s: float) -> dict[str, float | None]:
    return {
        "median": statistics.median(delays) if delays else None,
        "longest": max(delays, default=None),
        "stated": limit_s,
    }


def _row(struck: Struck, fault: Event, predicted_steps: float) -> dict[str, Any]:
    return {
        "kind": struck.strike.kind,
        "lane": struck.lane,
        "starting": struck.strike.starting,
        "named": fault["what"],
        "noticed_after_s": fault["at_s"] - struck.at_s,
        "steps_lost_predicted": predicted_steps,
        "steps_lost": fault["steps_lost"],
    }
