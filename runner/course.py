"""Course: a real run whose lanes slow down under way, and whose plan may follow them: the counterpart of sim.adaptive.

One launch is one run of ``sampling.steps`` steps. A slowed lane's quota of processor time is lowered so that it becomes
as slow as the disturbance says (:mod:`.pacing`), and given back when that ends. Where the host has no quotas, the lane
keeps its processor busy after every pass and update until they have taken so many times as long; the record says which
it was. At every rebalance point all lanes stand still, the driver shows the policy what was measured so far, and its
answer goes on: the standing still is in the record, whether the plan changed or not, and so is what moving the states
took.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..sim.adaptive import WAITING, WORKING, Step, decision, is_adaptive
from ..sim.moving import Change
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Policy, View, allocate
from .calibrate import Tick
from .devices import NamedLane
from .execution import division
from .intervals import Row, Segments, step_rows
from .launch import LaunchResult, Task, run_group, ticking
from .live import listener, watcher_of
from .pacing import Pacing
from .places import new_place
from .runnable import refuse_lanes


@dataclass
class Course:
    """One launch of such a run, as the driver follows it."""

    scenario: Scenario
    policy: Policy
    number: int = 0
    pacing: Pacing | None = None
    """How its lanes are slowed; None: what is asked of them is taken for what they do."""
    plans: list[tuple[int, Plan]] = field(default_factory=list)
    """The plans in order, each with its first step."""
    history: list[Step] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    changes_left: int = 0

    @property
    def names(self) -> list[str]:
        """The lanes, by rank."""
        return [device.name for device in self.scenario.cluster.devices]

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.scenario.sampling.steps

    @property
    def points(self) -> list[int]:
        """Steps before which the policy is asked."""
        rules = self.scenario.rebalance
        asked = rules is not None and rules.at_most > 0 and is_adaptive(self.policy)
        return list(range(rules.every_steps, self.total, rules.every_steps)) if rules and asked else []

    def begin(self) -> Task:
        """The first plan, as the workers are told."""
        view = replace(View.of(self.scenario), steps_left=self.total)
        plan = allocate(self.policy, view, self.scenario)
        told = self.divide(plan)
        self.changes_left = self.scenario.rebalance.at_most if self.scenario.rebalance else 0
        self.plans = [(0, plan)]
        self._note(0, "start", view, plan, Change(), changed=True)
        return told

    def go_on(self, step: int, plan: Plan, *, changes: int) -> None:
        """Stand before a step, with a plan, after so many changes: what was seen of later steps did not count."""
        rules = self.scenario.rebalance
        self.changes_left = max(0, rules.at_most - changes) if rules is not None else 0
        self.plans = [*((first, each) for first, each in self.plans if first < step), (step, plan)]
        self.history = [each for each in self.history if each["step"] < step]

    def divide(self, plan: Plan) -> Task:
        """A plan as the workers are told of it.

        Raises:
            InputError: it cannot be run, or its states cannot be moved.
        """
        if plan.zero:
            raise InputError("plan.zero", "is 1 in a run that may change its plan: sharded states stay", "use zero = 0")
        return division(plan, self.scenario.workload, self.names)

    def ask(self, step: int, measured: Sequence[Step]) -> Task:
        """What the workers go on with, from a step on, given what was measured since the last question.

        No plan, or one that torch cannot run, changes nothing: the run keeps what it has, and the decision says why.
        """
        self.history += measured
        current = self.plans[-1][1]
        view = replace(
            View.of(self.scenario),
            steps_left=self.total - step,
            current=current,
            changes_left=self.changes_left,
            history=tuple(self.history),
            plans={plan.sha256: plan for _, plan in self.plans},
        )
        try:
            plan = allocate(self.policy, view, self.scenario)
            refusal = self._refusal(plan)
        except InputError as error:  # no plan, or none that keeps the rules
            plan, refusal = current, str(error)
        plan = current if refusal else plan
        changed = plan.sha256 != current.sha256
        price = view.change_to(plan) if changed else Change()
        self._note(step, "asked", view, plan, price, changed=changed, refusal=refusal)
        if changed:
            self.changes_left -= 1
            self.plans.append((step, plan))
        return self.divide(self.plans[-1][1])

    def _refusal(self, plan: Plan) -> str:
        """Why a plan cannot be gone on with; empty where it can."""
        try:
            refuse_lanes(self.scenario, self.divide(plan))
        except InputError as error:
            return str(error)
        return ""

    def plan_at(self, step: int) -> Plan:
        """The plan that a step was done by."""
        return next(plan for first, plan in reversed(self.plans) if first <= step)

    def measured(self, first: int, segments: Sequence[Mapping[int, Segments]]) -> list[Step]:
        """Steps from ``first`` on, which follow each other, as the history has them, from what each rank measured."""
        found: list[Step] = []
        begin = 0.0
        for step, own in enumerate(segments, first):
            plan = self.plan_at(step)
            taking_part = {rank: each for rank, each in own.items() if each}
            spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
            for row in step_rows(taking_part, self.divide(plan)):
                spent[self.names[row["device"]]][row["kind"]] += row["end_s"] - row["start_s"]
            end = max(each[-1][3] for each in taking_part.values())
            begin = begin if found else min(each[0][2] for each in taking_part.values())
            devices = {
                name: {
                    "samples": samples,
                    "compute_s": sum(spent[name][kind] for kind in WORKING),
                    "wait_s": sum(spent[name][kind] for kind in WAITING),
                }
                for name, samples in plan.samples().items()
            }
            busiest = min(devices, key=lambda name: (-devices[name]["compute_s"], name))
            entry = {"step": step, "step_s": end - begin, "sync_s": spent[busiest]["communication"]}
            found.append({**entry, "plan_sha256": plan.sha256, "devices": devices})
            begin = end
        return found

    def _note(
        self, step: int, why: str, view: View, plan: Plan, price: Change, *, changed: bool, refusal: str = ""
    ) -> None:
        noted = decision(why, view, plan, price, launch=self.number, step=step, changed=changed)
        self.decisions.append({**noted, "refused": refusal} if refusal else noted)


def run_course(
    course: Course,
    lanes: Sequence[NamedLane],
    job: Task,
    data: Path,
    *,
    file: Path | None = None,
    index: int = 0,
    tick: Tick = lambda done, total: None,
    before: int = 0,
    total: int = 1,
) -> LaunchResult:
    """Run it: the launch, of one task.

    Args:
        course: not begun; afterwards it has the plans, the history and the decisions.
        lanes: one worker each.
        job: model, optimizer, batch.
        data: encoded samples.
        file: where the members leave the weights that they hold in the end, with ``.RANK`` added.
        index: which of the runs that are watched together it is.
        tick: gets the progress, and where it is a watcher what the workers say.
        before: runs that were made before this one.
        total: runs that will be made.

    Raises:
        InputError: a disturbance that cannot be had here, or a plan that cannot be run.
        WorkerFailedError: a worker died or hung.
    """
    refuse_disturbances(course.scenario)
    pacing, place = course.pacing or Pacing(course.scenario), new_place()
    try:
        task = {
            "op": "course",
            "index": index,
            "division": course.begin(),
            "ranks": list(range(len(lanes))),
            "total": course.total,
            "points": course.points,
            "slow": pacing.slowness(),
            "folder": str(place),
            **({"file": str(file)} if file is not None else {}),
        }
        answering = Answering(course, place, len(lanes))
        if (watcher := watcher_of(tick)) is not None:
            watcher.launch(course.names, [task])
        launch = run_group(
            lanes,
            [task],
            job,
            timeout_s=course.scenario.replay.timeout_s,
            data=data,
            progress=ticking(lanes[-1], tick, before, total),
            listen=listener(tick, answering.hear),
            paced=pacing.slowed_lanes,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    answers = [own[0] for own in launch.answers]
    rest = [{rank: answer["steps"][step] for rank, answer in enumerate(answers)} for step in range(course.total)]
    course.history += course.measured(len(course.history), rest[len(course.history) :])
    return launch


@dataclass
class Answering:
    """Hears what the workers say, and answers once all of them have asked."""

    course: Course
    place: Path
    lanes: int
    told: Callable[[int, Plan, Task], Task] = lambda step, plan, division: division
    """Gets what goes on before the workers do: the step, the plan, and what they are told of it; gives what they are
    told in all."""
    asking: set[str] = field(default_factory=set)
    """Lanes that wait for an answer."""

    def hear(self, name: str, line: str) -> None:
        """A line of a lane's worker."""
        if not line.startswith("asked "):
            return
        self.asking.add(name)
        if len(self.asking) == self.lanes:
            self.asking.clear()
            self._answer(int(line.split()[1]))

    def _answer(self, step: int) -> None:
        read = [json.loads((self.place / f"asked-{step}-{rank}.json").read_text()) for rank in range(self.lanes)]
        segments = [dict(enumerate(each)) for each in zip(*read, strict=True)]
        division = self.course.ask(step, self.course.measured(step - len(segments), segments))
        told = self.told(step, self.course.plans[-1][1], division)
        hidden = self.place / f".answer-{step}"
        hidden.write_text(json.dumps({"division": told, "again": self.course.changes_left > 0}))
        hidden.rename(self.place / f"answer-{step}.json")


