"""Compiler: what a plan's program says about jobs, messages, groups, buckets and loaders."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim import cost
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Device
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.summary import guessed_share
from steelyard.sim.workload import TensorSplit

GB = 10**9


def names(first: int, count: int) -> list[str]:
    return [f"d{number}" for number in range(first, first + count)]


# Messages


@st.composite
def cut_in_replicas(draw: st.DrawFn) -> Plan:
    """One pipeline over four layers, each stage with replicas of unequal shares."""
    cuts = [0, *sorted(draw(st.sets(st.integers(1, 3), max_size=3))), 4]
    stages, used = [], 0
    for first, last in itertools.pairwise(cuts):
        shares = draw(st.sampled_from([[1.0], [0.5, 0.5], [0.125, 0.875], [0.2, 0.3, 0.5]]))
        replicas = [Replica(devices=names(used + rank, 1), share=share) for rank, share in enumerate(shares)]
        used += len(shares)
        stages.append(Stage(first=first, last=last, replicas=replicas))
    return Plan(
        pipelines=[Pipeline(stages=stages, micro_batches=draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)))]
    )


@settings(max_examples=60)
@given(cut_in_replicas(), st.lists(st.integers(0, 9), min_size=4, max_size=4), st.booleans())
def test_every_sample_is_handed_on_once(build: Any, plan: Plan, outputs: list[int], skip: bool) -> None:
    """Bytes from stage to stage, over all pairs of replicas: samples x elements x 4, forward as backward."""
    devices = [build.device(f"d{n}", [1.0] * 4, [1.0] * 4) for n in range(12)]
    layers = [{}, {}, {}, {"inputs": ["l2", "l0"]}] if skip else []
    batch = sum(plan.pipelines[0].micro_batches)
    scenario = build.scenario(devices, batch=batch, outputs=[float(each) for each in outputs], layers=layers)
    plan.check(scenario)
    program = compile_plan(scenario, plan)
    found: Counter[tuple[bool, int, int, int]] = Counter()
    for worker in program.workers:
        for piece in worker.pieces:
            for send in worker.job(piece).sends:
                here, there = worker.stages[piece.chunk], program.workers[send.target].stages[send.chunk]
                size = round(send.transfer.volume_bytes)
                found[piece.backward, min(here, there), max(here, there), piece.micro_batch] += size
    stages = plan.pipelines[0].stages
    edges = scenario.workload.stage_edges(tuple(stage.first for stage in stages))
    expected = {
        (backward, edge.source, edge.target, number): round(4 * size * edge.elements)
        for backward in (False, True)
        for edge in edges
        for number, size in enumerate(plan.pipelines[0].micro_batches)
    }
    assert +found == {key: size for key, size in expected.items() if size}


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(("here", "there"), [(1, 1), (2, 2), (4, 2), (2, 4), (1, 4)])
def test_messages_between_groups(build: Any, here: int, there: int, sequence: bool) -> None:
    """Rank i sends a part to rank i, all side by side, over one adapter here: together the message, once.

    Scatter/gather (Narayanan et al. 2021, section 4.1), or the sequence's own division.
    """
    devices = [build.device(f"d{n}", [1.0, 1.0], [1.0, 1.0], degrees=(1, 2, 4)) for n in range(8)]
    layers = [{"tensor": TensorSplit(divisor=4)}] * 2
    scenario = build.scenario(devices, batch=1, per_node=4, layers=layers, outputs=GB / 4, gb_per_s=1.0)
    groups = [names(0, here), names(4, there)]
    plan = Plan(pipelines=[build.pipeline([0, 1, 2], groups, [1], sequence_parallel=sequence)])
    plan.check(scenario)
    transfer = compile_plan(scenario, plan).workers[0].jobs[0][0][0].sends[0].transfer
    pairs = max(here, there)
    assert transfer.volume_bytes == GB / pairs
    assert transfer.alone_s == pytest.approx(1.0)


# Jobs and groups


def test_equal_devices_of_a_group_are_one_member_unless_noise_sets_them_apart(build: Any) -> None:
    layers = [{"tensor": TensorSplit(divisor=4)}]
    slow = [1.0, 1.0, 2.0, 1.0]
    devices = [build.device(f"d{n}", [4.0], [8.0], degrees=(1, 4), slowdown=each) for n, each in enumerate(slow)]
    scenario = build.scenario(devices, batch=1, per_node=4, layers=layers)
    plan = Plan(pipelines=[build.pipeline([0, 1], [names(0, 4)], [1])])
    (worker,) = compile_plan(scenario, plan).workers
    assert worker.members == (("d0", "d1", "d3"), ("d2",))
    assert worker.jobs[0][0][0].compute_s == pytest.approx((1.0, 2.0))
    assert worker.jobs[1][0][0].seconds == pytest.approx(4.0)
    (apart,) = compile_plan(scenario, plan, apart=True).workers
    assert apart.members == (("d0",), ("d1",), ("d2",), ("d3",))
    assert build.step_s(scenario, plan) == pytest.approx(6.0)
    lines = build.ledgers(build.run(scenario, plan), ["d0", "d2"])
    assert lines["d0"].wait_s == pytest.approx(3.0)
    assert lines["d2"].wait_s == pytest.approx(0.0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.sampled_from(["none", "full"]))
def test_jobs_take_what_the_cost_model_says(build: Any, sizes: list[int], recompute: Any) -> None:
    device = build.device("d0", [1.0, 2.0, 4.0], [3.0, 5.0, 7.0])
    scenario = build.scenario([device, build.device("d1", [1.0] * 3, [1.0] * 3)], batch=sum(sizes))
    plan = Plan(pipelines=[build.pipeline([0, 2, 3], names(0, 2), sizes, recompute=recompute)])
    worker = compile_plan(scenario, plan).workers[0]
    for piece in worker.pieces:
        size = sizes[piece.micro_batch]
        time = cost.stage_time(device, scenario.workload, 0, 2, size, recompute=recompute)
        assert worker.job(piece).seconds == (time.backward_s if piece.backward else time.forward_s)
        again = 3.0 if recompute == "full" else 0.0
        assert worker.job(piece).seconds == pytest.approx(size * (8.0 + again if piece.backward else 3.0))
        assert worker.job(piece).samples == size


def test_layers_that_take_no_time(build: Any) -> None:
    """A reshape alone on a stage: measured, and too short to show."""
    scenario = build.chain([0.0, 1.0], [0.0, 2.0], 2, parameters=GB // 4, gb_per_s=1.0)
    for overlap in (False, True):
        plan = build.straight(2, 2, "1f1b").model_copy(update={"overlap": overlap})
        assert build.step_s(scenario, plan) == pytest.approx(6.0)


# Fidelity


def test_the_weakest_source_names_the_fidelity_and_the_guessed_share_says_how_much(build: Any) -> None:
    """Measured devices are not guessed at all, figures of a datasheet wholly, and a link's formula is a guess."""
    measured = build.device("d0", [1.0], [1.0])
    guessed = Device(name="d1", peak_tflops={"fp32": 1e-12}, memory_gib=1.0, memory_bandwidth_gb_per_s=1.0)
    scenario = build.scenario([measured, guessed], batch=2)
    for own, fidelity, share in ((["d0"], "profiled", 0.0), (["d1"], "datasheet", 1.0)):
        program = compile_plan(scenario, Plan(pipelines=[build.pipeline([0, 1], own, [2])]))
        assert program.fidelity == fidelity
        assert guessed_share(program) == pytest.approx(share)
    both = Plan(pipelines=[build.pipeline([0, 1], [name], [1]) for name in names(0, 2)])
    program = compile_plan(scenario, both)
    assert program.fidelity == "datasheet"
    assert 0.0 < guessed_share(program) < 1.0
    slow = build.scenario([measured, build.device("d1", [1.0], [1.0])], batch=2, parameters=GB // 4, gb_per_s=1.0)
    assert guessed_share(compile_plan(slow, both)) == pytest.approx(2 * 1.0 / (2 * 2.0 + 2 * 1.0))


# Buckets


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    least=st.integers(1, 60),
)
def test_buckets_are_full_but_the_last(build: Any, sizes: list[int], least: int) -> None:
    """From the last layer on; each at least the size asked for, and no more than a layer over it."""
    layers = len(sizes)
    devices = [build.device(f"d{n}", [1.0] * layers, [1.0] * layers) for n in range(2)]
    scenario = build.scenario(devices, batch=2, parameters=[each * 2**18 for each in sizes])
    plan = Plan(pipelines=[build.pipeline([0, layers], [name], [1]) for name in names(0, 2)], bucket_mib=float(least))
    program = compile_plan(scenario, plan)
    buckets = [sync.transfer.volume_bytes / 2**20 for sync in program.syncs]
    assert sum(buckets) == sum(sizes)
    assert all(bucket >= least for bucket in buckets[:-1])
    assert all(bucket < least + 20 for bucket in buckets)
    assert all(bucket > 0 for bucket in buckets)
    rests = [each.rest_s for each in program.workers[0].beside]
    assert rests == sorted(rests, reverse=True)
    if rests and sizes[0]:
        assert rests[-1] == 0.0


