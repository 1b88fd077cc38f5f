"""One training pass of a model on torch's meta device, counted operator by operator: no memory, no arithmetic.

Imported only where a model is described, since it needs torch and transformers at once.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Direction = Literal["forward", "backward"]
ATTENTION = "steelyard_meter"
"""Name under which the counting attention is registered with transformers."""

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


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """Counts every kernel of a pass, and says to which part of the model it belongs.

    Forward operators belong to the part whose block is running. A backward operator belongs to the part that made its
    autograd node: nodes are numbered in the order of the forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.parts = [Part("embeddings")]
        self._starts = [_sequence_number()]
        self._merged = {0: 0}
        self._stored = {_storage(each) for each in (*model.parameters(), *model.buffers())}
        self._alive: list[Tensor] = []
        self._users: dict[int, list[int]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count it."""
        out = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        for each in inputs:
            if isinstance(each, nn.Parameter):
                self._users[id(each)].append(self._place()[0])
        packet = func._overloadpacket
        if not (func.is_view or packet.__name__ in NO_KERNEL or packet.__name__ == "detach"):
            counted = flop_registry.get(packet)
            flops = counted(*args, **(kwargs or {}), out_val=out) if counted else 0
            outputs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
            if packet is torch.ops.aten.embedding:  # reads the rows it looks up, not the table
                inputs = [*inputs[1:], *outputs]
            self.count(_kind(packet.__name__, counted is not None), int(flops), [*inputs, *outputs])
        return out

    def count(self, kind: str, flops: int, tensors: list[Tensor]) -> None:
        """Add one kernel that touches some tensors."""
        index, direction = self._place()
        entry = self.parts[index].counts[direction, kind]
        entry.kernels += 1
        entry.flops += flops
        entry.elements += sum(each.numel() for each in tensors)

    def begin(self, name: str, list_name: str, hidden: int) -> None:
        """A block starts; what ran since the block before it in the same list belongs to that one."""
        last = len(self.parts) - 1
        if last and self.parts[last - 1].list_name == list_name:
            self._merged[last] = last - 1
        self.parts[self._merged[last]].output = hidden
        self._open(Part(name, list_name=list_name))

    def end(self, hidden: int) -> None:
        """A block is over."""
        self.parts[-1].output = hidden
        self._open(Part(""))

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves; storages that were noted before, weights and buffers cost nothing."""
        key = _storage(tensor)
        if key not in self._stored:
            self._stored.add(key)
            self._alive.append(tensor)  # or its storage's address might be used again
            self.parts[self._place()[0]].kept += tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    def finish(self, model: nn.Module, outputs: int) -> list[Part]:
        """The parts of the pass in order, merged and named, the parameters given to their first user."""
        self.parts[-1].output = outputs
        for source, target in self._merged.items():
            if source != target:
                _merge(self.parts[source], self.parts[target])
        self._name_parts()
        self._assign_parameters(model)
        return [part for index, part in enumerate(self.parts) if self._merged[index] == index]

    def _open(self, part: Part) -> None:
        self._merged[len(self.parts)] = len(self.parts)
        self.parts.append(part)
        self._starts.append(_sequence_number())

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
            for index in users:
                if self.parts[index] is not owner:
                    self.parts[index].tied_with = owner.name


def measure(model: nn.Module, inputs: dict[str, Tensor], loss: Callable[[Any], Tensor]) -> list[Part]:
    """Count one forward and backward pass of a model on the meta device.

    Args:
        model: on the meta device, in training mode.
        inputs: keyword arguments of its forward.
        loss: makes a scalar from the model's output.
    """
    meter = Meter(model)
    with _hooked(model, meter), _counting(meter), torch.autograd.graph.saved_tensors_hooks(meter.keep, _same):
        with meter:
            output = model(**inputs)
            value = loss(output)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        parts = meter.finish(model, _float_elements(output))
    for parameter in model.parameters():
        parameter.grad = None
    return parts


def blocks(model: nn.Module) -> dict[str, str]:
    """Names of the modules between which a plan may cut, with the list each is in: entries of the outermost lists."""
    found: dict[str, str] = {}
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
            found.update({f"{name}.{child}": name for child, _ in module.named_children()})
    return found


@contextmanager
def _hooked(model: nn.Module, meter: Meter) -> Iterator[None]:
    modules = dict(model.named_modules())
    handles = []
    for name, list_name in blocks(model).items():
        handles.append(
            modules[name].register_forward_pre_hook(partial(_before, meter, name, list_name), with_kwargs=True)
        )
        handles.append(modules[name].register_forward_hook(partial(_after, meter)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(meter: Meter, name: str, list_name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
    meter.begin(name, list_name, _float_elements((args, kwargs)))


def _after(meter: Meter, _: nn.Module, args: Any, output: Any) -> None:
    meter.end(_float_elements(output))


_meters: list[Meter] = []


@contextmanager
def _counting(meter: Meter) -> Iterator[None]:
    _meters.append(meter)
    try:
        yield
    finally:
        _meters.pop()


class _FusedAttention(torch.autograd.Function):
    """Attention as one kernel that keeps no score matrix: q, k, v, its output and one number per row are saved.

    Its FLOPs are those of the two batched products, twice that backward: the scores that a fused kernel computes again
    are recomputation, which model FLOPs leave out.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, rows, depth = query.shape
        out = query.new_empty(batch, rows, heads, value.shape[-1])
        rows_sum = query.new_empty(batch, heads, rows)
        ctx.flops = 2 * batch * heads * rows * key.shape[2] * (depth + value.shape[-1])
        ctx.save_for_backward(query, key, value, out, rows_sum)
        _meters[-1].count("attention", ctx.flops, [query, key, value, out])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, out, _ = ctx.saved_tensors
        made = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
        _meters[-1].count("attention", 2 * ctx.flops, [query, key, value, out, gradients[0], *made])
        return made


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> tuple[Tensor, None]:
    """The counting attention in the form that transformers calls; the mask costs nothing worth counting."""
    return _FusedAttention.apply(query, key, value), None  # type: ignore[no-untyped-call]  # torch leaves it untyped


def register() -> None:
    """Make :data:`ATTENTION` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)


def _kind(name: str, product: bool) -> str:
    if product:
        return "matmul"
    if "embedding" in name:
        return "embedding"
    if any(each in name for each in LOSSES):
        return "loss"
    return "normalization" if any(each in name for each in NORMALIZATIONS) else "elementwise"


def _float_elements(value: Any) -> int:
    """Elements of the first floating tensor in a structure: of a block's arguments or output, the hidden states."""
    leaves = tree_leaves(dict(value) if isinstance(value, dict) else value)
    return next((each.numel() for each in leaves if isinstance(each, Tensor) and each.is_floating_point()), 0)


def _merge(source: Part, target: Part) -> None:
    for key, entry in source.counts.items():
        total = target.counts[key]
        total.kernels += entry.kernels
        total.flops += entry.flops
        total.elements += entry.elements
    target.kept += source.kept


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _sequence_number() -> int:
    return int(torch._C._autograd._get_sequence_nr())


def _same(tensor: Tensor) -> Tensor:
    return tensor
