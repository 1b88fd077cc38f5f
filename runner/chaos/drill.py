"""One drill: ``steelyard train`` as a process of its own, and faults that strike its workers while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from ...results.errors import WorkerFailedError
from ..checkpoint import Checkpoint
from ..journal import Event, Spent, parse_events, spent
from ..training_folder import TrainingFolder
from .blows import strike as blow
from .busy import Busy
from .leftovers import Holding, Sightings
from .strikes import Strike

POLL_S = 0.01
LOOK_S = 0.5
"""Between two looks at what a training has on the host."""


@dataclass(frozen=True)
class Struck:
    """A fault that was done to a worker."""

    strike: Strike
    lane: str
    at_s: float
    """Of the monotonic clock, as the journal's times are."""
    left: Sequence[str] = ()
    """What the launch still held when the driver had written the fault down: a sentence each."""


@dataclass
class Tail:
    """A journal that is read while another process writes it."""

    runs: Path
    events: list[Event] = field(default_factory=list)
    offset: int = 0

    def folder(self) -> TrainingFolder | None:
        """The one training in the folder of runs, once it is there."""
        found = list(self.runs.glob("train-*"))
        return TrainingFolder(found[0]) if found else None

    def read(self) -> list[Event]:
        """All events so far."""
        folder = self.folder()
        if folder is not None and folder.journal.path.is_file():
            with folder.journal.path.open("rb") as file:
                file.seek(self.offset)
                whole = file.read().rpartition(b"\n")[0]
            self.offset += len(whole) + bool(whole)
            self.events += parse_events(whole.decode(errors="replace").splitlines())
        return self.events

    def attempt(self) -> list[Event]:
        """Events of the launch that goes on now; none when the last one has failed."""
        events = self.read()
        starts = [index for index, event in enumerate(events) if event["event"] == "launch"]
        own = events[starts[-1] :] if starts else []
        return [] if any(event["event"] in ("fault", "done") for event in own) else own


@dataclass(frozen=True)
class Drill:
    """What a training under faults came to."""

    folder: TrainingFolder
    events: list[Event]
    struck: list[Struck]
    sightings: Sightings
    busy: Sequence[str] = ()
    """Why the host counts as busy meanwhile; empty: it does not."""

    @property
    def spent(self) -> Spent:
        """Where the time went."""
        return spent(self.events)

    @property
    def final(self) -> Checkpoint:
        """The last checkpoint."""
        found, reasons = self.folder.store(1).newest()
        if found is None:
            raise WorkerFailedError(f"{self.folder.path}: has no whole checkpoint: {reasons}")
        return found

    @property
    def faults(self) -> list[Event]:
        """Faults in the journal."""
        return [event for event in self.events if event["event"] == "fault"]


def drill(
    scenario: Path,
    policy: str,
    runs: Path,
    members: Mapping[str, int],
    *,
    strikes: Sequence[tuple[Strike, float]] = (),
) -> Drill:
    """Train a resolved scenario to the end in a process of its own, and strike its workers meanwhile.

    Args:
        scenario: file.
        policy: divides the work, in the command line's words.
        runs: folder for this training alone.
        members: ranks of the lanes that train, by name.
        strikes: in order, each of which strikes one launch, and so many seconds into its part of that.

    Raises:
        WorkerFailedError: the training ended otherwise than well.
    """
    marker = runs / "tmp"
    marker.mkdir(parents=True)
    sightings, tail = Sightings(marker.resolve()), Tail(runs)
    struck: list[Struck] = []
    busy = Busy()
    with (runs / "output.txt").open("w") as output, _training(scenario, policy, runs, output) as process:
        sightings.drivers.add(process.pid)
        try:
            for _ in _while_running(process, sightings):
                if len(struck) < len(strikes):
                    struck += _strike(*strikes[len(struck)], tail, process.pid, members)
        finally:
            process.terminate()  # interrupted ourselves: it ends its workers
            process.wait()
    folder = tail.folder()
    if process.returncode != 0 or folder is None:
        last = (runs / "output.txt").read_text().strip().splitlines()[-1:]
        raise WorkerFailedError(f"training in {runs} ended with code {process.returncode}: {''.join(last)}")
    return Drill(folder, folder.journal.read(), struck, sightings, busy.reasons())


def _training(scenario: Path, policy: str, runs: Path, output: IO[str]) -> subprocess.Popen[bytes]:
    words = ["train", str(scenario.resolve()), "--policy", policy, "--runs", str(runs.resolve())]
    return subprocess.Popen(
        [sys.executable, "-m", "steelyard.runner.cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str((runs / "tmp").resolve())},
    )


def _while_running(process: subprocess.Popen[bytes], sightings: Sightings) -> Iterator[None]:
    looked = 0.0
    while process.poll() is None:
        yield
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            sightings.look(process.pid)
        time.sleep(POLL_S)


def _strike(strike: Strike, after_s: float, tail: Tail, driver: int, members: Mapping[str, int]) -> list[Struck]:
    """Strike if it is time in the launch that goes on now."""
    own = tail.attempt()
    since = next((event["at_s"] for event in own if event["event"] == ("launch" if strike.starting else "begun")), None)
    if since is None or time.monotonic() < since + after_s:
        return []
    lane = list(members)[strike.member]
    victim = worker_of(driver, members[lane])
    if victim is None or tail.attempt() != own:
        return []
    holding, at_s = Holding.of(driver), time.monotonic()
    try:
        blow(strike.kind, victim)
    except psutil.NoSuchProcess:  # it ended between the two lines: the strike is for the next launch
        return []
    _until_failed(tail, own, driver)
    return [Struck(strike, lane, at_s, holding.left())]


def _until_failed(tail: Tail, own: Sequence[Event], driver: int) -> None:
    """Wait until the driver has noticed, or is gone: one launch is struck once."""
    while psutil.pid_exists(driver) and tail.attempt()[: len(own)] == list(own):
        if psutil.Process(driver).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(POLL_S)


def worker_of(driver: int, rank: int) -> psutil.Process | None:
    """The worker of a rank of a driver; None while there is none."""
    try:
        for child in psutil.Process(driver).children(recursive=True):
            words = child.cmdline()
            if "steelyard.runner.worker" in words and words[-1] == str(rank):
                return child
    except psutil.NoSuchProcess:
        return None
    return None
