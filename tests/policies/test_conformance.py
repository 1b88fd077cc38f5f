"""The kit holds all built-in policies to their contract, and catches policies that break it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given, settings
from steelyard.policies import REGISTRY, Choice, Range, make_policy, policy_class
from steelyard.policies._base import capacities, round_shares
from steelyard.policies.testing import (
    BrokenError,
    ConformanceError,
    check_policy,
    check_scenario,
    clusters,
    devices,
    reordered,
    scenario_toml,
    scenarios,
    slower,
    workloads,
)
from steelyard.policies.testing.exhaust import Seeded
from steelyard.policies.testing.generator import make_scenario
from steelyard.policies.testing.pasts import FACTORS, Past
from steelyard.sim.noise import stream
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import parse_toml, scenario_from
from steelyard.sim.view import View


@pytest.mark.no_cover
@pytest.mark.parametrize("name", REGISTRY)
def test_built_in_policies_keep_the_contract(name: str) -> None:
    """All rules, simulated step included; ``test_exhaust`` tries more scenarios by those that need no simulation."""
    check_policy(policy_class(name), max_examples=25, unit_free=True)


def test_an_instance_is_checked_with_its_own_parameters() -> None:
    check_policy(make_policy("throughput", {"gamma": 2.0}), max_examples=20)


@settings(max_examples=50)
@given(scenarios())
def test_a_scenario_survives_its_toml(scenario: Any) -> None:
    assert scenario_from(parse_toml(scenario_toml(scenario), "generated")) == scenario


def test_scenarios_are_of_many_kinds() -> None:
    """The generator reaches what the rules are about."""
    seen: set[str] = set()

    @settings(max_examples=150, derandomize=True, database=None)
    @given(scenarios())
    def look(scenario: Any) -> None:
        view = View.of(scenario)
        room = sum(device.capacity for device in view.devices)
        batch = scenario.workload.global_batch
        devices = scenario.cluster.devices
        facts = {
            "one device": len(devices) == 1,
            "six devices": len(devices) == 6,
            "three nodes": len(scenario.cluster.nodes) == 3,
            "too little memory": room < batch,
            "plenty": all(device.capacity >= batch for device in view.devices),
            "a device that holds nothing": any(device.capacity == 0 for device in view.devices),
            "just some room": any(0 < device.capacity < batch for device in view.devices),
            "batch of one": batch == 1,
            "accumulation": scenario.workload.max_micro_batch is not None,
            "profiled": any(device.profile for device in devices),
            "datasheet": any(device.profile is None for device in devices),
            "a table": bool(scenario.cluster.collectives),
            "an input pipeline": any(node.loader_samples_per_s for node in scenario.cluster.nodes),
            "switches": any(node.switch for node in scenario.cluster.nodes),
            "a switch below another": any(switch.parent for switch in scenario.cluster.switches),
            "several adapters": any(1 < node.nics <= len(node.devices) for node in scenario.cluster.nodes),
            "equal devices": len(devices) > len({device.model_dump_json(exclude={"name"}) for device in devices}),
        }
        seen.update(fact for fact, holds in facts.items() if holds)

    look()
    assert len(seen) == 17, seen


@settings(max_examples=50)
@given(scenarios())
def test_a_slower_world_is_slower_by_the_factor(scenario: Any) -> None:
    before, after = View.of(scenario), View.of(slower(scenario))
    for one, other in zip(before.devices, after.devices, strict=True):
        assert other.step_s(3) == pytest.approx(4 * one.step_s(3), rel=1e-12)
    names = [device.name for device in before.devices]
    assert after.sync_s(names) == pytest.approx(4 * before.sync_s(names), rel=1e-9)


@settings(max_examples=50)
@given(scenarios())
def test_a_reordered_world_has_the_same_devices(scenario: Any) -> None:
    def kinds(one: Any) -> list[str]:
        return sorted(device.model_dump_json(exclude={"name"}) for device in one.cluster.devices)

    assert kinds(reordered(scenario, 5)) == kinds(scenario)


def _last_device(view: View) -> int:
    return max(range(len(view.devices)), key=lambda i: view.devices[i].name)


@dataclass(frozen=True, kw_only=True)
class Loses:
    """Drops a sample where there are two devices or more."""

    name: ClassVar[str] = "loses"

    def allocate(self, view: View) -> Plan:
        plan = round_shares(view, [1.0] * len(view.devices))
        if len(plan.pipelines) < 2:
            return plan
        return view.plan([*plan.split().values()][:-1] + [0] * (len(view.devices) - len(plan.pipelines) + 1))


_calls: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Remembers:
    """Gives another answer each time it is asked."""

    name: ClassVar[str] = "remembers"

    def allocate(self, view: View) -> Plan:
        _calls.append(1)
        count = len(view.devices)
        return round_shares(view, [2.0 if i == len(_calls) % count else 1.0 for i in range(count)])


@dataclass(frozen=True, kw_only=True)
class Names:
    """Prefers the device with the last name."""

    name: ClassVar[str] = "names"

    def allocate(self, view: View) -> Plan:
        last = _last_device(view)
        return round_shares(view, [2.0 if i == last else 1.0 for i in range(len(view.devices))])


@dataclass(frozen=True, kw_only=True)
class Order:
    """Prefers the device that comes first."""

    name: ClassVar[str] = "order"

    def allocate(self, view: View) -> Plan:
        return round_shares(view, [2.0] + [1.0] * (len(view.devices) - 1))


@dataclass(frozen=True, kw_only=True)
class GivesUp:
    """Wants every device to have room for an equal share."""

    name: ClassVar[str] = "gives-up"

    def allocate(self, view: View) -> Plan:
        share = -(-view.global_batch // len(view.devices))
        if any(device.capacity < share for device in view.devices):
            raise Infeasible("workload.global_batch", "does not fit equally")
        return round_shares(view, [1.0] * len(view.devices))


@dataclass(frozen=True, kw_only=True)
class Clings:
    """Keeps the plan that it has, whoever is lost."""

    name: ClassVar[str] = "clings"

    def allocate(self, view: View) -> Plan:
        return view.current or round_shares(view, [1.0] * len(view.devices))


@dataclass(frozen=True, kw_only=True)
class Envies:
    """Once it has a past, prefers the device with the last name."""

    name: ClassVar[str] = "envies"

    def allocate(self, view: View) -> Plan:
        last = _last_device(view) if view.history else -1
        return round_shares(view, [2.0 if i == last else 1.0 for i in range(len(view.devices))])


@dataclass(frozen=True, kw_only=True)
class Rewrites:
    """Corrects the past."""

    name: ClassVar[str] = "rewrites"

    def allocate(self, view: View) -> Plan:
        for step in view.history:
            step["step_s"] = 0.0
        return round_shares(view, [1.0] * len(view.devices))


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Prefers the machine that comes first, among equals."""

    name: ClassVar[str] = "nodes"

    def allocate(self, view: View) -> Plan:
        capacities(view)
        best = max(view.speeds)
        fast = [each for each, speed in zip(view.devices, view.speeds, strict=True) if speed == best]
        first = next((i for i, each in enumerate(view.devices) if each.capacity >= view.global_batch), None)
        if first is None or len(fast) < len(view.devices):
            return round_shares(view, [1.0] * len(view.devices))
        half = view.global_batch // 2 if len(view.devices) > 2 and view.devices[1].capacity else 0
        return view.plan(
            [view.global_batch - half, half] + [0] * (len(view.devices) - 2)
            if half
            else [view.global_batch] + [0] * (len(view.devices) - 1)
        )


