"""Summary: what a run came to, simulated or measured, from its step times and ledgers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..results.ledger import critical_path, ledgers, quantiles
from ..results.record import DeviceLedger, Fidelity, Quantiles, Summary
from . import energy, memory
from .bottleneck import Bottleneck
from .faults import Goodput
from .plan import Plan
from .program import Program
from .spec import Scenario

if TYPE_CHECKING:
    import pandas as pd


def summarise(
    scenario: Scenario,
    *,
    step_time: Quantiles,
    launch_medians: Sequence[float],
    devices: dict[str, DeviceLedger],
    bound_s: float,
    work_bound_s: float | None = None,
    steps: int,
    fidelity: Fidelity,
    median_interval_s: tuple[float, float] | None = None,
    guessed_share: float = 0.0,
    goodput: Goodput | None = None,
    why: Bottleneck | str = "",
    pace_s: float | None = None,
) -> Summary:
    """The summary of a run, simulated or measured, from its step times and ledgers.

    ``median_interval_s`` is by default the span from p10 to p90 of the launches' medians: where the median of one fresh
    launch is expected. ``why`` is what binds, or the reason why that was not looked into. ``pace_s`` is what a step
    comes to where steps differ in kind (a run that changes its plan: all its time over its steps); else the median.
    """
    workload = scenario.workload
    pace_s = step_time.p50 if pace_s is None else pace_s
    if not math.isfinite(bound_s):
        bound_s = 0.0  # no policy can split the batch, yet a plan written by hand runs: nothing is known but zero
    if median_interval_s is None:
        spread = quantiles(launch_medians)
        median_interval_s = (spread.p10, spread.p90)
    throughput = workload.global_batch / pace_s
    used = [name for name, ledger in devices.items() if ledger.samples]
    peaks = sum(device.peak(workload.dtype) for device in scenario.cluster.devices)
    share = goodput.share if goodput is not None else 1.0
    energy_j = energy.energy_j_per_step(scenario, devices, used)
    return Summary(
        fidelity=fidelity,
        guessed_share=guessed_share,
        steps=steps,
        launches=len(launch_medians),
        step_time_s=step_time,
        median_interval_s=median_interval_s,
        launch_median_step_time_s=list(launch_medians),
        throughput_samples_per_s=throughput,
        tokens_per_s=throughput * workload.sequence_length,
        mfu=throughput * workload.flops_per_sample / peaks,
        goodput=share,
        faults=dataclasses.asdict(goodput) if goodput is not None else None,
        energy_j_per_step=energy_j,
        carbon_kg_per_million_samples=energy.carbon_kg_per_million_samples(scenario, energy_j),
        cost_usd_per_million_samples=energy.cost_usd_per_million_samples(scenario, throughput * share, used),
        lower_bound_step_time_s=bound_s,
        gap_to_bound=pace_s / bound_s - 1 if bound_s > 0 else 0.0,
        work_bound_step_time_s=work_bound_s,
        critical_path=" ".join(filter(None, (critical_path(devices), why))) if isinstance(why, str) else why.line(),
        binding=None if isinstance(why, str) else why.document(),
        devices=devices,
    )


def device_ledgers(
    scenario: Scenario, plan: Plan, program: Program, events: pd.DataFrame, *, repeats: int = 1
) -> dict[str, DeviceLedger]:
    """Where every device's mean step went; one that another stands for went the same way."""
    stand_in = {name: member[0] for worker in program.workers for member in worker.members for name in member}
    stand_in.update({name: stand_in.get(other, other) for name, other in program.stands_for.items()})
    names = [device.name for device in scenario.cluster.devices]
    wanted = {stand_in.get(name, name) for name in names}
    lines = ledgers(events, wanted, repeats=repeats, cycle=plan.sync_every)
    samples, peaks = plan.samples(), memory.peak(scenario.workload, plan.widest())
    return {
        name: lines[stand_in.get(name, name)].model_copy(
            update={
                "samples": samples.get(name, 0),
                "peak_memory_bytes": peaks[name].total if name in peaks else None,
            }
        )
        for name in names
    }


def headroom(scenario: Scenario, plan: Plan) -> float:
    """The least share of its memory that a device of a plan has left at its peak."""
    devices, peaks = scenario.cluster.by_name, memory.peak(scenario.workload, plan.widest())
    return min(1 - peak.total / devices[name].memory_bytes for name, peak in peaks.items())


def guessed_share(program: Program) -> float:
    """Of the seconds of work in a step, the share that comes from a datasheet and no measurement."""
    total = guessed = 0.0
    for worker in program.workers:
        for backward in (False, True):
            for jobs in worker.jobs[backward]:
                for number in worker.classes:
                    job = jobs[number]
                    total += worker.copies * job.seconds
                    guessed += worker.copies * job.guessed_s
    for sync in program.syncs:
        total += len(sync.workers) * sync.transfer.alone_s
        guessed += len(sync.workers) * sync.transfer.alone_s * (sync.transfer.fidelity == "datasheet")
    return guessed / total if total > 0 else 0.0
