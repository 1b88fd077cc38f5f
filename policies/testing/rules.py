"""Rules: what every policy must do with a scenario, whatever it decides."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections import Counter

from ...results.record import digest
from ...sim.plan import Infeasible, Plan, PlanError
from ...sim.spec import Scenario
from ...sim.view import DeviceView, Fixed, Policy, View
from .pasts import Past, remember
from .worlds import quiet, renaming, reordered, slower

Layers = tuple[tuple[int, int, int], ...]
RELATIVE = 1e-9
"""Two simulated times that differ by less are the same: sums in another order."""


class BrokenError(AssertionError):
    """A rule is broken; :func:`~steelyard.policies.testing.check_policy` adds by whom and where."""


def check_scenario(
    scenario: Scenario, policy: Policy, *, order: int = 0, past: Past | None = None, unit_free: bool = False
) -> None:
    """Hold a policy to all rules on one scenario.

    Args:
        scenario: any that is valid.
        policy: as it is.
        order: a number; each gives the devices other names and places.
        past: how the plan ran before the policy is asked again; None: it is not.
        unit_free: whether a world in which everything takes four times as long must get the same plan.

    Raises:
        BrokenError: the first rule that is broken.
    """
    before = digest(scenario.model_dump(mode="json"))
    view = View.of(scenario)
    plan = judged(policy, scenario, view)
    if view != View.of(scenario):
        raise BrokenError("it changed the view")
    _check_repeats(policy, scenario, plan)
    if digest(scenario.model_dump(mode="json")) != before:
        raise BrokenError("it changed the workload or the cluster that it was shown")
    _check_order(policy, scenario, plan, order)
    if unit_free:
        _check_units(policy, scenario, plan)
    if plan is not None and past is not None:
        _check_past(policy, scenario, plan, past, order)


def judged(policy: Policy, scenario: Scenario, view: View | None = None, when: str = "") -> Plan | None:
    """The plan of a policy, held to the rules that need no second answer; None where there is rightly none.

    Args:
        policy: asked once.
        scenario: what the plan must be valid for.
        view: what it sees; that at the start by default.
        when: put into the message of a broken rule.

    Raises:
        BrokenError: no plan, an invalid one, no reason for having none, or any other exception.
    """
    seen = View.of(scenario) if view is None else view
    held = scenario if seen.cluster is scenario.cluster else scenario.model_copy(update={"cluster": seen.cluster})
    history = copy.deepcopy(seen.history)
    try:
        plan: object = policy.allocate(seen)
    except Infeasible as error:
        _check_refusal(policy, seen, error, when)
        return None
    except Exception as error:
        raise BrokenError(f"allocate raised {type(error).__name__}{when}: {error}") from error
    if not isinstance(plan, Plan):
        raise BrokenError(f"allocate gave a {type(plan).__name__}{when} and no Plan")
    try:
        plan.check(held)
    except PlanError as error:
        raise BrokenError(f"the plan is invalid{when}: {error}") from error
    if seen.history != history:
        raise BrokenError(f"it changed the history{when}")
    return plan


def _check_refusal(policy: Policy, view: View, error: Infeasible, when: str) -> None:
    """There is a reason, and no plain split would have done."""
    if not error.problem:
        raise BrokenError(f"Infeasible{when} without a reason") from error
    goal = view.objective
    if goal.least_throughput_samples_per_s is not None or goal.most_cost_usd_per_million_samples is not None:
        return  # there are plans, and perhaps none that is fast or cheap enough
    room = sum(device.capacity for device in view.devices)
    workers = sum(device.capacity > 0 for device in view.devices)
    if workers <= view.global_batch <= room and not getattr(policy, "rigid", False):
        held = f"the devices have room for {room} of {view.global_batch} samples"
        raise BrokenError(f"Infeasible{when} ({error}), but {held}: a plan exists") from error


def _check_repeats(policy: Policy, scenario: Scenario, plan: Plan | None) -> None:
    """An equal policy gives an equal plan."""
    equal = pickle.loads(pickle.dumps(policy))  # noqa: S301 - our own bytes
    again = judged(equal, scenario, when=" when asked again")
    if _sha(plan) != _sha(again):
        raise BrokenError(f"the same view gives another plan when asked again: {_say(plan)}, then {_say(again)}")


def _check_order(policy: Policy, scenario: Scenario, plan: Plan | None, order: int) -> None:
    """Names and order mean nothing."""
    other = reordered(scenario, order)
    moved = judged(policy, other, when=" once the devices are renamed and reordered")
    if (plan is None) != (moved is None):
        raise BrokenError("renaming and reordering the devices changes whether there is a plan")
    if plan is None or moved is None:
        return
    if _roles(scenario, plan) != _roles(other, moved):
        raise BrokenError(f"renaming and reordering the devices changes the plan: {_say(plan)}, then {_say(moved)}")
    first, second = _step_s(scenario, plan), _step_s(other, moved)
    if not math.isclose(first, second, rel_tol=RELATIVE):
        shown = f"{first} s with {_say(plan)}, then {second} s with {_say(moved)}"
        raise BrokenError(f"renaming and reordering the devices changes the step: {shown}")


def _check_units(policy: Policy, scenario: Scenario, plan: Plan | None) -> None:
    """A world in which everything takes four times as long."""
    slow = judged(policy, slower(scenario), when=" once everything takes four times as long")
    if plan is None or slow is None:
        return
    was, now = plan.samples(), slow.samples()
    if any(abs(was.get(name, 0) - now.get(name, 0)) > 1 for name in {*was, *now}):
        raise BrokenError(
            f"once everything takes four times as long the plan is another: {_say(plan)}, then {_say(slow)}"
        )


def _check_past(policy: Policy, scenario: Scenario, plan: Plan, past: Past, order: int) -> None:
    """Asked again, with a measured past: a valid plan for who is left, the same one each time, whatever the names."""
    memory = remember(scenario, plan, past)
    if memory is None:
        return
    when = f" when asked with a past ({past})"
    first = judged(policy, scenario, memory.view(scenario), when)
    if _sha(first) != _sha(judged(policy, scenario, memory.view(scenario), when)):
        raise BrokenError(f"the same past gives another plan when asked again{when}")
    other = reordered(scenario, order)
    moved = judged(policy, other, memory.renamed(renaming(scenario, order)).view(other), when)
    if (first is None) != (moved is None):
        raise BrokenError(f"renaming and reordering the devices changes whether there is a plan{when}")
    if first is not None and moved is not None and _roles(scenario, first) != _roles(other, moved):
        shown = f"{_say(first)}, then {_say(moved)}"
        raise BrokenError(f"renaming and reordering the devices changes the plan{when}: {shown}")


def _step_s(scenario: Scenario, plan: Plan) -> float:
    """The simulated step without noise and disturbances, in seconds."""
    from ...sim.engine import objective_value

    calm = {"objective": type(scenario.objective)(), "disturbances": [], "rebalance": None}
    still = quiet(scenario).model_copy(update=calm)
    return scenario.workload.global_batch / objective_value(still, Fixed(plan), seed=0, launches=1)


def _roles(scenario: Scenario, plan: Plan) -> Counter[tuple[str, int, Layers]]:
    """How often a device of some figures has so many samples, and which layers, on a group of so many."""
    samples, held = plan.samples(), _layers(plan)
    return Counter(
        (_figures(device), samples.get(device.name, 0), tuple(held.get(device.name, ())))
        for device in View.of(scenario).devices
    )


def _layers(plan: Plan) -> dict[str, list[tuple[int, int, int]]]:
    """Per device of a plan, first and last layer and number of devices of each stage that it works on."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for stage in (stage for pipeline in plan.pipelines for stage in pipeline.stages):
        for replica in stage.replicas:
            for name in replica.devices:
                found.setdefault(name, []).append((stage.first, stage.last, len(replica.devices)))
    return found


def _figures(device: DeviceView) -> str:
    """All that a policy sees of a device but its name."""
    cost = dataclasses.replace(device.cost, device="")
    return repr(dataclasses.replace(device, name="", cost=cost))


def _sha(plan: Plan | None) -> str:
    return "" if plan is None else plan.sha256


def _say(plan: Plan | None) -> str:
    if plan is None:
        return "none"
    held = _layers(plan)
    whole = len({tuple(each) for each in held.values()}) == 1  # data parallel: all have the same layers
    where = {
        name: "" if whole else " of layers " + ", ".join(f"{each[0]}-{each[1]}" for each in held[name]) for name in held
    }
    return ", ".join(f"{name} {count}{where[name]}" for name, count in sorted(plan.samples().items()))
