"""Kept: the shape of a complete launch's file, so that a damaged one is found before a run is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from ..results.errors import InputError
from ..sim.checking import validate
from ..sim.plan import Plan
from ..sim.spec import Scenario
from .execution import division

Document = dict[str, Any]
MEND = "remove the file; the other launches are used"
# What is used is the document as it was read: a number in quotes is no number.
Whole = Annotated[int, Field(strict=True, ge=0)]
Figure = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Kind = Literal["forward", "backward", "optimizer", "communication"]
Segment = tuple[Kind, Annotated[int, Field(strict=True)], Figure, Figure, Figure, Annotated[int, Field(strict=True)]]
"""As workers tell it: kind, micro-batch, start, end, own seconds, stage."""
Step = list[Segment]
Fault = tuple[str, str]
"""Path within the file, and what is wrong there."""


class ProgramStage(BaseModel):
    """What is read of a stage of a plan that is no plain split."""

    rank: Whole
    first: Whole
    last: Whole


class ProgramPipeline(BaseModel):
    """Its stages."""

    stages: Annotated[list[ProgramStage], Field(min_length=1)]


class Program(BaseModel):
    """What members do in a step."""

    pipelines: Annotated[list[ProgramPipeline], Field(min_length=1)]

    @property
    def ranks(self) -> set[int]:
        """Who takes part."""
        return {stage.rank for pipeline in self.pipelines for stage in pipeline.stages}


class BlockTask(BaseModel):
    """Steps of one plan."""

    op: Literal["block"]
    index: Whole
    round: Whole
    steps: Annotated[Whole, Field(ge=1)]
    warmup: Whole
    ranks: Annotated[list[Whole], Field(min_length=1)]
    program: Program | None = None


class GaugeTask(BaseModel):
    """Steps of one micro-batch size."""

    op: Literal["gauge"]
    micro_batch: Whole
    opening: Annotated[bool, Field(strict=True)] = False


class BlockAnswer(BaseModel):
    """What a member measured of a block."""

    steps: list[Step]
    contended: Figure
    retries: Whole
    warmup: Whole = 0
    settled: Annotated[bool, Field(strict=True)] = True


class GaugeAnswer(BaseModel):
    """What a member measured of a gauge."""

    steps: list[Step]
    quiet: list[Annotated[bool, Field(strict=True)]]

    @model_validator(mode="after")
    def _of_each_step(self) -> Self:
        if len(self.quiet) != len(self.steps):
            raise ValueError(f"quiet has {len(self.quiet)} entries for {len(self.steps)} steps")
        return self


ANSWERS: dict[str, type[BlockAnswer | GaugeAnswer]] = {"block": BlockAnswer, "gauge": GaugeAnswer}


class PlansLaunch(BaseModel):
    """A launch in which plans were measured."""

    tasks: Annotated[list[Annotated[BlockTask | GaugeTask, Field(discriminator="op")]], Field(min_length=1)]
    answers: list[list[Document]]

    def faults(self, scenario: Scenario, entries: int) -> Iterator[Fault]:
        """What does not go with the rest of the study: its scenario, and the number of its plans."""
        lanes = len(scenario.cluster.devices)
        yield from _answered(self.answers, lanes, len(self.tasks))
        yield from self._unknown(scenario, entries)
        for number, task in enumerate(self.tasks):
            for rank, own in enumerate(self.answers):
                path = f"answers.{rank}.{number}"
                answer = validate(ANSWERS[task.op], own[number], path, prefix=f"{path}.")
                yield from _steps_faults(task, rank, answer.steps, f"{path}.steps")

    def _unknown(self, scenario: Scenario, entries: int) -> Iterator[Fault]:
        profiles = [each.profile for each in scenario.cluster.devices]
        sizes = [{point.micro_batch for point in each.points} if each else set[int]() for each in profiles]
        for number, task in enumerate(self.tasks):
            if isinstance(task, GaugeTask):
                if not all(task.micro_batch in known for known in sizes):
                    yield f"tasks.{number}.micro_batch", f"is {task.micro_batch}, which was not calibrated"
                continue
            if task.index >= entries:
                yield f"tasks.{number}.index", f"is {task.index}, of {entries} plans"
            ranks = task.program.ranks if task.program is not None else set(task.ranks)
            if ranks != set(task.ranks) or max(ranks) >= len(sizes):
                yield f"tasks.{number}.ranks", f"are {task.ranks}, of {len(sizes)} lanes"
        missing = set(range(entries)) - {task.index for task in self.tasks if isinstance(task, BlockTask)}
        if missing:
            yield "tasks", f"have no block of plan {min(missing)}"


class PastDevice(BaseModel):
    """What is read of a lane's part of a step."""

    samples: Figure


class PastStep(BaseModel):
    """What is read of a step of the past."""

    devices: dict[str, PastDevice]


class Decision(BaseModel):
    """What is read of a decision."""

    launch: Whole
    step: Whole
    changed: Annotated[bool, Field(strict=True)]


class CourseTask(BaseModel):
    """The whole run."""

    op: Literal["course"]


