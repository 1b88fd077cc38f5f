"""Capture: the kernels of a forward and backward pass, layer by layer, of a model that never runs.

The pass is made with fake tensors: shapes and layouts are those of the real device's kernels (fused attention where
torch would take it), nothing is allocated and nothing computed. Layers are those of the workload's description, since
the same meter finds them. Imported only where a model is captured: it needs torch and transformers at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..results.errors import InputError
from ..sim.operators import Call, LayerCalls
from ..sim.workload import Workload
from .division import Division, storage_key
from .families import TASKS, assemble, config_data, make_inputs, make_loss, refused, settle
from .meter import Direction, Meter, convolution_backward_flops, hooked

ROWWISE = {
    "native_layer_norm": "layer_norm",
    "native_layer_norm_backward": "layer_norm backward",
    "_fused_rms_norm": "layer_norm",
    "_fused_rms_norm_backward": "layer_norm backward",
    "_softmax": "softmax",
    "_softmax_backward_data": "softmax backward",
    "_log_softmax": "softmax",
    "_log_softmax_backward_data": "softmax backward",
    "embedding": "embedding",
    "embedding_dense_backward": "embedding backward",
}
"""Kernels that go through rows of the last dimension."""
ALIKE = {
    "sub": "add", "add_": "add_", "neg": "mul scalar", "rsub": "add scalar", "abs": "mul scalar", "sin": "cos",
    "sqrt": "rsqrt", "threshold_backward": "mul", "relu": "mul scalar", "sigmoid_backward": "tanh_backward",
    "sigmoid": "tanh", "exp": "tanh", "masked_fill": "where", "_to_copy": "clone", "copy_": "clone", "index": "clone",
    "gather": "clone", "stack": "cat", "new_zeros": "fill", "zeros": "fill", "zeros_like": "fill", "full": "fill",
    "ones_like": "fill", "new_ones": "fill", "full_like": "fill", "slice_backward": "fill", "select_backward": "fill",
    "index_put": "clone", "arange": "fill", "scalar_tensor": "fill", "bitwise_and": "add", "bitwise_not": "mul scalar",
    "logical_not": "mul scalar", "ne": "add scalar", "eq": "add scalar", "le": "add scalar", "ge": "add scalar",
    "lt": "add scalar", "gt": "add scalar", "argmax": "mean", "nll_loss_forward": "mean", "nll_loss_backward": "fill",
    "amax": "mean", "var_mean": "mean", "cumsum": "mean",
}  # fmt: skip
"""Kernels that are priced as another kind that moves as much; what is neither named nor measured is guessed."""
SCALAR = ("add", "mul", "div")
"""Kinds that read one tensor less where the other operand is a number."""
VIEWS = {"_unsafe_view", "_reshape_alias", "detach", "empty", "empty_like", "new_empty", "empty_strided"}
"""Operators that move nothing: a call, no kernel."""
ATTENTION = "scaled_dot_product"
PRODUCTS = {"mm": 2, "addmm": 2, "bmm": 3, "baddbmm": 3}


class Tape(Meter):  # type: ignore[no-untyped-call]  # torch leaves the mode's base without types
    """A meter that also writes down every kernel it sees."""

    def __init__(self, model: nn.Module, division: Division) -> None:
        super().__init__(model, division)
        self.calls: dict[tuple[int, Direction], list[Call]] = {}
        self._owners = {storage_key(each.grad): each for each in model.parameters() if each.grad is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on fake tensors and write it down."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "aten":
            inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            outputs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
            place = self._owner(inputs) or self._place()
            self.calls.setdefault(place, []).extend(
                call._replace(flops=call.flops or _flops(func, args, kwargs or {}, out))
                for call in calls_of(func, kwargs or {}, inputs, outputs)
            )
        return out

    def of_layers(self, model: nn.Module) -> list[LayerCalls]:
        """The kernels of each layer, those that are alike counted once; ends the tape."""
        names = [part.name for part in self.finish(model, 0)]
        layers = []
        for name, index in zip(names, self.kept_parts(), strict=True):
            part = self.parts[index]
            own = [source for source, target in self._merged.items() if target == index]
            layers.append(
                LayerCalls(
                    name=name,
                    forward=self._counted(own, "forward"),
                    backward=self._counted(own, "backward"),
                    tensors=self._tensors(model)[index],
                    trainable=part.trainable,
                )
            )
        return layers

    def _counted(self, places: Sequence[int], direction: Direction) -> tuple[Call, ...]:
        found = Counter(call for place in places for call in self.calls.get((place, direction), ()))
        return tuple(call._replace(times=count) for call, count in found.items())

    def _tensors(self, model: nn.Module) -> Counter[int]:
        trainable = [each for each in model.parameters() if each.requires_grad]
        return Counter(self._merged[min(self._users.get(id(each), [len(self.parts) - 1]))] for each in trainable)

    def _owner(self, inputs: Sequence[Tensor]) -> tuple[int, Direction] | None:
        """Adding to a gradient is its parameter's affair: such nodes of autograd have no place in the pass."""
        if not inputs or (parameter := self._owners.get(storage_key(inputs[0]))) is None:
            return None
        return min(self._users.get(id(parameter), [len(self.parts) - 1])), "backward"


def capture(workload: Workload, sizes: Sequence[int]) -> dict[int, list[LayerCalls]]:
    """The kernels of each layer of a workload for micro-batches of some sizes, forward and backward.

    Raises:
        InputError: transformers cannot make the model, or its path depends on its data.
    """
    return capture_config(workload.model.config, sizes, workload.sequence_length)


