"""Layering: times of single layers, taken within the steps that calibrate the whole model on a lane."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ..sim.device import LayerPoint, LayerProfile, Profile
from ..sim.workload import Workload
from .launch import LaunchResult, Task

LEAST_QUIET = 2
"""Undisturbed steps of a size in a launch that are enough to leave the disturbed ones out."""


def build_layer_profile(
    workload: Workload, results: Sequence[LaunchResult], rank: int, profile: Profile
) -> LayerProfile | None:
    """One lane's times by layer: medians over launches of each launch's medians.

    Medians do not add up: the layers' are scaled to the whole model's. The optimizer passes over all weights alike, so
    its time is dealt to the layers by their trainable parameters.

    Args:
        workload: that ran.
        results: of the calibration's launches.
        rank: of the lane.
        profile: of the whole model, from the same steps.

    Returns:
        None where the layers were not told apart: another family, or a lane that repeats its work.
    """
    launches = [_by_size(launch, rank) for launch in results]
    shares = [layer.trainable_parameters / max(1, workload.trainable_parameters) for layer in workload.layers]
    whole = {point.micro_batch: (point.forward_s, point.backward_s) for point in profile.points}
    points = []
    for size in sorted(launches[0]):
        own = [launch[size] for launch in launches if size in launch]
        if any(len(step[0]) != len(workload.layers) for steps in own for step in steps) or not all(own):
            return None
        forward, backward = (
            _scaled(
                [median(median(step[way][layer] for step in steps) for steps in own) for layer in range(len(shares))],
                whole[size][way],
            )
            for way in (0, 1)
        )
        optimizer = [profile.optimizer_s * share for share in shares]
        points.append(LayerPoint(micro_batch=size, forward_s=forward, backward_s=backward, optimizer_s=optimizer))
    if not points:
        return None
    return LayerProfile(
        model=workload.model.name,
        sequence_length=workload.sequence_length,
        dtype=workload.dtype,
        points=points,
        source="measured",
    )


def _scaled(values: Sequence[float], total: float) -> list[float]:
    """Values in the same proportions that sum to a total."""
    return [value * total / sum(values) for value in values]


def quiet_only(answer: Task, values: Sequence[Any]) -> list[Any]:
    """Of what each step of an answer gave, that of undisturbed steps, where they are enough to go by; else all."""
    kept = [value for value, quiet in zip(values, answer["quiet"], strict=True) if quiet]
    return kept if len(kept) >= LEAST_QUIET else list(values)


def _by_size(launch: LaunchResult, rank: int) -> dict[int, list[Any]]:
    """By micro-batch size, the layers' seconds (forward, backward) of the steps that count."""
    found: dict[int, list[Any]] = {}
    for task, answer in launch.of("profile", rank):
        if layers := answer.get("layers"):
            found.setdefault(task["micro_batch"], []).extend(quiet_only(answer, layers))
    return found
