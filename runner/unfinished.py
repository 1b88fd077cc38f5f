"""Unfinished: a replay's complete launches, each on disk as soon as it is complete, so that a killed driver loses none.

While a replay measures, ``launches/`` in its study's folder holds ``begun.json``, which says what is measured, and one
file per complete launch, plain JSON. A driver that ends by itself makes measured runs of what was complete and removes
the folder. One that was killed leaves it, and whoever looks at the study next makes the runs (:func:`recover`).
"""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from ..results.errors import InputError, WorkerFailedError
from ..results.record import SCHEMA_VERSION, PolicyRecord, Run
from ..results.store import find_runs, read_run, read_text, slug, write_run, write_text
from ..sim.checking import validate
from ..sim.plan import Plan
from ..sim.spec import Scenario
from .history import remember
from .kept import MEND, Document, check_launch
from .protocol import Measurement

MAX_BYTES = 2**30
"""No file of a launch is longer."""
KILLED = "the driver was killed"


class CourseMeasured(BaseModel):
    """A policy that is followed."""

    label: str
    predicted_run_id: str
    twin_of: str | None


class PlanMeasured(CourseMeasured):
    """A plan that is measured."""

    policy: PolicyRecord
    plan: Document
    gradient_error: float | None
    exact_gradient_error: float | None

    @field_validator("plan")
    @classmethod
    def _is_plan(cls, plan: Document) -> Document:
        Plan.parse(plan)
        return plan


class Begun(BaseModel):
    """The shape of ``begun.json``, whatever is measured."""

    scenario: Scenario
    seed: int
    sha256: str
    notes: list[str]
    before: Document
    asked: int
    provenance: Document


class PlansBegun(Begun):
    """Its shape where plans are measured."""

    entries: list[PlanMeasured]


class CoursesBegun(Begun):
    """Its shape where policies are followed."""

    entries: list[CourseMeasured]
    gradient_errors: dict[str, float | None]


SHAPES: dict[str, type[Begun]] = {"plans": PlansBegun, "courses": CoursesBegun}


@dataclass(frozen=True)
class Study:
    """A replay's folder and everything in it."""

    folder: Path
    predicted: list[Run]
    measured: list[Run]
    interrupted: bool = False

    @property
    def runs(self) -> list[Run]:
        """Predicted and measured runs."""
        return [*self.predicted, *self.measured]


@dataclass(frozen=True)
class Launches:
    """The complete launches of a study that has no measured runs yet."""

    study: Path

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.study / "launches"

    @property
    def begun(self) -> Path:
        """The file that says what is measured."""
        return self.folder / "begun.json"

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold them; False where another process does. The lock ends with the process, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def measuring(self, begun: Mapping[str, Any]) -> Iterator[None]:
        """Say what is measured, before the first launch; nothing is left where not one was complete in the end."""
        with self.alone():
            write_text(self.begun, json.dumps(begun))
            try:
                yield
            finally:
                if not self.files:
                    self.remove()

    @property
    def files(self) -> list[Path]:
        """One per complete launch, in order."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def add(self, launch: Mapping[str, Any]) -> None:
        """Keep a complete launch: on disk, whole, before anything else happens."""
        write_text(self.folder / f"{len(self.files):04d}.json", json.dumps(launch))

    def read(self) -> tuple[Document, list[Document]]:
        """What was measured, and the complete launches: of these, all is there that runs are made of.

        Raises:
            InputError: a file is damaged, or what was measured was written by another version.
        """
        begun = _read(self.begun, f"remove {self.folder}: without this file its launches cannot be used")
        scenario = _checked(begun, self.begun)
        launches = [_read(file, MEND) for file in self.files]
        for file, launch in zip(self.files, launches, strict=True):
            check_launch(launch, file, begun, scenario)
        return begun, launches

    def remove(self) -> None:
        """Forget them: their measured runs are on disk, or there is nothing to keep."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path, mend: str) -> Document:
    text = read_text(file, MAX_BYTES)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(str(file), f"is damaged: {error}", mend) from error
    if not isinstance(document, dict):
        raise InputError(str(file), "is no JSON object", mend)
    return document


