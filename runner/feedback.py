"""refine(): learn from measured runs how far the tables of this host's lanes are off, and write better ones.

Only plain splits of a batch tell the times of single lanes: not pipelines, nor sharded states or recomputation, whose
passes hold more than the tables' own, nor runs that were disturbed on purpose. Others are left out and counted. A run
is held against tables without its own micro-batch sizes, as its prediction was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..results.record import Run, digest
from ..sim.cost import profiled_cost, without_sizes
from ..sim.device import Cluster, CollectiveTable, Device, Profile
from ..sim.disturbances import slowed
from ..sim.measured import interpolate
from ..sim.plan import Plan
from ..sim.residuals import Bias, HeldOut, Key, Residual, fit_biases, held_out
from ..sim.workload import Workload
from .blocks import MAX_RESIDUALS
from .calibrations import Calibration, base_digest, refined_path
from .held_out import LEAST_POINTS

if TYPE_CHECKING:
    import pandas as pd

COMPUTE = ("forward", "backward", "optimizer")
LEAST_PLANS = 3


@dataclass(frozen=True)
class Refined:
    """A refined calibration, what was learned, and how it did on what it had not seen."""

    calibration: Calibration
    biases: dict[Key, Bias]
    judged: HeldOut | None
    left_out: int
    """Runs that tell nothing of single lanes."""
    crowded: dict[str, int]
    """Per lane, runs whose own sizes leave too few others: of its passes these tell nothing. Lanes without: absent."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per lane and kind of work; the last one says how the whole did on held-out launches."""
        rows = [
            {
                "lane": key.device,
                "kind": key.kind,
                "plans": str(bias.runs),
                "seen %": f"{100 * math.expm1(bias.raw):+.1f}",
                "applied %": f"{100 * math.expm1(bias.bias):+.1f}",
                "80 % of a fresh launch %": f"{_percent(bias.interval()[0])} to {_percent(bias.interval()[1])}",
            }
            for key, bias in self.biases.items()
        ]
        rows += [
            {
                "lane": lane,
                "kind": "left out",
                "plans": f"{count} runs",
                "seen %": f"use all calibrated sizes but {LEAST_POINTS - 1} or fewer",
            }
            for lane, count in self.crowded.items()
        ]
        if self.judged is not None:
            rows.append(
                {
                    "lane": "all",
                    "kind": "held out",
                    "plans": f"{self.judged.observations} times",
                    "seen %": f"{100 * self.judged.before:.1f} off before",
                    "applied %": f"{100 * self.judged.after:.1f} off after",
                    "80 % of a fresh launch %": f"{100 * self.judged.covered:.0f} % covered",
                }
            )
        return rows

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "path": str(self.calibration.path),
            "left_out": self.left_out,
            "crowded": self.crowded,
            **self.calibration.feedback,
        }


def refine(calibration: Calibration, runs: Sequence[Run], workload: Workload) -> Refined:
    """Refine a calibration by measured runs of the same workload on the same lanes.

    Args:
        calibration: its tables stay as they are; the refined ones are a new calibration.
        runs: measured ones count, others are passed over.
        workload: that the calibration is of.

    Raises:
        InputError: fewer than three plans tell something, or they are of other lanes or another workload.
    """
    measured = [run for run in runs if run.manifest.kind == "measured"]
    names = {device.name for device in calibration.cluster.devices}
    for run in measured:
        _require_same(run, names, calibration)
    residuals = [(run, list(run_residuals(run, calibration.cluster, workload))) for run in measured]
    telling = [(run, found) for run, found in residuals if found]
    # A twin is no further plan: runs of one plan are judged and left out together.
    if (count := len({run.manifest.plan_sha256 for run, _ in telling})) < LEAST_PLANS:
        raise InputError(
            "--from-runs", f"{count} measured plans tell times of single lanes", f"{LEAST_PLANS} are needed"
        )
    pooled = [each for _, found in telling for each in found]
    biases, judged = fit_biases(pooled), held_out(pooled)
    cluster = corrected(calibration.cluster, biases, pooled)
    fitted = {
        "fitted_from": sorted({run.manifest.run_id for run, _ in telling}),
        "fitted_plans": sorted({run.manifest.plan_sha256 for run, _ in telling}),
    }
    cluster = cluster.model_copy(update=fitted)
    feedback = {
        "base": base_digest(calibration),
        "runs": {run.manifest.run_id: digest(run.summary.model_dump(mode="json")) for run, _ in telling},
        "factors": {f"{key.device} {key.kind}": bias.factor for key, bias in biases.items()},
        "held_out": judged._asdict() if judged is not None else {},
    }
    new = replace(calibration, cluster=cluster, path=refined_path(calibration.path), reused=False, feedback=feedback)
    crowded = Counter(lane for run in measured for lane in crowded_lanes(run, calibration.cluster))
    return Refined(new, biases, judged, len(measured) - len(telling), dict(sorted(crowded.items())))


