"""One drill: ``steelyard train`` as a process of its own, and faults that strike it and its workers while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from ...results.errors import WorkerFailedError
from ..checkpoint import Checkpoint, Store
from ..journal import Event, Spent, parse_events, spent
from ..training_folder import TrainingFolder
from .blows import strike as blow
from .busy import Busy
from .disk import SmallDisk, damaged, small_disk
from .leftovers import Holding, Sightings, marked
from .strikes import Strike

POLL_S = 0.01
LOOK_S = 0.5
"""Between two looks at what a training has on the host."""
ENDING_S = 10.0
"""What a killed driver has started and has not ended by then does not end."""


@dataclass(frozen=True)
class Struck:
    """A fault that was done to a worker, to the driver, or to the disk of the checkpoints."""

    strike: Strike
    lane: str
    """Of the worker; empty where it was none."""
    at_s: float
    """Of the monotonic clock, as the journal's times are."""
    left: Sequence[str] = ()
    """What the launch still held when it was over: a sentence each."""
    lost: Sequence[str] = ()
    """Checkpoints that a full disk has harmed: a sentence each."""
    over_s: float | None = None
    """When what a killed driver had started had ended; when the disk had room again."""

    @property
    def named(self) -> str:
        """What messages call it."""
        return f"{self.strike.kind} of {self.lane}" if self.lane else self.strike.kind


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
    driver_s: float
    """From the start of the first driver to its first launch."""
    busy: Sequence[str] = ()
    """Why the host counts as busy meanwhile; empty: it does not."""
    unswept: Sequence[str] = ()
    """What killed drivers had left and the next launch had not removed: a sentence each."""

    @property
    def spent(self) -> Spent:
        """Where the time went."""
        return spent(self.events)

    @property
    def store(self) -> Store:
        """Its checkpoints."""
        return self.folder.store(1)

    @property
    def final(self) -> Checkpoint:
        """The last checkpoint."""
        found, reasons = self.store.newest()
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
    disk_bytes: int | None = None,
) -> Drill:
    """Train a resolved scenario to the end in a process of its own, and strike it and its workers meanwhile.

    A driver that was killed is followed by ``steelyard train --resume`` at once.

    Args:
        scenario: file.
        policy: divides the work, in the command line's words.
        runs: folder for this training alone.
        members: ranks of the lanes that train, by name.
        strikes: in order, each of which strikes one launch, and so many seconds into its part of that; what follows a
            full disk strikes the same launch, so long after there was room again.
        disk_bytes: size of a disk for its checkpoints alone; None: they are where the runs are.

    Raises:
        WorkerFailedError: the training ended otherwise than well.
    """
    marker = runs / "tmp"
    marker.mkdir(parents=True)
    with ExitStack() as stack:
        output = stack.enter_context((runs / "output.txt").open("w"))
        disk = stack.enter_context(small_disk()) if disk_bytes is not None else None
        storm = _Storm(runs, members, strikes, disk, disk_bytes or 0, output)
        began_s = time.monotonic()
        words = [str(scenario.resolve()), "--policy", policy]
        while (code := storm.drive(words)) == -signal.SIGKILL and storm.killed:
            words = ["--resume", str(storm.folder.path.resolve())]
    if code != 0:
        last = (runs / "output.txt").read_text().strip().splitlines()[-1:]
        raise WorkerFailedError(f"training in {runs} ended with code {code}: {''.join(last)}")
    events = timed(storm.folder.journal.read(), storm.struck)
    driver_s = next(event["at_s"] for event in events if event["event"] == "launch") - began_s
    return Drill(storm.folder, events, storm.struck, storm.sightings, driver_s, storm.busy.reasons(), storm.still_there)


def timed(events: Sequence[Event], struck: Sequence[Struck]) -> list[Event]:
    """The events with what only he can know who killed a driver: when. The one who goes on knows the last line's time.

    So the time before a driver's fault is parted into steps that were done in vain and the time until somebody went on.
    """
    found = list(events)
    for each in struck:
        after = (index for index, event in enumerate(found) if event["at_s"] > each.at_s and event["event"] == "fault")
        index = next(after, None)
        if each.strike.kind != "driver" or index is None:
            continue
        launches = [number for number in range(index) if found[number]["event"] == "launch"]
        safe = [event["at_s"] for event in found[launches[-1] : index] if event["event"] in ("begun", "saved")]
        vain_s = max(0.0, each.at_s - safe[-1]) if safe else 0.0
        delay_s = found[index]["at_s"] - each.at_s
        found[index] = {**found[index], "recompute_s": vain_s, "detected_after_s": delay_s}
    return found


