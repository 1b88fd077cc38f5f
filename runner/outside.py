"""refine_outside(): what measured runs of a cluster elsewhere say of its kinds of device, and of its links.

Of such a cluster nobody has tables: its devices are from the catalog or from profiles, and step times come back as
imported runs. One factor for each kind of device (on all its work), and where a run tells compute from communication
one for all links, are fitted to the logarithms of the measured times. A step's time is no product of factors (the
slowest device sets it, and work hides communication), so the simulator itself is linearised around the factors of the
moment, a few times over.

Factors are shrunk towards 1 by how sure they are: ridge regression whose prior's variance is what the estimates spread
over beyond their own error (empirical Bayes, as in :mod:`steelyard.sim.residuals`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..results.errors import InputError
from ..results.ledger import step_times
from ..results.metrics import median
from ..results.record import Run, digest
from ..sim.device import Cluster, Device, Link
from ..sim.engine import simulate
from ..sim.plan import Plan
from ..sim.spec import Objective, Scenario
from ..sim.view import Fixed
from .feedback import LEAST_PLANS, typical_s

LINKS = "links"
COMPUTE = ("forward", "backward", "compute", "optimizer")
ROUNDS = 3
"""Times that the simulator is linearised."""
STEP = 0.02
"""Logarithm of the factor by which it is moved to see what depends on it."""
WEAK_SD = 1.0
"""Prior of the first look, in logarithms: what no run tells of stays near none."""
LEAST_SD = 1e-3
"""Measured times are not exacter than that."""

Vector = NDArray[np.float64]


class Row(NamedTuple):
    """One measured time: of a step, or of one device's own work in it."""

    plan: str
    gradient: Vector
    """How the predicted logarithm changes with each factor's."""
    value: float
    """What the factors must explain: log (measured / predicted), the predicted one at factors of 1 as linearised."""
    before: float
    """log (measured / predicted) as the scenario stands."""


@dataclass(frozen=True)
class Outside:
    """A scenario whose devices and links are as measured runs have them."""

    scenario: Scenario
    factors: dict[str, float]
    """By kind of device (the first one's name), and ``links``: so many times as long."""
    seen: dict[str, float]
    """The same before shrinking."""
    plans: int
    held_out_before_percent: float
    """Mean absolute error of the plans' times, each predicted by the scenario as it was."""
    held_out_after_percent: float
    """The same by what all *other* plans say."""

    def rows(self) -> list[dict[str, str]]:
        """One row per factor, then how they did on plans that they had not seen."""
        rows = [
            {"what": name, "seen": f"{self.seen[name]:.3f}", "applied": f"{factor:.3f}"}
            for name, factor in self.factors.items()
        ]
        told = (f"{each:.1f} % off" for each in (self.held_out_before_percent, self.held_out_after_percent))
        return [*rows, dict(zip(("what", "seen", "applied"), ("each plan held out", *told), strict=True))]

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "factors": self.factors,
            "seen": self.seen,
            "plans": self.plans,
            "held_out_before_percent": self.held_out_before_percent,
            "held_out_after_percent": self.held_out_after_percent,
        }


def refine_outside(scenario: Scenario, runs: Sequence[Run]) -> Outside:
    """Fit the factors to measured runs, and apply them.

    Args:
        scenario: of devices with figures or profiles; lanes of this host have tables of their own (:mod:`.feedback`).
        runs: measured ones count, others are passed over.

    Raises:
        InputError: fewer than three plans were measured, or a run is of another workload or cluster.
    """
    measured = [run for run in runs if run.manifest.kind == "measured"]
    for run in measured:
        _require_same(run, scenario)
    plans = {run.manifest.plan_sha256 for run in measured}
    if len(plans) < LEAST_PLANS:
        raise InputError("--from-runs", f"{len(plans)} plans were measured", f"{LEAST_PLANS} are needed")
    names = [*kinds(scenario.cluster), *([LINKS] if any(map(_spans, measured)) else [])]
    base = [_predicted(scenario, run) for run in measured]
    theta = np.zeros(len(names))
    for _ in range(ROUNDS):
        rows = linearised(scenario, measured, base, names, theta)
        theta = shrunk(rows, len(names))
    seen, _ = _solved(rows, len(names), WEAK_SD, LEAST_SD)
    before, after = held_out(rows, len(names))
    cluster = scaled(scenario.cluster, dict(zip(names, theta, strict=True)))
    fitted = {"fitted_from": sorted(run.manifest.run_id for run in measured), "fitted_plans": sorted(plans)}
    return Outside(
        scenario=scenario.model_copy(update={"cluster": cluster.model_copy(update=fitted)}),
        factors=dict(zip(names, map(math.exp, theta), strict=True)),
        seen=dict(zip(names, map(math.exp, seen), strict=True)),
        plans=len(plans),
        held_out_before_percent=100 * math.expm1(before),
        held_out_after_percent=100 * math.expm1(after),
    )


def kinds(cluster: Cluster) -> dict[str, list[str]]:
    """The devices of each kind, which are alike in all but their names, by the first one's name."""
    found: dict[str, list[str]] = {}
    for device in cluster.devices:
        found.setdefault(digest(device.model_dump(mode="json", exclude={"name"})), []).append(device.name)
    return {names[0]: names for names in found.values()}