def _on_the_last(view: View, places: list[str | None]) -> Plan:
    """Equal shares for the devices whose place has the last name; for all where these have no room."""
    chosen = [1.0 if place == max(each or "" for each in places) else 0.0 for place in places]
    return round_shares(view, chosen if sum(chosen) else [1.0] * len(places))


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Prefers the machine with the last name."""

    name: ClassVar[str] = "hosts"

    def allocate(self, view: View) -> Plan:
        return _on_the_last(view, [view.cluster.nodes[view.cluster.node_of[each.name]].name for each in view.devices])


@dataclass(frozen=True, kw_only=True)
class Racks:
    """Prefers the switch with the last name."""

    name: ClassVar[str] = "racks"

    def allocate(self, view: View) -> Plan:
        nodes = view.cluster.nodes
        return _on_the_last(view, [nodes[view.cluster.node_of[each.name]].switch for each in view.devices])


@dataclass(frozen=True, kw_only=True)
class Crashes:
    """Divides by zero at one end of its range."""

    name: ClassVar[str] = "crashes"
    gamma: Annotated[float, Range(0, 2)] = 1.0

    def allocate(self, view: View) -> Plan:
        return round_shares(view, [1 / self.gamma] * len(view.devices))


@dataclass(frozen=True, kw_only=True)
class Scribbles:
    """Writes into the workload that it is shown."""

    name: ClassVar[str] = "scribbles"

    def allocate(self, view: View) -> Plan:
        capacities(view)
        view.workload.model.config["touched"] = True
        return round_shares(view, [1.0] * len(view.devices))


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Halves the share with each tenth of a millisecond, whatever the others take."""

    name: ClassVar[str] = "seconds"

    def allocate(self, view: View) -> Plan:
        return round_shares(view, [2.0 ** (-device.step_s(1) / 1e-4) for device in view.devices])


