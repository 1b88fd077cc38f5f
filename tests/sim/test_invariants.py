"""What holds for every plan: bounds, units, names, ledgers, and every sample through every layer once."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.sim.bounds import bound_s, lower_bound_s, work_bound_s
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Link, Switch
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.program import Program
from steelyard.sim.running import Launch
from steelyard.sim.spec import Scenario
from steelyard.sim.view import View
from steelyard.sim.workload import TensorSplit

seconds = st.floats(0.01, 10.0)
LAYERS, PIPELINES, WORKERS = 6, 3, 3
DEVICES = PIPELINES * WORKERS * 2
STEPS = 5
GB = 10**9
FEW = settings(max_examples=30)


@dataclass
class Study:
    """Numbers from which a scenario and a plan are made, in any units, under any names."""

    times: tuple[list[float], list[float], list[float]]
    slowdowns: list[float]
    parameters: list[int]
    outputs: list[float]
    latency_s: float
    gb_per_s: float
    overlaps: bool
    plan: Plan
    batch: int

    def scenario(self, build: Any, *, scale: float = 1.0, names: Any = str, backwards: bool = False) -> Scenario:
        forward, backward, optimizer = ([scale * each for each in row] for row in self.times)
        devices = [
            build.device(
                names(f"d{number:02}"),
                forward,
                backward,
                optimizer=optimizer,
                degrees=(1, 2),
                slowdown=each,
                overlaps=self.overlaps,
            )
            for number, each in enumerate(self.slowdowns)
        ]
        split = TensorSplit(divisor=2, forward_elements=[[self.outputs[0]]], backward_elements=[[self.outputs[0]]])
        return build.scenario(
            devices[::-1] if backwards else devices,
            batch=self.batch,
            per_node=2,
            latencies=scale * self.latency_s,
            gb_per_s=self.gb_per_s / scale,
            parameters=self.parameters,
            outputs=self.outputs,
            layers=[{"tensor": split}] * LAYERS,
            cluster={"backend": "gloo"},
        )

    def renamed(self, names: Any) -> Plan:
        text = self.plan.model_dump()
        for pipeline in text["pipelines"]:
            for stage in pipeline["stages"]:
                for replica in stage["replicas"]:
                    replica["devices"] = [names(name) for name in replica["devices"]]
        return Plan.parse(text)


@st.composite
def pipelines(draw: st.DrawFn, number: int, schedule: str, alike: tuple[list[int], int] | None) -> Pipeline:
    """Any cuts, groups of one or two devices, replicas; of interleaved ones each device has two stages."""
    depth = draw(st.integers(1, WORKERS)) if alike is None else len(alike[0]) + 1
    chunks = 2 if schedule == "interleaved" and depth > 1 else 1
    cut = st.lists(st.integers(1, LAYERS - 1), min_size=depth * chunks - 1, max_size=depth * chunks - 1, unique=True)
    cuts = [0, *(sorted(draw(cut)) if alike is None else alike[0]), LAYERS]
    held = []
    for worker in range(depth):
        pair = [f"d{(number * WORKERS + worker) * 2 + each:02}" for each in range(2)]
        kind = draw(st.sampled_from(["one", "group", "replicas"])) if alike is None else "one"
        groups = {"one": [pair[:1]], "group": [pair], "replicas": [pair[:1], pair[1:]]}[kind]
        shares = draw(st.sampled_from([[0.5, 0.5], [0.25, 0.75]])) if len(groups) == 2 else [1.0]
        held.append([Replica(devices=g, share=s) for g, s in zip(groups, shares, strict=True)])
    stages = [
        Stage(
            first=first,
            last=last,
            replicas=held[place % depth],
            recompute=draw(st.sampled_from(["none", "full"])),
            sequence_parallel=draw(st.booleans()),
        )
        for place, (first, last) in enumerate(itertools.pairwise(cuts))
    ]
    count = draw(st.integers(1, 4)) if alike is None else alike[1]
    count = depth * max(1, count // 2) if chunks > 1 else count
    return Pipeline(stages=stages, micro_batches=draw(st.lists(st.integers(1, 3), min_size=count, max_size=count)))


@st.composite
def studies(draw: st.DrawFn) -> Study:
    """Any plan of up to three pipelines over up to 18 devices, and any times."""
    schedule = draw(st.sampled_from(["gpipe", "1f1b", "interleaved"]))
    zero = draw(st.sampled_from([0, 0, 1, 2, 3]))
    alike = None
    if zero == 3:  # peers go through their pieces together
        schedule = "1f1b" if schedule == "interleaved" else schedule
        alike = draw(st.sampled_from([[], [3], [1, 4]])), draw(st.integers(1, 3))
    made = [draw(pipelines(number, schedule, alike)) for number in range(draw(st.integers(1, PIPELINES)))]
    if schedule == "interleaved" and all(len(pipeline.stages) == 1 for pipeline in made):
        schedule = "1f1b"
    row = st.lists(seconds, min_size=LAYERS, max_size=LAYERS)
    plan = Plan(
        pipelines=made,
        schedule=schedule,
        zero=zero,
        overlap=draw(st.booleans()),
        bucket_mib=draw(st.sampled_from([1e-9, 1000.0, 1e6])),
        sync_every=draw(st.sampled_from([1, 1, 2])) if zero == 0 else 1,
    )
    return Study(
        times=(draw(row), draw(row), draw(row)),
        slowdowns=(draw(st.lists(st.sampled_from([1.0, 1.5, 3.0]), min_size=5, max_size=5)) * DEVICES)[:DEVICES],
        parameters=[each * GB // 4 for each in draw(st.lists(st.integers(0, 4), min_size=LAYERS, max_size=LAYERS))],
        outputs=[each * GB / 4 for each in draw(st.lists(st.floats(0, 4), min_size=LAYERS, max_size=LAYERS))],
        latency_s=draw(st.sampled_from([0.0, 0.1, 2.0])),
        gb_per_s=draw(st.sampled_from([0.5, 2.0, 1e12])),
        overlaps=draw(st.booleans()),
        plan=plan,
        batch=sum(pipeline.samples for pipeline in made),
    )


def launch(build: Any, study: Study, scenario: Scenario | None = None) -> Launch:
    result: Launch = build.run(scenario or study.scenario(build), study.plan, steps=STEPS)
    return result


# Bounds


def alone_s(program: Program) -> list[float]:
    """Per worker, the seconds of its own pieces and update: what it takes with nobody to wait for."""
    return [
        sum(worker.job(piece).seconds for piece in worker.pieces) + max(worker.optimizer_s)
        for worker in program.workers
    ]


@FEW
@given(studies())
def test_no_step_is_shorter_than_a_devices_work(build: Any, study: Study) -> None:
    """Over n steps, so that what one step takes from the next one's time counts in neither."""
    program = compile_plan(study.scenario(build), study.plan)
    end = launch(build, study).ends[-1] * (1 + 1e-9)
    assert all(end >= STEPS * each for each in alone_s(program))