def _checked(begun: Document, file: Path) -> Scenario:
    """The scenario of what this version wrote; anything else is refused.

    Raises:
        InputError: another version, kind or shape.
    """
    mend = f"use the version of steelyard that measured, or remove {file.parent}"
    version, kind = begun.get("schema_version"), begun.get("kind")
    if version != SCHEMA_VERSION:
        raise InputError(f"{file}: schema_version", f"is {version!r}, this version reads {SCHEMA_VERSION}", mend)
    if not isinstance(kind, str) or kind not in SHAPES:
        raise InputError(f"{file}: kind", f"is {kind!r}, known are {', '.join(SHAPES)}", mend)
    try:
        return validate(SHAPES[kind], begun, str(file), prefix=f"{file}: ").scenario
    except InputError as error:
        raise InputError(error.path, error.problem, mend) from error


def keep(launches: Launches, predicted: list[Run], measured: list[Run], stopped: BaseException | None) -> Study:
    """Write a study's measured runs, numbered as their predictions, and add its errors to the folder's history.

    Raises:
        WorkerFailedError: ``stopped``, where a fault ended the measurement: what was complete is on disk.
    """
    folder = launches.study
    for number, run in zip(numbers(predicted, measured), measured, strict=True):
        write_run(run, folder / run_folder(number, run.manifest.label, "measured"))
    launches.remove()
    study = Study(folder, predicted, measured, interrupted=stopped is not None)
    remember(study.runs, folder.parent, folder.name)
    if isinstance(stopped, WorkerFailedError):
        raise stopped
    return study


def numbers(predicted: Sequence[Run], measured: Sequence[Run]) -> list[int]:
    """What measured runs' folders are numbered by: as the prediction's, whatever was left out before; twins come last.

    Args:
        predicted: all of the study, in their order.
        measured: each of one of them.
    """
    place = {run.manifest.run_id: number for number, run in enumerate(predicted)}
    behind = itertools.count(len(predicted))
    return [
        place[str(run.manifest.predicted_run_id)] if run.manifest.twin_of is None else next(behind) for run in measured
    ]


def run_folder(number: int, label: str, kind: str) -> str:
    """Folder name of a study's run."""
    return f"{number:02d}-{slug(label)}-{kind}"


def recover(folders: Sequence[Path]) -> list[str]:
    """Make measured runs of the launches that killed drivers left in some studies; a line for each study that had any.

    Raises:
        InputError: a file is damaged, or the runs cannot be written.
    """
    return [line for folder in folders if Launches(folder).begun.is_file() for line in _recover(folder)]


def _recover(folder: Path) -> list[str]:
    launches = Launches(folder)
    with launches.alone() as free:
        if not free:
            return [f"{folder} is being measured: its complete launches will be runs when that ends"]
        if not launches.begun.is_file():  # the measurement ended after we looked
            launches.remove()
            return []
        begun, complete = launches.read()
        if not complete:
            launches.remove()
            return [f"{KILLED} that measured {folder}: no launch was complete"]
        predicted = [read_run(each) for each in find_runs([folder]) if not each.name.endswith("-measured")]
        _require_predictions(begun, predicted, folder)
        measured = _assembler(begun["kind"], folder)(begun, complete, predicted)
        study = keep(launches, predicted, measured, None)
    return [f"{KILLED} that measured {folder}: {len(study.measured)} runs made of its complete launches"]


def _require_predictions(begun: Document, predicted: Sequence[Run], folder: Path) -> None:
    known = {run.manifest.run_id for run in predicted}
    for each in begun["entries"]:
        if each["predicted_run_id"] not in known:
            raise InputError(
                str(folder), f"lacks the prediction of {each['label']}", "give the whole folder of the replay"
            )


def _assembler(kind: str, folder: Path) -> Callable[[Document, list[Document], list[Run]], list[Run]]:
    """What makes measured runs of a study's launches, by their kind."""
    from .courses import assembled_courses
    from .measured import assembled_plans

    return partial(assembled_plans, folder=folder) if kind == "plans" else assembled_courses


def killed(begun: Document) -> Measurement:
    """What is known of a measurement whose driver was killed, its launches left out."""
    stopped = WorkerFailedError(KILLED)
    known = {key: begun[key] for key in ("before", "asked", "provenance")}
    return Measurement(stopped=stopped, reason=KILLED, **known)
