"""Operators: times of single kernels by kind and size, measured on a device, and what they say of a model.

A model that never ran on a device is predicted from the list of its kernels: each one's time is interpolated in a grid
of its kind, in the logarithms of sizes and seconds. The grids know nothing of the model. What a pass costs beside its
kernels (the framework's time per call, tensors that are not in the cache where a loop over one kernel finds them) is
fitted to passes of other, small models: ``call_s`` seconds a call, and a factor on the kernels' sum.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from .device import LayerPoint, LayerProfile, Residual
from .roofline import LEAST_S
from .workload import Dtype, Name, NonNegative, Positive, Spec, Whole, Workload

Source = Literal["measured", "interpolated", "extrapolated", "guessed"]
"""Where an operator's time is from; ``guessed``: its kind was not measured, another kind's time stands for it."""

STAND_IN = "add"
"""The kind that stands for those that were not measured: it moves as many elements."""
SAME = 1e-9


class OperatorGrid(Spec):
    """Times of one kind of operator over a grid of sizes."""

    kind: Name
    axes: Annotated[list[Annotated[list[Positive], Field(min_length=2, max_length=64)]], Field(min_length=1)]
    """Sizes along each axis, rising."""
    powers: list[Annotated[int, Field(ge=0, le=3)]]
    """The work grows with these powers of the sizes: beyond the grid, so does the time."""
    seconds: Annotated[list[NonNegative], Field(max_length=100_000)]
    """In row-major order, the last axis fastest; 0: too large to be measured."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.powers) != len(self.axes):
            raise ValueError("powers and axes differ in length; each axis has one power")
        if any(a >= b for axis in self.axes for a, b in itertools.pairwise(axis)):
            raise ValueError("an axis does not rise; sort its sizes")
        if len(self.seconds) != math.prod(map(len, self.axes)):
            raise ValueError("seconds does not have one entry per point of the grid")
        if self.seconds[0] == 0:
            raise ValueError("the smallest point of the grid was not measured; measure it")
        return self

    @cached_property
    def filled(self) -> tuple[float, ...]:
        """The seconds, those that were too large to measure carried on from the points below."""
        shape = tuple(map(len, self.axes))
        found: dict[tuple[int, ...], float] = {}
        for seconds, place in zip(self.seconds, itertools.product(*map(range, shape)), strict=True):
            if seconds > 0:
                found[place] = seconds
                continue
            below = [
                ((*place[:axis], place[axis] - 1, *place[axis + 1 :]), axis)
                for axis in range(len(shape))
                if place[axis]
            ]
            # Each neighbour's rate carries on; they differ, and the truth was seen to lie between them.
            carried = [math.log(found[near] * self._step(near, axis)) for near, axis in below]
            least = max(found[near] for near, _ in below)
            found[place] = max(least, math.exp(sum(carried) / len(carried)))
        return tuple(found.values())

    def scaled(self, factor: float) -> OperatorGrid:
        """The grid of a device on which everything takes so many times as long."""
        seconds = [factor * each for each in self.seconds]
        return OperatorGrid(kind=self.kind, axes=self.axes, powers=self.powers, seconds=seconds)

    def _step(self, near: Sequence[int], axis: int) -> float:
        sizes = self.axes[axis]
        return float((sizes[near[axis] + 1] / sizes[near[axis]]) ** self.powers[axis])

    def at(self, sizes: Sequence[float]) -> tuple[float, Source]:
        """Seconds of an operator of these sizes, and where they are from.

        Below the grid the time of its edge (what is left is overhead), above it the edge's rate.
        """
        scale = 1.0
        source: Source = "measured"
        corners: list[tuple[tuple[int, float], ...]] = []
        for axis, size, power in zip(self.axes, sizes, self.powers, strict=True):
            inside = min(max(size, axis[0]), axis[-1])
            if size != inside:
                source = "extrapolated"
                scale *= (size / inside) ** power if size > inside else 1.0
            corners.append(_corners(axis, inside))
            if len(corners[-1]) > 1 and source == "measured":
                source = "interpolated"
        logarithm, told = self._between(corners)
        return scale * math.exp(logarithm), source if told else "extrapolated"

    def _between(self, corners: Sequence[tuple[tuple[int, float], ...]]) -> tuple[float, bool]:
        """The logarithm of the time between the corners of a cell, and whether all of them were measured."""
        total, told = 0.0, True
        for chosen in itertools.product(*corners):
            flat = 0
            for (index, _), axis in zip(chosen, self.axes, strict=True):
                flat = flat * len(axis) + index
            total += math.prod(weight for _, weight in chosen) * math.log(self.filled[flat])
            told = told and self.seconds[flat] > 0
        return total, told