@FEW
@given(studies())
def test_no_step_is_shorter_than_the_way_of_a_micro_batch(build: Any, study: Study) -> None:
    """Through all stages and back, the update behind it: the first stage's next step begins after that."""
    program = compile_plan(study.scenario(build), study.plan)
    end = launch(build, study).ends[-1] * (1 + 1e-9)
    for number, pipeline in enumerate(study.plan.pipelines):
        own = [w for w in program.workers if w.pipeline == _position(study.plan, number)]
        for micro_batch in range(len(pipeline.micro_batches)):
            way = 0.0
            for stage in range(len(pipeline.stages)):
                chunks = [(w, w.stages.index(stage)) for w in own if stage in w.stages]
                way += sum(
                    max(w.jobs[backward][chunk][w.classes[micro_batch]].seconds for w, chunk in chunks)
                    for backward in (False, True)
                )
            assert end >= STEPS * way


def _position(plan: Plan, number: int) -> int:
    """The number of a pipeline in the normalised plan."""
    return plan.normalize().pipelines.index(plan.pipelines[number])


@FEW
@given(studies())
def test_no_step_is_longer_than_everything_in_a_row(build: Any, study: Study) -> None:
    """Every piece, message, gather, collective and update, one after the other."""
    program = compile_plan(study.scenario(build), study.plan)
    serial = sum(alone_s(program)) + sum(sync.transfer.alone_s for sync in program.syncs)
    for worker in program.workers:
        for piece in worker.pieces:
            serial += sum(send.transfer.alone_s for send in worker.job(piece).sends)
            if worker.gathers:
                gather = worker.gathers[piece.chunk]
                serial += (gather.backward if piece.backward else gather.forward).alone_s
    assert launch(build, study).ends[-1] <= STEPS * serial * (1 + 1e-9)


