"""simulate(): what a policy gives on a scenario, predicted by the event loop; and the noise that it meets."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from ..results.errors import InputError
from ..results.ledger import durations, ledgers, quantiles
from ..results.record import SCHEMA_VERSION, DeviceLedger, Manifest, Run, digest, event_frame
from . import adaptive, cost, loop, memory, pull, recurrence
from .bottleneck import Bottleneck, explain
from .bounds import bound_s, work_bound_s
from .compiler import compile_plan
from .draws import draw_noise, noisy
from .energy import energy_j_per_million_samples, known
from .faults import goodput
from .plan import Plan
from .program import Program
from .running import Factors, Launch, Row, check_size
from .spec import Scenario
from .summary import device_ledgers, guessed_share, headroom, summarise
from .view import Policy, View, allocate, describe

if TYPE_CHECKING:
    import pandas as pd

ALL = slice(None)
"""Of launches: each of them."""


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
    if adaptive.is_eventful(scenario):
        courses = adaptive.run_courses(scenario, policy, seed=seed, launches=scenario.sampling.launches)
        return record_courses(scenario, policy, courses, seed=seed, label=label)
    plan = allocate(policy, View.of(scenario), scenario)
    program, launches = run_plan(scenario, plan, seed=seed, launches=scenario.sampling.launches, record=True)
    looked_into = explained and not program.pulled
    why = explain(scenario, plan, None if noisy(scenario, plan) else program) if looked_into else ""
    return _record(scenario, policy, plan, program, seed=seed, label=label, launches=launches, why=why)


def objective_value(scenario: Scenario, policy: Policy, *, seed: int, launches: int) -> float:
    """What a search maximises: the objective of the policy's plan, simulated by the engine, without a record of it.

    Throughput in samples/s, memory headroom as a share; the others negated: p90 step in s, cost in USD and energy in J
    per million samples.

    Raises:
        Infeasible: the policy has no plan, or the devices lack the price or power that the objective needs.
    """
    metric = scenario.objective.metric
    if metric in ("cost", "energy"):
        return -_priced(scenario, policy, seed, metric)
    if adaptive.is_eventful(scenario):
        courses = adaptive.run_courses(scenario, policy, seed=seed, launches=launches)
        if metric == "memory_headroom":
            return least_headroom(scenario, courses)
        found = quantiles(course_durations(courses))
        return scenario.workload.global_batch / found.mean if metric == "throughput" else -found.p90
    plan = allocate(policy, View.of(scenario), scenario)
    if metric == "memory_headroom":
        return headroom(scenario, plan)
    done = run_launches(scenario, plan, seed=seed, launches=launches, record=False)
    times = quantiles(step_durations(done, plan.sync_every))
    return scenario.workload.global_batch / times.p50 if metric == "throughput" else -times.p90


def _priced(scenario: Scenario, policy: Policy, seed: int, metric: str) -> float:
    """USD or J per million samples, from a whole run: energy needs its ledgers."""
    summary = _simulate(scenario, policy, seed=seed, explained=False).summary
    if metric == "cost":
        return known(metric, summary.cost_usd_per_million_samples)
    return known(metric, energy_j_per_million_samples(scenario, summary.energy_j_per_step))


def run_launches(
    scenario: Scenario, plan: Plan, *, seed: int, launches: int, record: bool, span: slice = ALL
) -> list[Launch]:
    """Simulate ``launches`` independent launches of ``sampling.steps`` steps of a checked plan, or a span of them.

    Without noise every launch is the same, so one is simulated.
    """
    return run_plan(scenario, plan, seed=seed, launches=launches, record=record, span=span)[1]


def run_plan(
    scenario: Scenario, plan: Plan, *, seed: int, launches: int, record: bool, span: slice = ALL
) -> tuple[Program, list[Launch]]:
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
        check_size(program, launches, steps)  # before the draws: they are as many
        draws = draw_noise(scenario, program, steps=steps, launches=launches, seed=seed)[span] or [Factors()]
    else:
        program, draws = compile_plan(scenario, plan, folded=True), [Factors()]
    done = _run(program, draws, steps=steps, record=record)
    if done is None:
        check_size(program, len(draws), _simulated(program, draws[0], steps))
        done = [
            loop.run_launch(program, each, steps=steps, launch=number, record=record)
            for number, each in enumerate(draws)
        ]
    return program, done


def _run(program: Program, draws: Sequence[Factors], *, steps: int, record: bool) -> list[Launch] | None:
    """All launches by the recurrence; None where it does not hold, and the event loop has to be asked."""
    if program.pulled:
        check_size(program, len(draws), steps)
        pulled = enumerate(draws)
        return [pull.run_launch(program, each, steps=steps, launch=number, record=record) for number, each in pulled]
    if not recurrence.applies(program):
        return None
    done: list[Launch] = []
    for number, each in enumerate(draws):
        check_size(program, len(draws), _simulated(program, each, steps))
        launch = recurrence.run_launch(program, each, steps=steps, launch=number, record=record)
        if launch is None:
            return None
        done.append(launch)
    return done


def _simulated(program: Program, factors: Factors, steps: int) -> int:
    """Steps that are simulated: without noise, until a round repeats."""
    return min(steps, max(recurrence.AT_ONCE, 3 * program.sync_every + 1)) if factors.empty else steps


def whole_rounds(steps: int, sync_every: int) -> int:
    """Steps to simulate: the lead-in, and then whole rounds from one synchronisation of local SGD to the next."""
    return steps if sync_every == 1 else 1 + sync_every * max(1, -(-(steps - 1) // sync_every))


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


def run_id(scenario: Scenario, policy: Policy, seed: int, plan: Plan) -> str:
    """Identity of a simulated run: the hash of everything that decides it."""
    parts = [scenario.model_dump(mode="json"), describe(policy).model_dump(mode="json"), plan.document()]
    return digest([*parts, seed, cost.MODEL_VERSION, SCHEMA_VERSION])[:16]


def _record(
    scenario: Scenario,
    policy: Policy,
    plan: Plan,
    program: Program,
    *,
    seed: int,
    label: str | None,
    launches: list[Launch],
    why: Bottleneck | str,
) -> Run:
    events = _frame([row for launch in launches for row in launch.events or []])
    manifest = _manifest(scenario, policy, plan, seed=seed, label=label)
    times = quantiles(step_durations(launches, program.sync_every))
    summary = summarise(
        scenario,
        step_time=times,
        launch_medians=[quantiles(step_durations([launch], program.sync_every)).p50 for launch in launches],
        devices=_with_samples(
            device_ledgers(scenario, plan, program, events, repeats=launches[0].repeats), program, launches
        ),
        bound_s=bound_s(scenario, plan),
        work_bound_s=work_bound_s(scenario),
        steps=sum(len(launch.ends) - 1 or 1 for launch in launches),
        fidelity=program.fidelity,
        guessed_share=guessed_share(program),
        goodput=goodput(scenario, plan, step_s=times.mean, seed=seed),
        why=why,
    )
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events)


def _manifest(scenario: Scenario, policy: Policy, plan: Plan, *, seed: int, label: str | None) -> Manifest:
    record = describe(policy)
    return Manifest(
        run_id=run_id(scenario, policy, seed, plan),
        kind="simulated",
        label=label or record.label(),
        scenario=scenario.model_dump(mode="json"),
        policy=record,
        plan_sha256=plan.sha256,
        seed=seed,
        model_version=cost.MODEL_VERSION,
    )


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows in order of time, ties by device: the order in which processes were created must not show."""
    return event_frame(sorted(rows, key=itemgetter(0, 8, 9, 3)))


