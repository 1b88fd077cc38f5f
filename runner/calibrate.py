"""calibrate(): measure the lanes of this host into the tables that predictions are made from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from ..results.errors import InputError
from ..results.record import digest
from ..results.store import write_text
from ..sim.checking import validate
from ..sim.device import Cluster, CollectiveKind, CollectivePoint, CollectiveTable, Device, Lane, Profile, ProfilePoint
from ..sim.noise import stream
from ..sim.spec import Calibrating, Replay, Training, expand, inside, parse_file, shipped_names
from ..sim.workload import Facts, Name, NonNegative, Spec, Workload
from .data import training_data
from .declared import LaneFile, declared, lanes_from
from .devices import NamedLane, Offer, default_lanes
from .families import TRAINED
from .hosts.machines import current, further_lanes, study_fingerprint
from .isolation.machines import machines
from .launch import LaunchResult, Task, require_torch, run_group, ticking
from .layering import build_layer_profile, quiet_only
from .linking import REPEATS, build_messages, groups_of, message_tasks
from .waking import waking_points, waking_tasks

START_S = 8.0
"""What a group of workers takes to start, for the estimate of the time needed."""
BLOCKS_PER_PLAN = 3
"""Blocks that a plan is measured in within one launch (the default of ``replay.rounds``)."""
MAX_RESIDUALS = 101
"""Residuals are kept as so many quantiles: the same distribution in a file that stays small."""
SMALLEST, LARGEST = 0.06, 1.06
"""Calibrated micro-batch sizes span these shares of the largest that a plan can have."""
SIZES_PER_LANE = 4
"""Sizes grow with the lanes: the more lanes, the more sizes are a plan's and must not predict it."""
PROBE_LANES_S = 15.0
SHARDING: tuple[CollectiveKind, ...] = ("reduce_scatter", "all_gather")
"""Collectives of sharded states, measured over all lanes."""

Report = Callable[[str], None]
Tick = Callable[[int, int], None]
"""Progress: tasks done, tasks in all."""


@dataclass(frozen=True)
class Calibration:
    """Measured tables of one workload on the lanes of one host."""

    cluster: Cluster
    workload: str
    """Key of the workload that ran."""
    path: Path
    reused: bool
    contended_percent: float
    """Share of the compute segments that something else on the host disturbed."""
    feedback: dict[str, Any] = field(default_factory=dict)
    """Of refined tables: their base's digest, the runs with their digests, the factors, the held-out errors."""


class CalibrationFile(Spec):
    """Tables on disk, in the catalog's format."""

    schema_version: int
    workload: Name
    created_utc: str = ""
    contended_percent: NonNegative = 0.0
    feedback: Facts = Field(default_factory=dict)
    cluster: Cluster


