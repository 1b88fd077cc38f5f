"""Sailor's search: unlike kinds pay together, a stage may mix them, and its replicas never leave their region."""

from __future__ import annotations

from typing import Any

import pytest
from steelyard.policies import REGISTRY, make_policy
from steelyard.policies.sailor import Sailor, regions_of
from steelyard.policies.shapes import Foundry
from steelyard.sim.engine import run_launches
from steelyard.sim.plan import Infeasible, Plan, PlanError
from steelyard.sim.spec import Scenario, load_scenario, scenario_from
from steelyard.sim.view import View


def study(
    nodes: list[tuple[str, int, float, float]], *, switches: bool = False, batch: int = 24, layers: int = 8
) -> Scenario:
    """Machines of (name, devices, TFLOP/s, GiB); with switches each of them is below one of its own."""
    work = {"kind": "matmul", "flops": [1e11], "elements": [1e4]}
    layer = {
        "name": "layer{}",
        "repeat": layers,
        "parameters": 2_000_000,
        "trainable_parameters": 2_000_000,
        "forward": [work],
        "backward": [work, work],
        "activation_elements": [1e6],
        "output_elements": [1e5],
        "tensor": {"divisor": 4, "forward_elements": [[1e5]], "backward_elements": [[1e5]]},
    }
    made: list[dict[str, Any]] = [
        {
            "name": name,
            "link": {"name": "inside", "latency_us": 1.0, "bandwidth_gb_per_s": 100.0},
            "devices": [
                {
                    "name": f"{name}-gpu",
                    "count": count,
                    "peak_tflops": {"fp32": speed},
                    "memory_gib": gib,
                    "memory_bandwidth_gb_per_s": 500,
                }
            ],
            **({"switch": f"rack-{name}"} if switches else {}),
        }
        for name, count, speed, gib in nodes
    ]
    network = {"name": "between", "latency_us": 5.0, "bandwidth_gb_per_s": 10.0}
    racks = [{"name": f"rack-{name}", "uplink": {**network, "bandwidth_gb_per_s": 2.0}} for name, *_ in nodes]
    cluster = {"nodes": made, "network": network, **({"switches": racks} if switches else {})}
    workload = {"model": {"name": "toy", "layers": [layer]}, "global_batch": batch}
    return scenario_from(
        {"name": "toy", "cluster": cluster, "workload": workload, "sampling": {"launches": 1, "steps": 3}}
    )


def throughput(scenario: Scenario, plan: Plan) -> float:
    """By the engine."""
    ends = run_launches(scenario, plan, seed=0, launches=1, record=False)[0].ends
    return scenario.workload.global_batch / (ends[-1] - ends[-2])


def planned(scenario: Scenario, **parameters: Any) -> Plan:
    plan = Sailor(**parameters).allocate(View.of(scenario))
    plan.check(scenario)
    return plan


def test_unlike_kinds_together_are_faster_than_each_alone() -> None:
    """The paper's first claim: heterogeneous GPUs can improve throughput (Strati et al. 2025, abstract)."""
    both = [("new", 4, 20.0, 4.0), ("old", 4, 14.0, 4.0)]
    together = throughput(study(both), planned(study(both)))
    for alone in both:
        scenario = study([alone])
        assert together > 1.15 * throughput(scenario, planned(scenario))


def test_a_mixed_stage_beats_all_pipelines_whose_stages_are_of_one_kind() -> None:
    """Half of the model fits on a device: two stages of two replicas, of which one replica can only be the odd device.

    Data-parallel policies have no plan, no single pipeline is faster than ``cut-exact``'s, and three devices of a kind
    make one pipeline as well.
    """
    both = [("new", 3, 20.0, 0.15), ("old", 1, 19.0, 0.15)]
    scenario, alone = study(both, layers=6), study(both[:1], layers=6)
    mine = throughput(scenario, planned(scenario))
    for name in ("uniform", "flops", "throughput", "makespan"):
        with pytest.raises(Infeasible):
            make_policy(name).allocate(View.of(scenario))
    for name in ("cut-exact", "cut-uniform", "cut-flops"):
        assert mine > 1.2 * throughput(scenario, make_policy(name).allocate(View.of(scenario))), name
    assert mine > 1.2 * throughput(alone, planned(alone))


def test_a_stage_may_mix_kinds() -> None:
    """Three fast devices and one a little slower: two stages of two replicas, and the odd pair shares a stage."""
    scenario = study([("new", 3, 20.0, 0.2), ("old", 1, 19.0, 0.2)])
    plan = planned(scenario)
    kinds = [{name.split("-")[0] for p in plan.pipelines for name in p.stages[s].replicas[0].devices} for s in (0, 1)]
    assert len(plan.pipelines) == 2
    assert {"new", "old"} in kinds


def test_replicas_of_a_stage_stay_in_their_region() -> None:
    scenario = study([("a", 4, 20.0, 4.0), ("b", 4, 20.0, 4.0)], switches=True)
    view = View.of(scenario)
    assert len(regions_of(Foundry(view))) == 2
    plan = planned(scenario)
    for stage in range(len(plan.pipelines[0].stages)):
        assert len({each.stages[stage].replicas[0].devices[0].split("-")[0] for each in plan.pipelines}) == 1


def test_pipelines_are_equal_and_larger_stages_come_last() -> None:
    scenario = study([("a", 3, 20.0, 0.2)], layers=8)
    plan = planned(scenario)
    lengths = [stage.last - stage.first for stage in plan.pipelines[0].stages]
    assert lengths == sorted(lengths)
    assert max(lengths) - min(lengths) <= 1
    samples = [pipeline.samples for pipeline in plan.pipelines]
    assert max(samples) - min(samples) <= 1


def test_what_fits_nowhere_is_refused() -> None:
    with pytest.raises(Infeasible, match="fits nowhere"):
        planned(study([("a", 2, 20.0, 0.001)]))


def test_a_shipped_scenario_tells_it_from_all_others() -> None:
    """On unlike servers; policies that find no plan there differ by that."""
    scenario = load_scenario("mixed-servers")
    view = View.of(scenario)
    mine = planned(scenario)
    for name in REGISTRY:
        if name == "sailor":
            continue
        try:
            other = make_policy(name).allocate(view)
        except (Infeasible, PlanError):
            continue
        assert other.sha256 != mine.sha256, name
