"""Plan: what is refused, by which path; the canonical form; memory; and the cut into micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim import cost
from steelyard.sim.plan import Plan, PlanError, micro_batches
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.workload import TensorSplit

Document = dict[str, Any]


def pipeline(device: str, samples: list[int], first: int = 0, last: int = 4) -> Document:
    stage = {"first": first, "last": last, "replicas": [{"devices": [device]}]}
    return {"stages": [stage], "micro_batches": samples}


def two(fast: int = 24, slow: int = 8) -> Document:
    return {"pipelines": [pipeline("fast", [fast]), pipeline("slow", [slow])]}


def changed(path: str, value: object) -> Document:
    """The valid plan of two devices with one place of it changed."""
    document = two()
    *parents, last = path.split(".")
    target: Any = document
    for part in parents:
        target = target[int(part) if isinstance(target, list) else part]
    target[int(last) if isinstance(target, list) else last] = value
    return document


def refusal(scenario: Scenario, document: Document) -> InputError:
    with pytest.raises(InputError) as caught:
        Plan.parse(document).check(scenario)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_plan_that_the_others_are_changes_of_is_valid(scenario: Scenario) -> None:
    Plan.parse(two()).check(scenario)


STAGES = [{"first": 0, "last": 2, "replicas": [{"devices": ["fast"]}]}]


@pytest.mark.parametrize(
    ("document", "path", "says"),
    [
        (two(24, 9), "pipelines", "hold 33 samples, the global batch is 32"),
        (two(24, 7), "pipelines", "hold 31 samples"),
        (changed("pipelines.1.stages.0.replicas.0.devices", ["gpu9"]), "pipelines.1", "'gpu9' is no device"),
        (changed("pipelines.1.stages.0.replicas.0.devices", ["fast"]), "pipelines.1", "'fast' is in pipeline 0 too"),
        (changed("pipelines.1.stages.0.last", 3), "pipelines.1.stages", "cover 3 layers, the model has 4"),
        (changed("pipelines.1.stages.0.last", 5), "pipelines.1.stages", "cover 5 layers, the model has 4"),
        (changed("pipelines.0.stages.0.first", 1), "pipelines.0.stages.0", "leaves out layers 0 to 1"),
        (changed("pipelines.0.stages.0.first", 4), "pipelines.0.stages.0", "is empty"),
        (
            changed("pipelines.0.stages", [*STAGES, {**STAGES[0], "first": 1, "last": 4}]),
            "pipelines.0.stages.1",
            "has layers before 2 a second time",
        ),
        (
            changed("pipelines.0.stages", [*STAGES, {**STAGES[0], "first": 3, "last": 4}]),
            "pipelines.0.stages.1",
            "leaves out layers 2 to 3",
        ),
        (
            changed("pipelines.0.stages", [*STAGES, {**STAGES[0], "first": 2, "last": 2}]),
            "pipelines.0.stages.1",
            "is empty",
        ),
        (changed("pipelines.0.stages.0.replicas.0.share", 0.5), "pipelines.0.stages.0.replicas", "sum to 0.5"),
        (
            changed("pipelines.0.stages.0.replicas", [{"devices": ["fast"]}, {"devices": ["fast"]}]),
            "pipelines.0.stages.0.replicas.1",
            "'fast' is in the stage twice",
        ),
        (changed("pipelines.0.stages.0.replicas.0.share", 0.0), "pipelines.0.stages.0.replicas.0.share", "is 0.0"),
        (changed("pipelines.0.micro_batches", []), "pipelines.0.micro_batches", "has 0 entries"),
        (changed("pipelines.0.micro_batches", [24, 0]), "pipelines.0.micro_batches.1", "is 0"),
        (changed("pipelines.0.micro_batches", [24.0]), "pipelines.0.micro_batches.0", "is 24.0"),
        (changed("pipelines.0.stages", []), "pipelines.0.stages", "has 0 entries"),
        (changed("pipelines", []), "pipelines", "has 0 entries"),
        ({**two(), "scheduel": "gpipe"}, "scheduel", "unknown key"),
        ({**two(), "schedule": "dance"}, "schedule", "is 'dance'"),
    ],
)
def test_each_violation_is_named_by_its_path(scenario: Scenario, document: Document, path: str, says: str) -> None:
    error = refusal(scenario, document)
    assert error.path == path
    assert says in error.problem, str(error)


def test_a_micro_batch_over_the_limit_is_named(make_document: Callable[..., Document]) -> None:
    document = make_document()
    document["workload"]["max_micro_batch"] = 8
    error = refusal(scenario_from(document), {"pipelines": [pipeline("fast", [8, 8, 9]), pipeline("slow", [7])]})
    assert error.path == "pipelines.0.micro_batches"
    assert "over 8 samples" in error.problem


# Plans of every other shape: two groups of two equal devices, four layers that divide by two


def stage(first: int, last: int, *groups: list[str]) -> Document:
    share = 1 / len(groups)
    return {"first": first, "last": last, "replicas": [{"devices": group, "share": share} for group in groups]}


def shared(first: int, last: int, names: list[str]) -> Document:
    """A stage that single devices share equally."""
    replicas = [{"devices": [name], "share": 1 / len(names)} for name in names]
    return {"first": first, "last": last, "replicas": replicas}


def looped(names: list[str], count: int = 4) -> Document:
    """A layer for each name, so that names may recur."""
    return {"stages": [stage(n, n + 1, [name]) for n, name in enumerate(names)], "micro_batches": [1] * count}


def whole(name: str, sizes: list[int], last: int = 4) -> Document:
    return {"stages": [stage(0, last, [name])], "micro_batches": sizes}


@pytest.fixture(scope="session")
def four(build: Any) -> Scenario:
    """Four devices, four layers, of which the last cannot be divided; a batch of four."""
    split = {"tensor": TensorSplit(divisor=2)}
    devices = [build.device(f"d{n}", [1.0] * 4, [1.0] * 4) for n in range(4)]
    made: Scenario = build.scenario(devices, batch=4, per_node=4, layers=[split, split, split])
    return made


RECURRING = looped(["d0", "d1", "d0", "d1"])


@pytest.mark.parametrize(
    "document",
    [
        {"pipelines": [RECURRING], "schedule": "interleaved"},
        {"pipelines": [RECURRING], "schedule": "gpipe"},
        {"pipelines": [looped(["d0", "d1", "d0", "d2"])], "schedule": "gpipe"},
        {"pipelines": [looped(["d0", "d1", "d1", "d0"])], "schedule": "gpipe"},
        {"pipelines": [{**RECURRING, "order": [0, 1, 2, 3]}], "schedule": "gpipe"},
        {"pipelines": [looped(["d0", "d1", "d2", "d3"])], "schedule": "1f1b"},
        {"pipelines": [{**looped([]), "stages": [stage(0, 3, ["d0", "d1"]), stage(3, 4, ["d2"], ["d3"])]}]},
        {"pipelines": [whole("d0", [2]), whole("d1", [1, 1])], "zero": 2},
        {"pipelines": [whole("d0", [2]), whole("d1", [2])], "zero": 1, "state_shares": {"d0": 0.25, "d1": 0.75}},
        {"pipelines": [whole("d0", [2]), whole("d1", [2])], "sync_every": 7},
        {"pipelines": [whole("d0", [4])], "schedule": "interleaved"},
    ],
)
def test_shapes_that_are_valid(four: Scenario, document: Document) -> None:
    Plan.parse(document).check(four)


@pytest.mark.parametrize(
    ("document", "path", "says"),
    [
        (
            {"pipelines": [{**looped([]), "stages": [stage(0, 4, ["d0", "d0"])]}]},
            "pipelines.0.stages.0.replicas.0",
            "'d0' is in the stage twice",
        ),
        (
            {"pipelines": [{**looped([]), "stages": [stage(0, 2, ["d0", "d1"]), stage(2, 4, ["d0"])]}]},
            "pipelines.0.stages.1.replicas.0",
            "'d0' recurs with other devices beside it",
        ),
        (
            {"pipelines": [{**looped([]), "stages": [stage(0, 2, ["d0", "d1"]), stage(2, 4, ["d1", "d0"])]}]},
            "pipelines.0.stages.1.replicas.0",
            "recurs with other devices",
        ),
        ({"pipelines": [RECURRING], "schedule": "1f1b"}, "pipelines.0.stages", "the schedule is 1f1b"),
        (
            {"pipelines": [looped(["d0", "d1", "d2", "d3"])], "schedule": "interleaved"},
            "pipelines.0.stages",
            "no device that recurs",
        ),
        (
            {"pipelines": [looped(["d0", "d1", "d1", "d0"])], "schedule": "interleaved"},
            "pipelines.0.stages",
            "do not go round",
        ),
        (
            {"pipelines": [{**RECURRING, "order": [0, 1, 2, 3]}], "schedule": "interleaved"},
            "pipelines.0.order",
            "the schedule is interleaved",
        ),
        (
            {"pipelines": [{**RECURRING, "order": [0, 1, 2]}], "schedule": "gpipe"},
            "pipelines.0.order",
            "does not name each of 4 stages once",
        ),
        (
            {"pipelines": [{**RECURRING, "order": [0, 2, 1, 3]}], "schedule": "gpipe"},
            "pipelines.0.order",
            "has stage 2 before stage 1, which it reads",
        ),
        (
            {"pipelines": [{**RECURRING, "micro_batches": [2, 1, 1]}], "schedule": "interleaved"},
            "pipelines.0.micro_batches",
            "are 3, no multiple of the 2 groups",
        ),
        (
            {"pipelines": [{**looped([]), "stages": [stage(0, 3, ["d0", "d1", "d2"]), stage(3, 4, ["d3"])]}]},
            "pipelines.0.stages.0.replicas.0.devices",
            "are 3, and layer 'l0' has 2 parts",
        ),
        (
            {"pipelines": [{**looped([]), "stages": [stage(0, 4, ["d0", "d1"])]}]},
            "pipelines.0.stages.0.replicas.0.devices",
            "are 2, and layer 'l3' cannot be divided",
        ),
        (
            {"pipelines": [whole("d0", [2]), whole("d1", [1, 1])], "zero": 3},
            "pipelines.1.stages.0",
            "another number of micro-batches or devices",
        ),
        (
            {
                "pipelines": [
                    {**whole("d0", [2]), "stages": [stage(0, 2, ["d0"]), stage(2, 4, ["d1"])]},
                    {**whole("d2", [2]), "stages": [stage(0, 3, ["d2"]), stage(3, 4, ["d3"])]},
                ],
                "zero": 3,
            },
            "pipelines.1.stages.0",
            "is cut otherwise than its peers",
        ),
        (
            {
                "pipelines": [{**whole("d0", [1]), "stages": [shared(0, 4, ["d0", "d1"])], "micro_batches": [1] * 4}],
                "zero": 3,
            },
            "pipelines.0.stages.0.replicas",
            "without a sample",
        ),
        (
            {
                "pipelines": [
                    {
                        "stages": [
                            shared(0, 1, ["d0", "d1"]),
                            shared(1, 2, ["d1", "d0"]),
                            shared(2, 3, ["d2", "d3"]),
                            shared(3, 4, ["d3", "d2"]),
                        ],
                        "micro_batches": [2, 2],
                    }
                ],
                "schedule": "interleaved",
            },
            "pipelines.0.stages",
            "do not go round",
        ),
        ({"pipelines": [whole("d0", [2]), whole("d1", [2])], "sync_every": 2, "zero": 1}, "sync_every", "sharded"),
        ({"pipelines": [whole("d0", [4])], "state_shares": {"d0": 1.0}}, "state_shares", "zero is 0"),
        (
            {"pipelines": [whole("d0", [2]), whole("d1", [2])], "zero": 1, "state_shares": {"d0": 0.5, "d1": 0.4}},
            "state_shares",
            "sum to 0.9",
        ),
        (
            {"pipelines": [whole("d0", [2]), whole("d1", [2])], "zero": 1, "state_shares": {"d0": 1.0}},
            "state_shares",
            "lack 'd1'",
        ),
        ({"pipelines": [whole("d0", [4])], "dispatch": "pull", "zero": 1}, "dispatch", "nothing sharded"),
        ({"pipelines": [whole("d0", [4])], "deal": "tokens"}, "deal", "different lengths"),
        ({"pipelines": [whole("d0", [4], last=3)]}, "pipelines.0.stages", "cover 3 layers"),
        ({"pipelines": [whole("d9", [4])]}, "pipelines.0", "'d9' is no device"),
        (
            {"pipelines": [{**looped([]), "stages": [stage(0, 4, ["d0", "d1"])]}, whole("d1", [0])]},
            "pipelines.1.micro_batches.0",
            "is 0",
        ),
        ({"pipelines": [whole("d0", [4])], "bucket_mib": 0.0}, "bucket_mib", "is 0"),
        ({"pipelines": [whole("d0", [4])], "sync_every": 0}, "sync_every", "is 0"),
        ({"pipelines": [whole("d0", [4])], "zero": 4}, "zero", "is 4"),
    ],
)
def test_shapes_that_are_not_valid_are_refused_by_path(
    four: Scenario, document: Document, path: str, says: str
) -> None:
    error = refusal(four, document)
    assert error.path == path
    assert says in error.problem, str(error)
    assert error.mend


def test_a_device_in_two_pipelines_is_found_among_many(build: Any) -> None:
    devices = [build.device(f"d{n}", [1.0], [1.0]) for n in range(50)]
    scenario = build.scenario(devices, batch=50)
    names = [f"d{n}" for n in range(49)] + ["d17"]
    error = refusal(scenario, {"pipelines": [whole(name, [1], last=1) for name in names]})
    assert (error.path, error.problem) == ("pipelines.49", "'d17' is in pipeline 17 too")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"zero": 1}, "zero"),
        ({"dispatch": "pull"}, "dispatch"),
        ({"sync_every": 4}, "sync_every"),
        ({"deal": "tokens"}, "deal"),
    ],
)
def test_what_the_executors_cannot_run_yet_is_refused_by_path(change: Document, path: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse({**two(), **change}).require_data_parallel()
    assert caught.value.path == path


def test_a_pipeline_of_several_devices_is_valid_but_not_run_yet(scenario: Scenario) -> None:
    second = {"first": 2, "last": 4, "replicas": [{"devices": ["slow"]}]}
    plan = Plan.parse({"pipelines": [{"stages": [*STAGES, second], "micro_batches": [16, 16]}]})
    plan.check(scenario)
    with pytest.raises(PlanError, match=r"^pipelines\.0: has several devices"):
        plan.split()


def test_recomputation_is_not_run_yet() -> None:
    with pytest.raises(PlanError, match=r"^pipelines\.0\.stages\.0\.recompute"):
        Plan.parse(changed("pipelines.0.stages.0.recompute", "full")).require_data_parallel()


# Memory


@given(room=st.integers(0, 40), spare=st.floats(0, 0.999))
def test_what_the_closed_form_allows_fits_and_one_more_does_not(
    make_document: Callable[..., Document], room: int, spare: float
) -> None:
    """largest_micro_batch and Plan.check say the same at every amount of memory."""
    document = make_document()
    workload = scenario_from(document).workload
    need = workload.state_bytes + (room + spare) * workload.activation_bytes_per_sample
    document["cluster"]["nodes"][0]["devices"][0]["memory_gib"] = need / 2**30
    scenario = scenario_from(document)
    device = scenario.cluster.devices[0]
    largest = cost.largest_micro_batch(scenario.workload, device)
    assert abs(largest - min(room, 32)) <= 1  # a rounding of memory_gib may move the edge
    assert largest == 0 or cost.peak_memory_bytes(workload, largest) <= device.memory_bytes
    if largest > 0:
        Plan.data_parallel(workload, {"fast": largest, "slow": 32 - largest}).check(scenario)
    if largest < 32:
        over = Plan.data_parallel(workload, {"fast": largest + 1, "slow": 31 - largest})
        error = refusal(scenario, over.document())
        assert error.path == "pipelines.0.stages.0"
        assert "on 'fast', which has" in error.problem


def test_memory_exceeded_names_the_device_the_terms_and_the_amounts(make_document: Callable[..., Document]) -> None:
    document = make_document()
    document["cluster"]["nodes"][0]["devices"][1]["memory_gib"] = 0.01
    error = refusal(scenario_from(document), two())
    assert error.path == "pipelines.1.stages.0"
    assert error.problem.startswith("needs 0.02302 GiB on 'slow', which has 0.01 GiB: ")
    assert "optimizer 0.007451" in error.problem
    assert error.problem.endswith("; 0.01302 GiB too much")
    assert "divide its layers" in error.mend


def test_accumulation_bounds_the_memory(make_document: Callable[..., Document]) -> None:
    """Only one micro-batch is alive at a time, so eight of one sample need what one sample needs."""
    document = make_document()
    workload = scenario_from(document).workload
    need = workload.state_bytes + 1.5 * workload.activation_bytes_per_sample
    document["cluster"]["nodes"][0]["devices"][1]["memory_gib"] = need / 2**30
    scenario = scenario_from(document)
    Plan.parse({"pipelines": [pipeline("fast", [24]), pipeline("slow", [1] * 8)]}).check(scenario)
    refusal(scenario, {"pipelines": [pipeline("fast", [24]), pipeline("slow", [2] * 4)]})


# The canonical form


names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Data-parallel plans over any devices, in any order."""
    return Plan.parse(
        {
            "pipelines": [
                pipeline(name, draw(st.lists(st.integers(1, 2**53), min_size=1, max_size=4))) for name in draw(names)
            ],
            "schedule": draw(st.sampled_from(["gpipe", "1f1b", "interleaved"])),
            "zero": draw(st.integers(0, 3)),
        }
    )


