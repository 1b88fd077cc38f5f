"""calibrate(): measure the lanes of this host into the tables that predictions are made from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..results.errors import InputError
from ..sim.checking import validate
from ..sim.device import (
    Cluster,
    Device,
    Lane,
    LayerProfile,
    Profile,
    ProfilePoint,
)
from ..sim.noise import stream
from ..sim.spec import Calibrating, Replay, Training
from ..sim.workload import Workload
from .blocks import quiet_steps, spent_s, step_blocks, thin
from .calibrations import (
    Calibration,
    calibration_path,
    check_fingerprint,
    check_workload,
    read_calibration,
    write_calibration,
)
from .declared import declared, lanes_from
from .devices import NamedLane, Offer, default_lanes, passes_on
from .hosts.machines import further_lanes, study_fingerprint
from .isolation.machines import machines
from .launch import LaunchResult, Task, require_torch, run_group, ticking
from .layering import build_layer_profile
from .linking import (
    REPEATS,
    SHARDING,
    WORK,
    build_collective,
    build_messages,
    collective_sizes,
    groups_of,
    in_steps,
    message_tasks,
)
from .resolving import job_of, workload_of
from .staging import message_s, stage_pass, staging_tasks
from .waking import waking_points, waking_tasks

START_S = 8.0
"""What a group of workers takes to start, for the estimate of the time needed."""
BLOCKS_PER_PLAN = 3
"""Blocks that a plan is measured in within one launch (the default of ``replay.rounds``)."""
SMALLEST, LARGEST = 0.06, 1.06
"""Calibrated micro-batch sizes span these shares of the largest that a plan can have."""
SIZES_PER_LANE = 4
"""Sizes grow with the lanes: the more lanes, the more sizes are a plan's and must not predict it."""
PROBE_LANES_S = 15.0
Report = Callable[[str], None]
Tick = Callable[[int, int], None]
"""Progress: tasks done, tasks in all."""


