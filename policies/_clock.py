"""Clock: the simulated step of many cuts of one chain at once, by the recurrence that the engine follows.

Every piece of work of a pipeline starts when its worker and its message are there; links carry one message at a time.
So long as no two links share a wire, and no layer's output skips a stage, these are the engine's own seconds (tested).
Cuts of equally many stages do the same pieces in the same order: their clocks are arrays, and advance together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..sim import footprint
from ..sim.cost import LEAST_S
from ..sim.noise import Floats
from ..sim.schedule import Kind
from ._stages import Chain, Ways
from ._waves import Wave, waves_of

Places = NDArray[np.intp]
STEPS = 2
"""The first step starts with all devices at rest; from the second on they are as the step before left them."""


class Cuts:
    """Many cuts of equally many stages: labels and bounds, one row each."""

    def __init__(self, labels: Places, bounds: Places) -> None:
        self.labels, self.bounds = labels, bounds
        self.stages = labels.shape[1]

    @classmethod
    def of(cls, orders: Sequence[Sequence[int]], bounds: Sequence[Sequence[int]]) -> Cuts:
        """The cuts of some orders (labels of the stages) and bounds (one more each)."""
        return cls(np.array(orders, dtype=np.intp), np.array(bounds, dtype=np.intp))

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, chosen: NDArray[np.bool_]) -> Cuts:
        """Some of them."""
        return Cuts(self.labels[chosen], self.bounds[chosen])


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of some cuts: per size of micro-batch and stage (or bound between stages), one number per cut."""

    forward_s: list[list[Floats]]
    backward_s: list[list[Floats]]
    ways: list[list[Ways]]
    update_s: list[Floats]
    waits: list[NDArray[np.bool_]]
    """Per stage, whether its device cannot compute while it sends."""
    ties: list[tuple[Places, Places, Floats]]
    """Stages that have copies of one layer, and seconds of their all-reduce."""


def fitting(chain: Chain, cuts: Cuts) -> NDArray[np.bool_]:
    """Which cuts fit into memory."""
    found = np.ones(len(cuts), dtype=bool)
    for stage in range(cuts.stages):
        behind = cuts.stages - 1 - stage
        found &= _by_label(cuts, stage, lambda label, behind=behind: chain.fits(label, behind)).astype(bool)
    return found


def costs(chain: Chain, cuts: Cuts) -> Costs:
    """What every stage of some cuts takes."""
    sizes, stages = [size for size, _ in chain.shares], range(cuts.stages)
    forward = [
        [_by_label(cuts, k, lambda label, n=n: _spread(chain.times(label, n).forward_sums)) for k in stages]
        for n in sizes
    ]
    backward = [
        [_by_label(cuts, k, lambda label, n=n: _spread(chain.times(label, n).backward_sums)) for k in stages]
        for n in sizes
    ]
    return Costs(
        forward_s=forward,
        backward_s=backward,
        ways=[[_ways(chain, cuts, k, n) for k in stages[:-1]] for n in sizes],
        update_s=[_by_label(cuts, k, lambda label: chain.times(label, sizes[0]).updates) for k in stages],
        waits=[np.array([not chain.overlaps(label) for label in cuts.labels[:, k].tolist()]) for k in stages],
        ties=_ties(chain, cuts),
    )


def step_s(chain: Chain, cuts: Cuts) -> Floats:
    """Seconds of a step of every cut, once steps follow each other."""
    clock = _Clock(chain, cuts, costs(chain, cuts))
    ends = [clock.step() for _ in range(STEPS)]
    return np.maximum(ends[-1] - ends[-2], LEAST_S)


def least_s(chain: Chain, cuts: Cuts) -> Floats:
    """No step takes less: a device's own work, and what passes before the first piece reaches it and after the last."""
    found, ahead = np.zeros(len(cuts)), np.zeros(len(cuts))
    for stage in range(cuts.stages):
        passes = _by_label(cuts, stage, chain.passes)
        updates = _by_label(cuts, stage, lambda label: chain.times(label, chain.sizes[0]).updates)
        found = np.maximum(found, ahead + chain.count * passes + (updates if stage == 0 else 0.0))
        smallest = chain.sizes[-1]
        ahead = ahead + _by_label(cuts, stage, lambda label, n=smallest: chain.times(label, n).passes)
    return found


