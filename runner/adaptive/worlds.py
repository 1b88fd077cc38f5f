"""Runs at random, by family of what happens in them: some to develop on, others to be judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...sim.noise import stream
from ...sim.spec import Scenario, scenario_from

Document = dict[str, Any]
Event = dict[str, Any]
Purpose = Literal["development", "held out"]

STEPS = 200
RULES = {"every_steps": 5, "at_most": 5, "pause_s": 0.1, "restart_s": 1.0}
GPUS = (
    "nvidia-a10", "nvidia-a100-sxm-40gb", "nvidia-a40", "nvidia-h100-sxm", "nvidia-l40s", "nvidia-rtx-4090",
    "nvidia-v100-sxm-32gb",
)  # fmt: skip
MODELS = (("bert-base", 128), ("bert-large", 128), ("gpt2-small", 512), ("opt-350m", 512))
FAST, SLOW = ("infiniband-200", "ethernet-100g"), ("ethernet-10g", "ethernet-25g")


@dataclass(frozen=True)
class Machines:
    """The devices of a world, by machine."""

    names: tuple[tuple[str, ...], ...]

    @property
    def devices(self) -> list[str]:
        """All names."""
        return [name for machine in self.names for name in machine]


@dataclass(frozen=True)
class Family:
    """What happens in the runs of a family."""

    name: str
    summary: str
    events: Callable[[np.random.Generator, Machines], list[Event]]
    networks: Sequence[str] = FAST


def _slow(device: str, start: int, factor: float, until: int | None = None) -> Event:
    found: Event = {"kind": "slowdown", "device": device, "from_step": start, "factor": factor}
    return found if until is None else {**found, "until_step": until}


def _factor(draws: np.random.Generator) -> float:
    return round(float(np.exp(draws.uniform(np.log(1.3), np.log(4.0)))), 2)


def _victims(draws: np.random.Generator, machines: Machines, count: int) -> list[str]:
    chosen = draws.choice(machines.devices, size=min(count, len(machines.devices) - 1), replace=False)
    return [str(name) for name in chosen]


def _stragglers(draws: np.random.Generator, machines: Machines) -> list[Event]:
    names = _victims(draws, machines, int(draws.integers(1, 3)))
    return [_slow(name, int(draws.integers(10, 110)), _factor(draws)) for name in names]


def _passing(draws: np.random.Generator, machines: Machines) -> list[Event]:
    (name,) = _victims(draws, machines, 1)
    start = int(draws.integers(10, 90))
    return [_slow(name, start, _factor(draws), start + int(draws.integers(4, 100)))]


def _drifts(draws: np.random.Generator, machines: Machines) -> list[Event]:
    found = []
    for name in _victims(draws, machines, int(draws.integers(1, 3))):
        start = int(draws.integers(5, 80))
        until = start + int(draws.integers(30, 110))
        found.append(
            {"kind": "drift", "device": name, "from_step": start, "until_step": until, "factor": _factor(draws)}
        )
    return found


def _on_and_off(draws: np.random.Generator, machines: Machines) -> list[Event]:
    (name,) = _victims(draws, machines, 1)
    factor, length, pause = _factor(draws), int(draws.integers(10, 40)), int(draws.integers(10, 40))
    starts = range(int(draws.integers(5, 40)), STEPS - length, length + pause)
    return [_slow(name, start, factor, start + length) for start in starts]


def _lost(draws: np.random.Generator, names: Sequence[str]) -> list[Event]:
    """All of some devices in one step; in half of the cases they come back."""
    start = int(draws.integers(20, 100))
    found = [{"kind": "loss", "device": name, "from_step": start} for name in names]
    if draws.random() < 0.5:
        back = start + int(draws.integers(20, 80))
        found += [{"kind": "return", "device": name, "from_step": back} for name in names]
    return found


def _loss(draws: np.random.Generator, machines: Machines) -> list[Event]:
    return _lost(draws, _victims(draws, machines, 1))


def _machine(draws: np.random.Generator, machines: Machines) -> list[Event]:
    return _lost(draws, machines.names[int(draws.integers(len(machines.names)))])


def _calm(draws: np.random.Generator, machines: Machines) -> list[Event]:
    """Nothing worth a change: a few per cent, or a few steps."""
    (name,) = _victims(draws, machines, 1)
    start = int(draws.integers(10, 150))
    if draws.random() < 0.5:
        return [_slow(name, start, round(float(draws.uniform(1.01, 1.06)), 3))]
    return [_slow(name, start, _factor(draws), start + int(draws.integers(1, 4)))]


FAMILIES: tuple[Family, ...] = (
    Family("straggler", "one or two devices slow down, to stay", _stragglers),
    Family("passing", "one slows down for 4 to 100 steps", _passing),
    Family("drift", "one or two become slower step by step", _drifts),
    Family("on and off", "one is slow again and again, more often than plans may change", _on_and_off),
    Family("loss", "one device is lost; in half of the runs it comes back", _loss),
    Family("machine", "a whole machine is lost in one step; in half of the runs it comes back", _machine),
    Family("slow links", "stragglers on 10 or 25 Gbit/s Ethernet", _stragglers, SLOW),
    Family("calm", "what is not worth a change: a few per cent, or a few steps", _calm),
)


def worlds(purpose: Purpose, seed: int, each: int) -> list[tuple[Family, Scenario]]:
    """Runs, so many of each family; those for development and those to be judged on come from different streams."""
    return [(family, world(family, purpose, seed, number)) for family in FAMILIES for number in range(each)]


def world(family: Family, purpose: Purpose, seed: int, number: int) -> Scenario:
    """One run: two or three machines of one kind of GPU each, four to nine devices."""
    draws = stream(seed, "adaptive", purpose, family.name, number)
    kinds = draws.choice(GPUS, size=int(draws.integers(2, 4)), replace=False)
    sizes = [int(draws.integers(2, 5 if len(kinds) == 2 else 4)) for _ in kinds]
    nodes = [
        {
            "name": f"node{place}",
            "link": "pcie-4",
            "devices": [{"device": str(kind), "name": f"d{place}", "count": size}],
        }
        for place, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]
    names = tuple(tuple(f"d{place}-{rank}" for rank in range(size)) for place, size in enumerate(sizes))
    model, length = MODELS[int(draws.integers(len(MODELS)))]
    batch = int(sum(sizes) * draws.integers(24, 128))
    document: Document = {
        "name": f"{family.name} {number}",
        "cluster": {"network": family.networks[int(draws.integers(len(family.networks)))], "nodes": nodes},
        "workload": {
            "model": model, "global_batch": batch, "sequence_length": length, "dtype": "fp16", "max_micro_batch": 16,
        },
        "sampling": {"steps": STEPS, "launches": 1},
        "disturbances": family.events(draws, Machines(names)),
        "rebalance": RULES,
    }  # fmt: skip
    return scenario_from(document)
