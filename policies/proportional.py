"""Splits in proportion to one figure of the devices: equal, peak FLOP/s, measured speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Infeasible, Plan
from ..sim.view import View
from ._base import Range, round_shares


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Give every device the same number of samples."""

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "the default of data-parallel training (torch DistributedDataParallel)"

    def allocate(self, view: View) -> Plan:
        """Equal shares, within the devices' capacities.

        Raises:
            Infeasible: there are fewer samples than devices with room; a share of none would be another policy.
        """
        count = sum(device.capacity > 0 for device in view.devices)
        if view.global_batch < count:
            problem = f"{view.global_batch} samples cannot give every one of {count} devices a share"
            raise Infeasible("workload.global_batch", problem, "use a larger batch, or a policy that leaves some out")
        return round_shares(view, [1.0] * len(view.devices))


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Split the batch in proportion to peak FLOP/s (for a lane: its measured matrix-product rate)."""

    name: ClassVar[str] = "flops"
    source: ClassVar[str] = "the article's F_k: devices weighted by their computing power"

    def allocate(self, view: View) -> Plan:
        """Shares F_k / sum F."""
        return round_shares(view, [device.peak_flops for device in view.devices])


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Split the batch in proportion to measured speed ** gamma (0: equal shares, 1: proportional)."""

    name: ClassVar[str] = "throughput"
    source: ClassVar[str] = "speed-proportional batches (Chen et al. 2020, LB-BSP, section 3)"

    gamma: Annotated[float, Range(0, 2)] = 1.0

    def allocate(self, view: View) -> Plan:
        """Shares v_k^gamma / sum v^gamma, v in samples per second at an equal share."""
        return round_shares(view, [speed**self.gamma for speed in view.speeds])
