"""Cuts: one pipeline over all devices, its layers divided equally, by FLOPs, or by the exact dynamic programme."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np

from ..sim.plan import Infeasible, Plan
from ..sim.roofline import Identity
from ..sim.view import View
from ..sim.workload import Workload
from ._base import Choice, Range
from ._clock import Cuts, fitting, least_s
from ._orders import Cut, along, best_cuts, count_sequences, every_order, sequences, states
from ._pipeline import Place, best_plan, estimated_s, evenly, flat, weighed
from ._stages import Chain
from .grid import equal_cuts

ALL_CUTS_UP_TO = 20_000
"""Cuts and orders of one list of micro-batches that are all followed piece by piece."""
ALL_ORDERS_UP_TO = 20_000_000
"""Sums of one programme over all orders; beyond that, orders are improved step by step."""
TRIED = 120
"""Orders that are tried where there are too many."""
TRIED_WORK = 10_000_000
"""Sums of one programme over all the orders that a local search tries."""
HOPELESS = 1.2
"""First orders that are slower than so many times the best step of other micro-batches are not improved."""
SHARES = (1.0, 0.5, 0.0)
"""Loads of messages with 1F1B that the programme is run for; the clock decides between its answers."""
FOLLOWED = 8
"""Cuts of the programme that are followed piece by piece."""


@dataclass(frozen=True, kw_only=True)
class _InOrder(ABC):
    """One stage per device, the fastest first; what the cuts are is the policy's."""

    name: ClassVar[str]
    rigid: ClassVar[bool] = True

    # Not searched: more stages than devices or layers do not exist.
    stages: int = 0
    """Stages; 0: as many as devices and layers make."""
    micro_batch: Annotated[int, Range(0, 65_536)] = 0
    """Largest micro-batch; 0: the one with the shortest estimated step."""
    schedule: Annotated[str, Choice("1f1b", "gpipe")] = "1f1b"
    recompute: Annotated[str, Choice("auto", "none", "selective", "full")] = "auto"
    """What the backward pass computes again; auto: nothing, or as little as lets the stages fit."""

    def allocate(self, view: View) -> Plan:
        """The pipeline over the view's devices.

        Raises:
            Infeasible: too many stages are asked for, or a stage does not fit into its device.
        """
        layers = len(view.workload.layers)
        most = min(len(view.devices), layers)
        if not 0 <= self.stages <= most:
            problem = f"is {self.stages}, with {len(view.devices)} devices and {layers} layers"
            raise Infeasible(f"policy.{self.name}.stages", problem, f"from 1 to {most}, or 0 for {most}")
        stages = self.stages or most
        bounds = self._bounds(view, stages)

        def propose(chain: Chain, best_s: float) -> list[Place]:
            return [(tuple(flat(chain.labels)[:stages]), tuple(bounds))]

        return best_plan(
            view,
            propose,
            policy=self.name,
            micro_batch=self.micro_batch,
            schedule=self.schedule,
            recompute=self.recompute,
        )

    @abstractmethod
    def _bounds(self, view: View, stages: int) -> list[int]:
        """Where the layers are cut: from 0 to their number."""


@dataclass(frozen=True, kw_only=True)
class CutUniform(_InOrder):
    """Cut the model into one stage per device, of equally many layers; the fastest devices come first."""

    name: ClassVar[str] = "cut-uniform"
    source: ClassVar[str] = "equal layers per stage, as in GPipe's experiments (Huang et al. 2019; recalled)"

    def _bounds(self, view: View, stages: int) -> list[int]:
        return equal_layers(len(view.workload.layers), stages)


@dataclass(frozen=True, kw_only=True)
class CutFlops(_InOrder):
    """Cut the model into one stage per device, of as equal FLOPs as can be; the fastest devices come first."""

    name: ClassVar[str] = "cut-flops"
    source: ClassVar[str] = "contiguous partition with the least largest part, by bisection"

    def _bounds(self, view: View, stages: int) -> list[int]:
        return equal_cuts(flops(view), stages)


def flops(view: View) -> list[int]:
    """FLOPs of each layer for one sample, forward and backward."""
    return list(_flops(Identity(view.workload)))


@lru_cache(maxsize=64)
def _flops(key: Identity) -> tuple[int, ...]:
    workload = key.value
    assert isinstance(workload, Workload)
    tokens = workload.sequence_length
    return tuple(round(layer.forward_flops(tokens) + layer.backward_flops(tokens)) for layer in workload.layers)


