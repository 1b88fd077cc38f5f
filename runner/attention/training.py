"""train(): the weights of attention by gradient descent, through the rounds, against the cost model.

The step of soft shares is a smooth maximum of the devices' times and the all-reduce over those that take part; how far
a device takes part is soft too, and hardens as the training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...policies._base import round_shares
from ...policies.attention_keys import CONTEXT, KEYS, LEAST, REFILLS, Keys
from ...policies.attention_trained import LIMIT, Weights, amounts
from ...sim.view import View
from .judging import exact_s, mean_loss
from .worlds import training_worlds

if TYPE_CHECKING:
    from torch import Tensor

HEADS, ROUNDS = 2, 8
SHARPNESS = 30.0
"""Of the smooth maximum, relative to the exact step."""
WHOLE = 0.5
"""Samples at which a device takes part by two thirds, at the end of the training."""
RATE = 0.02

Report = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """Weights, and what they are worth on training clusters that they were not fitted to."""

    weights: Weights
    loss_before: float
    """Mean log of the step over the exact one on the clusters kept aside, rounding included."""
    loss_after: float
    surrogate_before: float
    surrogate_after: float
    document: dict[str, Any]


def start() -> Weights:
    """Where training begins: the first head is `attention-heads(gain=3)`, the second the same at half the load."""
    query = np.zeros((HEADS, len(CONTEXT), len(KEYS) + 1))
    query[:, 0, KEYS.index("gain")] = 3.0
    query[:, 0, -1] = [1.0, 0.5]
    mix = np.zeros((len(CONTEXT), HEADS))
    mix[0] = [2.0, 0.0]
    return Weights(query, mix, ROUNDS)


def train(*, seed: int = 0, worlds: int = 160, steps: int = 300, report: Report = lambda line: None) -> Trained:
    """Train on random clusters; a quarter is kept aside to see what was learned. The same on every run of a host.

    Args:
        seed: of the clusters.
        worlds: how many, at least 8.
        steps: of gradient descent (Adam, Kingma and Ba 2015).
        report: told how it goes.
    """
    scenarios = training_worlds(seed, worlds)
    exact = [exact_s(each) for each in scenarios]
    cut = worlds - worlds // 4
    first = start()
    batch = Batch.of([Keys.of(View.of(each)) for each in scenarios[:cut]], exact[:cut])
    with _one_thread():
        weights, surrogate = _descend(first, batch, steps, report)
    aside = [mean_loss(scenarios[cut:], exact[cut:], _Judged(each)) for each in (first, weights)]
    made = {"made_by": f"steelyard attention train --seed {seed} --worlds {worlds} --steps {steps}"}
    losses = {"loss_before": round(aside[0], 4), "loss_after": round(aside[1], 4)}
    return Trained(weights, aside[0], aside[1], surrogate[0], surrogate[1], {**made, **losses, **weights.document()})


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, and no waiting for other threads over such small tensors."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Judged:
    """A policy of some weights, for judging."""

    weights: Weights

    def allocate(self, view: View) -> Any:
        keys = Keys.of(view)
        return round_shares(keys.view, amounts(keys, self.weights).tolist())


def _descend(weights: Weights, batch: Batch, steps: int, report: Report) -> tuple[Weights, tuple[float, float]]:
    import torch

    query = torch.tensor(weights.query, requires_grad=True)
    mix = torch.tensor(weights.mix, requires_grad=True)
    optimizer = torch.optim.Adam([query, mix], lr=RATE)
    before = _value(batch, query, mix, weights.rounds)
    for step in range(steps):
        optimizer.zero_grad()
        done = step / max(steps - 1, 1)
        loss = batch.loss(batch.amounts(query, mix, weights.rounds), WHOLE * 4 ** (1 - done))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([query, mix], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - 0.95 * done)
        optimizer.step()
        if step % 50 == 0:
            report(f"step {step}: {loss.item():.4f}")
    after = _value(batch, query, mix, weights.rounds)
    found = Weights(query.detach().numpy().copy(), mix.detach().numpy().copy(), weights.rounds)
    return Weights.parse(found.document()), (before, after)


def _value(batch: Batch, query: Tensor, mix: Tensor, rounds: int) -> float:
    return batch.loss(batch.amounts(query, mix, rounds), WHOLE).item()


@dataclass(frozen=True, eq=False)
class Batch:
    """Many clusters as padded tensors; the same arithmetic as :class:`~steelyard.policies.attention_keys.Keys`."""

    values: Tensor
    context: Tensor
    open: Tensor
    """(clusters, devices): 1.0, or 0.0 where the model does not fit or there is no device."""
    capacity: Tensor
    sizes: Tensor
    seconds: Tensor
    last: Tensor
    """Per cluster, the number of its sizes."""
    samples: Tensor
    groups: Tensor
    steps: Tensor
    """Seconds that each set adds to the all-reduce of the one before."""
    exact: Tensor

    @classmethod
    def of(cls, keys: Sequence[Keys], exact: Sequence[float]) -> Batch:
        """Pad some clusters to one shape."""
        import torch

        most = max(len(each.values) for each in keys)
        long = max(len(each.table.sizes) for each in keys)
        sets = max(len(each.syncs_s) for each in keys)
        steps = [np.diff(each.syncs_s, prepend=0.0) for each in keys]
        grids = [np.append(s, s[-1] + np.arange(1.0, long - len(s) + 1)) for s in (each.table.sizes for each in keys)]

        def stacked(arrays: Sequence[Any], shape: tuple[int, ...], fill: float = 0.0) -> Tensor:
            return torch.tensor(np.array([_padded(each, shape, fill) for each in arrays]))

        return cls(
            values=stacked([each.values for each in keys], (most, len(KEYS))),
            context=stacked([each.context for each in keys], (len(CONTEXT),)),
            open=stacked([np.isfinite(each.mask) * 1.0 for each in keys], (most,)),
            capacity=stacked([each.table.capacity for each in keys], (most,)),
            sizes=stacked(grids, (long,)),
            seconds=stacked([each.table.seconds for each in keys], (most, long), 1.0),
            last=torch.tensor([len(each.table.sizes) for each in keys])[:, None],
            samples=torch.tensor([[float(each.table.batch)] for each in keys]).double(),
            groups=stacked([each.groups for each in keys], (most,)).long(),
            steps=stacked(steps, (sets,)),
            exact=torch.tensor(list(exact)).double(),
        )

    def amounts(self, query: Tensor, mix: Tensor, rounds: int) -> Tensor:
        """Samples of each device, as :func:`~steelyard.policies.attention_heads.attend` has them."""
        import torch

        queries = LIMIT * torch.tanh(torch.einsum("nc,hcf->nhf", self.context, query) / LIMIT)
        heads = torch.softmax(self.context @ mix, dim=1)
        closed = torch.where(self.open > 0, 0.0, -torch.inf)
        found = self.held(self.open / self.open.sum(dim=1, keepdim=True))
        for _ in range(rounds):
            load = torch.log(self.speeds(found))
            mean = (load * self.open).sum(dim=1, keepdim=True) / self.open.sum(dim=1, keepdim=True)
            keys = torch.cat([self.values, ((load - mean) * self.open)[..., None]], dim=2)
            scores = torch.einsum("nkf,nhf->nhk", keys, queries) + closed[:, None, :]
            found = self.held((torch.softmax(scores, dim=2) * heads[..., None]).sum(dim=1))
        return found

    def held(self, shares: Tensor) -> Tensor:
        """Within the devices' capacities."""
        import torch

        found = torch.minimum(shares * self.samples, self.capacity)
        for _ in range(REFILLS):
            weights = torch.where(found < self.capacity, shares.clamp(min=LEAST), 0.0)
            left = (self.samples - found.sum(dim=1, keepdim=True)).clamp(min=0.0)
            total = weights.sum(dim=1, keepdim=True).clamp(min=LEAST)
            found = torch.minimum(found + left * weights / total, self.capacity)
        return found

    def speeds(self, found: Tensor) -> Tensor:
        """Samples per second at some loads."""
        import torch

        found = torch.maximum(found, LEAST * self.samples)
        return found / self.at(found)

    def at(self, found: Tensor) -> Tensor:
        """Step times, piecewise affine."""
        import torch

        place = torch.searchsorted(self.sizes, found.detach().contiguous(), right=True) - 1
        place = torch.minimum(place.clamp(min=0), self.last - 2)
        low, high = (self.seconds.gather(2, (place + more)[..., None])[..., 0] for more in (0, 1))
        begin, end = (self.sizes.gather(1, place + more) for more in (0, 1))
        return low + ((found - begin) / (end - begin)).clamp(0.0, 1.0) * (high - low)

    def loss(self, found: Tensor, whole: float) -> Tensor:
        """Mean log of the soft step over the exact one; ``whole`` samples make a device take part by two thirds."""
        import torch

        part = -torch.expm1(-found / whole)
        scaled = SHARPNESS * part * self.at(found) * self.open / self.exact[:, None]
        busy = torch.logsumexp(scaled, dim=1) / SHARPNESS
        missing = torch.zeros_like(self.steps).scatter_add(1, self.groups, torch.log1p(-part * 0.999999) * self.open)
        sync = (-torch.expm1(missing) * self.steps).sum(dim=1) / self.exact
        return torch.log(busy + sync).mean()


def _padded(array: Any, shape: tuple[int, ...], fill: float) -> Any:
    values = np.asarray(array, dtype=np.float64)
    return np.pad(
        values, [(0, wide - have) for wide, have in zip(shape, values.shape, strict=True)], constant_values=fill
    )
