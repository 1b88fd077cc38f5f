"""Waves: the pieces of a pipeline's step in rounds, each piece in the first round in which it can be done.

Who waits for whom does not depend on how long anything takes. So the rounds are known before any time is, and all
stages that are ready advance together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..sim.schedule import Kind, Piece, order

Places = NDArray[np.intp]


class Wave(NamedTuple):
    """Pieces of unlike stages that can be done at once, as arrays."""

    stage: Places
    backward: Places
    """1 for a backward pass."""
    micro_batch: Places
    receives: Places
    """Numbers, within the wave, of the pieces that begin with a message from another stage."""
    received: Places
    """Of these, where the message lies."""
    sends: Places
    """Numbers of those that end with a message."""
    sent: Places
    """Of these, where it is put."""


class Waves(NamedTuple):
    """All pieces of a step."""

    waves: tuple[Wave, ...]
    room: int
    """Places for messages that have arrived and are not read yet."""


@lru_cache(maxsize=64)
def waves_of(kind: Kind, stages: int, count: int) -> Waves:
    """The step of so many micro-batches over so many stages, one to a device."""
    rows = [order(kind, stages, stage, 1, count) for stage in range(stages)]
    done, lying = [0] * stages, dict[tuple[int, bool, int], int]()
    free, room, found = list[int](), 0, list[Wave]()
    while any(done[stage] < len(row) for stage, row in enumerate(rows)):
        ready = [
            (stage, row[done[stage]])
            for stage, row in enumerate(rows)
            if done[stage] < len(row) and _can(stage, stages, row[done[stage]], lying)
        ]
        received, sent = list[tuple[int, int]](), list[tuple[int, int]]()
        for number, (stage, piece) in enumerate(ready):
            done[stage] += 1
            place = lying.pop((stage, *piece[::2]), None)
            if place is not None:
                received.append((number, place))
        free += [place for _, place in received]
        for number, (stage, piece) in enumerate(ready):
            target = stage - 1 if piece.backward else stage + 1
            if 0 <= target < stages:
                if not free:
                    free.append(room)
                    room += 1
                lying[target, piece.backward, piece.micro_batch] = free.pop()
                sent.append((number, lying[target, piece.backward, piece.micro_batch]))
        found.append(_wave(ready, received, sent))
    return Waves(tuple(found), room)


def _can(stage: int, stages: int, piece: Piece, lying: dict[tuple[int, bool, int], int]) -> bool:
    from_outside = stage < stages - 1 if piece.backward else stage > 0
    return not from_outside or (stage, piece.backward, piece.micro_batch) in lying


def _wave(ready: list[tuple[int, Piece]], received: list[tuple[int, int]], sent: list[tuple[int, int]]) -> Wave:
    def column(values: list[int]) -> Places:
        return np.array(values, dtype=np.intp)

    return Wave(
        stage=column([stage for stage, _ in ready]),
        backward=column([int(piece.backward) for _, piece in ready]),
        micro_batch=column([piece.micro_batch for _, piece in ready]),
        receives=column([number for number, _ in received]),
        received=column([place for _, place in received]),
        sends=column([number for number, _ in sent]),
        sent=column([place for _, place in sent]),
    )
