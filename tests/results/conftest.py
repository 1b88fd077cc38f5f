"""A small study made by the real engine: two devices with tables, and "measured" runs drawn with another seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from steelyard.policies import make_policy
from steelyard.results.record import Run
from steelyard.sim.device import Cluster, CollectivePoint, CollectiveTable, Device, Link, Node, Profile, ProfilePoint
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Sampling, Scenario
from steelyard.sim.view import Fixed
from steelyard.sim.workload import Layer, Model, Operator, Workload

STEP_NOISE = [-0.03, -0.02, -0.01, 0.0, 0.0, 0.01, 0.02, 0.05]
LAUNCH_NOISE = [-0.01, 0.0, 0.004, 0.006]
SPLITS = {"lean left": (20, 12), "near even": (17, 15)}


class Study(list[Run]):
    """Runs with a short repr: Hypothesis prints the arguments of a failing example."""

    def __repr__(self) -> str:
        return f"<{len(self)} runs>"


def make_workload() -> Workload:
    operator = Operator(kind="matmul", flops=[1e6], elements=[100.0])
    layers = [
        Layer(
            name=f"layer{number}",
            parameters=1000,
            trainable_parameters=1000,
            forward=[operator],
            backward=[operator],
            activation_elements=[100.0],
            output_elements=[10.0],
        )
        for number in range(2)
    ]
    return Workload(model=Model(name="tiny", layers=layers), global_batch=32)


def make_device(name: str, workload: Workload, seconds: float, noisy: bool) -> Device:
    points = [
        ProfilePoint(micro_batch=size, forward_s=seconds * (1 + size), backward_s=2 * seconds * (1 + size))
        for size in (1, 8, 32)
    ]
    noise = {"step_residuals": STEP_NOISE, "launch_residuals": LAUNCH_NOISE} if noisy else {}
    profile = Profile(workload=workload.key, points=points, optimizer_s=4 * seconds, **noise)
    return Device(
        name=name, peak_tflops={"fp32": 1e-4 / seconds}, memory_gib=1, memory_bandwidth_gb_per_s=10, profile=profile
    )


def make_scenario(noisy: bool = True, steps: int = 12, launches: int = 6) -> Scenario:
    workload = make_workload()
    devices = [make_device("left", workload, 1e-3, noisy), make_device("right", workload, 3e-3, noisy)]
    table = CollectiveTable(
        backend="gloo",
        devices=["left", "right"],
        points=[CollectivePoint(bytes=1000, seconds=1e-3), CollectivePoint(bytes=100_000, seconds=5e-3)],
    )
    link = Link(name="host", latency_us=1, bandwidth_gb_per_s=10)
    return Scenario(
        name="tiny-two",
        cluster=Cluster(nodes=[Node(name="here", devices=devices, link=link)], collectives=[table]),
        workload=workload,
        sampling=Sampling(launches=launches, steps=steps),
    )


def as_measured(run: Run, prediction: Run, **fields: object) -> Run:
    """A simulated run dressed as the measurement of another."""
    manifest = run.manifest.model_copy(
        update={
            "kind": "measured",
            "run_id": f"{run.manifest.run_id}-measured",
            "predicted_run_id": prediction.manifest.run_id,
            "prediction_sha256": "0" * 64,
            **fields,
        }
    )
    return dataclasses.replace(run, manifest=manifest)


def with_times_scaled(run: Run, factor: float) -> Run:
    """The run with all its times multiplied, in events and summary."""
    events = run.events.assign(start_s=run.events["start_s"] * factor, end_s=run.events["end_s"] * factor)
    times = run.summary.step_time_s
    scaled = {name: getattr(times, name) * factor for name in ("mean", "p10", "p50", "p90")}
    low, high = run.summary.median_interval_s
    summary = run.summary.model_copy(
        update={"step_time_s": times.model_copy(update=scaled), "median_interval_s": (low * factor, high * factor)}
    )
    return dataclasses.replace(run, events=events, summary=summary)


def make_study(noisy: bool = True, busy: bool = False) -> Study:
    """Six plans and the twin of the first: predictions with one seed, measurements with others."""
    scenario = make_scenario(noisy)
    policies = [(name, make_policy(name)) for name in ("uniform", "flops", "makespan", "linear-cost")]
    for label, (left, right) in SPLITS.items():
        plan = Plan.data_parallel(scenario.workload, {"left": left, "right": right})
        policies.append((label, Fixed(plan)))
    contention = {"busy": busy, "contended_percent": 1.5, "retries": 0, "drift_percent": {"left": 1.0, "right": -0.5}}
    runs = []
    for label, policy in policies:
        prediction = simulate(scenario, policy, seed=1, label=label)
        measured = simulate(scenario, policy, seed=2, label=label)
        runs += [prediction, as_measured(measured, prediction, provenance={"contention": contention})]
    twin = simulate(scenario, policies[0][1], seed=3, label="uniform (again)")
    return Study([*runs, as_measured(twin, runs[0], twin_of="uniform", provenance={"contention": contention})])


@pytest.fixture(scope="session")
def study() -> list[Run]:
    return make_study()


@pytest.fixture(scope="session")
def quiet_study() -> list[Run]:
    """Without noise: what is measured is what was predicted."""
    return make_study(noisy=False)


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    return make_scenario()


@pytest.fixture(scope="session", name="as_measured")
def as_measured_() -> Callable[..., Run]:
    return as_measured


@pytest.fixture(scope="session", name="with_times_scaled")
def with_times_scaled_() -> Callable[[Run, float], Run]:
    return with_times_scaled


@pytest.fixture(scope="session", name="make_study")
def make_study_() -> Callable[..., list[Run]]:
    return make_study


@pytest.fixture(scope="session", name="make_scenario")
def make_scenario_() -> Callable[..., Scenario]:
    return make_scenario
