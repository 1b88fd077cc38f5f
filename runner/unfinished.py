"""Unfinished: a replay's complete launches, each on disk as soon as it is complete, so that a killed driver loses none.

While a replay measures, ``launches/`` in its study's folder holds ``begun.json``, which says what is measured, and one
file per complete launch, plain JSON. A driver that ends by itself makes measured runs of what was complete and removes
the folder. One that was killed leaves it, and whoever looks at the study next makes the runs (:func:`recover`).
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results.errors import InputError, WorkerFailedError
from ..results.record import Run
from ..results.store import find_runs, read_run, read_text, slug, write_run, write_text
from .history import remember
from .protocol import Measurement

Document = dict[str, Any]
MAX_BYTES = 2**30
"""No file of a launch is longer."""
KILLED = "the driver was killed"


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
            write_text(self.folder / "begun.json", json.dumps(begun))
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
        """What was measured, and the complete launches.

        Raises:
            InputError: a file is damaged.
        """
        return _read(self.folder / "begun.json"), [_read(file) for file in self.files]

    def remove(self) -> None:
        """Forget them: their measured runs are on disk, or there is nothing to keep."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path) -> Document:
    text = read_text(file, MAX_BYTES)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(str(file), f"is damaged: {error}", "remove the file; the other launches are used") from error
    if not isinstance(document, dict):
        raise InputError(str(file), "is no JSON object", "remove the file; the other launches are used")
    return document


def keep(launches: Launches, predicted: list[Run], measured: list[Run], stopped: BaseException | None) -> Study:
    """Write a study's measured runs, named by their order, and add its errors to the history of the folder of runs.

    Raises:
        WorkerFailedError: ``stopped``, where a fault ended the measurement: what was complete is on disk.
    """
    folder = launches.study
    for number, run in enumerate(measured):
        write_run(run, folder / run_folder(number, run.manifest.label, "measured"))
    launches.remove()
    study = Study(folder, predicted, measured, interrupted=stopped is not None)
    remember(study.runs, folder.parent, folder.name)
    if isinstance(stopped, WorkerFailedError):
        raise stopped
    return study


def run_folder(number: int, label: str, kind: str) -> str:
    """Folder name of a study's run."""
    return f"{number:02d}-{slug(label)}-{kind}"


def recover(folders: Sequence[Path]) -> list[str]:
    """Make measured runs of the launches that killed drivers left in some studies; a line for each study that had any.

    Raises:
        InputError: a file is damaged, or the runs cannot be written.
    """
    return [line for folder in folders if (folder / "launches" / "begun.json").is_file() for line in _recover(folder)]


def _recover(folder: Path) -> list[str]:
    launches = Launches(folder)
    with launches.alone() as free:
        if not free:
            return [f"{folder} is being measured: its complete launches will be runs when that ends"]
        if not (launches.folder / "begun.json").is_file():  # the measurement ended after we looked
            launches.remove()
            return []
        begun, complete = launches.read()
        if not complete:
            launches.remove()
            return [f"{KILLED} that measured {folder}: no launch was complete"]
        predicted = [read_run(each) for each in find_runs([folder]) if not each.name.endswith("-measured")]
        _require_predictions(begun, predicted, folder)
        measured = _assembler(begun, launches.folder)(begun, complete, predicted)
        study = keep(launches, predicted, measured, None)
    return [f"{KILLED} that measured {folder}: {len(study.measured)} runs made of its complete launches"]


def _require_predictions(begun: Document, predicted: Sequence[Run], folder: Path) -> None:
    known = {run.manifest.run_id for run in predicted}
    for each in begun["entries"]:
        if each["predicted_run_id"] not in known:
            raise InputError(
                str(folder), f"lacks the prediction of {each['label']}", "give the whole folder of the replay"
            )


def _assembler(begun: Document, folder: Path) -> Callable[[Document, list[Document], list[Run]], list[Run]]:
    """What makes measured runs of launches, by their kind."""
    from .courses import assembled_courses
    from .replay import assembled_plans

    kinds = {"plans": assembled_plans, "courses": assembled_courses}
    if begun.get("kind") not in kinds:
        problem = f"is of kind {begun.get('kind')!r}, known are {', '.join(kinds)}"
        raise InputError(str(folder / "begun.json"), problem, "use the version of steelyard that measured")
    return kinds[begun["kind"]]


def killed(begun: Document) -> Measurement:
    """What is known of a measurement whose driver was killed, its launches left out."""
    stopped = WorkerFailedError(KILLED)
    known = {key: begun[key] for key in ("before", "asked", "provenance")}
    return Measurement(stopped=stopped, reason=KILLED, **known)
