"""Lower bounds on the step time: what no plan can beat."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import cost
from .noise import Floats
from .plan import Plan
from .roofline import Identity, classes, powers
from .spec import Scenario
from .view import View


def bound_s(scenario: Scenario, view: View, plan: Plan) -> float:
    """The bound that a plan is measured by: that of all plain splits if it is one, else of all plans."""
    return lower_bound_s(view) if plan.is_plain_split(scenario.workload) else work_bound_s(scenario)


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
    """Work over speed, for every plan: each layer of each sample is done somewhere, at best at the device's best rate.

    With t[k, l] the least seconds per sample of layer l on device k, over all micro-batch sizes, any weights w give
    T >= batch * sum(w) / sum over k of max over l of w[l] / t[k, l]: the dual of the linear programme that deals layers
    to devices. The weights are the layers' mean times. Memory, communication and the optimizer are left out; so is what
    recomputation adds. A tensor-parallel group is taken to divide a layer's time by its degree at best.
    """
    return _work_bound_s(Identity(scenario))


@lru_cache(maxsize=64)
def _work_bound_s(key: Identity) -> float:
    scenario = key.value
    assert isinstance(scenario, Scenario)
    kinds = scenario.cluster.kinds
    counts = np.bincount(list(kinds.values()))
    examples = {kind: name for name, kind in kinds.items()}
    times = np.array([_least_s(scenario, examples[kind]) for kind in range(len(counts))])
    weights = times.mean(axis=0)
    speeds = np.where(times > 0, weights / np.where(times > 0, times, 1.0), 0.0).max(axis=1)
    total = float(counts @ speeds)
    return scenario.workload.global_batch * float(weights.sum()) / total if total > 0 else 0.0


def _least_s(scenario: Scenario, name: str) -> Floats:
    """Least seconds per sample of every layer on a device."""
    device, workload = scenario.cluster.by_name[name], scenario.workload
    measured = {point.micro_batch for point in device.layer_profile.points} if device.layer_profile else set()
    measured |= {point.micro_batch for point in device.profile.points} if device.profile else set()
    # Times are piecewise affine between these sizes, so time over size is least at one of them.
    sizes = sorted(measured.union(powers(workload.global_batch)))
    numbers, _ = classes(Identity(workload.model))
    least: dict[object, float] = {}
    found = []
    for layer, number in enumerate(numbers):
        # Equal layers take equal times by the roofline; a profile has times of its own for each.
        same = number if device.layer_profile is None else layer
        if same not in least:
            each = (cost.stage_time(device, workload, layer, layer + 1, size) for size in sizes)
            least[same] = min((t.forward_s + t.backward_s) / size for t, size in zip(each, sizes, strict=True))
        found.append(least[same])
    return np.array(found)
