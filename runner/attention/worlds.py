"""Clusters at random, by family: what attention is trained on, and what it is held against without having seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...sim.checking import validate
from ...sim.noise import stream
from ...sim.spec import Scenario, scenario_from
from ...sim.workload import Workload
from .drawing import Document, Span, pick, span
from .graphs import Graph, graph_document


@dataclass(frozen=True)
class Family:
    """What the clusters of a family have in common; spans are drawn from uniformly in the logarithm."""

    name: str
    summary: str
    trained: bool = False
    """Whether there are training clusters of this family too."""
    devices: tuple[int, int] = (4, 12)
    per_device: Span = (8, 64)
    """Samples per device in a step."""
    overhead_us: Span = (2, 10)
    link_gb_per_s: Span = (10, 100)
    room: Span | None = None
    """Samples that a device has memory for, relative to an equal share; None: plenty."""
    catalog: bool = False
    """Real devices, links and models in place of drawn ones."""
    profiled: bool = False
    """Measured times that bend, in place of rooflines."""
    overlaps: bool = False
    """Whether devices send while they compute; gradients too, with which the exact split reckons."""
    graph: Graph | None = None
    """A graph of operators in place of a stack of blocks."""
    part: Span | None = None
    """Memory of a device, relative to an equal share of all that the step takes; None: as ``room`` says."""


FAMILIES: tuple[Family, ...] = (
    Family("plain", "enough memory, fast links", trained=True),
    Family("memory", "memory for a part of a fair share", trained=True, room=(0.3, 3.0)),
    Family("fixed cost", "few samples, slow launches", trained=True, per_device=(1, 8), overhead_us=(50, 2000)),
    Family("slow links", "0.1 to 3 GB/s", trained=True, link_gb_per_s=(0.1, 3)),
    Family("many", "24 to 96 devices", devices=(24, 96), link_gb_per_s=(1, 100)),
    Family("catalog", "real GPUs, models and Ethernet", devices=(4, 16), catalog=True),
    Family("profiled", "measured times that bend", profiled=True, link_gb_per_s=(1, 100)),
    Family("overlap", "gradients sent during the backward pass", link_gb_per_s=(0.3, 100), overlaps=True),
)
"""The first four are trained on; the others are seen for the first time where the score is taken."""

GPUS = (
    "nvidia-a10", "nvidia-a100-sxm-80gb", "nvidia-a40", "nvidia-h100-sxm", "nvidia-l4", "nvidia-l40s",
    "nvidia-rtx-3090", "nvidia-rtx-4090", "nvidia-t4", "nvidia-v100-sxm-32gb",
)  # fmt: skip
MODELS = (("bert-base", 128), ("gpt2-small", 512), ("vit-base", 197), ("opt-350m", 512))
ETHERNET = ("ethernet-10g", "ethernet-25g", "ethernet-100g")
PROFILE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def training_worlds(seed: int, count: int) -> list[Scenario]:
    """Clusters to learn from, the trained families in turn."""
    families = [family for family in FAMILIES if family.trained]
    return [world(families[number % len(families)], seed, "training", number) for number in range(count)]


def held_out_worlds(seed: int, each: int) -> list[tuple[Family, Scenario]]:
    """Clusters to be judged on, so many of each family, drawn from other streams than the training ones."""
    return [(family, world(family, seed, "held out", number)) for family in FAMILIES for number in range(each)]


def world(family: Family, seed: int, purpose: str, number: int) -> Scenario:
    """One cluster of a family; at least four devices, of two kinds or more."""
    draws = stream(seed, "attention", purpose, family.name, number)
    count = int(draws.integers(family.devices[0], family.devices[1] + 1))
    batch = max(count, round(count * span(draws, family.per_device)))
    workload, model = _work(draws, family, batch)
    kinds = _kinds(draws, family, model, count)
    cluster = _cluster(draws, family, kinds, count)
    return scenario_from({"name": f"{family.name} {number}", "cluster": cluster, "workload": workload})


def _work(draws: np.random.Generator, family: Family, batch: int) -> tuple[Document, Workload]:
    if family.graph is not None:
        document = graph_document(draws, family.graph, batch, "fp16" if family.catalog else "fp32")
        return document, validate(Workload, document, "workload")
    return _catalog_workload(draws, batch) if family.catalog else _workload(draws, batch)


def _workload(draws: np.random.Generator, batch: int) -> tuple[Document, Workload]:
    """A stack of equal blocks with a transformer's proportions: 12 d^2 weights, 24 d^2 FLOPs a token."""
    width = int(pick(draws, (128, 256, 512, 1024)))
    operator = {"kind": "matmul", "kernels": 8, "flops": [0.0, 24.0 * width**2], "elements": [0.0, 34.0 * width]}
    block = {
        "parameters": 12 * width**2,
        "trainable_parameters": 12 * width**2,
        "forward": [{**operator, "weight_elements": 12 * width**2}],
        "backward": [{**operator, "kernels": 16, "flops": [0.0, 48.0 * width**2], "elements": [0.0, 68.0 * width]}],
        "activation_elements": [0.0, 17.0 * width],
        "output_elements": [0.0, float(width)],
    }
    layers = [{"name": f"block{number}", **block} for number in range(int(draws.integers(4, 25)))]
    document = {
        "model": {"name": "drawn", "layers": layers},
        "global_batch": batch,
        "sequence_length": int(pick(draws, (64, 128, 256, 512))),
        "dtype": "fp32",
    }
    return document, validate(Workload, document, "workload")


