"""simulate(): what a policy gives on a scenario, predicted by the event loop; and the noise that it meets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter

from ..results.errors import InputError
from ..results.ledger import durations, quantiles
from ..results.record import SCHEMA_VERSION, Manifest, Run, digest, event_frame
from . import cost, loop, noise, recurrence, variation
from .bottleneck import Bottleneck, explain
from .bounds import bound_s, work_bound_s
from .compiler import compile_plan
from .device import CollectiveTable, Profile
from .faults import goodput
from .network import network_of
from .plan import Plan
from .program import Program
from .running import Factors, Launch
from .spec import Scenario
from .summary import device_ledgers, guessed_share, summarise
from .view import Policy, View, allocate, describe

MAX_SEGMENTS = 5_000_000
"""Intervals that one run may hold: they are kept in memory."""


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
    return _simulate(scenario, policy, seed=scenario.seed if seed is None else seed, label=label, explained=True)


def _simulate(scenario: Scenario, policy: Policy, *, seed: int, label: str | None = None, explained: bool) -> Run:
    """The same; why its steps take their time is simulated too, or left out."""
    view = View.of(scenario)
    plan = allocate(policy, view, scenario)
    program, launches = run_plan(scenario, plan, seed=seed, launches=scenario.sampling.launches, record=True)
    why = explain(scenario, plan, None if noisy(scenario, plan) else program) if explained else ""
    return _record(scenario, policy, plan, program, view, seed=seed, label=label, launches=launches, why=why)


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
    done = run_launches(scenario, plan, seed=seed, launches=launches, record=False)
    times = quantiles(step_durations(done, plan.sync_every))
    return scenario.workload.global_batch / times.p50 if metric == "throughput" else -times.p90


def _priced(scenario: Scenario, policy: Policy, seed: int, metric: str) -> float:
    """USD or J per million samples, from a whole run: energy needs its ledgers."""
    summary = _simulate(scenario, policy, seed=seed, explained=False).summary
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

    Without noise every launch is the same, so one is simulated.
    """
    return run_plan(scenario, plan, seed=seed, launches=launches, record=record)[1]


def run_plan(scenario: Scenario, plan: Plan, *, seed: int, launches: int, record: bool) -> tuple[Program, list[Launch]]:
    """The same, and the program that ran.

    Without noise, pipelines that are images of each other run as one, where no two of their transfers meet on a link.

    Raises:
        InputError: a negative seed, or more events than can be kept.
    """
    if seed < 0:
        raise InputError("seed", f"is {seed}", "must be at least 0")
    steps = whole_rounds(scenario.sampling.steps, plan.sync_every)
    if noisy(scenario, plan):
        program = compile_plan(scenario, plan, apart=True)
        _check_size(program, launches, steps)  # before the draws: they are as many
        draws = draw_noise(scenario, program, steps=steps, launches=launches, seed=seed)
    else:
        program, draws = compile_plan(scenario, plan, folded=True), [Factors()]
    done = _run(program, draws, steps=steps, record=record)
    if done is None:
        _check_size(program, len(draws), _simulated(program, draws[0], steps))
        done = [
            loop.run_launch(program, each, steps=steps, launch=number, record=record)
            for number, each in enumerate(draws)
        ]
    return program, done


def _run(program: Program, draws: Sequence[Factors], *, steps: int, record: bool) -> list[Launch] | None:
    """All launches by the recurrence; None where it does not hold, and the event loop has to be asked."""
    if not recurrence.applies(program):
        return None
    done: list[Launch] = []
    for number, each in enumerate(draws):
        _check_size(program, len(draws), _simulated(program, each, steps))
        launch = recurrence.run_launch(program, each, steps=steps, launch=number, record=record)
        if launch is None:
            return None
        done.append(launch)
    return done


def _simulated(program: Program, factors: Factors, steps: int) -> int:
    """Steps that are simulated: without noise, until a round repeats."""
    return min(steps, max(recurrence.AT_ONCE, 3 * program.sync_every + 1)) if factors.empty else steps


def _check_size(program: Program, launches: int, steps: int) -> None:
    segments = launches * steps * program.segments
    if segments > MAX_SEGMENTS:
        raise InputError(
            "sampling",
            f"asks for {segments} events, at most {MAX_SEGMENTS}",
            "lower sampling.launches or sampling.steps",
        )


