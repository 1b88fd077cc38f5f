"""Scenarios from a source of choices: one builder for Hypothesis, which shrinks them, and for seeded streams."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from ...sim.checking import validate
from ...sim.device import Cluster
from ...sim.spec import Scenario
from ...sim.workload import Workload

Document = dict[str, Any]
T = TypeVar("T")

BATCHES = (1, 2, 3, 5, 7, 8, 13, 16, 31, 32, 64)
MOST_LAYERS = 5
MOST_DEVICES = 6
PROFILE_SIZES = (1, 2, 4, 8, 16, 64)
RESIDUALS = ([0.0], [-0.05, 0.0, 0.05], [-0.02, -0.01, 0.0, 0.1])
METRICS = ("throughput", "throughput", "throughput", "cost", "energy", "step_time_p90")


class Choices(Protocol):
    """Where the choices come from: the first option, the least number and False are the simplest."""

    def pick(self, options: Sequence[T]) -> T:
        """One of some options."""
        ...

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        ...

    def real(self, low: float, high: float) -> float:
        """A number, both ends included."""
        ...


def make_scenario(choices: Choices) -> Scenario:
    """A small valid scenario; not every one has a plan."""
    workload = make_workload(choices)
    metric = choices.pick(METRICS)
    document = {
        "name": "generated",
        "cluster": make_cluster(choices, workload, priced=metric in ("cost", "energy")),
        "workload": workload,
        "objective": _objective(choices, metric),
        "sampling": {"launches": 2, "steps": 3, "search_launches": 1},
        "seed": choices.whole(0, 3),
    }
    return validate(Scenario, document, "scenario")


def _objective(choices: Choices, metric: str) -> Document:
    """A metric, and sometimes a floor or a budget that only some plans keep, or none."""
    limit = choices.pick((None, None, None, "floor", "budget"))
    if limit == "floor" and metric != "throughput":
        return {"metric": metric, "least_throughput_samples_per_s": choices.pick((1e-3, 10.0, 1e9))}
    if limit == "budget" and metric in ("cost", "energy"):  # prices are known
        return {"metric": metric, "most_cost_usd_per_million_samples": choices.pick((1e6, 1.0, 1e-9))}
    return {"metric": metric}


def spoil(choices: Choices, scenario: Scenario) -> tuple[Document, str]:
    """A scenario as a document in which one link carries nothing, some way; and the path of that figure."""
    document: Document = scenario.model_dump(mode="json")
    cluster = document["cluster"]
    links = {f"cluster.nodes.{number}.link": node["link"] for number, node in enumerate(cluster["nodes"])}
    links |= {f"cluster.nodes.{number}.network": node["network"] for number, node in enumerate(cluster["nodes"])}
    links |= {f"cluster.switches.{number}.uplink": each["uplink"] for number, each in enumerate(cluster["switches"])}
    links["cluster.network"] = cluster["network"]
    where = choices.pick([path for path, link in links.items() if link is not None])
    key = choices.pick(("bandwidth_gb_per_s", "reverse_bandwidth_gb_per_s"))
    links[where][key] = choices.pick((0.0, -1.0))
    return document, f"{where}.{key}"


# ---- the work ----


def make_workload(choices: Choices) -> Workload:
    """A chain or a graph of one to five layers of one or two kinds; batches of one, primes, powers of two."""
    count = choices.whole(1, MOST_LAYERS)
    kinds = [_layer(choices) for _ in range(choices.whole(1, 2))]
    layers = [
        {"name": f"layer{number}", **(kinds[0] if len(kinds) == 1 else choices.pick(kinds))} for number in range(count)
    ]
    if count > 2 and choices.pick((False, False, True)):
        _connect(choices, layers)
    if count > 1 and choices.pick((False, False, False, True)):
        layers[-1] |= {"tied_with": "layer0", "parameters": 0, "trainable_parameters": 0}
    batch = choices.pick(BATCHES)
    document = {
        "model": {"name": "generated", "layers": layers},
        "global_batch": batch,
        "sequence_length": choices.pick((1, 16, 128)),
        "dtype": choices.pick(("fp32", "bf16")),
        "optimizer": choices.pick(("adamw", "sgd", "momentum")),
    }
    if choices.pick((False, True)):
        document["max_micro_batch"] = choices.whole(1, batch)
    return validate(Workload, document, "workload")


def _layer(choices: Choices) -> Document:
    """A layer without its name: some divide over devices, some are frozen, some keep a lot for the backward pass."""
    width = choices.pick((8, 64, 512))
    kept = width * choices.pick((4.0, 64.0))
    layer: Document = {
        "parameters": width * width,
        "trainable_parameters": width * width * choices.pick((1, 1, 1, 0)),
        "forward": [_operator(2.0 * width**2, 2.0 * width)],
        "backward": [_operator(4.0 * width**2, 4.0 * width)],
        "activation_elements": [0.0, kept],
        "output_elements": [0.0, float(width)],
    }
    if choices.pick((False, True)):
        layer |= {"selective_elements": [0.0, kept / 2], "selective_flops": [0.0, float(width)]}
    parts = choices.pick((None, 2, 4, 6))
    if parts is not None:
        sent = [[0.0, float(width)]]
        layer["tensor"] = {"divisor": parts, "forward_elements": sent, "backward_elements": sent}
    return layer


def _operator(flops: float, elements: float) -> Document:
    return {"kind": "matmul", "flops": [0.0, flops], "elements": [0.0, elements]}


def _connect(choices: Choices, layers: list[Document]) -> None:
    """Skips and branches, in place: a layer reads the one before, the one before that, or both."""
    for number in range(2, len(layers)):
        before, earlier = layers[number - 1]["name"], layers[number - 2]["name"]
        inputs = choices.pick((None, [earlier, before], [earlier]))
        if inputs is not None:
            layers[number]["inputs"] = list(inputs)


# ---- what does it ----


def make_cluster(choices: Choices, workload: Workload, *, priced: bool = False, profiled: bool = True) -> Cluster:
    """One to six devices of up to three kinds on one to three nodes; some have switches, and measured collectives.

    Args:
        choices: where the choices come from.
        workload: what the memory of the devices is measured by.
        priced: every device has a price and power figures.
        profiled: some kinds have a profile of the workload.
    """
    kinds = [make_device(choices, workload, priced=priced, profiled=profiled) for _ in range(choices.whole(1, 3))]
    count = choices.whole(1, MOST_DEVICES)
    named = [{**choices.pick(kinds), "name": f"device{number}"} for number in range(count)]
    nodes: list[Document] = [
        {"name": f"node{number}", "devices": group, **_ways(choices)}
        for number, group in enumerate(_grouped(choices, named))
    ]
    cluster: Document = {"nodes": nodes, "backend": choices.pick(("nccl", "gloo"))}
    if len(nodes) > 1:
        cluster["network"] = _link(choices)
        if choices.pick((False, False, True)):
            cluster["switches"] = _switched(choices, nodes)
    if count > 1 and choices.pick((False, False, True)):
        cluster["collectives"] = [_collective(choices, [device["name"] for device in named])]
    return validate(Cluster, cluster, "cluster")


def _grouped(choices: Choices, devices: list[Document]) -> list[list[Document]]:
    """The devices in one to three groups, none empty."""
    cuts = {choices.whole(1, len(devices) - 1) for _ in range(choices.whole(0, 2))} if len(devices) > 1 else set()
    bounds = [0, *sorted(cuts), len(devices)]
    return [devices[first:last] for first, last in itertools.pairwise(bounds)]


def make_device(choices: Choices, workload: Workload, *, priced: bool = False, profiled: bool = True) -> Document:
    """A device: by its datasheet, or measured as a whole or by layers; with memory from too little to plenty."""
    peak = choices.pick((0.01, 0.1, 1.0, 3.0, 100.0))
    device: Document = {
        "name": "device",
        "peak_tflops": {"fp32": peak, "bf16": 2 * peak} if choices.pick((False, True)) else {"fp32": peak},
        "memory_gib": _memory_gib(choices, workload),
        "memory_bandwidth_gb_per_s": choices.pick((1.0, 10.0, 1000.0)),
        "launch_overhead_us": choices.pick((4.0, 0.0, 1000.0)),
        "slowdown": choices.pick((1.0, 1.0, 1.0, 2.5)),
        "overlaps": choices.pick((True, False)),
    }
    if priced or choices.pick((False, True)):
        price, watts = choices.pick((1.0, 0.25, 8.0)), choices.pick((50.0, 400.0))
        device |= {"price_usd_per_hour": price, "idle_w": watts / 5, "max_w": watts}
    measured = choices.pick((None, None, "profile", "layer_profile")) if profiled else None
    if measured == "profile":
        device["profile"] = _profile(choices, workload)
    elif measured == "layer_profile":
        device["layer_profile"] = _layer_profile(choices, workload)
    return device


def _memory_gib(choices: Choices, workload: Workload) -> float:
    """Room for the states and a share of the batch; or for a part of the states, where only a stage may fit."""
    batch = workload.global_batch * workload.activation_bytes_per_sample
    share = choices.pick((1.0, 0.5, 0.25, None, -1.0))
    if share is None:
        share = choices.real(0.0, 2.0)
    if share >= 0:
        needed = workload.state_bytes + share * batch
    else:
        needed = (workload.state_bytes + batch) * choices.pick((0.6, 0.3, 0.01))
    # A little over the exact bytes, since GiB and back may round down; no device is without a byte.
    return max(needed * (1 + 1e-12), 1.0) / 2**30


def _seconds(choices: Choices) -> dict[int, float]:
    """Seconds of a measured pass by micro-batch: a line that may bend up or down."""
    sizes = sorted({choices.pick(PROFILE_SIZES) for _ in range(choices.whole(2, 6))})
    sizes = sizes if len(sizes) > 1 else [sizes[0], sizes[0] + 1]
    fixed, each = choices.pick((0.0, 1e-4, 1e-2)), choices.pick((1e-5, 1e-4, 3e-3))
    bend = choices.pick((0.0, 0.01, -0.003))
    return {size: fixed + each * size * (1 + bend * size) for size in sizes}


def _profile(choices: Choices, workload: Workload) -> Document:
    return {
        "workload": workload.key,
        "points": [
            {"micro_batch": size, "forward_s": value, "backward_s": 2 * value}
            for size, value in _seconds(choices).items()
        ],
        "optimizer_s": choices.pick((1e-6, 1e-3)),
        "step_residuals": choices.pick(RESIDUALS),
        "launch_residuals": choices.pick(RESIDUALS),
    }


def _layer_profile(choices: Choices, workload: Workload) -> Document:
    """Measured at one or two tensor degrees; the work is spread over the layers unevenly."""
    weights = [choices.pick((1.0, 0.0, 3.0)) for _ in workload.layers]
    weights = [each / sum(weights) for each in weights] if any(weights) else [1.0 / len(weights)] * len(weights)
    update = choices.pick((1e-6, 1e-3))
    degrees = choices.pick(((1,), (1, 2)))
    points = [
        {
            "micro_batch": size,
            "tensor_degree": degree,
            "forward_s": [value * weight / degree for weight in weights],
            "backward_s": [2 * value * weight / degree for weight in weights],
            "optimizer_s": [update * weight / degree for weight in weights],
        }
        for size, value in _seconds(choices).items()
        for degree in degrees
    ]
    return {
        "model": workload.model.name,
        "sequence_length": workload.sequence_length,
        "dtype": workload.dtype,
        "points": points,
        "tensor_collectives": choices.pick((True, False)),
    }


# ---- the ways between ----


def _ways(choices: Choices) -> Document:
    """The link inside a node, and sometimes its own way to the network, several adapters, an input pipeline."""
    ways: Document = {"link": _link(choices)}
    loaded = choices.pick((None, None, None, None, 1000.0, 10.0))
    if loaded is not None:
        ways["loader_samples_per_s"] = loaded
    if choices.pick((False, False, True)):
        ways["network"] = _link(choices)
    nics = choices.pick((1, 1, 2, 3))
    return ways if nics == 1 else {**ways, "nics": nics}


def _switched(choices: Choices, nodes: list[Document]) -> list[Document]:
    """One to three switches, the second and third perhaps below the first; nodes are put on them, in place."""
    like = _link(choices) if choices.pick((True, False)) else None
    switches: list[Document] = [
        {"name": f"switch{number}", "uplink": like or _link(choices)} for number in range(choices.whole(1, 3))
    ]
    for switch in switches[1:]:
        if choices.pick((False, False, True)):
            switch["parent"] = "switch0"
    names = [switch["name"] for switch in switches]
    for node in nodes:
        switch_name = choices.pick((*names, None))
        if switch_name is not None:
            node["switch"] = switch_name
    return switches


def _link(choices: Choices) -> Document:
    latency, rate = choices.pick((0.0, 10.0, 1000.0)), choices.pick((1.0, 100.0, 0.01))
    link: Document = {"name": "link", "latency_us": latency, "bandwidth_gb_per_s": rate}
    if choices.pick((False, False, True)):
        link |= {"shared": True}
    return link


def _collective(choices: Choices, names: Sequence[str]) -> Document:
    """A measured all-reduce over all devices, or over some of them."""
    some = [name for name in names if choices.pick((True, False))] if choices.pick((False, True)) else []
    base = choices.pick((1e-5, 1e-3))
    return {
        "backend": "gloo",
        "devices": some if len(some) > 1 else list(names),
        "points": [{"bytes": 10**power, "seconds": base * 3 ** (power - 2)} for power in (2, 4, 6, 8)],
        "step_residuals": choices.pick(RESIDUALS),
    }