def _with_samples(
    lines: dict[str, DeviceLedger], program: Program, launches: Sequence[Launch]
) -> dict[str, DeviceLedger]:
    """Ledgers with the samples of a mean step as they were taken, where the plan does not say who takes which."""
    if not program.pulled:
        return lines
    taken = pull.samples_of(program, [row for launch in launches for row in launch.events or []])
    steps = sum(len(launch.ends) for launch in launches)
    return _lines_of(lines, {name: count / steps for name, count in taken.items()})


def _lines_of(lines: dict[str, DeviceLedger], samples: dict[str, float]) -> dict[str, DeviceLedger]:
    """Ledgers with mean samples, at least one where there ever were any."""
    whole = {name: max(1, round(count)) if count else 0 for name, count in samples.items()}
    return {name: line.model_copy(update={"samples": whole.get(name, 0)}) for name, line in lines.items()}


def least_headroom(scenario: Scenario, courses: Sequence[adaptive.Course]) -> float:
    """The least memory headroom of any plan of a run that may change it."""
    return min(headroom(scenario, plan) for course in courses for plan, _, _ in course.plans)


def course_durations(courses: Sequence[adaptive.Course]) -> list[float]:
    """Seconds of each counted step, with what was lost or stood still before it."""
    return [seconds for course in courses for seconds in durations(course.ends, 0.0)]


def record_courses(
    scenario: Scenario, policy: Policy, courses: Sequence[adaptive.Course], *, seed: int, label: str | None
) -> Run:
    """The run of a policy whose plan may have changed under way: its first plan, and all decisions."""
    plan, program, _ = courses[0].plans[0]
    events = _frame([row for course in courses for row in course.events])
    times = quantiles(course_durations(courses))
    fastest = adaptive.at_its_best(scenario)
    summary = summarise(
        scenario,
        step_time=times,
        launch_medians=[quantiles(durations(course.ends, 0.0)).p50 for course in courses],
        devices=_course_ledgers(scenario, courses, ledgers(events, scenario.cluster.by_name)),
        bound_s=work_bound_s(fastest) if len(courses[0].plans) > 1 else bound_s(fastest, plan),
        work_bound_s=work_bound_s(fastest),
        steps=sum(len(course.ends) - 1 or 1 for course in courses),
        fidelity=program.fidelity,
        guessed_share=guessed_share(program),
        goodput=goodput(scenario, plan, step_s=times.mean, seed=seed),
        pace_s=times.mean,
    )
    manifest = _manifest(scenario, policy, plan, seed=seed, label=label)
    decisions = [each for course in courses for each in course.decisions]
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events, decisions=decisions)


def _course_ledgers(
    scenario: Scenario, courses: Sequence[adaptive.Course], lines: dict[str, DeviceLedger]
) -> dict[str, DeviceLedger]:
    """Ledgers with the samples of a mean step, and the peak of all plans."""
    samples: dict[str, float] = {}
    peaks: dict[str, float] = {}
    total = sum(len(course.ends) for course in courses)
    for entry in (each for course in courses for each in course.history):
        for name, past in entry["devices"].items():
            samples[name] = samples.get(name, 0.0) + past["samples"] / total
    for plan, _, _ in (each for course in courses for each in course.plans):
        for name, need in memory.peak(scenario.workload, plan.widest()).items():
            peaks[name] = max(peaks.get(name, 0.0), need.total)
    found = _lines_of(lines, samples)
    return {name: line.model_copy(update={"peak_memory_bytes": peaks.get(name)}) for name, line in found.items()}
