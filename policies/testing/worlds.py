"""The same world otherwise told: under other names, slower, without noise; and as the text of a scenario file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...sim.noise import stream
from ...sim.plan import Plan
from ...sim.spec import Scenario, scenario_from
from ..toml import to_toml

Document = dict[str, Any]


def scenario_toml(scenario: Scenario) -> str:
    """A scenario as the text of a scenario file, with only what differs from the defaults."""
    return to_toml(scenario.model_dump(mode="json", exclude_defaults=True, exclude_none=True))


def renaming(scenario: Scenario, order: int) -> dict[str, str]:
    """Per device, the name that :func:`reordered` gives it."""
    names = [device.name for device in scenario.cluster.devices]
    places = stream(order, "names").permutation(len(names)).tolist()
    return {name: f"other{place}" for name, place in zip(names, places, strict=True)}


def reordered(scenario: Scenario, order: int) -> Scenario:
    """The same world, its nodes, switches and devices under other names and in another order.

    Devices that share a network adapter still do: adapters are moved as a whole.
    """
    draws, renamed = stream(order, "places"), renaming(scenario, order)
    document = scenario.model_dump(mode="json")
    cluster = document["cluster"]
    cluster["nodes"] = _shuffled(draws, cluster["nodes"])
    cluster["switches"] = _shuffled(draws, cluster["switches"])
    switches = {each["name"]: f"way{place}" for place, each in enumerate(cluster["switches"])}
    for place, node in enumerate(cluster["nodes"]):
        node["name"], node["switch"] = f"place{place}", switches.get(node["switch"])
        node["devices"] = _replugged(draws, node["devices"], node["nics"])
        for device in node["devices"]:
            device["name"] = renamed[device["name"]]
    for switch in cluster["switches"]:
        switch["name"], switch["parent"] = switches[switch["name"]], switches.get(switch["parent"])
    for table in cluster["collectives"]:
        table["devices"] = sorted(renamed[name] for name in table["devices"])
    for disturbance in document["disturbances"]:
        disturbance["device"] = renamed[disturbance["device"]]
    return scenario_from(document)


def _shuffled(draws: np.random.Generator, items: list[Any]) -> list[Any]:
    return [items[place] for place in draws.permutation(len(items)).tolist()]


def _replugged(draws: np.random.Generator, devices: list[Document], nics: int) -> list[Document]:
    """The devices of a node in another order: those of an adapter together, adapters of equally many exchanged."""
    adapters: dict[int, list[Document]] = {}
    for place, device in enumerate(devices):
        adapters.setdefault(place * nics // len(devices), []).append(device)
    groups = [_shuffled(draws, each) for each in adapters.values()]
    sizes = sorted({len(each) for each in groups})
    by_size = {size: iter(_shuffled(draws, [each for each in groups if len(each) == size])) for size in sizes}
    return [device for group in groups for device in next(by_size[len(group)])]


def renamed_plan(plan: Plan, names: Mapping[str, str]) -> Plan:
    """The same plan for devices of other names."""
    document: Any = plan.document()
    for replica in (
        replica for pipeline in document["pipelines"] for stage in pipeline["stages"] for replica in stage["replicas"]
    ):
        replica["devices"] = [names[name] for name in replica["devices"]]
    if document["state_shares"] is not None:
        document["state_shares"] = {names[name]: share for name, share in document["state_shares"].items()}
    return Plan.parse(document)


def slower(scenario: Scenario, factor: int = 4) -> Scenario:
    """The same world with all times multiplied by a factor (a power of two keeps floating point exact)."""
    document = scenario.model_dump(mode="json")
    cluster = document["cluster"]
    for link in _links(cluster):
        link["latency_us"] *= factor
        link["bandwidth_gb_per_s"] /= factor
        if link["reverse_bandwidth_gb_per_s"] is not None:
            link["reverse_bandwidth_gb_per_s"] /= factor
    for point in (point for table in cluster["collectives"] for point in table["points"]):
        point["seconds"] *= factor
    for node in cluster["nodes"]:
        if node["loader_samples_per_s"] is not None:
            node["loader_samples_per_s"] /= factor
        for device in node["devices"]:
            _slow_down(device, factor)
    objective = document["objective"]
    for key, scale in (("least_throughput_samples_per_s", 1 / factor), ("most_cost_usd_per_million_samples", factor)):
        if objective[key] is not None:
            objective[key] *= scale
    return scenario_from(document)


def _links(cluster: Document) -> Iterator[Document]:
    links = [cluster["network"], *(each["uplink"] for each in cluster["switches"])]
    links += [node[key] for node in cluster["nodes"] for key in ("link", "network")]
    return (link for link in links if link is not None)


def _slow_down(device: Document, factor: int) -> None:
    """Divide what a device's rates are, multiply what its times are; in place."""
    device["peak_tflops"] = {dtype: peak / factor for dtype, peak in device["peak_tflops"].items()}
    device["memory_bandwidth_gb_per_s"] /= factor
    device["launch_overhead_us"] *= factor
    device["dispatch_us"] *= factor
    if (profile := device["profile"]) is not None:
        profile["optimizer_s"] *= factor
        for point in profile["points"]:
            point.update({key: point[key] * factor for key in ("forward_s", "backward_s")})
    if (layers := device["layer_profile"]) is not None:
        for point in layers["points"]:
            for key in ("forward_s", "backward_s", "optimizer_s"):
                point[key] = [each * factor for each in point[key]]


def quiet(scenario: Scenario) -> Scenario:
    """The same world without noise."""
    document = scenario.model_dump(mode="json", exclude={"variation"})
    cluster = document["cluster"]
    profiles = [device["profile"] for node in cluster["nodes"] for device in node["devices"] if device["profile"]]
    for noisy in [*profiles, *cluster["collectives"]]:
        noisy["step_residuals"] = noisy["launch_residuals"] = [0.0]
    return scenario_from(document)