# Input pipelines


def test_a_loader_feeds_micro_batch_after_micro_batch_all_of_its_workers(build: Any) -> None:
    devices = [build.device(f"d{n}", [1.0], [1.0]) for n in range(4)]
    nodes = [{"loader_samples_per_s": 5.0}, {}]
    scenario = build.scenario(devices, batch=12, per_node=2, nodes=nodes)
    sizes = [[3, 1], [2], [4], [2]]
    plan = Plan(pipelines=[build.pipeline([0, 1], [f"d{n}"], each) for n, each in enumerate(sizes)])
    program = compile_plan(scenario, plan)
    (loader,) = program.loaders
    assert loader.samples_per_s == 5.0
    assert loader.queue == ((0, 0, 3), (1, 0, 2), (0, 1, 1))
    assert [worker.loader for worker in program.workers] == [0, 0, None, None]


def test_segments_are_enough_for_a_record(build: Any) -> None:
    """What a run may hold is judged before it runs: no launch leaves more rows than that."""
    scenario = build.chain([1.0] * 3, [2.0] * 3, 5, latencies=0.5, parameters=1000)
    for schedule in ("gpipe", "1f1b"):
        plan = build.straight(3, 5, schedule)
        launch = build.run(scenario, plan, steps=4)
        assert len(launch.events) <= 4 * compile_plan(scenario, plan).segments