def _corners(axis: Sequence[float], size: float) -> tuple[tuple[int, float], ...]:
    """The points of an axis on both sides of a size with their weights; one where the size is a point."""
    index = min(max(bisect.bisect_left(axis, size), 1), len(axis) - 1)
    part = math.log(size / axis[index - 1]) / math.log(axis[index] / axis[index - 1])
    if part < SAME:
        return ((index - 1, 1.0),)
    if part > 1 - SAME:
        return ((index, 1.0),)
    return ((index - 1, 1 - part), (index, part))


class Surplus(Spec):
    """What a pass takes beside its kernels: ``call_s`` seconds a call, and ``factor`` on the sum of their times."""

    call_s: NonNegative = 0.0
    factor: Positive = 1.0

    def scaled(self, factor: float) -> Surplus:
        """The surplus of a device on which everything takes so many times as long: its kernels do, too."""
        return Surplus(call_s=factor * self.call_s, factor=self.factor)


class OperatorTable(Spec):
    """All that was measured of operators on one device, in one dtype."""

    dtype: Dtype
    grids: Annotated[list[OperatorGrid], Field(min_length=1, max_length=1000)]
    forward: Surplus = Field(default_factory=Surplus)
    backward: Surplus = Field(default_factory=Surplus)
    residuals: list[Residual] = Field(default_factory=list)
    """measured / fitted - 1 of the passes that the surplus was fitted to, each left out of the fit that judges it."""
    passes_s: list[Positive] = Field(default_factory=list)
    """Seconds of those passes, forward and backward: what tells later how fast the device is then."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        kinds = [grid.kind for grid in self.grids]
        if len(set(kinds)) != len(kinds):
            raise ValueError("two grids are of the same kind; keep one")
        if STAND_IN not in kinds:
            raise ValueError(f"there is no grid of kind {STAND_IN}, which stands for kinds that were not measured")
        return self

    @cached_property
    def by_kind(self) -> dict[str, OperatorGrid]:
        """The grids by their kinds."""
        return {grid.kind: grid for grid in self.grids}

    def scaled(self, factor: float) -> OperatorTable:
        """The table of a device on which everything takes so many times as long."""
        return OperatorTable(  # anew: a copy would keep what was derived from the seconds before
            dtype=self.dtype,
            grids=[grid.scaled(factor) for grid in self.grids],
            forward=self.forward.scaled(factor),
            backward=self.backward.scaled(factor),
            residuals=self.residuals,
            passes_s=[factor * seconds for seconds in self.passes_s],
        )


class Call(NamedTuple):
    """One kernel of a pass, or several that are alike."""

    kind: str
    sizes: tuple[float, ...]
    elements: float
    """The elements of its largest tensor: what it is priced by where its kind was not measured."""
    flops: float = 0.0
    times: int = 1


@dataclass(frozen=True, slots=True)
class LayerCalls:
    """The kernels of one layer."""

    name: str
    forward: tuple[Call, ...]
    backward: tuple[Call, ...]
    tensors: int
    """Trainable parameter tensors, and their elements."""
    trainable: int


class Estimate(NamedTuple):
    """Seconds of some kernels, in all and by where they are from."""

    seconds: float
    calls: int
    by_source: Mapping[Source, float]

    @property
    def guessed_share(self) -> float:
        """Of the seconds, those of kinds that were not measured, or that lie beyond their grid."""
        unsure = self.by_source.get("guessed", 0.0) + self.by_source.get("extrapolated", 0.0)
        return unsure / self.seconds if self.seconds > 0 else 0.0


def call_s(table: OperatorTable, call: Call) -> tuple[float, Source]:
    """Seconds of one kernel alone, and where they are from."""
    grid = table.by_kind.get(call.kind)
    if grid is not None and len(grid.axes) == len(call.sizes):
        return grid.at(call.sizes)
    return table.by_kind[STAND_IN].at([max(call.elements, 1.0)])[0], "guessed"


def estimate(table: OperatorTable, calls: Iterable[Call]) -> Estimate:
    """Seconds of some kernels, one after another."""
    by_source: dict[Source, float] = {}
    count = 0
    for call in calls:
        seconds, source = call_s(table, call)
        by_source[source] = by_source.get(source, 0.0) + call.times * seconds
        count += call.times
    return Estimate(sum(by_source.values()), count, by_source)


def pass_s(found: Estimate, surplus: Surplus) -> float:
    """Seconds of a pass whose kernels were estimated."""
    return max(surplus.factor * found.seconds + surplus.call_s * found.calls, LEAST_S)


def optimizer_s(table: OperatorTable, optimizer: str, tensors: float, parameters: float) -> float:
    """Seconds of one optimizer step over so many tensors with so many elements in all."""
    if not parameters:
        return 0.0
    kind = f"optimizer {optimizer}"
    return call_s(table, Call(kind, (max(tensors, 1.0), parameters), 4 * parameters))[0]


def calibrated_profile(
    table: OperatorTable, workload: Workload, captured: Mapping[int, Sequence[LayerCalls]]
) -> LayerProfile:
    """Times of every layer from the operators' times: what a profile by layers would hold, had the model run.

    Args:
        table: of the device.
        workload: whose kernels were captured.
        captured: per micro-batch size, the kernels of each layer.
    """
    totals: dict[Source, float] = {"measured": 0.0, "interpolated": 0.0, "extrapolated": 0.0, "guessed": 0.0}
    points = []
    whole_s = _whole_optimizer_s(table, workload, next(iter(captured.values())))
    for size, layers in sorted(captured.items()):
        passes = [(estimate(table, each.forward), estimate(table, each.backward)) for each in layers]
        for found in itertools.chain.from_iterable(passes):
            for source, seconds in found.by_source.items():
                totals[source] += seconds
        points.append(
            LayerPoint(
                micro_batch=size,
                forward_s=[pass_s(forward, table.forward) for forward, _ in passes],
                backward_s=[pass_s(backward, table.backward) for _, backward in passes],
                optimizer_s=whole_s,
            )
        )
    spent = sum(totals.values())
    return LayerProfile(
        model=workload.model.name,
        sequence_length=workload.sequence_length,
        dtype=workload.dtype,
        points=points,
        tensor_collectives=False,
        fidelity="calibrated",
        guessed_share=(totals["guessed"] + totals["extrapolated"]) / spent if spent else 0.0,
        launch_residuals=table.residuals or [0.0],
        source="operators of other models, measured on this device; the model's own captured, never run",
    )


def _whole_optimizer_s(table: OperatorTable, workload: Workload, layers: Sequence[LayerCalls]) -> list[float]:
    """Each layer's part of the update of all layers, by its parameters."""
    parameters: list[Whole] = [layer.trainable for layer in layers]
    whole = optimizer_s(table, workload.optimizer, sum(layer.tensors for layer in layers), sum(parameters))
    return [whole * each / max(sum(parameters), 1) for each in parameters]
