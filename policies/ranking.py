"""Ranking: devices by their own figures, the fastest first; equal figures, equal ranks."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from ..sim.curve import Curve, Line
from ..sim.roofline import Identity
from ..sim.view import DeviceView, View


def ranks(view: View) -> list[int]:
    """Per device, a number by its speed, and where several kinds are as fast, by all other figures of theirs."""
    rows, speeds = view.steps.row_of.tolist(), view.speeds
    kinds: dict[tuple[object, ...], int] = {}
    of = [
        kinds.setdefault((row, each.peak_flops, each.memory_bandwidth, each.memory_bytes), place)
        for place, (row, each) in enumerate(zip(rows, view.devices, strict=True))
    ]
    as_fast = Counter(speeds[place] for place in kinds.values())
    keys: dict[int, tuple[Any, ...]] = {
        place: (-speeds[place], *(figures(view.devices[place]) if as_fast[speeds[place]] > 1 else ()))
        for place in kinds.values()
    }
    numbers = {key: number for number, key in enumerate(sorted(set(keys.values())))}
    return [numbers[keys[place]] for place in of]


def figures(device: DeviceView) -> tuple[object, ...]:
    """All that distinguishes a device but its name, as a sort key: larger figures and shorter times first."""
    limit = device.largest_micro_batch or 0
    key = (-device.peak_flops, -device.memory_bandwidth, -device.memory_bytes, -device.capacity, -limit)
    times = (_sampled(Identity(device.cost.forward)), _sampled(Identity(device.cost.backward)))
    waking = tuple((point.blocked_s, point.extra_s) for point in device.cost.waking)
    return (*key, device.cost.optimizer_s, *times, waking)


@lru_cache(maxsize=1024)
def _sampled(key: Identity) -> tuple[float, ...]:
    """Times at powers of two; devices of a kind share their curve."""
    curve = key.value
    assert isinstance(curve, Line | Curve)
    return tuple(curve.at(2**power) for power in range(16))