def equal_layers(layers: int, stages: int) -> list[int]:
    """Bounds of stages of as equally many layers as can be, the larger ones first."""
    return [0, *itertools.accumulate(evenly(layers, stages))]


@dataclass(frozen=True, kw_only=True)
class CutExact:
    """Cut the model over unequal devices, in the best order and within their memory, leaving out who does not help.

    Optimal, for every micro-batch that is tried, in the closed-form step of :mod:`._orders`, over all orders and
    subsets of the devices while these are few (eight unlike ones, or many of few kinds), else over those that a local
    search reaches. Its best cuts (with 1F1B, for several loads of messages) are then followed piece by piece; so is
    every cut at all where these are few, and then the plan is optimal in the step that the engine simulates (links
    without contention, no noise).
    """

    name: ClassVar[str] = "cut-exact"
    source: ClassVar[str] = "dynamic programme over layers x sets of devices (as Held and Karp 1962; recalled)"
    rigid: ClassVar[bool] = True

    micro_batch: Annotated[int, Range(0, 65_536)] = 0
    """Largest micro-batch; 0: the one with the shortest estimated step."""
    schedule: Annotated[str, Choice("1f1b", "gpipe")] = "1f1b"
    recompute: Annotated[str, Choice("auto", "none", "selective", "full")] = "auto"
    """What the backward pass computes again; auto: nothing, or as little as lets the stages fit."""
    leave_out: Annotated[bool, Choice(False, True)] = True
    """Whether devices may be left out; else each has a stage, so far as there are layers."""

    def allocate(self, view: View) -> Plan:
        """The pipeline over the view's devices.

        Raises:
            Infeasible: no cut fits into the devices' memory.
        """
        return best_plan(
            view,
            self._propose,
            policy=self.name,
            micro_batch=self.micro_batch,
            schedule=self.schedule,
            recompute=self.recompute,
        )

    def _propose(self, chain: Chain, best_s: float) -> list[Place]:
        counts = [len(label.names) for label in chain.labels]
        most = min(sum(counts), chain.layers)
        least = 1 if self.leave_out else most
        places = _equal(chain, least, most)
        if _many(chain, counts) and bound_s(chain) > HOPELESS * best_s:
            return places
        for share in SHARES if chain.schedule == "1f1b" else SHARES[:1]:
            limit = best_s if share == SHARES[0] else 0.0
            found = programmed(chain.loaded(share), counts, least=least, most=most, best_s=limit)
            places += [(cut.order, cut.bounds) for cut in found[:FOLLOWED]]
        return places + followed(chain, counts, places, range(least, most + 1), best_s)


def _equal(chain: Chain, least: int, most: int) -> list[Place]:
    """Equal layers and equal FLOPs: the programme's cuts should not be worse, once followed piece by piece."""
    everybody, found = flat(chain.labels), []
    for stages in range(max(least, most - 1), most + 1):
        for bounds in (equal_layers(chain.layers, stages), equal_cuts(flops(chain.view), stages)):
            found.append((tuple(everybody[:stages]), tuple(bounds)))
    return found


def programmed(chain: Chain, counts: Sequence[int], *, least: int, most: int, best_s: float = math.inf) -> list[Cut]:
    """The programme's cuts over all orders, or over those that a local search reaches; the best first."""
    if not _many(chain, counts):
        orders = every_order(counts, most, apart=chain.apart, least=least)
        if orders.work(chain.layers) <= ALL_ORDERS_UP_TO:
            return best_cuts(chain, orders)
    return improved(chain, counts, least=least, most=most, best_s=best_s)


def _many(chain: Chain, counts: Sequence[int]) -> bool:
    """Whether there are so many orders that their programme is not even counted."""
    return states(counts, apart=True) * (chain.layers + 1) ** 2 > 16 * ALL_ORDERS_UP_TO


def bound_s(chain: Chain) -> float:
    """No cut over any order of any devices has a shorter closed-form step.

    The stages' seconds are at least each layer's on the device that is fastest with it. The largest load is at least
    that of layers dealt in parts: for any weights y of the devices that sum to 1, the sum over the layers of the least
    y x seconds (duality of linear programming); here y is as the devices' speeds are with the whole model.
    """
    times = np.array([np.diff(chain.passes(label)[0]) for label in range(len(chain.labels))])
    rates = 1 / times.sum(axis=1)
    weights = rates / sum(rate * len(label.names) for rate, label in zip(rates, chain.labels, strict=True))
    load = float((weights[:, None] * times).min(axis=0).sum())
    return float(times.min(axis=0).sum()) + (chain.count - 1) * load


