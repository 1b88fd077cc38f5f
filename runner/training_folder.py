"""The folder of a training run: what it is about, its checkpoints, its journal, and in the end its result.

``training.json`` (scenario with this host's tables, plan, policy, interval of checkpoints) is written before the first
step, so that a later run can go on from the folder alone; ``checkpoints/`` and ``journal.jsonl`` grow while it trains;
``result.json`` is there when it is through.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

from ..results.errors import InputError
from ..results.record import PolicyRecord, digest
from ..results.store import read_json, slug, to_json, write_text
from ..sim.plan import Plan
from ..sim.spec import Scenario
from .checkpoint import Store
from .journal import Journal

SCHEMA_VERSION = 1


class About(BaseModel):
    """What ``training.json`` holds."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    written_utc: str
    scenario: Scenario
    scenario_sha256: str = ""
    """Of the scenario as it was written first: a later version may know more fields."""
    policy: PolicyRecord
    plan: dict[str, Any]
    data_sha256: str
    checkpoint_every_steps: int = Field(ge=0)
    """0: only at the end."""
    predicted: dict[str, float]
    former_plans: list[str] = Field(default_factory=list)
    """Digests of the plans that it had before it was divided anew."""
    adapts: bool = False
    """Whether its policy is asked again under way."""
    plan_changes: int = Field(default=0, ge=0)
    """Of its policy's own, under way."""
    notes: list[str] = Field(default_factory=list)

    def divided_anew(self, plan: Plan, policy: PolicyRecord, note: str) -> Self:
        """The same training by another plan."""
        former = [*self.former_plans, self.divided.sha256]
        update = {"plan": plan.document(), "policy": policy, "former_plans": former, "notes": [*self.notes, note]}
        return self.model_copy(update=update)

    def signed(self, scenario: dict[str, Any]) -> Self:
        """The same with the digest of the scenario, where it has none yet.

        Args:
            scenario: as it is written.
        """
        return self if self.scenario_sha256 else self.model_copy(update={"scenario_sha256": digest(scenario)})

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must be of, to be one of this training."""
        return {
            "scenario_sha256": self.scenario_sha256,
            "plan_sha256": self.divided.sha256,
            "data_sha256": self.data_sha256,
        }

    @property
    def divided(self) -> Plan:
        """The plan."""
        return Plan.parse(self.plan)


@dataclass(frozen=True)
class TrainingFolder:
    """A training's folder on disk."""

    path: Path

    @cached_property
    def journal(self) -> Journal:
        """What happened when."""
        return Journal(self.path / "journal.jsonl")

    def store(self, keep: int) -> Store:
        """Its checkpoints."""
        return Store(self.path / "checkpoints", keep)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder: two drivers would write over each other. The lock ends with the process, however it ends.

        Raises:
            InputError: another process trains in it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(str(self.path), "another process trains in it", "wait for it, or end it") from error
            yield

    def write_about(self, about: About) -> None:
        """Say what the training is about, before its first step."""
        write_text(self.path / "training.json", to_json(about.model_dump(mode="json")))

    def read_about(self) -> About:
        """What the training is about.

        Raises:
            InputError: no training's folder, or damaged.
        """
        path = self.path / "training.json"
        if not path.is_file():
            raise InputError(str(self.path), "is no folder of a training", "give a folder runs/train-... to --resume")
        try:
            document = read_json(path)
            about = About.model_validate(document)
            return about.signed(document["scenario"])
        except ValidationError as error:
            raise InputError(str(path), error.errors()[0]["msg"], "the folder is damaged; train again") from error

    def write_result(self, document: dict[str, Any]) -> None:
        """Keep what the training came to."""
        write_text(self.path / "result.json", to_json(document))


def new_folder(runs: Path, scenario: Scenario) -> TrainingFolder:
    """A folder for a new training: when it began, what it is about; sortable."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return TrainingFolder(runs / f"train-{stamp}-{slug(scenario.name)}-{digest([stamp, os.getpid()])[:6]}")


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