def calibrate(
    document: dict[str, Any],
    folder: Path | None,
    runs: Path,
    *,
    again: bool = False,
    force: bool = False,
    before: Callable[[Sequence[NamedLane]], None] = lambda lanes: None,
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
    cluster = document.get("cluster")
    if not isinstance(cluster, dict) or "lanes" not in cluster:
        raise InputError("cluster.lanes", "is missing: there is nothing to measure", 'use [cluster] lanes = "auto"')
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
    plans = [_tasks(sizes, len(lanes), workload, effort, number) for number in range(effort.launches)]
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
    cluster = document.get("cluster")
    if not isinstance(cluster, dict) or "lanes" not in cluster:
        raise InputError("cluster.lanes", "is missing: there is nothing to measure", 'use [cluster] lanes = "auto"')
    path = calibration_path(document, folder, runs, workload_of(document, folder))
    if path.is_file():
        devices = read_calibration(path).cluster.devices
        return [NamedLane(**each.lane.model_dump(), name=each.name) for each in devices if each.lane is not None]
    report(f"looking for lanes: each is verified and measured, about {PROBE_LANES_S:.0f} s")
    by_hand = declared(document, folder)
    return default_lanes(lanes_from(by_hand[1], "cluster.") if by_hand is not None else ())[0]


def calibration_sizes(workload: Workload, lanes: int) -> list[int]:
    """Micro-batch sizes to measure, from a few samples to a little over the largest that a plan can have.

    An equal split's sizes are left out: the uniform plan is always replayed, and its sizes must not predict it.
    """
    largest = min(workload.global_batch, workload.max_micro_batch or workload.global_batch)
    count = SIZES_PER_LANE * lanes + 1
    step = (LARGEST - SMALLEST) / (count - 1)
    sizes = {max(1, round((SMALLEST + number * step) * largest)) for number in range(count)}
    kept = sorted(sizes - {workload.global_batch // lanes, -(-workload.global_batch // lanes)})
    return kept if len(kept) >= 3 else [1, 2, 3]


def build_cluster(
    workload: Workload,
    lanes: Sequence[NamedLane],
    offers: Sequence[Offer],
    results: Sequence[LaunchResult],
) -> Cluster:
    """Tables from raw results: per launch, the tasks and each rank's answers."""
    offer_of = {offer.lane.name: offer for offer in offers}
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
                layer_profile=build_layer_profile(workload, results, rank, profile),
            )
        )
    collectives = [build_collective(workload, lanes, results, ranks) for ranks in groups_of(len(lanes))]
    measured = {task["op"] for task in results[0].tasks}
    everybody = range(len(lanes))
    collectives += [
        build_collective(workload, lanes, results, everybody, kind) for kind in SHARDING if kind in measured
    ]
    collectives += build_messages(lanes, results)
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
    return Profile(
        workload=workload.key,
        points=points,
        optimizer_s=median(median(_optimizer_s(launch, rank)) for launch in results),
        step_residuals=thin(residuals),
        launch_residuals=launch_offsets(offsets),
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


def build_collective(
    workload: Workload,
    lanes: Sequence[NamedLane],
    results: Sequence[LaunchResult],
    ranks: Sequence[int],
    kind: CollectiveKind = "all_reduce",
) -> CollectiveTable:
    """The table of a collective over some lanes: from the last entry to the last exit, median of the launches' medians.

    Its noise is that of sizes near the gradients': a call that takes microseconds varies by far more of itself.
    """
    launches = [_collective_s(launch, ranks, kind) for launch in results]
    medians = {size: [median(launch[size]) for launch in launches] for size in sorted(launches[0])}
    overall = {size: median(each) for size, each in medians.items()}
    near = [size for size in overall if workload.gradient_bytes / 3 <= size <= workload.gradient_bytes * 3]
    near = near or [max(overall)]
    residuals = [
        seconds / medians[size][number] - 1
        for size in near
        for number, launch in enumerate(launches)
        for seconds in launch[size]
    ]
    return CollectiveTable(
        kind=kind,
        backend="nccl" if all(lane.torch_device.startswith("cuda") for lane in lanes) else "gloo",
        devices=[lanes[rank].name for rank in ranks],
        points=[CollectivePoint(bytes=size, seconds=seconds) for size, seconds in overall.items()],
        step_residuals=thin(residuals),
        launch_residuals=[
            median(medians[size][number] / overall[size] - 1 for size in near) for number in range(len(launches))
        ],
    )


def thin(residuals: Sequence[float]) -> list[float]:
    """At most :data:`MAX_RESIDUALS` quantiles of a sample: the same distribution, a smaller file."""
    ordered = sorted(residuals)
    if len(ordered) <= MAX_RESIDUALS:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (MAX_RESIDUALS - 1))] for index in range(MAX_RESIDUALS)]


# ---- files ----


def calibration_path(document: dict[str, Any], folder: Path | None, runs: Path, workload: Workload) -> Path:
    """Where the tables of a scenario lie: the file it names, else one per kind of lanes and workload."""
    cluster = document.get("cluster")
    named = cluster.get("calibration") if isinstance(cluster, dict) else None
    if isinstance(named, str):
        return inside(folder, named, "cluster.calibration")
    return runs / "calibrations" / f"{_lanes_name(declared(document, folder))}-{workload.key}.toml"


def write_calibration(calibration: Calibration) -> None:
    """Write the tables in the catalog's format, with the fingerprint of the hardware they belong to."""
    import tomli_w

    document = {
        "schema_version": 1,
        "workload": calibration.workload,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "contended_percent": calibration.contended_percent,
        "feedback": calibration.feedback,
        "cluster": calibration.cluster.model_dump(mode="json", exclude_none=True),
    }
    write_text(calibration.path, tomli_w.dumps(document))


def read_calibration(path: Path) -> Calibration:
    """Read tables back.

    Raises:
        InputError: missing, damaged, or of another version.
    """
    document = parse_file(path)
    if document.get("schema_version") != 1 or not isinstance(document.get("workload"), str):
        raise InputError(str(path), "is not a calibration of this version", "run `steelyard calibrate --again`")
    found = validate(CalibrationFile, document, str(path), prefix=f"{path}: ")
    return Calibration(
        cluster=found.cluster,
        workload=found.workload,
        path=path,
        reused=True,
        contended_percent=found.contended_percent,
        feedback=found.feedback,
    )


def refined_path(path: Path) -> Path:
    """Where tables lie that were refined by measured runs: beside those they were made from."""
    return path.with_suffix(".refined.toml")


