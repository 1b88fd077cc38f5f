"""What a framework is told is what the plan says: files are read back, for every plan that they can express."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import policy_from_text
from steelyard.results.errors import InputError
from steelyard.runner.export.export import export, write
from steelyard.runner.export.nearest import changes, step_s
from steelyard.runner.export.ranks import rank_map
from steelyard.runner.export.shape import Shape, canonical, irregular, uneven
from steelyard.runner.export.targets import TARGETS
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View, allocate

from .conftest import BATCH, document

WORLD = scenario_from(document())
NAMES = [device.name for device in WORLD.cluster.devices]
LAYERS = len(WORLD.workload.layers)
MICRO_BATCHES = {1: (1, 2, 3, 4, 6, 12), 2: (1, 2, 3, 6), 4: (1, 2, 3), 8: (1, 3)}


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Regular plans of every kind on up to eight devices, most of them not what a given framework can be told."""
    data, pipeline, tensor = draw(
        st.sampled_from([(d, p, t) for d in (1, 2, 4, 8) for p in (1, 2, 4) for t in (1, 2, 4) if d * p * t <= 8])
    )
    chunks = draw(st.sampled_from((1, 2))) if pipeline > 1 else 1
    stages = pipeline * chunks
    inner = draw(st.lists(st.integers(1, LAYERS - 1), unique=True, min_size=stages - 1, max_size=stages - 1))
    names = draw(st.permutations(NAMES))
    places = iter(names)
    size = draw(st.sampled_from(MICRO_BATCHES[data]))
    count = BATCH // data // size
    if chunks > 1 and count % pipeline:
        size, count = 1, BATCH // data
    return Shape(
        groups=tuple(tuple(tuple(next(places) for _ in range(tensor)) for _ in range(pipeline)) for _ in range(data)),
        cuts=(0, *sorted(inner), LAYERS),
        sizes=((size,) * count,) * data,
        schedule="interleaved" if chunks > 1 else draw(st.sampled_from(("1f1b", "gpipe"))),
        recompute=draw(st.sampled_from(("none", "selective", "full"))),
        sequence_parallel=draw(st.booleans()),
        zero=draw(st.sampled_from((0, 1, 2, 3))),
        overlap=draw(st.booleans()),
        bucket_mib=draw(st.sampled_from((100.0, 25.0, 0.5))),
    )


@st.composite
def told(draw: st.DrawFn, name: str) -> Shape:
    """Shapes that a target can be told: any, brought to what it takes."""
    shape = draw(shapes())
    update: dict[str, object] = {}
    if name == "megatron":
        update["schedule"] = "1f1b" if shape.schedule == "gpipe" else shape.schedule
        update["zero"] = min(shape.zero, 1) if shape.pipeline > 1 else shape.zero
    if name == "torchtitan":
        update = {"overlap": True, "bucket_mib": 100.0, "sequence_parallel": shape.tensor > 1, "zero": shape.zero | 2}
    if name == "deepspeed":
        update = {"sequence_parallel": False, "zero": min(shape.zero, 1) if shape.pipeline > 1 else shape.zero}
        update["recompute"] = "none" if shape.recompute == "selective" else shape.recompute
        update["overlap"] = shape.overlap and shape.pipeline == 1 and bool(shape.zero)
    if name == "fsdp":
        update = {"overlap": True, "zero": shape.zero & 2 or 0, "bucket_mib": 100.0}
        update["recompute"] = "none" if shape.recompute == "selective" else shape.recompute
    return dataclasses.replace(shape, **update)  # type: ignore[arg-type]  # values of the fields named


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=60)
def test_files_tell_the_plan_that_they_were_written_from(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    shape = data.draw(told(name).filter(lambda each: not target.problems(each.plan(), WORLD)))
    plan = shape.plan()
    texts = target.files(Shape.of(plan), WORLD)
    assert target.import_plan(texts, WORLD) == plan
    assert texts == target.files(Shape.of(plan), WORLD)  # pure


@given(shapes())
def test_a_shape_and_its_plan_say_the_same(shape: Shape) -> None:
    plan = shape.plan()
    assert Shape.of(plan).plan() == plan == canonical(plan)
    assert not [*irregular(plan), *uneven(plan)]


@given(shapes())
@settings(max_examples=25)
def test_the_canonical_form_runs_as_the_plan_does(shape: Shape) -> None:
    plan = shape.plan()
    loud = plan.model_copy(
        update={
            "pipelines": [
                pipeline.model_copy(
                    update={
                        "stages": [
                            stage.model_copy(update={"sequence_parallel": True}) if shape.tensor == 1 else stage
                            for stage in pipeline.stages
                        ]
                    }
                )
                for pipeline in plan.pipelines
            ],
            "schedule": plan.schedule if shape.pipeline > 1 else "1f1b",
            "zero": 1 if shape.data == 1 else plan.zero,
        }
    )
    assert canonical(loud) == plan
    assert step_s(WORLD, loud) == pytest.approx(step_s(WORLD, plan), rel=1e-9)


@given(shapes())
def test_every_device_is_one_rank_on_its_own_machine(shape: Shape) -> None:
    ranks = rank_map(shape, WORLD.cluster)
    assert [rank.rank for rank in ranks] == list(range(shape.data * shape.pipeline * shape.tensor))
    assert len({rank.device for rank in ranks}) == len(ranks) == len({(r.node, r.local_rank) for r in ranks})
    for rank in ranks:
        node = next(node for node in WORLD.cluster.nodes if node.name == rank.node)
        assert node.devices[rank.local_rank].name == rank.device
        assert shape.groups[rank.pipeline][rank.worker][rank.tensor] == rank.device
        # Megatron-LM's order tp-dp-pp: the tensor-parallel place changes fastest, the stage slowest.
        assert rank.rank == rank.tensor + shape.tensor * (rank.pipeline + shape.data * rank.worker)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=12)