class _Clock:
    """The clocks of all stages of all cuts, step by step."""

    def __init__(self, chain: Chain, cuts: Cuts, seconds: Costs) -> None:
        stages, count = cuts.stages, len(cuts)
        sizes = [size for size, _ in chain.shares]
        kind: Kind = "gpipe" if chain.schedule == "gpipe" and stages > 1 else "1f1b"
        self.waves = waves_of(kind, stages, chain.count)
        self.classes = np.array([sizes.index(size) for size in chain.sizes], dtype=np.intp)
        self.seconds, self.every = seconds, np.arange(count)
        self.work_s = np.array([seconds.forward_s, seconds.backward_s])
        """(direction, size, stage, cut)."""
        links = max(stages - 1, 1)
        ways = np.array(seconds.ways).reshape(len(sizes), stages - 1, 2, 2, count)
        alone, busy = np.moveaxis(ways, (3, 2), (0, 1))
        self.busy_s, self.latency_s = busy, alone - busy
        """(direction, size, link, cut)."""
        self.waits = np.array(seconds.waits)
        self.waiting = bool(self.waits.any())
        self.clocks = np.zeros((stages, count))
        self.free = np.zeros((2, links, count))
        self.arrived = np.zeros((self.waves.room, count))

    def step(self) -> Floats:
        """One step; when it is over."""
        for wave in self.waves.waves:
            self._do(wave)
        self._synchronise()
        return np.asarray(self.clocks.max(axis=0), dtype=np.float64)

    def _do(self, wave: Wave) -> None:
        size = self.classes[wave.micro_batch]
        clock = self.clocks[wave.stage]
        if len(wave.receives):
            clock[wave.receives] = np.maximum(clock[wave.receives], self.arrived[wave.received])
        clock += self.work_s[wave.backward, size, wave.stage]
        if len(wave.sends):
            back, stage, size = wave.backward[wave.sends], wave.stage[wave.sends], size[wave.sends]
            link = stage - back
            free = np.maximum(self.free[back, link], clock[wave.sends]) + self.busy_s[back, size, link]
            self.free[back, link] = free
            self.arrived[wave.sent] = free + self.latency_s[back, size, link]
            if self.waiting:
                clock[wave.sends] = np.where(self.waits[stage], free, clock[wave.sends])  # until it has left
        self.clocks[wave.stage] = clock

    def _synchronise(self) -> None:
        """Gradients of tied layers, then the optimizer."""
        for one, other, seconds in self.seconds.ties:
            end = np.maximum(self.clocks[one, self.every], self.clocks[other, self.every]) + seconds
            far = one != other
            for places in (one, other):
                self.clocks[places[far], self.every[far]] = end[far]
        for stage, update_s in enumerate(self.seconds.update_s):
            self.clocks[stage] += update_s


def _spread(sums: Floats) -> Floats:
    return sums[None, :] - sums[:, None]


def _by_label(cuts: Cuts, stage: int, table: object) -> Floats:
    """Per cut, the entry of its stage in the table (over first and last layer) of the stage's label."""
    assert callable(table)
    found = np.zeros(len(cuts))
    labels, first, last = cuts.labels[:, stage], cuts.bounds[:, stage], cuts.bounds[:, stage + 1]
    for label in np.unique(labels).tolist():
        here = labels == label
        found[here] = table(label)[first[here], last[here]]
    return found


def _ways(chain: Chain, cuts: Cuts, stage: int, size: int) -> Ways:
    """Messages between a stage and the next."""
    found = np.zeros((4, len(cuts)))
    for label, behind in np.unique(cuts.labels[:, stage : stage + 2], axis=0).tolist():
        here = (cuts.labels[:, stage] == label) & (cuts.labels[:, stage + 1] == behind)
        bounds = cuts.bounds[here, stage + 1]
        found[:, here] = [each[bounds] for each in chain.ways(label, behind, size)]
    return Ways(*found)


def _ties(chain: Chain, cuts: Cuts) -> list[tuple[Places, Places, Floats]]:
    """Per tied layer, the stages that have it and its original, and the seconds of their all-reduce."""
    found = []
    workload = chain.workload
    for tied, target in footprint.ties(workload):
        one, other = ((cuts.bounds[:, 1:] <= layer).sum(axis=1, dtype=np.intp) for layer in (tied, target))
        every = np.arange(len(cuts))
        pairs = np.stack([cuts.labels[every, one], cuts.labels[every, other]], axis=1)
        size = workload.shard_parameters(target, target + 1, 1) * workload.element_bytes
        seconds = np.zeros(len(cuts))
        for pair in np.unique(pairs, axis=0).tolist():
            seconds[(pairs == pair).all(axis=1)] = chain.reduce_s(pair[0], pair[1], size)
        found.append((one, other, np.where(one == other, 0.0, seconds)))
    return found
