"""Execution: a plan as the program that the members of a group run together, or why torch cannot run it.

A program is plain JSON: per pipeline its stages (layers, rank, whether they are recomputed), the sizes of its
micro-batches and the number of its first sample within the global batch; the schedule; what is sharded. Everything
else (who holds which weights, which gradients are summed over whom) follows from it, in every member alike.

What is refused here is refused before anything starts: by path, reason and mend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sim.plan import Pipeline, Plan, PlanError, Stage
from ..sim.workload import Workload

Program = dict[str, Any]

FAMILIES = {"bert": "sequence-classification", "gpt2": "causal-lm", "llama": "causal-lm"}
"""Families whose layers are cut, and the task that they train for (:mod:`.worker.slices` knows their layers)."""


def program_of(plan: Plan, workload: Workload, names: Sequence[str]) -> Program:
    """What the members run, ranks in the order of ``names``.

    Raises:
        PlanError: torch has no way to run the plan on these devices.
    """
    refuse(plan, workload)
    rank_of = {name: rank for rank, name in enumerate(names)}
    pipelines, first = [], 0
    # In the order of the ranks: lanes take their samples in one order, whatever the order in the plan.
    for pipeline in sorted(plan.pipelines, key=lambda each: min(rank_of[name] for name in each.devices)):
        stages = [
            {
                "first": stage.first,
                "last": stage.last,
                "rank": rank_of[stage.replicas[0].devices[0]],
                "recompute": stage.recompute == "full",
            }
            for stage in pipeline.stages
        ]
        pipelines.append({"stages": stages, "sizes": list(pipeline.micro_batches), "first": first})
        first += pipeline.samples
    return {"pipelines": pipelines, "schedule": plan.schedule, "zero": plan.zero}


def division(plan: Plan, workload: Workload, names: Sequence[str]) -> Program:
    """What a task of a plan says: ``ranks``, and ``sizes`` by rank for plain data parallelism, else its ``program``.

    Raises:
        PlanError: torch has no way to run the plan.
    """
    program = program_of(plan, workload, names)
    stages = [stage for pipeline in program["pipelines"] for stage in pipeline["stages"]]
    if not plan.is_data_parallel or plan.zero or any(stage["recompute"] for stage in stages):
        return {"program": program, "ranks": ranks_of(program)}
    sizes: list[list[int]] = [[] for _ in names]
    for pipeline in program["pipelines"]:
        sizes[pipeline["stages"][0]["rank"]] = pipeline["sizes"]
    return {"sizes": sizes, "ranks": ranks_of(program)}


def ranks_of(program: Program) -> list[int]:
    """The ranks that take part, in order."""
    return sorted({stage["rank"] for pipeline in program["pipelines"] for stage in pipeline["stages"]})


def refuse(plan: Plan, workload: Workload) -> None:
    """Refuse what torch cannot run on lanes.

    Raises:
        PlanError: by path, with the reason and what to do instead.
    """
    if plan.dispatch != "static":
        raise PlanError("dispatch", "is pull: torch's groups agree on who does what before a step", "use static")
    if plan.sync_every > 1:
        raise PlanError("sync_every", f"is {plan.sync_every}: local SGD trains another way, not replayed", "use 1")
    _refuse_sharding(plan)
    for index, pipeline in enumerate(plan.pipelines):
        path = f"pipelines.{index}"
        for number, stage in enumerate(pipeline.stages):
            _refuse_stage(stage, workload, f"{path}.stages.{number}")
        if len(pipeline.stages) > 1:
            _refuse_pipeline(plan, pipeline, workload, path)


def _refuse_sharding(plan: Plan) -> None:
    if not plan.zero:
        return
    if plan.state_shares is not None and len(set(plan.state_shares.values())) > 1:
        problem = "are unequal: torch shards into equal parts"
        raise PlanError("state_shares", problem, "leave them out")
    if any(len(pipeline.stages) > 1 for pipeline in plan.pipelines):
        problem = f"is {plan.zero} with several stages: each would be sharded over other peers"
        raise PlanError("zero", problem, "use 0, or whole models")
    recomputed = [pipeline.stages[0].recompute != "none" for pipeline in plan.pipelines]
    if plan.zero > 1 and any(recomputed):
        problem = f"is full with zero = {plan.zero}: what is sharded would be gathered a third time, not replayed"
        raise PlanError(f"pipelines.{recomputed.index(True)}.stages.0.recompute", problem, "use none, or zero 0 or 1")


def _refuse_stage(stage: Stage, workload: Workload, path: str) -> None:
    if len(stage.replicas) > 1:
        problem = "are several: torch's pipelines hand a stage's output to one process"
        raise PlanError(f"{path}.replicas", problem, "use one replica a stage, and more pipelines for more width")
    if len(stage.replicas[0].devices) > 1:
        problem = "are several: tensor parallelism of transformers' modules is not replayed"
        raise PlanError(f"{path}.replicas.0.devices", problem, "use one device a stage")
    if stage.recompute == "selective":
        raise PlanError(f"{path}.recompute", "is selective: torch recomputes whole modules", "use full or none")
    if stage.recompute == "full":
        refuse_family(workload, f"{path}.recompute")


def _refuse_pipeline(plan: Plan, pipeline: Pipeline, workload: Workload, path: str) -> None:
    """What torch.distributed.pipelining (2.13) asks of a pipeline."""
    refuse_family(workload, f"{path}.stages")
    sizes, stages = pipeline.micro_batches, len(pipeline.stages)
    if len(set(sizes)) > 1:
        problem = f"are of {len(set(sizes))} sizes: torch's pipelines receive into buffers of one size"
        raise PlanError(f"{path}.micro_batches", problem, "use micro-batches of one size within a pipeline")
    if plan.schedule == "accumulate":
        raise PlanError("schedule", "is accumulate, which torch has for single stages only", "use gpipe or 1f1b")
    if plan.schedule == "1f1b" and len(sizes) < stages:
        problem = f"are {len(sizes)}, fewer than the {stages} stages that torch's 1F1B fills first"
        raise PlanError(f"{path}.micro_batches", problem, "use more and smaller ones, or gpipe")
    if pipeline.order is not None and pipeline.order != list(range(stages)):
        raise PlanError(f"{path}.order", "is not that of the layers, which torch's schedules follow", "leave it out")
    _refuse_turns(plan, pipeline, path)


def _refuse_turns(plan: Plan, pipeline: Pipeline, path: str) -> None:
    """Which device may hold which stage: once each, or round and round."""
    places = [stage.replicas[0].devices[0] for stage in pipeline.stages]
    count = len(pipeline.devices)
    if plan.schedule != "interleaved" and count < len(places):
        problem = f"hold some device twice, which torch's {plan.schedule} has no turn for"
        raise PlanError(f"{path}.stages", problem, "use interleaved, or each device once")
    if plan.schedule == "interleaved" and (len(places) % count or places != places[:count] * (len(places) // count)):
        raise PlanError(f"{path}.stages", "do not go round the devices in one order", "repeat the devices in order")
    if plan.schedule == "interleaved" and len(pipeline.micro_batches) % max(1, len(pipeline.micro_batches) // count):
        problem = f"are {len(pipeline.micro_batches)}, which do not make equal rounds over {count} devices"
        raise PlanError(f"{path}.micro_batches", problem, f"use a multiple of {count}")


def refuse_family(workload: Workload, path: str) -> None:
    """Refuse a model whose layers are not known one by one.

    Raises:
        PlanError: at the path, with the families that are.
    """
    config = workload.model.config
    family, task = config.get("model_type"), config.get("task", "sequence-classification")
    if FAMILIES.get(str(family)) != task:
        known = ", ".join(f"{name} ({trained})" for name, trained in FAMILIES.items())
        raise PlanError(path, f"cut a {family} that trains for {task}: its layers are not known one by one", known)
    blocks = config.get("num_hidden_layers", config.get("n_layer"))
    if isinstance(blocks, int) and len(workload.layers) != blocks + 2:
        problem = f"count {len(workload.layers)} layers, the model has {blocks} blocks between embeddings and head"
        raise PlanError(path, problem, "describe the model anew")
