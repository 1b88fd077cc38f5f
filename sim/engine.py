"""simulate(): a discrete-event model of training steps on unequal devices. The only file that imports simpy."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter

import simpy

from ..results.errors import InputError
from ..results.ledger import critical_path, durations, ledgers, quantiles
from ..results.record import (
    SCHEMA_VERSION,
    DeviceLedger,
    Fidelity,
    Manifest,
    Quantiles,
    Run,
    Summary,
    digest,
    event_frame,
)
from . import cost, noise
from .bounds import lower_bound_s
from .device import CollectiveTable, Profile
from .plan import Plan
from .spec import Scenario
from .view import Policy, View, allocate, describe

COMMUNICATION_POWER = 0.5
"""Share of a device's dynamic power while it communicates: an assumption, not a measurement."""

MAX_SEGMENTS = 5_000_000
"""Intervals that one run may hold: they are kept in memory."""

Row = tuple[int, int, int, str, int, int, int, str, float, float, int]
Process = Generator[simpy.Event, tuple[float, float], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What one device does each step, in seconds without noise."""

    device: str
    pipeline: int
    forward_s: tuple[float, ...]
    """Per micro-batch."""
    backward_s: tuple[float, ...]
    optimizer_s: float


@dataclass(frozen=True, slots=True)
class Noise:
    """Factors on the work of one launch, per device: of each micro-batch of each step, and of each optimizer step."""

    compute: dict[str, list[float]]
    optimizer: dict[str, list[float]]
    communication: list[float]


@dataclass(slots=True)
class Launch:
    """One simulated launch: when each step was over on the last device, and the events if they were asked for."""

    ends: list[float] = field(default_factory=list)
    events: list[Row] | None = None


class Meeting:
    """An all-reduce: begins when the last participant has entered, ends for all together."""

    def __init__(self, env: simpy.Environment, participants: int, seconds: Sequence[float]) -> None:
        self.env = env
        self.participants = participants
        self.seconds = iter(seconds)
        self.entered = 0
        self.begin = 0.0
        self.done = env.event()

    def enter(self, moment: float) -> simpy.Event:
        """Enter at a moment; the event given back fires at the end, its value the (begin, end) of the all-reduce."""
        done = self.done
        self.entered += 1
        self.begin = max(self.begin, moment)
        if self.entered == self.participants:
            self.entered, self.done = 0, self.env.event()
            end = self.begin + next(self.seconds)
            over = until(self.env, end, (self.begin, end))
            assert over.callbacks is not None
            over.callbacks.append(done.trigger)
        return done


def until(env: simpy.Environment, moment: float, value: object = None) -> simpy.Event:
    """An event at a moment: SimPy takes delays, whose sums may differ from the moment by a rounding."""
    return env.timeout(max(0.0, moment - env.now), value)


def simulate(scenario: Scenario, policy: Policy, *, seed: int | None = None, label: str | None = None) -> Run:
    """Predict what a policy gives on a scenario.

    Args:
        scenario: cluster, workload, objective and how much noise to sample.
        policy: asked once for a plan.
        seed: of the noise; the scenario's by default.
        label: name of the run in tables; the policy's by default.

    Returns:
        The run, a pure function of scenario, policy and seed.

    Raises:
        Infeasible: the policy has no plan for the scenario.
        PlanError: its plan breaks a rule.
    """
    seed = scenario.seed if seed is None else seed
    view = View.of(scenario)
    plan = allocate(policy, view, scenario)
    launches = run_launches(scenario, plan, seed=seed, launches=scenario.sampling.launches, record=True)
    return _run(scenario, policy, plan, view, seed=seed, label=label, launches=launches)


def objective_value(scenario: Scenario, policy: Policy, *, seed: int, launches: int) -> float:
    """What a search maximises: the objective of the policy's plan, simulated by the engine, without a record of it.

    Throughput in samples/s; the others negated: p90 step in s, cost in USD and energy in J per million samples.

    Raises:
        Infeasible: the policy has no plan, or the devices lack the price or power that the objective needs.
    """
    metric = scenario.objective.metric
    if metric in ("cost", "energy"):
        return -_priced(scenario, policy, seed, metric)
    plan = allocate(policy, View.of(scenario), scenario)
    times = quantiles(step_durations(run_launches(scenario, plan, seed=seed, launches=launches, record=False)))
    return scenario.workload.global_batch / times.p50 if metric == "throughput" else -times.p90


def _priced(scenario: Scenario, policy: Policy, seed: int, metric: str) -> float:
    """USD or J per million samples, from a whole run: energy needs its ledgers."""
    summary = simulate(scenario, policy, seed=seed).summary
    energy = summary.energy_j_per_step
    value = (
        summary.cost_usd_per_million_samples
        if metric == "cost"
        else energy and energy * 1e6 / scenario.workload.global_batch
    )
    if value is None:
        needed = "price_usd_per_hour" if metric == "cost" else "idle_w and max_w"
        raise InputError("objective.metric", f"{metric} needs {needed} of every device in use", "add them")
    return value


def run_launches(scenario: Scenario, plan: Plan, *, seed: int, launches: int, record: bool) -> list[Launch]:
    """Simulate ``launches`` independent launches of ``sampling.steps`` steps of a checked plan.

    Without measured noise every launch is the same, so one is simulated.
    """
    if seed < 0:
        raise InputError("seed", f"is {seed}", "must be at least 0")
    plan.require_data_parallel()
    works = plan_work(scenario, plan)
    if not _noisy(scenario, works):
        launches = 1
    segments = launches * scenario.sampling.steps * sum(2 * len(work.forward_s) + 3 for work in works)
    if segments > MAX_SEGMENTS:
        raise InputError(
            "sampling",
            f"asks for {segments} events, at most {MAX_SEGMENTS}",
            "lower sampling.launches or sampling.steps",
        )
    names = [work.device for work in works]
    sync_s = cost.all_reduce_s(scenario.cluster, names, scenario.workload.gradient_bytes)
    steps = scenario.sampling.steps
    draws = draw_noise(scenario, works, steps=steps, launches=launches, seed=seed)
    return [
        run_launch(works, sync_s, each, steps=steps, launch=number, record=record) for number, each in enumerate(draws)
    ]


def plan_work(scenario: Scenario, plan: Plan) -> list[Work]:
    """The noiseless times of a data-parallel plan, one entry per device, in the order of the devices' names."""
    devices = {device.name: device for device in scenario.cluster.devices}
    works = []
    for number, pipeline in enumerate(plan.normalize().pipelines):
        times = cost.device_cost(devices[pipeline.devices[0]], scenario.workload)
        works.append(
            Work(
                device=pipeline.devices[0],
                pipeline=number,
                forward_s=tuple(times.forward.at(size) for size in pipeline.micro_batches),
                backward_s=tuple(times.backward.at(size) for size in pipeline.micro_batches),
                optimizer_s=times.optimizer_s,
            )
        )
    return works


def run_launch(
    works: Sequence[Work], sync_s: float, factors: Noise, *, steps: int, launch: int = 0, record: bool = True
) -> Launch:
    """Simulate one launch: a process per device, a meeting per step where there is more than one device."""
    env = simpy.Environment()
    result = Launch(ends=[0.0] * steps, events=[] if record else None)
    meeting = None
    if len(works) > 1:
        meeting = Meeting(env, len(works), [sync_s * factor for factor in factors.communication])
    for work in works:
        env.process(_device(env, work, meeting, factors, result, launch=launch))
    env.run()
    return result


def _device(
    env: simpy.Environment,
    work: Work,
    meeting: Meeting | None,
    factors: Noise,
    result: Launch,
    *,
    launch: int,
) -> Process:
    """One device: forward and backward of each micro-batch, the all-reduce, the optimizer; step after step.

    No barrier follows the optimizer: a fast device starts its next step while a slow one still updates. Between two
    meetings a device is on its own, so all that it does there is one event of the queue; its clock runs ahead of it.
    """
    compute, events, name, pipeline = iter(factors.compute[work.device]), result.events, work.device, work.pipeline
    clock = 0.0
    for step, update in enumerate(factors.optimizer[name]):
        for number, (forward_s, backward_s) in enumerate(zip(work.forward_s, work.backward_s, strict=True)):
            factor = next(compute)
            start, middle = clock, clock + forward_s * factor
            clock = middle + backward_s * factor
            if events is not None:
                events.append((launch, 0, step, name, pipeline, 0, number, "forward", start, middle, 1))
                events.append((launch, 0, step, name, pipeline, 0, number, "backward", middle, clock, 1))
        if meeting is not None:
            yield until(env, clock)
            entered = clock
            begin, clock = yield meeting.enter(entered)
            if events is not None:
                events.append((launch, 0, step, name, pipeline, -1, -1, "wait", entered, begin, 1))
                events.append((launch, 0, step, name, pipeline, -1, -1, "communication", begin, clock, 1))
        start = clock
        clock += work.optimizer_s * update
        if events is not None:
            events.append((launch, 0, step, name, pipeline, -1, -1, "optimizer", start, clock, 1))
        result.ends[step] = max(result.ends[step], clock)
    yield until(env, clock)


def step_durations(launches: Sequence[Launch]) -> list[float]:
    """Seconds of each counted step of all launches."""
    return [seconds for launch in launches for seconds in durations(launch.ends, 0.0)]


def draw_noise(scenario: Scenario, works: Sequence[Work], *, steps: int, launches: int, seed: int) -> list[Noise]:
    """The factors of every launch, drawn from what was measured of the devices and of their all-reduce."""
    devices = {device.name: device for device in scenario.cluster.devices}
    table = cost.collective_table(scenario.cluster, [work.device for work in works])
    compute = {}
    optimizer = {}
    for work in works:
        profile = devices[work.device].profile
        residuals = tuple(profile.step_residuals) if profile else ()
        offsets = tuple(profile.launch_residuals) if profile else ()
        per_step = len(work.forward_s)
        draws = steps * (per_step + 1)
        both = _factors(residuals, offsets, launches=launches, draws=draws, seed=seed, name=work.device)
        compute[work.device] = [each[: steps * per_step] for each in both]
        optimizer[work.device] = [each[steps * per_step :] for each in both]
    if table is None:
        communication = [[1.0] * steps] * launches
    else:
        residuals, offsets = tuple(table.step_residuals), tuple(table.launch_residuals)
        communication = _factors(residuals, offsets, launches=launches, draws=steps, seed=seed, name="all_reduce")
    return [
        Noise(
            compute={name: each[number] for name, each in compute.items()},
            optimizer={name: each[number] for name, each in optimizer.items()},
            communication=communication[number],
        )
        for number in range(launches)
    ]


@lru_cache(maxsize=256)
def _factors(
    residuals: tuple[float, ...], offsets: tuple[float, ...], *, launches: int, draws: int, seed: int, name: str
) -> list[list[float]]:
    """Step factors times the launch's own; the same for every policy that meets this device with this seed."""
    factors = noise.step_factors(residuals, launches, draws, seed, name)
    launch = 1.0 + noise.launch_offsets(offsets, launches, seed)
    rows: list[list[float]] = (factors * launch[:, None]).tolist()
    return rows


def _noisy(scenario: Scenario, works: Sequence[Work]) -> bool:
    """Whether anything that takes part was measured with a spread."""
    names = {work.device for work in works}
    measured: list[Profile | CollectiveTable | None] = [
        device.profile for device in scenario.cluster.devices if device.name in names
    ]
    measured.append(cost.collective_table(scenario.cluster, sorted(names)))
    return any(any(each.step_residuals + each.launch_residuals) for each in measured if each is not None)


def run_id(scenario: Scenario, policy: Policy, seed: int, plan: Plan) -> str:
    """Identity of a simulated run: the hash of everything that decides it."""
    parts = [scenario.model_dump(mode="json"), describe(policy).model_dump(mode="json"), plan.document()]
    return digest([*parts, seed, cost.MODEL_VERSION, SCHEMA_VERSION])[:16]


def _run(
    scenario: Scenario, policy: Policy, plan: Plan, view: View, *, seed: int, label: str | None, launches: list[Launch]
) -> Run:
    rows = [row for launch in launches for row in launch.events or []]
    # Rows in order of time, ties by device: the order in which processes were created must not show.
    events = event_frame(sorted(rows, key=itemgetter(0, 8, 9, 3)))
    record = describe(policy)
    manifest = Manifest(
        run_id=run_id(scenario, policy, seed, plan),
        kind="simulated",
        label=label or record.label(),
        scenario=scenario.model_dump(mode="json"),
        policy=record,
        plan_sha256=plan.sha256,
        seed=seed,
        model_version=cost.MODEL_VERSION,
    )
    split = plan.split()
    lines = ledgers(events, [device.name for device in scenario.cluster.devices])
    memory = peak_memory_bytes(scenario, plan)
    devices = {
        name: ledger.model_copy(update={"samples": split.get(name, 0), "peak_memory_bytes": memory.get(name)})
        for name, ledger in lines.items()
    }
    summary = summarise(
        scenario,
        step_time=quantiles(step_durations(launches)),
        launch_medians=[quantiles(step_durations([launch])).p50 for launch in launches],
        devices=devices,
        bound_s=lower_bound_s(view),
        steps=len(step_durations(launches)),
        fidelity=fidelity(scenario, split),
    )
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events)


