"""Attention with several heads, more keys, and the load among them: in rounds, each seeing what the last one gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ..sim.noise import Floats
from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, round_shares
from .attention import Weight
from .attention_keys import KEYS, Keys


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """Two heads, mixed: one looks at how fast a device is at its present load, the other at its room, links and price.

    After a round the load has changed, and with it the key: shares are dealt anew. With the load's weight at the
    temperature and no other key, a device that is ahead of the others gets less and one that is behind gets more,
    until all finish at once, which for affine times is the exact (fractional) min-max split.
    """

    name: ClassVar[str] = "attention-heads"
    source: ClassVar[str] = "multi-head attention (Vaswani et al. 2017, section 3.2.2), over the project's own keys"

    load: Annotated[float, Range(0, 2)] = 1.0
    """First head: weight of log(samples/s at the present load)."""
    one: Weight = 0.0
    """First head: log(samples/s with one sample a step): what is fixed weighs most here."""
    whole: Weight = 0.0
    """First head: log(samples/s with as many samples as it may hold)."""
    peak: Weight = 0.0
    """First head: log(peak FLOP/s)."""
    bandwidth: Weight = 0.0
    """First head: log(memory bandwidth)."""
    memory: Weight = 0.0
    """Second head: log(memory free beside the model's states)."""
    link: Weight = 0.0
    """Second head: log(bandwidth of its links)."""
    price: Weight = 0.0
    """Second head: log(price); below zero, cheaper devices get more."""
    power: Weight = 0.0
    """Second head: log(power at full load)."""
    gain: Annotated[float, Range(0, 4)] = 0.0
    """Both heads: what a device saves against what its synchronisation costs; a soft mask against the useless."""
    mix: Annotated[float, Range(0, 1)] = 0.0
    """Weight of the second head; 0: the first alone."""
    temperature: Annotated[float, Range(0.5, 4.0, log=True)] = 1.0
    rounds: Annotated[int, Range(1, 12)] = 6

    def allocate(self, view: View) -> Plan:
        """The batch attends to the devices, in rounds.

        Raises:
            Infeasible: the batch does not fit.
        """
        keys = Keys.of(view)
        amounts = attend(keys, self.queries(), np.array([1 - self.mix, self.mix]), self.temperature, self.rounds)
        return round_shares(keys.view, amounts.tolist())

    def queries(self) -> Floats:
        """(heads, keys and the load)."""
        first = {name: getattr(self, name) for name in ("peak", "bandwidth", "one", "whole", "gain")}
        second = {name: getattr(self, name) for name in ("memory", "link", "price", "power", "gain")}
        rows = [[each.get(name, 0.0) for name in KEYS] for each in (first, second)]
        return np.array([[*rows[0], self.load], [*rows[1], 0.0]])


def attend(keys: Keys, queries: Floats, mix: Floats, temperature: float, rounds: int) -> Floats:
    """Samples of each device (fractions) after some rounds of attention.

    Args:
        keys: of the devices.
        queries: (heads, keys and the load).
        mix: weights of the heads, which sum to 1.
        temperature: larger is closer to equal shares.
        rounds: at least 1; the first sees equal loads.
    """
    amounts = keys.equal()
    for _ in range(rounds):
        scores = (keys.values @ queries[:, :-1].T + keys.load(amounts)[:, None] * queries[:, -1]) / temperature
        amounts = keys.table.held(_softmax(scores + keys.mask[:, None]) @ mix)
    return amounts


def _softmax(scores: Floats) -> Floats:
    """By columns: (devices, heads)."""
    weights = np.exp(scores - scores.max(axis=0, keepdims=True))
    return np.asarray(weights / weights.sum(axis=0, keepdims=True), dtype=np.float64)
