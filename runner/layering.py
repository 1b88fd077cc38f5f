"""Layering: times of single layers, taken within the steps that calibrate the whole model on a lane."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ..sim.curve import fit_curve
from ..sim.device import LayerPoint, LayerProfile, Profile
from ..sim.workload import Workload
from .blocks import quiet_only
from .launch import LaunchResult


def build_layer_profile(
    workload: Workload, results: Sequence[LaunchResult], rank: int, profile: Profile
) -> LayerProfile | None:
    """One lane's times by layer: medians over launches of each launch's medians.

    Medians do not add up: the layers' are scaled to the whole model's, as predictions of whole steps read it
    (:func:`~steelyard.sim.curve.fit_curve`), so that stages and whole models differ in no point's luck. The optimizer
    passes over all weights alike, so its time is dealt to the layers by their trainable parameters.

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
    forward_of = fit_curve([(point.micro_batch, point.forward_s) for point in profile.points])
    backward_of = fit_curve([(point.micro_batch, point.backward_s) for point in profile.points])
    points = []
    for size in sorted(launches[0]):
        own = [launch[size] for launch in launches if size in launch]
        if any(len(step[0]) != len(workload.layers) for steps in own for step in steps) or not all(own):
            return None
        forward, backward = (
            _scaled(
                [median(median(step[way][layer] for step in steps) for steps in own) for layer in range(len(shares))],
                whole.at(size),
            )
            for way, whole in enumerate((forward_of, backward_of))
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


def _by_size(launch: LaunchResult, rank: int) -> dict[int, list[Any]]:
    """By micro-batch size, the layers' seconds (forward, backward) of the steps that count."""
    found: dict[int, list[Any]] = {}
    for task, answer in launch.of("profile", rank):
        if layers := answer.get("layers"):
            found.setdefault(task["micro_batch"], []).extend(quiet_only(answer, layers))
    return found
