"""The optimal split where gradients are synchronised while the backward pass still runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, canonical, capacities
from .apportion import min_max
from .overlap import Overlaps


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
        able = view.steps.kinds.capacity[view.steps.row_of] > 0
        here = view.among(np.flatnonzero(able)[: view.global_batch].tolist())
        times = Overlaps(here, self.bucket_mib).among(np.arange(len(here.devices)))
        split = min_max(times, view.global_batch, least=1)
        if split is None:  # the fastest alone have no room for the batch
            split = min_max(times, view.global_batch)
        assert split is not None, "capacities() has judged"
        return here.plan(split).model_copy(update={"bucket_mib": self.bucket_mib})
