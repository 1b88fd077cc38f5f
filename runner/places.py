"""Temporary folders of launches: one's own alone, and swept by the next run where a driver could not remove its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import psutil

PREFIX = "steelyard-"
OWNER = "driver.json"


def new_place() -> Path:
    """A folder for one launch (mode 0700: the rendezvous is ours alone) that says which process it belongs to."""
    place = Path(tempfile.mkdtemp(prefix=PREFIX))
    (place / OWNER).write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()}))
    return place


def sweep_places(within: Path | None = None) -> list[Path]:
    """Remove the folders of drivers that are no more, and only those; what was removed.

    A driver that was killed removes nothing. Folders of other users, and such that do not say whose they are, stay.

    Args:
        within: where to look; by default the system's folder for temporary files.
    """
    found = [each for each in (within or Path(tempfile.gettempdir())).glob(f"{PREFIX}*") if _abandoned(each)]
    for place in found:
        shutil.rmtree(place, ignore_errors=True)
    return found


def _abandoned(place: Path) -> bool:
    try:
        if place.is_symlink() or (hasattr(os, "getuid") and place.stat().st_uid != os.getuid()):
            return False
        owner = json.loads((place / OWNER).read_text())
        return not is_alive(int(owner["pid"]), float(owner["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_alive(pid: int, started: float) -> bool:
    """Whether a process of that number and starting time still runs (numbers are used again)."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
