"""The article's linear cost, kept as it was asked for, beside the optimum that shows what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, canonical, capacities


@dataclass(frozen=True, kw_only=True)
class LinearCost:
    """Minimise C = sum alpha_k (T_k + M_k): linear, so all work goes to the device with the least T_k + M_k."""

    name: ClassVar[str] = "linear-cost"
    source: ClassVar[str] = "the attention balancer's article: C = sum_k alpha_k (T_k + M_k)"

    memory_weight: Annotated[float, Range(0, 4)] = 1.0
    """Factor on M_k."""

    def allocate(self, view: View) -> Plan:
        """The vertex: devices in order of T_k + M_k, each filled to its capacity before the next gets a sample.

        T_k is the time that the whole batch would take on device k; M_k the time to move its activations once through
        the device's memory.
        """
        view = canonical(view)
        limits = capacities(view)
        batch = view.global_batch
        moved = batch * view.workload.activation_bytes_per_sample
        costs = [device.step_s(batch) + self.memory_weight * moved / device.memory_bandwidth for device in view.devices]
        return view.plan(vertex(costs, batch, limits))


def linear_cost(shares: Sequence[float], compute: Sequence[float], memory: Sequence[float]) -> float:
    """C = sum alpha_k (T_k + M_k), in the unit of T and M."""
    return sum(a * (t + m) for a, t, m in zip(shares, compute, memory, strict=True))


def vertex(costs: Sequence[float], batch: int, limits: Sequence[int]) -> list[int]:
    """The integer point that minimises a linear cost per sample under caps: cheapest first, each filled up."""
    given = [0] * len(costs)
    left = batch
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], i)):
        given[i] = min(left, limits[i])
        left -= given[i]
    return given
