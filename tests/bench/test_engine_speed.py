"""The engine beside a bare SimPy loop that has the same number of processes and of timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import pytest
import simpy
from steelyard.policies import make_policy
from steelyard.sim.engine import run_launches
from steelyard.sim.spec import scenario_from
from steelyard.sim.view import View

TURNS = 5
LAUNCHES, STEPS = 20, 50
OPERATIONS = 4
"""Forward, backward, all-reduce, optimizer: what a plan does per device and step."""


def _bare(devices: int) -> float:
    def process(env: simpy.Environment) -> Generator[simpy.Event, None, None]:
        for _ in range(STEPS * OPERATIONS):
            yield env.timeout(1.0)

    start = time.perf_counter()
    for _ in range(LAUNCHES):
        env = simpy.Environment()
        for _ in range(devices):
            env.process(process(env))
        env.run()
    return time.perf_counter() - start


@pytest.mark.bench
def test_engine_beside_bare_simpy(
    make_document: Callable[..., dict[str, object]], scoreboard: Callable[..., None]
) -> None:
    scenario = scenario_from({**make_document(), "sampling": {"launches": LAUNCHES, "steps": STEPS}})
    plan = make_policy("uniform").allocate(View.of(scenario))
    engine, bare = [], []
    for _ in range(TURNS):
        start = time.perf_counter()
        run_launches(scenario, plan, seed=0, launches=LAUNCHES, record=False)
        engine.append(time.perf_counter() - start)
        bare.append(_bare(len(plan.pipelines)))
    scoreboard(
        "engine",
        min(engine) / min(bare),
        aim="≤ 3.3",
        what="simulating noisy steps beside a bare SimPy loop with one timeout per operation of the plan",
    )