def whole_rounds(steps: int, sync_every: int) -> int:
    """Steps to simulate: the lead-in, and then whole rounds from one synchronisation of local SGD to the next."""
    return steps if sync_every == 1 else 1 + sync_every * max(1, -(-(steps - 1) // sync_every))


def noisy(scenario: Scenario, plan: Plan) -> bool:
    """Whether anything that takes part was measured with a spread, or the scenario gives it one."""
    given = scenario.variation
    if given.step_cv or given.device_cv or given.network_cv or (given.straggler_share and given.straggler_slowdown > 1):
        return True
    names = {name for pipeline in plan.pipelines for name in pipeline.devices}
    measured: list[Profile | CollectiveTable | None] = [
        device.profile for device in scenario.cluster.devices if device.name in names
    ]
    measured.append(network_of(scenario.cluster).measured("all_reduce", sorted(names)))
    return any(any(each.step_residuals + each.launch_residuals) for each in measured if each is not None)


def draw_noise(scenario: Scenario, program: Program, *, steps: int, launches: int, seed: int) -> list[Factors]:
    """The factors of every launch: from what was measured of devices and collectives, and from the scenario's own.

    Without any, one launch without factors: all would be the same.
    """
    compute: dict[str, list[list[float]]] = {}
    optimizer: dict[str, list[list[float]]] = {}
    for worker in program.workers:
        per_step = len(worker.stages) * len(worker.classes)
        for member in worker.members:
            drawn = _device_factors(scenario, member[0], launches=launches, draws=steps * (per_step + 1), seed=seed)
            if drawn is not None:
                compute[member[0]] = [each[: steps * per_step] for each in drawn]
                optimizer[member[0]] = [each[steps * per_step :] for each in drawn]
    syncs: dict[int, list[list[float]]] = {}
    for number, sync in enumerate(program.syncs):
        names = [program.workers[worker].devices[0] for worker in sync.workers]
        drawn = _sync_factors(scenario, names, number, launches=launches, draws=steps, seed=seed)
        if drawn is not None:
            syncs[number] = drawn
    if not compute and not syncs:
        return [Factors()]
    return [
        Factors(
            compute={name: each[launch] for name, each in compute.items()},
            optimizer={name: each[launch] for name, each in optimizer.items()},
            syncs={name: each[launch] for name, each in syncs.items()},
        )
        for launch in range(launches)
    ]


def _device_factors(scenario: Scenario, name: str, *, launches: int, draws: int, seed: int) -> list[list[float]] | None:
    """Per launch, the factors on a device's pieces of work; None where it has no noise."""
    profile, given = scenario.cluster.by_name[name].profile, scenario.variation
    residuals = tuple(profile.step_residuals) if profile else ()
    offsets = tuple(profile.launch_residuals) if profile else ()
    stragglers = given.straggler_share > 0 and given.straggler_slowdown > 1
    if not any(residuals) and not any(offsets) and not given.step_cv and not given.device_cv and not stragglers:
        return None
    measured = _factors(residuals, offsets, launches=launches, draws=draws, seed=seed, name=name)
    if not given.step_cv and not given.device_cv and not stragglers:
        return measured
    own = variation.step_factors(scenario, name, launches, draws, seed)
    own = own * variation.launch_factors(scenario, [name], launches, seed)
    return [[a * b for a, b in zip(row, more, strict=True)] for row, more in zip(measured, own.tolist(), strict=True)]


def _sync_factors(
    scenario: Scenario, names: Sequence[str], number: int, *, launches: int, draws: int, seed: int
) -> list[list[float]] | None:
    """The same of a synchronisation."""
    table = network_of(scenario.cluster).measured("all_reduce", names)
    residuals = tuple(table.step_residuals) if table else ()
    offsets = tuple(table.launch_residuals) if table else ()
    if not any(residuals) and not any(offsets) and not scenario.variation.network_cv:
        return None
    name = "all_reduce" if number == 0 else f"all_reduce {number}"
    measured = _factors(residuals, offsets, launches=launches, draws=draws, seed=seed, name=name)
    if not scenario.variation.network_cv:
        return measured
    own = variation.network_factors(scenario, launches, draws, seed, "sync", number).tolist()
    return [[a * b for a, b in zip(row, more, strict=True)] for row, more in zip(measured, own, strict=True)]


def step_durations(launches: Sequence[Launch], sync_every: int = 1) -> list[float]:
    """Seconds of each counted step of all launches; with local SGD, the mean step of each round."""
    steps = [durations(launch.ends, 0.0) for launch in launches]
    if sync_every == 1:
        return [seconds for launch in steps for seconds in launch]
    return [
        sum(launch[start : start + sync_every]) / sync_every
        for launch in steps
        for start in range(0, len(launch), sync_every)
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


def run_id(scenario: Scenario, policy: Policy, seed: int, plan: Plan) -> str:
    """Identity of a simulated run: the hash of everything that decides it."""
    parts = [scenario.model_dump(mode="json"), describe(policy).model_dump(mode="json"), plan.document()]
    return digest([*parts, seed, cost.MODEL_VERSION, SCHEMA_VERSION])[:16]


def _record(
    scenario: Scenario,
    policy: Policy,
    plan: Plan,
    program: Program,
    view: View,
    *,
    seed: int,
    label: str | None,
    launches: list[Launch],
    why: Bottleneck | str,
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
    times = quantiles(step_durations(launches, program.sync_every))
    summary = summarise(
        scenario,
        step_time=times,
        launch_medians=[quantiles(step_durations([launch], program.sync_every)).p50 for launch in launches],
        devices=device_ledgers(scenario, plan, program, events, repeats=launches[0].repeats),
        bound_s=bound_s(scenario, view, plan),
        work_bound_s=work_bound_s(scenario),
        steps=sum(len(launch.ends) - 1 or 1 for launch in launches),
        fidelity=program.fidelity,
        guessed_share=guessed_share(program),
        goodput=goodput(scenario, plan, step_s=times.mean, seed=seed),
        why=why,
    )
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events)