@dataclass(frozen=True, kw_only=True)
class Silent:
    """Finds nothing, and does not say why."""

    name: ClassVar[str] = "silent"

    def allocate(self, view: View) -> Plan:
        raise Infeasible("workload", "")


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """Gives samples by name and no plan."""

    name: ClassVar[str] = "dictionary"

    def allocate(self, view: View) -> Any:
        return {view.devices[0].name: view.global_batch}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Works with parameters of all kinds: what the kit draws is within its range."""

    name: ClassVar[str] = "counts"
    power: Annotated[int, Range(1, 3)] = 2
    key: Annotated[str, Choice("peak", "memory")] = "peak"
    note: str = "not searched"

    def allocate(self, view: View) -> Plan:
        assert isinstance(self.power, int)
        assert 1 <= self.power <= 3
        assert self.note == "not searched"
        figures = [device.peak_flops if self.key == "peak" else device.memory_bytes for device in view.devices]
        return round_shares(view, [figure**self.power for figure in figures])


def test_parameters_of_all_kinds_are_drawn() -> None:
    check_policy(Counts, max_examples=30)


@settings(max_examples=10)
@given(workloads(), devices(), clusters())
def test_the_parts_can_be_drawn_alone(workload: Any, device: Any, cluster: Any) -> None:
    scenario = scenario_from({"name": "x", "cluster": cluster.model_dump(), "workload": workload.model_dump()})
    assert device.name == "device"
    assert 1 <= len(scenario.cluster.devices) <= 6


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Silent, "without a reason"),
        (Dictionary, "no Plan"),
        (Loses, "the plan is invalid"),
        (Remembers, "another plan when asked again"),
        (Names, "renaming and reordering"),
        (Order, "renaming and reordering"),
        (Hosts, "renaming and reordering"),
        pytest.param(GivesUp, "a plan exists", marks=pytest.mark.slow),
        (Crashes, "ZeroDivisionError"),
        (Scribbles, "changed the workload"),
        pytest.param(Clings, "invalid when asked with a past .* the first device lost", marks=pytest.mark.slow),
        pytest.param(Envies, "changes the plan when asked with a past", marks=pytest.mark.slow),
        (Rewrites, "changed the history when asked with a past"),
        (Nodes, "changes the step"),
    ],
)
def test_a_broken_policy_is_caught_with_a_scenario_that_shows_it(kind: type, rule: str) -> None:
    caught = _caught(kind)
    assert re.search(rule, caught.problem)
    text = caught.scenario_toml
    assert text in str(caught)
    scenario = scenario_from(parse_toml(text, "counter-example"))
    problem = _problem_of(caught.policy, scenario)
    if kind is not Remembers:  # which needs no special scenario, but the right number of calls before
        assert problem is not None
        assert re.search(rule, problem)


def test_a_policy_that_prefers_a_switch_by_its_name_is_caught() -> None:
    """Seeded scenarios: few have machines on several switches, and half of the names keep the order."""
    for number in range(400):
        scenario = make_scenario(Seeded(stream(0, "scenario", number)))
        switches = {node.switch for node in scenario.cluster.nodes}
        found = _problem_of(Racks(), scenario) if len(switches) > 1 else None
        if found is not None:
            assert "renaming and reordering" in found
            return
    raise AssertionError("nothing was found")


@functools.cache
def _caught(kind: type) -> ConformanceError:
    """What the kit says of a broken policy."""
    with pytest.raises(ConformanceError) as caught:
        check_policy(kind, max_examples=500)
    return caught.value


def _problem_of(policy: Any, scenario: Any) -> str | None:
    """What the kit's rules say of one policy on one scenario, with many orders and pasts."""
    for order in range(20):
        past = Past(1 + order % 4, FACTORS[: 1 + order % 3], lost=order % 2 == 0)
        try:
            check_scenario(scenario, policy, order=order, past=past)
        except BrokenError as error:
            return str(error)
    return None


