"""Aims of planners: what their plans are best at, and that a search over several objectives draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import make_policy, parameters, policy_class, policy_from_text
from steelyard.policies.aims import AIM, KNOWN, OBJECTIVE, Aim
from steelyard.policies.search import search, write_front
from steelyard.policies.search_space import Space
from steelyard.sim.measures import measure
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View

PLANNERS = ("hybrid", "amp", "sailor")


def machine(name: str, tflops: float, **figures: float) -> dict[str, Any]:
    device = {"name": f"{name}-gpu", "count": 4, "peak_tflops": {"fp32": tflops}, "memory_bandwidth_gb_per_s": 500}
    link = {"name": "inside", "latency_us": 1.0, "bandwidth_gb_per_s": 100.0}
    return {"name": name, "devices": [{**device, "memory_gib": 4.0, **figures}], "link": link}


def study(**objective: Any) -> Scenario:
    """Fast devices that are dear and hot, and slow ones that are neither."""
    layer = {
        "parameters": 2_000_000,
        "trainable_parameters": 2_000_000,
        "forward": [{"kind": "matmul", "flops": [2e11], "elements": [1e4]}],
        "backward": [{"kind": "matmul", "flops": [4e11], "elements": [1e4]}],
        "activation_elements": [1e6],
        "output_elements": [1e5],
        "tensor": {"divisor": 8, "forward_elements": [[1e5]], "backward_elements": [[1e5]]},
    }
    nodes = [
        machine("new", 20.0, price_usd_per_hour=4.0, idle_w=100.0, max_w=900.0),
        machine("old", 10.0, price_usd_per_hour=1.0, idle_w=20.0, max_w=120.0),
    ]
    return scenario_from(
        {
            "name": "priced",
            "cluster": {
                "nodes": nodes,
                "network": {"name": "between", "latency_us": 5.0, "bandwidth_gb_per_s": 5.0},
            },
            "workload": {
                "model": {"name": "toy", "layers": [{**layer, "name": f"layer{number}"} for number in range(6)]},
                "global_batch": 16,
            },
            "sampling": {"launches": 1, "steps": 3, "search_launches": 1},
            "objective": objective,
        }
    )


def cost(name: str, values: dict[str, Any]) -> float:
    found = measure(study(), make_policy(name, values), seed=0, launches=1, metrics=["cost"])
    return found["cost"]


@pytest.mark.parametrize("name", PLANNERS)
def test_an_aim_stands_in_place_of_the_objective(name: str) -> None:
    for metric in KNOWN:
        told = make_policy(name).allocate(View.of(study(metric=metric)))
        for other in (*KNOWN, "step_time_p90", "memory_headroom"):
            assert make_policy(name, {AIM: metric}).allocate(View.of(study(metric=other))) == told
    quick = make_policy(name).allocate(View.of(study()))
    assert make_policy(name).allocate(View.of(study(metric="step_time_p90"))) == quick, "planners know of no noise"


@pytest.mark.parametrize("name", PLANNERS)
def test_what_is_not_planned_for_is_refused_and_not_taken_for_throughput(name: str) -> None:
    view = View.of(study(metric="memory_headroom"))
    with pytest.raises(Infeasible, match=r"^objective\.metric: is memory_headroom, which is not planned for .*aim="):
        make_policy(name).allocate(view)


def test_every_planner_that_follows_an_objective_has_an_aim() -> None:
    for name in PLANNERS:
        (found,) = (each for each in parameters(policy_class(name)) if each.name == AIM)
        assert isinstance(found.space, Aim)
        assert found.default == OBJECTIVE


@pytest.mark.parametrize(
    ("metrics", "options"),
    [
        (["throughput", "cost"], ("throughput", "cost")),
        (["memory_headroom", "energy"], ("energy",)),
        (["step_time_p90", "throughput", "cost"], ("throughput", "cost")),
        (["memory_headroom"], ("throughput",)),
        (["cost"], None),
        (["step_time_p90"], None),
        ([], None),
    ],
)
def test_the_space_has_the_aims_that_are_searched_for(metrics: list[str], options: tuple[str, ...] | None) -> None:
    space = Space.of(["amp", "uniform"], metrics=metrics)
    found = space.parameters["amp"].get(AIM)
    assert (found.space.options if found is not None and found.space is not None else None) == options  # type: ignore[union-attr]
    drawn = [values.get(AIM) for name, values in space.fixed if name == "amp"]
    assert drawn == ([None] if options is None else list(options)), "each is among the first trials"


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_front_holds_what_each_aim_gives(sampler: str, tmp_path: Path) -> None:
    """With the scenario's objective alone no hybrid plan of the search was cheap."""
    arguments: dict[str, Any] = {"policies": ["hybrid", "uniform"], "objectives": ["throughput", "cost"]}
    result = search(study(), **arguments, trials=6, seed=1, sampler=sampler, workers=0)
    # The front goes from the fastest to the cheapest: the last of each aim is its cheapest.
    front = {row.parameters[AIM]: result.figures(row)["cost"] for row in result.front if row.policy == "hybrid"}
    assert set(front) == {"throughput", "cost"}
    assert front["cost"] < 0.9 * front["throughput"]
    assert front["cost"] <= cost("hybrid", {AIM: "cost"}) * (1 + 1e-9)
    files = write_front(result, tmp_path / "front.toml")[1:]
    row = result.front[-1]
    assert policy_from_text(str(files[-1])) == make_policy(row.policy, row.parameters)
    assert cost(row.policy, row.parameters) == pytest.approx(front["cost"], rel=1e-9), "whatever the scenario says"


def test_a_search_for_what_is_not_planned_for_names_the_aim() -> None:
    result = search(study(), policies=["amp"], objectives=["memory_headroom"], trials=2, seed=1, workers=0)
    assert {row.parameters[AIM] for row in result.trials} == {"throughput"}
