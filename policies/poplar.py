"""Poplar: micro-batches from measured curves for every ZeRO stage."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ..sim.plan import Infeasible, Plan
from ..sim.view import DeviceView, View
from ._base import Choice, canonical
from .apportion import min_max
from .curves import Floats, Given, Ints
from .rounds import Team, counts, micro_batches, rounds


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
    best, best_s = None, float("inf")
    for count in counts(team.view.global_batch, len(team.devices), sum(rooms)):
        found = rounds(team, rooms, count)
        seconds = sum(times * team.round_s(sizes) for sizes, times in found) if found else float("inf")
        if found and seconds < best_s:
            best, best_s = found, seconds
    return team.plan(micro_batches(best)) if best else None


def _accumulated(team: Team, rooms: list[int]) -> Plan:
    """Nobody waits before the last micro-batch: each device takes micro-batches of its best size, then the rest."""
    kinds: dict[object, list[int]] = {}
    for place, (device, room) in enumerate(zip(team.devices, rooms, strict=True)):
        kinds.setdefault((id(device.cost.forward), id(device.cost.backward), room), []).append(place)
    members = list(kinds.values())
    sizes = [best_size(team.devices[places[0]], rooms[places[0]]) for places in members]
    functions = [_Repeated(team.devices[places[0]], size) for places, size in zip(members, sizes, strict=True)]
    batch = team.view.global_batch
    split = min_max(Given(functions, members, [batch] * len(members)), batch, least=1)
    assert split is not None, "no more devices than samples"
    of = {place: size for places, size in zip(members, sizes, strict=True) for place in places}
    return team.plan([_cut(samples, of[place]) for place, samples in enumerate(split)])


def best_size(device: DeviceView, room: int) -> int:
    """The micro-batch with the most samples per second, the largest of equals (of many: of a fine geometric grid)."""
    sizes = np.unique(np.geomspace(1, room, 2048).round().astype(np.int64))
    rates = np.array([size / device.cost.compute_s(int(size)) for size in sizes])
    return int(sizes[np.flatnonzero(rates >= rates.max() * (1 - 1e-12))[-1]])


def _cut(samples: int, size: int) -> list[int]:
    """Full micro-batches, and one with the rest."""
    full, rest = divmod(samples, size)
    return [size] * full + [rest] * (rest > 0)


@dataclass(frozen=True)
class _Repeated:
    """Seconds of so many samples on a device that cuts them by :func:`_cut`."""

    device: DeviceView
    size: int

    def __call__(self, samples: Ints) -> Floats:
        full, rest = samples // self.size, samples % self.size
        cost = self.device.cost
        last = np.array([cost.compute_s(each) if each else 0.0 for each in rest.tolist()])
        found: Floats = full * cost.compute_s(self.size) + last + cost.optimizer_s
        return found
