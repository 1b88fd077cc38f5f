"""Which faults strike, when and whom: drawn from a named stream, so that equal seeds draw the same."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ...sim.noise import stream
from .. import watch

Kind = Literal["kill", "memory", "stop", "loop", "starve", "cut", "driver", "disk"]
"""SIGKILL; memory limited below its use; SIGSTOP; a pass that does not end; a quota near zero; a link set down; the
driver's SIGKILL; a disk without room."""
Sort = Literal["kill", "hang", "driver", "disk"]
"""Whether the worker is gone, or there and gets no further; whether it is no worker that is struck, but the driver, or
the disk of the checkpoints."""
KINDS: tuple[Kind, ...] = get_args(Kind)
SORTS: tuple[Sort, ...] = get_args(Sort)
KILLS: tuple[Kind, ...] = ("kill", "kill", "memory", "kill", "kill")
"""How kills are dealt to kinds, over and over."""
HANGS: tuple[Kind, ...] = ("cut", "starve", "loop", "stop")
"""How hangs are: of the kinds that the host and the lanes allow, each in turn."""
SORT_OF: dict[Kind, Sort] = {**dict.fromkeys(HANGS, "hang"), "driver": "driver", "disk": "disk"}
"""What is no kill."""
TOLD: dict[Kind, watch.Kind] = {
    "kill": "killed",
    "memory": "memory",
    "stop": "stopped",
    "loop": "hung",
    "starve": "hung",
    "cut": "link",
    "driver": "driver",
}
"""What the driver, or the next one, is to call each; a full disk is no fault of a launch: it goes on."""
ANY_TIME: tuple[Kind, ...] = ("kill", "stop", "driver")
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
    """Number among the lanes that train; of no meaning where it is the driver, or the disk, that is struck."""
    starting: bool
    """Whether it strikes before the first step of a launch."""
    place: float
    """In [0, 1): of the way through the start, or through :data:`REACH` intervals of checkpoints."""

    def after_s(self, start_s: float, interval_s: float) -> float:
        """Seconds after the launch (``starting``), or after its first step."""
        return self.place * (start_s if self.starting else REACH * interval_s)

    @property
    def sort(self) -> Sort:
        """Kill or hang, of a worker; or driver, or disk."""
        return SORT_OF.get(self.kind, "kill")

    @property
    def ends_launch(self) -> bool:
        """Whether the launch is over by it."""
        return self.kind != "disk"


def everyone(members: int) -> Victims:
    """What can be done to any so many lanes on any host: signals, and a pass that does not end."""
    everybody = range(members)
    return {"kill": everybody, "stop": everybody, "loop": everybody}


def draw(kills: int, hangs: int, victims: Victims, seed: int, *, drivers: int = 0, disks: int = 0) -> list[Strike]:
    """So many faults in random order; the first one strikes after steps, so that there is something to lose.

    Killed drivers and full disks have a stream of their own and come in between: the others are the same without them,
    but that what follows a full disk never strikes a start, as none follows. A full disk is never the last, so that it
    can cost something. What disks cannot be, drivers are.
    """
    strikes = _of_workers(kills, hangs, victims, seed)
    numbers = stream(seed, "chaos", "others")
    filled = disks if victims.get("disk") else 0
    others: dict[Kind, int] = {"driver": drivers + disks - filled, "disk": filled}
    for kind in (kind for kind, number in others.items() for _ in range(number)):
        starting = bool(numbers.random() < STARTING_SHARE) and kind in ANY_TIME
        other = Strike(kind, 0, starting, float(numbers.random()))
        places = len(strikes) if kind == "disk" and strikes else len(strikes) + 1
        strikes.insert(int(numbers.integers(places)), other)
    launches = [True, *(strike.ends_launch for strike in strikes)]
    return [
        replace(strike, starting=strike.starting and number > 0 and launches[number])
        for number, strike in enumerate(strikes)
    ]


def _of_workers(kills: int, hangs: int, victims: Victims, seed: int) -> list[Strike]:
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
    """How many are of a sort."""
    return sum(strike.sort == sort for strike in strikes)


def within_s(kind: Kind, timeout_s: float, segment_s: float = 0.0) -> float:
    """Seconds from the fault to its line in the journal that the project states; of a driver, to its workers' end.

    A starved lane can still end the step under way, and is silent from then on: so the silence may begin as late as
    ``timeout_s`` after the fault. That a disk is full shows when the next checkpoint is due, ``segment_s`` later at
    most; a driver's line is written when somebody goes on.
    """
    if kind == "disk":
        return segment_s + watch.MARGIN_S
    limit_s = watch.noticed_within_s(TOLD[kind], timeout_s)
    return limit_s + timeout_s if kind == "starve" else limit_s


def named(kind: Kind, lane: str, fault: Mapping[str, object]) -> bool:
    """Whether the account of a fault has the right culprit: the lane, for a link one that ends at it, driver, disk."""
    if kind == "driver":
        return fault["kind"] == "driver"
    if kind == "disk":
        return fault["reason"] == os.strerror(errno.ENOSPC)
    if kind == "cut":
        return fault["kind"] == "link" and repr(lane) in str(fault["what"])
    return fault["lane"] == lane