def improved(chain: Chain, counts: Sequence[int], *, least: int, most: int, best_s: float = math.inf) -> list[Cut]:
    """Cuts of the best order that is found from a few first ones by exchanging and leaving out devices.

    No more is tried where the first ones are far from ``best_s``, the step of another list of micro-batches.
    """
    known: dict[tuple[int, ...], float] = {}

    def judged(order: tuple[int, ...], below: float) -> float:
        """Its least step; endless where that is known to be no shorter than ``below``."""
        if order not in known:
            found = best_cuts(chain, along(order), below)
            known[order] = found[0].step_s(chain.count) if found else math.inf
        return known[order]

    best_step, first = math.inf, list(dict.fromkeys(_first_orders(chain, least, most)))
    for order in first:
        best_step = min(best_step, judged(order, best_step))
    best = min(order for order in first if known[order] == best_step)
    better = best_step < HOPELESS * best_s
    most_tried = min(TRIED, len(known) + TRIED_WORK // along(best).work(chain.layers))
    while better and len(known) < most_tried:
        better = False
        for order in _neighbours(best, counts, least):
            if len(known) >= most_tried:
                break
            step = judged(order, best_step)
            if step < best_step * (1 - 1e-9):
                best_step, best, better = step, order, True
                break
    return best_cuts(chain, along(best))


def _first_orders(chain: Chain, least: int, most: int) -> Iterator[tuple[int, ...]]:
    """Machine by machine, by memory, and by speed; of fewer stages, the fastest devices."""
    everybody = flat(chain.labels)
    whole_s = [float(chain.passes(label)[0, -1]) for label in range(len(chain.labels))]
    by_speed = sorted(everybody, key=lambda label: whole_s[label])
    stages = most
    while stages >= least:
        kept = sorted(by_speed[:stages])
        yield tuple(kept)
        yield tuple(reversed(kept))
        yield tuple(sorted(kept, key=lambda label: -chain.labels[label].device.memory_bytes))
        yield tuple(by_speed[:stages])
        stages = stages * 3 // 4 if stages > 2 else stages - 1


def _neighbours(order: tuple[int, ...], counts: Sequence[int], least: int) -> Iterator[tuple[int, ...]]:
    """One device less; another in its place; two exchanged, the nearest first."""
    if len(order) > least:
        yield from dict.fromkeys(order[:place] + order[place + 1 :] for place in range(len(order)))
    for place, label in itertools.product(range(len(order)), range(len(counts))):
        if order.count(label) < counts[label] and label != order[place]:
            yield (*order[:place], label, *order[place + 1 :])
    for far in range(1, len(order)):
        for place in range(len(order) - far):
            if order[place] != order[place + far]:
                changed = list(order)
                changed[place], changed[place + far] = changed[place + far], changed[place]
                yield tuple(changed)


def followed(
    chain: Chain, counts: Sequence[int], known: Sequence[Place], stages: Sequence[int], best_s: float
) -> list[Place]:
    """Of all cuts and orders, where these are few: the fastest of each number of stages, piece by piece.

    None that is slower than what is known, or than the best step of other micro-batches.
    """
    bounds = {number: math.comb(chain.layers - 1, number - 1) for number in stages}
    if sum(count_sequences(counts, number) * ways for number, ways in bounds.items()) > ALL_CUTS_UP_TO:
        return []
    best = min([best_s, *(each.step_s for each in weighed(chain, known))])
    found: list[Place] = []
    for number in stages:
        cuts = _every_cut(chain, counts, number)
        cuts = cuts.only(fitting(chain, cuts))
        cuts = cuts.only(least_s(chain, cuts) <= best)
        if len(cuts):
            seconds = np.asarray(estimated_s(chain, cuts))
            first = int(seconds.argmin())
            best = min(best, float(seconds[first]))
            found.append((tuple(cuts.labels[first].tolist()), tuple(cuts.bounds[first].tolist())))
    return found


def _every_cut(chain: Chain, counts: Sequence[int], stages: int) -> Cuts:
    orders = np.array(list(sequences(counts, stages)), dtype=np.intp)
    inner = itertools.combinations(range(1, chain.layers), stages - 1)
    bounds = np.array([(0, *each, chain.layers) for each in inner], dtype=np.intp)
    return Cuts(np.repeat(orders, len(bounds), axis=0), np.tile(bounds, (len(orders), 1)))