def course_rows(course: Course, launch: LaunchResult) -> list[Row]:
    """Event rows of a launch, times from its first segment on."""
    answers = [own[0] for own in launch.answers]
    origin = min(answer["steps"][0][0][2] for answer in answers if answer["steps"][0])
    rows: list[Row] = []
    since: dict[int, float] = {}
    stood = {int(each[0]): each for each in answers[0]["stood"]}
    for step in range(course.total):
        if step in stood:
            for rank, answer in enumerate(answers):
                begin, end = next(each[1:3] for each in answer["stood"] if each[0] == step)
                rest = {"pipeline": -1, "stage": -1, "micro_batch": -1, "kind": "rebalance"}
                rows.append({**rest, "device": rank, "step": step, "start_s": begin, "end_s": end})
                since[rank] = end
        segments = {rank: answer["steps"][step] for rank, answer in enumerate(answers) if answer["steps"][step]}
        known = since if set(segments) <= set(since) else None
        rows += [{"step": step, **row} for row in step_rows(segments, course.divide(course.plan_at(step)), known)]
        since.update({rank: own[-1][3] for rank, own in segments.items()})
    common = {"launch": course.number, "round": 0, "multiplicity": 1}
    return [
        {
            **common,
            **row,
            "device": course.names[row["device"]],
            "start_s": row["start_s"] - origin,
            "end_s": row["end_s"] - origin,
        }
        for row in rows
    ]


def refuse_disturbances(scenario: Scenario) -> None:
    """Refuse what cannot be done to real lanes.

    Raises:
        InputError: a lane that is lost or comes back, or one that is to get faster.
    """
    for index, each in enumerate(scenario.disturbances):
        if each.kind in ("loss", "return"):
            problem = f"is a {each.kind}: a group of processes does not outlive a member"
            mend = "use `steelyard simulate`; `steelyard chaos`, without disturbances and rebalance, kills real workers"
            raise InputError(f"disturbances.{index}.kind", problem, mend)
        if each.factor is not None and each.factor < 1:
            raise InputError(f"disturbances.{index}.factor", "is below 1: no lane can be made faster", "use 1 or more")
