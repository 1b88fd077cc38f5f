"""One pipeline: its micro-batches and recomputation are tried, its cuts come from a policy, the best plan is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..sim.device import GIB
from ..sim.noise import Floats
from ..sim.plan import Infeasible, Pipeline, Plan, PlanError, Replica, Stage
from ..sim.roofline import Recompute
from ..sim.spec import Scenario
from ..sim.view import View
from ._clock import Cuts, fitting, step_s
from ._stages import Chain, Label, labels_of

ALL_SIZES_UP_TO = 16
"""Samples up to which every micro-batch is tried; beyond that, powers of two and the most."""
SAME = 1e-9
"""Relative difference of steps that are the same: then fewer stages decide, and fewer micro-batches."""
MOST_PIECES = 2048
"""Of a step that is followed piece by piece; of longer ones a beginning is, and repeats itself."""

Place = tuple[tuple[int, ...], tuple[int, ...]]
"""Labels of the stages, and their bounds."""
Propose = Callable[[Chain, float], Sequence[Place]]
"""Cuts of a chain, whether they fit or not; the seconds are those of the best step so far."""


class Choice(NamedTuple):
    """A cut, and what its step takes."""

    step_s: float
    chain: Chain
    place: Place


def best_plan(view: View, propose: Propose, *, policy: str, micro_batch: int, schedule: str, recompute: str) -> Plan:
    """The fastest plan of one pipeline, over the micro-batches and the cuts that are proposed for each.

    Args:
        view: its devices and workload.
        propose: gives the cuts to compare.
        policy: its name, for errors.
        micro_batch: the largest; 0: all that :func:`sizes` says.
        schedule: ``1f1b`` or ``gpipe``.
        recompute: ``auto`` is none, or selective, or full: the first with which any cut fits.

    Raises:
        Infeasible: nothing fits into memory.
    """
    if micro_batch < 0:
        raise Infeasible(f"policy.{policy}.micro_batch", f"is {micro_batch}", "at least 1, or 0 for a search")
    labels = labels_of(view)
    ways: list[Recompute] = ["none", "selective", "full"]
    for way in ways if recompute == "auto" else [each for each in ways if each == recompute]:
        chains = [Chain(view, labels, each, schedule=schedule, recompute=way) for each in sizes(view, micro_batch)]
        found: list[Choice] = []
        for chain in chains:
            found += weighed(chain, propose(chain, min((each.step_s for each in found), default=math.inf)))
        if found:
            return plan_of(_best(found))
    raise _nothing(view, chains[0], propose(chains[0], math.inf), policy)


def sizes(view: View, micro_batch: int) -> list[list[int]]:
    """Lists of micro-batches to try, the most first: sizes that differ by at most one, the larger first."""
    batch = view.global_batch
    most = min(batch, view.workload.max_micro_batch or batch, micro_batch or batch)
    if micro_batch:
        wanted = [most]
    elif most <= ALL_SIZES_UP_TO:
        wanted = list(range(1, most + 1))
    else:
        wanted = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    counts = dict.fromkeys(-(-batch // size) for size in wanted)
    return [evenly(batch, count) for count in counts]


def evenly(total: int, parts: int) -> list[int]:
    """A total in parts that differ by at most one, the larger ones first."""
    size, over = divmod(total, parts)
    return [size + 1] * over + [size] * (parts - over)


def weighed(chain: Chain, places: Sequence[Place]) -> Iterator[Choice]:
    """The places that fit, each with its estimated step; those of equally many stages are followed together."""
    by_stages: dict[int, list[Place]] = {}
    for place in dict.fromkeys(places):
        by_stages.setdefault(len(place[0]), []).append(place)
    for alike in by_stages.values():
        cuts = Cuts.of([each[0] for each in alike], [each[1] for each in alike])
        fits = fitting(chain, cuts)
        kept = [place for place, fit in zip(alike, fits, strict=True) if fit]
        if kept:
            times = estimated_s(chain, cuts.only(fits)).tolist()
            yield from (Choice(seconds, chain, place) for seconds, place in zip(times, kept, strict=True))


def estimated_s(chain: Chain, cuts: Cuts) -> Floats:
    """The step of some cuts: piece by piece, or where these are very many from how the first ones go on."""
    stages, count = cuts.stages, chain.count
    if 2 * stages * count <= MOST_PIECES or count <= 4 * stages + 1:
        return step_s(chain, cuts)
    short, long = (step_s(_beginning(chain, number), cuts) for number in (2 * stages, 4 * stages))
    rest = sum(chain.sizes[4 * stages :]) / (chain.sizes[0] * 2 * stages)
    return np.asarray(long + rest * (long - short), dtype=np.float64)


def _beginning(chain: Chain, count: int) -> Chain:
    """The same with so many of its first micro-batches."""
    alike = [chain.sizes[0]] * count
    return Chain(chain.view, chain.labels, alike, schedule=chain.schedule, recompute=chain.recompute)


def _best(found: Sequence[Choice]) -> Choice:
    least = min(each.step_s for each in found)
    near = [each for each in found if each.step_s <= least * (1 + SAME)]
    return min(near, key=lambda each: (len(each.place[0]), each.chain.count, each.place))


def plan_of(choice: Choice) -> Plan:
    """The plan of a cut: its labels become devices, in the order of the labels' names."""
    chain, (order, bounds) = choice.chain, choice.place
    names = [iter(label.names) for label in chain.labels]
    stages = [
        Stage(first=first, last=last, replicas=[Replica(devices=[next(names[label])])], recompute=chain.recompute)
        for label, first, last in zip(order, bounds, bounds[1:], strict=False)
    ]
    pipeline = Pipeline(stages=stages, micro_batches=list(chain.sizes))
    # A pipeline of one stage has no schedule: left at the plan's default, it equals other policies' plans.
    kind = {"schedule": chain.schedule} if len(stages) > 1 else {}
    return Plan.model_validate({"pipelines": [pipeline], **kind})


def flat(labels: Sequence[Label]) -> list[int]:
    """The label of each device, in the order of the labels."""
    return [number for number, label in enumerate(labels) for _ in label.names]


def _nothing(view: View, chain: Chain, places: Sequence[Place], policy: str) -> Infeasible:
    """Why nothing fits: what is wrong with the one cut that there is, or how much is too much."""
    if len(set(places)) == 1:
        plan = plan_of(Choice(0.0, chain, places[0]))
        try:
            plan.check(Scenario(name=policy, cluster=view.cluster, workload=view.workload))
        except PlanError as error:
            return Infeasible(error.path, error.problem, error.mend)
    states, room = chain.room.states[0, -1] / GIB, sum(device.memory_bytes for device in view.devices) / GIB
    problem = (
        f"no cut of {chain.layers} layers fits the memory of {len(view.devices)} devices: weights, gradients and "
        f"optimizer states take {states:.4g} GiB, all devices have {room:.4g} GiB, and micro-batches of "
        f"{chain.sizes[0]} are in flight (recompute {chain.recompute})"
    )
    return Infeasible("workload.model", problem, "more or larger devices, micro_batch = 1, or recompute full")
