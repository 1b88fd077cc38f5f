"""The hybrid planner on hundreds of unlike devices: seconds of the search, and what its plan is predicted to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from steelyard.policies.grid import Grid
from steelyard.policies.hybrid import Hybrid
from steelyard.sim import layer_profiles
from steelyard.sim.device import Cluster, Node
from steelyard.sim.engine import run_launches
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, load_device, load_link, load_model
from steelyard.sim.view import View
from steelyard.sim.workload import Workload

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "opt350_layer_profiles.json"
PER_NODE = 4
KINDS = (("A100-40", "nvidia-a100-sxm-40gb", "nvlink-3"), ("V100-16", "nvidia-v100-sxm-16gb", "nvlink-2"))
GRIDS = [(p, t, u) for p in (1, 2, 4, 8) for t in (1, 2, 4) for u in (1, 2, 4)]


def opt_350m(counts: tuple[int, int]) -> Scenario:
    """OPT-350M in fp32 on A100s and V100s, four to a machine, on 100 Gbit/s Ethernet; layers as measured."""
    model, profiles = load_model("opt-350m"), layer_profiles.load(SHARED)
    nodes = []
    for (profile, device, link), count in zip(KINDS, counts, strict=True):
        measured = profiles[profile].model_copy(update={"model": model.name})
        base = load_device(device).model_copy(update={"layer_profile": measured})
        for number in range(count // PER_NODE):
            name = f"{profile}-{number}"
            devices = [base.model_copy(update={"name": f"{name}/{place}"}) for place in range(PER_NODE)]
            nodes.append(Node(name=name, link=load_link(link), devices=devices))
    return Scenario.model_validate(
        {
            "name": "opt-350m",
            "cluster": Cluster(nodes=nodes, network=load_link("ethernet-100g")),
            "workload": Workload(model=model, global_batch=1024, sequence_length=2048, dtype="fp32"),
            "sampling": {"launches": 1, "steps": 3},
        }
    )


def throughput(scenario: Scenario, plan: Plan) -> float:
    ends = run_launches(scenario, plan, seed=0, launches=1, record=False)[0].ends
    return scenario.workload.global_batch / (ends[-1] - ends[-2])


@pytest.mark.bench
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize(("counts", "aim"), [((32, 96), 0.5), ((128, 384), 1.0)], ids=["128 devices", "512 devices"])
def test_a_plan_for_unlike_devices(counts: tuple[int, int], aim: float, scoreboard: Callable[..., None]) -> None:
    scenario = opt_350m(counts)
    view = View.of(scenario)
    start = time.perf_counter()
    plan = Hybrid().allocate(view)
    taken = time.perf_counter() - start
    start = time.process_time()
    assert Hybrid().allocate(view) == plan
    again = time.process_time() - start
    found = throughput(scenario, plan)
    best = 0.0
    for pipeline, tensor, size in GRIDS:
        try:
            regular = Grid(pipeline=pipeline, tensor=tensor, micro_batch=size, recompute="full").allocate(view)
        except Infeasible:
            continue
        best = max(best, throughput(scenario, regular))
    what = f"s to plan OPT-350M on {counts[0]} A100s and {counts[1]} V100s (a second time {again:.2f} s of processor): "
    what += f"{found:.1f} samples/s predicted by the engine, {found / best:.2f} x the best of {len(GRIDS)} grids"
    scoreboard(f"hybrid plan, {sum(counts)} devices", taken, aim=f"≤ {aim}", what=what)
    assert found >= best