def test_a_counter_example_is_small_and_the_same_each_time() -> None:
    first, second = _caught(Loses), _caught.__wrapped__(Loses)
    assert str(first) == str(second)
    scenario = scenario_from(parse_toml(first.scenario_toml, "counter-example"))
    assert len(scenario.cluster.devices) == 2
    assert len(scenario.workload.layers) == 1
    assert scenario.workload.global_batch == 2


@pytest.mark.slow
def test_unit_free_is_a_choice() -> None:
    check_policy(Seconds, max_examples=30)
    with pytest.raises(ConformanceError, match="four times as long"):
        check_policy(Seconds, max_examples=500, unit_free=True)


def _make(called: str = "Made", **changes: Any) -> type:
    """A valid policy class, with changes that should not pass."""
    body: dict[str, Any] = {
        "__doc__": "Equal shares.",
        "__annotations__": {"name": ClassVar[str], **changes.pop("fields", {})},
        "name": "made",
        "__module__": __name__,
        "allocate": lambda self, view: round_shares(view, [1.0] * len(view.devices)),
        **changes,
    }
    return type(called, (), body)


def _frozen(kind: type) -> type:
    return dataclass(frozen=True, kw_only=True)(kind)


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (_make, "no dataclass"),
        (lambda: dataclass(_make()), "not frozen"),
        (lambda: _frozen(_make(name="")), "no name"),
        (lambda: _frozen(_make(__doc__=None)), "no docstring"),
        (lambda: _frozen(_make(fields={"x": float})), "no default"),
        (lambda: _frozen(_make(fields={"x": Annotated[float, Range(0, 1)]}, x=3.0)), "outside of its range"),
        (lambda: _frozen(_make(fields={"x": Annotated[float, Range(0, 1, log=True)]}, x=1.0)), "above 0"),
        (lambda: _frozen(_make(fields={"x": Annotated[str, Choice("a", "b")]}, x="c")), "not among its choices"),
        (lambda: _frozen(_make(fields={"x": dict}, x=())), "of type"),
        (lambda: _frozen(_make("Nowhere")), "cannot be pickled"),
    ],
)
def test_a_class_that_breaks_the_form_is_refused(build: Callable[[], type], rule: str) -> None:
    with pytest.raises(ConformanceError, match=re.escape(rule)) as caught:
        check_policy(build(), max_examples=1)
    assert caught.value.scenario_toml == ""


def test_a_frozen_dataclass_stays_one_by_inheritance_only_if_it_says_so() -> None:
    assert dataclasses.is_dataclass(policy_class("uniform"))
