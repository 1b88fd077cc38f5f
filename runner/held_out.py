"""Held out: a scenario without the calibrated points of the sizes that plans have, so that none predicts itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..results.errors import InputError
from ..sim import cost
from ..sim.device import Device, LayerProfile
from ..sim.plan import Plan
from ..sim.spec import Scenario

LEAST_POINTS = 3
"""Calibrated sizes that must be left when those of the replayed plans are held out."""


def hold_out(scenario: Scenario, plans: Iterable[Plan]) -> Scenario:
    """The scenario without the calibrated points of any micro-batch size that one of some plans uses.

    Raises:
        InputError: fewer than three points of a device are left.
    """
    plans = list(plans)
    sizes, staged = sizes_in(plans), staged_sizes_in(plans)

    def reduce(device: Any) -> Any:
        if device.profile is None:
            return device
        kept = cost.without_sizes(device.profile, sizes)
        if len(kept.points) < LEAST_POINTS:
            raise InputError(
                f"calibration of {device.name}",
                f"has {len(kept.points)} micro-batch sizes that no replayed plan uses",
                f"at least {LEAST_POINTS} are needed: replay fewer plans, or use a larger global batch",
            )
        return device.model_copy(update={"profile": kept, "layer_profile": layers_without(device, sizes, staged)})

    return scenario.model_copy(update={"cluster": scenario.cluster.changed(reduce)})


def sizes_in(plans: Iterable[Plan]) -> set[int]:
    """The sizes of the micro-batches that some plans use."""
    return {size for plan in plans for pipeline in plan.pipelines for size in pipeline.micro_batches}


def staged_sizes_in(plans: Iterable[Plan]) -> set[int]:
    """The same of pipelines with several stages alone: what a stage takes beyond its layers was measured in one."""
    piped = (pipeline for plan in plans for pipeline in plan.pipelines if len(pipeline.stages) > 1)
    return {size for pipeline in piped for size in pipeline.micro_batches}


def layers_without(device: Device, sizes: set[int], staged: set[int]) -> LayerProfile | None:
    """A device's times by layer without some micro-batch sizes; None where too few are left to tell a size from them.

    The whole model's times, and the roofline's shares of them, then stand for a stage's. What a pass of a stage takes
    more is kept unless plans have ``staged`` its size in a pipeline, too.
    """
    if device.layer_profile is None:
        return None
    kept = [point for point in device.layer_profile.points if point.micro_batch not in sizes]
    found = device.layer_profile.stage_pass
    update = {"points": kept, "stage_pass": found if found and found.micro_batch not in staged else None}
    return device.layer_profile.model_copy(update=update) if len(kept) >= LEAST_POINTS else None
