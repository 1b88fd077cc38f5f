"""Checkpoints of a training: folders that are whole, proven by digests, or not there; no pickle anywhere.

``checkpoints/step-00000050/`` holds the files of the members (safetensors), ``manifest.json`` with the SHA-256 and the
length of each, and ``manifest.sha256``, which guards the manifest. Everything is written to a hidden folder beside it,
flushed to the disk, and renamed: what a kill or a full disk interrupts never bears a checkpoint's name, and what was
damaged later is found out before a byte of it is used. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from ..results.store import to_json

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
VERSION = 1
MAX_MANIFEST_BYTES = 16 * 2**20
FOLDER = re.compile(r"step-(\d{8,})")
FILE = r"^[a-z]+(-\d{1,6})?\.safetensors$"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=FILE)]


class DamagedError(ValueError):
    """A checkpoint that must not be loaded, and what is wrong with it."""


class Stored(BaseModel):
    """One file of a checkpoint."""

    sha256: Digest
    bytes: Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """What one member has in a checkpoint."""

    rank: Annotated[int, Field(ge=0)]
    lane: str
    state: FileName
    """Weights and optimizer. Replicas whose bytes are the same share a file: the one of the lowest rank."""
    random: FileName
    """States of the random number generators."""
    busy_s: float = 0.0
    """Seconds that the lane has computed since the training began, useful steps only."""
    train_s: float = 0.0
    """Seconds of those steps, waits included."""


class Manifest(BaseModel):
    """What a checkpoint is of, and the digest of each of its files."""

    schema_version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    step: Annotated[int, Field(ge=0)]
    """Optimizer steps done."""
    next_sample: Annotated[int, Field(ge=0)]
    """Position in the data: the first sample of the next step, before it is taken modulo their number."""
    scenario_sha256: str
    plan_sha256: str
    data_sha256: str
    parts: list[Part]
    absent_busy_s: dict[str, float] = Field(default_factory=dict)
    """Of the lanes without a part at present, where that may change under way: seconds that they have computed."""
    losses: FileName
    """Mean loss of each step so far, in fp64."""
    files: dict[FileName, Stored]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose every byte was proven."""

    folder: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The bytes of a file, proven again: it may have changed since.

        Raises:
            DamagedError: the bytes are not those that were written.
        """
        return read_proven(self.folder / name, self.manifest.files[name])


@dataclass(frozen=True)
class Store:
    """The checkpoints of one training."""

    folder: Path
    keep: int = 3

    def partial(self, step: int) -> Path:
        """Where the files of a checkpoint are gathered before it is one."""
        return self.folder / f".step-{step:08d}.partial"

    def commit(self, manifest: Manifest) -> Path:
        """Make the gathered files a checkpoint: manifest, seal, disk, name; then let go of those beyond ``keep``.

        Raises:
            OSError: it cannot be written; no checkpoint has changed by then.
        """
        place, target = self.partial(manifest.step), self.folder / f"step-{manifest.step:08d}"
        text = to_json(manifest.model_dump(mode="json")).encode()
        write_durably(place / MANIFEST, text)
        write_durably(place / SEAL, seal_of(text))
        _sync_folder(place)
        if target.exists():  # one that was found damaged, or the same steps done again
            old = self.folder / f".step-{manifest.step:08d}.old"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        place.rename(target)
        _sync_folder(self.folder)
        self.prune()
        return target

    def abandon(self, step: int) -> None:
        """Remove what was gathered for a checkpoint that cannot be one."""
        shutil.rmtree(self.partial(step), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what an interrupted writer left; nobody may be writing."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)

    def prune(self) -> None:
        """Remove all but the newest ``keep``."""
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Steps of the folders with a checkpoint's name, in order; whether they are whole, :meth:`newest` finds."""
        if not self.folder.is_dir():
            return []
        found = (FOLDER.fullmatch(each.name) for each in self.folder.iterdir() if each.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and why each newer one is not."""
        reasons: list[str] = []
        for step in reversed(self.steps()):
            try:
                return proven(self.folder / f"step-{step:08d}"), reasons
            except DamagedError as damage:
                reasons.append(str(damage))
        return None, reasons


def proven(folder: Path) -> Checkpoint:
    """Read a checkpoint's manifest and prove every byte of it.

    Raises:
        DamagedError: something is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    if folder.name != f"step-{manifest.step:08d}":
        raise DamagedError(f"{folder}: holds step {manifest.step}")
    named = {manifest.losses, *(name for part in manifest.parts for name in (part.state, part.random))}
    if missing := sorted(named - set(manifest.files)):
        raise DamagedError(f"{folder / missing[0]}: has no digest in the manifest")
    for name, stored in manifest.files.items():
        digest_proven(folder / name, stored)
    return Checkpoint(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """A checkpoint's manifest, proven by its seal; the files that it names are not proven by that.

    Raises:
        DamagedError: missing, changed, or of another version.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DamagedError(f"{path}: is longer than any manifest")
        text, seal = path.read_bytes(), (folder / SEAL).read_bytes()
    except OSError as error:
        raise DamagedError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if seal != seal_of(text):
        raise DamagedError(f"{path}: its bytes are not those that were sealed")
    try:
        return Manifest.model_validate(json.loads(text))
    except (ValidationError, ValueError) as error:
        raise DamagedError(f"{path}: is no manifest of this version") from error


def seal_of(text: bytes) -> bytes:
    """The line that guards a manifest, as ``sha256sum --check`` reads it."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def digest_proven(path: Path, stored: Stored) -> None:
    """Prove a file without keeping it in memory.

    Raises:
        DamagedError: another length, or another digest.
    """
    try:
        length = path.stat().st_size
        if length != stored.bytes:
            raise DamagedError(f"{path}: is {length} bytes long, {stored.bytes} were written")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error
    if found != stored.sha256:
        raise DamagedError(f"{path}: its bytes are not those that were written")


def read_proven(path: Path, stored: Stored) -> bytes:
    """The bytes of a file, if they are those that were written.

    Raises:
        DamagedError: they are not.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise DamagedError(f"{path}: its bytes are not those that were written")
    return data


def write_durably(path: Path, data: bytes) -> Stored:
    """Write a file and have the disk confirm it; its digest and length.

    Raises:
        OSError: disk full, quota, no permission.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Stored(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def shared_states(digests: Sequence[bytes]) -> list[int]:
    """Per replica the number of the first one with the same bytes, which writes them for all."""
    return [digests.index(own) for own in digests]


def _sync_folder(folder: Path) -> None:
    """Have the disk confirm the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
