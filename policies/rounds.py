"""Rounds: data parallel steps in which all devices go through equally many micro-batches together, states sharded."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..sim import memory
from ..sim.compiler import scaled, serial
from ..sim.network import network_of
from ..sim.plan import Pipeline, Plan, Replica, Stage
from ..sim.view import DeviceView, View
from .apportion import min_max
from .curves import Steps

MARGIN = 1e-9
"""Relative; memory is summed in another order here than where plans are judged."""
MOST_COUNTS = 256
"""Numbers of rounds that are weighed: all up to here, and some of those beyond."""


@dataclass(frozen=True)
class Team:
    """Devices that take part, in an order that their figures decide, and the ZeRO stage over them."""

    view: View
    devices: tuple[DeviceView, ...]
    zero: int

    @cached_property
    def names(self) -> list[str]:
        """Names of the devices."""
        return [device.name for device in self.devices]

    @cached_property
    def _probe(self) -> tuple[memory.Memory, memory.Memory]:
        """Memory for one sample with nothing sharded, and with equal shares."""
        plan = self.plan([[1]] * len(self.devices))
        alone = plan.model_copy(update={"zero": 0})
        first = self.names[0]
        return memory.peak(self.view.workload, alone)[first], memory.peak(self.view.workload, plan)[first]

    @property
    def sharded_bytes(self) -> float:
        """Bytes of the states that the devices hold one share each of."""
        whole = self._probe[0]
        parts = (whole.optimizer, whole.gradients, whole.weights)
        return sum(parts[: self.zero])

    @property
    def sample_bytes(self) -> float:
        """Bytes of the activations of a sample."""
        return self._probe[1].activations

    def room(self, device: DeviceView) -> int:
        """The most samples of a micro-batch on a device with an equal share of the states; 0 where none fits."""
        shared, sizes = self._probe[1], range(1, self.most + 1)
        # Bisection over the very sum that judges a plan: a division would differ from it by a rounding.
        return bisect.bisect_right(
            sizes,
            device.memory_bytes,
            key=lambda size: replace(shared, activations=size * self.sample_bytes).total,
        )

    def bare_room(self, device: DeviceView) -> int:
        """The same without any share of the states; of the rest a little is kept back for roundings."""
        left = self.free_bytes(device)
        if left < 0:
            return 0
        return self.most if left >= self.most * self.sample_bytes else int(left / self.sample_bytes)

    @property
    def most(self) -> int:
        """The largest micro-batch that the workload allows."""
        batch = self.view.global_batch
        return min(self.view.workload.max_micro_batch or batch, batch)

    def free_bytes(self, device: DeviceView) -> float:
        """Bytes of a device for activations and its share of the states."""
        whole, shared = self._probe
        states = whole.weights + whole.gradients + whole.optimizer
        return device.memory_bytes * (1 - MARGIN) - (states - self.sharded_bytes) - (shared.static - _states(shared))

    def plan(self, micro_batches: Sequence[Sequence[int]], shares: Mapping[str, float] | None = None) -> Plan:
        """The plan with the sizes of each device's micro-batches."""
        last = len(self.view.workload.layers)
        return Plan(
            pipelines=[
                Pipeline(
                    stages=[Stage(first=0, last=last, replicas=[Replica(devices=[device.name])])],
                    micro_batches=list(sizes),
                )
                for device, sizes in zip(self.devices, micro_batches, strict=True)
            ],
            zero=self.zero,
            state_shares=None if shares is None else dict(shares),
        )

    def round_s(self, sizes: Sequence[int], unevenness: float = 1.0) -> float:
        """Estimated seconds of a micro-batch on all devices; with ZeRO-3 it waits for weights and gradients."""
        costs = [device.cost for device in self.devices]
        forward = max(cost.forward.at(size) for cost, size in zip(costs, sizes, strict=True))
        backward = max(cost.backward.at(size) for cost, size in zip(costs, sizes, strict=True))
        if self.zero < 3 or len(costs) < 2:
            return max(cost.compute_s(size) for cost, size in zip(costs, sizes, strict=True))
        layers = len(self.view.workload.layers)
        total = 0.0
        for busy_s, flow_s in zip((forward, backward), self._flows_s(unevenness), strict=True):
            total += max(flow_s / layers + busy_s, flow_s)
        return total

    def _flows_s(self, unevenness: float) -> tuple[float, float]:
        """Gathering the weights, for the forward pass; for the backward pass, and scattering gradients after it."""
        network, size = network_of(self.view.cluster), self.view.workload.gradient_bytes
        gather = scaled(network.collective("all_gather", self.names, size), unevenness)
        scatter = scaled(network.collective("reduce_scatter", self.names, size), unevenness)
        return gather.alone_s, serial(gather, scatter).alone_s


def _states(held: memory.Memory) -> float:
    return held.weights + held.gradients + held.optimizer


Rounds = list[tuple[list[int], int]]
"""Sizes per device, and how many rounds have these."""


def rounds(team: Team, rooms: Sequence[int], count: int) -> Rounds | None:
    """The batch in so many rounds, each split so that its slowest device is done earliest; None where it does not fit.

    Every device has a sample in every round. The sizes of two rounds differ by one sample at most, all devices
    together.
    """
    size, over = divmod(team.view.global_batch, count)
    # One micro-batch each, and the optimizer comes once, after the last: only passes count.
    alone = [
        replace(device, capacity=room, largest_micro_batch=None, cost=replace(device.cost, optimizer_s=0.0))
        for device, room in zip(team.devices, rooms, strict=True)
    ]
    found: Rounds = []
    for samples, times in ((size + 1, over), (size, count - over)):
        if times:
            split = min_max(Steps(alone, samples), samples, least=1) if samples else None
            if split is None:
                return None
            found.append((split, times))
    return found


def counts(batch: int, devices: int, room: int) -> Iterator[int]:
    """Numbers of rounds to weigh, the least first: what fits in rounds of ``room`` samples, and a sample for each."""
    count, most = -(-batch // max(room, 1)), batch // devices
    tried = 0
    while count <= most:
        yield count
        tried += 1
        count = max(count + 1, count * (1 if tried < MOST_COUNTS else 5) // (1 if tried < MOST_COUNTS else 4))
    if tried and most > 0:
        yield most


def micro_batches(found: Rounds) -> list[list[int]]:
    """Per device, the sizes of its micro-batches."""
    return [[sizes[device] for sizes, times in found for _ in range(times)] for device in range(len(found[0][0]))]
