"""Workload: one model and how it is trained, as data: layers of operators, no torch, no transformers."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..results.record import canonical_json, digest

LEAST = 1e-30
"""No positive figure is smaller: quotients of what files may hold stay within a float."""


def not_tiny(value: float) -> float:
    """Refuse what no unit explains, and what an overflow would come of."""
    if 0 < value < LEAST:
        raise ValueError(f"is {value:g}; must be at least {LEAST:g}")
    return value


Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False), AfterValidator(not_tiny)]
NonNegative = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Polynomial = Annotated[list[NonNegative], Field(min_length=1, max_length=4)]
"""Coefficients [c0, c1, c2, ...]: value for one sample of ``s`` tokens is c0 + c1 s + c2 s^2 + ..."""

DTYPE_BYTES: dict[str, int] = {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8"]
Optimizer = Literal["sgd", "momentum", "adamw"]
MAX_REPEAT = 10_000
OPTIMIZER_STATES: dict[str, int] = {"sgd": 0, "momentum": 1, "adamw": 2}
"""fp32 values that the optimizer keeps per trainable parameter, beside the weights."""


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(facts)
    except (TypeError, ValueError) as error:  # a date, a NaN: a digest of the scenario could not be taken
        raise ValueError(
            f"holds a value that JSON does not have: {error}; use text, numbers, lists and tables"
        ) from error
    return facts


Facts = Annotated[dict[str, Any], AfterValidator(_plain)]
"""A table of plain values that is kept as it is."""


class Spec(BaseModel):
    """Base of every input: unknown keys refused, types strict, values immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed (not validated), and nothing cached that the change may have made wrong."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


def at(polynomial: list[float], tokens: int) -> float:
    """Value of a :data:`Polynomial` for one sample of ``tokens`` tokens."""
    total, power, base = 0.0, 1.0, float(tokens)  # a loop: rooflines ask millions of times
    for coefficient in polynomial:
        total += coefficient * power
        power *= base
    return total


class Operator(Spec):
    """One kind of arithmetic within a layer, for one sample: its FLOPs, the elements it moves, the kernels it takes."""

    kind: Literal["matmul", "attention", "normalization", "elementwise", "embedding", "loss"]
    kernels: Whole = 1
    flops: Polynomial
    """FLOPs per sample (a multiply-add counts 2)."""
    elements: Polynomial
    """Activation elements read and written per sample."""
    weight_elements: Whole = 0
    """Weight elements read once per micro-batch."""
    divided: Share = 1.0
    """Share of the work that tensor parallelism divides; every rank repeats the rest (see sequence parallelism)."""


class TensorSplit(Spec):
    """How a layer divides over the devices of a tensor-parallel group (Shoeybi et al. 2019, Megatron-LM)."""

    divisor: Count
    """The degree must divide it: attention heads, key-value heads, experts."""
    forward_elements: list[Polynomial] = Field(default_factory=list, max_length=64)
    """Per all-reduce of the forward pass, its elements per sample."""
    backward_elements: list[Polynomial] = Field(default_factory=list, max_length=64)
    """Per all-reduce of the backward pass, its elements per sample."""
    divided_activations: Share = 1.0
    """Share of the kept activations that the degree divides; sequence parallelism divides the rest too."""
    divided_parameters: Share = 1.0
    """Share of the parameters that the degree divides (a norm's are held by every rank)."""


class Layer(Spec):
    """A unit that a plan may not cut: its parameters, operators forward and backward, what it keeps and hands on."""

    name: Name
    parameters: Whole
    trainable_parameters: Whole
    forward: list[Operator]
    backward: list[Operator]
    activation_elements: Polynomial
    """Elements kept from forward to backward, per sample."""
    selective_elements: Polynomial = Field(default_factory=lambda: [0.0])
    """Of those, what selective recomputation gives back: attention scores, where they are kept."""
    selective_flops: Polynomial = Field(default_factory=lambda: [0.0])
    """FLOPs that selective recomputation adds to the backward pass, per sample."""
    output_elements: Polynomial
    """Elements handed to the next layer, per sample."""
    inputs: list[Name] | None = None
    """Names of the layers that feed this one; None: the layer before (a chain)."""
    tied_with: Name | None = None
    """Layer whose parameters these are too: counted there."""
    tensor: TensorSplit | None = None
    """How tensor parallelism divides the layer; None: it cannot."""

    def forward_flops(self, tokens: int) -> float:
        """FLOPs of the forward pass for one sample of ``tokens`` tokens."""
        return sum(at(op.flops, tokens) for op in self.forward)

    def backward_flops(self, tokens: int) -> float:
        """FLOPs of the backward pass for one sample of ``tokens`` tokens."""
        return sum(at(op.flops, tokens) for op in self.backward)