def summarise(
    scenario: Scenario,
    *,
    step_time: Quantiles,
    launch_medians: Sequence[float],
    devices: dict[str, DeviceLedger],
    bound_s: float,
    steps: int,
    fidelity: Fidelity,
    median_interval_s: tuple[float, float] | None = None,
) -> Summary:
    """The summary of a run, simulated or measured, from its step times and ledgers.

    ``median_interval_s`` is by default the span from p10 to p90 of the launches' medians: where the median of one fresh
    launch is expected.
    """
    workload = scenario.workload
    if not math.isfinite(bound_s):
        bound_s = 0.0  # no policy can split the batch, yet a plan written by hand runs: nothing is known but zero
    if median_interval_s is None:
        spread = quantiles(launch_medians)
        median_interval_s = (spread.p10, spread.p90)
    throughput = workload.global_batch / step_time.p50
    peaks = sum(device.peak(workload.dtype) for device in scenario.cluster.devices)
    return Summary(
        fidelity=fidelity,
        steps=steps,
        launches=len(launch_medians),
        step_time_s=step_time,
        median_interval_s=median_interval_s,
        launch_median_step_time_s=list(launch_medians),
        throughput_samples_per_s=throughput,
        tokens_per_s=throughput * workload.sequence_length,
        mfu=throughput * workload.flops_per_sample / peaks,
        energy_j_per_step=_energy_j(scenario, devices),
        cost_usd_per_million_samples=_cost_usd(scenario, devices, throughput),
        lower_bound_step_time_s=bound_s,
        gap_to_bound=step_time.p50 / bound_s - 1 if bound_s > 0 else 0.0,
        critical_path=critical_path(devices),
        devices=devices,
    )


