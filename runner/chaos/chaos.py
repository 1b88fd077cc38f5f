"""chaos(): the same training undisturbed and under faults, predicted in between, compared at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...results.record import digest
from ...results.store import code_provenance, slug, to_json, write_text, written_utc
from ...sim.disturbances import refuse_events
from ...sim.engine import simulate
from ...sim.spec import Scenario
from ...sim.view import Fixed, Policy, describe
from ..calibrate import START_S, Report
from ..devices import NamedLane, fingerprint
from ..journal import Event
from ..runnable import lanes_of
from ..train import trainable
from .blows import victims_of
from .disk import UNLIMITED, refusal, size_for
from .drill import Drill, Struck, drill
from .forecast import Costs, Forecast, agreement, forecast, rows, steps_for
from .leftovers import left_behind
from .strikes import KINDS, SORTS, Kind, Strike, Victims, count, draw, named, within_s

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
            f"{struck['kill']} kills, {struck['hang']} hangs, {struck['driver']} killed drivers and {struck['disk']} "
            f"full disks in {self.document['minutes']:.1f} minutes: "
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
    drivers: int = 0,
    disks: int = 0,
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
        drivers: times that the training's driver is killed, and the training gone on with.
        disks: times that the disk of the checkpoints is full; as many more drivers where the host lets us have none.
        seed: of the faults.
        report: gets lines for people.

    Raises:
        InputError: it cannot be trained (:func:`~steelyard.runner.train.trainable`); nothing is written.
        WorkerFailedError: a training ended otherwise than well.
    """
    refuse_events(dict(scenario))
    plan, _ = trainable(scenario, policy, runs)
    lanes = {lane.name: (rank, lane) for rank, lane in enumerate(lanes_of(scenario)) if lane.name in plan.samples()}
    members = {name: rank for name, (rank, _) in lanes.items()}
    step_s = simulate(scenario, Fixed(plan, describe(policy))).summary.step_time_s.p50
    timeout_s = scenario.replay.timeout_s
    victims, notes = _victims([lane for _, lane in lanes.values()], step_s, timeout_s, disks)
    for note in notes:
        report(note)
    strikes = draw(kills, hangs, victims, seed, drivers=drivers, disks=disks)
    scenario = prepared(scenario, strikes, step_s)
    folder = runs / f"chaos-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{slug(scenario.name)}-{digest(seed)[:6]}"
    file = folder / "scenario.json"
    write_text(file, to_json(scenario.model_dump(mode="json", exclude_none=True)))
    steps, every = scenario.training.steps, scenario.training.checkpoint_every_steps or 0
    report(f"training {steps} steps undisturbed, a checkpoint after every {every}")
    filled = any(strike.kind == "disk" for strike in strikes)
    calm = drill(file, words, folder / "undisturbed", members, disk_bytes=UNLIMITED if filled else None)
    costs = Costs.of(calm.events, calm.spent, steps, calm.driver_s)
    predicted = forecast(strikes, costs, every=every, steps=steps, timeout_s=timeout_s)
    write_text(folder / "forecast.json", to_json(_forecast_document(predicted, strikes, costs)))
    report(f"predicted: goodput {predicted.goodput:.1%}, {predicted.wall_s:.0f} s; now with {len(strikes)} faults")
    when = [(strike, strike.after_s(costs.start_s, every * costs.step_s)) for strike in strikes]
    room = size_for(calm.final, scenario.training.keep_checkpoints) if filled else None
    stormy = drill(file, words, folder / "disturbed", members, strikes=when, disk_bytes=room)
    result = judged(folder, calm, stormy, strikes, predicted)
    result.document.update(seed=seed, not_possible=notes)
    write_text(folder / "chaos.json", to_json(result.document))
    return result


def _victims(lanes: Sequence[NamedLane], step_s: float, timeout_s: float, disks: int) -> tuple[Victims, list[str]]:
    """Which kinds of fault can be done to which lanes, and to the disk, if that is asked for; notes of what cannot."""
    victims, notes = victims_of(lanes, step_s, timeout_s)
    if not disks:
        return victims, notes
    if problem := refusal():
        return victims, [*notes, f"no small disk can be had here, and none is filled: {problem}"]
    return {**victims, "disk": [0]}, notes


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
        "written_utc": written_utc(),
        "costs": vars(costs),
        "strikes": [vars(strike) for strike in strikes],
        **predicted.document(),
    }