def test_equal_shares_are_of_the_holders_of_each_run_of_layers(build: Any) -> None:
    """A cut through the layers of a stage leaves runs with holders of their own: no ring is longer than a fair one."""
    devices = [build.device(f"d{number}", [1.0] * 8, [2.0] * 8) for number in range(5)]
    scenario = build.scenario(devices, batch=12, parameters=10**9, gb_per_s=1.0)
    pipelines = [
        build.pipeline([0, 4, 8], ["d0", [["d1"], ["d2"], ["d3"]]], [6]),
        build.pipeline([0, 8], ["d4"], [6]),
    ]
    program = compile_plan(scenario, Plan(pipelines=pipelines, zero=1, overlap=False))
    seconds = {len(sync.workers): sync.transfer.alone_s for sync in program.syncs}
    assert seconds[4] == pytest.approx(3 / 4 * 4 * 4.0, rel=1e-6)  # (p-1)/p of four layers of 4 GB at 1 GB/s
    assert seconds[2] == pytest.approx(1 / 2 * 4 * 4.0, rel=1e-6)


def test_the_largest_share_of_any_tensor_rank_counts(build: Any) -> None:
    devices = [build.device(f"d{number}", [1.0], [2.0], degrees=(1, 2)) for number in range(4)]
    split = {"tensor": TensorSplit(divisor=2)}
    scenario = build.scenario(devices, batch=4, parameters=10**9, gb_per_s=1.0, layers=[split])
    pipelines = [build.pipeline([0, 1], [["d0", "d1"]], [2]), build.pipeline([0, 1], [["d2", "d3"]], [2])]
    first = {"d0": 0.5, "d2": 0.5, "d1": 0.9, "d3": 0.1}
    second = {"d0": 0.9, "d2": 0.1, "d1": 0.5, "d3": 0.5}
    slowest = [
        max(
            sync.transfer.alone_s
            for sync in compile_plan(scenario, Plan(pipelines=pipelines, zero=1, state_shares=shares)).syncs
        )
        for shares in (first, second)
    ]
    assert slowest[0] == pytest.approx(slowest[1], rel=1e-9)


def test_frozen_layers_have_nothing_to_synchronise(build: Any) -> None:
    devices = [build.device(f"d{number}", [1.0], [2.0]) for number in range(2)]
    scenario = build.scenario(devices, batch=2, parameters=0, latencies=1.0)
    plan = Plan(pipelines=[build.pipeline([0, 1], [name], [1]) for name in ("d0", "d1")], overlap=False)
    assert compile_plan(scenario, plan).syncs == ()