def calibrate(
    document: dict[str, Any],
    folder: Path | None,
    runs: Path,
    *,
    again: bool = False,
    force: bool = False,
    before: Callable[[Sequence[NamedLane]], object] = lambda lanes: None,
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Calibration:
    """Measure the lanes of this host for a scenario's workload, or reuse what was measured here before.

    Args:
        document: the raw scenario; its cluster says ``lanes = "auto"`` or names a lane file.
        folder: where its relative paths start.
        runs: the folder of runs; tables go to ``calibrations/`` in it.
        again: measure although a table is there.
        force: use tables of another machine (``again``: replace them).
        before: is called with the lanes before they are measured: what else is to be timed on them comes first, so that
            little time passes between the tables and what they predict.
        report: gets lines for people: what is measured, how long it will take.
        tick: gets the progress.

    Raises:
        InputError: torch missing, bad lanes, or the table at hand is of another machine.
        WorkerFailedError: a lane died while it was measured.
    """
    _require_lanes(document)
    workload = workload_of(document, folder)
    path = calibration_path(document, folder, runs, workload)
    if path.is_file() and not again:
        found = read_calibration(path)
        check_workload(found, workload)
        check_fingerprint(found, force)
        report(f"reusing {path}: measured on this machine before")
        return found
    require_torch()
    training = validate(Training, document.get("training", {}), "training", prefix="training.")
    effort = validate(Calibrating, document.get("calibration", {}), "calibration", prefix="calibration.")
    by_hand = declared(document, folder)
    own = lanes_from(by_hand[1], "cluster.") if by_hand is not None else ()
    report(f"looking for lanes: each is verified and measured, about {PROBE_LANES_S:.0f} s")
    lanes, offers = default_lanes(own, further=further_lanes())
    for offer in offers:
        report(f"  {offer.lane.name}: {offer.reason}")
    before(lanes)
    timeout_s = validate(Replay, document.get("replay", {}), "replay", prefix="replay.").timeout_s
    return measure(
        workload, training, effort, path, timeout_s=timeout_s, lanes=lanes, offers=offers, report=report, tick=tick
    )


def measure(
    workload: Workload,
    training: Training,
    effort: Calibrating,
    path: Path,
    *,
    timeout_s: float,
    lanes: Sequence[NamedLane],
    offers: Sequence[Offer],
    report: Report,
    tick: Tick,
) -> Calibration:
    """Measure some lanes and write their tables to ``path``; the rest as in :func:`calibrate`."""
    job, data = job_of(workload, training, path.parent, seed=0)
    sizes = calibration_sizes(workload, len(lanes))
    staged = staging_tasks(workload, sizes, len(lanes)) if passes_on(lane.torch_device for lane in lanes) else []
    plans = [_tasks(sizes, len(lanes), workload, effort, number, staged=staged) for number in range(effort.launches)]
    seconds = effort.launches * (START_S + effort.rounds * len(sizes) * (effort.seconds_per_point + 0.1) + 3)
    report(
        f"calibrating {len(lanes)} lanes at {len(sizes)} micro-batch sizes, "
        f"{effort.launches} launches: about {seconds:.0f} s"
    )
    total = sum(len(tasks) for tasks in plans)
    results: list[LaunchResult] = []
    for number, tasks in enumerate(plans):
        progress = ticking(lanes[-1], tick, sum(map(len, plans[:number])), total)
        results.append(run_group(lanes, tasks, job, timeout_s=timeout_s, data=data, progress=progress))
    cluster = build_cluster(workload, lanes, offers, results)
    calibration = Calibration(
        cluster=cluster,
        workload=workload.key,
        path=path,
        reused=False,
        contended_percent=_contended(results),
    )
    write_calibration(calibration)
    return calibration


def scenario_lanes(document: dict[str, Any], folder: Path | None, runs: Path, report: Report) -> list[NamedLane]:
    """The lanes of a scenario: those of its calibration where there is one, else what this host offers.

    Raises:
        InputError: the scenario is not of lanes.
    """
    _require_lanes(document)
    path = calibration_path(document, folder, runs, workload_of(document, folder))
    if path.is_file():
        devices = read_calibration(path).cluster.devices
        return [NamedLane(**each.lane.model_dump(), name=each.name) for each in devices if each.lane is not None]
    report(f"looking for lanes: each is verified and measured, about {PROBE_LANES_S:.0f} s")
    by_hand = declared(document, folder)
    return default_lanes(lanes_from(by_hand[1], "cluster.") if by_hand is not None else ())[0]


def _require_lanes(document: dict[str, Any]) -> None:
    cluster = document.get("cluster")
    if not isinstance(cluster, dict) or "lanes" not in cluster:
        raise InputError("cluster.lanes", "is missing: there is nothing to measure", 'use [cluster] lanes = "auto"')


def calibration_sizes(workload: Workload, lanes: int) -> list[int]:
    """Micro-batch sizes to measure, from a few samples to a little over the largest that a plan can have.

    An equal split's sizes are left out: the uniform plan is always replayed, and its sizes must not predict it. The
    smallest size has a neighbour: passes of a sample or two, which accumulation makes many of, are drawn on from there.
    """
    largest = min(workload.global_batch, workload.max_micro_batch or workload.global_batch)
    count = SIZES_PER_LANE * lanes + 1
    step = (LARGEST - SMALLEST) / (count - 1)
    sizes = {max(1, round((SMALLEST + number * step) * largest)) for number in range(count)}
    sizes.add(min(sizes) + 1)
    equal = {workload.global_batch // lanes, -(-workload.global_batch // lanes)}
    if max(sizes) in equal:
        sizes.add(max(equal) + 1)  # what goes must not leave the largest of the plans' sizes outside
    kept = sorted(sizes - equal)
    return kept if len(kept) >= 3 else [1, 2, 3]


def build_cluster(
    workload: Workload,
    lanes: Sequence[NamedLane],
    offers: Sequence[Offer],
    results: Sequence[LaunchResult],
) -> Cluster:
    """Tables from raw results: per launch, the tasks and each rank's answers."""
    offer_of = {offer.lane.name: offer for offer in offers}
    messages = build_messages(lanes, results)
    under_way_s = message_s(workload, results, messages)
    devices = []
    for rank, lane in enumerate(lanes):
        offer = offer_of[lane.name]
        devices.append(
            Device(
                name=lane.name,
                summary=offer.reason,
                peak_tflops={"fp32": offer.product_flops / 1e12},
                memory_gib=_memory_gib(lane, offer, lanes),
                memory_bandwidth_gb_per_s=offer.copy_bytes_per_s / 1e9,
                source={"peak_tflops": "measured", "memory_bandwidth_gb_per_s": "measured", "memory_gib": "measured"},
                lane=unnamed(lane),
                profile=(profile := build_profile(workload, results, rank)),
                layer_profile=_layer_profile(workload, results, rank, profile, under_way_s),
            )
        )
    apart = [build_collective(workload, lanes, results, ranks) for ranks in groups_of(len(lanes))]
    collectives = in_steps(apart, workload, results)
    measured = {task["op"] for task in results[0].tasks}
    everybody = range(len(lanes))
    collectives += [
        build_collective(workload, lanes, results, everybody, kind) for kind in SHARDING if kind in measured
    ]
    collectives += messages
    nodes, network = machines(lanes, devices)
    return Cluster(nodes=nodes, network=network, collectives=collectives, fingerprint=study_fingerprint())


def build_profile(workload: Workload, results: Sequence[LaunchResult], rank: int) -> Profile:
    """One lane's profile: medians over launches of each launch's medians; what is left over is the noise.

    The noise has two scales. A step is held against its own block (the steps measured without a pause), so that the
    slow drift of a shared host, which all lanes feel together, is not taken for independent luck. Launches are held
    against each other by :func:`launch_offsets`.
    """
    blocks = [step_blocks(launch, rank) for launch in results]
    points, residuals = [], []
    typical: dict[int, float] = {}
    for size in sorted({size for size, _ in blocks[0]}):
        own = [[step for each, steps in launch if each == size for step in steps] for launch in blocks]
        forward = median(median(f for f, _ in steps) for steps in own)
        backward = median(median(b for _, b in steps) for steps in own)
        typical[size] = forward + backward
        count = sum(map(len, own))
        points.append(ProfilePoint(micro_batch=size, forward_s=forward, backward_s=backward, steps=count))
    for launch in blocks:
        for _, steps in launch:
            middle = median(f + b for f, b in steps)
            residuals += [(f + b) / middle - 1 for f, b in steps]
    offsets = [[median(f + b for f, b in steps) / typical[size] - 1 for size, steps in launch] for launch in blocks]
    of_launches = launch_offsets(offsets)
    return Profile(
        workload=workload.key,
        points=points,
        optimizer_s=median(_optimizer_s(launch, rank) for launch in results),
        rest_s=median(_rest_s(launch, rank) for launch in results),
        step_residuals=thin(residuals),
        launch_residuals=of_launches,
        launch_groups=len(of_launches) // len(results),
        waking=waking_points(results, rank),
    )


def launch_offsets(offsets: Sequence[Sequence[float]], group: int = BLOCKS_PER_PLAN) -> list[float]:
    """Relative offsets of launches as a plan sees them: medians of a few blocks spread over a launch.

    A replayed plan is measured in ``group`` blocks a launch, one a round. So are these: every launch's blocks, in the
    order in which they were measured, are dealt into groups whose members lie far apart. The blocks of all lanes were
    measured at the same times, so equal positions in the lists of two lanes belong together.
    """
    found = []
    for launch in offsets:
        groups = max(1, len(launch) // group)
        found += [median(launch[start::groups]) for start in range(groups)]
    return found


# ---- inner parts ----


def _layer_profile(
    workload: Workload,
    results: Sequence[LaunchResult],
    rank: int,
    profile: Profile,
    under_way_s: float,
) -> LayerProfile | None:
    found = build_layer_profile(workload, results, rank, profile)
    return found and found.model_copy(update={"stage_pass": stage_pass(results, rank, found, under_way_s)})


def _tasks(
    sizes: Sequence[int],
    lanes: int,
    workload: Workload,
    effort: Calibrating,
    launch: int,
    *,
    staged: Sequence[Task] = (),
) -> list[Task]:
    """One launch's tasks: every size, every collective and what is ``staged`` in each round, shuffled."""
    shuffle = random.Random(int(stream(launch, "calibrate").integers(2**32)))  # noqa: S311 - an order, not a secret
    tasks: list[Task] = []
    for number in range(effort.rounds):
        own = [
            {"op": "profile", "micro_batch": size, "seconds": effort.seconds_per_point, "least": effort.least_steps}
            for size in sizes
        ]
        own += [
            {"op": "all_reduce", "bytes": size, "repeats": REPEATS, "work": WORK, "ranks": ranks}
            for ranks in groups_of(lanes)
            for size in collective_sizes(workload)
        ]
        own += [
            {"op": kind, "bytes": size, "repeats": REPEATS, "work": WORK, "ranks": list(range(lanes))}
            for kind in SHARDING
            for size in collective_sizes(workload)
            if lanes > 1
        ]
        own += [*message_tasks(workload, lanes), *staged]
        if number == 0:
            own += waking_tasks(sizes, lanes)
        shuffle.shuffle(own)
        tasks += own
    return tasks


def _optimizer_s(launch: LaunchResult, rank: int) -> float:
    """Median over blocks, of all sizes alike: the larger one is, the less of the states a cache still holds."""
    blocks = [[spent_s(step, "optimizer") for step in quiet_steps(answer)] for _, answer in launch.of("profile", rank)]
    return median(median(own) for own in blocks)


def _rest_s(launch: LaunchResult, rank: int) -> float:
    """Seconds of a step that are in no segment: median over blocks of a plan's steps; with one lane, of single ones."""
    blocks = [answer["steps"] for _, answer in launch.of("block", rank)]
    blocks = blocks or [answer["steps"] for _, answer in launch.of("profile", rank)]
    return max(0.0, median(median(map(_between_s, steps, steps[1:])) for steps in blocks if len(steps) > 1))


def _between_s(step: Sequence[Sequence[Any]], following: Sequence[Sequence[Any]]) -> float:
    """From the begin of a step to that of the next, less its segments."""
    return float(following[0][2] - step[0][2] - sum(end - start for _, _, start, end, *_ in step))


def _contended(results: Sequence[LaunchResult]) -> float:
    shares: list[float] = [
        answer["contended"]
        for launch in results
        for rank in range(len(launch.answers))
        for _, answer in launch.of("profile", rank)
    ]
    return 100 * sum(shares) / len(shares)


def _memory_gib(lane: NamedLane, offer: Offer, lanes: Sequence[NamedLane]) -> float:
    """Memory of one lane: a GPU's own, or the host's divided among its CPU lanes; no more than the lane's limit."""
    if lane.memory_limit_gib:
        return min(lane.memory_limit_gib, offer.memory_bytes / 2**30)
    sharing = (
        1
        if lane.torch_device != "cpu"
        else sum(each.torch_device == "cpu" and each.machine == lane.machine for each in lanes)
    )
    return offer.memory_bytes / 2**30 / sharing


def unnamed(lane: NamedLane) -> Lane:
    """The lane without its name, as a device holds it."""
    return Lane.model_validate(lane.model_dump(exclude={"name"}))
