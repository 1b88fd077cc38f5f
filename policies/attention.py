"""The project's own idea: the shares over devices come from attention between the work and the devices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..sim.plan import Infeasible, Plan
from ..sim.view import View
from ._base import Range, canonical, round_shares

Floats = NDArray[np.float64]
Weight = Annotated[float, Range(-2, 2)]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax over device keys: shares = softmax(q @ k / temperature), keys the logarithms of the devices' figures.

    With logarithms, units cancel (a constant factor on all devices shifts every score alike), and one key alone with
    weight w is exactly proportional to figure ** (w / temperature). The weights are the work's query.
    """

    name: ClassVar[str] = "attention"
    source: ClassVar[str] = "the attention balancer; softmax attention as in Vaswani et al. 2017, equation 1"

    peak: Weight = 0.0
    """Weight of the key log(peak FLOP/s)."""
    speed: Weight = 1.0
    """Weight of the key log(measured samples/s)."""
    bandwidth: Weight = 0.0
    """Weight of the key log(memory bandwidth)."""
    memory: Weight = 0.0
    """Weight of the key log(memory free beside the model's states)."""
    temperature: Annotated[float, Range(0.1, 4.0, log=True)] = 1.0

    def allocate(self, view: View) -> Plan:
        """The batch attends to the devices that have room for it."""
        view = canonical(view)
        mask = np.array([0.0 if device.capacity > 0 else -math.inf for device in view.devices])
        if not np.isfinite(mask).any():
            raise Infeasible("workload.model", "fits on no device", "use a smaller model or more memory")
        query = np.array([self.peak, self.speed, self.bandwidth, self.memory])
        shares = attention(query[None, :], device_keys(view), self.temperature, mask)[0]
        return round_shares(view, shares.tolist())


def device_keys(view: View) -> Floats:
    """One row per device: logarithms of peak FLOP/s, measured samples/s, memory bandwidth and free memory."""
    states = view.workload.state_bytes
    rows = [
        [device.peak_flops, speed, device.memory_bandwidth, max(device.memory_bytes - states, 1.0)]
        for device, speed in zip(view.devices, view.speeds, strict=True)
    ]
    keys: Floats = np.log(np.array(rows))
    return keys


def attention(queries: Floats, keys: Floats, temperature: float, mask: Floats) -> Floats:
    """softmax(Q K^T / temperature + mask) by rows.

    Args:
        queries: (pieces of work, features).
        keys: (devices, features).
        temperature: larger is closer to equal shares.
        mask: per device, 0 or -inf; at least one is 0.

    Returns:
        Shares, (pieces of work, devices); each row sums to 1.
    """
    scores = queries @ keys.T / temperature + mask
    scores = scores - scores.max(axis=1, keepdims=True)
    weights = np.exp(scores)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)
