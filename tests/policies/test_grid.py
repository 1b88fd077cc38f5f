"""The grid: Megatron-LM's layout, cuts as equal as they can be, and a reason wherever there is no plan."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy, policy_from_text
from steelyard.policies.grid import Grid, equal_cuts
from steelyard.policies.testing import check_policy, scenarios
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View

MACHINES = 2
DEVICES = 4


def machine(name: str, count: int = DEVICES, **figures: Any) -> dict[str, Any]:
    device = {"name": f"{name}-gpu", "peak_tflops": {"fp32": 10.0}, "memory_gib": 4.0, "memory_bandwidth_gb_per_s": 500}
    link = {"name": "inside", "latency_us": 1.0, "bandwidth_gb_per_s": 100.0}
    return {"name": name, "devices": [{**device, "count": count, **figures}], "link": link}


def layer(number: int, flops: float) -> dict[str, Any]:
    work = {"kind": "matmul", "flops": [flops], "elements": [1e4]}
    sums = [[1e4]]
    return {
        "name": f"layer{number}",
        "parameters": 1_000_000,
        "trainable_parameters": 1_000_000,
        "forward": [work],
        "backward": [work, work],
        "activation_elements": [1e5],
        "output_elements": [1e4],
        "tensor": {"divisor": 8, "forward_elements": sums, "backward_elements": sums},
    }


def study(batch: int = 16, layers: int = 8, nodes: list[dict[str, Any]] | None = None, **workload: Any) -> Scenario:
    model = {"name": "toy", "layers": [layer(number, 1e9) for number in range(layers)]}
    network = {"name": "between", "latency_us": 5.0, "bandwidth_gb_per_s": 5.0}
    nodes = [machine(f"m{number}") for number in range(MACHINES)] if nodes is None else nodes
    return scenario_from(
        {
            "name": "toy",
            "cluster": {"nodes": nodes, "network": network},
            "workload": {"model": model, "global_batch": batch, **workload},
            "sampling": {"launches": 1, "steps": 2},
        }
    )


def plan_of(scenario: Scenario, **parameters: Any) -> Plan:
    return Grid(**parameters).allocate(View.of(scenario))


def placed(plan: Plan) -> list[list[list[str]]]:
    """Devices by pipeline and stage."""
    return [[stage.replicas[0].devices for stage in pipeline.stages] for pipeline in plan.pipelines]


# ---- cuts ----


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.data())
def test_the_largest_run_is_as_small_as_can_be(work: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(work)))
    bounds = equal_cuts(work, parts)
    assert bounds[0] == 0
    assert bounds[-1] == len(work)
    assert all(first < last for first, last in itertools.pairwise(bounds))
    assert len(bounds) == parts + 1

    def largest(ends: tuple[int, ...]) -> int:
        return max(sum(work[first:last]) for first, last in itertools.pairwise((0, *ends, len(work))))

    every = itertools.combinations(range(1, len(work)), parts - 1)
    assert largest(tuple(bounds[1:-1])) == min(map(largest, every))


@given(st.integers(1, 40), st.integers(1, 40))
def test_equal_work_is_cut_into_counts_that_differ_by_one(each: int, parts: int) -> None:
    entries = each * parts + (parts - 1 if each > 1 else 0)
    sizes = [last - first for first, last in itertools.pairwise(equal_cuts([7] * entries, parts))]
    assert max(sizes) - min(sizes) <= 1


def test_a_heavy_head_takes_layers_from_its_stage() -> None:
    # An embedding without FLOPs, four blocks, and a head as heavy as two: three stages of two blocks' work.
    assert equal_cuts([0, 5, 5, 5, 5, 10], 3) == [0, 3, 5, 6]


# ---- layout ----


def test_tensor_groups_are_neighbours_and_stages_furthest_apart() -> None:
    plan = plan_of(study(), data=2, pipeline=2, tensor=2)
    assert placed(plan) == [
        [["m0-gpu-0", "m0-gpu-1"], ["m1-gpu-0", "m1-gpu-1"]],
        [["m0-gpu-2", "m0-gpu-3"], ["m1-gpu-2", "m1-gpu-3"]],
    ]


def test_groups_stay_within_machines_as_long_as_these_have_enough() -> None:
    scenario = study(nodes=[machine("a", 3), machine("b", 3), machine("c", 2)])
    node_of = scenario.cluster.node_of
    groups = [stages[0] for stages in placed(plan_of(scenario, tensor=2))]
    crossing = [len({node_of[name] for name in group}) > 1 for group in groups]
    assert crossing == [False, False, False, True]


def test_faster_machines_come_first_whatever_the_order() -> None:
    slow, fast = machine("slow"), machine("fast", peak_tflops={"fp32": 40.0})
    for nodes in ([slow, fast], [fast, slow]):
        (stages,) = placed(plan_of(study(nodes=nodes), data=1, pipeline=4))
        assert all("fast" in stage[0] for stage in stages)


def test_the_remainder_of_the_batch_goes_to_the_first_pipelines() -> None:
    plan = plan_of(study(batch=11), data=3, micro_batch=2)
    assert [pipeline.micro_batches for pipeline in plan.pipelines] == [[2, 2], [2, 2], [2, 1]]


def test_zero_pipelines_are_all_that_the_devices_make() -> None:
    for degrees, count in (({}, 8), ({"tensor": 2}, 4), ({"pipeline": 3}, 2), ({"pipeline": 2, "tensor": 4}, 1)):
        assert len(plan_of(study(), **degrees).pipelines) == count


def test_interleaved_stages_go_round_their_devices() -> None:
    plan = plan_of(study(batch=20, layers=8), data=1, pipeline=2, chunks=2, schedule="interleaved", micro_batch=4)
    (stages,) = placed(plan)
    assert stages[0] == stages[2] != stages[1] == stages[3]
    assert len(plan.pipelines[0].micro_batches) == 6  # five would do, and are no multiple of two
    assert sum(plan.pipelines[0].micro_batches) == 20


def test_one_stage_on_whole_batches_is_the_uniform_plan() -> None:
    scenario = study()
    uniform = make_policy("uniform").allocate(View.of(scenario))
    assert plan_of(scenario, micro_batch=16).sha256 == uniform.sha256


def test_options_reach_the_plan() -> None:
    parameters = {"pipeline": 2, "tensor": 2, "recompute": "full", "zero": 1, "sequence_parallel": True}
    plan = plan_of(study(), schedule="gpipe", **parameters)
    stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
    assert {(stage.recompute, stage.sequence_parallel) for stage in stages} == {("full", True)}
    assert (plan.schedule, plan.zero) == ("gpipe", 1)
    assert plan_of(study(), sync_every=4).sync_every == 4


# ---- no plan ----


@pytest.mark.parametrize(
    ("parameters", "path", "reason"),
    [
        ({"data": -1}, "data", "-1"),
        ({"tensor": 0}, "tensor", "at least 1"),
        ({"micro_batch": 0}, "micro_batch", "at least 1"),
        ({"sync_every": 0}, "sync_every", "at least 1"),
        ({"data": 9}, "data", "9 x 1 x 1"),
        ({"data": 2, "pipeline": 2, "tensor": 4}, "data", "2 x 2 x 4"),
        ({"tensor": 16}, "pipeline", "1 x 1 x 16"),
        ({"tensor": 3}, "tensor", "8 parts"),
        ({"pipeline": 8, "chunks": 2, "schedule": "interleaved"}, "pipeline", "16 stages, the model has 8 layers"),
        ({"pipeline": 2, "schedule": "interleaved"}, "chunks", "is 1"),
        ({"pipeline": 2, "chunks": 2}, "chunks", "1f1b"),
        ({"chunks": 2, "schedule": "interleaved"}, "chunks", "a pipeline of 1"),
    ],
)
def test_what_cannot_be_laid_out_says_why(parameters: dict[str, Any], path: str, reason: str) -> None:
    with pytest.raises(Infeasible) as caught:
        plan_of(study(), **parameters)
    assert caught.value.path == f"policy.grid.{path}"
    assert reason in str(caught.value)


def test_fewer_samples_than_pipelines_are_infeasible() -> None:
    with pytest.raises(Infeasible, match="is 8, and there are 7 samples"):
        plan_of(study(batch=7))


def test_too_little_memory_names_device_stage_and_term() -> None:
    nodes = [machine("small", memory_gib=0.01)]
    with pytest.raises(Infeasible, match="GiB too much") as caught:
        plan_of(study(nodes=nodes), pipeline=2)
    assert caught.value.path == "pipelines.0.stages.0"


def test_a_layer_that_cannot_be_divided_is_named() -> None:
    document = study().model_dump(mode="json")
    document["workload"]["model"]["layers"][3]["tensor"] = None
    with pytest.raises(Infeasible, match="'layer3' cannot be divided"):
        plan_of(scenario_from(document), tensor=2)


# ---- the contract ----

DEGREES = (
    {"pipeline": 2},
    {"pipeline": 3, "schedule": "gpipe", "micro_batch": 4, "recompute": "full"},
    {"tensor": 2, "micro_batch": 64, "sequence_parallel": True},
    {"data": 2, "zero": 3, "micro_batch": 8},
    {"data": 2, "sync_every": 3},
)


@pytest.mark.parametrize("parameters", DEGREES, ids=str)
def test_every_shape_keeps_the_contract(parameters: dict[str, Any]) -> None:
    check_policy(Grid(**parameters), max_examples=25, unit_free=True)


@settings(max_examples=25)
@given(scenarios(), st.sampled_from(DEGREES))
def test_what_is_laid_out_can_be_simulated(scenario: Scenario, parameters: dict[str, Any]) -> None:
    try:
        run = simulate(scenario, Grid(**parameters))
    except Infeasible:
        return
    assert run.summary.step_time_s.p50 > 0


@given(
    st.fixed_dictionaries(
        {"data": st.integers(0, 99), "tensor": st.integers(1, 64), "schedule": st.sampled_from(["1f1b", "gpipe"])}
    )
)
def test_a_label_is_a_policy_again(parameters: dict[str, Any]) -> None:
    from steelyard.sim.view import describe

    policy = Grid(**parameters)
    assert policy_from_text(describe(policy).label()) == policy
