"""Disturbances: what happens to single devices in the midst of a run; and how often a plan may be changed for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import model_validator

from ..results.errors import InputError
from .device import Cluster, Node
from .workload import Count, Name, NonNegative, Positive, Spec, Whole


class Disturbance(Spec):
    """What happens to one device from a step on."""

    kind: Literal["slowdown", "drift", "loss", "return"]
    """``slowdown``: its compute takes ``factor`` times as long, at once; ``drift``: it gets there in equal steps;
    ``loss``: it is gone, and the step under way with it; ``return``: it is back, and holds nothing."""
    device: Name
    from_step: Whole
    until_step: Count | None = None
    """``slowdown``: the first step without it (None: it lasts); ``drift``: the first step with all of it."""
    factor: Positive | None = None
    """On the time of forward, backward and optimizer; on a processor's lane of collectives, too, which it computes."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        paced = self.kind in ("slowdown", "drift")
        if paced and self.factor is None:
            raise ValueError(f"a {self.kind} has no factor; add factor = 2.0, for example")
        if not paced and (self.factor is not None or self.until_step is not None):
            raise ValueError(f"a {self.kind} has a factor or an until_step; leave them out (a return ends a loss)")
        if self.kind == "drift" and self.until_step is None:
            raise ValueError("a drift has no until_step; say in which step it is complete")
        if self.until_step is not None and self.until_step <= self.from_step:
            problem = f"until_step is {self.until_step}, not after from_step, which is {self.from_step}"
            raise ValueError(f"{problem}; put it later")
        return self

    def factor_at(self, step: int) -> float:
        """What it multiplies the device's compute time by in a step."""
        if self.factor is None or step < self.from_step:
            return 1.0
        if self.until_step is None or (self.kind == "drift" and step >= self.until_step):
            return self.factor
        if self.kind == "slowdown":
            return self.factor if step < self.until_step else 1.0
        return 1.0 + (self.factor - 1.0) * (step - self.from_step + 1) / (self.until_step - self.from_step + 1)


class Rebalance(Spec):
    """When an adaptive policy is asked again, and what a change of plan costs beside moving states."""

    every_steps: Count = 10
    """Steps from one question to the next."""
    at_most: Whole = 5
    """Changes in a run, those that a loss forces not counted."""
    pause_s: NonNegative = 0.1
    """Every change stops the training so long, also one of batch sizes alone: an assumption, as is the next."""
    restart_s: NonNegative = 10.0
    """So much longer where devices come to hold other layers: groups of processes are made anew."""


def factors_at(disturbances: Sequence[Disturbance], step: int) -> dict[str, float]:
    """The factor on the compute time of every device that is not as fast as it should be in a step."""
    found: dict[str, float] = {}
    for each in disturbances:
        found[each.device] = found.get(each.device, 1.0) * each.factor_at(step)
    return {name: factor for name, factor in found.items() if factor != 1.0}


def gone_at(disturbances: Sequence[Disturbance], step: int, *, foreseen: bool = True) -> frozenset[str]:
    """The devices that are lost in a step; not ``foreseen``: those that were lost before it began."""
    gone: set[str] = set()
    for each in sorted(disturbances, key=lambda each: each.from_step):
        if each.kind == "loss" and each.from_step <= step - (not foreseen):
            gone.add(each.device)
        elif each.from_step <= step and each.kind == "return":
            gone.discard(each.device)
    return frozenset(gone)


def next_loss(disturbances: Sequence[Disturbance], names: Collection[str], step: int) -> int | None:
    """The first step, from one on, in which one of some devices is lost."""
    lost = [each.from_step for each in disturbances if each.kind == "loss" and each.device in names]
    return min((each for each in lost if each >= step), default=None)


def without(cluster: Cluster, gone: Collection[str]) -> Cluster:
    """A cluster without some devices, the machines that they leave empty, and what was measured over them."""
    if not gone:
        return cluster
    nodes = [
        node.model_copy(update={"devices": kept})
        for node in cluster.nodes
        if (kept := [device for device in node.devices if device.name not in gone])
    ]
    tables = [table for table in cluster.collectives if not set(table.devices) & set(gone)]
    return cluster.model_copy(update={"nodes": nodes, "collectives": tables})


def slowed(cluster: Cluster, factors: Mapping[str, float]) -> Cluster:
    """A cluster some of whose devices take longer for all their work."""
    own = _of(cluster, factors)
    return _changed(cluster, {name: {"slowdown": cluster.by_name[name].slowdown * own[name]} for name in own})


