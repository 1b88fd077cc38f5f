"""Tasks that time single operators, and passes of small models, on a lane: calibrated predictions are made of them."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from .member import Member, flat_gradients, make_optimizer, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Work = Callable[[], Any]
"""One call of an operator; what it returns is kept alive for a while."""

ROTATED_BYTES = 6 * 2**20
"""Inputs are taken in turn from sets that fill so much together: a training step finds few in the fast cache."""
KEPT_BYTES = 12 * 2**20
"""Results stay alive until so much is held: a forward pass keeps its own, and does not get the same memory again."""
MOST_SETS = 48
CHUNK_S = 2e-4
"""Calls are timed in runs that take at least so long: the clocks do not tell less."""
CHUNKS, WARM_UP = 3, 2
LONG_S, LONG_CALLS = 5e-3, 2
"""A call that takes longer than this is timed so many times, and the shortest counts."""
ENOUGH_S = 0.06
"""Runs of a point are not repeated beyond so much time, but there are two at least."""
LEAST_S = 1e-9
MOST_KEPT = 400
HEADS = 4
LOOKED_UP = 64
"""Rows of the embedding table: its gradient is zeroed whole, which is counted apart."""
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Kit:
    """Makes tensors for one operator: so many equal sets that together they do not fit the fast cache."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def floats(self, *shape: int) -> Tensor:
        """A tensor of one number: what is measured here takes as long whatever the numbers are."""
        import torch

        return torch.full(shape, 0.75, device=self.device, dtype=self.dtype)

    def numbers(self, count: int) -> Tensor:
        """Rows to look up."""
        import torch

        return torch.randint(LOOKED_UP, (count,), device=self.device)

    def turns(self, make: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
        """Sets of inputs, one after another, round and round."""
        first = make()
        size = sum(each.numel() * each.element_size() for each in first)
        count = max(1, min(MOST_SETS, ROTATED_BYTES // max(size, 1)))
        turns = itertools.cycle([first, *(make() for _ in range(count - 1))])
        return lambda: next(turns)

    def work(self, make: Callable[[], Sequence[Tensor]], apply: Callable[..., Any]) -> Work:
        """An operator over its inputs in turns."""
        take = self.turns(make)
        return lambda: apply(*take())


def operators(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one call of each operator in the task, in its order; all members at once, nothing synchronised."""
    import torch

    torch.manual_seed(0)
    kit = Kit(member.device, getattr(torch, TORCH_NAMES[task["dtype"]]))
    member.meet()
    seconds = []
    with torch.no_grad():
        for point in task["points"]:
            seconds.append(timed(member, make(kit, point["kind"], point["sizes"])))
            say("alive")
    return {"seconds": seconds}


def timed(member: Member, work: Work) -> float:
    """Median seconds of a call, over a few runs of calls."""
    begin = ticks(member)
    kept: deque[Any] = deque(maxlen=_kept_alive(work()))
    if ticks(member) - begin > LONG_S:  # what starting costs does not show, and the time is for the many short ones
        return min(_run(member, work, kept, 1) for _ in range(LONG_CALLS))
    for _ in range(WARM_UP):
        kept.append(work())
    first = _run(member, work, kept, 1)
    calls = max(1, math.ceil(CHUNK_S / max(first, 1e-7)))
    chunks = max(1, min(CHUNKS, int(ENOUGH_S / max(first * calls, 1e-7))))
    times = [_run(member, work, kept, calls) for _ in range(chunks)]
    return max(median(times if calls > 1 else [first, *times]), LEAST_S)


def _run(member: Member, work: Work, kept: deque[Any], calls: int) -> float:
    begin = ticks(member)
    for _ in range(calls):
        kept.append(work())
    return (ticks(member) - begin) / calls


def ticks(member: Member) -> float:
    """Seconds on the clock that leaves out what other processes took; a GPU's work shows on the wall's alone."""
    return member.clock() if member.device.type == "cpu" else member.now()


def _kept_alive(result: Any) -> int:
    """How many results to hold."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    size = sum(each.numel() * each.element_size() for each in tree_leaves(result) if isinstance(each, Tensor))
    return int(min(MOST_KEPT, 1 + KEPT_BYTES // max(size, 1)))


def make(kit: Kit, kind: str, sizes: Sequence[int]) -> Work:
    """One operator of a kind and its inputs; the sizes are those of the kind's grid."""
    name, _, rest = kind.partition(" ")
    if name in ("mm", "addmm"):
        return _product(kit, name, rest, sizes)
    if name == "optimizer":
        return _optimizer(kit, rest, sizes)
    if kind in SHAPED:
        return SHAPED[kind](kit, *sizes)
    tensors, apply = flat_operators()[kind]
    return kit.work(lambda: [kit.floats(sizes[0]) for _ in range(tensors)], apply)


def flat_operators() -> dict[str, tuple[int, Callable[..., Any]]]:
    """Operators over flat tensors: how many of them, and what is done."""
    import torch
    from torch.nn import functional

    aten = torch.ops.aten
    return {
        "view": (1, lambda a: a.view(-1, 1)),
        "add": (2, torch.add),
        "add_": (2, lambda a, b: a.add_(b)),
        "add scalar": (1, lambda a: a + 1.5),
        "mul": (2, torch.mul),
        "mul scalar": (1, lambda a: a * 0.5),
        "div": (2, torch.div),
        "pow": (1, lambda a: torch.pow(a, 3.0)),
        "rsqrt": (1, torch.rsqrt),
        "cos": (1, torch.cos),
        "tanh": (1, torch.tanh),
        "tanh_backward": (2, aten.tanh_backward),
        "gelu": (1, functional.gelu),
        "gelu_backward": (2, aten.gelu_backward),
        "silu": (1, functional.silu),
        "silu_backward": (2, aten.silu_backward),
        "clone": (1, torch.clone),
        "fill": (1, torch.zeros_like),
        "where": (2, lambda a, b: torch.where(a > b, a, b)),
        "cat": (2, lambda a, b: torch.cat((a[: len(a) // 2], b[: len(b) // 2]))),
    }


def _product(kit: Kit, name: str, layout: str, sizes: Sequence[int]) -> Work:
    import torch

    rows, inner, columns = sizes

    def inputs() -> list[Tensor]:
        left = kit.floats(rows, inner) if layout[0] == "n" else kit.floats(inner, rows).t()
        right = kit.floats(inner, columns) if layout[1] == "n" else kit.floats(columns, inner).t()
        return [left, right] if name == "mm" else [kit.floats(columns), left, right]

    return kit.work(inputs, torch.mm if name == "mm" else torch.addmm)


def _batched(kit: Kit, copies: int, rows: int, inner: int, columns: int) -> Work:
    import torch

    return kit.work(lambda: [kit.floats(copies, rows, inner), kit.floats(copies, inner, columns)], torch.bmm)


def _attention(kit: Kit, copies: int, rows: int, depth: int) -> Work:
    from torch.nn.functional import scaled_dot_product_attention as attend

    return kit.work(lambda: _heads(kit, copies, rows, depth), lambda q, k, v, mask: attend(q, k, v, attn_mask=mask))


def _heads(kit: Kit, copies: int, rows: int, depth: int) -> list[Tensor]:
    """Queries, keys and values as a model's projections leave them, and a mask as padding makes it."""
    import torch

    heads = math.gcd(copies, HEADS)
    samples = copies // heads
    parts = [kit.floats(samples, rows, heads, depth).transpose(1, 2) for _ in range(3)]
    return [*parts, torch.zeros(samples, 1, rows, rows, device=kit.device, dtype=kit.dtype)]


def _attention_backward(kit: Kit, copies: int, rows: int, depth: int) -> Work:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    def inputs() -> list[Any]:
        *parts, mask = _heads(kit, copies, rows, depth)
        with torch.enable_grad():
            query, key, value = (each.detach().requires_grad_() for each in parts)
            out = attend(query, key, value, attn_mask=mask)
        return [out, query, key, value, torch.ones_like(out)]

    return kit.work(inputs, lambda out, q, k, v, ones: torch.autograd.grad(out, (q, k, v), ones, retain_graph=True))


def _norm(kit: Kit, rows: int, width: int) -> Work:
    from torch.nn.functional import layer_norm

    return kit.work(
        lambda: [kit.floats(rows, width), kit.floats(width), kit.floats(width)],
        lambda x, weight, bias: layer_norm(x, (width,), weight, bias),
    )


def _norm_backward(kit: Kit, rows: int, width: int) -> Work:
    import torch

    aten = torch.ops.aten

    def inputs() -> list[Tensor]:
        x, weight, bias = kit.floats(rows, width), kit.floats(width), kit.floats(width)
        _, mean, inverse = aten.native_layer_norm(x, [width], weight, bias, 1e-5)
        return [kit.floats(rows, width), x, mean, inverse, weight, bias]

    return kit.work(
        inputs,
        lambda g, x, mean, inverse, weight, bias: aten.native_layer_norm_backward(
            g, x, [width], mean, inverse, weight, bias, [True, True, True]
        ),
    )


def _softmax_backward(kit: Kit, rows: int, width: int) -> Work:
    import torch

    return kit.work(
        lambda: [kit.floats(rows, width), torch.softmax(kit.floats(rows, width), -1)],
        lambda g, out: torch.ops.aten._softmax_backward_data(g, out, -1, kit.dtype),
    )


def _rows(apply: Callable[[Tensor], Any]) -> Callable[..., Work]:
    """An operator over one matrix."""
    return lambda kit, rows, width: kit.work(lambda: [kit.floats(rows, width)], apply)


def _embedding(kit: Kit, rows: int, width: int) -> Work:
    from torch.nn.functional import embedding

    table = kit.floats(LOOKED_UP, width)
    return kit.work(lambda: [kit.numbers(rows)], lambda ids: embedding(ids, table))


def _embedding_backward(kit: Kit, rows: int, width: int) -> Work:
    import torch

    return kit.work(
        lambda: [kit.floats(rows, width), kit.numbers(rows)],
        lambda g, ids: torch.ops.aten.embedding_dense_backward(g, ids, LOOKED_UP, -1, False),
    )


def _strided(kit: Kit, elements: int) -> Work:
    """A copy that puts the heads of a projection in order."""
    import torch

    depth = min(32, max(elements // HEADS, 1))
    rows = max(elements // (HEADS * depth), 1)
    return kit.work(
        lambda: [kit.floats(rows, HEADS, depth).transpose(0, 1)],
        lambda x: x.clone(memory_format=torch.contiguous_format),
    )


def _optimizer(kit: Kit, name: str, sizes: Sequence[int]) -> Work:
    """A step and the zeroing of the gradients, as a training step has them."""
    import torch

    tensors, parameters = sizes
    weights = [torch.nn.Parameter(kit.floats(max(parameters // tensors, 1))) for _ in range(tensors)]
    flat = flat_gradients(weights)
    optimizer = make_optimizer(name, weights, 1e-4)

    def step() -> None:
        optimizer.step()
        flat.zero_()

    return step


SHAPED: dict[str, Callable[..., Work]] = {
    "bmm": _batched,
    "attention": _attention,
    "attention backward": _attention_backward,
    "layer_norm": _norm,
    "layer_norm backward": _norm_backward,
    "softmax": _rows(lambda x: x.softmax(-1)),
    "softmax backward": _softmax_backward,
    "mean": _rows(lambda x: x.mean(-1, keepdim=True)),
    "sum rows": _rows(lambda x: x.sum(0, keepdim=True)),
    "embedding": _embedding,
    "embedding backward": _embedding_backward,
    "clone strided": _strided,
}
"""Operators whose inputs have a shape, by the sizes of their grid."""


def reference(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of forward and backward passes of a small model: what its kernels' sum is held against."""
    import torch

    from ..workload import build_model

    kind = getattr(torch, TORCH_NAMES[task["dtype"]])
    model: Any = build_model(task["model"], labels=task["labels"], seed=0).to(member.device, kind).train()
    flat_gradients([each for each in model.parameters() if each.requires_grad])
    ids = torch.arange(task["samples"] * task["tokens"], device=member.device).reshape(task["samples"], -1)
    ids, mask = 1 + ids % (task["vocabulary"] - 1), torch.ones_like(ids)
    mask[0, -1] = 0  # a mask that hides nothing is dropped by some models: texts differ in length
    labels = torch.zeros(task["samples"], dtype=torch.long, device=member.device)
    times = []
    member.meet()
    for _ in range(task["steps"] + WARM_UP):
        begin = ticks(member)
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / task["samples"]
        middle = ticks(member)
        loss.backward()
        times.append((middle - begin, ticks(member) - middle))
        say("alive")
    forward, backward = zip(*times[WARM_UP:], strict=True)
    return {"forward_s": median(forward), "backward_s": median(backward), "dtype": str(logits.dtype)}


TASKS = {"operators": operators, "reference": reference}