def judged(folder: Path, calm: Drill, stormy: Drill, strikes: Sequence[Strike], predicted: Forecast) -> Chaos:
    """Hold the disturbed training against the undisturbed one, the prediction, and what it left on the host."""
    noticed = answers(stormy.struck, stormy.events)
    about = stormy.folder.read_about()
    timeout_s = about.scenario.replay.timeout_s
    found: dict[str, Any] = {
        "bit_identical": calm.final.manifest.files == stormy.final.manifest.files,
        "lost": [*lost_results(stormy.events), *(what for each in stormy.struck for what in each.lost)],
        "misnamed": misnamed(noticed),
        "late": late(noticed, timeout_s, predicted.segment_s),
        "busy": stormy.busy,
        "left_behind": [*left_by(calm), *left_by(stormy)],
        "exposed_listeners": sorted(calm.sightings.exposed | stormy.sightings.exposed),
        "not_written": not_written(calm.events, []) + not_written(stormy.events, stormy.struck),
        "not_struck": len(strikes) - len(stormy.struck),
        "unplanned_faults": len(calm.faults) + len(stormy.faults) - _told_of(noticed),
    }
    table = rows(predicted, stormy.spent, calm.spent, len(unsaved(stormy.events)))
    delays = _delays(noticed)
    step_s = stormy.spent.useful_s / calm.final.manifest.step
    document = {
        **found,
        **_counts(strikes, stormy),
        **{name: len(found[name]) for name in ("misnamed", "late")},
        "lost_results": len(found["lost"]),
        "noticed_after_s": {
            kind: _summary(each, None if kind == "driver" else within_s(kind, timeout_s, predicted.segment_s))
            for kind, each in delays.items()
        },
        "driver_ended_after_s": _ended_after(stormy.struck),
        "steps": calm.final.manifest.step,
        "checkpoint_every_steps": about.checkpoint_every_steps,
        "predicted_against_measured": table,
        "agreement": agreement(predicted, strikes, stormy.spent, delays),
        "steps_lost_predicted": sum(predicted.steps_lost),
        "steps_lost": sum(_steps_lost(fault, step_s) for fault in stormy.faults),
        "faults": [_row(each, fault, number, predicted, step_s) for number, (each, fault) in enumerate(noticed)],
        "minutes": round((calm.spent.wall_s + stormy.spent.wall_s) / 60, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "host": fingerprint(),
        "code": code_provenance(),
    }
    return Chaos(folder, document, table, list(_problems(found)))


def left_by(drill: Drill) -> list[str]:
    """What a training has left, when it was over and after each fault: a sentence each."""
    return [
        *left_behind(drill.sightings),
        *(f"after a {each.strike.kind}: {what}" for each in drill.struck for what in each.left),
        *drill.unswept,
        *(f"{each.name} is still among the checkpoints" for each in sorted(drill.store.folder.glob(".*"))),
    ]


def _problems(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["bit_identical"]:
        yield "the disturbed training ended with other bytes than the undisturbed one"
    if found["not_struck"]:
        yield f"{found['not_struck']} faults had not struck when the training ended"
    if found["unplanned_faults"] and not found["busy"]:
        yield f"{found['unplanned_faults']} faults were told of that nobody had struck"
    wrong = [
        "lost",
        "misnamed",
        "left_behind",
        "exposed_listeners",
        "not_written",
        *([] if found["busy"] else ["late"]),
    ]
    for name in wrong:
        yield from (f"{name.replace('_', ' ')}: {each}" for each in found[name])


def misnamed(noticed: Sequence[tuple[Struck, Event]]) -> list[str]:
    """Faults whose culprit the driver did not name."""
    return [f"{each.named}: {_what(fault)}" for each, fault in noticed if not named(each.strike.kind, each.lane, fault)]


def _what(event: Event) -> str:
    """What the journal says of a fault, or of a checkpoint that could not be written."""
    return str(event["what"] if event["event"] == "fault" else event["reason"])


def late(noticed: Sequence[tuple[Struck, Event]], timeout_s: float, segment_s: float) -> list[str]:
    """Faults whose lines came into the journal later than stated; killed drivers whose workers ended later than so."""
    found = []
    for each, fault in noticed:
        driver = each.strike.kind == "driver"
        delay_s = (each.over_s if driver and each.over_s is not None else fault["at_s"]) - each.at_s
        limit_s = within_s(each.strike.kind, timeout_s, segment_s)
        if delay_s > limit_s:
            how = "all that it had started ended" if driver else "noticed"
            found.append(f"{each.named}: {how} after {delay_s:.1f} s, stated are {limit_s:g} s")
    return found


def unsaved(events: Sequence[Event]) -> dict[tuple[int, int], Event]:
    """Checkpoints that could not be written: by launch and step, the first line that says so."""
    found: dict[tuple[int, int], Event] = {}
    for event in events:
        if event["event"] == "unsaved":
            found.setdefault((event["attempt"], event["step"]), event)
    return found


def not_written(events: Sequence[Event], struck: Sequence[Struck]) -> list[str]:
    """Checkpoints that could not be written though the disk had room: a sentence each."""
    full = [(each.at_s, each.over_s or each.at_s) for each in struck if each.strike.kind == "disk"]
    return [
        f"step {step} of launch {attempt}: {event['reason']}"
        for (attempt, step), event in unsaved(events).items()
        if not any(begin_s < event["at_s"] < end_s for begin_s, end_s in full)
    ]


def _told_of(noticed: Sequence[tuple[Struck, Event]]) -> int:
    """How many lines of the journal tell of a fault that was done."""
    return len({event["at_s"] for _, event in noticed if event["event"] == "fault"})


def _counts(strikes: Sequence[Strike], stormy: Drill) -> dict[str, Any]:
    done = [each.strike for each in stormy.struck]
    return {
        "asked": {sort: count(strikes, sort) for sort in SORTS},
        "struck": {sort: count(done, sort) for sort in SORTS},
        "struck_kinds": {kind: sum(each.kind == kind for each in done) for kind in KINDS},
    }


def _steps_lost(fault: Event, step_s: float) -> int:
    """Steps that a fault undid; of a driver's, who has written none of them down, by the time that they took."""
    lost = fault.get("steps_lost", 0)
    return round(fault["recompute_s"] / step_s) if lost is None else int(lost)


def _ended_after(struck: Sequence[Struck]) -> dict[str, Any] | None:
    """Seconds until all had ended that a killed driver had started; None: none was killed."""
    ends = [each.over_s - each.at_s for each in struck if each.strike.kind == "driver" and each.over_s is not None]
    return _summary(ends, within_s("driver", 0.0)) if ends else None


def lost_results(events: Sequence[Event]) -> list[str]:
    """Launches that began before the last checkpoint; later is well: its writer was killed before it could say so."""
    found, saved = [], 0
    for event in events:
        if event["event"] == "launch" and event["step"] < saved:
            found.append(f"launch {event['attempt']} began at step {event['step']}, step {saved} had been saved")
        if event["event"] in ("launch", "saved"):
            saved = max(saved, event["step"])
    return found


def answers(struck: Sequence[Struck], events: Sequence[Event]) -> list[tuple[Struck, Event]]:
    """Each fault that was done with the first line after it that tells of one; of a full disk, of no checkpoint."""
    pairs = []
    for each in struck:
        wanted = "fault" if each.strike.ends_launch else "unsaved"
        after = [event for event in events if event["event"] == wanted and event["at_s"] > each.at_s]
        if after:
            pairs.append((each, after[0]))
    return pairs


def _delays(noticed: Sequence[tuple[Struck, Event]]) -> dict[Kind, list[float]]:
    """Seconds from each fault to its line in the journal, by kind."""
    found: dict[Kind, list[float]] = {}
    for each, fault in noticed:
        found.setdefault(each.strike.kind, []).append(fault["at_s"] - each.at_s)
    return found


def _summary(delays: Sequence[float], limit_s: float | None) -> dict[str, float | None]:
    return {"median": statistics.median(delays), "longest": max(delays), "stated": limit_s}


def _row(struck: Struck, fault: Event, number: int, predicted: Forecast, step_s: float) -> dict[str, Any]:
    return {
        "kind": struck.strike.kind,
        "lane": struck.lane or None,
        "starting": struck.strike.starting,
        "named": _what(fault),
        "noticed_after_s_predicted": predicted.noticed_s[number],
        "noticed_after_s": fault["at_s"] - struck.at_s,
        "steps_lost_predicted": predicted.steps_lost[number],
        "steps_lost": _steps_lost(fault, step_s),
    }
