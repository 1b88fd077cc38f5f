"""Lower bounds on the step time: what no plan can beat."""

from __future__ import annotations

from .view import View


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
