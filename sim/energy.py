"""Energy and money: power by activity, joules per step, and what a million samples cost in money and carbon."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..results.errors import InputError
from ..results.record import DeviceLedger
from .device import Device
from .spec import Scenario

HOUR_S = 3600.0
KWH_J = 3.6e6
MILLION = 1e6
NEEDS = {"cost": "price_usd_per_hour", "energy": "idle_w and max_w"}
"""What the devices in use must say for an objective."""


def known(metric: str, value: float | None) -> float:
    """The value of an objective that devices may leave open.

    Raises:
        InputError: they did.
    """
    if value is None:
        raise InputError("objective.metric", f"{metric} needs {NEEDS[metric]} of every device in use", "add them")
    return value


def energy_j_per_million_samples(scenario: Scenario, energy_j: float | None) -> float | None:
    """Joules of a million samples, from those of a step; None where these are not known."""
    return None if energy_j is None else energy_j * MILLION / scenario.workload.global_batch


def energy_j_per_step(scenario: Scenario, ledgers: Mapping[str, DeviceLedger], used: Collection[str]) -> float | None:
    """Joules per step of the site: those of the devices in use, times ``energy.power_usage_effectiveness``.

    Args:
        scenario: gives the devices' power and the site.
        ledgers: where each device's mean step went, by name.
        used: names of the devices in use; what is left out is off.

    Returns:
        Joules; None where a device in use names no ``idle_w`` or ``max_w``.
    """
    total = 0.0
    for device in _in_use(scenario, used):
        energy_j = device_energy_j(device, ledgers[device.name])
        if energy_j is None:
            return None
        total += energy_j
    return total * scenario.energy.power_usage_effectiveness


def device_energy_j(device: Device, ledger: DeviceLedger) -> float | None:
    """Joules of a device in a mean step: P_idle all the time, P_max - P_idle on top of it while it computes.

    While only communicating, ``communication_power_share`` of that; while waiting for others, for work or for a
    checkpoint, nothing. What overlaps with compute is no line of the ledger: it counts as compute.
    """
    if device.idle_w is None or device.max_w is None:
        return None
    dynamic_s = ledger.compute_s + ledger.optimizer_s + device.communication_power_share * ledger.communication_s
    return device.idle_w * ledger.total_s() + (device.max_w - device.idle_w) * dynamic_s


def power_w(device: Device, ledger: DeviceLedger) -> float | None:
    """Average watts of a device over the ledger's mean step (idle power where it takes no time); None: not known."""
    energy_j, total_s = device_energy_j(device, ledger), ledger.total_s()
    if energy_j is None:
        return None
    return energy_j / total_s if total_s > 0 else device.idle_w


def cost_usd_per_million_samples(scenario: Scenario, throughput: float, used: Collection[str]) -> float | None:
    """USD per million samples at so many samples per second, for the devices in use; None where one has no price.

    What is left out need not be rented.
    """
    prices = [device.price_usd_per_hour for device in _in_use(scenario, used)]
    if any(price is None for price in prices):
        return None
    return sum(price for price in prices if price is not None) / HOUR_S / throughput * MILLION


def carbon_kg_per_million_samples(scenario: Scenario, energy_j: float | None) -> float | None:
    """Kilograms of carbon dioxide per million samples, from the joules of a step of the site.

    None without the joules or ``energy.carbon_kg_per_kwh``.
    """
    factor = scenario.energy.carbon_kg_per_kwh
    if factor is None or energy_j is None:
        return None
    return energy_j / scenario.workload.global_batch * MILLION / KWH_J * factor


def _in_use(scenario: Scenario, used: Collection[str]) -> list[Device]:
    """The devices in use, in the cluster's order: a sum must not depend on that of the names."""
    names = set(used)
    return [device for device in scenario.cluster.devices if device.name in names]