def _catalog_workload(draws: np.random.Generator, batch: int) -> tuple[Document, Workload]:
    from ...sim.spec import load_model

    model, length = pick(draws, MODELS)
    document = {"model": model, "global_batch": batch, "sequence_length": length, "dtype": "fp16"}
    return document, validate(Workload, {**document, "model": load_model(model)}, "workload")


def _kinds(draws: np.random.Generator, family: Family, workload: Workload, count: int) -> list[Document]:
    """Two to four kinds of device, none so small that all together could not hold the batch."""
    number = int(draws.integers(2, 5))
    if family.catalog:
        chosen = draws.choice(len(GPUS), size=number, replace=False)
        return [{"device": GPUS[int(each)], "overlaps": family.overlaps} for each in chosen]
    kinds = [_kind(draws, family, memory) for memory in _memories(draws, family, workload, number, count)]
    if family.profiled:
        kinds = [{**kind, "profile": _profile(draws, workload)} for kind in kinds]
    return kinds


def _memories(draws: np.random.Generator, family: Family, workload: Workload, number: int, count: int) -> list[float]:
    """Bytes of each kind of device; the first kind has enough that all together do."""
    sample, states = workload.activation_bytes_per_sample, workload.state_bytes
    if family.part is not None:
        parts = [span(draws, family.part) for _ in range(number)]
        parts[0] = max(parts[0], 1.5 * number)
        return [part * (states + workload.global_batch * sample) / count for part in parts]
    rooms = [span(draws, family.room) if family.room else 100.0 for _ in range(number)]
    rooms[0] = max(rooms[0], 1.0) if family.room is None else max(rooms[0], 2.0 * number)
    return [(states + (room * workload.global_batch / count + 1) * sample) * 1.05 for room in rooms]


def _kind(draws: np.random.Generator, family: Family, memory_bytes: float) -> Document:
    peak = span(draws, (3, 100))
    return {
        "peak_tflops": {"fp32": peak},
        "memory_bandwidth_gb_per_s": 1000 * (peak / 30) ** 0.7 * span(draws, (0.5, 2)),
        "memory_gib": memory_bytes / 2**30,
        "launch_overhead_us": span(draws, family.overhead_us),
        "overlaps": family.overlaps,
    }


def _profile(draws: np.random.Generator, workload: Workload) -> Document:
    """Times that grow as fixed + each * n (1 + bend n): larger batches pay off more, or less."""
    each, bend = span(draws, (1e-4, 3e-3)), float(draws.uniform(-0.002, 0.01))
    fixed = each * span(draws, (0.3, 10))
    seconds = {size: fixed + each * size * (1 + bend * size) for size in PROFILE_SIZES}
    points = [{"micro_batch": size, "forward_s": s, "backward_s": 2 * s} for size, s in seconds.items()]
    return {"workload": workload.key, "points": points, "optimizer_s": fixed}


def _cluster(draws: np.random.Generator, family: Family, kinds: Sequence[Document], count: int) -> Document:
    """Machines of one kind of device each, one to four devices on each, every kind at least once."""
    network: Any = {"name": "net", "latency_us": span(draws, (2, 50))}
    network |= {"bandwidth_gb_per_s": span(draws, family.link_gb_per_s)}
    nodes: list[Document] = []
    left = count
    while left > 0:
        kind = kinds[len(nodes) % len(kinds)]
        size = min(int(draws.integers(1, 5)), max(1, left - max(len(kinds) - len(nodes) - 1, 0)), left)
        devices = [{**kind, "name": f"{len(nodes)}-{place}"} for place in range(size)]
        inner = "pcie-4" if family.catalog else {"name": "in", "latency_us": 5.0, "bandwidth_gb_per_s": 25.0}
        nodes.append({"name": f"node{len(nodes)}", "devices": devices, "link": inner})
        left -= size
    return {"nodes": nodes, "network": pick(draws, ETHERNET) if family.catalog else network}
