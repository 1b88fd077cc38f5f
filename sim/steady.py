"""Steady: the middle of a step, where one micro-batch goes as the one before it went, need not be simulated to its end.

In a phase of a schedule every worker goes through the same few pieces of work again and again: a cycle for each
micro-batch, or each few. Once all moments of the last cycles (when pieces were over, when messages had come) are those
of the cycles before them but for a common delay, all that follow will be too: what a worker does next, and how flows
share links, depends on nothing older. Then cycles can be left out, and their time added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVarTuple

import numpy as np

from .program import Program, Worker
from .schedule import Piece

Rest = TypeVarTuple("Rest")
SAME = 1e-12
"""Relative difference of moments that is rounding."""
LEAST = 24
"""Cycles of a phase before the first look: shorter ones are simulated faster than they are looked at."""


class Cycles(NamedTuple):
    """Pieces in the order of a worker that recur, each time for later micro-batches."""

    first: int
    """Place of the first piece of the first cycle."""
    length: int
    """Pieces of a cycle."""
    shift: int
    """By how many micro-batches a cycle is later than the one before."""
    total: int


@dataclass(frozen=True, slots=True)
class Phase:
    """Cycles that all workers of a program go through."""

    first: tuple[int, ...]
    """Per worker."""
    length: int
    shift: int
    total: int
    """That every worker has."""

    @property
    def looks(self) -> Iterator[int]:
        """After how many cycles to look whether they repeat: ever later, since most time is lost where they do not."""
        apart = -2 * (min(self.first) - max(self.first)) // self.length
        cycles = LEAST + 4 * apart
        while 2 * cycles < self.total:
            yield cycles
            cycles *= 2


class Repeat(NamedTuple):
    """After how many cycles everything repeats, and how much later."""

    cycles: int
    seconds: float


def phases(program: Program) -> list[Phase]:
    """The phases of a step; none where micro-batches differ, or wait for data or for ZeRO-3's weights.

    None either where stages do not go round the same workers: then workers are in other phases at the same time, and
    one that repeats itself need not go on so.
    """
    workers = program.workers
    if program.loaders or any(worker.gathers or len(set(worker.classes)) > 1 for worker in workers):
        return []
    positions: dict[int, int] = {}
    for worker in workers:
        positions[worker.pipeline] = max(positions.get(worker.pipeline, 0), worker.position + 1)
    if not all(_goes_round(worker, positions[worker.pipeline]) for worker in workers):
        return []
    found = [cycles(worker, positions[worker.pipeline]) for worker in workers]
    if len({len(each) for each in found}) > 1:
        return []
    return [
        Phase(tuple(each.first for each in row), row[0].length, row[0].shift, min(each.total for each in row))
        for row in zip(*found, strict=True)
        if len({(each.length, each.shift) for each in row}) == 1
    ]


def _goes_round(worker: Worker, positions: int) -> bool:
    """Whether a worker holds every so-manieth stage, and takes them in the order of the layers."""
    chunks = range(len(worker.stages))
    if worker.stages != tuple(worker.position + positions * chunk for chunk in chunks):
        return False
    return len(chunks) == 1 or list(dict.fromkeys(piece.chunk for piece in worker.pieces)) == list(chunks)


def cycles(worker: Worker, positions: int) -> list[Cycles]:
    """The cycles in a worker's order, as :func:`.schedule.order` made it for a pipeline of so many positions."""
    chunks, count = len(worker.stages), len(worker.classes)
    total = chunks * count
    warm_up = next(place for place, piece in enumerate(worker.pieces) if piece.backward)
    if warm_up == total:  # every forward comes before every backward
        # With several chunks, a message belongs to another phase for who sends it than for who reads it.
        return [Cycles(start, 1, 1, count) for start in range(0, 2 * total, count)] if chunks == 1 else []
    group = positions if chunks > 1 else 1
    length = 2 * chunks * group
    return [Cycles(warm_up - 1, length, group, 2 * (total - warm_up + 1) // length)]


def repeat(logs: Sequence[Sequence[float]], sizes: Sequence[int], window: int) -> Repeat | None:
    """The fewest cycles after which the last ``window`` cycles repeat themselves; None where they do not.

    All logs must repeat for longer than one such period, and from before the last quarter of the window: what is still
    under way was sent in that, and met nothing that was not compared.

    Args:
        logs: moments of pieces and messages, each log in the order of time.
        sizes: entries of each log in a cycle.
        window: cycles.
    """
    if any(len(log) < window * size for log, size in zip(logs, sizes, strict=True)):
        return None
    table = np.concatenate(
        [np.array(log[-window * size :]).reshape(window, size) for log, size in zip(logs, sizes, strict=True) if size],
        axis=1,
    )
    latest, close = float(np.min(table[-1 - window // 4])), SAME * float(np.max(table[-1]))
    for count in range(1, window // 2):
        later = table[count:] - table[:-count]
        seconds = float(later[-1, 0])
        if np.max(np.abs(later - seconds)) <= close:
            return Repeat(count, seconds) if float(np.max(table[count])) + seconds <= latest else None
    return None


def leave_out(tasks: list[tuple[int, Piece, int, *Rest]], at: int, count: int, phase: Phase) -> None:
    """Leave out cycles of a worker's tasks, given as place, piece, key, and whatever else.

    The micro-batches after them get the numbers of those that are left out: so messages that were sent still find them.
    """
    kinds = {task[1][:2] for task in tasks[at : at + phase.length]}
    lower = count * phase.shift
    tasks[at:] = [
        (task[0], Piece(*task[1][:2], task[1][2] - lower), task[2] - lower, *task[3:]) if task[1][:2] in kinds else task
        for task in tasks[at + count * phase.length :]
    ]
