"""train(): fine-tune the scenario's classifier on the lanes as a plan divides it, and evaluate it on held-out texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..results.errors import InputError, WorkerFailedError
from ..results.store import written_utc
from ..sim.disturbances import refuse_events
from ..sim.engine import simulate
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Fixed, Policy, View, allocate, describe
from .balancing import Balancing, asks_again, course_of
from .calibrate import Report, Tick
from .checkpoint import Checkpoint
from .execution import division
from .journal import Spent, spent
from .launch import LaunchResult, require_torch
from .resolving import job_of
from .runnable import lanes_of, refuse_lanes
from .surviving import Course, checkpoint_every, survive
from .texts import LABELS
from .training_folder import About, TrainingFolder, file_sha256, new_folder

JUDGED = "sequence-classification"
"""The task of the models that are trained."""


@dataclass(frozen=True)
class Training:
    """What a training run came to."""

    policy: str
    plan: Plan
    """The last one."""
    losses: list[float]
    """Mean loss of each step's global batch."""
    seconds: float
    """Of the steps that count: what a fault undid is not among them."""
    samples: int
    predicted_samples_per_s: float
    utilisation: dict[str, float]
    """Share of the training time that each lane computed."""
    scores: dict[str, Any]
    """scikit-learn's classification report on the held-out texts."""
    spent: Spent
    """Where the time went, faults and checkpoints included."""
    folder: Path
    plan_changes: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def samples_per_s(self) -> float:
        """Training throughput; evaluation, checkpoints and what faults undid are left out."""
        return self.samples / self.seconds

    def document(self) -> dict[str, Any]:
        """Everything as one JSON document."""
        average = self.scores["macro avg"]
        return {
            "policy": self.policy,
            "plan": self.plan.samples(),
            "steps": len(self.losses),
            "first_loss": self.losses[0],
            "final_loss": self.losses[-1],
            "losses": self.losses,
            "seconds": self.seconds,
            "samples_per_s": self.samples_per_s,
            "predicted_samples_per_s": self.predicted_samples_per_s,
            "utilisation": self.utilisation,
            "accuracy": self.scores["accuracy"],
            "precision": average["precision"],
            "recall": average["recall"],
            "f1": average["f1-score"],
            "report": self.scores,
            "goodput": self.spent.goodput,
            "wall_s": self.spent.wall_s,
            "faults": self.spent.faults,
            "plan_changes": self.plan_changes,
            "folder": str(self.folder),
            "notes": self.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 by label, for a table."""
        return [
            {"label": name, **{key: float(value) for key, value in self.scores[name].items()}}
            for name in (*LABELS, "macro avg")
        ]

    def headline(self) -> str:
        """The result in a line."""
        busy = ", ".join(f"{name} {share:.0%}" for name, share in self.utilisation.items())
        faults = f"; {self.spent.faults} faults, goodput {self.spent.goodput:.0%}" if self.spent.faults else ""
        return (
            f"{self.policy}: {len(self.losses)} steps in {self.seconds:.1f} s, {self.samples_per_s:.0f} samples/s "
            f"(predicted {self.predicted_samples_per_s:.0f}), loss {self.losses[0]:.3f} to {self.losses[-1]:.3f}, "
            f"accuracy {self.scores['accuracy']:.3f}; utilisation {busy}{faults}"
        )


def train(
    scenario: Scenario,
    policy: Policy,
    runs: Path,
    *,
    notes: Sequence[str] = (),
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Training:
    """Train as the policy divides the work; the same samples in the same order whatever the plan.

    The gradient of every step is that of the mean loss over the global batch, so the plan changes the time and, beyond
    rounding, nothing else. Checkpoints, journal and result are in a new folder of ``runs``; after a fault the training
    goes on from the last checkpoint, and ends with the same bytes as if there had been none.

    A policy that adapts is asked again under way where the scenario has rebalance points. What is predicted is then its
    first plan; what a fault undoes is done again by the plan of that moment: the same result but for rounding.

    Raises:
        InputError: it cannot be trained (:func:`trainable`).
        WorkerFailedError: lanes died or hung more often than ``training.restarts`` allows; :func:`resume` goes on.
    """
    plan, data = trainable(scenario, policy, runs)
    record, adapts = describe(policy), asks_again(scenario, policy)
    predicted = simulate(scenario.model_copy(update={"rebalance": None}), Fixed(plan, record)).summary
    about = About(
        written_utc=written_utc(),
        scenario=scenario,
        policy=record,
        plan=plan.document(),
        data_sha256=file_sha256(data),
        checkpoint_every_steps=checkpoint_every(scenario, plan, predicted.step_time_s.p50),
        predicted={
            "step_s": predicted.step_time_s.p50,
            "throughput_samples_per_s": predicted.throughput_samples_per_s,
        },
        adapts=adapts,
        notes=[*notes, *_asked(scenario, adapts)],
    )
    folder, about = new_folder(runs, scenario), about.signed(scenario.model_dump(mode="json"))
    folder.write_about(about)
    with folder.alone():
        return _through(folder, about, runs, report, tick, policy=policy)


def _asked(scenario: Scenario, adapts: bool) -> list[str]:
    """What must be known of how often the policy is asked."""
    if adapts:
        return ["what is predicted is its first plan"]
    return ["rebalance is not used: its policy is asked once"] if scenario.rebalance is not None else []


def trainable(scenario: Scenario, policy: Policy, runs: Path) -> tuple[Plan, Path]:
    """The plan to train by and the file of samples; what cannot be trained is refused here, before a training begins.

    Raises:
        InputError: the scenario has disturbances, torch or scikit-learn is missing, the cluster is not of this
            machine's lanes, torch cannot run the plan, or the workload is no classifier or does not run on lanes.
    """
    refuse_events(dict(scenario), ("disturbances",))
    _require()
    for lane in lanes_of(scenario):
        if lane.machine:
            problem = f"is on machine {lane.machine}, and a training's checkpoints are files of one machine"
            raise InputError(f"cluster device {lane.name}", problem, "train on the lanes of one machine")
    if scenario.workload.model.config.get("task", JUDGED) != JUDGED:
        problem = "is no classifier, and what is trained is judged by the classes of held-out texts"
        raise InputError("workload.model", problem, f"use one whose task is {JUDGED}, or replay")
    plan = _plan_of(scenario, policy)
    _, data = job_of(scenario.workload, scenario.training, runs / "calibrations", seed=scenario.seed)
    return plan, data


def _plan_of(scenario: Scenario, policy: Policy) -> Plan:
    """What a policy answers, if it can be trained by."""
    if asks_again(scenario, policy):
        if scenario.training.dropout > 0:
            problem = "is drawn by the members: a plan that changes under way would deal it anew"
            raise InputError("training.dropout", problem, "use 0, or a policy that keeps its plan")
        course = course_of(scenario, policy)
        told, plan = course.begin(), course.plans[0][1]
    else:
        plan = allocate(policy, View.of(scenario), scenario)
        told = division(plan, scenario.workload, [device.name for device in scenario.cluster.devices])
    refuse_lanes(scenario, told)
    return plan


def resume(
    path: Path,
    *,
    policy: Policy | None = None,
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Training:
    """Go on with a training from its folder alone, where its last whole checkpoint stands.

    Args:
        path: the folder.
        policy: divides the work anew, and the result is the same but for rounding; None: as before, on the same lanes,
            and the result is the same bit by bit. A policy that adapts is asked again, and begins to see anew.
        report: gets lines for people.
        tick: gets the progress.

    Raises:
        InputError: no training's folder, damaged, in use, or another plan where dropout would be dealt anew.
        WorkerFailedError: as in :func:`train`.
    """
    _require()
    folder = TrainingFolder(path)
    folder.read_about()  # whether there is one: the lock would be a file in any folder
    with folder.alone():
        about = folder.read_about()
        if policy is not None:
            about = replanned(about, policy)
        _note_killed_driver(folder)
        folder.write_about(about)
        return _through(folder, about, path.parent, report, tick, policy=policy)


def replanned(about: About, policy: Policy) -> About:
    """The same training as another policy divides it.

    Raises:
        InputError: it cannot be trained so (:func:`trainable`), or it has dropout, whose masks belong to the members
            that drew them.
    """
    record, adapts = describe(policy), asks_again(about.scenario, policy)
    if adapts and about.adapts and record == about.policy:  # it goes on with what it has come to
        return about
    plan = _plan_of(about.scenario, policy)
    about = about.model_copy(update={"adapts": adapts, "policy": record, "plan_changes": 0})
    if plan.sha256 == about.divided.sha256:
        return about
    if about.scenario.training.dropout > 0:
        problem = "another plan would deal its dropout anew, and the result would be another"
        raise InputError("--policy or --plan", problem, "go on as it was divided, without either")
    return about.divided_anew(plan, record, f"divided anew by {record.label()}: equal to before but for rounding")


def _require() -> None:
    require_torch()
    if find_spec("sklearn") is None:
        raise InputError(
            "scikit-learn", "is not installed: it judges the held-out texts", "pip install 'steelyard[demo]'"
        )


def _note_killed_driver(folder: TrainingFolder) -> None:
    """A journal that ends in the midst of a training: its driver was killed, and nobody has written that down."""
    events = folder.journal.read()
    if events and events[-1]["event"] in ("launch", "begun", "asked", "saved", "unsaved", "damaged"):
        folder.journal.write_gap(events)


def _through(
    folder: TrainingFolder, about: About, runs: Path, report: Report, tick: Tick, *, policy: Policy | None
) -> Training:
    """Train to the end, whatever has been done before, and keep the result; the folder is held."""
    scenario, balancing = about.scenario, Balancing.of(about, policy)
    job, data = job_of(scenario.workload, scenario.training, runs / "calibrations", seed=scenario.seed)
    if file_sha256(data) != about.data_sha256:
        raise InputError(str(data), "holds other samples than the training began with", "train anew")
    job["dropout"] = scenario.training.dropout
    course = Course(folder, about, lanes_of(scenario), job, data, report, tick, balancing)
    when = f"every {about.checkpoint_every_steps} steps" if about.checkpoint_every_steps else "the last step"
    samples = about.divided.samples()
    report(f"training {scenario.training.steps} steps as {about.policy.label()} divides them: {samples}")
    report(f"a checkpoint after {when}, in {folder.path}")
    try:
        launch = survive(course)
    except KeyboardInterrupt:
        report(f"to go on: steelyard train --resume {folder.path}")
        raise
    except WorkerFailedError as error:
        raise WorkerFailedError(f"{error}; to go on: steelyard train --resume {folder.path}") from error
    folder.journal.write("done")
    result = summarise_training(course, _last(course), launch)
    folder.write_result(result.document())
    return result


def _last(course: Course) -> Checkpoint:
    """The checkpoint after the last step.

    Raises:
        WorkerFailedError: it could not be written.
    """
    checkpoint, reasons = course.store.newest()
    if checkpoint is None or checkpoint.manifest.step < course.about.scenario.training.steps:
        reasons += [f"{each['lane']}: {each['reason']}" for each in course.folder.journal.read() if "reason" in each]
        folder = course.folder.path
        raise WorkerFailedError(
            f"{course.store.folder}: the last checkpoint could not be written: {reasons[-1]}; "
            f"make room, then steelyard train --resume {folder}"
        )
    return checkpoint


def summarise_training(course: Course, last: Checkpoint, launch: LaunchResult) -> Training:
    """Put together losses and times from the last checkpoint, and scores from what the last launch evaluated."""
    from safetensors.numpy import load

    about, manifest = course.about, last.manifest
    answers = [answer for rank in range(len(course.lanes)) for _, answer in launch.of("evaluate", rank)]
    losses: list[float] = load(last.read(manifest.losses))["losses"].tolist()
    seconds = max(part.train_s for part in manifest.parts)
    busy_s = {**manifest.absent_busy_s, **{part.lane: part.busy_s for part in manifest.parts}}
    busy = {lane: each / seconds for lane, each in busy_s.items()}
    return Training(
        policy=about.policy.label(),
        plan=about.divided,
        losses=losses,
        seconds=seconds,
        samples=len(losses) * about.scenario.workload.global_batch,
        predicted_samples_per_s=about.predicted["throughput_samples_per_s"],
        utilisation={lane.name: busy.get(lane.name, 0.0) for lane in course.lanes},
        scores=_scores(next(answer for answer in answers if answer["predicted"])),
        spent=spent(course.folder.journal.read()),
        folder=course.folder.path,
        plan_changes=about.plan_changes,
        notes=about.notes,
    )


def _scores(evaluated: Mapping[str, Any]) -> dict[str, Any]:
    from sklearn.metrics import classification_report

    scores: dict[str, Any] = classification_report(
        evaluated["labels"], evaluated["predicted"], target_names=list(LABELS), output_dict=True, zero_division=0.0
    )
    return scores