def run_residuals(run: Run, cluster: Cluster, workload: Workload) -> Iterator[Residual]:
    """The residuals of one measured run: per launch, lane and kind of work; nothing where it tells none of these."""
    if not _tells(run):
        return
    expected = _Expected(slowed(cluster, _speeds(run)), workload, _sizes(run))
    events = run.events[run.events["step"] > 0]
    for (launch, device), own in events.groupby(["launch", "device"]):
        for kind, part in own.groupby("kind"):
            seconds = expected.seconds(str(device), str(kind))
            took = typical_s(part)
            if seconds is not None and took > 0:
                value = math.log(took / seconds)
                group = f"{run.manifest.prediction_sha256}/{launch}"
                yield Residual(Key(str(device), str(kind)), run.manifest.plan_sha256, group, value)


def crowded_lanes(run: Run, cluster: Cluster) -> list[str]:
    """Lanes of whose passes a run tells nothing, because its own sizes leave too few others to tell them from."""
    if not _tells(run):
        return []
    sizes = _sizes(run)
    profiles = {name: cluster.by_name[name].profile for name in sizes}
    return [name for name, profile in profiles.items() if profile is not None and _others(profile, sizes) is None]


def _tells(run: Run) -> bool:
    """Whether a run's passes are those that the tables are of: a plain split, undisturbed, by one plan throughout."""
    if run.manifest.scenario.get("disturbances") or run.manifest.scenario.get("rebalance"):
        return False
    plan = Plan.parse(run.plan)
    return (
        plan.is_data_parallel and not plan.zero and all(each.stages[0].recompute == "none" for each in plan.pipelines)
    )


@dataclass(frozen=True)
class _Expected:
    """What the tables say of a plan's steps, without the plan's own sizes."""

    cluster: Cluster
    workload: Workload
    sizes: dict[str, list[int]]

    def seconds(self, device: str, kind: str) -> float | None:
        """Seconds of a kind of work in one step on a lane; None where the tables tell nothing of it."""
        if kind == "communication":
            table = self._table()
            return None if table is None else interpolate(table.points, self.workload.gradient_bytes)
        profile = self.cluster.by_name[device].profile
        if kind not in COMPUTE or profile is None:
            return None
        if kind == "optimizer":
            return self.cluster.by_name[device].slowdown * profile.optimizer_s
        kept = _others(profile, self.sizes)
        if kept is None:
            return None
        cost = profiled_cost(device, kept, self.cluster.by_name[device].slowdown)
        curve = cost.forward if kind == "forward" else cost.backward
        return sum(curve.at(size) for size in self.sizes[device])

    def _table(self) -> CollectiveTable | None:
        taking_part = {name for name, sizes in self.sizes.items() if sizes}
        tables = (each for each in self.cluster.collectives if each.kind == "all_reduce")
        return next((each for each in tables if set(each.devices) == taking_part), None)


def _others(profile: Profile, sizes: Mapping[str, Sequence[int]]) -> Profile | None:
    """The tables without a plan's own sizes, as they predict it; None where too few are left to predict anything."""
    used = {size for own in sizes.values() for size in own}
    left = sum(point.micro_batch not in used for point in profile.points)
    return without_sizes(profile, used) if left >= LEAST_POINTS else None