def capture_config(config: Mapping[str, Any], sizes: Sequence[int], tokens: int) -> dict[int, list[LayerCalls]]:
    """The same of a configuration, for the task that it names.

    Raises:
        InputError: transformers cannot make the model, or its path depends on its data.
    """
    data = config_data(config)
    task = data.pop("task", TASKS[0])
    settled = settle(data)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = assemble(settled, task).train()
        try:
            return {size: _captured(model, settled, task, size, tokens) for size in sizes}
        except InputError:
            raise
        except Exception as error:  # a family whose path depends on its data cannot be captured without any
            raise refused(settled.model_type, error) from error


def _captured(model: Any, config: Any, task: str, samples: int, tokens: int) -> list[LayerCalls]:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    inputs, loss = make_inputs(model, config, task, samples, tokens), make_loss(task, config)
    tape = Tape(model, Division(model, None, set()))
    with hooked(model, tape), tape:
        value: Any = loss(model(**inputs))
        value.backward()
    return tape.of_layers(model)


def calls_of(func: Any, kwargs: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Call]:
    """An operator of torch as calls that a table of operators prices; products and attention with their FLOPs."""
    name = func._overloadpacket.__name__
    largest = float(max((each.numel() for each in (*inputs, *outputs)), default=1))
    if func.is_view or name in VIEWS:
        return [Call("view", (1.0,), 0.0)]
    if name in PRODUCTS:
        return [_product(name, inputs[-2], inputs[-1], largest)]
    if ATTENTION in name:
        return [_attention(name, inputs, kwargs, largest)]
    if name in ROWWISE:
        return _rowwise(name, inputs, outputs, largest)
    if name in ("sum", "mean"):
        return [_reduction(inputs[0], outputs[0], largest)]
    kind = ALIKE.get(name, name)
    if kind in SCALAR and sum(each.numel() == largest for each in inputs) < 2:
        kind = "mul scalar" if kind == "div" else f"{kind} scalar"
    if kind == "mean":  # along rows, as a mean is
        width = float(inputs[0].shape[-1]) if inputs and inputs[0].ndim else 1.0
        return [Call(kind, (max(largest / max(width, 1.0), 1.0), max(width, 1.0)), largest)]
    if kind == "clone" and inputs and not inputs[0].is_contiguous():
        kind = "clone strided"
    return [Call(kind, (max(largest, 1.0),), largest)]


def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """FLOPs of what is neither a matrix product nor attention: convolutions, by torch's own count."""
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        return float(convolution_backward_flops(args))
    if packet.__name__ in PRODUCTS or ATTENTION in packet.__name__ or packet not in flop_registry:
        return 0.0
    return float(flop_registry[packet](*args, **kwargs, out_val=out))


def layout(tensor: Tensor) -> str:
    """``t`` for a matrix that lies in memory column by column, else ``n``."""
    return "t" if tensor.stride(-2) == 1 and tensor.stride(-1) != 1 else "n"


def _product(name: str, left: Tensor, right: Tensor, largest: float) -> Call:
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    copies = left.shape[0] if PRODUCTS[name] == 3 else 1
    flops = 2.0 * copies * rows * inner * columns
    if PRODUCTS[name] == 3:
        return Call("bmm", (copies, rows, inner, columns), largest, flops)
    # Both transposed does not occur in a linear layer: it is priced as the left one alone.
    how = layout(left) + layout(right)
    return Call(f"{name} {'tn' if how == 'tt' else how}", (rows, inner, columns), largest, flops)


def _attention(name: str, inputs: Sequence[Tensor], kwargs: Mapping[str, Any], largest: float) -> Call:
    backward = "backward" in name
    query, key, value = inputs[1:4] if backward else inputs[:3]
    copies = float(math.prod(query.shape[:-2]))
    rows = math.sqrt(query.shape[-2] * key.shape[-2])
    flops = 2.0 * copies * query.shape[-2] * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    kind = "attention backward" if backward else "attention"
    return Call(kind, (copies, rows, float(query.shape[-1])), largest, flops * (2 if backward else 1))


def _rowwise(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], largest: float) -> list[Call]:
    kind = ROWWISE[name]
    if name == "embedding":
        width = outputs[0].shape[-1]
        return [Call(kind, (max(inputs[1].numel(), 1.0), float(width)), float(outputs[0].numel()))]
    width = inputs[0].shape[-1] if inputs[0].ndim else 1
    call = Call(kind, (max(inputs[0].numel() / max(width, 1), 1.0), float(max(width, 1))), largest)
    if name != "embedding_dense_backward":
        return [call]
    table = float(outputs[0].numel())  # the whole table's gradient is zeroed first
    return [call, Call("fill", (table,), table)]


def _reduction(whole: Tensor, rest: Tensor, largest: float) -> Call:
    """Over the last dimension, or over the first ones: the two go through memory in different orders."""
    if whole.ndim and whole.shape[-1] > 1 and (rest.ndim == 0 or rest.shape[-1] == 1 or rest.numel() < whole.shape[-1]):
        width = float(whole.shape[-1])
        return Call("mean", (max(largest / width, 1.0), width), largest)
    width = float(max(rest.numel(), 1))
    return Call("sum rows", (max(largest / width, 1.0), width), largest)
