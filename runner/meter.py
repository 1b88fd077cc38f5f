"""One training pass of a model on torch's meta device, counted operator by operator: no memory, no arithmetic.

Imported only where a model is described, since it needs torch and transformers at once.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .division import Division, Kind, Work, storage_key
from .kernels import counting

Direction = Literal["forward", "backward"]

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
NORMALIZATIONS = ("layer_norm", "batch_norm", "group_norm", "rms_norm", "softmax")
LOSSES = ("nll_loss", "_log_softmax")


@dataclass
class Count:
    """What the operators of one kind do in one part of a pass."""

    kernels: int = 0
    flops: int = 0
    elements: int = 0
    """Read and written: activations, weights and weight gradients alike."""
    divided_flops: int = 0
    """Of the FLOPs, those that tensor parallelism divides; of the elements in the same way."""
    divided_elements: int = 0


@dataclass
class Part:
    """A stretch of the pass: one unit that a plan may not cut."""

    name: str
    counts: dict[tuple[Direction, str], Count] = field(default_factory=lambda: defaultdict(Count))
    kept: int = 0
    """Elements saved for the backward pass."""
    output: int = 0
    """Elements handed to the next part."""
    parameters: int = 0
    trainable: int = 0
    tied_with: str | None = None
    list_name: str = ""
    """The module list that the block belongs to; empty for what lies between blocks."""
    inputs: list[str] | None = None
    """Names of the parts that feed it; None: the one before."""
    divided_kept: int = 0
    """Of the kept elements, those that tensor parallelism divides; of the parameters in the same way."""
    divided_parameters: int = 0
    scores_kept: int = 0
    """Of the kept elements, attention scores; and the forward FLOPs of the products that make and use them."""
    scores_flops: int = 0
    reduced: list[int] = field(default_factory=list)
    """Elements of each result that a tensor-parallel group sums forward, and of each gradient that it sums backward."""
    gathered: dict[int, int] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    """Widths that the tensor-parallel degree must divide."""
    strange: bool = False
    """Whether it is not known how to divide the part."""
    feeding: set[int] = field(default_factory=set)
    """Numbers of the parts whose outputs it reads."""


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """Counts every kernel of a pass, and says to which part of the model it belongs.

    Forward operators belong to the part whose block is running. A backward operator belongs to the part that made its
    autograd node: nodes are numbered in the order of the forward pass.
    """

    def __init__(self, model: nn.Module, division: Division) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.parts = [Part("embeddings")]
        self.division = division
        self._starts = [_sequence_number()]
        self._merged = {0: 0}
        self._stored = {storage_key(each) for each in (*model.parameters(), *model.buffers())}
        self._alive: list[Tensor] = []
        self._users: dict[int, list[int]] = defaultdict(list)
        self._makers: dict[int, int] = {}
        self._outputs: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count it."""
        out = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        place, direction = self._place()
        for each in inputs:
            if isinstance(each, nn.Parameter):
                self._users[id(each)].append(place)
            elif direction == "forward" and (source := self._outputs.get(storage_key(each))) is not None:
                self.parts[place].feeding.add(source)
        if not func.is_view and func._overloadpacket.__name__ != "detach":
            self._count_operator(func._overloadpacket, args, kwargs or {}, inputs, out)
        return out

    def attended(self, flops: int, tensors: list[Tensor]) -> None:
        """Count one fused attention kernel."""
        self.count("attention", flops, tensors, Work(divided=self.division.divides(tensors[0])))

    def multiplied(self, flops: int, left: Tensor, right: Tensor, out: Tensor, copies: int) -> None:
        """Count one product in which each token stands in several rows, which are summed before the group's sum."""
        work = self.division.product(left, right, out, block=self._in_block())
        self.count("matmul", flops, [left, right, out], work, copies)

    def count(self, kind: str, flops: int, tensors: list[Tensor], work: Work, copies: int = 1) -> None:
        """Add one kernel that touches some tensors."""
        index, direction = self._place()
        entry = self.parts[index].counts[direction, kind]
        entry.kernels += 1
        entry.flops += flops
        entry.elements += sum(each.numel() for each in tensors)
        entry.divided_flops += flops if work.divided else 0
        entry.divided_elements += sum(each.numel() for each in tensors if self.division.divides(each))
        if direction == "forward":
            self._note(self.parts[index], work, flops, copies)

    def begin(self, name: str, list_name: str, hidden: Tensor | None) -> None:
        """A block starts; what ran since the block before it in the same list belongs to that one."""
        last = len(self.parts) - 1
        if last and (self.parts[last - 1].list_name == list_name or not self.parts[last].counts):
            self._merged[last] = last - 1
        self._hand_on(self._merged[last], hidden)
        self._open(Part(name, list_name=list_name))

    def end(self, hidden: Tensor | None, next_name: str = "") -> None:
        """A block is over, or another stretch that something later reads."""
        self._hand_on(len(self.parts) - 1, hidden)
        if hidden is not None and self.division.divides(hidden):  # a group would have to gather it
            self.parts[-1].strange = True
            self.division.mark([hidden], Kind.WHOLE)
        self._open(Part(next_name))

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves; storages that were noted before, weights and buffers cost nothing.

        What depends on no sample (positions, masks) is kept where it was made, not by the first block that reads it.
        """
        key = storage_key(tensor)
        if key not in self._stored:
            self._stored.add(key)
            self._alive.append(tensor)  # or its storage's address might be used again
            kind, elements = self.division.kind(tensor), tensor.untyped_storage().nbytes() // tensor.element_size()
            here = self._place()[0]
            part = self.parts[self._makers.get(key, here) if kind == Kind.CONSTANT else here]
            part.kept += elements
            part.divided_kept += elements if kind >= Kind.DIVIDED else 0
            part.scores_kept += elements if kind == Kind.SCORES else 0
        return tensor

    def finish(self, model: nn.Module, outputs: int) -> list[Part]:
        """The parts of the pass in order, merged and named, the parameters given to their first user."""
        self.parts[-1].output = outputs
        for source, target in self._merged.items():
            if source != target:
                _merge(self.parts[source], self.parts[target])
        self._name_parts()
        self._assign_parameters(model)
        left = self.kept_parts()
        for before, index in zip([None, *left], left, strict=False):
            sources = {self._merged[each] for each in self.parts[index].feeding}.intersection(left) - {index}
            if sources and sources != {before}:
                self.parts[index].inputs = [self.parts[each].name for each in sorted(sources)]
        return [self.parts[index] for index in left]

    def kept_parts(self) -> list[int]:
        """Numbers of the parts that are layers: something ran in them, and they were not merged into another."""
        return [index for index, part in enumerate(self.parts) if self._merged[index] == index and part.counts]

    def _count_operator(self, packet: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> None:
        outputs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        counted = flop_registry.get(packet)
        work = self.division.follow(packet.__name__, inputs, outputs, block=self._in_block())
        self._makers.update((storage_key(each), self._place()[0]) for each in outputs)
        if packet.__name__ in NO_KERNEL:
            return
        flops = counted(*args, **kwargs, out_val=out) if counted else 0
        if packet is torch.ops.aten.convolution_backward:
            flops = convolution_backward_flops(args)
        if packet is torch.ops.aten.embedding:  # reads the rows it looks up, not the table
            inputs = [*inputs[1:], *outputs]
        self.count(_kind(packet.__name__, counted is not None), int(flops), [*inputs, *outputs], work)

    @staticmethod
    def _note(part: Part, work: Work, flops: int, copies: int) -> None:
        """Note what dividing an operator of the forward pass takes."""
        if work.gathered is not None:
            part.gathered.setdefault(storage_key(work.gathered), work.gathered.numel() // copies)
        if work.reduced is not None:
            part.reduced.append(work.reduced.numel() // copies)
        if work.width:
            part.widths.append(work.width)
        part.scores_flops += flops if work.scores else 0
        part.strange |= work.strange

    def _open(self, part: Part) -> None:
        self._merged[len(self.parts)] = len(self.parts)
        self.parts.append(part)
        self._starts.append(_sequence_number())

    def _hand_on(self, index: int, hidden: Tensor | None) -> None:
        """A part's output; a tensor that another part handed on before stays that one's."""
        if hidden is None:
            return
        self._alive.append(hidden)
        if self._outputs.setdefault(storage_key(hidden), index) == index:
            self.parts[index].output = hidden.numel()

    def _in_block(self) -> bool:
        return bool(self.parts[self._place()[0]].list_name)

    def _place(self) -> tuple[int, Direction]:
        node = torch._C._current_autograd_node()
        if node is None:
            return len(self.parts) - 1, "forward"
        return max(0, bisect.bisect_right(self._starts, node._sequence_nr()) - 1), "backward"

    def _name_parts(self) -> None:
        if len(self.parts) == 1:
            self.parts[0].name = "model"
            return
        seen: dict[str, int] = defaultdict(int)
        for index, part in enumerate(self.parts):
            name = part.name or ("head" if index == len(self.parts) - 1 else f"after {self.parts[index - 1].name}")
            if self._merged[index] == index:
                seen[name] += 1
                part.name = name if seen[name] == 1 else f"{name} call {seen[name]}"

    def _assign_parameters(self, model: nn.Module) -> None:
        """Each parameter counts in the first part that uses it (unused: the last); later users are tied to it."""
        last = self._merged[len(self.parts) - 1]
        for parameter in model.parameters():
            users = list(dict.fromkeys(self._merged[index] for index in self._users.get(id(parameter), [last])))
            owner = self.parts[min(users)]
            owner.parameters += parameter.numel()
            owner.trainable += parameter.numel() if parameter.requires_grad else 0
            owner.divided_parameters += parameter.numel() if self.division.divides(parameter) else 0
            for index in users:
                if self.parts[index] is not owner:
                    self.parts[index].tied_with = owner.name


def measure(
    model: nn.Module, inputs: dict[str, Tensor], loss: Callable[[Any], Tensor], division: Division
) -> list[Part]:
    """Count one forward and backward pass of a model on the meta device.

    Args:
        model: on the meta device, in training mode.
        inputs: keyword arguments of its forward.
        loss: makes a scalar from the model's output.
        division: a new one; it says what tensor parallelism divides.
    """
    division.mark((each for each in inputs.values() if each.is_floating_point()), Kind.WHOLE)
    meter = Meter(model, division)
    with hooked(model, meter), counting(meter), torch.autograd.graph.saved_tensors_hooks(meter.keep, _same):
        with meter:
            output = model(**inputs)
            value = loss(output)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        hidden = _hidden(output)
        parts = meter.finish(model, 0 if hidden is None else hidden.numel())
    for parameter in model.parameters():
        parameter.grad = None
    return parts


def blocks(model: nn.Module) -> dict[str, str]:
    """Names of the modules between which a plan may cut, with the list each is in: entries of the outermost lists.

    Lists inside a head are branches of it, not a sequence; torch's own lists of parametrizations are no blocks at all.
    """
    found: dict[str, str] = {}
    lists: list[str] = []
    for name, module in model.named_modules():
        outer = any(name.startswith(f"{each}.") for each in lists)
        if type(module) is nn.ModuleList and not outer and "head" not in name:
            lists.append(name)
            found.update({f"{name}.{child}": name for child, _ in module.named_children()})
    return found


def encoders(lists: Iterable[str]) -> set[str]:
    """Names of the modules whose result every block of a decoder reads: what holds an encoder's list beside one."""
    if not any("decoder" in each for each in lists):
        return set()
    return {each.rpartition(".")[0] for each in lists if "encoder" in each}


