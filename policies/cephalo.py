"""Cephalo: who computes and who holds the states are two questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..sim.plan import Infeasible, Plan
from ..sim.view import DeviceView, View
from ._base import canonical
from .rounds import Dealer, Team, counts, micro_batches


@dataclass(frozen=True, kw_only=True)
class Cephalo:
    """Split the batch by speed alone, and the sharded states by the memory that the activations leave free."""

    name: ClassVar[str] = "cephalo"
    source: ClassVar[str] = "Guo et al. 2024, Cephalo (arXiv 2411.01075)"

    def allocate(self, view: View) -> Plan:
        """ZeRO-3 in the rounds of the least estimated time, with the most equal state shares that memory allows.

        Every device keeps as many samples as there are activations for, whatever its share of the states: all that the
        states need is room somewhere. The largest share is made as small as can be, since a ring waits for it.

        Raises:
            Infeasible: states and one sample for each device fit nowhere.
        """
        view = canonical(view)
        devices = view.devices[: view.global_batch]
        while len(devices) > 1:
            plan = _sharded(Team(view, devices, 3))
            if plan is not None:
                return plan
            devices = _without_tightest(devices)
        for device in view.devices:  # alone, where what ZeRO-3 gathers takes more room than it saves
            team = Team(view, (device,), 0)
            room = team.room(device)
            found = Dealer(team, [room]).rounds(-(-view.global_batch // room)) if room else None
            if found is not None:
                return team.plan(micro_batches(found))
        problem = "states and activations of one sample fit on no set of devices, with everything sharded"
        raise Infeasible("workload.model", problem, "use a pipeline or tensor parallelism, or more memory")


def _without_tightest(devices: tuple[DeviceView, ...]) -> tuple[DeviceView, ...]:
    """All but those with the least memory; of equal ones, half."""
    least = min(device.memory_bytes for device in devices)
    roomy = tuple(device for device in devices if device.memory_bytes > least)
    return roomy or devices[: len(devices) // 2]


def _sharded(team: Team) -> Plan | None:
    rooms = [team.bare_room(device) for device in team.devices]
    free = [team.free_bytes(device) for device in team.devices]
    spare = sum(free) - team.sharded_bytes
    if min(rooms) < 1 or spare < len(rooms) * team.sample_bytes:
        return None
    together = int(min(sum(rooms), spare / team.sample_bytes)) if team.sample_bytes else sum(rooms)
    best, best_s, dealer = None, float("inf"), Dealer(team, rooms)
    for count in counts(team.view.global_batch, len(rooms), together):
        if count * team.flow_s >= best_s:
            break
        found = dealer.rounds(count, best_s)
        if found is None:
            continue
        most = [max(sizes[place] for sizes, _ in found) for place in range(len(rooms))]
        left = [each - size * team.sample_bytes for each, size in zip(free, most, strict=True)]
        shares = even_shares([max(each, 0.0) / team.sharded_bytes for each in left])
        if shares is None:
            continue
        unevenness = max(shares) * len(shares)
        seconds = sum(times * team.round_s(sizes, unevenness) for sizes, times in found)
        if seconds < best_s:
            best, best_s = (found, shares), seconds
    if best is None:
        return None
    even = max(best[1]) <= min(best[1]) * (1 + 1e-12)
    return team.plan(micro_batches(best[0]), None if even else dict(zip(team.names, best[1], strict=True)))


def even_shares(limits: Sequence[float]) -> list[float] | None:
    """Shares that sum to 1, within limits, with the least maximum; None where the limits sum to less."""
    if sum(limits) < 1:
        return None
    left, level = 1.0, 0.0
    for done, limit in enumerate(sorted(limits)):
        level = left / (len(limits) - done)
        if limit >= level:
            break
        left -= limit
    return [min(limit, level) for limit in limits]
