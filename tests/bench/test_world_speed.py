"""The engine on large plans: beside a bare SimPy loop, and against the aims in seconds, each in one run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import simpy
from steelyard.policies import make_policy
from steelyard.sim import loop, recurrence
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Cluster, Device, LayerPoint, LayerProfile, Link, Node
from steelyard.sim.engine import objective_value, run_launches
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.program import Program
from steelyard.sim.running import Factors
from steelyard.sim.spec import Scenario
from steelyard.sim.workload import Layer, Model, Operator, TensorSplit, Workload

TURNS = 5
PER_NODE = 8
WORK = Operator(kind="matmul", flops=[1.0], elements=[1.0])
SPLIT = TensorSplit(divisor=64, forward_elements=[[0.0]], backward_elements=[[0.0]])
EVERY_STEP = Factors(syncs={-1: []})
"""Noise of nothing: every step and every micro-batch is simulated."""


# Worlds


def cluster(count: int, layers: int, nics: int, speeds: tuple[float, ...] = (1.0,), gb_per_s: float = 25.0) -> Cluster:
    """Machines of eight devices; layers take 1 ms forward and 2 ms backward on the fastest."""
    kinds = []
    for speed in speeds:
        points = [
            LayerPoint(
                micro_batch=size,
                tensor_degree=degree,
                forward_s=[1e-3 * size / speed / degree] * layers,
                backward_s=[2e-3 * size / speed / degree] * layers,
                optimizer_s=[1e-4] * layers,
            )
            for degree in (1, 4, 8)
            for size in (1, 2)
        ]
        kinds.append(LayerProfile(model="m", sequence_length=1, dtype="fp32", points=points))
    base = Device(name="x", peak_tflops={"fp32": 1.0}, memory_gib=1e6, memory_bandwidth_gb_per_s=1.0)
    fast = Link(name="inner", latency_us=2.0, bandwidth_gb_per_s=300.0)
    wide = Link(name="outer", latency_us=5.0, bandwidth_gb_per_s=gb_per_s)
    devices = [
        base.model_copy(update={"name": f"d{number:05}", "layer_profile": kinds[number // PER_NODE % len(kinds)]})
        for number in range(count)
    ]
    nodes = [
        Node(name=f"n{start}", devices=devices[start : start + PER_NODE], link=fast, nics=nics)
        for start in range(0, count, PER_NODE)
    ]
    return Cluster(nodes=nodes, network=wide)


def scenario(world: Cluster, layers: int, batch: int, steps: int = 25) -> Scenario:
    """A layer's output takes 0.16 ms on the outer link, its gradients 40 MB."""
    made = [
        Layer(
            name=f"l{number}",
            parameters=10**7,
            trainable_parameters=10**7,
            forward=[WORK],
            backward=[WORK],
            activation_elements=[10.0],
            output_elements=[1e6],
            tensor=SPLIT,
        )
        for number in range(layers)
    ]
    workload = Workload(
        model=Model(name="m", layers=made), global_batch=batch, sequence_length=1, dtype="fp32", optimizer="sgd"
    )
    sampling = {"launches": 1, "steps": steps}
    return Scenario.model_validate({"name": "big", "cluster": world, "workload": workload, "sampling": sampling})


def hybrid(names: list[str], pipelines: int, stages: int, degree: int, turns: int, schedule: Any = "1f1b") -> Plan:
    """Data x pipeline x tensor parallel, a layer per stage."""
    groups = [names[start : start + degree] for start in range(0, pipelines * stages * degree, degree)]
    return Plan(
        pipelines=[
            Pipeline(
                stages=[
                    Stage(first=s, last=s + 1, replicas=[Replica(devices=groups[p * stages + s])])
                    for s in range(stages)
                ],
                micro_batches=[1] * turns,
            )
            for p in range(pipelines)
        ],
        schedule=schedule,
    )


def big(pipelines: int, stages: int, degree: int, turns: int, nics: int = 8, **changes: Any) -> tuple[Scenario, Plan]:
    world = scenario(cluster(pipelines * stages * degree, stages, nics), stages, pipelines * turns)
    plan = hybrid([device.name for device in world.cluster.devices], pipelines, stages, degree, turns, **changes)
    plan.check(world)
    return world, plan


def unlike(overlap: bool) -> tuple[Scenario, Plan]:
    """64 pipelines of 16 stages over 24 layers: other cuts, other micro-batches and devices of four speeds."""
    layers, stages, count = 24, 16, 64
    turns = [8 + number % 17 for number in range(count)]
    world = scenario(cluster(count * stages, layers, 1, speeds=(1.0, 1.1, 1.3, 1.7)), layers, sum(turns))
    names = [device.name for device in world.cluster.devices]
    pipelines = []
    for number in range(count):
        cuts = [0, *sorted(Random(number).sample(range(1, layers), stages - 1)), layers]
        own = names[number * stages : (number + 1) * stages]
        held = [
            Stage(first=first, last=last, replicas=[Replica(devices=[name])])
            for (first, last), name in zip(pairwise(cuts), own, strict=True)
        ]
        pipelines.append(Pipeline(stages=held, micro_batches=[1] * turns[number]))
    plan = Plan(pipelines=pipelines, schedule="1f1b", overlap=overlap)
    plan.check(world)
    return world, plan


