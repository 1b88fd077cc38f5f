"""Splits in proportion to one figure of the devices: equal, peak FLOP/s, measured speed, or any to a power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ..sim.plan import Infeasible, Plan
from ..sim.view import DeviceView, View
from ._base import Choice, Range, round_shares


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


@dataclass(frozen=True, kw_only=True)
class Proportional:
    """Split the batch in proportion to a figure of the devices ** gamma (0: equal shares, 1: proportional)."""

    name: ClassVar[str] = "proportional"
    source: ClassVar[str] = "static partitioning by one figure per device; by rate as LB-BSP starts (Chen et al. 2020)"

    figure: Annotated[
        Literal["rate", "speed", "peak", "bandwidth", "memory"],
        Choice("rate", "speed", "peak", "bandwidth", "memory"),
    ] = "rate"
    """``rate``: samples per second in the largest micro-batch that fits, without the optimizer; ``speed``: in a step
    with an equal share; ``peak``: FLOP/s; ``bandwidth`` and ``memory`` of the device."""
    gamma: Annotated[float, Range(0, 2)] = 1.0

    def allocate(self, view: View) -> Plan:
        """Shares f_k^gamma / sum f^gamma."""
        found = view.speeds if self.figure == "speed" else [self._of(device) for device in view.devices]
        largest = max(found) or 1.0  # only their ratios count, and these stay within a float
        return round_shares(view, [(each / largest) ** self.gamma for each in found])

    def _of(self, device: DeviceView) -> float:
        by_name = {"peak": device.peak_flops, "bandwidth": device.memory_bandwidth, "memory": device.memory_bytes}
        return _rate(device) if self.figure == "rate" else by_name[self.figure]


def _rate(device: DeviceView) -> float:
    """Samples per second of forward and backward, in the largest micro-batch that fits."""
    size = min(device.capacity, device.largest_micro_batch or device.capacity)
    return size / device.cost.compute_s(size) if size else 0.0
