"""Rounds: data parallel steps in which all devices go through equally many micro-batches together, states sharded."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..sim import memory
from ..sim.compiler import scaled, serial
from ..sim.network import network_of
from ..sim.plan import Plan
from ..sim.steps import Floats, Ints, Steps
from ..sim.view import DeviceView, View
from .apportion import Ladder, min_max

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

    @cached_property
    def sharded_bytes(self) -> float:
        """Bytes of the states that the devices hold one share each of."""
        whole = self._probe[0]
        parts = (whole.optimizer, whole.gradients, whole.weights)
        return sum(parts[: self.zero])

    @cached_property
    def _rooms(self) -> dict[float, int]:
        """Rooms by the bytes of memory."""
        return {}

    @cached_property
    def sample_bytes(self) -> float:
        """Bytes of the activations of a sample."""
        return self._probe[1].activations

    def room(self, device: DeviceView) -> int:
        """The most samples of a micro-batch on a device with an equal share of the states; 0 where none fits."""
        if device.memory_bytes not in self._rooms:
            shared, sizes = self._probe[1], range(1, self.most + 1)
            # Bisection over the very sum that judges a plan: a division would differ from it by a rounding.
            self._rooms[device.memory_bytes] = bisect.bisect_right(
                sizes,
                device.memory_bytes,
                key=lambda size: replace(shared, activations=size * self.sample_bytes).total,
            )
        return self._rooms[device.memory_bytes]

    def bare_room(self, device: DeviceView) -> int:
        """The same without any share of the states; of the rest a little is kept back for roundings."""
        left = self.free_bytes(device)
        if left < 0:
            return 0
        return self.most if left >= self.most * self.sample_bytes else int(left / self.sample_bytes)

    @cached_property
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
        pipelines = [
            {
                "stages": [{"first": 0, "last": last, "replicas": [{"devices": [device.name]}]}],
                "micro_batches": list(sizes),
            }
            for device, sizes in zip(self.devices, micro_batches, strict=True)
        ]
        states = None if shares is None else dict(shares)
        return Plan.model_validate({"pipelines": pipelines, "zero": self.zero, "state_shares": states})

    def round_s(self, sizes: Sequence[int], unevenness: float = 1.0) -> float:
        """Estimated seconds of a micro-batch on all devices; with ZeRO-3 it waits for weights and gradients."""
        samples, rows, kinds = np.array(sizes), self._steps.row_of, self._steps.kinds
        if self.zero < 3 or len(self.devices) < 2:
            return float(kinds.compute_s(rows, samples).max())
        passes = float(kinds.forward.at(rows, samples).max()), float(kinds.backward.at(rows, samples).max())
        layers = len(self.view.workload.layers)
        total = 0.0
        for busy_s, flow_s in zip(passes, self._flows_s(unevenness), strict=True):
            total += max(flow_s / layers + busy_s, flow_s)
        return total

    @cached_property
    def _steps(self) -> Steps:
        return Steps(self.devices, self.view.global_batch)

    @cached_property
    def flow_s(self) -> float:
        """What no round takes less than: with ZeRO-3 gathering the weights, twice, and scattering the gradients."""
        return sum(self._flows_s(1.0)) if self.zero == 3 and len(self.devices) > 1 else 0.0

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


class Dealer:
    """Divides the batch into rounds, each split so that its slowest device is done earliest.

    Every device has a sample in every round. The sizes of two rounds differ by one sample at most, all devices
    together.
    """

    def __init__(self, team: Team, rooms: Sequence[int]) -> None:
        self.batch = team.view.global_batch
        self.passes = Passes(team.devices, rooms, self.batch)
        self.ladder = Ladder(self.passes)

    def rounds(self, count: int, within: float = math.inf) -> Rounds | None:
        """The batch in so many rounds; None where it does not fit, or where passes alone take longer than a time."""
        size, over = divmod(self.batch, count)
        found: Rounds = []
        for samples, times in ((size, count - over), (size + 1, over)):
            if times:
                split = self._split(samples, within / count)
                if split is None:
                    return None
                found.insert(0, (split, times))
        return found

    def _split(self, samples: int, within: float) -> list[int] | None:
        # The larger rounds may take longer than an equal part of the time; by a rounding, the smaller ones too.
        return min_max(self.passes, samples, 1, within * (1 + MARGIN), self.ladder) if samples else None


class Passes:
    """Forward and backward of one micro-batch: the optimizer comes once, after the last. See :class:`.steps.Times`."""

    def __init__(self, devices: Sequence[DeviceView], rooms: Sequence[int], batch: int) -> None:
        steps = Steps(devices, batch)
        numbers: dict[tuple[int, int], int] = {}
        rows = [numbers.setdefault(each, len(numbers)) for each in zip(steps.row_of.tolist(), rooms, strict=True)]
        self.row_of = np.array(rows, dtype=np.int64)
        self.kinds = steps.kinds
        self._index = np.array([row for row, _ in numbers], dtype=np.int64)
        self.capacity = np.array([min(room, batch) for _, room in numbers], dtype=np.int64)

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`.steps.Times`."""
        return np.where(samples > 0, self.kinds.compute_s(self._index[rows], samples), 0.0)

    @property
    def optimizer_s(self) -> Floats:
        """Per row, the seconds of the optimizer."""
        found: Floats = self.kinds.optimizer_s[self._index]
        return found

    def turns(self, row: int) -> list[int]:
        """The sizes between which a row's time is affine."""
        kind = int(self._index[row])
        return [*self.kinds.forward.turns(kind), *self.kinds.backward.turns(kind)]

    @cached_property
    def rising(self) -> bool:
        """See :class:`.steps.Times`."""
        return bool((self.kinds.forward.rising & self.kinds.backward.rising).all())


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