@dataclass
class _Storm:
    """A training while it is struck, driver after driver."""

    runs: Path
    members: Mapping[str, int]
    strikes: Sequence[tuple[Strike, float]]
    disk: SmallDisk | None
    disk_bytes: int
    output: IO[str]
    struck: list[Struck] = field(default_factory=list)
    busy: Busy = field(default_factory=Busy)
    unswept: list[Path] = field(default_factory=list)
    """Of drivers that were killed: what the next launch is to remove."""
    still_there: list[str] = field(default_factory=list)
    killed: bool = False
    """Whether the driver has been killed, and nobody has gone on yet."""
    sightings: Sightings = field(init=False)
    tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        self.sightings, self.tail = Sightings((self.runs / "tmp").resolve()), Tail(self.runs)

    @property
    def folder(self) -> TrainingFolder:
        """The training's.

        Raises:
            WorkerFailedError: it has none yet.
        """
        found = self.tail.folder()
        if found is None:
            raise WorkerFailedError(f"training in {self.runs} has no folder")
        return found

    def drive(self, words: Sequence[str]) -> int:
        """Run a driver until it ends, and strike meanwhile; its exit code."""
        self.killed = False
        with self._driver(words) as process:
            self.sightings.drivers.add(process.pid)
            try:
                for _ in _while_running(process, self.sightings):
                    self._mount()
                    self._look_after_the_killed()
                    if len(self.struck) < len(self.strikes):
                        self.struck += self._strike(*self.strikes[len(self.struck)], process.pid)
            finally:
                process.terminate()  # interrupted ourselves: it ends its workers
                process.wait()
        return process.returncode

    def _driver(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(self.disk.entering if self.disk else []),
                *[sys.executable, "-m", "steelyard.runner.cli", "train", *words, "--runs", str(self.runs.resolve())],
            ],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(self.sightings.marker)},
        )

    def _mount(self) -> None:
        """Give the checkpoints their disk as soon as the training has a folder: long before the first of them."""
        if self.disk and self.disk.place is None and (folder := self.tail.folder()) is not None:
            self.disk.mount(folder.store(1).folder, self.disk_bytes)

    def _look_after_the_killed(self) -> None:
        """Once the launch after a killed driver has begun, nothing of that driver is to be there."""
        if self.unswept and any(event["event"] == "begun" for event in self._launch()):
            self.still_there += [f"after a driver: {path} is still there" for path in self.unswept if path.exists()]
            self.unswept.clear()

    def _launch(self) -> list[Event]:
        """Events of the launch that goes on now, if it is not one that has been struck down."""
        own = self.tail.attempt()
        over = [each.at_s for each in self.struck if each.strike.ends_launch]
        return own if own and (not over or own[0]["at_s"] > over[-1]) else []

    def _strike(self, strike: Strike, after_s: float, driver: int) -> list[Struck]:
        """Strike if it is time in the launch that goes on now."""
        own = self._launch()
        first = "launch" if strike.starting else "begun"
        since = next((event["at_s"] for event in own if event["event"] == first), None)
        if since is None:
            return []
        if self.struck and not self.struck[-1].strike.ends_launch:
            since = max(since, self.struck[-1].over_s or 0.0)
        if time.monotonic() < since + after_s:
            return []
        if strike.kind == "disk":
            return self._fill(strike, own, driver)
        if strike.kind == "driver":
            return self._kill_driver(strike, own, driver)
        return self._hit_worker(strike, own, driver)

    def _hit_worker(self, strike: Strike, own: Sequence[Event], driver: int) -> list[Struck]:
        lane = list(self.members)[strike.member]
        victim = worker_of(driver, self.members[lane])
        if victim is None or self.tail.attempt() != own:
            return []
        holding, at_s = Holding.of(driver), time.monotonic()
        try:
            blow(strike.kind, victim)
        except psutil.NoSuchProcess:  # it ended between the two lines: the strike is for the next launch
            return []
        _until_failed(self.tail, own, driver)
        return [Struck(strike, lane, at_s, holding.left())]

    def _kill_driver(self, strike: Strike, own: Sequence[Event], driver: int) -> list[Struck]:
        """Kill it, and wait until nothing runs that it had started: what is marked has no other driver now."""
        holding, places = Holding.of(driver), list(self.sightings.marker.iterdir())
        if self.tail.attempt() != own:
            return []
        self.busy.own(holding.spent_s)  # who was started by the dead is waited for by others
        at_s = time.monotonic()
        try:
            blow(strike.kind, psutil.Process(driver))
        except psutil.NoSuchProcess:
            return []
        self.killed = True
        while marked(self.sightings.marker) and time.monotonic() < at_s + ENDING_S:
            time.sleep(POLL_S)
        over_s = time.monotonic()
        self.unswept += [*holding.groups, *places]
        return [Struck(strike, "", at_s, holding.left(groups=False), over_s=over_s)]

    def _fill(self, strike: Strike, own: Sequence[Event], driver: int) -> list[Struck]:
        """Leave no room on the disk until a checkpoint could not be written; then look at those that there are."""
        assert self.disk is not None
        store, at_s = Store(self.disk.inside(self.folder.store(1).folder)), time.monotonic()
        try:
            while not any(event["event"] == "unsaved" for event in self.tail.read() if event["at_s"] > at_s):
                if _is_over(self.tail, own, driver):
                    return []  # another fault was quicker: the strike is for the next launch
                self.disk.fill()  # again: a new checkpoint makes room, as an old one goes for it
                time.sleep(POLL_S)
            saved = [event["step"] for event in self.tail.read() if event["event"] in ("begun", "saved")]
            steps = store.steps()
        finally:
            self.disk.free()
        over_s = time.monotonic()
        return [Struck(strike, "", at_s, lost=damaged(store, steps, saved[-1]), over_s=over_s)]


def _while_running(process: subprocess.Popen[bytes], sightings: Sightings) -> Iterator[None]:
    looked = 0.0
    while process.poll() is None:
        yield
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            sightings.look(process.pid)
        time.sleep(POLL_S)


def _until_failed(tail: Tail, own: Sequence[Event], driver: int) -> None:
    """Wait until the driver has noticed, or is gone: one launch is struck once."""
    while not _is_over(tail, own, driver):
        time.sleep(POLL_S)


def _is_over(tail: Tail, own: Sequence[Event], driver: int) -> bool:
    """Whether a launch has ended, or its driver."""
    if not psutil.pid_exists(driver) or psutil.Process(driver).status() == psutil.STATUS_ZOMBIE:
        return True
    return tail.attempt()[: len(own)] != list(own)


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
