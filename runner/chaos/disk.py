"""A small disk for a training's checkpoints, which can really be full, and which nobody but that training sees.

It is a tmpfs in a mount namespace of its own: a process holds the namespace, the drivers are started in it, and when
the last process inside has ended, however it ended, the kernel takes the disk away. The host's own mounts never change.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...results.errors import WorkerFailedError
from ..checkpoint import Checkpoint, DamagedError, Store, proven
from ..journal import DISK_FULL

TOOLS = ("unshare", "nsenter", "mount")
HOLD = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat > /dev/null"]
"""Makes the namespace and holds it until standard input ends."""
UNLIMITED = 0
"""As tmpfs has it: nothing is taken but what is written."""
BALLAST = "ballast"
BLOCK = bytes(2**16)
PAGE_BYTES = 4096
SPARE_CHECKPOINTS = 2
"""Beyond those that are kept: one that is being written, and one that is replaced."""
SPARE_BYTES = 2**20
PRUNED_S = 0.2
"""In which an old checkpoint is removed when a new one is there."""


@dataclass
class SmallDisk:
    """The disk, once it is mounted; its namespace, from the beginning."""

    holder: int
    """Number of the process that holds the namespace."""
    place: Path | None = None
    """Where it is mounted, inside."""

    @property
    def entering(self) -> list[str]:
        """The words before a command that make it run inside; the working directory stays."""
        return ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", "env", f"--chdir={Path.cwd()}"]

    def inside(self, path: Path) -> Path:
        """How a path inside is reached from outside."""
        return Path(f"/proc/{self.holder}/root") / path.resolve().relative_to("/")

    def mount(self, place: Path, size_bytes: int) -> None:
        """Put the disk in a place, a folder that is made if need be.

        Raises:
            WorkerFailedError: the host does not let us, or there is something in the folder.
        """
        place.mkdir(exist_ok=True)
        if any(place.iterdir()):
            raise WorkerFailedError(f"{place}: has something in it, and no disk is mounted over that")
        words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(place.resolve())]
        answer = subprocess.run([*self.entering, *words], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise WorkerFailedError(answer.stderr.strip() or f"mount ended with code {answer.returncode}")
        self.place = place

    def fill(self) -> None:
        """Take all the room that there is, to the last page."""
        assert self.place is not None
        with (self.inside(self.place) / BALLAST).open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(BLOCK)
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise

    def free(self) -> None:
        """Make room again."""
        assert self.place is not None
        (self.inside(self.place) / BALLAST).unlink(missing_ok=True)

    def keep(self) -> None:
        """Copy what is on the disk to the folder beneath it: the disk goes, its files stay."""
        if self.place is not None:
            ignored = shutil.ignore_patterns(BALLAST)
            shutil.copytree(self.inside(self.place), self.place, ignore=ignored, dirs_exist_ok=True)


@contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """A disk for as long as the context lasts; what is on it in the end stays where it was mounted.

    Raises:
        WorkerFailedError: the host lets nobody have a mount namespace.
    """
    with subprocess.Popen(
        HOLD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.readline() != "ready\n":
                raise WorkerFailedError(holder.stderr.read().strip() or "unshare says nothing")
            disk = SmallDisk(holder.pid)
            try:
                yield disk
            except BaseException:
                with suppress(OSError):  # what went wrong before is what matters
                    disk.keep()
                raise
            disk.keep()
        finally:
            with suppress(BrokenPipeError):
                holder.stdin.close()


def refusal() -> str:
    """Why no small disk can be had here, found out by having one and filling it; empty: it can."""
    missing = next((name for name in TOOLS if shutil.which(name) is None), None)
    if missing is not None:
        return f"the command {missing} (util-linux) is not installed"
    try:
        with tempfile.TemporaryDirectory() as place, small_disk() as disk:
            disk.mount(Path(place), SPARE_BYTES)
            disk.fill()
    except (OSError, WorkerFailedError) as error:
        return str(error)
    return ""


def size_for(checkpoint: Checkpoint, keep: int) -> int:
    """Bytes of a disk that holds so many checkpoints of this size, the one that is being written, and little more."""
    each = sum(-(-file.stat().st_size // PAGE_BYTES) * PAGE_BYTES for file in checkpoint.folder.iterdir())
    return (keep + SPARE_CHECKPOINTS) * each + SPARE_BYTES


def damaged(store: Store, steps: Sequence[int], saved: int) -> list[str]:
    """Which checkpoints a full disk has harmed, a sentence each.

    Args:
        store: of all checkpoints.
        steps: of those that were there while the disk was full.
        saved: the last step whose checkpoint was written before; 0: none.
    """
    found = [] if not saved or saved in steps else [f"the checkpoint of step {saved} is gone"]
    for step in steps:
        try:
            proven(store.folder / f"step-{step:08d}")
        except DamagedError as error:
            time.sleep(PRUNED_S)
            if step in store.steps():  # else it has had to make room for a new one meanwhile
                found.append(str(error))
    return found