@contextmanager
def hooked(model: nn.Module, meter: Meter) -> Iterator[None]:
    """Tell a meter where the parts of a model begin and end."""
    modules = dict(model.named_modules())
    handles = []
    found = blocks(model)
    for name, list_name in found.items():
        handles.append(
            modules[name].register_forward_pre_hook(partial(_before, meter, name, list_name), with_kwargs=True)
        )
        handles.append(modules[name].register_forward_hook(partial(_after, meter, "")))
    for name in encoders(found.values()):
        handles.append(modules[name].register_forward_hook(partial(_after, meter, "decoder embeddings")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(meter: Meter, name: str, list_name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
    meter.begin(name, list_name, _hidden((args, kwargs)))


def _after(meter: Meter, next_name: str, _: nn.Module, args: Any, output: Any) -> None:
    meter.end(_hidden(output), next_name)


def convolution_backward_flops(args: Any) -> int:
    """As many as forward for each gradient that is asked for: torch's own count takes groups for one dense product."""
    gradient, samples, weight, transposed, asked = (args[each] for each in (0, 1, 2, 7, 10))
    places = samples if transposed else gradient
    return int(2 * places.numel() * math.prod(weight.shape[1:]) * sum(asked[:2]))


def _kind(name: str, product: bool) -> str:
    if product:
        return "matmul"
    if "embedding" in name:
        return "embedding"
    if any(each in name for each in LOSSES):
        return "loss"
    return "normalization" if any(each in name for each in NORMALIZATIONS) else "elementwise"


def _hidden(value: Any) -> Tensor | None:
    """The first floating tensor in a structure: of a block's arguments or output, the hidden states."""
    leaves = tree_leaves(dict(value) if isinstance(value, dict) else value)
    return next((each for each in leaves if isinstance(each, Tensor) and each.is_floating_point()), None)


def _merge(source: Part, target: Part) -> None:
    for key, entry in source.counts.items():
        total = target.counts[key]
        for each in vars(entry):
            setattr(total, each, getattr(total, each) + getattr(entry, each))
    for each in ("kept", "divided_kept", "scores_kept", "scores_flops", "reduced", "widths"):
        setattr(target, each, getattr(target, each) + getattr(source, each))
    target.strange |= source.strange
    target.gathered.update(source.gathered)
    target.feeding.update(source.feeding)


def _sequence_number() -> int:
    return int(torch._C._autograd._get_sequence_nr())


def _same(tensor: Tensor) -> Tensor:
    return tensor
