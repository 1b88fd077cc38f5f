"""Run folders on disk: written whole or not at all, read back with every field checked."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import InputError
from .record import EVENT_COLUMNS, SCHEMA_VERSION, Manifest, Run, Summary

FILES = ("manifest.json", "plan.json", "decisions.jsonl", "events.parquet", "summary.json")
MAX_TEXT_BYTES = 64 * 2**20
"""No JSON file of a run folder is longer; a longer one is not ours and is refused before it is read."""
READABLE = 500_000
"""Characters of JSON that somebody may still read through."""

M = TypeVar("M", bound=BaseModel)


def slug(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")[:48]


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; rename it to ``target`` on success, remove it on any failure.

    A folder that stands at ``target`` already is replaced by rename: a reader never sees a part of it.
    """
    with _room_for(target):
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield place
        place.chmod(0o755)  # mkdtemp's 0700 would hide the run from everybody else
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / target.name)
            place.rename(target)
            shutil.rmtree(old)
        else:
            place.rename(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part.

    Raises:
        InputError: the place cannot be written to.
    """
    with _room_for(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Make the folder of a file that is to be written; where there can be none, or nothing in it, say so.

    Raises:
        InputError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror}", "choose another folder") from error


def to_json(value: object) -> str:
    """JSON text for a file that people read: sorted keys, no NaN, indented unless nobody could read it all."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    if len(text) <= READABLE:  # indenting is done in Python, and takes long for a thousand devices
        text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    return text + "\n"


def write_run(run: Run, folder: Path) -> Path:
    """Write a run folder (manifest, plan, decisions, events, summary) and return it."""
    with whole_folder(folder) as place:
        (place / "plan.json").write_text(to_json(run.plan))
        (place / "summary.json").write_text(to_json(run.summary.model_dump(mode="json")))
        (place / "decisions.jsonl").write_text(
            "".join(json.dumps(each, sort_keys=True) + "\n" for each in run.decisions)
        )
        run.events.to_parquet(place / "events.parquet", index=False)
        (place / "manifest.json").write_text(to_json(run.manifest.model_dump(mode="json")))
    return folder


def read_run(folder: Path) -> Run:
    """Read a run folder back.

    Raises:
        InputError: the folder is not a run, a file is missing, torn or of another major version.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "is not a run folder", "give a folder under runs/ that holds a manifest.json")
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(str(folder / name), "is missing", "the run folder is not whole; simulate or replay again")
    manifest_data = read_json(folder / "manifest.json")
    check_version(manifest_data, folder / "manifest.json")
    manifest = _model(Manifest, manifest_data, folder / "manifest.json")
    summary = _model(Summary, read_json(folder / "summary.json"), folder / "summary.json")
    plan = read_json(folder / "plan.json")
    if not isinstance(plan, dict):
        raise InputError(str(folder / "plan.json"), "is not a plan", "the run folder is damaged; make the run again")
    return Run(
        manifest=manifest,
        plan=plan,
        summary=summary,
        events=_read_events(folder / "events.parquet"),
        decisions=_read_lines(folder / "decisions.jsonl"),
    )


def find_runs(paths: list[Path]) -> list[Path]:
    """The run folders among and directly under the given folders, in name order, each once."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise InputError(str(path), "is not a folder", "give a run folder, or a folder of run folders")
        if (path / "manifest.json").is_file():
            found.append(path)
            continue
        inner = sorted(each.parent for each in path.glob("*/manifest.json") if not each.parent.name.startswith("."))
        if not inner:
            raise InputError(str(path), "holds no run folder", "simulate or replay first")
        found.extend(inner)
    return list(dict.fromkeys(found))


def read_json(path: Path) -> Any:
    """Parse a JSON file of bounded size.

    Raises:
        InputError: missing, too long, not UTF-8 or not JSON.
    """
    return _guarded(path, lambda: json.loads(read_text(path)), "is not JSON")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a file of at most ``limit`` bytes.

    Raises:
        InputError: missing, unreadable, longer than the limit, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise InputError(str(path), "no such file", "check the path")
        size = path.stat().st_size
        if size > limit:
            raise InputError(str(path), f"is {size / 1e6:.0f} MB long", f"at most {limit / 1e6:.0f} MB are read")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not UTF-8 text: {error.reason}", "save it as UTF-8") from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "check its name and permissions") from error


def written_utc() -> str:
    """Now, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_provenance() -> dict[str, Any]:
    """Which code this is: package version, and git commit and dirty flag where it runs from a checkout."""
    from importlib import metadata

    here = Path(__file__).resolve().parent
    try:
        version = metadata.version("steelyard")
    except metadata.PackageNotFoundError:
        version = "unknown"
    commit = _git(here, "rev-parse", "HEAD")
    dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    return {"version": version, "git_sha": commit, "git_dirty": None if dirty is None else bool(dirty)}


@cache
def code_version() -> str:
    """The same in a word: the commit, with a + where files were changed since; without git the package's version.

    As it was when it was first asked in this process.
    """
    found = code_provenance()
    commit = found["git_sha"]
    return f"{commit[:12]}{'+' if found['git_dirty'] else ''}" if commit else str(found["version"])


def _git(folder: Path, *words: str) -> str | None:
    """What git answers about the checkout that holds a folder; None without git or checkout."""
    if not (folder.parent / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def check_version(data: object, path: Path) -> None:
    """Refuse a record of another major schema version, or none."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version",
            f"is {version!r}, this version of Steelyard reads {SCHEMA_VERSION}",
            "make the run again with this version, or read it with the version that wrote it",
        )


def _model(model: type[M], data: object, path: Path) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}", first["msg"], "the run folder is damaged; make the run again") from error


def _read_events(path: Path) -> Any:
    import pandas as pd

    frame = _guarded(path, lambda: pd.read_parquet(path), "is not a parquet file")
    missing = [column for column in EVENT_COLUMNS if column not in frame.columns]
    if missing:
        raise InputError(f"{path}: {missing[0]}", "column is missing", "the run folder is damaged; make the run again")
    return _guarded(path, lambda: frame.astype(EVENT_COLUMNS), "has a column of another type")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    text = read_text(path)
    lines: list[dict[str, Any]] = _guarded(
        path, lambda: [json.loads(line) for line in text.splitlines() if line], "is not JSON lines"
    )
    if not all(isinstance(line, dict) for line in lines):
        raise InputError(str(path), "has a line that is no table", "the run folder is damaged; make the run again")
    return lines


def _guarded(path: Path, parse: Callable[[], Any], problem: str) -> Any:
    """Run a parser over a file that may hold anything; whatever it raises over bad bytes becomes an InputError."""
    try:
        return parse()
    except InputError:
        raise
    except (ValueError, OSError, RecursionError, TypeError, LookupError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(str(path), f"{problem}: {reason}", "the file is damaged or half written") from error
