"""What adaptive policies share: what the past says of the devices, and whether a change of plan is worth its price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..sim import cost
from ..sim.plan import Plan, Stage
from ..sim.schedule import deal_samples
from ..sim.view import View
from .outlook import predicted

LEAST_S = 1e-15
"""Work that takes no longer tells nothing of a device."""


def slow_factors(view: View, weight: float) -> dict[str, float]:
    """How many times as long as estimated each device's work will take: :func:`.outlook.predicted` from the past.

    Args:
        view: as for :func:`measured_factors`.
        weight: of the newest step; 1 takes it alone.

    Returns:
        Devices that never worked are missing.
    """
    ahead = steps_ahead(view)
    return {name: predicted(series, weight, ahead) for name, series in measured_factors(view).items()}


def measured_factors(view: View) -> dict[str, list[float]]:
    """How many times as long as estimated each device's work took, step by step.

    Args:
        view: with the past; entries whose plan it does not hold say how many samples a device had, and no more: they
            count for whole models (data parallel).

    Returns:
        Oldest first, without the steps in which a device had no work; devices that never worked are missing.
    """
    expected = {digest: expected_s(view, plan) for digest, plan in view.plans.items()}
    whole = {device.name: device for device in view.devices}
    found: dict[str, list[float]] = {}
    for entry in view.history:
        known = expected.get(entry.get("plan_sha256", ""))
        for name, past in entry["devices"].items():
            if name in whole and past["samples"]:
                estimate = known.get(name, 0.0) if known is not None else whole[name].step_s(past["samples"])
                if estimate > LEAST_S and past["compute_s"] > LEAST_S:
                    found.setdefault(name, []).append(past["compute_s"] / estimate)
    return found


def steps_ahead(view: View) -> float:
    """How far to look ahead: half of the steps that each of the changes that are left has to last."""
    return pace(view) / 2


def pace(view: View) -> float:
    """How many steps each of the plans to come lasts, if all changes that are left are made; 0 where nobody counts."""
    if view.steps_left is None or view.changes_left is None:
        return 0.0
    return view.steps_left / (view.changes_left + 1)


def expected_s(view: View, plan: Plan) -> dict[str, float]:
    """Seconds of forward, backward and optimizer in a step that the estimates give each device of a plan.

    Devices that the view does not have are left out. States that are sharded are taken to be updated in equal shares.
    """
    holders: dict[int, int] = {}
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            holders[stage.first] = holders.get(stage.first, 0) + len(stage.replicas)
    found: dict[str, float] = {}
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            share = 1 / holders[stage.first] if plan.zero else 1.0
            for number, names in enumerate(replica.devices for replica in stage.replicas):
                sizes = _dealt(stage, number, pipeline.micro_batches)
                for name in names:
                    if name in view.cluster.by_name:
                        found[name] = found.get(name, 0.0) + _work_s(view, name, stage, sizes, (len(names), share))
    return found


def _dealt(stage: Stage, number: int, sizes: Sequence[int]) -> dict[int, int]:
    """How often one of a stage's replicas gets how many samples."""
    shares = [replica.share for replica in stage.replicas]
    found: dict[int, int] = {}
    for size in set(sizes):
        own = deal_samples(size, shares)[number]
        found[own] = found.get(own, 0) + sizes.count(size)
    return found


def _work_s(view: View, name: str, stage: Stage, sizes: Mapping[int, int], how: tuple[int, float]) -> float:
    """A device's work on a stage in a step: micro-batches by size, tensor degree and share of the update."""
    device, (degree, share) = view.cluster.by_name[name], how
    total = cost.update_s(device, view.workload, stage.first, stage.last, tensor_degree=degree, share=share)
    for samples, count in sizes.items():
        if samples:
            times = cost.time_of(device, view.workload, stage, samples, degree)
            total += count * (times.forward_s + times.backward_s)
    return total


def must_change(view: View) -> bool:
    """Whether the plan so far cannot go on: there is none, or one of its devices is gone."""
    return view.current is None or any(name not in view.cluster.by_name for name in view.current.samples())


def split_s(view: View, plan: Plan) -> float:
    """Seconds of a data-parallel plan's step: the slowest device, then the all-reduce; endless where one is gone."""
    samples, devices = plan.samples(), {device.name: device for device in view.devices}
    if any(name not in devices for name in samples):
        return float("inf")
    return max(devices[name].step_s(count) for name, count in samples.items()) + view.sync_s(sorted(samples))


def settled(view: View, plan: Plan, step_s: Callable[[Plan], float], *, hysteresis: float, least_gain: float) -> Plan:
    """A plan where changing to it is worth the price (:func:`worth_it`), else the plan so far.

    Args:
        view: as for :func:`worth_it`; without a plan so far, the new one it is.
        plan: the plan to come.
        step_s: a step of a plan, as predicted.
        hysteresis: as for :func:`worth_it`.
        least_gain: as for :func:`worth_it`.
    """
    if view.current is None:
        return plan
    now_s, then_s = step_s(view.current), step_s(plan)
    worth = worth_it(view, plan, now_s=now_s, then_s=then_s, hysteresis=hysteresis, least_gain=least_gain)
    return plan if worth else view.current


def worth_it(view: View, plan: Plan, *, now_s: float, then_s: float, hysteresis: float, least_gain: float) -> bool:
    """Whether a change saves more time over the steps that are left than ``hysteresis`` times its price.

    Args:
        view: knows the price, and how many steps are left (where nobody knows: as many as there were).
        plan: the plan to come.
        now_s: a step of the plan so far, as predicted.
        then_s: a step of the plan to come, as predicted.
        hysteresis: how many times its price a change must save.
        least_gain: share of the step that it must save besides; more soon after a change, for there are only so many.
    """
    if must_change(view):
        return True
    left = view.steps_left if view.steps_left is not None else max(1, len(view.history))
    saving = now_s - then_s
    return saving > _least(view, least_gain) * now_s and saving * left > hysteresis * view.price_s(plan)


def _least(view: View, least_gain: float) -> float:
    """The share of a step that a change must save: more, up to a quarter, where changes come faster than they last."""
    digest = view.current.sha256 if view.current is not None else ""
    since = 0
    for entry in reversed(view.history):
        if entry.get("plan_sha256", digest) != digest:
            break
        since += 1
    return max(least_gain, min(0.25, least_gain * pace(view) / max(since, 1)))