@FEW
@given(studies())
def test_no_plan_beats_its_bound(build: Any, study: Study) -> None:
    """Work over speed of all devices for any plan; for a data-parallel one the best integer split."""
    scenario = study.scenario(build)
    bound = bound_s(scenario, study.plan)
    assert 0 < bound <= launch(build, study).ends[-1] / STEPS * (1 + 1e-9)
    assert work_bound_s(scenario) <= lower_bound_s(View.of(scenario)) * (1 + 1e-9)


def test_devices_that_are_good_at_different_layers_beat_every_split_of_the_batch(build: Any) -> None:
    """Each is ten times as fast on one layer of two: a pipeline puts it there, and the bound knows."""
    devices = [build.device("d0", [0.1, 1.0], [0.1, 1.0]), build.device("d1", [1.0, 0.1], [1.0, 0.1])]
    scenario = build.scenario(devices, batch=20)
    plan = build.straight(2, 20, "1f1b")
    view = View.of(scenario)
    step_s = build.step_s(scenario, plan)
    assert step_s == pytest.approx(0.2 * 21)
    assert step_s < lower_bound_s(view) == pytest.approx(22.0)
    assert bound_s(scenario, plan) <= step_s
    assert bound_s(scenario, plan) >= 0.5 * step_s


# Units and names


@FEW
@given(studies(), st.floats(1e-3, 1e3))
def test_all_times_scaled_scale_the_step(build: Any, study: Study, scale: float) -> None:
    """Latencies and rates too: nothing in the engine has a unit of its own."""
    expected = [scale * each for each in launch(build, study).ends]
    assert launch(build, study, study.scenario(build, scale=scale)).ends == pytest.approx(expected, rel=1e-9)


@FEW
@given(studies(), st.permutations(range(DEVICES)), st.booleans())
def test_names_and_order_of_devices_change_nothing(
    build: Any, study: Study, permutation: list[int], backwards: bool
) -> None:
    """Other names, so that pipelines and devices come in another order; the nodes in reverse."""

    def names(name: str) -> str:
        return f"x{permutation[int(name[1:])]:02}"

    before = launch(build, study)
    scenario = study.scenario(build, names=names, backwards=backwards)
    after = build.run(scenario, study.renamed(names), steps=STEPS)
    assert after.ends == pytest.approx(before.ends, rel=1e-9)
    held = {names(name): most for name, most in before.activations.items()}
    assert after.activations == pytest.approx(held, rel=1e-9)


@FEW
@given(studies())
def test_free_links_equal_no_links(build: Any, study: Study) -> None:
    """No latency and endless rates: as if nobody had anything to send."""
    study.latency_s, study.gb_per_s = 0.0, 1e12
    free = launch(build, study).ends
    study.outputs = [0.0] * LAYERS
    assert launch(build, study).ends == pytest.approx(free, rel=1e-6)


# Ledgers


@FEW
@given(studies())
def test_a_device_does_one_thing_at_a_time_and_its_ledger_sums_to_the_step(build: Any, study: Study) -> None:
    result = launch(build, study)
    program = compile_plan(study.scenario(build), study.plan)
    names = [member[0] for worker in program.workers for member in worker.members]
    for name in names:
        rows = sorted((row[8], row[9]) for row in result.events or [] if row[3] == name)
        assert all(start < end for start, end in rows)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(rows)), name
    step_s = (result.ends[-1] - result.ends[0]) / (STEPS - 1)
    for ledger in build.ledgers(result, names).values():
        assert ledger.total_s() == pytest.approx(step_s, rel=1e-9)
        assert ledger.idle_s <= step_s
    by_name = build.ledgers(result, names)
    for worker, busy_s in zip(program.workers, alone_s(program), strict=True):
        own = by_name[worker.members[0][0]]
        assert own.compute_s + own.optimizer_s <= busy_s * (1 + STEPS / (STEPS - 1)) + 1e-9


