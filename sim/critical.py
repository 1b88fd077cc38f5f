"""Critical path: from the end of a step backwards, what each moment waited for, until the end of a step before.

A worker's own work began when what it did before was over; a message when its sender was done, or the message before it
on the same channel had left; a collective when its last worker had entered. So every second of the path has one cause,
and together they are the time between the two ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .network import Transfer
from .program import Gather, Program, Send
from .schedule import Piece
from .tracing import Round, Span, Trace

SAME = 1e-10
"""Of the time that the path covers: moments that differ by less are one, but for rounding."""
Kind = Literal["compute", "tensor", "optimizer", "volume", "latency", "loading"]
COLLECTIVES = "tensor-parallel collectives"
MESSAGES = "messages"
GRADIENTS = "gradient synchronisation"
WEIGHTS = "weight synchronisation"
GATHERING = "weight gathering"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the path, of one cause."""

    kind: Kind
    """``volume`` and ``latency`` are those of a transfer, ``tensor`` the collectives of a tensor-parallel group."""
    worker: int
    """Who did it, sent it, or waited for it."""
    begin: float
    end: float
    what: str
    """``forward``, ``backward``, or what was transferred."""
    member: int = 0
    transfer: Transfer | None = None
    loader: int = -1

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a step on its channel, which it is sent over after a piece of work."""

    sender: int
    piece: Piece
    send: Send
    place: int
    """In the order of its channel; -1 for one that takes no time."""


def critical_path(program: Program, trace: Trace, *, begin: float, end: float, last_step: int) -> list[Part]:
    """The path that decides when a step is over, as far as it lies between two moments, in order of time.

    Args:
        program: without noise.
        trace: what its run left behind.
        begin: seconds; what was before is cut off.
        end: seconds; what comes after is cut off.
        last_step: the path leads to its end, on the last worker.
    """
    path = _Walk(program, trace, begin, last_step).back()
    return [replace(part, end=min(part.end, end)) for part in path if part.begin < end]


def activities(program: Program) -> list[str]:
    """What each synchronisation of a program is for."""
    after_update = {number for worker in program.workers for number in worker.final}
    return [WEIGHTS if number in after_update else GRADIENTS for number in range(len(program.syncs))]


class _Walk:
    """Goes back in time from worker to worker."""

    def __init__(self, program: Program, trace: Trace, begin: float, last_step: int) -> None:
        self.program = program
        self.trace = trace
        self.begin = begin
        ends = [_end(trace, number, last_step) for number in range(len(program.workers))]
        self.now = last = max(ends)
        self.same = SAME * (last - begin)
        tied = [number for number, end in enumerate(ends) if end >= last - self.same]
        self.worker = min(tied, key=lambda number: program.workers[number].devices)
        self.names = activities(program)
        self.parts: list[Part] = []
        self.seen: set[tuple[int, int]] = set()
        self.messages: list[list[_Message]] = [[] for _ in range(program.channels)]
        self.incoming: dict[tuple[int, bool, int, int], list[_Message]] = {}
        for number in range(len(program.workers)):
            self._find_messages(number)

    def back(self) -> list[Part]:
        """The whole path."""
        while self.now > self.begin + self.same:
            self.worker = self._before(self.worker)
        return self.parts[::-1]

    def _find_messages(self, number: int) -> None:
        """All messages that a worker sends in a step, on each channel in the order of sending."""
        worker = self.program.workers[number]
        for piece in worker.pieces:
            for send in worker.job(piece).sends:
                channel = self.messages[send.channel]
                timed = send.transfer.alone_s > 0 or not worker.overlapping
                message = _Message(number, piece, send, len(channel) if timed else -1)
                if timed:
                    channel.append(message)
                goal = (send.target, piece.backward, send.chunk, piece.micro_batch)
                self.incoming.setdefault(goal, []).append(message)

    def _before(self, number: int) -> int:
        """Go back over what a worker did up to now; the worker that it waited for, or itself."""
        witness = self.trace.witnesses[number]
        place = bisect_left(witness.starts, self.now - self.same) - 1
        assert (number, place) not in self.seen, f"{self.program.workers[number].devices[0]} waits for itself"
        assert place >= 0, f"nothing came before {self.now} on {self.program.workers[number].devices[0]}"
        self.seen.add((number, place))
        span = witness.spans[place]
        if span.kind == "bubble":
            return self._received(number, span)
        if span.kind == "input":
            return self._loaded(number, span)
        if span.kind == "wait":
            return self._last_peer(number, span)
        if span.kind == "communication":
            return self._sent_or_gathered(number, span)
        if span.kind == "exposed":
            return self._synchronised(number, span)
        if span.piece is not None and self.now < span.end - self.same:
            return self._part_of_piece(number, span)
        self._spend(_kind(span), number, span.start, _work(span), member=span.number)
        return number

    def _part_of_piece(self, number: int, span: Span) -> int:
        """Gradients that were complete within a piece: its collectives belong to its layers, and so go through it."""
        assert span.piece is not None
        start, end = self.trace.witnesses[number].pieces[span.step, span.piece]
        job = self.program.workers[number].job(span.piece)
        collectives_s = (self.now - start) * job.communication_s / (end - start)
        self._spend("tensor", number, self.now - collectives_s, COLLECTIVES)
        self._spend("compute", number, start, "backward", member=job.compute_s.index(max(job.compute_s)))
        return number

    def _spend(
        self,
        kind: Kind,
        worker: int,
        since: float,
        what: str,
        *,
        member: int = 0,
        transfer: Transfer | None = None,
        loader: int = -1,
    ) -> None:
        """Put what took from ``since`` until now on the path, and go back to its begin."""
        since = max(since, self.begin)
        if since < self.now:
            self.parts.append(Part(kind, worker, since, self.now, what, member, transfer, loader))
            self.now = since

    def _flowed(self, worker: int, transfer: Transfer, what: str, begin: float, left: float) -> None:
        """A transfer: first its bytes flow, then its latency passes."""
        self._spend("latency", worker, max(left, begin), what, transfer=transfer)
        self._spend("volume", worker, begin, what, transfer=transfer)

    def _received(self, number: int, span: Span) -> int:
        """A bubble ended with a message: with the one that came last."""
        piece = span.piece
        assert piece is not None
        messages = self.incoming[number, piece.backward, piece.chunk, piece.micro_batch]
        arrivals = [self._arrival(message, span.step) for message in messages]
        last = max(arrivals) - self.same
        devices = self.program.workers
        late = [message for message, moment in zip(messages, arrivals, strict=True) if moment >= last]
        return self._sent(min(late, key=lambda message: devices[message.sender].devices), span.step)

    def _arrival(self, message: _Message, step: int) -> float:
        if message.place < 0:
            return self.trace.witnesses[message.sender].pieces[step, message.piece][1]
        return self._flow(message, step)[1] + message.send.transfer.latency_s

    def _flow(self, message: _Message, step: int) -> tuple[float, float]:
        channel = message.send.channel
        return self.trace.messages[channel][step * len(self.messages[channel]) + message.place]

    def _sent(self, message: _Message, step: int) -> int:
        """A message left when its sender was done, or when the one before it on its channel had left."""
        while message.place >= 0:
            begin, left = self._flow(message, step)
            self._flowed(message.sender, message.send.transfer, MESSAGES, begin, left)
            done = self.trace.witnesses[message.sender].pieces[step, message.piece][1]
            waits = not self.program.workers[message.sender].overlapping  # then it had left before, or is a span itself
            if waits or begin <= done + self.same or self.now <= self.begin:
                break
            channel = self.messages[message.send.channel]
            step -= message.place == 0
            message = channel[message.place - 1]
        return message.sender

    def _loaded(self, number: int, span: Span) -> int:
        """A wait for data ended with a load; it began after the one before, or when its worker had room for it."""
        worker = self.program.workers[number]
        assert worker.loader is not None
        assert span.piece is not None
        queue = self.program.loaders[worker.loader].queue
        taken = [piece for piece in worker.pieces if _takes_data(piece, worker.job(piece).samples)]
        own = [place for place, (target, _, _) in enumerate(queue) if target == number]
        index = span.step * len(queue) + own[taken.index(span.piece)]
        loads = self.trace.loads[worker.loader]
        while True:
            begin = loads[index][0]
            self._spend("loading", number, begin, "loading", loader=worker.loader)
            if index == 0 or loads[index - 1][1] < begin - self.same or self.now <= self.begin:
                return queue[index % len(queue)][0]
            index -= 1

    def _last_peer(self, number: int, span: Span) -> int:
        """ZeRO-3: a wait ended when the last peer came to the gathering."""
        gather, turn = self._gathering(number, span)
        return self.trace.entries[gather.group][(turn + 1) * gather.peers - 1]

    def _gathering(self, number: int, span: Span) -> tuple[Gather, int]:
        """Which gathering a worker was at, and the how manieth it was."""
        worker, piece = self.program.workers[number], span.piece
        assert piece is not None
        gather = worker.gathers[piece.chunk]
        there = [
            each
            for each in worker.pieces
            if worker.gathers[each.chunk].group == gather.group and worker.job(each).samples
        ]
        return gather, span.step * len(there) + there.index(piece)

    def _sent_or_gathered(self, number: int, span: Span) -> int:
        """A worker waited for the first weights of a piece, for the last of them, or until its message had left."""
        worker, piece = self.program.workers[number], span.piece
        assert piece is not None
        start, end = self.trace.witnesses[number].pieces[span.step, piece]
        if worker.gathers and worker.job(piece).samples:
            gather, turn = self._gathering(number, span)
            begin, left = self.trace.gathers[gather.group][turn]
            transfer = gather.backward if piece.backward else gather.forward
            if self.now <= start + self.same:
                self._flowed(number, transfer, GATHERING, span.start, span.end - transfer.latency_s / gather.layers)
                return number
            if span.start <= end + self.same and abs(left + transfer.latency_s - span.end) <= self.same:
                self._flowed(number, transfer, GATHERING, begin, left)
                return self._last_peer(number, span)
        left_at = {self._flow(message, span.step)[1]: message for message in self._sends(number, piece)}
        last = max(left for left in left_at if left <= span.end + self.same)
        self._spend("volume", number, span.start, MESSAGES, transfer=left_at[last].send.transfer)
        return number

    def _sends(self, number: int, piece: Piece) -> Iterator[_Message]:
        """The messages that a worker sends after a piece."""
        channels = dict.fromkeys(send.channel for send in self.program.workers[number].job(piece).sends)
        return (message for channel in channels for message in self.messages[channel] if message.piece == piece)

    def _synchronised(self, number: int, span: Span) -> int:
        """A synchronisation flowed once its last worker had entered, and the one before it was over."""
        sync, workers = span.number, self.program.syncs[span.number].workers
        found = self.trace.rounds[sync][span.step // self.program.syncs[sync].every]
        while True:
            transfer = self.program.syncs[sync].transfer
            left = max(found.begin, self.now - transfer.latency_s)
            self._flowed(number, transfer, self.names[sync], found.begin, left)
            if found.begin <= found.entered + self.same or self.now <= self.begin:
                return self._last_to_enter(sync, found, span.step)
            sync = max(
                each
                for each, other in enumerate(self.program.syncs[:sync])
                if other.beside and other.workers == workers
            )
            found = self.trace.rounds[sync][span.step]

    def _last_to_enter(self, sync: int, found: Round, step: int) -> int:
        workers = self.program.syncs[sync].workers
        entered = {number: self._entered(number, sync, found, step) for number in workers}
        last = max(entered.values()) - self.same
        tied = [number for number in workers if entered[number] >= last]
        return min(tied, key=lambda number: self.program.workers[number].devices)

    def _entered(self, number: int, sync: int, found: Round, step: int) -> float:
        """When a worker entered: within its last backward pass, or when it had nothing else to do."""
        worker, witness = self.program.workers[number], self.trace.witnesses[number]
        for each in worker.beside:
            if each.sync == sync:
                last = next(piece for piece in reversed(worker.pieces) if piece.backward and piece.chunk == each.chunk)
                start, end = witness.pieces[step, last]
                return max(start, end - each.rest_s)
        return witness.entered.get((step, sync), found.entered)  # one that need not wait entered last


def _end(trace: Trace, number: int, step: int) -> float:
    """When a worker was through with a step."""
    spans = trace.witnesses[number].spans
    return next((span.end for span in reversed(spans) if span.step <= step), 0.0)


def _kind(span: Span) -> Kind:
    if span.kind == "tensor":
        return "tensor"
    return "optimizer" if span.kind == "optimizer" else "compute"


def _work(span: Span) -> str:
    if span.kind != "compute":
        return COLLECTIVES if span.kind == "tensor" else "optimizer"
    return "backward" if span.piece is not None and span.piece.backward else "forward"


def _takes_data(piece: Piece, samples: int) -> bool:
    return not piece.backward and piece.chunk == 0 and samples > 0
