"""How long batch splits take over 1,000 devices, batch 100,000: the exact split alone, and policies as a whole."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from steelyard.policies import make_policy
from steelyard.policies.apportion import min_max
from steelyard.sim.cost import Curve, DeviceCost, Line
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.steps import Steps
from steelyard.sim.view import DeviceView, View

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
def test_a_thousand_devices_share_a_hundred_thousand_samples(scoreboard: Callable[..., None]) -> None:
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
            split = min_max(Steps(devices, BATCH), BATCH)
            taken.append(time.perf_counter() - started)
            assert split is not None
            assert sum(split) == BATCH
        what = f"ms for the exact split alone, {DEVICES} devices, batch {BATCH}, {name} (first {1e3 * taken[0]:.0f} ms)"
        scoreboard(f"exact split, {name}", 1e3 * min(taken), aim="< 10 ms", what=what)
        assert min(taken) < 1.0  # a host that is shared by many is no reason to fail


POLICIES = ("uniform", "throughput", "proportional", "makespan", "cannikin", "poplar", "cephalo")
FIGURES = {
    "a100": (312.0, 2039.0, 80.0),
    "v100": (125.0, 900.0, 32.0),
    "t4": (65.0, 320.0, 16.0),
    "h100": (989.0, 3350.0, 80.0),
}
"""TFLOP/s, GB/s and GiB."""
MACHINES = 125


def _cluster(kind: str) -> Scenario:
    """Machines of eight devices: four kinds, or no two devices alike."""
    nodes = []
    for number in range(MACHINES):
        name, (peak, bandwidth, memory) = list(FIGURES.items())[number % 4]
        factors = [1.0] if kind == "4 kinds" else [1 + (number * 8 + place) * 7919 % 1000 / 2000 for place in range(8)]
        devices = [
            {
                "name": f"{name}-{number}-{place}",
                "count": 8 // len(factors),
                "peak_tflops": {"fp16": peak * factor},
                "memory_bandwidth_gb_per_s": bandwidth * factor,
                "memory_gib": memory,
            }
            for place, factor in enumerate(factors)
        ]
        nodes.append({"name": f"node{number}", "link": "nvlink-3", "devices": devices})
    workload = {"model": "bert-large", "global_batch": BATCH, "sequence_length": 128, "dtype": "fp16"}
    document = {"name": "many", "cluster": {"network": "ethernet-100g", "nodes": nodes}, "workload": workload}
    return scenario_from(document)


def _decision_s(scenario: Scenario, name: str) -> tuple[float, float]:
    """Processor seconds of the first decision on a cluster, and the least of some later ones, each with a new view."""
    taken = []
    for _ in range(6):
        view = View.of(scenario)
        started = time.process_time()
        plan = make_policy(name).allocate(view)
        taken.append(time.process_time() - started)
        assert sum(plan.samples().values()) == BATCH
    return taken[0], min(taken[1:])


@pytest.mark.bench
@pytest.mark.parametrize("kind", ["4 kinds", "1,000 kinds"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_whole_decision_over_a_thousand_devices(name: str, kind: str, scoreboard: Callable[..., None]) -> None:
    first, later = _decision_s(_cluster(kind), name)
    what = (
        f"ms of processor for `{name}` from view to plan, {DEVICES} devices, batch {BATCH} (first {1e3 * first:.0f} ms)"
    )
    scoreboard(f"{name}, 1,000 devices of {kind}", 1e3 * later, aim="< 10 ms", what=what)