class CourseAnswer(BaseModel):
    """What a member measured of the run: its steps, and when it stood still before which of them."""

    steps: list[Step]
    stood: list[tuple[Whole, Figure, Figure]]
    slowed_by: list[Literal["quota", "loop"]] = Field(default_factory=list)
    contended: Figure = 0.0


class CourseLaunch(BaseModel):
    """A launch in which a policy was followed."""

    index: Whole
    number: Whole
    plans: Annotated[list[tuple[Whole, Document]], Field(min_length=1)]
    history: list[PastStep]
    decisions: list[Decision]
    tasks: Annotated[list[CourseTask], Field(min_length=1, max_length=1)]
    answers: list[Annotated[list[CourseAnswer], Field(min_length=1, max_length=1)]]

    def faults(self, scenario: Scenario, entries: int) -> Iterator[Fault]:
        """What does not go with the rest of the study: its scenario, and the number of its policies."""
        total, names = scenario.sampling.steps, [device.name for device in scenario.cluster.devices]
        if self.index >= entries:
            yield "index", f"is {self.index}, of {entries} policies"
        yield from _answered(self.answers, len(names), 1)
        yield from self._uneven(total, set(names))
        at = self._ranks(scenario, names)
        for step in range(total):
            ranks = next(own for first, own in reversed(at) if first <= step)
            present = {rank for rank, (answer,) in enumerate(self.answers) if answer.steps[step]}
            if present != ranks:
                yield "answers", f"have step {step} of the ranks {sorted(present)}, its plan is of {sorted(ranks)}"
        for rank, (answer,) in enumerate(self.answers):
            yield from _order_faults(answer.steps, f"answers.{rank}.0.steps")

    def _uneven(self, total: int, names: set[str]) -> Iterator[Fault]:
        """Steps that are missing, and lanes that nobody knows."""
        if [first for first, _ in self.plans] != sorted({0, *(first for first, _ in self.plans)}):
            yield "plans", "do not follow each other from step 0 on"
        if len(self.history) != total:
            yield "history", f"has {len(self.history)} of {total} steps"
        for step, entry in enumerate(self.history):
            if not entry.devices.keys() <= names:
                yield f"history.{step}.devices", f"name {min(entry.devices.keys() - names)!r}"
        stood = [each[0] for each in self.answers[0][0].stood]
        for rank, (answer,) in enumerate(self.answers):
            if len(answer.steps) != total:
                yield f"answers.{rank}.0.steps", f"are {len(answer.steps)} of {total}"
            if [each[0] for each in answer.stood] != stood:
                yield f"answers.{rank}.0.stood", "has other steps than the first lane's"

    def _ranks(self, scenario: Scenario, names: Sequence[str]) -> list[tuple[int, set[int]]]:
        """First step of each plan, and who takes part in it.

        Raises:
            InputError: one is no plan that these lanes can run.
        """
        found = []
        for number, (first, document) in enumerate(self.plans):
            plan = validate(Plan, document, "plans", prefix=f"plans.{number}.1.")
            plan.check(scenario)
            division(plan, scenario.workload, names)
            found.append((first, {names.index(name) for name in plan.samples()}))
        return found


SHAPES: dict[str, type[PlansLaunch | CourseLaunch]] = {"plans": PlansLaunch, "courses": CourseLaunch}
"""By what a study measures."""


def check_launch(launch: Document, file: Path, begun: Mapping[str, Any], scenario: Scenario) -> None:
    """Refuse a launch of which no run can be made.

    Args:
        launch: as it was read.
        file: it was read from.
        begun: what the study measures, checked.
        scenario: of the study.

    Raises:
        InputError: with the file, the field and the mend.
    """
    try:
        found = validate(SHAPES[begun["kind"]], launch, "the launch")
        for path, problem in found.faults(scenario, len(begun["entries"])):
            raise InputError(path, problem)
    except InputError as error:
        raise InputError(f"{file}: {error.path}", error.problem, MEND) from error


def _answered(answers: Sequence[Sequence[object]], lanes: int, tasks: int) -> Iterator[Fault]:
    if len(answers) != lanes:
        yield "answers", f"are of {len(answers)} lanes, the study is of {lanes}"
    for rank, own in enumerate(answers):
        if len(own) != tasks:
            yield f"answers.{rank}", f"has {len(own)} answers to {tasks} tasks"


def _steps_faults(task: BlockTask | GaugeTask, rank: int, steps: Sequence[Step], path: str) -> Iterator[Fault]:
    """Steps that are missing, that are of nobody, or that end before they begin."""
    if isinstance(task, BlockTask):
        expected = 1 + task.steps if rank in task.ranks else 0
        if len(steps) != expected:
            yield path, f"are {len(steps)}, not {expected}"
        for number, step in enumerate(steps):
            if not step:
                yield f"{path}.{number}", "has no segment"
    yield from _order_faults(steps, path)


def _order_faults(steps: Sequence[Step], path: str) -> Iterator[Fault]:
    for number, step in enumerate(steps):
        if any(end < start for _, _, start, end, _, _ in step):
            yield f"{path}.{number}", "has a segment that ends before it begins"
    ends = [(number, max(segment[3] for segment in step)) for number, step in enumerate(steps) if step]
    for (_, before), (number, after) in pairwise(ends):
        if after <= before:
            yield f"{path}.{number}", "is over before the one before it"
