"""Measures: what a plan is worth by each objective, from the same launches; and what its step takes at least."""

from __future__ import annotations

from collections.abc import Collection

from ..results.errors import InputError
from ..results.ledger import quantiles
from ..results.record import event_frame
from . import adaptive, cost, energy
from .draws import noisy
from .engine import least_headroom, record_courses, run_launches, run_plan, step_durations
from .faults import goodput
from .plan import Plan
from .program import Program
from .running import Launch
from .schedule import deal_samples
from .spec import Scenario
from .summary import device_ledgers, headroom
from .view import Policy, View, allocate


def measure(
    scenario: Scenario, policy: Policy, *, seed: int, launches: int, metrics: Collection[str]
) -> dict[str, float]:
    """Several figures of a policy's plan, all from the same ``launches``.

    Throughput in samples/s, step_time_p90 in s, cost in USD and energy in J per million samples, memory_headroom as a
    share.

    Raises:
        Infeasible: the policy has no plan for the scenario.
        InputError: the devices lack the price or power that a figure needs.
    """
    if adaptive.is_eventful(scenario):
        return _measure_courses(scenario, policy, seed, launches, metrics)
    plan = allocate(policy, View.of(scenario), scenario)
    found = {"memory_headroom": headroom(scenario, plan)} if "memory_headroom" in metrics else {}
    if len(found) == len(metrics):
        return found
    program, done = run_plan(scenario, plan, seed=seed, launches=launches, record="energy" in metrics)
    times = quantiles(step_durations(done, plan.sync_every))
    found["throughput"] = scenario.workload.global_batch / times.p50
    found["step_time_p90"] = times.p90
    if "cost" in metrics:
        found["cost"] = _cost(scenario, plan, found["throughput"], times.mean, seed)
    if "energy" in metrics:
        found["energy"] = _energy(scenario, plan, program, done)
    return {metric: found[metric] for metric in metrics}


def _measure_courses(
    scenario: Scenario, policy: Policy, seed: int, launches: int, metrics: Collection[str]
) -> dict[str, float]:
    """The same of whole runs whose devices, and perhaps plans, change under way."""
    courses = adaptive.run_courses(scenario, policy, seed=seed, launches=launches)
    summary = record_courses(scenario, policy, courses, seed=seed, label=None).summary
    found = {
        "throughput": summary.throughput_samples_per_s,
        "step_time_p90": summary.step_time_s.p90,
        "memory_headroom": least_headroom(scenario, courses),
        "cost": summary.cost_usd_per_million_samples,
        "energy": energy.energy_j_per_million_samples(scenario, summary.energy_j_per_step),
    }
    return {metric: energy.known(metric, found[metric]) for metric in metrics}


def _cost(scenario: Scenario, plan: Plan, throughput: float, step_s: float, seed: int) -> float:
    """USD per million samples; what failures waste is paid for too."""
    lasting = goodput(scenario, plan, step_s=step_s, seed=seed)
    share = lasting.share if lasting is not None else 1.0
    used = [name for name, samples in plan.samples().items() if samples]
    return energy.known("cost", energy.cost_usd_per_million_samples(scenario, throughput * share, used))


def _energy(scenario: Scenario, plan: Plan, program: Program, done: list[Launch]) -> float:
    """J per million samples."""
    events = event_frame(sorted((row for launch in done for row in launch.events or []), key=lambda row: row[0]))
    ledgers = device_ledgers(scenario, plan, program, events, repeats=done[0].repeats)
    used = [name for name, ledger in ledgers.items() if ledger.samples]
    energy_j = energy.energy_j_per_step(scenario, ledgers, used)
    return energy.known("energy", energy.energy_j_per_million_samples(scenario, energy_j))


def step_times(scenario: Scenario, plan: Plan, *, seed: int, launches: int, span: range) -> tuple[list[float], bool]:
    """Seconds of each counted step of some of a plan's ``launches``, and whether this is all there is to know.

    The spans together give what all launches at once give. Without noise every launch is the same: any span gives all.

    Raises:
        InputError: the scenario has ``disturbances`` or ``rebalance``: its steps are those of a policy, not of a plan.
    """
    _refuse_courses(scenario)
    if not noisy(scenario, plan):
        return step_durations(run_launches(scenario, plan, seed=seed, launches=1, record=False), plan.sync_every), True
    part = slice(span.start, span.stop)
    done = run_launches(scenario, plan, seed=seed, launches=launches, record=False, span=part)
    return step_durations(done, plan.sync_every), span.stop >= launches


def _refuse_courses(scenario: Scenario) -> None:
    if adaptive.is_eventful(scenario):
        name = "disturbances" if scenario.disturbances else "rebalance"
        raise InputError(name, "makes a run more than equal steps of one plan", "measure() honours it")


def busy_s(scenario: Scenario, plan: Plan) -> float:
    """Seconds of compute that the busiest device of a plan has in a step without noise.

    What it does it does one after the other, so no step that repeats is shorter. Waiting, communication and the
    optimizer are left out.

    Raises:
        InputError: the scenario has ``disturbances`` or ``rebalance``: its devices, or its plan, may change.
    """
    _refuse_courses(scenario)
    seconds: dict[str, float] = {}
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            shares = [replica.share for replica in stage.replicas]
            dealt = [deal_samples(size, shares) for size in pipeline.micro_batches]
            for number, replica in enumerate(stage.replicas):
                sizes = [each[number] for each in dealt]
                for name in replica.devices:
                    times = {
                        size: cost.time_of(
                            scenario.cluster.by_name[name], scenario.workload, stage, size, len(replica.devices)
                        )
                        for size in set(sizes)
                    }
                    work_s = sum(times[size].forward_s + times[size].backward_s for size in sizes)
                    seconds[name] = seconds.get(name, 0.0) + work_s
    return max(seconds.values())
