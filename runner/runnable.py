"""Runnable: the lanes that a scenario's devices are, and what they cannot run, refused before anything is written."""

from __future__ import annotations

from ..results.errors import InputError
from ..sim.spec import Scenario
from .devices import NamedLane, available_cpus, passes_on
from .launch import Task


def lanes_of(scenario: Scenario) -> list[NamedLane]:
    """The lanes that the scenario's devices are.

    Raises:
        InputError: a device is none, or its cores are not this process's to use.
    """
    lanes = []
    for device in scenario.cluster.devices:
        if device.lane is None:
            raise InputError(f"cluster device {device.name}", "is no lane of this host", 'use [cluster] lanes = "auto"')
        missing = sorted(set(device.lane.cpus) - set(available_cpus())) if not device.lane.machine else []
        if missing:
            raise InputError(f"cluster device {device.name}", f"core {missing[0]} is not available", "calibrate again")
        lanes.append(NamedLane.model_validate({**device.lane.model_dump(), "name": device.name}))
    return lanes


def refuse_lanes(scenario: Scenario, told: Task) -> None:
    """Refuse stages on a lane that is slower by doing its work again, and on lanes that cannot hand on what they have.

    Raises:
        InputError: there is one among those that take part.
    """
    refuse_mixed(scenario, told)
    for rank in told["ranks"] if "program" in told else []:
        device = scenario.cluster.devices[rank]
        if device.lane is not None and device.lane.repeat > 1:
            problem = (
                f"does its work {device.lane.repeat} times, which torch's pipelines and optimizers have no turn for"
            )
            raise InputError(f"cluster device {device.name}", problem, "use splits of the batch on it")


def refuse_mixed(scenario: Scenario, told: Task) -> None:
    """Refuse pipelines and sharded gradients where GPUs and processors are lanes of one group.

    Raises:
        InputError: a GPU would hand on activations, or gather and scatter, over gloo.
    """
    lanes = [device.lane for device in scenario.cluster.devices]
    kinds = [lane.torch_device if lane is not None else "cpu" for lane in lanes]
    program = told.get("program")
    if program is None or passes_on(kinds) or not any(kinds[rank].startswith("cuda") for rank in told["ranks"]):
        return
    if any(len(pipeline["stages"]) > 1 for pipeline in program["pipelines"]):
        problem = "are cut, over GPUs and processors together: gloo, which they share, sends no tensor of a GPU"
        raise InputError("pipelines", problem, "use lanes of one kind, or whole models")
    if program["zero"] > 1:
        problem = (
            f"is {program['zero']} over GPUs and processors together: gloo, which they share, scatters none of a GPU"
        )
        raise InputError("zero", problem, "use lanes of one kind, or zero 0 or 1")
