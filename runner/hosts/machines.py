"""The machines of a study as the driver knows them: their lanes, their fingerprints, the store to reach them by."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ...results.errors import InputError
from ...results.record import digest
from ..devices import NamedLane, fingerprint
from .mailbox import Store, take_words
from .membership import Membership, interface_towards, lost_store

ANNOUNCED_S = 120.0


@dataclass(frozen=True)
class Machines:
    """All machines of a study, seen from the first."""

    membership: Membership
    lanes: Sequence[Sequence[NamedLane]]
    """Per further machine, the lanes that could be measured there."""
    fingerprints: Sequence[Mapping[str, Any]]

    @classmethod
    def gather(cls, membership: Membership, store: Store) -> Machines:
        """Wait until every machine has said what it has.

        Raises:
            InputError: one has not come.
        """
        lanes, fingerprints = [], []
        for number in range(1, membership.count):
            try:
                words = take_words(store, f"machine/{number}", ANNOUNCED_S)
            except lost_store() as error:
                problem = f"machine {number} of {membership.count} has not come within {ANNOUNCED_S:.0f} s"
                raise InputError("WORLD_SIZE", problem, "start all of them") from error
            lanes.append([placed(NamedLane.model_validate(lane), number) for lane in words["lanes"]])
            fingerprints.append(words["fingerprint"])
        return cls(membership, lanes, fingerprints)

    @property
    def interface(self) -> str:
        """This machine's interface for collectives."""
        return interface_towards(self.membership.address)

    def rendezvous(self) -> dict[str, Any]:
        """Where the workers of one launch meet, for the job."""
        return {
            "host": self.membership.address,
            "port": self.membership.port,
            "prefix": f"group/{secrets.token_hex(8)}",
        }


current: ContextVar[Machines | None] = ContextVar("machines", default=None)
"""The machines of this process's study; None: this one alone."""


def placed(lane: NamedLane, number: int) -> NamedLane:
    """A lane of another machine: its name says of which."""
    return lane.model_copy(update={"name": f"m{number}-{lane.name}", "machine": number})


def further_lanes() -> Sequence[Sequence[NamedLane]]:
    """Per further machine of this process's study, the lanes that could be measured there."""
    found = current.get()
    return found.lanes if found is not None else ()


def study_fingerprint() -> dict[str, Any]:
    """What measured tables depend on: this machine, and where there are more, all of them."""
    found = current.get()
    return fingerprint() if found is None else {**fingerprint(), "machines": digest(list(found.fingerprints))[:16]}


def machines_for(lanes: Sequence[NamedLane], tasks: Sequence[Mapping[str, Any]]) -> Machines | None:
    """The machines, where any of the lanes is on another than this.

    Raises:
        InputError: one is on a machine that is not there, or a task goes by way of files, which the machines do not
            share (checkpoints, plans that change under way).
    """
    found = current.get()
    for lane in lanes:
        if lane.machine and (found is None or lane.machine >= found.membership.count):
            count = found.membership.count if found is not None else 1
            problem = f"is on machine {lane.machine}, and this study has machines 0 to {count - 1}"
            raise InputError(
                f"lane {lane.name}", problem, "start on all of them: torchrun ... -m steelyard.runner.hosts"
            )
        if found is not None and lane.wire.host:
            raise InputError(f"lane {lane.name}: wire.host", "is a made host beside real ones", "leave it out")
    if not any(lane.machine for lane in lanes):
        return None
    for task in tasks:
        if {"file", "folder"} & task.keys():
            problem = f"works by files that machines do not share (task {task['op']!r})"
            raise InputError("this study", problem, "run it on one machine, or with plans that stay as they are")
    return found