class Model(Spec):
    """What a catalog model file holds: a transformers configuration, and the layers that were derived from it."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    name: Name
    summary: str = ""
    source: str = ""
    config: Facts = Field(default_factory=dict)
    layers: Annotated[list[Layer], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="before")
    @classmethod
    def _repeated(cls, data: Any) -> Any:
        """Entries with ``repeat`` become so many layers, ``{}`` in the name the number (from 0)."""
        if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
            return data
        return {**data, "layers": [layer for entry in data["layers"] for layer in _copies(entry)]}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        """Inputs come from layers before, so that the graph has no circle; ties name a layer."""
        names: set[str] = set()
        for layer in self.layers:
            late = next((name for name in layer.inputs or () if name not in names), None)
            if late is not None:
                raise ValueError(f"layer {layer.name!r} has the input {late!r}, which is no layer before it; reorder")
            if layer.name in names:
                raise ValueError(f"two layers are named {layer.name!r}; give each its own name")
            names.add(layer.name)
        stray = next((layer for layer in self.layers if layer.tied_with not in (None, *names)), None)
        if stray is not None:
            raise ValueError(f"layer {stray.name!r} is tied with {stray.tied_with!r}, which is no layer; correct it")
        return self


NOT_WORK: dict[str, Any] = {
    **dict.fromkeys(("tensor", "selective_elements", "selective_flops"), True),
    **{key: {"__all__": {"divided"}} for key in ("forward", "backward")},
}
"""Fields of a layer that say how it can be divided, not what there is to do."""


def _copies(entry: Any) -> list[Any]:
    if not isinstance(entry, dict) or "repeat" not in entry:
        return [entry]
    count, name = entry["repeat"], entry.get("name")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_REPEAT:
        raise ValueError(f"a layer's repeat is not a whole number from 1 to {MAX_REPEAT}; correct it")
    if not isinstance(name, str) or "{}" not in name:
        raise ValueError("a layer with repeat needs a name with {} in it; for example h.{}")
    rest = {key: value for key, value in entry.items() if key != "repeat"}
    return [{**rest, "name": name.replace("{}", str(number))} for number in range(count)]


class Edge(NamedTuple):
    """What one stage hands to another, per sample."""

    source: int
    target: int
    elements: float


class Workload(Spec):
    """One model and how it is trained."""

    model: Model
    global_batch: Annotated[int, Field(ge=1, le=2**24)]
    """Samples per optimizer step, over all devices."""
    sequence_length: Count = 128
    dtype: Dtype = "fp32"
    optimizer: Optimizer = "adamw"
    max_micro_batch: Count | None = None
    """Gradients are accumulated over micro-batches of at most this many samples; None: one micro-batch a device."""

    @property
    def layers(self) -> list[Layer]:
        """The model's layers, in order."""
        return self.model.layers

    @property
    def element_bytes(self) -> int:
        """Bytes of one activation or gradient element."""
        return DTYPE_BYTES[self.dtype]

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model."""
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def trainable_parameters(self) -> int:
        """Parameters that get a gradient."""
        return sum(layer.trainable_parameters for layer in self.layers)

    @cached_property
    def gradient_bytes(self) -> int:
        """Bytes that a data-parallel all-reduce moves: the gradients of all trainable parameters."""
        return self.trainable_parameters * self.element_bytes

    @cached_property
    def flops_per_sample(self) -> float:
        """Model FLOPs of one sample, forward and backward (no recomputation): what MFU counts."""
        tokens = self.sequence_length
        return sum(layer.forward_flops(tokens) + layer.backward_flops(tokens) for layer in self.layers)

    @cached_property
    def activation_bytes_per_sample(self) -> float:
        """Bytes kept from forward to backward, per sample."""
        return self.element_bytes * sum(at(layer.activation_elements, self.sequence_length) for layer in self.layers)

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients and optimizer states on a device that holds the whole model.

        16-bit training keeps fp32 master weights beside the 16-bit ones: 16 bytes per parameter with AdamW
        (Rajbhandari et al. 2020, ZeRO, section 3.1); fp32 AdamW needs 16 as well (4 weights + 4 gradients + 8).
        """
        states = 4 * OPTIMIZER_STATES[self.optimizer]
        master = 4 if self.element_bytes < 4 else 0
        trainable = self.element_bytes + states + master
        return self.parameters * self.element_bytes + self.trainable_parameters * trainable

    def __eq__(self, other: object) -> bool:
        """Whether everything in them is equal: by a text made once, since caches compare them by the thousand."""
        return self is other or (isinstance(other, Workload) and self.text == other.text)

    @cached_property
    def text(self) -> str:
        """All of it as JSON."""
        return self.model_dump_json()

    def __hash__(self) -> int:
        """Equal workloads have equal hashes; their layers are left to the comparison."""
        return hash((self.model.name, self.global_batch, self.sequence_length, self.dtype, self.optimizer))

    def shard_parameters(self, first: int, last: int, degree: int) -> float:
        """Trainable parameters of layers [first, last) on one rank of a tensor-parallel group."""
        sums = self.shard_sums.get(degree)
        if sums is None:
            shares = [layer.tensor.divided_parameters if layer.tensor else 0.0 for layer in self.layers]
            parts = (
                layer.trainable_parameters * (share / degree + 1 - share)
                for layer, share in zip(self.layers, shares, strict=True)
            )
            sums = self.shard_sums[degree] = (0.0, *accumulate(parts))
        return sums[last] - sums[first]

    @cached_property
    def shard_sums(self) -> dict[int, tuple[float, ...]]:
        """Per tensor degree, running sums of the parameters of a rank, layer by layer: filled as they are asked for."""
        return {}

    def indivisible(self, first: int, last: int, degree: int) -> Layer | None:
        """The first of layers [first, last) that does not divide over ``degree`` devices."""
        known = self.divides.get(degree)
        if known is None:
            bad = [not layer.tensor or layer.tensor.divisor % degree != 0 for layer in self.layers]
            known = self.divides[degree] = tuple(number for number, each in enumerate(bad) if each)
        place = bisect.bisect_left(known, first)
        return self.layers[known[place]] if place < len(known) and known[place] < last else None

    @cached_property
    def divides(self) -> dict[int, tuple[int, ...]]:
        """Per tensor degree, the layers that it does not divide: filled as they are asked for."""
        return {}

    def stage_edges(self, firsts: tuple[int, ...]) -> tuple[Edge, ...]:
        """What stages hand to each other, when stage i holds the layers from ``firsts[i]`` to the next one's first.

        Each layer's output goes once to every stage that reads it.
        """
        edges = self.edges_of.get(firsts)
        if edges is None:
            edges = self.edges_of[firsts] = _edges(self.layers, self.sequence_length, firsts)
        return edges

    @cached_property
    def edges_of(self) -> dict[tuple[int, ...], tuple[Edge, ...]]:
        """Edges by the stages' first layers: filled as they are asked for."""
        return {}

    @cached_property
    def key(self) -> str:
        """Digest of what decides the work of one sample: a measured profile belongs to one key.

        The global batch is not part of it (a profile holds several micro-batches), nor are names and sources.
        """
        layers = [layer.model_dump(mode="json", exclude=NOT_WORK) for layer in self.layers]
        return digest([layers, self.sequence_length, self.dtype, self.optimizer])[:16]


def _edges(layers: list[Layer], tokens: int, firsts: tuple[int, ...]) -> tuple[Edge, ...]:
    stage_of = [bisect.bisect_right(firsts, number) - 1 for number in range(len(layers))]
    number_of = {layer.name: number for number, layer in enumerate(layers)}
    crossing: dict[tuple[int, int], set[int]] = {}
    for number, layer in enumerate(layers):
        feeding = [number - 1] if layer.inputs is None else [number_of[name] for name in layer.inputs]
        for source in feeding:
            if source >= 0 and stage_of[source] != stage_of[number]:
                crossing.setdefault((stage_of[source], stage_of[number]), set()).add(source)
    outputs = [at(layer.output_elements, tokens) for layer in layers]
    return tuple(
        Edge(source, target, sum(outputs[each] for each in sorted(feeding)))
        for (source, target), feeding in sorted(crossing.items())
    )
