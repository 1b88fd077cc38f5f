"""Fidelities: the same scenario as a data sheet, as operators of other models, and as the measured model describe it.

``datasheet`` and ``calibrated`` never see the model's profile: what they predict does not change when it is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results.errors import InputError, WorkerFailedError
from ..sim.device import Device
from ..sim.engine import simulate
from ..sim.operators import LayerCalls, OperatorTable, calibrated_profile
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Fixed
from ..sim.workload import Workload
from .datasheet import datasheet_cluster, lanes_gpus
from .devices import NamedLane, fingerprint
from .operators import at_present_speed, read_tables, tables_path


def others(
    scenario: Scenario, plans: Iterable[Plan], runs: Path, *, force: bool = False, gauge: bool = False
) -> tuple[dict[str, Scenario], list[str]]:
    """The scenario at the fidelities below the profiled one, as far as this host allows, and what it does not allow.

    Args:
        scenario: its cluster is of lanes.
        plans: those that will be predicted: the model's kernels are captured at the sizes of their micro-batches.
        runs: the folder in which tables of operators lie.
        force: use tables of another machine.
        gauge: scale the tables of operators to the lanes' present speed, by models that are not the scenario's.
    """
    found: dict[str, Scenario] = {}
    notes = []
    try:
        found["datasheet"] = at_datasheet(scenario)
    except InputError as error:
        notes.append(f"no datasheet prediction: {error}")
    try:
        tables = tables_of(scenario, runs, force=force)
        captured = captured_calls(scenario.workload, sizes_of(plans))  # before lanes run for what may be refused
        if gauge:
            tables, drifted = at_present_speed(_lanes(scenario), tables)
            notes += drifted
        found["calibrated"] = at_calibrated(scenario, tables, captured)
    except (InputError, WorkerFailedError) as error:
        notes.append(f"no calibrated prediction: {error}")
    return found, notes


def at_datasheet(scenario: Scenario) -> Scenario:
    """The scenario with nothing measured in it but the memory's size.

    Raises:
        InputError: a GPU is not in the catalog.
    """
    gpus = lanes_gpus(_lanes(scenario), fingerprint()["gpus"])
    return scenario.model_copy(update={"cluster": datasheet_cluster(scenario.cluster, gpus)})


def at_calibrated(
    scenario: Scenario, tables: Mapping[str, OperatorTable], captured: Mapping[int, Sequence[LayerCalls]]
) -> Scenario:
    """The scenario whose devices know the times of operators, and not those of the model.

    Args:
        scenario: its cluster's collectives stay, as they were timed apart from the model.
        tables: of operators, per device.
        captured: per micro-batch size, the model's kernels (:func:`captured_calls`); between, times are interpolated.

    Raises:
        InputError: a device has no table, or one of another dtype.
    """

    def at(device: Device) -> Device:
        profile = calibrated_profile(_table(tables, device, scenario.workload), scenario.workload, captured)
        return device.model_copy(update={"profile": None, "layer_profile": profile})

    nodes = [
        node.model_copy(update={"devices": [at(device) for device in node.devices]}) for node in scenario.cluster.nodes
    ]
    apart = [table.apart() for table in scenario.cluster.collectives]
    cluster = scenario.cluster.model_copy(update={"nodes": nodes, "collectives": apart})
    return scenario.model_copy(update={"cluster": cluster})


def captured_calls(workload: Workload, sizes: Sequence[int]) -> dict[int, list[LayerCalls]]:
    """The kernels of each of a workload's layers at some micro-batch sizes.

    Raises:
        InputError: the model cannot be captured, or not in the layers of its description.
    """
    from .capture import capture

    captured = capture(workload, sizes)
    for layers in captured.values():
        if [layer.name for layer in layers] != [layer.name for layer in workload.layers]:
            raise InputError("workload.model", "has other layers than its configuration gives", "describe it again")
    return captured


def sizes_of(plans: Iterable[Plan]) -> list[int]:
    """The sizes of the plans' micro-batches, with those of halves and doubles so that a line can be drawn."""
    used = {size for plan in plans for pipeline in plan.pipelines for size in pipeline.micro_batches if size}
    return sorted(used | {1, 2, 2 * max(used, default=1)})


def predict_at(scenarios: Mapping[str, Scenario], plan: Fixed, seed: int) -> dict[str, dict[str, Any]]:
    """What each fidelity says of a plan: median step time and its interval, in seconds."""
    found = {}
    for name, scenario in scenarios.items():
        summary = simulate(scenario, plan, seed=seed).summary
        found[name] = {
            "p50_s": summary.step_time_s.p50,
            "interval_s": list(summary.median_interval_s),
            "guessed_share": summary.guessed_share,
        }
    return found


def tables_of(scenario: Scenario, runs: Path, *, force: bool = False) -> dict[str, OperatorTable]:
    """The tables of a scenario's lanes.

    Raises:
        InputError: they were not measured, or on another machine.
    """
    path = tables_path(runs, _lanes(scenario), scenario.workload.dtype)
    if not path.is_file():
        raise InputError("operators", "were not timed on these lanes", "run `steelyard calibrate --operators`")
    return read_tables(path, force=force)


def _lanes(scenario: Scenario) -> list[NamedLane]:
    return [
        NamedLane.model_validate({**device.lane.model_dump(), "name": device.name})
        for device in scenario.cluster.devices
        if device.lane is not None
    ]


def _table(tables: Mapping[str, OperatorTable], device: Device, workload: Workload) -> OperatorTable:
    table = tables.get(device.name)
    if table is None:
        raise InputError(f"operators of {device.name}", "are missing", "run `steelyard calibrate --operators --again`")
    if table.dtype != workload.dtype:
        raise InputError(f"operators of {device.name}", f"are {table.dtype}, not {workload.dtype}", "time them anew")
    return table