def disturbed(cluster: Cluster, factors: Mapping[str, float]) -> Cluster:
    """The same as disturbances do it: collectives are slower too, where slow devices do their part themselves."""
    own = _of(cluster, factors)
    summing = {name: max(1.0, own[name]) for name in own if cluster.by_name[name].sums_itself}
    return _changed(
        slowed(cluster, own),
        {name: {"sum_slowdown": cluster.by_name[name].sum_slowdown * factor} for name, factor in summing.items()},
    )


def slower_sums(cluster: Cluster, names: Collection[str], factors: Mapping[str, float]) -> float:
    """The factor on the time of a collective over some devices: of the slowest that does its part of it itself."""
    own = (factor for name, factor in factors.items() if name in names and cluster.by_name[name].sums_itself)
    return max(1.0, max(own, default=1.0))


def _of(cluster: Cluster, factors: Mapping[str, float]) -> dict[str, float]:
    """Those of a cluster's devices that change anything."""
    return {name: factor for name, factor in factors.items() if factor != 1.0 and name in cluster.by_name}


def _changed(cluster: Cluster, changes: Mapping[str, dict[str, float]]) -> Cluster:
    """A cluster some of whose devices have other figures; the same object where none has."""
    if not changes:
        return cluster
    nodes = [
        node.model_copy(
            update={
                "devices": [
                    device.model_copy(update=changes[device.name]) if device.name in changes else device
                    for device in node.devices
                ]
            }
        )
        for node in cluster.nodes
    ]
    return cluster.model_copy(update={"nodes": nodes})


EVENTS = ("disturbances", "rebalance")
"""Fields of a scenario by which a run is more than equal steps of one plan."""


def refuse_events(fields: Mapping[str, Any], names: Sequence[str] = EVENTS) -> None:
    """Refuse what a command does not do to lanes: nobody slows them down where they train.

    Args:
        fields: of a scenario, or of its raw document.
        names: of those that must not be set.

    Raises:
        InputError: one of them is.
    """
    for name in names:
        if fields.get(name) not in (None, []):
            raise InputError(name, "is simulated and replayed only", "take it out, or use `steelyard simulate`")


def by_device(events: Sequence[Any], nodes: object) -> list[Any]:
    """What happens to a ``machine`` as what happens to each of its devices, in the same step: one event for a policy.

    Args:
        events: of a scenario's document; those without a machine are left as they are.
        nodes: the cluster's machines, counted out.

    Raises:
        InputError: a machine that the cluster does not have, or a device named beside it.
    """
    of = {node.name: node.devices for node in nodes if isinstance(node, Node)} if isinstance(nodes, list) else {}
    found: list[Any] = []
    for index, event in enumerate(events):
        if not isinstance(event, dict) or "machine" not in event:
            found.append(event)
            continue
        rest = {key: value for key, value in event.items() if key != "machine"}
        path, machine = f"disturbances.{index}", event["machine"]
        if "device" in rest:
            raise InputError(f"{path}.device", "stands beside a machine", "leave one of the two out")
        if not isinstance(machine, str) or machine not in of:
            known = ", ".join(sorted(of)[:8])
            raise InputError(f"{path}.machine", f"{machine!r:.60} is no machine of the cluster", f"known: {known}")
        found += [{**rest, "device": device.name} for device in of[machine]]
    return found


def check_disturbances(disturbances: Sequence[Disturbance], cluster: Cluster) -> None:
    """Whether a cluster can go through some disturbances.

    Raises:
        InputError: a device that it does not have; one lost or back that is so already; none left.
    """
    for index, each in enumerate(disturbances):
        path = f"disturbances.{index}"
        if each.device not in cluster.by_name:
            known = ", ".join(sorted(cluster.by_name)[:8])
            raise InputError(f"{path}.device", f"{each.device!r} is no device of the cluster", f"known: {known}")
        if each.kind in ("loss", "return"):
            if each.from_step == 0:
                raise InputError(f"{path}.from_step", "is 0: the run begins with it", "leave the device out instead")
            before = [other for other in disturbances if other.from_step < each.from_step]
            if (each.device in gone_at(before, each.from_step)) == (each.kind == "loss"):
                state = "is lost already" if each.kind == "loss" else "is not lost before it"
                raise InputError(f"{path}.device", f"{each.device!r} {state}", "put the loss first, then the return")
            if len(gone_at(disturbances, each.from_step)) == len(cluster.devices):
                raise InputError(f"{path}.device", "no device is left after its loss", "keep at least one")