def scaled(cluster: Cluster, logs: dict[str, float]) -> Cluster:
    """The cluster with the work of each kind of device, and all communication, so many times as long."""
    of = {name: logs.get(kind, 0.0) for kind, names in kinds(cluster).items() for name in names}
    links = math.exp(logs.get(LINKS, 0.0))

    def device(each: Device) -> Device:
        return each.model_copy(update={"slowdown": each.slowdown * math.exp(of[each.name])})

    nodes = [
        node.model_copy(
            update={
                "devices": list(map(device, node.devices)),
                "link": _slower(node.link, links),
                "network": None if node.network is None else _slower(node.network, links),
            }
        )
        for node in cluster.nodes
    ]
    tables = [
        table.model_copy(
            update={"points": [each.model_copy(update={"seconds": links * each.seconds}) for each in table.points]}
        )
        for table in cluster.collectives
    ]
    network = None if cluster.network is None else _slower(cluster.network, links)
    switches = [each.model_copy(update={"uplink": _slower(each.uplink, links)}) for each in cluster.switches]
    update = {"nodes": nodes, "collectives": tables, "network": network, "switches": switches}
    return cluster.model_copy(update=update)


def _slower(link: Link, factor: float) -> Link:
    back = link.reverse_bandwidth_gb_per_s
    return link.model_copy(
        update={
            "latency_us": factor * link.latency_us,
            "bandwidth_gb_per_s": link.bandwidth_gb_per_s / factor,
            "reverse_bandwidth_gb_per_s": None if back is None else back / factor,
        }
    )


# ---- measured and predicted ----


def linearised(
    scenario: Scenario, runs: Sequence[Run], base: Sequence[dict[str, float]], names: Sequence[str], theta: Vector
) -> list[Row]:
    """A row for each launch's step, and for each device's own work where the run tells it."""

    def world(logs: Vector) -> Scenario:
        cluster = scaled(scenario.cluster, dict(zip(names, logs, strict=True)))
        return scenario.model_copy(update={"cluster": cluster})

    here = world(theta)
    moved = [world(theta + STEP * unit) for unit in np.eye(len(names))]
    rows = []
    for run, first in zip(runs, base, strict=True):
        now, then = _predicted(here, run), [_predicted(each, run) for each in moved]
        for what, seconds in _measured(run):
            if not (now.get(what, 0.0) > 0 and first.get(what, 0.0) > 0):
                continue
            gradient = np.array([math.log(each[what] / now[what]) / STEP for each in then])
            value = math.log(seconds / now[what]) + float(gradient @ theta)
            rows.append(Row(run.manifest.plan_sha256, gradient, value, math.log(seconds / first[what])))
    return rows


def _measured(run: Run) -> list[tuple[str, float]]:
    """Seconds of the step in each launch, and of each device's work."""
    steps = [("", median([times])) for times in step_times(run.events).values() if times]
    return [*steps, *_work(run)]


def _work(run: Run) -> list[tuple[str, float]]:
    """Seconds of each device's own work in a step, by launch; by events, as ledgers cut at the end of the step."""
    events = run.events[(run.events["step"] > 0) & run.events["kind"].isin(COMPUTE)]
    return [(str(device), typical_s(own)) for (_, device), own in events.groupby(["launch", "device"])]


def _predicted(scenario: Scenario, run: Run) -> dict[str, float]:
    """The same as simulated: under the empty name the step, then the work of each device."""
    sampling = scenario.sampling.model_copy(update={"launches": scenario.sampling.search_launches})
    still = {"objective": Objective(), "disturbances": [], "rebalance": None, "sampling": sampling}
    made = simulate(scenario.model_copy(update=still), Fixed(Plan.parse(run.plan)))
    return {"": made.summary.step_time_s.p50, **dict(_work(made))}


def _spans(run: Run) -> bool:
    return bool(run.events["kind"].isin(COMPUTE).any())


def _require_same(run: Run, scenario: Scenario) -> None:
    if set(run.summary.devices) != set(scenario.cluster.by_name):
        raise InputError(f"run {run.manifest.label!r}", "was measured on other devices", "give runs of this scenario")
    if run.manifest.scenario.get("workload") != scenario.workload.model_dump(mode="json"):
        raise InputError(f"run {run.manifest.label!r}", "is of another workload", "give runs of this scenario")


# ---- the fit ----


def shrunk(rows: Sequence[Row], count: int) -> Vector:
    """Logarithms of the factors, shrunk towards 0."""
    first, _ = _solved(rows, count, WEAK_SD, LEAST_SD)
    left = [row.value - float(row.gradient @ first) for row in rows]
    sd = max(LEAST_SD, math.sqrt(sum(each**2 for each in left) / max(1, len(rows) - count)))
    seen, covariance = _solved(rows, count, WEAK_SD, sd)
    spread = max(0.0, fmean(float(each) for each in seen**2 - np.diag(covariance)))
    if spread == 0:
        return np.zeros(count)
    return _solved(rows, count, math.sqrt(spread), sd)[0]


def _solved(rows: Sequence[Row], count: int, prior_sd: float, sd: float) -> tuple[Vector, Vector]:
    """Mean and covariance of the factors' logarithms, a normal prior around 0 and normal errors given."""
    design = np.array([row.gradient for row in rows])
    values = np.array([row.value for row in rows])
    precision = design.T @ design / sd**2 + np.eye(count) / prior_sd**2
    covariance = np.linalg.inv(precision)
    return covariance @ (design.T @ values) / sd**2, covariance


def held_out(rows: Sequence[Row], count: int) -> tuple[float, float]:
    """Mean absolute log error of each plan's times before, and by the factors that all other plans give."""
    before, after = [], []
    for plan in dict.fromkeys(row.plan for row in rows):
        theta = shrunk([row for row in rows if row.plan != plan], count)
        own = [row for row in rows if row.plan == plan]
        before.append(fmean(abs(row.before) for row in own))
        after.append(fmean(abs(row.value - float(row.gradient @ theta)) for row in own))
    return fmean(before), fmean(after)
