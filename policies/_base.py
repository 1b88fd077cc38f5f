"""What a policy is, in prose and in call order; and the annotations that make its fields a search space.

1. A policy is a frozen dataclass. Its fields are its hyper-parameters; each carries its default and, in an annotation,
   the range that a search may try: ``gamma: Annotated[float, Range(0, 2)] = 1.0``. A field without one is not searched.
2. ``name`` (a class variable) is what ``--policy`` takes; ``source`` says where the idea is from.
3. ``allocate(view)`` is called with a :class:`~steelyard.sim.view.View` and returns a plan. It is pure: equal views
   give equal plans. It must not read a clock, the environment, or a random generator that is not seeded from
   ``view.seed``.
4. Devices have no order: start with :func:`canonical` where places decide ties.
5. The plan must pass :meth:`~steelyard.sim.plan.Plan.check`. Where there is no valid plan, raise
   :class:`~steelyard.sim.plan.Infeasible` with the reason.

:func:`~steelyard.policies.testing.check_policy` tests all of this on generated scenarios.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sim.plan import Infeasible, Plan
from ..sim.view import View
from ._neighbours import places
from .ranking import ranks
from .surroundings import surroundings


@dataclass(frozen=True)
class Range:
    """A parameter between two numbers (both included), searched on a logarithmic scale if ``log``."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A parameter that takes one of some values."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)


@dataclass(frozen=True)
class Parameter:
    """One field of a policy: name, type, default, and its range if it may be searched."""

    name: str
    type: type
    default: Any
    space: Range | Choice | None


def parameters(policy: type) -> tuple[Parameter, ...]:
    """The hyper-parameters of a policy class, in the order of its fields; none where it is no dataclass."""
    if not dataclasses.is_dataclass(policy):
        return ()
    hints = typing.get_type_hints(policy, include_extras=True)
    result = []
    for field in dataclasses.fields(policy):
        hint = hints[field.name]
        spaces = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range | Choice)]
        base = getattr(hint, "__origin__", hint) if spaces else hint
        default = field.default if field.default is not dataclasses.MISSING else None
        result.append(Parameter(field.name, base, default, spaces[0] if spaces else None))
    return tuple(result)


def searchable(policy: type) -> Mapping[str, Parameter]:
    """The parameters that have a range."""
    return {each.name: each for each in parameters(policy) if each.space is not None}


def canonical(view: View) -> View:
    """The view with its devices in an order that their figures alone decide: the fastest first.

    Devices of equal times follow their other figures, those of their machines, and those of the ways to them; devices
    in like places are neighbours, machine by machine and switch by switch. A policy that starts with it may break ties
    by place: renaming or reordering the devices of a cluster then changes nothing but which of several devices in like
    places does what.
    """
    numbers = ranks(view)
    order: Sequence[int]
    if len(set(numbers)) == len(numbers):  # no two alike: where they are need not decide
        order = np.argsort(numbers).tolist()
    else:
        names = [device.name for device in view.devices]
        rank_of = dict(zip(names, numbers, strict=True))
        around = surroundings(view.cluster, rank_of)
        beside = places(view.cluster, rank_of, around)
        keys = [(rank_of[name], around[name], beside[name]) for name in names]
        order = sorted(range(len(names)), key=keys.__getitem__)
    return view.among(order)


def round_shares(view: View, shares: Sequence[float]) -> Plan:
    """The plan whose samples are closest to some shares: largest remainder, within the devices' capacities.

    Args:
        view: gives the batch and the capacities.
        shares: a non-negative weight per device, in the view's order; they need not sum to 1. What those with a share
            cannot hold is dealt equally among the rest.

    Raises:
        Infeasible: the batch is larger than all capacities together.
    """
    capacities(view)
    ordered = canonical(view)  # places decide ties: they must not be the caller's
    by_name = {device.name: share for device, share in zip(view.devices, shares, strict=True)}
    weights = [by_name[device.name] for device in ordered.devices]
    limits = [device.capacity for device in ordered.devices]
    return ordered.plan(largest_remainder(view.global_batch, weights, limits))


def capacities(view: View) -> list[int]:
    """Most samples of each device.

    Raises:
        Infeasible: all together hold less than the batch.
    """
    limits = [device.capacity for device in view.devices]
    if sum(limits) < view.global_batch:
        worst = max(view.devices, key=lambda device: device.capacity)
        raise Infeasible(
            "workload.global_batch",
            f"{view.global_batch} samples fit nowhere: the devices hold {sum(limits)}, "
            f"the largest ({worst.name}) {worst.capacity}",
            "use a smaller batch, a smaller model, max_micro_batch, or more memory",
        )
    return limits


def largest_remainder(total: int, shares: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Integers that sum to ``total``, as close to the shares as rounding by largest remainder brings them.

    What a limit cuts off is dealt again among the rest in proportion to their shares (equally where these are zero).
    Ties go to the earlier entry. ``sum(limits)`` must be at least ``total``.
    """
    given = [0] * len(shares)
    left = total
    while left > 0:
        open_ = [i for i in range(len(shares)) if given[i] < limits[i]]
        largest = max(shares[i] for i in open_)
        # Relative to the largest: neither very small nor very large shares leave the range of a float.
        weights = {i: shares[i] / largest if largest > 0 else 1.0 for i in open_}
        scale = left / sum(weights.values())
        ideal = {i: weights[i] * scale for i in open_}
        floors = {i: min(int(ideal[i]), limits[i] - given[i]) for i in open_}
        rest = left - sum(floors.values())
        by_remainder = sorted(open_, key=lambda i: (-(ideal[i] - int(ideal[i])), i))
        for i in by_remainder:
            if rest > 0 and weights[i] > 0 and floors[i] == int(ideal[i]) and given[i] + floors[i] < limits[i]:
                floors[i] += 1
                rest -= 1
        for i in open_:
            given[i] += floors[i]
        left = total - sum(given)
    return given