def typical_s(events: pd.DataFrame) -> float:
    """Median over steps of the seconds that a kind of work took in each."""
    spent = (events["end_s"] - events["start_s"]).groupby([events["round"], events["step"]]).sum()
    return float(median(spent))


def corrected(cluster: Cluster, biases: dict[Key, Bias], residuals: Sequence[Residual]) -> Cluster:
    """The cluster whose tables are multiplied by the biases' factors, with the spread that launches then have."""
    nodes = [
        node.model_copy(update={"devices": [_device_corrected(each, biases, residuals) for each in node.devices]})
        for node in cluster.nodes
    ]
    shared = [bias.bias for key, bias in biases.items() if key.kind == "communication"]
    factor = math.exp(sum(shared) / len(shared)) if shared else 1.0
    tables = [table.within_steps(factor) if table.kind == "all_reduce" else table for table in cluster.collectives]
    return cluster.model_copy(update={"nodes": nodes, "collectives": tables})


def _device_corrected(device: Device, biases: dict[Key, Bias], residuals: Sequence[Residual]) -> Device:
    if device.profile is None:
        return device

    def factor(kind: str) -> float:
        found = biases.get(Key(device.name, kind))
        return found.factor if found is not None else 1.0

    points = [
        point.model_copy(
            update={
                "forward_s": factor("forward") * point.forward_s,
                "backward_s": factor("backward") * point.backward_s,
            }
        )
        for point in device.profile.points
    ]
    left = _left_over(device.name, biases, residuals)
    update: dict[str, Any] = {
        "points": points,
        "optimizer_s": factor("optimizer") * device.profile.optimizer_s,
        "forward_factor": factor("forward") * device.profile.forward_factor,
        "backward_factor": factor("backward") * device.profile.backward_factor,
    }
    if len(left) > len(device.profile.launch_residuals):
        update |= {"launch_residuals": left[:MAX_RESIDUALS], "launch_groups": 1}
    return device.model_copy(update={"profile": device.profile.model_copy(update=update)})


def _left_over(device: str, biases: dict[Key, Bias], residuals: Sequence[Residual]) -> list[float]:
    """What the factors leave of each launch of each run, in the same order for all lanes: equal places belong together.

    A lane that took no part in a run was, for all that is known, as expected.
    """
    groups: dict[tuple[str, str], list[float]] = {(each.run, each.launch): [] for each in residuals}
    for each in residuals:
        if each.key in biases and each.key.device == device and each.key.kind in ("forward", "backward"):
            groups[each.run, each.launch].append(math.expm1(each.value - biases[each.key].bias))
    return [fmean(values) if values else 0.0 for values in groups.values()]


def _require_same(run: Run, names: set[str], calibration: Calibration) -> None:
    if set(run.summary.devices) != names:
        raise InputError(f"run {run.manifest.label!r}", "was measured on other lanes", "give runs of this scenario")
    cluster = run.manifest.scenario.get("cluster", {})
    if cluster.get("fingerprint") != calibration.cluster.fingerprint:
        raise InputError(f"run {run.manifest.label!r}", "was measured on another machine", "give runs of this one")


def _sizes(run: Run) -> dict[str, list[int]]:
    """The micro-batches of each lane that takes part in a plain split."""
    return {_device(each): [int(size) for size in each["micro_batches"]] for each in run.plan["pipelines"]}


def _speeds(run: Run) -> dict[str, float]:
    """How many times as long as its table each lane took when the run began, as its gauge found: that is no bias."""
    nodes = run.manifest.scenario["cluster"]["nodes"]
    return {str(each["name"]): float(each["slowdown"]) for node in nodes for each in node["devices"]}


def _device(pipeline: dict[str, Any]) -> str:
    return str(pipeline["stages"][0]["replicas"][0]["devices"][0])


def _percent(logarithm: float) -> str:
    return f"{100 * math.expm1(logarithm):+.1f}"
