"""How long the exact batch split takes: 1,000 devices, batch 100,000."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from steelyard.policies.makespan import min_max_split
from steelyard.sim.cost import Curve, DeviceCost, Line
from steelyard.sim.view import DeviceView

DEVICES, BATCH = 1000, 100_000
SIZES = tuple(2**power for power in range(18))


def _device(number: int, forward: Line | Curve, largest: int | None = None) -> DeviceView:
    cost = DeviceCost(str(number), "profiled", forward, Line(0.0, 0.0), 1e-3)
    return DeviceView(str(number), 1.0, 1.0, 1.0, BATCH, cost, largest)


def _curve(draws: random.Random) -> Curve:
    each = 1e-4 * (1 + draws.random())
    return Curve(SIZES, tuple(1e-3 + each * size**0.9 for size in SIZES))


def _affine(draws: random.Random) -> list[DeviceView]:
    return [_device(n, Line(draws.random() * 1e-3, 1e-4 + draws.random() * 1e-3)) for n in range(DEVICES)]


def _kinds(draws: random.Random, largest: int | None) -> list[DeviceView]:
    curves = [_curve(draws) for _ in range(4)]
    return [_device(number, draws.choice(curves), largest) for number in range(DEVICES)]


def _falling(draws: random.Random) -> list[DeviceView]:
    """A cliff at the largest micro-batch: two halves are cheaper than a whole."""
    cliff = Curve((1, 12, 16), (1e-3, 5e-3, 2e-2))
    curves = [cliff, _curve(draws), _curve(draws)]
    return [_device(number, draws.choice(curves), 16) for number in range(DEVICES)]


@pytest.mark.bench
def test_a_thousand_devices_share_a_hundred_thousand_samples() -> None:
    draws = random.Random(0)
    cases: dict[str, Sequence[DeviceView]] = {
        "1,000 kinds, affine": _affine(draws),
        "4 kinds, curves": _kinds(draws, None),
        "4 kinds, accumulating": _kinds(draws, 16),
        "3 kinds, one whose times fall": _falling(draws),
    }
    for name, devices in cases.items():
        taken = []
        for _ in range(5):
            started = time.perf_counter()
            split = min_max_split(devices, BATCH)
            taken.append(time.perf_counter() - started)
            assert split is not None
            assert sum(split) == BATCH
        print(f"\n{DEVICES} devices, batch {BATCH}, {name}: {1e3 * min(taken):.1f} ms")
