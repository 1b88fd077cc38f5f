"""Placement policies on real scenarios: what they leave alone, how they differ, and how many devices they need."""

from __future__ import annotations

import itertools

import pytest
from steelyard.policies import policy_from_text
from steelyard.policies._base import canonical
from steelyard.policies.testing import reordered
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, load_scenario, scenario_from
from steelyard.sim.view import Fixed, View, allocate

NAMES = ("place-single", "m-topo", "m-etf", "heft", "attention-operators")


def plans(scenario: Scenario) -> dict[str, Plan]:
    return {name: allocate(policy_from_text(name), View.of(scenario), scenario) for name in NAMES}


@pytest.fixture(scope="module")
def towers() -> Scenario:
    return load_scenario("two-towers")


def changed(scenario: Scenario, **workload: object) -> Scenario:
    document = scenario.model_dump(mode="json")
    document["workload"] |= workload
    return scenario_from(document)


def test_all_policies_make_plans_of_their_own(towers: Scenario) -> None:
    made = plans(towers)
    assert len({plan.sha256 for plan in made.values()}) == len(NAMES)
    assert {name: len(plan.pipelines[0].devices) for name, plan in made.items()} == {
        "place-single": 1,
        "m-topo": 2,
        "m-etf": 2,
        "heft": 2,
        "attention-operators": 2,
    }


def test_branches_side_by_side_are_faster_than_one_device_and_than_a_cut(towers: Scenario) -> None:
    """A cut in topological order lets one device wait for the other; by branches both work, and HEFT evens them out."""
    step_s = {name: simulate(towers, Fixed(plan)).summary.step_time_s.p50 for name, plan in plans(towers).items()}
    assert step_s["attention-operators"] <= step_s["heft"] < step_s["m-etf"] < step_s["place-single"] < step_s["m-topo"]


def test_heft_takes_layers_out_of_the_order_of_the_file(towers: Scenario) -> None:
    """The plan says in which order; in a document it is there only where it differs from the layers'."""
    made = plans(towers)
    assert made["heft"].pipelines[0].order is not None
    assert Plan.parse(made["heft"].document()) == made["heft"]
    for name in ("place-single", "m-topo", "m-etf"):
        assert made[name].pipelines[0].order is None
        assert "order" not in str(made[name].document())


@pytest.mark.parametrize("name", NAMES)
def test_several_micro_batches(towers: Scenario, name: str) -> None:
    """As a pipeline where all of them fit at once; the plan is valid, and every sample is worked on."""
    scenario = changed(towers, max_micro_batch=24)
    made = allocate(policy_from_text(name), View.of(scenario), scenario)
    assert made.pipelines[0].micro_batches == [22, 21, 21]
    assert made.schedule == "gpipe"


def test_micro_batches_that_do_not_fit_together_come_one_after_the_other(towers: Scenario) -> None:
    """2048 pairs in micro-batches of 64: all their activations are over 200 GiB, one micro-batch's are under 7."""
    scenario = changed(towers, global_batch=2048, max_micro_batch=64)
    for name in ("m-topo", "m-etf", "heft", "attention-operators"):
        made = allocate(policy_from_text(name), View.of(scenario), scenario)
        assert made.schedule == "accumulate"
        assert len(made.pipelines[0].micro_batches) == 32


def test_one_device_takes_as_many_micro_batches_as_its_memory_asks_for(towers: Scenario) -> None:
    whole = changed(towers, global_batch=2048)
    made = allocate(policy_from_text("place-single"), View.of(whole), whole)
    assert made.pipelines[0].devices == ["rtx-4090"]
    assert 1 < len(made.pipelines[0].micro_batches) < 2048


def test_a_model_that_fits_nowhere_is_refused_with_a_reason() -> None:
    scenario = changed(load_scenario("two-gpus-one-box"), model=load_scenario("llama-70b").workload.model.model_dump())
    for name in NAMES:
        with pytest.raises(Infeasible, match="fits on no"):
            policy_from_text(name).allocate(View.of(scenario))


def test_devices_in_like_places_are_taken_machine_by_machine() -> None:
    """Whatever the names and the order: neighbours in the view are in one machine as long as it has any."""
    document = load_scenario("mixed-gpus").model_dump(mode="json")
    node = document["cluster"]["nodes"][0]
    device = node["devices"][0]
    document["cluster"]["nodes"] = [
        {**node, "name": f"n{n}", "devices": [{**device, "name": f"{n}-{d}"} for d in range(3)]} for n in range(3)
    ]
    for order in range(5):
        scenario = reordered(scenario_from(document), order)
        machines = [scenario.cluster.node_of[device.name] for device in canonical(View.of(scenario)).devices]
        assert sum(a != b for a, b in itertools.pairwise(machines)) == 2
