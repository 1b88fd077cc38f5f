"""Which faults strike, when and whom: drawn from a named stream, so that equal seeds draw the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...sim.noise import stream
from .. import watch

Kind = Literal["kill", "memory", "stop", "loop", "starve", "cut"]
"""SIGKILL; memory limited below its use; SIGSTOP; a pass that does not end; a quota near zero; a link set down."""
Sort = Literal["kill", "hang"]
"""Whether the worker is gone, or there and gets no further."""
KILLS: tuple[Kind, ...] = ("kill", "kill", "memory", "kill", "kill")
"""How kills are dealt to kinds, over and over."""
HANGS: tuple[Kind, ...] = ("cut", "starve", "loop", "stop")
"""How hangs are: of the kinds that the host and the lanes allow, each in turn."""
TOLD: dict[Kind, watch.Kind] = {
    "kill": "killed",
    "memory": "memory",
    "stop": "stopped",
    "loop": "hung",
    "starve": "hung",
    "cut": "link",
}
"""What the driver is to call each."""
ANY_TIME: tuple[Kind, ...] = ("kill", "stop")
"""Kinds that may strike before the first step, too: the others need a worker in the midst of its work."""
STARTING_SHARE = 0.2
"""Share of those that strike while the workers still start."""
REACH = 3.0
"""A fault strikes at most so many checkpoint intervals after the first step of a launch."""

Victims = Mapping[Kind, Sequence[int]]
"""Numbers of the lanes that train, for each kind that can be done to them; kinds that cannot are not there."""


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

    @property
    def sort(self) -> Sort:
        """Kill or hang."""
        return "hang" if self.kind in HANGS else "kill"


def everyone(members: int) -> Victims:
    """What can be done to any so many lanes on any host: signals, and a pass that does not end."""
    everybody = range(members)
    return {"kill": everybody, "stop": everybody, "loop": everybody}


def draw(kills: int, hangs: int, victims: Victims, seed: int) -> list[Strike]:
    """So many faults in random order; the first one strikes after steps, so that there is something to lose."""
    names = [*_dealt(KILLS, kills, victims), *_dealt(HANGS, hangs, victims)]
    random.Random(int(stream(seed, "chaos", "order").integers(2**32))).shuffle(names)  # noqa: S311 - no secret
    numbers = stream(seed, "chaos", "strikes")
    return [
        Strike(
            kind=kind,
            member=int(victims[kind][int(numbers.integers(len(victims[kind])))]),
            starting=bool(numbers.random() < STARTING_SHARE) and number > 0 and kind in ANY_TIME,
            place=float(numbers.random()),
        )
        for number, kind in enumerate(names)
    ]


def _dealt(kinds: Sequence[Kind], count: int, victims: Victims) -> list[Kind]:
    """The first so many of the possible ones among some kinds, over and over."""
    return list(itertools.islice(itertools.cycle([kind for kind in kinds if victims.get(kind)]), count))


def count(strikes: Sequence[Strike], sort: Sort) -> int:
    """How many are kills, or hangs."""
    return sum(strike.sort == sort for strike in strikes)


def within_s(kind: Kind, timeout_s: float) -> float:
    """Seconds from the fault to its line in the journal that the project states.

    A starved lane can still end the step under way, and is silent from then on: so the silence may begin as late as
    ``timeout_s`` after the fault.
    """
    limit_s = watch.noticed_within_s(TOLD[kind], timeout_s)
    return limit_s + timeout_s if kind == "starve" else limit_s


def named(kind: Kind, lane: str, fault: Mapping[str, object]) -> bool:
    """Whether the driver's account of a fault has the right culprit: the lane, or for a link one that ends at it."""
    if kind == "cut":
        return fault["kind"] == "link" and repr(lane) in str(fault["what"])
    return fault["lane"] == lane