def latest_calibration(path: Path) -> Calibration:
    """The tables at a path, or the refined ones beside them if these were made from the very tables at the path.

    Raises:
        InputError: a file is missing, damaged, or of another version.
    """
    base = read_calibration(path)
    if not refined_path(path).is_file():
        return base
    refined = read_calibration(refined_path(path))
    return refined if refined.feedback.get("base") == digest(base.cluster.model_dump(mode="json")) else base


def check_workload(calibration: Calibration, workload: Workload) -> None:
    """Compare what ran when the tables were made with what is to run.

    Raises:
        InputError: they differ.
    """
    if calibration.workload != workload.key:
        raise InputError(
            str(calibration.path),
            "was measured with another workload",
            "run `steelyard calibrate --again` to replace it, or name another file",
        )


def check_fingerprint(calibration: Calibration, force: bool) -> list[str]:
    """Compare the tables' fingerprint with this host's.

    Returns:
        A note for the run's record where they differ and ``force`` is given, else nothing.

    Raises:
        InputError: they differ.
    """
    here, there = study_fingerprint(), calibration.cluster.fingerprint
    differing = sorted(key for key in here if here[key] != there.get(key))
    if not differing:
        return []
    key = differing[0]
    what = f"{key} is {here[key]!r} here, {there.get(key)!r} there"
    if force:
        return [f"calibration of another machine used by --force: {what}"]
    raise InputError(
        str(calibration.path),
        f"was measured on another machine: {what}",
        "run `steelyard calibrate --again`, or add --force to use it all the same",
    )


