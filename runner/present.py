"""Present: what the plans of a launch will take at the lanes' speed in that very launch, sealed before they run.

A host drifts: within ten minutes lanes became up to 10 % faster, which is more than a model of them is off by. So each
launch begins with gauges of all lanes (:mod:`.gauge`), at sizes that no plan has; then its workers hold still, and the
driver writes down what a step of every plan takes at these speeds. Only then does the first plan run. What was sealed
before the first launch stays as it was: it is what a planner has, who asks today about tomorrow.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..results.record import digest
from ..results.store import written_utc
from ..sim.device import Device
from ..sim.plan import Plan
from ..sim.spec import Scenario
from .calibrate import BLOCKS_PER_PLAN
from .gauge import Drift, gauge_tasks
from .launch import Hold, LaunchResult, Task

ROUNDS = 2
"""Over all sizes: two seconds of a launch."""
FILE = "predictions-by-launch.jsonl"


def opening_tasks(scenario: Scenario, *, but: Collection[int] = ()) -> list[Task]:
    """The gauges that a launch begins with.

    None where the scenario gauges nothing, where a lane cannot be gauged (then nothing is known of plans with it), and
    where lanes are on other machines: their workers hold for nobody.

    Args:
        scenario: of lanes with tables.
        but: sizes that plans have.
    """
    devices = scenario.cluster.devices
    if not scenario.replay.gauge_launches or any(each.lane is not None and each.lane.machine for each in devices):
        return []
    tasks = gauge_tasks(scenario, but=but)
    if not tasks or len(tasks[0]["gauged"]) < len(devices):
        return []
    return [{**task, "opening": True} for task in ROUNDS * tasks]


def sealed_steps_s(folder: Path, launches: int) -> list[dict[str, float]]:
    """What was written down before the plans of each launch: by label, the median step in seconds.

    Args:
        folder: of the study.
        launches: that were complete.

    Returns:
        Nothing, unless every launch has its line, and every line is what its digest says.
    """
    file = folder / FILE
    found: list[dict[str, float]] = []
    for text in file.read_text(encoding="utf-8").splitlines()[:launches] if file.is_file() else []:
        try:
            line = json.loads(text)
            if line.pop("sha256") != digest(line) or line["launch"] != len(found):
                return []
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short, or no such line
            return []
        found.append(line["step_s"])
    return found if len(found) == launches else []


def _count(tasks: Sequence[Task]) -> int:
    return sum(bool(task.get("opening")) for task in tasks)


def at_known_speed(scenario: Scenario) -> Scenario | None:
    """The scenario with the noise that is left in launches whose gauges have told how fast they are.

    At calibration a launch has several residuals, each of as many blocks as a plan has in a launch. What they differ by
    within their launch is that noise, with the gauge's own, which is of one moment of the launch. It is kept as
    Helmert's contrasts (1876, recalled): one less than a launch has residuals, of the same variance, without its mean.

    Returns:
        None where no lane has such residuals: tables of a former version, of a single launch, or refined.
    """
    wider = math.sqrt(1 + BLOCKS_PER_PLAN)  # the gauge's blocks follow each other within seconds: one moment, one block
    count = 0

    def steady(device: Device) -> Device:
        nonlocal count
        profile = device.profile
        if profile is None or (groups := profile.launch_groups) < 2 or len(profile.launch_residuals) < 2 * groups:
            return device
        count += 1
        starts = range(0, len(profile.launch_residuals), groups)
        launches = [profile.launch_residuals[start : start + groups] for start in starts]
        left = [wider * each for launch in launches for each in contrasts(launch)]
        return device.model_copy(update={"profile": profile.model_copy(update={"launch_residuals": left})})

    known = scenario.model_copy(update={"cluster": scenario.cluster.changed(steady)})
    return known if count else None


def contrasts(values: Sequence[float]) -> list[float]:
    """Helmert's contrasts: one less than values, each of mean 0; their squares sum to those of the deviations."""
    return [
        (sum(values[:place]) - place * own) / math.sqrt(place * (place + 1))
        for place, own in enumerate(values)
        if place > 0
    ]


@dataclass
class Present:
    """The file of what each launch is predicted to take.

    Args:
        scenario: with the lanes at the speed of the predictions that were sealed before.
        plans: by label; with each the median step, in seconds, that was predicted then.
        folder: of the study.
    """

    scenario: Scenario
    plans: Mapping[str, tuple[Plan, float]]
    folder: Path
    _launches: int = field(default=0, init=False)

    def hold(self, tasks: Sequence[Task]) -> Hold | None:
        """Where the workers of a launch wait for its predictions; None where it does not begin with gauges."""
        count = _count(tasks)
        return Hold(count, self.seal) if count else None

    def seal(self, opening: LaunchResult) -> None:
        """Append the predictions of the next launch, with their digest, to the file, and have them on the disk."""
        drift = Drift.of(self.scenario, [opening])
        steps_s = {label: self._step_s(drift, plan, sealed_s) for label, (plan, sealed_s) in self.plans.items()}
        line = {"launch": self._launches, "written_utc": written_utc(), "lanes": drift.launches[0], "step_s": steps_s}
        with (self.folder / FILE).open("a", encoding="utf-8") as opened:
            opened.write(json.dumps({**line, "sha256": digest(line)}) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        self._launches += 1

    @staticmethod
    def _step_s(drift: Drift, plan: Plan, sealed_s: float) -> float:
        (factor,) = drift.factors(plan) or [1.0]
        return sealed_s * factor
