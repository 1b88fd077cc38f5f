"""The optimal split where gradients are synchronised while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from ..sim.network import network_of
from ..sim.plan import Plan
from ..sim.times import layer_times
from ..sim.view import View
from ._base import Range, canonical, capacities
from .apportion import min_max
from .curves import Floats, Ints, Steps


@dataclass(frozen=True, kw_only=True)
class Cannikin:
    """Equalise when devices are done with computing, or where communication binds, when they can begin with it."""

    name: ClassVar[str] = "cannikin"
    source: ClassVar[str] = "Nie et al. 2024, Cannikin (arXiv 2402.05302): OptPerf with given curves"

    bucket_mib: Annotated[float, Range(1, 1000, log=True)] = 25.0
    """Size of a message of gradients; 25 is the default of torch's DistributedDataParallel."""

    def allocate(self, view: View) -> Plan:
        """The split with the least estimated step time over all devices, with the all-reduce beside the backward pass.

        The paper has one point at which a device's first bucket is ready; here every bucket has its own. Exact for the
        simulated step without noise, as far as :func:`.apportion.min_max` is exact and every device takes part (of
        more devices than samples, the fastest).
        """
        view = canonical(view)
        capacities(view)
        chosen = [device for device in view.devices if device.capacity > 0][: view.global_batch]
        here = replace(view, devices=tuple(chosen))
        split = min_max(Overlapped(here, self.bucket_mib), view.global_batch, least=1)
        if split is None:  # the fastest alone have no room for the batch
            split = min_max(Overlapped(here, self.bucket_mib), view.global_batch)
        assert split is not None, "capacities() has judged"
        return here.plan(split).model_copy(update={"bucket_mib": self.bucket_mib})


class Overlapped(Steps):
    """From the end of one step's buckets to that of the next, if a device were the last to be ready for all of them.

    Bucket j flows when all devices have its gradients and bucket j - 1 is through. So the last bucket ends at the
    maximum over j of (the last device's readiness for j + the buckets from j on), which is the maximum over devices of
    a time that depends on that device alone: its optimizer step, its passes, and what communication adds. A device
    whose computing binds has the maximum at the last bucket, one whose communication binds at an earlier one: the
    paper's two kinds.
    """

    def __init__(self, view: View, bucket_mib: float) -> None:
        super().__init__(view.devices, view.global_batch)
        self._view = view
        self._known: dict[tuple[int, int], float] = {}
        names = [device.name for device in view.devices]
        self._overlap = all(view.cluster.by_name[name].overlapping for name in names)
        cuts = buckets(view, bucket_mib) if self._overlap else [(0, float(view.workload.gradient_bytes))]
        self._firsts = [first for first, _ in cuts]
        network = network_of(view.cluster)
        each = [network.collective("all_reduce", names, size).alone_s for _, size in cuts]
        self._left_s = np.cumsum(each[::-1])[::-1]
        """Of each bucket, the seconds that it and those after it take."""

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`.curves.Times`."""
        busy = super().at(rows, samples)
        size = samples // np.maximum(-(-samples // self._largest[rows]), 1)  # of the last micro-batch
        exposed = [self._exposed_s(row, each) for row, each in zip(rows.tolist(), size.tolist(), strict=True)]
        return np.where(samples > 0, busy + np.array(exposed), 0.0)

    def _exposed_s(self, row: int, samples: int) -> float:
        """What the buckets reach beyond the end of a backward pass of so many samples, were nobody later."""
        if not self._overlap or samples == 0:
            return float(self._left_s[0])
        key = row, samples
        if key not in self._known:
            device = self._view.cluster.by_name[self._devices[row].name]
            sums = layer_times(device, self._view.workload, samples).backward_sums
            self._known[key] = float(np.max(self._left_s - sums[self._firsts]))
        return self._known[key]


def buckets(view: View, bucket_mib: float) -> Sequence[tuple[int, float]]:
    """First layer and bytes of each message of gradients, the last layers first: whole layers, of at least a size."""
    found, size = [], 0.0
    for number in reversed(range(len(view.workload.layers))):
        size += view.workload.shard_parameters(number, number + 1, 1) * view.workload.element_bytes
        if size >= bucket_mib * 2**20 or number == 0:
            if size > 0:
                found.append((number, size))
            size = 0.0
    return found or [(0, 0.0)]