def resolver(runs: Path, *, force: bool = False, notes: list[str] | None = None) -> Callable[..., dict[str, Any]]:
    """What :func:`steelyard.sim.spec.load_scenario` asks for the parts that only this host knows.

    Lanes become the devices of their calibration; a transformers model becomes its layers. ``notes`` collects what a
    run should record.
    """
    import difflib

    def resolve(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        document = with_model(document, folder)
        cluster = document.get("cluster")
        if not isinstance(cluster, dict) or "lanes" not in cluster:
            return document
        known = ("calibration", "hosts", "lanes")
        for key in (str(each) for each in cluster if each not in known):
            near = difflib.get_close_matches(key[:200], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            raise InputError(f"cluster.{key}", "unknown key", hint)
        workload = workload_of(document, folder)
        path = calibration_path(document, folder, runs, workload)
        if not path.is_file():
            raise InputError(
                "cluster.lanes", "the lanes of this host are not calibrated", "run `steelyard calibrate` first"
            )
        found = latest_calibration(path)
        check_workload(found, workload)
        if notes is not None and found.feedback:
            notes.append(f"calibration refined by {len(found.cluster.fitted_from)} measured runs")
        if notes is not None:
            notes.extend(check_fingerprint(found, force))
        else:
            check_fingerprint(found, force)
        cluster = found.cluster.model_dump(mode="json", exclude_none=True)
        for device in (each for node in cluster["nodes"] for each in node["devices"] if "layer_profile" in each):
            device["layer_profile"]["model"] = workload.model.name  # equal work, whatever it was called when it ran
        return {**document, "cluster": cluster}

    return resolve


def with_model(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The document with a transformers model (a type's name, or a configuration file) replaced by its layers."""
    workload = document.get("workload")
    model = workload.get("model") if isinstance(workload, dict) else None
    if not isinstance(workload, dict) or not isinstance(model, str) or model in shipped_names("catalog/models"):
        return document
    from importlib.util import find_spec

    if find_spec("transformers") is None or find_spec("torch") is None:
        return document  # the loader says what is wrong with the name
    from .workload import is_model_file, model_from_config

    source: str | Path = model
    if model.endswith(".json"):
        source = inside(folder, model, "workload.model")
        if is_model_file(source):
            return document
    found = model_from_config(source)
    return {**document, "workload": {**workload, "model": found.model_dump(mode="json")}}


def workload_of(document: dict[str, Any], folder: Path | None) -> Workload:
    """The workload of a raw scenario document."""
    part = with_model({"workload": document.get("workload")}, folder)
    return validate(Workload, expand(part, folder).get("workload"), "workload", prefix="workload.")


def job_of(workload: Workload, training: Training, cache: Path, *, seed: int) -> tuple[dict[str, Any], Path]:
    """What workers need to build the model and feed it, and the file of encoded samples.

    Raises:
        InputError: the workload cannot run on lanes (dtype, no configuration).
    """
    if workload.dtype not in ("fp32", "bf16"):
        raise InputError("workload.dtype", f"{workload.dtype} does not run on lanes in this version", "fp32 or bf16")
    config = workload.model.config
    if not config:
        raise InputError("workload.model", "has no transformers configuration, so it cannot run", "use one that has")
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and workload.sequence_length > longest:
        raise InputError("workload.sequence_length", f"is over the model's {longest} positions", "use a shorter one")
    if config.get("task", "sequence-classification") not in TRAINED:
        raise InputError("workload.model", f"is a {config['task']} model", f"lanes train {' or '.join(TRAINED)}")
    data, labels = training_data(workload, training, cache)
    return {
        "model": workload.model.config,
        "labels": labels,
        "seed": seed,
        "dtype": workload.dtype,
        "optimizer": workload.optimizer,
        "learning_rate": training.learning_rate,
        "global_batch": workload.global_batch,
    }, data


# ---- inner parts ----


def _tasks(sizes: Sequence[int], lanes: int, workload: Workload, effort: Calibrating, launch: int) -> list[Task]:
    """One launch's tasks: every size and every collective in each round, shuffled."""
    shuffle = random.Random(int(stream(launch, "calibrate").integers(2**32)))  # noqa: S311 - an order, not a secret
    tasks: list[Task] = []
    for number in range(effort.rounds):
        own = [
            {"op": "profile", "micro_batch": size, "seconds": effort.seconds_per_point, "least": effort.least_steps}
            for size in sizes
        ]
        own += [
            {"op": "all_reduce", "bytes": size, "repeats": REPEATS, "ranks": ranks}
            for ranks in groups_of(lanes)
            for size in collective_sizes(workload)
        ]
        own += [
            {"op": kind, "bytes": size, "repeats": REPEATS, "ranks": list(range(lanes))}
            for kind in SHARDING
            for size in collective_sizes(workload)
            if lanes > 1
        ]
        own += message_tasks(workload, lanes)
        if number == 0:
            own += waking_tasks(sizes, lanes)
        shuffle.shuffle(own)
        tasks += own
    return tasks


def collective_sizes(workload: Workload) -> list[int]:
    """Sizes to measure: powers of two from 16 KiB to beyond the gradients', which fall between two of them."""
    top = max(workload.gradient_bytes, 2**16)
    sizes = [2**14]
    while sizes[-1] < top:
        sizes.append(sizes[-1] * 4 if sizes[-1] * 8 < top else sizes[-1] * 2)
    return [size for size in sizes if size != workload.gradient_bytes] + [sizes[-1] * 2]


def step_blocks(launch: LaunchResult, rank: int, op: str = "profile") -> list[tuple[int, list[tuple[float, float]]]]:
    """Size, and forward and backward seconds of each step that counts, of a rank's blocks in the order measured."""
    return [
        (task["micro_batch"], [(_spent(step, "forward"), _spent(step, "backward")) for step in _quiet(answer)])
        for task, answer in launch.of(op, rank)
    ]


def _quiet(answer: Task) -> list[Any]:
    """The steps that nothing disturbed, where they are enough to go by; else all, and the calibration says how many."""
    return quiet_only(answer, answer["steps"])


def _optimizer_s(launch: LaunchResult, rank: int) -> list[float]:
    return [_spent(step, "optimizer") for _, answer in launch.of("profile", rank) for step in _quiet(answer)]


def _spent(step: Sequence[Sequence[Any]], kind: str) -> float:
    """Seconds of a kind of segment in a step."""
    return float(sum(end - start for name, _, start, end, *_ in step if name == kind))


def _collective_s(launch: LaunchResult, ranks: Sequence[int], kind: CollectiveKind) -> dict[int, list[float]]:
    """Seconds of every collective over some ranks by size: from the last one's entry to the last one's exit."""
    found: dict[int, list[float]] = {}
    for per_rank in zip(*(launch.of(kind, rank) for rank in ranks), strict=True):
        if per_rank[0][0]["ranks"] != list(ranks):
            continue
        calls = zip(*(answer["times"] for _, answer in per_rank), strict=True)
        seconds = [max(end for _, end in call) - max(start for start, _ in call) for call in calls]
        found.setdefault(per_rank[0][0]["bytes"], []).extend(seconds)
    return found


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


def _lanes_name(by_hand: tuple[str, LaneFile] | None) -> str:
    """What the lanes add to the name of their tables: a file that was edited, or another of that name, has its own."""
    if by_hand is None:
        return "auto" if current.get() is None else f"auto-{len(further_lanes()) + 1}-machines"
    name, found = by_hand
    return f"{name}-{digest(found.model_dump(mode='json'))[:8]}"
