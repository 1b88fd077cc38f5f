"""Running: what goes into an execution of a program and what comes out; shared by the event loop and the recurrence."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..results.errors import InputError
from .program import Job, Program, Worker
from .schedule import Piece

Row = tuple[int, int, int, str, int, int, int, str, float, float, int]
"""In the order of :data:`steelyard.results.record.EVENT_COLUMNS`."""
NO_PIECE = Piece(False, -1, -1)
"""Work that belongs to no micro-batch."""
MAX_SEGMENTS = 5_000_000
"""Intervals that one run may hold: they are kept in memory."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Factors on the work of one launch; a missing name is never slower or faster."""

    compute: dict[str, list[float]] = field(default_factory=dict)
    """Per device: of each micro-batch of each chunk (forward and backward together), step after step."""
    optimizer: dict[str, list[float]] = field(default_factory=dict)
    """Per device and step."""
    syncs: dict[int, list[float]] = field(default_factory=dict)
    """Per synchronisation and round of it."""

    @property
    def empty(self) -> bool:
        """Whether there is no noise."""
        return not self.compute and not self.optimizer and not self.syncs


@dataclass(slots=True)
class Launch:
    """One simulated launch: when each step was over on the last device, and what was recorded of it."""

    ends: list[float] = field(default_factory=list)
    events: list[Row] | None = None
    repeats: int = 1
    """How often the last recorded round of steps was: one that begins as the last one did ends as it did."""
    activations: dict[str, float] = field(default_factory=dict)
    """The most bytes of activations that each device held, where events are recorded."""


class Recorder:
    """Writes the rows of one worker; each member's under the name of its first device."""

    __slots__ = ("counts", "held", "launch", "most", "names", "rows", "worker")

    def __init__(self, worker: Worker, launch: int, rows: list[Row]) -> None:
        self.worker = worker
        self.launch = launch
        self.rows = rows
        self.names = tuple(member[0] for member in worker.members)
        self.counts = tuple(len(member) * worker.copies for member in worker.members)
        self.held = self.most = 0.0
        """Bytes of activations that each device holds, and the most so far."""

    def work(self, step: int, piece: Piece, job: Job, *, times: tuple[float, ...], start: float, end: float) -> None:
        """A piece: each member computes, the faster ones wait, then the group communicates until ``end``."""
        kind, slowest = "backward" if piece.backward else "forward", start + max(times)
        for member, seconds in enumerate(times):
            self._row(member, step, piece, kind, (start, start + seconds))
            self._row(member, step, piece, "wait", (start + seconds, slowest))
        self.all(step, piece, "communication", slowest, end)
        self.held += -job.held_bytes if piece.backward else job.held_bytes
        self.most = max(self.most, self.held)

    def update(self, step: int, times: tuple[float, ...], start: float) -> None:
        """The optimizer step; the faster members wait for the slowest."""
        for member, seconds in enumerate(times):
            self._row(member, step, NO_PIECE, "optimizer", (start, start + seconds))
            self._row(member, step, NO_PIECE, "wait", (start + seconds, start + max(times)))

    def exposed(self, step: int, sync: int, *, begin: float, start: float, end: float) -> None:
        """A collective as a worker sees it from ``start`` on: waiting until it begins, communicating until its end."""
        middle = min(max(begin, start), end)
        self.all(step, NO_PIECE, "wait", start, middle)
        self.all(step, NO_PIECE, "communication", middle, end)

    def all(self, step: int, piece: Piece, kind: str, start: float, end: float) -> None:
        """An interval of all members."""
        for member in range(len(self.names)):
            self._row(member, step, piece, kind, (start, end))

    def _row(self, member: int, step: int, piece: Piece, kind: str, span: tuple[float, float]) -> None:
        start, end = span
        if end <= start:
            return
        worker = self.worker
        stage = worker.stages[piece.chunk] if piece is not NO_PIECE else -1
        name, count = self.names[member], self.counts[member]
        self.rows.append(
            (self.launch, 0, step, name, worker.pipeline, stage, piece.micro_batch, kind, start, end, count)
        )


def check_size(program: Program, launches: int, steps: int) -> None:
    """Whether a run can be kept in memory.

    Raises:
        InputError: it has more events than that.
    """
    segments = launches * steps * program.segments
    if segments > MAX_SEGMENTS:
        problem = f"asks for {segments} events, at most {MAX_SEGMENTS}"
        raise InputError("sampling", problem, "lower sampling.launches or sampling.steps")