def fidelity(scenario: Scenario, split: dict[str, int]) -> Fidelity:
    """The weakest fidelity among the devices that work."""
    costs = [cost.device_cost(device, scenario.workload) for device in scenario.cluster.devices if device.name in split]
    return "profiled" if all(each.fidelity == "profiled" for each in costs) else "datasheet"


def peak_memory_bytes(scenario: Scenario, plan: Plan) -> dict[str, float]:
    """Bytes that each device of a data-parallel plan needs at most."""
    return {
        pipeline.devices[0]: cost.peak_memory_bytes(scenario.workload, max(pipeline.micro_batches))
        for pipeline in plan.pipelines
    }


def _energy_j(scenario: Scenario, ledgers_by_name: dict[str, DeviceLedger]) -> float | None:
    """Joules per step of the devices in use: P_idle + (P_max - P_idle) u, u by activity."""
    total = 0.0
    for device in scenario.cluster.devices:
        ledger = ledgers_by_name[device.name]
        if not ledger.samples:
            continue
        if device.idle_w is None or device.max_w is None:
            return None
        dynamic_s = ledger.compute_s + ledger.optimizer_s + COMMUNICATION_POWER * ledger.communication_s
        total += device.idle_w * ledger.total_s() + (device.max_w - device.idle_w) * dynamic_s
    return total


def _cost_usd(scenario: Scenario, ledgers_by_name: dict[str, DeviceLedger], throughput: float) -> float | None:
    """USD per million samples for the devices in use (what is left out need not be rented)."""
    used = [device for device in scenario.cluster.devices if ledgers_by_name[device.name].samples]
    prices = [device.price_usd_per_hour for device in used]
    if any(price is None for price in prices):
        return None
    return sum(price for price in prices if price is not None) / 3600 / throughput * 1e6
