"""Attention that places layers: one after the other, each masks what is full, and a pipeline comes of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ..sim import memory
from ..sim.estimate import Estimator
from ..sim.noise import Floats
from ..sim.plan import Infeasible, Pipeline, Plan, Replica, Stage
from ..sim.times import layer_times
from ..sim.view import View
from ._base import Range, canonical
from ._stages import room_of
from .attention import Weight, attention

SHARES = (0.75, 0.5, 0.25)
"""Of the devices, that a head looks at: the fastest."""
FULL = 1e-3
"""The logarithm of what is left of a device's share goes no lower."""


@dataclass(frozen=True, kw_only=True)
class AttentionLayers:
    """Layers, in order, attend to devices: by speed, by what is left of a fair share, and to where the last one went.

    A device that a stage has left, or whose memory is full, is masked; so the stages are runs of layers, and the plan
    is one pipeline. Several heads look at fewer devices and other micro-batches each, and the plan with the least
    estimated step is taken. It is greedy: a cut by dynamic programming is never slower by the estimate.
    """

    name: ClassVar[str] = "attention-layers"
    source: ClassVar[str] = "greedy pointing with masks (Vinyals et al. 2015, Pointer Networks, arXiv 1506.03134)"
    rigid: ClassVar[bool] = True

    speed: Weight = 1.0
    """Weight of the key log(1 / the layer's time on the device)."""
    load: Annotated[float, Range(0, 4)] = 1.0
    """Weight of the key log(what is left of the device's share of all work)."""
    memory: Weight = 0.0
    """Weight of the key log(memory)."""
    stay: Annotated[float, Range(0, 8)] = 3.0
    """Added for the device of the layer before: a stage ends once all but exp(-stay) of a share is used."""
    temperature: Annotated[float, Range(0.25, 4.0, log=True)] = 1.0
    """Of the softmax over speeds that the shares of the work come from."""
    micro_batches: Annotated[int, Range(1, 256, log=True)] = 8
    """Least number of them: other heads take twice, four times, ... as many."""
    heads: Annotated[int, Range(1, 32)] = 12
    """Walks over the layers at most: over all devices, and over fewer of the fastest."""

    def allocate(self, view: View) -> Plan:
        """One pipeline, 1F1B, over as many devices as there is work for.

        Raises:
            Infeasible: some layer fits on no device that is left, or there are fewer samples than micro-batches.
        """
        view = canonical(view)
        found: list[Plan] = []
        refusal: Infeasible | None = None
        for devices, count in itertools.islice(self._looks(view), self.heads):
            try:
                found.append(self._walked(view.among(range(devices)), self._sizes(view, count)))
            except Infeasible as reason:  # the first says why, if no other head has a plan
                refusal = refusal or reason
        if not found:
            assert refusal is not None, "there is at least one head"
            raise refusal
        estimator = Estimator(view)
        return min(found, key=lambda plan: estimator.of(plan).step_s)

    def _looks(self, view: View) -> Iterator[tuple[int, int]]:
        """How many of the fastest devices a head sees, and how many micro-batches it makes: the simplest first."""
        most = len(view.devices)
        some = sorted({most, *(max(1, round(most * share)) for share in SHARES)}, reverse=True)
        for times in (1, 4, 2, 8):
            for devices in some:
                yield devices, self.micro_batches * times

    def _walked(self, view: View, sizes: list[int]) -> Plan:
        placed = self._places(view, max(sizes), len(sizes))
        cuts = [0, *(layer for layer in range(1, len(placed)) if placed[layer] != placed[layer - 1]), len(placed)]
        stages = [
            Stage(first=first, last=last, replicas=[Replica(devices=[view.devices[placed[first]].name])])
            for first, last in itertools.pairwise(cuts)
        ]
        kind = {"schedule": "1f1b"} if len(stages) > 1 else {}
        plan = Plan.model_validate({"pipelines": [Pipeline(stages=stages, micro_batches=sizes)], **kind})
        wrong = memory.check(view.workload, view.cluster.by_name, plan)
        if wrong is not None:
            raise Infeasible(*wrong)
        return plan

    def _sizes(self, view: View, wanted: int) -> list[int]:
        """The sizes of the micro-batches: as many as wanted, more where the workload's limit asks for it."""
        batch, largest = view.global_batch, view.workload.max_micro_batch
        count = min(batch, max(wanted, -(-batch // largest) if largest else 1))
        size, over = divmod(batch, count)
        return [size + 1] * over + [size] * (count - over)

    def _places(self, view: View, size: int, count: int) -> list[int]:
        """The number of a device for each layer."""
        by_name = view.cluster.by_name
        tables = [layer_times(by_name[device.name], view.workload, size) for device in view.devices]
        seconds = np.maximum(np.array([each.forward_s + each.backward_s for each in tables]), 1e-30)
        memories = np.array([device.memory_bytes for device in view.devices])
        # As many in flight as there may be stages: a later one holds fewer.
        need = room_of(view.workload, "none").need(size * min(count, len(memories)), size)
        keys = np.column_stack([-np.log(seconds), np.log(memories)[:, None]])
        speeds = keys[:, :-1].mean(axis=1, keepdims=True)
        shares = attention(np.array([[self.speed or 1.0]]), speeds, self.temperature, np.zeros(len(memories)))[0]
        work = (seconds / seconds.sum(axis=1, keepdims=True)).mean(axis=0)
        queries = np.array([self.speed, self.memory])
        return self._walk(keys @ self._features(queries, seconds.shape[1]), work, shares, (need, memories))

    def _features(self, queries: Floats, layers: int) -> Floats:
        """(keys, layers): each layer looks at its own speed, and at the memory."""
        return np.vstack([queries[0] * np.eye(layers), np.full((1, layers), queries[1])])

    def _walk(self, scores: Floats, work: Floats, shares: Floats, room: tuple[Floats, Floats]) -> list[int]:
        """Layer by layer to the device with the highest score (scores: devices, layers) among those that are open."""
        need, memories = room
        shares = np.maximum(shares, 1e-12)
        used, closed = np.zeros(len(shares)), np.zeros(len(shares), dtype=bool)
        placed: list[int] = []
        first = 0
        for layer, amount in enumerate(work):
            here = placed[-1] if placed else -1
            left = np.log(np.maximum(1 - (used + amount / 2) / shares, FULL))
            starts = [first if number == here else layer for number in range(len(shares))]
            full = need[starts, layer + 1] > memories
            row = scores[:, layer] + self.load * left + np.where(np.arange(len(shares)) == here, self.stay, 0.0)
            row = np.where(closed | full, -math.inf, row)
            chosen = int(row.argmax())
            if row[chosen] == -math.inf:
                raise Infeasible(
                    "workload.model", f"layer {layer} fits on no device that is left", "use smaller micro-batches"
                )
            if chosen != here:
                closed[here] |= here >= 0
                first = layer
            used[chosen] += amount
            placed.append(chosen)
        return placed
