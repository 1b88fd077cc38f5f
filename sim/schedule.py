"""Schedule: in which order a worker of a pipeline does its pieces of work; no times in it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["gpipe", "1f1b", "interleaved", "accumulate"]


class Piece(NamedTuple):
    """The forward or the backward pass of one micro-batch through one chunk (a stage of this worker)."""

    backward: bool
    chunk: int
    """Number of the stage among the worker's own, in the order of the layers."""
    micro_batch: int


@lru_cache(maxsize=4096)
def order(kind: Kind, workers: int, position: int, chunks: int, micro_batches: int) -> tuple[Piece, ...]:
    """What a worker does in a step, in order.

    GPipe (Huang et al. 2019): every forward, then every backward, in the same order of micro-batches. A worker may hold
    any of the stages: all do their forwards in the order of (stage, micro-batch), and their backwards in that of
    (stage from the last, micro-batch), where whatever a piece waits for comes before it. So of all pieces that are not
    done, the first in that order can go on, and nobody waits for ever. Accumulation: the same for one micro-batch after
    the other, so that only one is in flight. 1F1B (Narayanan et al. 2019, PipeDream-Flush): as many forwards as there
    are workers behind it, then one forward and one backward in turn.
    Interleaved 1F1B (Narayanan et al. 2021): the same over several chunks a worker, in groups of ``workers``
    micro-batches; the chunks of a worker are ``workers`` stages apart.

    Args:
        kind: name of the schedule.
        workers: of the pipeline, in the order of their first stages.
        position: the worker's place among them, from 0.
        chunks: stages that the worker holds; 1 for ``1f1b``.
        micro_batches: of the pipeline; for ``interleaved`` a multiple of ``workers``.
    """
    if kind == "gpipe":
        forward = [Piece(False, chunk, number) for chunk in range(chunks) for number in range(micro_batches)]
        backward = [Piece(True, chunk, number) for chunk in reversed(range(chunks)) for number in range(micro_batches)]
        return tuple(forward + backward)
    if kind == "accumulate":
        both = [(False, chunk) for chunk in range(chunks)] + [(True, chunk) for chunk in reversed(range(chunks))]
        return tuple(Piece(*each, number) for number in range(micro_batches) for each in both)
    group = workers if kind == "interleaved" else micro_batches
    forward = _in_groups(False, range(chunks), group, micro_batches)
    backward = _in_groups(True, range(chunks - 1, -1, -1), group, micro_batches)
    ahead = workers - 1 - position
    warm_up = min(len(forward), 2 * ahead + (chunks - 1) * workers if kind == "interleaved" else ahead)
    steady = [piece for pair in zip(forward[warm_up:], backward, strict=False) for piece in pair]
    return tuple(forward[:warm_up] + steady + backward[len(forward) - warm_up :])


def _in_groups(backward: bool, chunks: range, group: int, micro_batches: int) -> list[Piece]:
    """Micro-batches in groups; each group goes through every chunk before the next one begins."""
    return [
        Piece(backward, chunk, number)
        for start in range(0, micro_batches, group)
        for chunk in chunks
        for number in range(start, min(start + group, micro_batches))
    ]


def in_turns(pieces: tuple[Piece, ...], stages: Sequence[int], turns: Sequence[int]) -> tuple[Piece, ...]:
    """A worker's pieces, where all workers take their stages in another order than that of the layers.

    If that follows the edges between the stages, nobody waits for ever: as in :func:`order`.

    Args:
        pieces: of the worker, as :func:`order` gives them for ``gpipe`` and ``accumulate``.
        stages: numbers of its own stages, its chunks.
        turns: numbers of all stages, in the order in which they are taken.
    """
    place = {stage: number for number, stage in enumerate(turns)}
    chunks = sorted(range(len(stages)), key=lambda chunk: place[stages[chunk]])
    return tuple(piece._replace(chunk=chunks[piece.chunk]) for piece in pieces)


def most_in_flight(pieces: tuple[Piece, ...], held: dict[tuple[int, int], float]) -> float:
    """The most that a worker holds at once, when a forward takes up ``held[chunk, micro_batch]`` until its backward."""
    now = most = 0.0
    for piece in pieces:
        amount = held[piece.chunk, piece.micro_batch]
        now += -amount if piece.backward else amount
        most = max(most, now)
    return most


def deal_samples(samples: int, shares: Sequence[float]) -> list[int]:
    """Samples of a micro-batch for each replica: its share rounded down, the rest to the largest remainders."""
    if len(shares) == 1:
        return [samples]
    whole = sum(map(Fraction, shares))
    exact = [samples * Fraction(share) / whole for share in shares]
    dealt = [int(each) for each in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: (dealt[index] - exact[index], index))
    for index in by_remainder[: samples - sum(dealt)]:
        dealt[index] += 1
    return dealt
