"""Draws: the noise of a run, as factors on its work: from what was measured, and from the scenario's own variation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from . import noise, variation
from .device import CollectiveTable, LayerProfile, Profile
from .network import network_of
from .plan import Plan
from .program import Program
from .running import Factors
from .spec import Scenario


def noisy(scenario: Scenario, plan: Plan) -> bool:
    """Whether anything that takes part was measured with a spread, or the scenario gives it one."""
    given = scenario.variation
    if given.step_cv or given.device_cv or given.network_cv or (given.straggler_share and given.straggler_slowdown > 1):
        return True
    names = {name for pipeline in plan.pipelines for name in pipeline.devices}
    measured: list[Profile | LayerProfile | CollectiveTable | None] = [
        device.profile or device.layer_profile for device in scenario.cluster.devices if device.name in names
    ]
    measured.append(network_of(scenario.cluster).measured("all_reduce", sorted(names)))
    return any(any(each.step_residuals + each.launch_residuals) for each in measured if each is not None)


def draw_noise(scenario: Scenario, program: Program, *, steps: int, launches: int, seed: int) -> list[Factors]:
    """The factors of every launch: from what was measured of devices and collectives, and from the scenario's own.

    Without any, one launch without factors: all would be the same.
    """
    compute: dict[str, list[list[float]]] = {}
    optimizer: dict[str, list[list[float]]] = {}
    for worker in program.workers:
        per_step = len(worker.stages) * len(worker.classes)
        for member in worker.members:
            drawn = _device_factors(scenario, member[0], launches=launches, draws=steps * (per_step + 1), seed=seed)
            if drawn is not None:
                compute[member[0]] = [each[: steps * per_step] for each in drawn]
                optimizer[member[0]] = [each[steps * per_step :] for each in drawn]
    syncs: dict[int, list[list[float]]] = {}
    for number, sync in enumerate(program.syncs):
        names = [program.workers[worker].devices[0] for worker in sync.workers]
        drawn = _sync_factors(scenario, names, number, launches=launches, draws=steps, seed=seed)
        if drawn is not None:
            syncs[number] = drawn
    if not compute and not syncs:
        return [Factors()]
    return [
        Factors(
            compute={name: each[launch] for name, each in compute.items()},
            optimizer={name: each[launch] for name, each in optimizer.items()},
            syncs={name: each[launch] for name, each in syncs.items()},
        )
        for launch in range(launches)
    ]


def _device_factors(scenario: Scenario, name: str, *, launches: int, draws: int, seed: int) -> list[list[float]] | None:
    """Per launch, the factors on a device's pieces of work; None where it has no noise."""
    device, given = scenario.cluster.by_name[name], scenario.variation
    source = device.profile or device.layer_profile
    residuals = tuple(source.step_residuals) if source else ()
    offsets = tuple(source.launch_residuals) if source else ()
    stragglers = given.straggler_share > 0 and given.straggler_slowdown > 1
    if not any(residuals) and not any(offsets) and not given.step_cv and not given.device_cv and not stragglers:
        return None
    measured = _factors(residuals, offsets, launches=launches, draws=draws, seed=seed, name=name)
    if not given.step_cv and not given.device_cv and not stragglers:
        return measured
    own = variation.step_factors(scenario, name, launches, draws, seed)
    own = own * variation.launch_factors(scenario, [name], launches, seed)
    return [[a * b for a, b in zip(row, more, strict=True)] for row, more in zip(measured, own.tolist(), strict=True)]


def _sync_factors(
    scenario: Scenario, names: Sequence[str], number: int, *, launches: int, draws: int, seed: int
) -> list[list[float]] | None:
    """The same of a synchronisation."""
    table = network_of(scenario.cluster).measured("all_reduce", names)
    residuals = tuple(table.step_residuals) if table else ()
    offsets = tuple(table.launch_residuals) if table else ()
    if not any(residuals) and not any(offsets) and not scenario.variation.network_cv:
        return None
    name = "all_reduce" if number == 0 else f"all_reduce {number}"
    measured = _factors(residuals, offsets, launches=launches, draws=draws, seed=seed, name=name)
    if not scenario.variation.network_cv:
        return measured
    own = variation.network_factors(scenario, launches, draws, seed, "sync", number).tolist()
    return [[a * b for a, b in zip(row, more, strict=True)] for row, more in zip(measured, own, strict=True)]


@lru_cache(maxsize=256)
def _factors(
    residuals: tuple[float, ...], offsets: tuple[float, ...], *, launches: int, draws: int, seed: int, name: str
) -> list[list[float]]:
    """Step factors times the launch's own; the same for every policy that meets this device with this seed."""
    factors = noise.step_factors(residuals, launches, draws, seed, name)
    launch = 1.0 + noise.launch_offsets(offsets, launches, seed)
    rows: list[list[float]] = (factors * launch[:, None]).tolist()
    return rows