@given(plans())
def test_round_trip_of_the_document(plan: Plan) -> None:
    assert Plan.parse(copy.deepcopy(plan.document())) == plan
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@given(plans(), st.randoms(use_true_random=False))
def test_normalize_is_idempotent_and_forgets_the_order_of_pipelines(plan: Plan, random: Any) -> None:
    normal = plan.normalize()
    assert normal.normalize() == normal
    shuffled = plan.model_copy(update={"pipelines": random.sample(plan.pipelines, len(plan.pipelines))})
    assert shuffled.normalize() == normal
    assert shuffled.sha256 == plan.sha256


@given(plans(), plans())
def test_plans_that_say_different_things_have_different_digests(first: Plan, second: Plan) -> None:
    assert (first.sha256 == second.sha256) == (first.normalize() == second.normalize())


@given(plans())
def test_split_gives_back_the_samples(plan: Plan) -> None:
    plain = plan.model_copy(update={"zero": 0})
    assert sum(plain.split().values()) == sum(pipeline.samples for pipeline in plan.pipelines)
    assert set(plain.split()) == {pipeline.devices[0] for pipeline in plan.pipelines}


def test_a_device_without_samples_is_left_out(scenario: Scenario) -> None:
    assert Plan.data_parallel(scenario.workload, {"fast": 32, "slow": 0}).split() == {"fast": 32}


# Micro-batches


@given(samples=st.integers(1, 5000), largest=st.one_of(st.none(), st.integers(1, 6000)))
def test_micro_batches_are_few_equal_and_complete(samples: int, largest: int | None) -> None:
    sizes = micro_batches(samples, largest)
    assert sum(sizes) == samples
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == (1 if largest is None else -(-samples // largest))


def test_the_example_of_the_design() -> None:
    assert micro_batches(23, 8) == [8, 8, 7]
