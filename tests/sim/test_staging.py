"""What a pass of a stage takes beyond its layers is added to pipelines, to each pass, and to nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import LayerPoint, LayerProfile, StagePass
from steelyard.sim.plan import Plan
from steelyard.sim.program import Program
from steelyard.sim.spec import Scenario

seconds = st.floats(0.0, 1e-3)


def measured(scenario: Scenario, extra: StagePass | None, slowdown: float = 1.0) -> Scenario:
    """The scenario with a table by layer, and such passes of stages, on every device."""
    layers = len(scenario.workload.layers)
    points = [
        LayerPoint(
            micro_batch=size,
            forward_s=[size * 1e-4] * layers,
            backward_s=[2e-4 * size] * layers,
            optimizer_s=[1e-4] * layers,
        )
        for size in (1, 8, 32)
    ]
    profile = LayerProfile(
        model=scenario.workload.model.name,
        sequence_length=scenario.workload.sequence_length,
        dtype=scenario.workload.dtype,
        points=points,
        stage_pass=extra,
    )
    nodes = [
        node.model_copy(
            update={
                "devices": [
                    each.model_copy(update={"layer_profile": profile, "slowdown": slowdown}) for each in node.devices
                ]
            }
        )
        for node in scenario.cluster.nodes
    ]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def pipeline(scenario: Scenario) -> Plan:
    layers = len(scenario.workload.layers)
    stages = [
        {"first": 0, "last": 1, "replicas": [{"devices": ["fast"]}]},
        {"first": 1, "last": layers, "replicas": [{"devices": ["slow"]}]},
    ]
    return Plan.parse({"pipelines": [{"stages": stages, "micro_batches": [8] * 4}], "schedule": "1f1b"})


def passes(program: Program, *, backward: bool) -> list[float]:
    return [job.seconds for worker in program.workers for chunk in worker.jobs[backward] for job in chunk]


@given(forward=seconds, backward=seconds, slowdown=st.floats(0.5, 3.0))
def test_every_pass_of_a_stage_takes_so_much_longer(
    scenario: Scenario, forward: float, backward: float, slowdown: float
) -> None:
    extra = StagePass(micro_batch=6, forward_s=forward, backward_s=backward)
    plan = pipeline(scenario)
    plain = compile_plan(measured(scenario, None, slowdown), plan)
    longer = compile_plan(measured(scenario, extra, slowdown), plan)
    for way, each in ((False, forward), (True, backward)):
        expected = [before + slowdown * each for before in passes(plain, backward=way)]
        assert passes(longer, backward=way) == pytest.approx(expected)


def test_who_hands_nothing_on_pays_nothing(scenario: Scenario) -> None:
    extra = StagePass(micro_batch=6, forward_s=1e-3, backward_s=1e-3)
    split = Plan.data_parallel(scenario.workload, {"fast": 20, "slow": 12})
    assert compile_plan(measured(scenario, extra), split) == compile_plan(measured(scenario, None), split)
