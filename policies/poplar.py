"""Poplar: micro-batches from measured curves for every ZeRO stage."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ..sim.plan import Infeasible, Plan
from ..sim.steps import Floats, Ints
from ..sim.view import View
from ._base import Choice, canonical
from .apportion import min_max
from .rounds import Dealer, Passes, Team, counts, micro_batches


@dataclass(frozen=True, kw_only=True)
class Poplar:
    """Sweep the time of a micro-step for ZeRO 2 and 3; for ZeRO 0 and 1 let each device accumulate at its best rate."""

    name: ClassVar[str] = "poplar"
    source: ClassVar[str] = "Zhang et al. 2024, Poplar (arXiv 2408.12596), batch allocation"

    least_zero: Annotated[int, Choice(0, 1, 2, 3)] = 0
    """The first ZeRO stage that is tried: the next ones where it has no plan, and the ones below it after these."""

    def allocate(self, view: View) -> Plan:
        """The plan of the first stage in which every device has room; else of the first one that leaves some out.

        Raises:
            Infeasible: in no stage is there room for the samples.
        """
        view = canonical(view)
        # Unsharded states may fit where buckets of gradients, or rounds in which everybody has a sample, do not.
        stages = [*range(self.least_zero, 4), *reversed(range(self.least_zero))]
        for leave_out, zero in itertools.product((False, True), stages):
            plan = _with_stage(view, zero, leave_out)
            if plan is not None:
                return plan
        problem = "no device has room for one sample, even with ZeRO-3 over all that could work together"
        raise Infeasible("workload.model", problem, "use a pipeline or tensor parallelism, or more memory")


def _with_stage(view: View, zero: int, leave_out: bool) -> Plan | None:
    """The plan of the fastest devices that have room, or None."""
    devices = view.devices
    while devices:
        team = Team(view, devices[: view.global_batch], zero)
        able = tuple(device for device in devices if team.room(device) > 0)
        if able[: len(team.devices)] == team.devices:
            rooms = [team.room(device) for device in team.devices]
            plan = _accumulated(team, rooms) if zero < 2 else _swept(team, rooms)
            if plan is not None:
                return plan
            able = team.devices[:-1]  # no rounds in which each has a sample: the slowest stays out
        if not leave_out:
            return None
        devices = able
    return None


def _swept(team: Team, rooms: list[int]) -> Plan | None:
    """Of all numbers of rounds, each with its shortest micro-step, those with the least time in all."""
    best, best_s, dealer = None, float("inf"), Dealer(team, rooms)
    for count in counts(team.view.global_batch, len(team.devices), sum(rooms)):
        if count * team.flow_s >= best_s:
            break
        found = dealer.rounds(count, best_s)
        seconds = sum(times * team.round_s(sizes) for sizes, times in found) if found else float("inf")
        if found and seconds < best_s:
            best, best_s = found, seconds
    return team.plan(micro_batches(best)) if best else None


def _accumulated(team: Team, rooms: list[int]) -> Plan:
    """Nobody waits before the last micro-batch: each device takes micro-batches of its best size, then the rest."""
    times = _Accumulated(team, rooms)
    split = min_max(times, team.view.global_batch, least=1)
    assert split is not None, "no more devices than samples"
    sizes = times.sizes[times.row_of].tolist()
    return team.plan([_cut(samples, size) for samples, size in zip(split, sizes, strict=True)])


def best_size(passes: Passes, row: int) -> int:
    """The micro-batch with the most samples per second, the largest of equals.

    Between two sizes of its curves time is affine, so samples per second are most at one of them.
    """
    room = int(passes.capacity[row])
    sizes = np.array(sorted({1, room, *(size for size in passes.turns(row) if size < room)}))
    rates = sizes / passes.at(np.full(len(sizes), row), sizes)
    return int(sizes[np.flatnonzero(rates >= rates.max() * (1 - 1e-12))[-1]])


def _cut(samples: int, size: int) -> list[int]:
    """Full micro-batches, and one with the rest."""
    full, rest = divmod(samples, size)
    return [size] * full + [rest] * (rest > 0)


class _Accumulated:
    """Seconds of so many samples on devices that cut them by :func:`_cut`. See :class:`~steelyard.sim.steps.Times`."""

    rising = True
    """A device takes full micro-batches of its best size, and one with the rest."""

    def __init__(self, team: Team, rooms: list[int]) -> None:
        batch = team.view.global_batch
        self._passes = Passes(team.devices, rooms, batch)
        self.row_of = self._passes.row_of
        self.capacity: Ints = np.full(len(self._passes.capacity), batch)
        self.sizes: Ints = np.array([best_size(self._passes, row) for row in range(len(self.capacity))])
        """Per row, the samples of a full micro-batch."""
        self._full_s = self._passes.at(np.arange(len(self.sizes)), self.sizes)

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`~steelyard.sim.steps.Times`."""
        full, rest = samples // self.sizes[rows], samples % self.sizes[rows]
        seconds = full * self._full_s[rows] + self._passes.at(rows, rest) + self._passes.optimizer_s[rows]
        return np.where(samples > 0, seconds, 0.0)
