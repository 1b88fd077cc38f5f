"""Which faults strike, when and whom: drawn from a named stream, so that equal seeds draw the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...sim.noise import stream

Kind = Literal["kill", "hang"]
KILL: Kind = "kill"
HANG: Kind = "hang"
STARTING_SHARE = 0.2
"""Share of the faults that strike while the workers still start."""
REACH = 3.0
"""A fault strikes at most so many checkpoint intervals after the first step of a launch."""


@dataclass(frozen=True)
class Strike:
    """One fault: what is done to which member, and in which part of a launch."""

    kind: Kind
    member: int
    """Number among the lanes that train."""
    starting: bool
    """Whether it strikes before the first step of a launch."""
    place: float
    """In [0, 1): of the way through the start, or through :data:`REACH` intervals of checkpoints."""

    def after_s(self, start_s: float, interval_s: float) -> float:
        """Seconds after the launch (``starting``), or after its first step."""
        return self.place * (start_s if self.starting else REACH * interval_s)


def draw(kills: int, hangs: int, members: int, seed: int) -> list[Strike]:
    """So many faults in random order; the first one strikes after steps, so that there is something to lose."""
    names = [KILL] * kills + [HANG] * hangs
    random.Random(int(stream(seed, "chaos", "order").integers(2**32))).shuffle(names)  # noqa: S311 - no secret
    numbers = stream(seed, "chaos", "strikes")
    return [
        Strike(
            kind=kind,
            member=int(numbers.integers(members)),
            starting=bool(numbers.random() < STARTING_SHARE) and number > 0,
            place=float(numbers.random()),
        )
        for number, kind in enumerate(names)
    ]


def count(strikes: Sequence[Strike], kind: Kind) -> int:
    """How many of a kind."""
    return sum(strike.kind == kind for strike in strikes)