@FEW
@given(studies())
def test_the_first_bytes_of_a_record_are_those_of_a_shorter_one(build: Any, study: Study) -> None:
    """A longer run begins as a shorter one does."""
    program = compile_plan(study.scenario(build), study.plan)
    short, long = build.execute(program, steps=2), build.execute(program, steps=4)
    assert long.ends[:2] == short.ends
    assert [row for row in long.events if row[2] == 0] == [row for row in short.events if row[2] == 0]


# Every sample through every layer once


@FEW
@given(studies())
def test_every_sample_goes_through_every_layer_once(build: Any, study: Study) -> None:
    program = compile_plan(study.scenario(build), study.plan)
    plan = study.plan.normalize()
    for backward in (False, True):
        done: Counter[tuple[int, int, int]] = Counter()
        for worker in program.workers:
            for piece in worker.pieces:
                if piece.backward == backward:
                    stage = plan.pipelines[worker.pipeline].stages[worker.stages[piece.chunk]]
                    for layer in range(stage.first, stage.last):
                        done[worker.pipeline, piece.micro_batch, layer] += worker.job(piece).samples
        assert done == {
            (number, micro_batch, layer): size
            for number, pipeline in enumerate(plan.pipelines)
            for micro_batch, size in enumerate(pipeline.micro_batches)
            for layer in range(LAYERS)
        }


@FEW
@given(studies())
def test_every_message_that_is_sent_is_waited_for(build: Any, study: Study) -> None:
    """Sends and needs add up for each piece of each worker; and bytes for each pair of stages."""
    program = compile_plan(study.scenario(build), study.plan)
    coming: Counter[tuple[int, bool, int, int]] = Counter()
    for worker in program.workers:
        for piece in worker.pieces:
            for send in worker.job(piece).sends:
                coming[send.target, piece.backward, send.chunk, piece.micro_batch] += 1
    needed = {
        (number, piece.backward, piece.chunk, piece.micro_batch): worker.job(piece).needs
        for number, worker in enumerate(program.workers)
        for piece in worker.pieces
    }
    assert coming == {key: count for key, count in needed.items() if count}


@FEW
@given(studies())
def test_every_shared_gradient_is_synchronised_once(build: Any, study: Study) -> None:
    """Bytes of all collectives that a worker enters: the gradients of its layers that others hold too."""
    scenario = study.scenario(build)
    program = compile_plan(scenario, study.plan)
    if study.plan.zero:  # ZeRO-3 has none, and the others have two of each
        assert bool(program.syncs) <= (study.plan.zero < 3)
        return
    holders: dict[int, list[int]] = {layer: [] for layer in range(LAYERS)}
    for pipeline in study.plan.pipelines:
        for stage in pipeline.stages:
            for layer in range(stage.first, stage.last):
                holders[layer] += [len(replica.devices) for replica in stage.replicas]
    plan = study.plan.normalize()
    for number, worker in enumerate(program.workers):
        entered = [*(each.sync for each in worker.beside), *worker.after, *worker.final]
        assert sorted(entered) == [rank for rank, sync in enumerate(program.syncs) if number in sync.workers]
        stages = [plan.pipelines[worker.pipeline].stages[each] for each in worker.stages]
        expected = sum(
            4 * scenario.workload.shard_parameters(layer, layer + 1, max(holders[layer]))
            for stage in stages
            for layer in range(stage.first, stage.last)
            if len(holders[layer]) > 1
        )
        moved = sum(program.syncs[sync].transfer.volume_bytes for sync in entered)
        assert moved == pytest.approx(expected)
        if worker.beside:
            assert study.overlaps
            assert plan.overlap
            assert plan.sync_every == 1


# Pipelines that are images of each other