# Measuring


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bare(processes: int, timeouts: int) -> None:
    """SimPy alone, as many processes and timeouts."""

    def process(env: simpy.Environment, count: int) -> Generator[simpy.Event, None, None]:
        for _ in range(count):
            yield env.timeout(1.0)

    env = simpy.Environment()
    for number in range(processes):
        env.process(process(env, timeouts // processes + (number < timeouts % processes)))
    env.run()


def operations(program: Program) -> int:
    """Of a step: computations, messages that take time, collectives, optimizer steps."""
    pieces = sum(
        1 + sum(send.transfer.alone_s > 0 for send in worker.job(piece).sends)
        for worker in program.workers
        for piece in worker.pieces
    )
    return pieces + len(program.syncs) + len(program.workers)


def step_s(world: Scenario, plan: Plan) -> float:
    """From a checked plan to the time of its step, through the same door as a search."""
    return run_launches(world, plan, seed=0, launches=1, record=False)[0].ends[0]


def one_step_s(world: Scenario, plan: Plan) -> float:
    """The same of a single step."""
    program = compile_plan(world, plan, folded=True)
    launch = recurrence.run_launch(program, steps=1, record=False) if recurrence.applies(program) else None
    return (launch or loop.run_launch(program, steps=1, record=False)).ends[0]


def least(call: Callable[[], object], turns: int = TURNS) -> float:
    return min(seconds(call) for _ in range(turns))


# Benchmarks


@pytest.mark.bench
@pytest.mark.parametrize("nics", [8, 1], ids=["own adapters", "shared adapters"])
def test_every_operation_beside_bare_simpy(nics: int, scoreboard: Callable[..., None]) -> None:
    """16 pipelines of 8 stages and 32 micro-batches, not folded, nothing left out."""
    steps, kept = 2, "" if nics == 8 else ", shared adapters"
    world, plan = big(16, 8, 1, 32, nics)
    # Stage by stage on the machines, so that every message leaves one.
    names = [device.name for device in world.cluster.devices]
    plan = hybrid([names[s * 16 + p] for p in range(16) for s in range(8)], 16, 8, 1, 32)
    program = compile_plan(world, plan)
    count = operations(program)
    engine, alone, used = [], [], []
    for _ in range(2 * TURNS):
        engine.append(seconds(lambda: loop.run_launch(program, EVERY_STEP, steps=steps, record=False)))
        alone.append(seconds(lambda: bare(len(program.workers), steps * count)))
        used.append(seconds(lambda: step_s(world, plan)))
    ratio = min(engine) / min(alone)
    what = f"event loop: 16 pipelines x 8 stages x 32 micro-batches ({count} operations a step) beside bare SimPy"
    scoreboard(f"loop{kept}", ratio, aim="≤ 3.3", what=what + kept)
    share = min(used) / min(alone)
    what = "the same plan, from plan to the times of 25 steps, beside bare SimPy for 2 of them"
    scoreboard(f"plan{kept}", share, aim="≤ 3.3", what=what)
    assert ratio <= 8.0


SHAPES = {
    "156 x 8 x 8, 1f1b": (156, 8, 8, 1000, 8, "1f1b"),
    "1250 x 8, 1f1b": (1250, 8, 1, 1000, 8, "1f1b"),
    "156 x 8 x 8, 1f1b, shared adapters": (156, 8, 8, 1000, 1, "1f1b"),
    "1250 x 8, 1f1b, shared adapters": (1250, 8, 1, 1000, 1, "1f1b"),
    "156 x 16 x 4, gpipe, shared adapters": (156, 16, 4, 500, 1, "gpipe"),
    "40 x 64 x 4, 1f1b, shared adapters": (40, 64, 4, 125, 1, "1f1b"),
}
"""Pipelines, stages, tensor-parallel degree, micro-batches, adapters per machine, schedule."""


@pytest.mark.bench
@pytest.mark.parametrize("name", SHAPES)
def test_ten_thousand_devices(name: str, scoreboard: Callable[..., None]) -> None:
    pipelines, stages, degree, turns, nics, schedule = SHAPES[name]
    world, plan = big(pipelines, stages, degree, turns, nics, schedule=schedule)
    first = seconds(lambda: one_step_s(world, plan))
    again = least(lambda: one_step_s(world, plan.model_copy()))
    whole = least(lambda: step_s(world, plan), 2)
    reference = least(lambda: bare(stages, 4 * stages * turns))
    what = f"s from plan to step time of {pipelines * stages * degree} devices; "
    what += f"first plan on a cluster {first:.2f} s, 25 steps {whole:.2f} s"
    scoreboard(f"10,000 devices, {name}", again, aim="≤ 0.1", what=what)
    assert again <= 12 * reference


@pytest.mark.bench
@pytest.mark.parametrize("overlap", [False, True], ids=["after", "beside"])
def test_a_thousand_devices_without_two_pipelines_alike(overlap: bool, scoreboard: Callable[..., None]) -> None:
    world, plan = unlike(overlap)
    taken = least(lambda: step_s(world, plan), 2)
    program = compile_plan(world, plan, folded=True)
    assert len(program.workers) == 64 * 16
    when = "beside the backward pass" if overlap else "after the backward pass"
    what = f"s from plan to 25 steps of 1,024 devices, 64 pipelines no two alike, gradients {when}"
    scoreboard(f"1,024 unlike devices, {'beside' if overlap else 'after'}", taken, aim="≤ 5", what=what)


CHILD = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
import test_world_speed as speed
from steelyard.sim.engine import run_launches
made = speed.big(1250, 8, 1, 1000, 1) if sys.argv[2] == "big" else speed.unlike(True)
run_launches(*made, seed=0, launches=1, record=False)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.bench
@pytest.mark.parametrize("which", ["big", "unlike"])
def test_memory_of_a_fresh_process(which: str, scoreboard: Callable[..., None]) -> None:
    place = str(Path(__file__).parent)
    child = subprocess.run([sys.executable, "-c", CHILD, place, which], check=True, capture_output=True, text=True)
    gigabytes = json.loads(child.stdout) * 1024 / 1e9
    devices = "10,000 devices" if which == "big" else "1,024 unlike devices"
    scoreboard(f"memory, {devices}", gigabytes, aim="≤ 1", what=f"GB at the peak of a process that simulates {devices}")
    assert gigabytes <= 1.0


@pytest.mark.bench
@pytest.mark.parametrize("nics", [8, 1], ids=["recurrence", "loop"])
def test_ten_thousand_steps_cost_what_a_hundred_do(nics: int, scoreboard: Callable[..., None]) -> None:
    world, plan = big(4, 4, 1, 16, nics)
    few, many = (
        world.model_copy(update={"sampling": world.sampling.model_copy(update={"steps": n})}) for n in (100, 10_000)
    )
    base = least(lambda: step_s(few, plan))
    ratio = least(lambda: step_s(many, plan)) / base
    kept = "own adapters" if nics == 8 else "shared adapters"
    scoreboard(f"10,000 steps, {kept}", ratio, aim="≤ 3", what="10,000 deterministic steps beside 100 of the same plan")
    assert ratio <= 3.0


@pytest.mark.bench
def test_a_noisy_prediction_of_eight_devices(scoreboard: Callable[..., None]) -> None:
    """40 launches of 25 steps, as a search asks for them trial by trial."""
    world = scenario(cluster(8, 8, 1), 8, 64)
    sampling = world.sampling.model_copy(update={"launches": 40, "steps": 25})
    variation = world.variation.model_copy(update={"step_cv": 0.03, "network_cv": 0.05})
    noisy = world.model_copy(update={"sampling": sampling, "variation": variation})
    plan = hybrid([device.name for device in noisy.cluster.devices], 2, 4, 1, 32)
    plan = plan.model_copy(
        update={
            "pipelines": [
                each.model_copy(
                    update={
                        "stages": [
                            stage.model_copy(update={"first": 2 * n, "last": 2 * n + 2})
                            for n, stage in enumerate(each.stages)
                        ]
                    }
                )
                for each in plan.pipelines
            ]
        }
    )
    plan.check(noisy)
    program = compile_plan(noisy, plan, apart=True)
    taken = least(lambda: run_launches(noisy, plan, seed=0, launches=40, record=False), 3)
    alone = least(lambda: bare(len(program.workers), 40 * 25 * operations(program)), 2)
    what = f"a noisy prediction (2 pipelines x 4 stages x 32, 40 launches x 25 steps: {taken:.2f} s) beside bare SimPy"
    scoreboard("noisy prediction", taken / alone, aim="≤ 3.3", what=what)
    policy = make_policy("uniform")
    trial = least(lambda: objective_value(noisy, policy, seed=0, launches=40), 3)
    even = compile_plan(noisy, policy.allocate(_view(noisy)), apart=True)
    alone = least(lambda: bare(len(even.workers), 40 * 25 * operations(even)), 2)
    what = f"a trial of a search over 8 devices, data parallel ({1e3 * trial:.0f} ms), beside bare SimPy"
    scoreboard("noisy trial", trial / alone, aim="≤ 3.3", what=what)
    assert taken > 0


def _view(world: Scenario) -> Any:
    from steelyard.sim.view import View

    return View.of(world)
