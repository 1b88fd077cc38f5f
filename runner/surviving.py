"""Training that survives: launch, and after a fault launch again from the last checkpoint, so many times."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..results.errors import InputError
from ..sim.checkpoint import job_of as job_under_failures
from ..sim.faults import clocks_of, rates
from ..sim.plan import Plan
from ..sim.spec import Scenario
from .balancing import Balancing
from .calibrate import Report, Tick
from .checkpoint import Checkpoint, Store
from .devices import NamedLane
from .execution import division
from .journal import Attempt
from .launch import LaunchResult, Task, run_group
from .live import Listen, Planned, listener, watcher_of
from .training_folder import About, TrainingFolder
from .watch import Fault, FaultError, Progress

CHUNK = 10
"""Steps between two reports of the loss."""


@dataclass
class Course:
    """One training: what it is about, and how its progress is told."""

    folder: TrainingFolder
    about: About
    """By now: the plan may change under way."""
    lanes: Sequence[NamedLane]
    job: Task
    data: Path
    report: Report
    tick: Tick
    balancing: Balancing | None = None
    """Where the policy is asked again under way."""

    @property
    def members(self) -> list[str]:
        """Lanes that train, in the order of ranks; all of them where that may change."""
        if self.balancing is not None:
            return [lane.name for lane in self.lanes]
        split = self.about.divided.samples()
        return [lane.name for lane in self.lanes if lane.name in split]

    @property
    def store(self) -> Store:
        """Its checkpoints."""
        return self.folder.store(self.about.scenario.training.keep_checkpoints)

    def told(self, step: int, plan: Plan, division: Task) -> Task:
        """What the workers are told where the policy was asked; a change is on disk before they hear of it."""
        about, changed = self.about, plan.sha256 != self.about.divided.sha256
        if changed:
            note = f"divided anew by {about.policy.label()} from step {step} on: {plan.samples()}"
            self.report(note)
            anew = about.divided_anew(plan, about.policy, note)
            self.about = anew.model_copy(update={"plan_changes": about.plan_changes + 1})
            self.folder.write_about(self.about)
        assert self.balancing is not None, "asked in a training whose plan does not change"
        refused = self.balancing.course.decisions[-1].get("refused", "")
        self.folder.journal.write("asked", step=step, plan_sha256=plan.sha256, changed=changed, refused=refused)
        return {**division, "identity": self.about.identity}


def survive(course: Course) -> LaunchResult:
    """Train to the end, evaluate, and give back the last launch; every fault is in the journal.

    Raises:
        FaultError: more faults in a row without a new checkpoint than ``training.restarts``, or one worker erred twice
            in the same way at the same step, as it would for ever.
        InputError: the folder's checkpoints are of another training.
    """
    journal = course.folder.journal
    in_vain, before = 0, ("", -1)
    first = sum(event["event"] == "launch" for event in journal.read())
    while True:
        checkpoint = _newest(course)
        attempt = Attempt(journal, course.members, checkpoint.manifest.step if checkpoint else 0, first)
        try:
            return _launch(course, attempt, checkpoint)
        except FaultError as error:
            attempt.fail(error.fault)
            in_vain = 1 if attempt.saved_step > attempt.from_step else in_vain + 1
            now = (error.fault.what, attempt.reached)
            if in_vain > course.about.scenario.training.restarts or (error.fault.kind == "erred" and now == before):
                raise
            before, first = now, first + 1
            course.report(_told(error.fault, attempt))
        except BaseException:
            attempt.interrupt()
            raise


def _told(fault: Fault, attempt: Attempt) -> str:
    lost = attempt.reached - attempt.saved_step
    return f"{fault.what}; going on from step {attempt.saved_step}, {lost} steps are done again"


def _newest(course: Course) -> Checkpoint | None:
    """The checkpoint to go on from; damaged ones are named and passed over, leftovers removed."""
    course.store.sweep()
    checkpoint, reasons = course.store.newest()
    for reason in reasons:
        course.folder.journal.write("damaged", reason=reason)
        course.report(f"not loaded: {reason}")
    if checkpoint is not None:
        _check_identity(course, checkpoint)
    return checkpoint


def _check_identity(course: Course, checkpoint: Checkpoint) -> None:
    own, found = course.about.identity, checkpoint.manifest
    for name in ("scenario_sha256", "data_sha256"):
        if getattr(found, name) != own[name]:
            raise InputError(str(checkpoint.folder), f"is of another training ({name} differs)", "train anew")
    if found.plan_sha256 not in (own["plan_sha256"], *course.about.former_plans):
        raise InputError(str(checkpoint.folder), "is of another plan", "train anew")


def _launch(course: Course, attempt: Attempt, checkpoint: Checkpoint | None) -> LaunchResult:
    with ExitStack() as stack:
        place = None
        hears: list[Listen] = [attempt.hear]
        if course.balancing is not None:
            questions = course.balancing.questions(attempt.from_step, course.about, course.told)
            place, hear = stack.enter_context(questions)
            hears.append(hear)
        return _run(course, training_tasks(course, checkpoint, place), hears)


def _run(course: Course, tasks: Sequence[Task], hears: Sequence[Listen]) -> LaunchResult:
    if (watcher := watcher_of(course.tick)) is not None:
        about = course.about
        batch, step_s = about.scenario.workload.global_batch, about.predicted["step_s"]
        watcher.plans([Planned(about.policy.label(), batch, step_s)])
        watcher.launch([lane.name for lane in course.lanes], tasks)
    return run_group(
        course.lanes,
        tasks,
        course.job,
        timeout_s=course.about.scenario.replay.timeout_s,
        data=course.data,
        progress=_progress(course, tasks),
        listen=listener(course.tick, *hears),
    )


def _progress(course: Course, tasks: Sequence[Task]) -> Progress:
    parts: dict[int, dict[str, float]] = {}
    steps = course.about.scenario.training.steps

    def progress(name: str, done: int, loss: float) -> None:
        task = tasks[done - 1]
        if task["op"] != "train" or name not in course.members:
            return
        parts.setdefault(done, {})[name] = loss
        if len(parts[done]) == len(course.members):
            after = task["offset"] + task["steps"]
            course.tick(after, steps)
            course.report(f"step {after}: loss {sum(parts[done].values()):.4f}")

    return progress


def training_tasks(course: Course, checkpoint: Checkpoint | None, place: Path | None = None) -> list[Task]:
    """What is left of the training in chunks, with the checkpoints between them, then the evaluation.

    With a ``place`` for questions these stand between the chunks, too.
    """
    about = course.about
    start = checkpoint.manifest.step if checkpoint else 0
    divided = division(about.divided, about.scenario.workload, [lane.name for lane in course.lanes])
    replanned = checkpoint is not None and checkpoint.manifest.plan_sha256 != about.identity["plan_sha256"]
    points = course.balancing.points if course.balancing is not None else []
    tasks: list[Task] = [
        {
            "op": "begin",
            **divided,
            "step": start,
            "checkpoint": str(checkpoint.folder.resolve()) if checkpoint else None,
            "replanned": replanned,
            "division": {**divided, "identity": about.identity} if place is not None else None,
            "asks": bool(points),
            "seed": about.scenario.seed,
        }
    ]
    saving = {"folder": str(course.store.folder.resolve()), "keep": course.store.keep, "identity": about.identity}
    if place is not None:  # from here on the members know
        divided = {}
        saving.pop("identity")
    for end in stops(start, about.scenario.training.steps, about.checkpoint_every_steps, points):
        tasks.append({"op": "train", **divided, "offset": start, "steps": end - start})
        start = end
        if saves(end, about.scenario.training.steps, about.checkpoint_every_steps):
            tasks.append({"op": "checkpoint", **divided, **saving, "step": end})
        if end in points:
            tasks.append({"op": "rebalance", "step": end, "folder": str(place)})
    return [*tasks, {"op": "evaluate", **divided}]


def stops(start: int, steps: int, every: int, points: Container[int] = ()) -> list[int]:
    """Steps after which training pauses: to report a loss, to write a checkpoint, to ask the policy, at the end."""
    return [
        step for step in range(start + 1, steps + 1) if step % CHUNK == 0 or step in points or saves(step, steps, every)
    ]


def saves(step: int, steps: int, every: int) -> bool:
    """Whether a checkpoint follows a step; the last step always has one."""
    return step == steps or (every > 0 and step % every == 0)


def checkpoint_every(scenario: Scenario, plan: Plan, step_s: float) -> int:
    """Steps from checkpoint to checkpoint: as asked for, else the best under the scenario's failures, else by time.

    Args:
        scenario: its training says, or its failures do (Daly's interval in whole steps: ``sim.checkpoint``).
        plan: whose devices can fail.
        step_s: predicted seconds of a step.
    """
    training = scenario.training
    if training.checkpoint_every_steps is not None:
        return training.checkpoint_every_steps
    failing, preempting = rates(clocks_of(scenario, {name for each in plan.pipelines for name in each.devices}))
    if failing + preempting > 0:
        return max(1, min(training.steps, round(job_under_failures(scenario, step_s, failing, preempting).every)))
    return max(1, round(training.checkpoint_every_s / step_s))
