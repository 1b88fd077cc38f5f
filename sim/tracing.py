"""Tracing: what a run of a program without noise must leave behind, so that every moment can be told by its cause."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .program import Job, Program, Worker
from .running import Recorder
from .schedule import Piece


class Span(NamedTuple):
    """What a worker, as a whole, did or waited for; its spans leave no gap between them."""

    kind: str
    """``compute``, ``tensor``, ``optimizer``, ``exposed`` (a synchronisation and the wait for its last worker); what a
    piece waits for: ``bubble``, ``input``, ``wait``, ``communication``."""
    step: int
    piece: Piece | None
    number: int
    """The slowest member, where the members compute; the synchronisation, where that is what is waited for."""
    start: float
    end: float


class Round(NamedTuple):
    """A synchronisation: when its last worker entered, when it began to flow, when it was over."""

    entered: float
    begin: float
    end: float


class Witness(Recorder):
    """Notes what one worker does, in place of the rows of a record."""

    __slots__ = ("entered", "pieces", "spans", "starts")

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, 0, [])
        self.spans: list[Span] = []
        self.starts: list[float] = []
        """Of the spans, to look them up."""
        self.pieces: dict[tuple[int, Piece], tuple[float, float]] = {}
        """When each piece of work began and was over, by step."""
        self.entered: dict[tuple[int, int], float] = {}
        """When the worker had nothing else to do but wait for a synchronisation, by step and its number."""

    def work(self, step: int, piece: Piece, job: Job, *, times: tuple[float, ...], start: float, end: float) -> None:
        """A piece: the members compute, then the group communicates until ``end``."""
        slowest = max(times)
        self._add(Span("compute", step, piece, times.index(slowest), start, start + slowest))
        self._add(Span("tensor", step, piece, 0, start + slowest, end))
        self.pieces[step, piece] = start, end

    def update(self, step: int, times: tuple[float, ...], start: float) -> None:
        """The optimizer step of the slowest member."""
        slowest = max(times)
        self._add(Span("optimizer", step, None, times.index(slowest), start, start + slowest))

    def exposed(self, step: int, sync: int, *, begin: float, start: float, end: float) -> None:
        """A synchronisation, from the worker's own clock to its end."""
        self._add(Span("exposed", step, None, sync, start, end))
        self.entered[step, sync] = start

    def all(self, step: int, piece: Piece, kind: str, start: float, end: float) -> None:
        """Time that went by without work."""
        self._add(Span(kind, step, piece, 0, start, end))

    def _add(self, span: Span) -> None:
        if span.end > span.start:
            self.spans.append(span)
            self.starts.append(span.start)


@dataclass(slots=True)
class Trace:
    """All that a run leaves behind: of workers, of messages, of synchronisations, gatherings and input pipelines."""

    witnesses: list[Witness]
    """Per worker."""
    messages: list[list[tuple[float, float]]]
    """Per channel: when each message began to flow and had left the links, in the order of sending."""
    rounds: list[list[Round]]
    """Per synchronisation."""
    loads: list[list[tuple[float, float]]]
    """Per input pipeline: begin and end of each micro-batch, in the order of loading."""
    entries: dict[int, list[int]] = field(default_factory=dict)
    """Per group of ZeRO-3: who entered, in order; each round has as many as there are peers."""
    gathers: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """The same: when the weights of each round began to flow and had left the links."""

    @classmethod
    def of(cls, program: Program) -> Trace:
        """Nothing traced yet."""
        return cls(
            witnesses=[Witness(worker) for worker in program.workers],
            messages=[[] for _ in range(program.channels)],
            rounds=[[] for _ in program.syncs],
            loads=[[] for _ in program.loaders],
        )

    def clear(self) -> None:
        """Forget a run that gave no answer."""
        for witness in self.witnesses:
            witness.spans.clear()
            witness.starts.clear()
            witness.pieces.clear()
            witness.entered.clear()
        for moments in (*self.messages, *self.loads):
            moments.clear()
        for rounds in self.rounds:
            rounds.clear()
