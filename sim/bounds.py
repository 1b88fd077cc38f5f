"""Lower bounds on the step time: what no plan can beat."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from . import cost, footprint
from .device import Device, EfficiencyStep, Saturation
from .noise import Floats
from .plan import Plan
from .relaxation import Relaxation
from .roofline import Identity, classes, optimizer_s, powers
from .spec import Scenario
from .view import View
from .workload import Workload, at


def bound_s(scenario: Scenario, plan: Plan) -> float:
    """The bound that a plan is measured by: that of all plain splits if it is one, else of all plans."""
    key = Identity(scenario)
    return _lower_bound_s(key) if plan.is_plain_split(scenario.workload) else _work_bound_s(key)


@lru_cache(maxsize=64)
def _lower_bound_s(key: Identity) -> float:
    scenario = key.value
    assert isinstance(scenario, Scenario)
    return lower_bound_s(View.of(scenario))


def lower_bound_s(view: View) -> float:
    """The least T such that the devices can take the whole batch within T each, with free communication (seconds).

    Over all integer splits within the memory caps, each device's samples cut as :func:`~.plan.micro_batches` cuts them;
    exact for the split without its all-reduce, and so a bound with it. Noise is left out: the bound is on the noiseless
    step. Infinite where the batch does not fit.
    """
    batch = view.global_batch
    if sum(device.capacity for device in view.devices) < batch:
        return float("inf")
    high = max(device.step_s(min(batch, device.capacity)) for device in view.devices)
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(device.most_within(middle) for device in view.devices) >= batch:
            high = middle
        else:
            low = middle
    return low


def work_bound_s(scenario: Scenario) -> float:
    """The bound for every plan: the largest of what work, one sample's way, and links ask for at least (seconds).

    Solved once per scenario. See :func:`relaxation_of`, :func:`critical_path_s` and :func:`crossing_s`.
    """
    return _work_bound_s(Identity(scenario))


@lru_cache(maxsize=64)
def _work_bound_s(key: Identity) -> float:
    scenario = key.value
    assert isinstance(scenario, Scenario)
    return max(relaxation_of(scenario).bound_s(), critical_path_s(scenario), crossing_s(scenario), 0.0)


def relaxation_of(scenario: Scenario) -> Relaxation:
    """Work over speed as a linear programme: each layer of each sample is done somewhere, at best at the best rate.

    A tensor-parallel group is taken to divide a layer's time by its degree at best; where times were measured, to do
    what was measured. Recomputation only adds.
    """
    workload, examples = scenario.workload, _examples(scenario)
    numbers, _ = classes(Identity(workload.model))
    # Equal layers take equal times by the roofline; a profile has times of its own for each.
    apart = any(device.layer_profile is not None for device in examples)
    same = list(range(len(numbers))) if apart else list(numbers)
    of = [same.index(number) for number in range(max(same) + 1)]
    times = np.array([_least_s(scenario, device, of) for device in examples])
    memory = np.array([device.memory_bytes for device in examples])
    fits = memory[:, None] >= np.array([_weight_bytes(scenario, layer) for layer in of])
    return Relaxation(
        batch=workload.global_batch,
        pass_s=np.where(fits | ~fits.any(axis=0), times, np.inf),
        update_s=np.array([[_update_s(device, workload, layer) for layer in of] for device in examples]),
        state_bytes=np.array([_state_bytes(workload, layer) for layer in of]),
        layers=np.bincount(same).astype(float),
        devices=np.bincount(list(scenario.cluster.kinds.values())).astype(float),
        memory_bytes=memory,
    )


def critical_path_s(scenario: Scenario) -> float:
    """One sample's longest way through the layers and back, each on the device, or group, that is fastest with it.

    Whoever holds the first layer of a way has its backward pass last, and all others of the way lie between. Branches
    of a graph may run side by side: only one of them is on a way.
    """
    workload, examples = scenario.workload, _examples(scenario)
    numbers, _ = classes(Identity(workload.model))
    known: dict[int, float] = {}
    ways: list[float] = []
    for layer, (number, inputs) in enumerate(zip(numbers, footprint.sources(workload), strict=True)):
        same = layer if any(device.layer_profile is not None for device in examples) else number
        if same not in known:
            degrees = _degrees(scenario, layer)
            known[same] = min(_passes_s(d, workload, layer, 1, degree) for d in examples for degree in degrees)
        ways.append(known[same] + max((ways[source] for source in inputs), default=0.0))
    return max(ways) * (1 - 1e-12)  # sums in another order than the engine's


def crossing_s(scenario: Scenario) -> float:
    """What must cross links where no device holds all states: the least of the three ways to divide them.

    Stages hand every sample's activations on, and gradients back; a tensor-parallel group of all layers exchanges them
    in every one; ZeRO scatters the gradients and gathers the weights. Every device is taken to send on all its links
    at their full rate. 0 where collectives were measured, since these say what they say whatever the links.
    """
    workload, cluster = scenario.workload, scenario.cluster
    examples = _examples(scenario)
    if cluster.collectives or max(device.memory_bytes for device in examples) >= workload.state_bytes:
        return 0.0
    rate, element = _rate(scenario), workload.element_bytes
    outputs = [at(layer.output_elements, workload.sequence_length) for layer in workload.layers[:-1]]
    sums = cost.tensor_collectives(workload, 0, len(workload.layers), 1)
    tensor = sum(size * count for each in sums for size, count in each)
    measured = any(device.layer_profile is not None for device in examples)
    every = len(cluster.devices) * rate
    ways = [workload.gradient_bytes / rate, 0.0 if measured else 2 * workload.global_batch * tensor / every]
    if outputs:
        ways.append(2 * workload.global_batch * min(outputs) * element / every)
    if any(layer.tensor is None for layer in workload.layers):
        ways.pop(1)  # not all layers divide: a group of several is then one stage of several
    return min(ways)


def _rate(scenario: Scenario) -> float:
    """Bytes per second that a device sends at most, over all its links at once."""
    cluster = scenario.cluster
    links = [[node.link, node.network or cluster.network] for node in cluster.nodes]
    nics = max(node.nics for node in cluster.nodes)
    return nics * max(sum(max(e.bandwidth, e.reverse_bandwidth) for e in each if e is not None) for each in links)


def _examples(scenario: Scenario) -> list[Device]:
    """One device of each kind."""
    kinds = scenario.cluster.kinds
    examples = {kind: name for name, kind in kinds.items()}
    return [scenario.cluster.by_name[examples[kind]] for kind in range(len(examples))]


def _degrees(scenario: Scenario, layer: int) -> list[int]:
    """Sizes of tensor-parallel groups that divide a layer."""
    split = scenario.workload.layers[layer].tensor
    most = min(split.divisor, len(scenario.cluster.devices)) if split is not None else 1
    return [degree for degree in range(1, most + 1) if split is None or split.divisor % degree == 0]


def _passes_s(device: Device, workload: Workload, layer: int, size: int, degree: int = 1) -> float:
    """Forward and backward of one layer on each device of a group."""
    seconds = []
    for along in {False, degree > 1}:
        times = cost.stage_time(device, workload, layer, layer + 1, size, tensor_degree=degree, sequence_parallel=along)
        seconds.append(times.forward_s + times.backward_s)
    return min(seconds)


def _least_s(scenario: Scenario, device: Device, layers: Sequence[int]) -> Floats:
    """Least seconds per sample of some layers on a device."""
    workload = scenario.workload
    measured = {point.micro_batch for point in device.layer_profile.points} if device.layer_profile else set()
    measured |= {point.micro_batch for point in device.profile.points} if device.profile else set()
    # Times are piecewise affine between these sizes, so time over size is least at one of them.
    sizes = sorted(measured.union(powers(workload.global_batch)))
    found = []
    for layer in layers:
        degrees = _degrees(scenario, layer) if device.layer_profile is not None else [1]
        each = (
            degree * _passes_s(device, workload, layer, size, degree) / size for size in sizes for degree in degrees
        )
        found.append(min(each))
    return np.array(found)


def _update_s(device: Device, workload: Workload, layer: int) -> float:
    """Least seconds of one layer's update: of a roofline, at the best share of the memory's bandwidth."""
    if device.layer_profile is not None or device.profile is not None:
        return 0.0
    table = device.memory_efficiency
    best = table.best if isinstance(table, Saturation) else max(step.share for step in table)
    even = [EfficiencyStep(at_least=0, share=best)]
    ideal = device.model_copy(update={"memory_efficiency": even, "launch_overhead_us": 0.0})
    return optimizer_s(ideal, workload, workload.layers[layer].trainable_parameters)


def _state_bytes(workload: Workload, layer: int) -> float:
    """Weights, gradients and optimizer states of one layer, once."""
    one = workload.model_copy(update={"model": workload.model.model_copy(update={"layers": [workload.layers[layer]]})})
    return float(one.state_bytes)


def _weight_bytes(scenario: Scenario, layer: int) -> float:
    """Weights of a layer that a device has at least while it works on it: its part in the largest group."""
    degree = _degrees(scenario, layer)[-1]
    return scenario.workload.element_bytes * footprint.parameters(scenario.workload, layer, layer + 1, degree)[0]
