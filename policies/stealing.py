"""Stealing: small micro-batches in one pool, each taken by whoever is free."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim import cost, memory
from ..sim.plan import Infeasible, Pipeline, Plan, Replica, Stage
from ..sim.view import DeviceView, View
from ._base import Range, canonical


@dataclass(frozen=True, kw_only=True)
class Stealing:
    """Cut the batch into many micro-batches that devices take one by one as they become free, measured or not."""

    name: ClassVar[str] = "stealing"
    source: ClassVar[str] = "list scheduling (Graham 1966); work stealing (Blumofe and Leiserson 1999), as one pool"

    pieces: Annotated[int, Range(1, 64)] = 8
    """Micro-batches per device, on average: more even out better, and each has its overhead."""

    def allocate(self, view: View) -> Plan:
        """The pool, dealt to start with as the estimates say that it will be taken.

        It stays so where a machine's input pipeline feeds its devices: that goes by who gets what, and allows no pull.

        Raises:
            Infeasible: no device holds the model and a sample.
        """
        view = canonical(view)
        known = view.cluster.by_name
        room = {device.name: cost.largest_micro_batch(view.workload, known[device.name]) for device in view.devices}
        users = [device for device in view.devices if room[device.name] > 0]
        if not users:
            mend = "use a smaller model, or devices with more memory"
            raise Infeasible("policy.stealing", "no device holds the model and one sample", mend)
        limit = min(room[device.name] for device in users)
        sizes = self._sizes(view, len(users), min(limit, view.workload.max_micro_batch or limit))
        plan = _dealt(view, users, sizes)
        if (violation := memory.check(view.workload, view.cluster.by_name, plan.widest())) is not None:
            raise Infeasible(*violation)
        return plan

    def _sizes(self, view: View, users: int, limit: int) -> list[int]:
        """The pool: pieces of nearly equal size, larger ones first."""
        count = max(-(-view.global_batch // limit), min(view.global_batch, users * self.pieces))
        least, over = divmod(view.global_batch, count)
        return [least + 1] * over + [least] * (count - over)


def _dealt(view: View, users: Sequence[DeviceView], sizes: Sequence[int]) -> Plan:
    """One by one to whoever is free first by the estimates; a device that gets none is left out."""
    own: list[list[int]] = [[] for _ in users]
    heap = [(0.0, place) for place in range(len(users))]
    for size in sizes:
        end, place = heapq.heappop(heap)
        own[place].append(size)
        heapq.heappush(heap, (end + users[place].cost.compute_s(size), place))
    last = len(view.workload.layers)
    pipelines = [
        Pipeline(stages=[Stage(first=0, last=last, replicas=[Replica(devices=[user.name])])], micro_batches=dealt)
        for user, dealt in zip(users, own, strict=True)
        if dealt
    ]
    fed = any(
        view.cluster.nodes[view.cluster.node_of[user.name]].loader_samples_per_s is not None
        for user, dealt in zip(users, own, strict=True)
        if dealt
    )
    return Plan(pipelines=pipelines, dispatch="static" if fed else "pull")
