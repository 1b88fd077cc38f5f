"""Moving: what it costs to go from one plan to another in the midst of a run.

Every device must hold the weights and optimizer states of its part of its layers before the first step of the new plan
(gradients and activations are made anew). What it does not hold already comes from a device that does, over the links;
what no living device holds comes from storage, where the states of the last step are taken to be: a run that writes
checkpoints less often would have to repeat steps besides. All transfers flow at once, and take as long as the busiest
link and the longest of them: a closed form, no schedule of transfers. Of a layer on several tensor-parallel devices,
what they all hold is counted as if it were divided too; copies of tied weights are left out.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from . import footprint
from .device import Cluster
from .disturbances import Rebalance
from .network import network_of
from .plan import Plan
from .workload import OPTIMIZER_STATES, Workload

LEAST = 1e-12
"""Shares of a layer that are rounding."""
Span = tuple[float, float]
"""From and to which share of the parameters of some layers."""


class Held(NamedTuple):
    """What a device holds of some layers."""

    weights: Span
    states: Span


@dataclass(frozen=True, slots=True)
class Change:
    """The price of going from one plan to another."""

    pause_s: float = 0.0
    restart_s: float = 0.0
    """Nothing where every device goes on to hold what it holds."""
    moving_s: float = 0.0
    moved_bytes: float = 0.0
    """Over the links."""
    restored_bytes: float = 0.0
    """From storage: what no living device held."""

    @property
    def seconds(self) -> float:
        """All that the training stands still."""
        return self.pause_s + self.restart_s + self.moving_s


def change(
    cluster: Cluster, workload: Workload, old: Plan | None, new: Plan, *, rules: Rebalance, storage: float
) -> Change:
    """What going from a plan to another costs.

    Args:
        cluster: the devices alive; what others held is gone.
        workload: whose states are moved.
        old: the plan so far; None: the run begins, which costs nothing.
        new: the plan to come.
        rules: what a change costs beside moving.
        storage: bytes per second that all devices together read.
    """
    if old is None or old.sha256 == new.sha256:
        return Change()
    stages = [stage for plan in (old, new) for pipeline in plan.pipelines for stage in pipeline.stages]
    bounds = sorted({bound for stage in stages for bound in (stage.first, stage.last)})
    before, after = _holdings(old, bounds), _holdings(new, bounds)
    if before == after:
        return Change(pause_s=rules.pause_s)
    alive = {name: parts for name, parts in before.items() if name in cluster.by_name}
    traffic, restored = _traffic(cluster, workload, bounds, alive, after)
    seconds = _flow_s(cluster, traffic) + restored / storage
    return Change(rules.pause_s, rules.restart_s, seconds, sum(traffic.values()), restored)


def _holdings(plan: Plan, bounds: Sequence[int]) -> dict[str, dict[int, Held]]:
    """Per device, what it holds of each run of layers between two bounds."""
    peers: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for pipeline in plan.normalize().pipelines:
        for stage in pipeline.stages:
            for part in range(bisect.bisect_left(bounds, stage.first), bisect.bisect_left(bounds, stage.last)):
                for replica in stage.replicas:
                    for rank, name in enumerate(replica.devices):
                        peers[part, len(replica.devices), rank].append(name)
    found: dict[str, dict[int, Held]] = defaultdict(dict)
    for (part, degree, rank), names in peers.items():
        whole = rank / degree, (rank + 1) / degree
        for name, shard in zip(names, _shards(plan, names, whole), strict=True):
            found[name][part] = Held(shard if plan.zero == 3 else whole, shard if plan.zero else whole)
    return dict(found)


def _shards(plan: Plan, names: Sequence[str], whole: Span) -> list[Span]:
    """What each of the holders of a part keeps of what ZeRO shards."""
    shares = [plan.state_shares.get(name, 0.0) if plan.state_shares else 1 / len(names) for name in names]
    low, high = whole
    return list(pairwise(accumulate((share * (high - low) for share in shares), initial=low)))


def _traffic(
    cluster: Cluster,
    workload: Workload,
    bounds: Sequence[int],
    before: dict[str, dict[int, Held]],
    after: dict[str, dict[int, Held]],
) -> tuple[dict[tuple[str, str], float], float]:
    """Bytes from device to device, and from storage."""
    sizes = [_sizes(workload, first, last) for first, last in pairwise(bounds)]
    holders: dict[tuple[int, int], list[tuple[str, Span]]] = defaultdict(list)
    for name in sorted(before):
        for part, held in before[name].items():
            for kind in (0, 1):
                holders[part, kind].append((name, held[kind]))
    traffic: dict[tuple[str, str], float] = defaultdict(float)
    loads: dict[str, float] = defaultdict(float)
    restored = 0.0
    for name in sorted(after):
        for part, held in sorted(after[name].items()):
            had = before.get(name, {}).get(part)
            for kind in (0, 1):
                for gap in _rest(held[kind], had[kind] if had else (0.0, 0.0)):
                    for source, share in _sources(cluster, name, gap, holders[part, kind], loads):
                        if source is None:
                            restored += share * sizes[part][kind]
                        else:
                            traffic[source, name] += share * sizes[part][kind]
                            loads[source] += share * sizes[part][kind]
    return {pair: size for pair, size in traffic.items() if size > 0}, restored


def _sizes(workload: Workload, first: int, last: int) -> tuple[float, float]:
    """Bytes of the weights and of the optimizer states of some layers."""
    parameters, trainable = footprint.parameters(workload, first, last, 1)
    element = workload.element_bytes
    states = 4 * OPTIMIZER_STATES[workload.optimizer] + (4 if element < 4 else 0)
    return element * parameters, states * trainable


def _rest(wanted: Span, had: Span) -> list[Span]:
    """What of a span another does not cover."""
    parts = [(wanted[0], min(wanted[1], had[0])), (max(wanted[0], had[1]), wanted[1])]
    if had[1] <= wanted[0] or wanted[1] <= had[0]:
        parts = [wanted]
    return [(low, high) for low, high in parts if high - low > LEAST]


def _sources(
    cluster: Cluster, name: str, gap: Span, holders: Sequence[tuple[str, Span]], loads: dict[str, float]
) -> Iterator[tuple[str | None, float]]:
    """Who sends a device how much of what it lacks: its own machine first, then whoever sends least; None: storage."""
    nodes, (low, high) = cluster.node_of, gap
    while high - low > LEAST:
        there = [(holder, span) for holder, span in holders if span[0] <= low + LEAST and span[1] > low + LEAST]
        if there:
            far = nodes[name]
            source, span = min(there, key=lambda each: (nodes[each[0]] != far, loads[each[0]], each[0]))
            until = min(high, span[1])
            yield source, until - low
        else:
            until = min([high, *(span[0] for _, span in holders if span[0] > low)])
            yield None, until - low
        low = until


def _flow_s(cluster: Cluster, traffic: dict[tuple[str, str], float]) -> float:
    """Seconds of transfers that flow at once: of the busiest link, or of the longest by itself."""
    network = network_of(cluster)
    busy: dict[int, float] = defaultdict(float)
    longest = latency = 0.0
    for (source, target), size in traffic.items():
        transfer = network.point_to_point(source, target, size)
        longest, latency = max(longest, transfer.alone_s), max(latency, transfer.latency_s)
        for resource, weight in transfer.uses:
            busy[resource] += transfer.volume_bytes * weight
    flowing = max((load / network.capacities[resource] for resource, load in busy.items()), default=0.0)
    return max(longest, latency + flowing)
