"""Plans as programs: what is refused beforehand, and that what runs has the gradient of a single process."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from steelyard.runner.devices import NamedLane, available_cpus
from steelyard.runner.execution import division, program_of
from steelyard.runner.launch import run_group
from steelyard.runner.proof import MOST_GRADIENT_ERROR, is_proven, prove, prove_exactly
from steelyard.runner.resolving import job_of
from steelyard.runner.workload import model_from_config
from steelyard.sim.plan import Plan, PlanError
from steelyard.sim.spec import Training
from steelyard.sim.workload import Workload

NAMES = ("a", "b", "c")
BATCH = 36
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (
        {
            "model_type": "bert",
            "vocab_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 16,
        },
        "sequence-classification",
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "vocab_size": 64,
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 2,
            "n_positions": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "causal-lm",
    ),
    "llama": (
        {
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "max_position_embeddings": 16,
            "tie_word_embeddings": False,
        },
        "causal-lm",
    ),
}
LAYERS = 5


def workload_of(family: str) -> Workload:
    config, task = FAMILIES[family]
    return Workload(model=model_from_config(config, name=family, task=task), global_batch=24, sequence_length=12)


@pytest.fixture(scope="module")
def bert() -> Workload:
    return workload_of("bert")


def pipeline(devices: str, cuts: list[int], sizes: list[int], recompute: str = "none") -> dict[str, Any]:
    """Stages cut before these layers, on devices of one letter each."""
    edges = [0, *cuts, LAYERS]
    stages = [
        {"first": first, "last": last, "replicas": [{"devices": [name]}], "recompute": recompute}
        for first, last, name in zip(edges, edges[1:], devices, strict=False)
    ]
    return {"stages": stages, "micro_batches": sizes}


def plan(*pipelines: dict[str, Any], **others: Any) -> Plan:
    return Plan.parse({"pipelines": list(pipelines), **others})


TWO_REPLICAS = pipeline("a", [], [24])
TWO_REPLICAS["stages"][0]["replicas"] = [{"devices": ["a"], "share": 0.5}, {"devices": ["b"], "share": 0.5}]
TENSOR = pipeline("a", [], [24])
TENSOR["stages"][0]["replicas"] = [{"devices": ["a", "b"]}]
REFUSED = {
    "unequal micro-batches": (plan(pipeline("ab", [2], [13, 11])), "pipelines.0.micro_batches: are of 2 sizes"),
    "too few for 1F1B": (plan(pipeline("abc", [2, 3], [12, 12]), schedule="1f1b"), "fewer than the 3 stages"),
    "accumulation in a pipeline": (
        plan(pipeline("ab", [2], [12, 12]), schedule="accumulate"),
        "schedule: is accumulate",
    ),
    "a device twice": (plan(pipeline("aba", [2, 3], [12, 12])), "hold some device twice"),
    "out of turn": (plan(pipeline("abba", [1, 2, 3], [12, 12]), schedule="interleaved"), "do not go round"),
    "replicas": (plan(TWO_REPLICAS), "pipelines.0.stages.0.replicas: are several"),
    "tensor parallelism": (plan(TENSOR), "pipelines.0.stages.0.replicas.0.devices: are several"),
    "selective recomputation": (plan(pipeline("a", [], [24], "selective")), "pipelines.0.stages.0.recompute: is"),
    "local SGD": (plan(pipeline("a", [], [24]), sync_every=4), "sync_every: is 4"),
    "pulled micro-batches": (plan(pipeline("a", [], [24]), dispatch="pull"), "dispatch: is pull"),
    "ZeRO 3 and recomputation": (
        plan(pipeline("a", [], [12]), pipeline("b", [], [12], "full"), zero=3),
        "pipelines.1.stages.0.recompute: is full with zero = 3",
    ),
    "ZeRO in a pipeline": (plan(pipeline("ab", [2], [24]), zero=1), "zero: is 1 with several stages"),
    "unequal shares": (
        plan(pipeline("a", [], [12]), pipeline("b", [], [12]), zero=1, state_shares={"a": 0.7, "b": 0.3}),
        "state_shares: are unequal",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_torch_cannot_run_is_refused_in_one_line_that_names_the_place(case: str, bert: Workload) -> None:
    refused, words = REFUSED[case]
    with pytest.raises(PlanError) as error:
        program_of(refused, bert, NAMES)
    assert words in str(error.value)
    assert str(error.value).endswith(")")
    assert "\n" not in str(error.value)


def test_a_family_whose_layers_are_unknown_is_not_cut(bert: Workload) -> None:
    other = bert.model_copy(update={"model": bert.model.model_copy(update={"config": {"model_type": "albert"}})})
    with pytest.raises(PlanError, match=r"pipelines\.0\.stages: cut a albert"):
        program_of(plan(pipeline("ab", [2], [24])), other, NAMES)
    assert program_of(plan(pipeline("a", [], [24])), other, NAMES)["zero"] == 0


def test_a_plain_split_is_told_as_sizes_and_all_else_as_a_program(bert: Workload) -> None:
    split = plan(pipeline("c", [], [10]), pipeline("a", [], [7, 7]))
    assert division(split, bert, NAMES) == {"sizes": [[7, 7], [], [10]], "ranks": [0, 2]}
    assert "program" in division(split.model_copy(update={"zero": 1}), bert, NAMES)
    assert "program" in division(plan(pipeline("ca", [2], [12, 12])), bert, NAMES)


@pytest.mark.parametrize(("error", "proven"), [(0.0, True), (1e-6, True), (1e-5, False), (None, False)])
def test_a_gradient_is_proven_by_a_small_distance(error: float | None, proven: bool) -> None:
    assert is_proven(error) is proven


@pytest.mark.parametrize("error", ["nan", "inf"])
def test_a_gradient_that_is_no_number_is_not_proven(error: str) -> None:
    assert not is_proven(float(error))


def test_samples_are_dealt_in_the_order_of_the_ranks(bert: Workload) -> None:
    program = program_of(plan(pipeline("cb", [2], [4, 4]), pipeline("a", [], [16])), bert, NAMES)
    assert [(each["stages"][0]["rank"], each["first"]) for each in program["pipelines"]] == [(0, 0), (2, 16)]
    assert json.loads(json.dumps(program)) == program


def random_plan(seed: int) -> Plan:
    """A plan that torch can run: one to three pipelines over some of the lanes, any cuts, any equal micro-batches."""
    draw = random.Random(seed)
    names = draw.sample(NAMES, draw.randint(1, 3))
    schedule = draw.choice(["gpipe", "1f1b", "interleaved"])
    groups: list[list[str]] = [[]]
    for name in names:
        if groups[-1] and draw.random() < 0.4:
            groups.append([])
        groups[-1].append(name)
    shares = {1: [BATCH], 2: [12, 24], 3: [12, 12, 12]}[len(groups)]
    draw.shuffle(shares)
    pipelines = []
    for own, samples in zip(groups, shares, strict=True):
        turns = 2 if schedule == "interleaved" and len(own) == 2 else 1
        stages = len(own) * turns
        cuts = sorted(draw.sample(range(1, LAYERS), stages - 1))
        if stages == 1:
            first = draw.randint(1, samples)
            sizes = [first, samples - first] if first < samples else [samples]
        else:
            count = draw.choice([each for each in (3, 4, 6, 12) if each >= stages and each % len(own) == 0])
            sizes = [samples // count] * count
        recompute = draw.choice(["none", "full"])
        pipelines.append(pipeline("".join(own * turns), cuts, sizes, recompute))
    zero = draw.choice([0, 0, 1, 2]) if all(len(own) == 1 for own in groups) else 0
    if zero > 1:
        for each in pipelines:
            each["stages"][0]["recompute"] = "none"
    return plan(*pipelines, schedule=schedule, zero=zero)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_random_plans_have_the_gradient_of_a_single_process(family: str, tmp_path: Path) -> None:
    workload = workload_of(family).model_copy(update={"global_batch": BATCH})
    plans = [random_plan(seed) for seed in range(12)]
    plans.append(plan(pipeline("cab", [1, 3], [6] * 6), schedule="1f1b"))
    plans.append(plan(pipeline("a", [], [7, 5]), pipeline("b", [], [12, 8]), pipeline("c", [], [3, 1]), zero=3))
    assert {len(each.stages) for made in plans for each in made.pipelines} == {1, 2, 3, 4}
    job, data = job_of(workload, Training(data="random"), tmp_path, seed=0)
    cores = available_cpus()
    lanes = [NamedLane(name=name, cpus=[cores[number % len(cores)]]) for number, name in enumerate(NAMES)]
    divisions = [division(each, workload, NAMES) for each in plans]
    errors = prove(lanes, divisions, job, data, timeout_s=120)
    assert max(errors) <= MOST_GRADIENT_ERROR, dict(zip((str(each.document()) for each in plans), errors, strict=True))


@pytest.mark.slow
def test_a_plan_that_forgets_samples_is_found_out(bert: Workload, tmp_path: Path) -> None:
    """The proof can fail: a program that leaves out samples, or sums nothing over a holder, has another gradient."""
    job, data = job_of(bert, Training(data="random"), tmp_path, seed=0)
    lanes = [NamedLane(name=name) for name in NAMES[:2]]
    right = program_of(plan(pipeline("ab", [2], [12, 12])), bert, NAMES)
    short = json.loads(json.dumps(right))
    short["pipelines"][0]["sizes"] = [12]
    alone = {"sizes": [[24], []], "ranks": [0]}
    half = {"sizes": [[12], []], "ranks": [0]}
    tasks = [{"program": right, "ranks": [0, 1]}, {"program": short, "ranks": [0, 1]}, alone, half]
    errors = prove(lanes, tasks, job, data, timeout_s=120)
    assert max(errors[0], errors[2]) <= MOST_GRADIENT_ERROR
    assert min(errors[1], errors[3]) > 0.01
    exact = prove_exactly(lanes, tasks, [0.0, *errors[1:2], float("nan"), errors[3]], job, data, timeout_s=120)
    assert exact[0] is None  # proven before
    assert is_proven(exact[2])
    assert min(exact[1] or 0.0, exact[3] or 0.0) > 0.01


@pytest.mark.slow
def test_segments_carry_stage_and_micro_batch_in_the_schedules_order(bert: Workload, tmp_path: Path) -> None:
    job, data = job_of(bert, Training(data="random"), tmp_path, seed=0)
    lanes = [NamedLane(name=name) for name in NAMES[:2]]
    piped = division(plan(pipeline("ba", [2], [6, 6, 6, 6]), schedule="1f1b"), bert, NAMES)
    task = {"op": "block", "index": 0, "round": 0, "warmup": 1, "steps": 2, "offset": 0, **piped}
    launch = run_group(lanes, [task], job, timeout_s=120, data=data)
    for rank, stage in ((0, 1), (1, 0)):
        ((_, answer),) = launch.of("block", rank)
        for step in answer["steps"]:
            work = [(kind, number) for kind, number, *_ in step if kind in ("forward", "backward")]
            assert {each[5] for each in step if each[0] == "forward"} == {stage}
            assert sorted(work) == sorted((kind, number) for kind in ("forward", "backward") for number in range(4))
            assert [number for kind, number in work if kind == "backward"] == [0, 1, 2, 3]
            assert work[:2] == ([("forward", 0), ("backward", 0)] if stage == 1 else [("forward", 0), ("forward", 1)])
            assert all(one[3] <= other[2] for one, other in itertools.pairwise(step))


@pytest.mark.slow
def test_sharded_updates_give_everybody_everybodys_weights(bert: Workload, tmp_path: Path) -> None:
    """After steps of it, everybody's part still sums up to one process's gradient: nobody has weights of his own."""
    job, data = job_of(bert, Training(data="random"), tmp_path, seed=0)
    lanes = [NamedLane(name=name) for name in NAMES[:2]]
    plain, sharded = (
        division(plan(pipeline("a", [], [9, 3]), pipeline("b", [], [12]), zero=zero), bert, NAMES) for zero in (0, 1)
    )
    trained = {"op": "block", "index": 0, "round": 0, "warmup": 1, "steps": 4, "offset": 0, **sharded}
    launch = run_group(lanes, [trained, {"op": "prove", **plain}], job, timeout_s=120, data=data)
    ((_, answer),) = launch.of("prove", 0)
    assert answer["error"] <= MOST_GRADIENT_ERROR
