"""View: what a policy sees of a scenario; and how a policy is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import REGISTRY, make_policy, policy_class
from steelyard.results.errors import InputError
from steelyard.sim import cost
from steelyard.sim.engine import run_id
from steelyard.sim.plan import Plan, PlanError
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import Fixed, Policy, View, allocate, describe

Document = dict[str, Any]


def test_the_view_shows_the_figures_of_the_devices(quiet_scenario: Scenario) -> None:
    view = View.of(quiet_scenario)
    fast, slow = view.devices
    assert [fast.name, slow.name] == ["fast", "slow"]
    assert fast.peak_flops == 1e12
    assert slow.step_s(8) == pytest.approx(3 * fast.step_s(8))
    assert view.speeds[0] == pytest.approx(3 * view.speeds[1])
    assert view.speeds[0] == pytest.approx(16 / (3e-3 + 1.5e-3 * 16 + 8e-4))
    assert view.global_batch == 32
    assert view.sync_s(["fast", "slow"]) > view.sync_s(["fast"]) == 0.0


def test_no_samples_take_no_time(quiet_scenario: Scenario) -> None:
    assert View.of(quiet_scenario).devices[0].step_s(0) == 0.0


@given(room=st.integers(0, 40), largest=st.one_of(st.none(), st.integers(1, 40)))
def test_capacity_is_what_plans_may_hold(
    make_document: Callable[..., Document], room: int, largest: int | None
) -> None:
    """Each device alone: it takes its capacity and no sample more, as Plan.check judges a plan cut by the workload."""
    document = make_document(noisy=False)
    workload = scenario_from(document).workload
    need = workload.state_bytes + (room + 0.5) * workload.activation_bytes_per_sample
    document["cluster"]["nodes"][0]["devices"][0]["memory_gib"] = need / 2**30
    document["workload"]["max_micro_batch"] = largest
    scenario = scenario_from(document)
    device = View.of(scenario).devices[0]

    def valid(samples: int) -> bool:
        try:
            Plan.data_parallel(scenario.workload, {"fast": samples, "slow": 32 - samples}).check(scenario)
        except PlanError:
            return False
        return True

    assert all(valid(samples) for samples in range(1, device.capacity + 1))
    if device.capacity < 32 and largest is None:
        assert not any(valid(samples) for samples in range(device.capacity + 1, 33))
    if largest is not None and largest <= room:
        assert device.capacity == 32


def test_the_plan_of_some_samples(quiet_scenario: Scenario) -> None:
    view = View.of(quiet_scenario)
    assert view.plan([30, 2]).split() == {"fast": 30, "slow": 2}
    assert view.plan([32, 0]).split() == {"fast": 32}
    with pytest.raises(ValueError, match="shorter"):
        view.plan([32])


def test_estimates_are_the_cost_model(quiet_scenario: Scenario) -> None:
    device, seen = quiet_scenario.cluster.devices[0], View.of(quiet_scenario).devices[0]
    assert seen.cost == cost.device_cost(device, quiet_scenario.workload)
    assert seen.step_s(5) == seen.cost.compute_s(5) + seen.cost.optimizer_s


# How a policy is recorded


@dataclass(frozen=True)
class Mine:
    """Everything to the first device."""

    weight: float = 0.5

    def allocate(self, view: View) -> Plan:
        return view.plan([view.global_batch] + [0] * (len(view.devices) - 1))


def test_a_policy_is_recorded_with_name_parameters_and_source() -> None:
    record = describe(make_policy("throughput", {"gamma": 0.5}))
    assert record.name == "throughput"
    assert record.parameters == {"gamma": 0.5}
    assert len(record.source_sha256) == 64
    assert record.source_sha256 != describe(make_policy("makespan")).source_sha256


def test_a_policy_of_a_user_is_recorded_by_its_path() -> None:
    record = describe(Mine(0.25))
    assert record.name.endswith(":Mine")
    assert record.parameters == {"weight": 0.25}


def test_a_class_without_a_file_is_recorded_by_its_name() -> None:
    space: dict[str, Any] = {"__name__": "prompt"}
    exec("class Typed:\n    def allocate(self, view):\n        return None\n", space)
    record = describe(space["Typed"]())
    assert record.name == "prompt:Typed"
    assert len(record.source_sha256) == 64


def test_a_fixed_plan_is_a_policy(quiet_scenario: Scenario) -> None:
    plan = Plan.data_parallel(quiet_scenario.workload, {"fast": 32})
    assert Fixed(plan).allocate(View.of(quiet_scenario)) is plan
    assert isinstance(Fixed(plan), Policy)
    assert describe(Fixed(plan)).name == "fixed"
    recorded = describe(make_policy("attention"))
    assert describe(Fixed(plan, recorded)) == recorded


@dataclass(frozen=True)
class Loose:
    """Answers with samples by name, and no plan."""

    def allocate(self, view: View) -> Any:
        return {device.name: 1 for device in view.devices}


def test_an_answer_is_judged_before_it_is_used(quiet_scenario: Scenario) -> None:
    view = View.of(quiet_scenario)
    assert allocate(Mine(), view, quiet_scenario).split() == {"fast": 32}
    with pytest.raises(PlanError, match=r"Loose.*gave a dict and no Plan"):
        allocate(Loose(), view, quiet_scenario)
    with pytest.raises(PlanError, match="the global batch is 32"):
        allocate(Fixed(Plan.data_parallel(quiet_scenario.workload, {"fast": 31})), view, quiet_scenario)


MODULE = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Taught:
    data_files: ClassVar[tuple[str, ...]] = {files}
"""


def taught(folder: Path, files: tuple[str, ...]) -> str:
    """Source digest of a policy in a module of its own, whose answers depend on some files beside it."""
    (folder / "taught.py").write_text(MODULE.format(files=files))
    spec = spec_from_file_location("taught", folder / "taught.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["taught"] = module  # where inspect looks for a class's file
    try:
        spec.loader.exec_module(module)
        return describe(module.Taught()).source_sha256
    finally:
        del sys.modules["taught"]


def test_other_weights_are_another_policy(tmp_path: Path) -> None:
    found = []
    for first, second in (("1", "2"), ("1", "3"), ("12", ""), ("", "12"), ("1", "2")):
        (tmp_path / "a.json").write_text(first)
        (tmp_path / "b.json").write_text(second)
        found.append(taught(tmp_path, ("a.json", "b.json")))
    assert found[0] == found[-1]
    assert len(set(found)) == 4
    none = taught(tmp_path, ())
    assert none == sha256((tmp_path / "taught.py").read_bytes()).hexdigest()  # the source alone, as ever


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Taught: data_files.*none\.json, which cannot be read"):
        taught(tmp_path, ("none.json",))


def test_trained_attention_is_recorded_with_its_weights(
    quiet_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file of weights is another run, though nothing else has changed."""
    policy = make_policy("attention-trained")
    plan = allocate(policy, View.of(quiet_scenario), quiet_scenario)
    before = run_id(quiet_scenario, policy, 0, plan)
    assert run_id(quiet_scenario, policy, 0, plan) == before
    monkeypatch.setattr(type(policy), "data_files", ("weights/attention-tuned.json",))
    assert run_id(quiet_scenario, policy, 0, plan) != before


def test_every_shipped_file_of_weights_that_a_policy_reads_is_named_by_it() -> None:
    kinds = [policy_class(name) for name in REGISTRY]
    named = {each for kind in kinds for each in getattr(kind, "data_files", ())}
    assert named == {"weights/attention-trained.json"}  # the tuned one holds parameters, which are recorded anyway
