"""Footprint: what a run of layers takes on a device: parameters, activations per sample, buffers. No plan in it.

Activations are those of Korthikanti et al. 2022 (section 4), for whatever elements the layers say they keep: a part of
them divided by the tensor-parallel degree, the rest whole, or divided as well with sequence parallelism.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from .workload import Layer, Workload, at

KNOWN = 65_536
"""Sums that are kept: plans are judged by the thousand, and their stages are few."""


class Cut(NamedTuple):
    """A run of layers [first, last), as each device of a tensor-parallel group holds it."""

    first: int
    last: int
    degree: int = 1
    recompute: Literal["none", "selective", "full"] = "none"
    sequence_parallel: bool = False


@lru_cache(maxsize=KNOWN)
def parameters(workload: Workload, first: int, last: int, degree: int) -> tuple[float, float]:
    """Parameters of layers [first, last) on one tensor-parallel rank, and those of them that get a gradient."""
    parts = [(layer, _part(layer, degree)) for layer in workload.layers[first:last]]
    return (
        sum(layer.parameters * part for layer, part in parts),
        sum(layer.trainable_parameters * part for layer, part in parts),
    )


def _part(layer: Layer, degree: int) -> float:
    """Share of a layer's parameters on one rank; exactly 1 where nothing is divided."""
    divided = layer.tensor.divided_parameters if layer.tensor else 0.0
    return divided / degree + (1 - divided) if degree > 1 else 1


@lru_cache(maxsize=1024)
def ties(workload: Workload) -> tuple[tuple[int, int], ...]:
    """Tied layers: number, and the number of the layer that has the parameters."""
    index = {layer.name: number for number, layer in enumerate(workload.layers)}
    return tuple(
        (number, index[layer.tied_with]) for number, layer in enumerate(workload.layers) if layer.tied_with is not None
    )


@lru_cache(maxsize=1024)
def sources(workload: Workload) -> tuple[tuple[int, ...], ...]:
    """Per layer, the numbers of the layers that feed it."""
    index = {layer.name: number for number, layer in enumerate(workload.layers)}
    return tuple(
        tuple(index[name] for name in layer.inputs) if layer.inputs is not None else tuple(range(number)[-1:])
        for number, layer in enumerate(workload.layers)
    )


def branches(workload: Workload) -> bool:
    """Whether the layers are no chain: some could be worked on side by side, or skip others."""
    return any(inputs != (number - 1,) for number, inputs in enumerate(sources(workload)) if number)


@lru_cache(maxsize=KNOWN)
def kept_bytes(workload: Workload, cut: Cut) -> float:
    """Bytes of one sample that a device keeps from its forward to its backward pass.

    Full recomputation keeps only what the layers read, and reads once what several of them do.
    """
    selective = cut.recompute == "selective"
    layers = [] if cut.recompute == "full" else workload.layers[cut.first : cut.last]
    inner = sum(_layer_elements(workload, layer, cut, selective=selective) for layer in layers)
    outputs = sum(
        at(workload.layers[number].output_elements, workload.sequence_length) for number in _outputs(workload, cut)
    )
    return workload.element_bytes * (inner + outputs / (cut.degree if cut.sequence_parallel else 1))


@lru_cache(maxsize=KNOWN)
def recomputed_bytes(workload: Workload, cut: Cut) -> float:
    """Bytes of one sample that recomputation brings back, of the layer that gave back the most."""
    if cut.recompute == "none":
        return 0.0
    selective = cut.recompute == "selective"
    return workload.element_bytes * max(
        _layer_elements(workload, layer, cut)
        - (_layer_elements(workload, layer, cut, selective=True) if selective else 0.0)
        for layer in workload.layers[cut.first : cut.last]
    )


@lru_cache(maxsize=KNOWN)
def gathered_bytes(workload: Workload, cut: Cut) -> float:
    """Bytes of one sample of the largest tensor that sequence parallelism gathers for a layer's products."""
    if cut.degree == 1 or not cut.sequence_parallel:
        return 0.0
    splits = [layer.tensor for layer in workload.layers[cut.first : cut.last] if layer.tensor is not None]
    tensors = [each for split in splits for each in (*split.forward_elements, *split.backward_elements)]
    return workload.element_bytes * max((at(each, workload.sequence_length) for each in tensors), default=0.0)


@lru_cache(maxsize=KNOWN)
def largest_bucket(workload: Workload, first: int, last: int, degree: int, least: float) -> float:
    """Bytes of the largest message, when gradients go from the last layer on as soon as they reach ``least``."""
    largest = size = 0.0
    for number in reversed(range(first, last)):
        size += workload.element_bytes * parameters(workload, number, number + 1, degree)[1]
        largest = max(largest, size)
        size = 0.0 if size >= least else size
    return largest


def _layer_elements(workload: Workload, layer: Layer, cut: Cut, *, selective: bool = False) -> float:
    """Elements of one sample that a layer keeps on one rank; what selective recomputation spares is of the divided."""
    kept = at(layer.activation_elements, workload.sequence_length)
    spared = at(layer.selective_elements, workload.sequence_length) if selective else 0.0
    if cut.degree == 1 or layer.tensor is None:
        return max(kept - spared, 0.0)
    divided = kept * (1.0 if cut.sequence_parallel else layer.tensor.divided_activations)
    return kept - divided + max(divided - spared, 0.0) / cut.degree


def _outputs(workload: Workload, cut: Cut) -> list[int]:
    """Layers whose outputs a device keeps beside what its layers do.

    What a stage after the next may read and no layer here does (what is read here is among the activations of its
    reader), and all that is read here where the activations are not kept.
    """
    feeding = sources(workload)
    read = {source for number in range(cut.first, cut.last) for source in feeding[number]}
    later = {source for number in range(cut.last + 1, len(feeding)) for source in feeding[number]}
    far = {source for source in later - read if cut.first <= source < cut.last}
    return sorted(far | read if cut.recompute == "full" else far)