def test_the_nearest_plan_is_one_that_the_target_runs(name: str, data: st.DataObject) -> None:
    shape = data.draw(shapes())
    target, plan = TARGETS[name], shape.plan()
    plan.check(WORLD)
    found = export(plan, WORLD, target)
    assert not target.problems(found.plan, WORLD)
    assert target.import_plan(found.files, WORLD) == found.plan
    assert bool(found.problems) == bool(changes(plan, found.plan)) == bool(found.changed)
    assert found.step_s == pytest.approx(step_s(WORLD, found.plan))
    again = export(found.plan, WORLD, target)  # nothing is left to change
    assert again.plan == found.plan
    assert not again.changed


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("policy", ["makespan", "throughput", "hybrid", "cephalo", "grid(pipeline=2, tensor=2)"])
def test_plans_of_policies_are_told_or_the_nearest_is(name: str, policy: str, eight: Scenario, tmp_path: Path) -> None:
    plan = allocate(policy_from_text(policy), View.of(eight), eight)
    found = export(plan, eight, TARGETS[name])
    folder = write(found, tmp_path / "out")
    report = json.loads((folder / "export.json").read_text())
    texts = {file: (folder / file).read_text() for file in report["files"]}
    assert TARGETS[report["target"]].import_plan(texts, eight) == found.plan
    assert Plan.parse(json.loads((folder / "plan.json").read_text())) == found.plan
    assert report["exact"] == (not found.problems and not found.unfit)
    of_plan = [problem for problem in report["not_expressible"] if problem["path"] != "workload.model"]
    for problem in of_plan:  # every path leads somewhere in the plan
        part: object = plan.normalize().document()
        for key in problem["path"].split("."):
            part = part[int(key)] if isinstance(part, list) else part[key]  # type: ignore[index]  # JSON


def test_unequal_micro_batches_are_for_fsdp_alone(eight: Scenario) -> None:
    samples = dict(zip(NAMES, (5, 5, 4, 4, 2, 2, 1, 1), strict=True))
    plan = Plan.data_parallel(eight.workload, samples)
    exact = {name: not target.problems(plan, eight) for name, target in TARGETS.items()}
    assert exact == {"megatron": False, "torchtitan": False, "deepspeed": False, "fsdp": True}
    found = export(plan, eight, TARGETS["megatron"])
    assert [problem.path for problem in found.problems] == [
        f"pipelines.{index}.micro_batches" for index in range(1, 8) if index != 1
    ]
    assert found.changed == ["micro_batches: 5, 4, 2, 1 -> 3"]
    assert found.loss_percent > 0


def test_what_can_stay_stays_with_its_device(eight: Scenario) -> None:
    """Shares rise in the order of the names here, and pipelines are tried by falling samples."""
    samples = dict(zip(sorted(NAMES), (1, 1, 1, 1, 5, 5, 5, 5), strict=True))
    plan = Plan.data_parallel(eight.workload, samples).model_copy(update={"zero": 1})
    found = export(plan, eight, TARGETS["fsdp"])
    assert [problem.path for problem in found.problems] == ["zero"]
    assert len(found.changed) == 1
    assert found.plan.samples() == samples


def test_what_no_plan_can_mend_is_refused() -> None:
    world = scenario_from(document() | {"workload": document()["workload"] | {"dtype": "fp8"}})
    plan = Plan.data_parallel(world.workload, dict.fromkeys(NAMES, 3))
    for target in TARGETS.values():
        with pytest.raises(InputError, match=r"workload\.dtype: 'fp8' is none of"):
            export(plan, world, target)


def test_a_folder_that_exists_is_left_alone(eight: Scenario, tmp_path: Path) -> None:
    found = export(Plan.data_parallel(eight.workload, dict.fromkeys(NAMES, 3)), eight, TARGETS["megatron"])
    with pytest.raises(InputError, match="exists"):
        write(found, tmp_path)
    assert not list(tmp_path.iterdir())
