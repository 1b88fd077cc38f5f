"""Rounding, parameters, the canonical order, and the registry's errors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from steelyard.policies import (
    DEFAULTS,
    REGISTRY,
    Choice,
    Range,
    make_policy,
    names_for,
    parameters,
    policies_for,
    policy_class,
    policy_from_text,
    searchable,
)
from steelyard.policies._base import canonical, capacities, largest_remainder, round_shares
from steelyard.policies.attention import Attention
from steelyard.policies.makespan import Makespan
from steelyard.policies.proportional import Flops, Throughput, Uniform
from steelyard.policies.testing import reordered, scenarios
from steelyard.results.errors import InputError
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View

shares = st.lists(st.floats(0, 1e6), min_size=1, max_size=8)


@given(shares, st.integers(0, 1000), st.data())
def test_rounding_gives_everything_out_within_the_limits(weights: list[float], total: int, data: st.DataObject) -> None:
    limits = data.draw(st.lists(st.integers(0, 1000), min_size=len(weights), max_size=len(weights)))
    assume(sum(limits) >= total)
    given_out = largest_remainder(total, weights, limits)
    assert sum(given_out) == total
    assert all(0 <= count <= limit for count, limit in zip(given_out, limits, strict=True))


@given(shares, st.integers(0, 1000))
def test_rounding_without_limits_is_within_one_of_the_ideal(weights: list[float], total: int) -> None:
    assume(sum(weights) > 0 and all(weight == 0 or weight > 1e-300 for weight in weights))
    given_out = largest_remainder(total, weights, [total] * len(weights))
    for count, weight in zip(given_out, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_rounding_leaves_whole_numbers_alone(wanted: list[int]) -> None:
    assume(sum(wanted) > 0)
    assert largest_remainder(sum(wanted), [float(each) for each in wanted], [sum(wanted)] * len(wanted)) == wanted


def test_what_a_limit_cuts_off_goes_to_the_others_by_their_shares() -> None:
    assert largest_remainder(100, [2.0, 1.0, 1.0], [10, 100, 100]) == [10, 45, 45]
    assert largest_remainder(10, [1.0, 0.0], [4, 100]) == [4, 6]
    assert largest_remainder(7, [0.0, 0.0], [100, 100]) == [4, 3]
    assert largest_remainder(0, [1.0], [0]) == [0]
    assert largest_remainder(3, [5e-324, 1e-323], [3, 3]) == [1, 2]
    assert largest_remainder(4, [1.7e308, 1.7e308], [4, 4]) == [2, 2]


@settings(max_examples=40)
@given(scenarios())
def test_capacities_are_infeasible_only_without_room(scenario: Scenario) -> None:
    view = View.of(scenario)
    room = sum(device.capacity for device in view.devices)
    if room >= view.global_batch:
        assert sum(capacities(view)) == room
        round_shares(view, [1.0] * len(view.devices)).check(scenario)
    else:
        with pytest.raises(Infeasible, match="fit nowhere"):
            capacities(view)


@settings(max_examples=40)
@given(scenarios(), st.integers(0, 1000))
def test_the_canonical_order_does_not_depend_on_names_or_places(scenario: Scenario, order: int) -> None:
    def seen(one: Scenario) -> list[tuple[float, ...]]:
        devices = canonical(View.of(one)).devices
        return [(each.peak_flops, each.memory_bytes, each.step_s(1), each.step_s(5)) for each in devices]

    assert seen(scenario) == seen(reordered(scenario, order))


def test_uniform_needs_a_sample_for_every_device(make_document: Callable[..., dict[str, Any]]) -> None:
    document = make_document()
    document["workload"]["global_batch"] = 1
    with pytest.raises(Infeasible, match="1 samples cannot give every one of 2 devices a share"):
        Uniform().allocate(View.of(scenario_from(document)))


def test_uniform_splits_equally(quiet_scenario: Scenario) -> None:
    assert Uniform().allocate(View.of(quiet_scenario)).split() == {"fast": 16, "slow": 16}


def test_flops_splits_by_the_peak(quiet_scenario: Scenario) -> None:
    assert Flops().allocate(View.of(quiet_scenario)).split() == {"fast": 24, "slow": 8}


def test_throughput_splits_by_speed_to_the_gamma(quiet_scenario: Scenario) -> None:
    """The slow device takes three times the time: gamma 1 gives 24 and 8, gamma 0 is uniform, 2 gives nine to one."""
    view = View.of(quiet_scenario)
    assert Throughput().allocate(view).split() == {"fast": 24, "slow": 8}
    assert Throughput(gamma=0.0).allocate(view) == Uniform().allocate(view)
    assert Throughput(gamma=2.0).allocate(view).split() == {"fast": 29, "slow": 3}


def test_parameters_are_read_from_the_annotations() -> None:
    by_name = {each.name: each for each in parameters(Attention)}
    assert list(by_name) == ["peak", "speed", "bandwidth", "memory", "temperature"]
    assert by_name["temperature"].space == Range(0.1, 4.0, log=True)
    assert by_name["speed"].default == 1.0
    assert by_name["speed"].type is float
    assert searchable(Makespan)["leave_out"].space == Choice(False, True)
    assert searchable(Uniform) == {}


def test_every_registered_policy_says_what_it_does_and_whence_it_is() -> None:
    for name in REGISTRY:
        kind = policy_class(name)
        assert kind.name == name  # type: ignore[attr-defined]  # the contract, which the kit checks
        assert kind.source  # type: ignore[attr-defined]  # the same
        assert (kind.__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("unifrom", {}, "did you mean uniform"),
        ("nonsense", {}, "known: uniform"),
        ("no.such.module:Mine", {}, "cannot import"),
        (":Mine", {}, "cannot import"),
        ("steelyard.policies:nothing", {}, "no policy class"),
        ("steelyard.policies._base:Range", {}, "no policy class"),
        ("throughput", {"gama": 1.0}, "did you mean gamma"),
        ("uniform", {"gamma": 1.0}, "known: none"),
        ("throughput", {"gamma": 3}, "a number from 0 to 2"),
        ("throughput", {"gamma": -0.1}, "a number from 0 to 2"),
        ("throughput", {"gamma": math.nan}, "a number from 0 to 2"),
        ("throughput", {"gamma": "much"}, "a number from 0 to 2"),
        ("throughput", {"gamma": True}, "a number from 0 to 2"),
        ("makespan", {"leave_out": 1}, "one of False, True"),
        ("makespan", {"leave_out": "yes"}, "one of False, True"),
        ("attention", {"temperature": 0.0}, "a number from 0.1 to 4"),
    ],
)
def test_wrong_policies_are_input_errors(name: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make_policy(name, values)
    assert "\n" not in str(caught.value)


def test_a_policy_from_text() -> None:
    assert policy_from_text("uniform") == Uniform()
    assert policy_from_text("throughput:gamma=0.5") == Throughput(gamma=0.5)
    assert policy_from_text("throughput:gamma=2") == Throughput(gamma=2.0)
    assert policy_from_text("makespan:leave_out=false") == Makespan(leave_out=False)
    assert policy_from_text("attention:speed=0:peak=1.5") == Attention(speed=0.0, peak=1.5)
    assert policy_from_text("steelyard.policies.proportional:Throughput:gamma=0.5") == Throughput(gamma=0.5)


@given(st.text(max_size=40))
def test_junk_is_no_policy(text: str) -> None:
    assume(text not in REGISTRY)
    with pytest.raises(InputError):
        policy_from_text(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no name"),
        ("policy = 3", "has no name"),
        ("[policy]\nname = 3", "has no name"),
        ('[policy]\nname = "throughput"\nparameters = 3', "not a table"),
        ('[policy]\nname = "throughput"\n[policy.parameters]\ngamma = 9', "a number from 0 to 2"),
        ("[policy", "not TOML"),
    ],
)
def test_a_wrong_policy_file_is_an_input_error(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "best.toml").write_text(content)
    with pytest.raises(InputError, match=said):
        policy_from_text(str(tmp_path / "best.toml"))


def test_a_missing_policy_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        policy_from_text(str(tmp_path / "none.toml"))


def test_a_policy_of_ones_own_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_document: Callable[..., dict[str, Any]]
) -> None:
    name = f"own_policy_{random.randrange(10**9)}"  # modules stay imported: no two runs in one process may share it
    (tmp_path / f"{name}.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import Annotated\n"
        "from steelyard.policies import Range\n"
        "from steelyard.policies._base import round_shares\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine:\n"
        "    '''Shares by memory.'''\n"
        "    name = 'mine'\n"
        "    power: Annotated[float, Range(0, 1)] = 0.5\n"
        "    def allocate(self, view):\n"
        "        return round_shares(view, [d.memory_bytes ** self.power for d in view.devices])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    policy = policy_from_text(f"{name}:Mine:power=1")
    scenario = scenario_from(make_document())
    assert policy.allocate(View.of(scenario)).split() == {"fast": 24, "slow": 8}
    with pytest.raises(InputError, match="a number from 0 to 1"):
        policy_from_text(f"{name}:Mine:power=2")


@pytest.mark.parametrize(
    "text", ["throughput(gamma=0.5)", "throughput( gamma = 0.5 )", "throughput:gamma=0.5", " throughput (gamma=0.5)"]
)
def test_parameters_in_either_notation(text: str) -> None:
    assert policy_from_text(text) == Throughput(gamma=0.5)


def test_a_module_takes_parameters_in_parentheses() -> None:
    assert policy_from_text("steelyard.policies.proportional:Throughput(gamma=0.5)") == Throughput(gamma=0.5)


@pytest.mark.parametrize("text", ["throughput(gamma=0.5", "throughput(gamma)", "throughput(gamma=0.5))", "(gamma=1)"])
def test_broken_notation_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        policy_from_text(text)


def test_policies_are_those_given_else_the_scenarios_else_the_defaults(quiet_scenario: Scenario) -> None:
    own = quiet_scenario.model_copy(update={"policies": ["makespan", "throughput(gamma=2.0)"]})
    assert policies_for(own, ["uniform"]) == [Uniform()]
    assert policies_for(own) == [Makespan(), Throughput(gamma=2.0)]
    assert policies_for(quiet_scenario) == [policy_from_text(name) for name in DEFAULTS]


def test_a_search_looks_among_the_policies_that_the_scenarios_name(quiet_scenario: Scenario) -> None:
    """Without their settings, each once; a planner goes with ``grid``, whose defaults often fit nowhere."""
    texts = ["makespan", "throughput(gamma=2.0)", "makespan(leave_out=false)"]
    own = quiet_scenario.model_copy(update={"policies": texts})
    other = quiet_scenario.model_copy(update={"policies": ["grid(pipeline=2)", "uniform"]})
    assert names_for([own]) == ["makespan", "throughput"]
    assert names_for([own, other]) == ["makespan", "throughput", "grid", "uniform", "hybrid"]
    assert names_for([quiet_scenario]) == list(DEFAULTS)


def test_the_plans_of_the_defaults_can_be_replayed(quiet_scenario: Scenario) -> None:
    for policy in policies_for(quiet_scenario):
        policy.allocate(View.of(quiet_scenario)).require_data_parallel()
