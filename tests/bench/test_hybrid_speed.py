"""Planners of hybrids on hundreds of unlike devices: seconds from scenario to plan, and what comes of the plans."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from steelyard.policies import make_policy
from steelyard.policies.grid import Grid
from steelyard.sim.engine import run_launches
from steelyard.sim.estimate import Estimator
from steelyard.sim.plan import Infeasible, Plan
from steelyard.sim.spec import Scenario, load_scenario, shipped_text
from steelyard.sim.view import Policy, View

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "opt350_layer_profiles.json"
PROFILES = ("A100-40", "V100-16")
GRIDS = list(itertools.product((1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 8), ("none", "selective", "full"), (0, 1, 2)))
"""Pipeline, tensor, micro-batch, recompute, ZeRO."""
SIMULATED = 8
OTHERS = ("amp", "sailor")


def opt_350m(counts: tuple[int, int], folder: Path) -> Scenario:
    """The shipped scenario with so many machines of each kind, and layers as measured."""
    shutil.copy(SHARED, folder)
    file = folder / "mixed.toml"
    file.write_text(shipped_text("scenarios", "mixed-128"))
    settings = [f"cluster.nodes.{place}.count={count}" for place, count in enumerate(counts)]
    for place, name in enumerate(PROFILES):
        settings.append(f'cluster.nodes.{place}.devices.0.layer_profile="{SHARED.name}#{name}"')
    return load_scenario(file, settings)


def throughput(scenario: Scenario, plan: Plan) -> float:
    ends = run_launches(scenario, plan, seed=0, launches=1, record=False)[0].ends
    return scenario.workload.global_batch / (ends[-1] - ends[-2])


def planned(scenario: Scenario, policy: Policy) -> tuple[Plan, float]:
    """A plan, and seconds of wall time from the scenario to it."""
    started = time.perf_counter()
    plan = policy.allocate(View.of(scenario))
    return plan, time.perf_counter() - started


def best_grid(scenario: Scenario) -> tuple[float, str]:
    """Samples per second of the best regular plan by the engine, of those that the estimate puts first; its name."""
    view, plans = View.of(scenario), dict[str, Plan]()
    for pipeline, tensor, size, recompute, zero in GRIDS:
        policy = Grid(pipeline=pipeline, tensor=tensor, micro_batch=size, recompute=recompute, zero=zero)
        name = f"{pipeline} stages, tensor {tensor}, micro-batch {size}, {recompute}, ZeRO {zero}"
        with contextlib.suppress(Infeasible):
            plans[name] = policy.allocate(view)
    estimator = Estimator(view)
    first = sorted(plans, key=lambda name: estimator.of(plans[name]).step_s)[:SIMULATED]
    return max((throughput(scenario, plans[name]), name) for name in first)


@pytest.mark.bench
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize(("machines", "aim"), [((8, 24), 0.5), ((32, 96), 1.0)], ids=["128 devices", "512 devices"])
def test_a_plan_for_unlike_devices(
    machines: tuple[int, int], aim: float, tmp_path: Path, scoreboard: Callable[..., None]
) -> None:
    scenario = opt_350m(machines, tmp_path)
    plan, taken = planned(scenario, make_policy("hybrid"))
    start = time.process_time()
    assert planned(scenario, make_policy("hybrid"))[0] == plan
    again = time.process_time() - start
    found = throughput(scenario, plan)
    regular, shape = best_grid(scenario)
    told = [f"{found / regular:.2f} x the best of {len(GRIDS)} grids ({shape})"]
    for name in OTHERS:
        other, seconds = planned(scenario, make_policy(name))
        told.append(f"{found / throughput(scenario, other):.2f} x {name} ({seconds:.1f} s)")
    a100s, v100s = (4 * count for count in machines)
    what = f"s from scenario to plan, OPT-350M on {a100s} A100s and {v100s} V100s (a second time {again:.2f} s of "
    what += f"processor): {found:.1f} samples/s predicted by the engine, {', '.join(told)}"
    scoreboard(f"hybrid plan, {a100s + v100s} devices", taken, aim=f"≤ {aim}", what=what)
    assert found >= regular