@st.composite
def replicated(draw: st.DrawFn) -> tuple[Study, dict[str, Any]]:
    """One pipeline over and over, on machines of several devices, with adapters, buses and switches that they share."""
    study = draw(studies())
    first, width = study.plan.pipelines[0], draw(st.integers(2, PIPELINES))
    text = first.model_dump()

    def copied(number: int) -> dict[str, Any]:
        stages = []
        for stage in text["stages"]:
            replicas = [
                {**replica, "devices": [f"d{int(name[1:]) + number * WORKERS * 2:02}" for name in replica["devices"]]}
                for replica in stage["replicas"]
            ]
            stages.append({**stage, "replicas": replicas})
        return {**text, "stages": stages}

    looped = len({stage.replicas[0].devices[0] for stage in first.stages}) < len(first.stages)
    schedule = "1f1b" if study.plan.schedule == "interleaved" and not looped else study.plan.schedule
    plan = {**study.plan.model_dump(), "pipelines": [copied(number) for number in range(width)], "schedule": schedule}
    study.plan, study.batch = Plan.parse(plan), width * first.samples
    study.slowdowns = (study.slowdowns[: WORKERS * 2] * PIPELINES)[:DEVICES]
    if draw(st.booleans()):
        study.slowdowns[draw(st.integers(0, DEVICES - 1))] = 2.0
    order = draw(st.permutations(range(DEVICES)))
    kind = draw(st.sampled_from(["own", "mixed", "bus", "racks"]))
    per_node = 1 if kind == "own" else draw(st.sampled_from([2, 3, 6]))
    count = DEVICES // per_node
    nodes: list[dict[str, Any]] = [{"nics": draw(st.integers(1, 2))} for _ in range(count)]
    extra: dict[str, Any] = {
        "per_node": per_node,
        "order": order if draw(st.booleans()) else None,
        "shared": kind == "bus",
    }
    if kind == "racks":
        nodes = [{**node, "switch": draw(st.sampled_from(["rack0", "rack1"]))} for node in nodes]
        uplink = Link(name="uplink", latency_us=5e4, bandwidth_gb_per_s=draw(st.sampled_from([0.5, 4.0])))
        extra["switches"] = [Switch(name=f"rack{number}", uplink=uplink) for number in range(2)]
    return study, {**extra, "nodes": nodes}


@settings(max_examples=40)
@given(replicated())
def test_pipelines_that_are_images_of_each_other_run_as_one(build: Any, made: tuple[Study, dict[str, Any]]) -> None:
    """Folded and not: the same moments, and the same ledger for each device (Build.run holds them together)."""
    study, extra = made
    plain = study.scenario(build)
    by_name = plain.cluster.by_name
    names = sorted(by_name)
    order = extra["order"] or range(DEVICES)
    scenario = build.scenario(
        [by_name[names[place]] for place in order],
        batch=study.batch,
        per_node=extra["per_node"],
        latencies=study.latency_s,
        gb_per_s=study.gb_per_s,
        parameters=study.parameters,
        outputs=study.outputs,
        layers=[{"tensor": layer.tensor} for layer in plain.workload.layers],
        nodes=extra["nodes"],
        cluster={"backend": "nccl", "switches": extra.get("switches", [])},
    )
    if extra["shared"]:
        nodes = [
            node.model_copy(update={"link": node.link.model_copy(update={"shared": True})})
            for node in scenario.cluster.nodes
        ]
        scenario = scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})
    build.run(scenario, study.plan, steps=3)


def test_images_are_found_where_they_are(build: Any) -> None:
    """Eight equal pipelines on machines of their own are one; a slower device, or another neighbour, is another."""
    devices = [build.device(f"d{n:02}", [1.0] * 2, [2.0] * 2) for n in range(16)]
    pipelines = [build.pipeline([0, 1, 2], [f"d{2 * n:02}", f"d{2 * n + 1:02}"], [1] * 4) for n in range(8)]
    plan = Plan(pipelines=pipelines, schedule="1f1b")
    scenario = build.scenario(devices, batch=32, parameters=GB, outputs=1e6, gb_per_s=1.0)
    folded = compile_plan(scenario, plan, folded=True)
    assert len(folded.workers) == 2
    assert [worker.copies for worker in folded.workers] == [8, 8]
    assert set(folded.stands_for) == {f"d{n:02}" for n in range(2, 16)}
    slower = [devices[0].model_copy(update={"slowdown": 1.5}), *devices[1:]]
    scenario = build.scenario(slower, batch=32, parameters=GB, outputs=1e6, gb_per_s=1.0)
    assert [worker.copies for worker in compile_plan(scenario, plan, folded=True).workers] == [1, 1, 7, 7]
    build.run(scenario, plan)
