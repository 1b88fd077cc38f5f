"""whatif(): the same study with some fields changed: which change pays, and with which policy."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from datetime import time as clock
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..sim.spec import Resolver, Scenario, apply_setting, parse_value, scenario_from
from ..sim.view import Policy, describe
from . import REGISTRY, policies_for
from .toml import value_text

MAX_POINTS = 10_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Vary:
    """One field and the values it takes, each as TOML text."""

    path: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Vary:
        """From ``a.b=1,2,4``; values that are not TOML are words.

        Raises:
            InputError: no values, or no path.
        """
        path, separator, listed = text.partition("=")
        if not separator or not path.strip() or not listed.strip():
            raise InputError(
                f"--vary {text}", "is not path=value,value", "for example --vary workload.global_batch=32,64"
            )
        whole = parse_value(f"[{listed}]")
        if isinstance(whole, list) and not any(isinstance(each, date | clock) for each in whole):
            return cls(path.strip(), tuple(value_text(each) for each in whole))
        return cls(path.strip(), tuple(each.strip() for each in listed.split(",")))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination of values: the best policy there, and what it gives; or why there is no plan."""

    settings: dict[str, Any]
    policy: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    objective_value: float | None = None
    """Larger is better: the scenario's objective, negated where less is better."""
    throughput_samples_per_s: float | None = None
    step_time_s: dict[str, float] | None = None
    """p10, p50, p90."""
    cost_usd_per_million_samples: float | None = None
    energy_j_per_step: float | None = None
    lower_bound_step_time_s: float | None = None
    gap_to_bound: float | None = None
    """(p50 step time - bound) / bound."""
    infeasible: str | None = None
    """Why no policy has a plan here."""


@dataclass(frozen=True)
class WhatIf:
    """A sweep: its points in the order of the grid (the last field varies fastest), and which one to take."""

    objective: str
    points: tuple[Point, ...]

    @property
    def best(self) -> Point | None:
        """The feasible point with the best objective; of equals the cheapest, then the earliest."""
        return min(self._feasible(), key=_by_objective, default=None)

    @property
    def cheapest(self) -> Point | None:
        """The point with the least cost per sample; None where no point has prices."""
        priced = [point for point in self._feasible() if point.cost_usd_per_million_samples]
        return min(priced, key=lambda point: point.cost_usd_per_million_samples or math.inf, default=None)

    @property
    def recommendation(self) -> str:
        """Which point and why, in a sentence."""
        best, cheapest = self.best, self.cheapest
        if best is None:
            reason = self.points[0].infeasible if self.points else "there are none"
            return f"No point has a plan: {reason}."
        text = f"Take {_settings(best)} with {best.policy}: {_why(best, self.objective, len(self._feasible()))}"
        if cheapest is None:
            return f"{text}."
        if cheapest is best:
            return f"{text}, and the least cost, {_usd(best)}."
        return f"{text}; the least cost has {_settings(cheapest)} with {cheapest.policy}, {_usd(cheapest)}."

    def document(self) -> dict[str, Any]:
        """The sweep as a JSON document."""
        best = self.best
        return {
            "objective": self.objective,
            "points": [asdict(point) for point in self.points],
            "recommendation": self.recommendation,
            "recommended_point": None if best is None else self.points.index(best),
        }

    def _feasible(self) -> list[Point]:
        return [point for point in self.points if point.infeasible is None]


def whatif(
    document: dict[str, Any],
    folder: Path | None,
    vary: Sequence[str],
    *,
    policies: Sequence[str] | None = None,
    resolve: Resolver | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> WhatIf:
    """Simulate every policy at every point of a grid over a scenario's fields.

    Args:
        document: the raw scenario, as :func:`~steelyard.sim.spec.read_document` gives it; it is not changed.
        folder: where its relative paths start.
        vary: ``a.b=1,2,4``, one per field; all combinations are points.
        policies: as :func:`~steelyard.policies.policy_from_text` takes them; without, those of the scenario.
        resolve: fills in what only this host knows, after the fields are set.
        seed: of the noise; the scenario's by default.
        progress: called with points done and points in all.

    Raises:
        InputError: a path that does not exist, a value that its field refuses, or over 10,000 points.
    """
    fields = _fields(vary)
    if policies is not None and not policies:
        raise InputError("policies", "are none", f"known: {', '.join(REGISTRY)}")
    # Mistakes show before an hour of simulation, and not after it.
    probes = [_scenario(document, folder, values, resolve) for values in _probes(fields)]
    chosen = policies_for(probes[0], policies or ())
    total = math.prod(len(each.values) for each in fields)
    points = []
    metric = ""
    for number, values in enumerate(_grid(fields)):
        scenario = _scenario(document, folder, values, resolve)
        metric = scenario.objective.metric
        points.append(_point(scenario, chosen, values, seed))
        if progress is not None:
            progress(number + 1, total)
    return WhatIf(metric, tuple(points))


def _fields(vary: Sequence[str]) -> list[Vary]:
    fields = [Vary.parse(text) for text in vary]
    paths = [each.path for each in fields]
    if not fields:
        raise InputError("--vary", "is missing", "for example --vary workload.global_batch=32,64")
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"--vary {path}", "is given twice", "give all its values at once")
        if path.split(".")[0] == "objective":
            raise InputError(f"--vary {path}", "would leave nothing to compare by", "run one sweep per objective")
    total = math.prod(len(each.values) for each in fields)
    if total > MAX_POINTS:
        raise InputError("--vary", f"makes {total} points", f"at most {MAX_POINTS}: give fewer values")
    return fields


def _grid(fields: Sequence[Vary]) -> Iterator[dict[str, str]]:
    for values in itertools.product(*(each.values for each in fields)):
        yield dict(zip((each.path for each in fields), values, strict=True))


def _probes(fields: Sequence[Vary]) -> Iterator[dict[str, str]]:
    """Every value once, the other fields at their first."""
    first = {each.path: each.values[0] for each in fields}
    for each in fields:
        yield from ({**first, each.path: value} for value in each.values)


def _scenario(
    document: Mapping[str, Any], folder: Path | None, values: Mapping[str, str], resolve: Resolver | None
) -> Scenario:
    """The scenario with some fields set; those of measured lanes are set once the lanes are filled in."""
    changed = _spelled_out(document)
    late = []
    for path, value in values.items():
        if path.startswith("cluster.") and not _reaches(changed, path):
            late.append((path, value))
        else:
            _set(changed, path, value)
    if resolve is not None:
        changed = _spelled_out(resolve(changed, folder))
    for path, value in late:
        if not _reaches(changed, path):
            raise InputError(f"--vary {path}", "does not exist in the scenario", "list entries count from 0")
        _set(changed, path, value)
    return scenario_from(changed, folder)


def _spelled_out(document: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy in which a device that is only named is a table, so that its count can be set."""
    copied = copy.deepcopy(dict(document))
    cluster = copied.get("cluster")
    nodes = cluster.get("nodes") if isinstance(cluster, dict) else None
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, dict) and isinstance(node.get("devices"), list):
            node["devices"] = [{"device": each} if isinstance(each, str) else each for each in node["devices"]]
    return copied


def _reaches(document: Any, path: str) -> bool:
    """Whether everything above the path's last part is there."""
    target = document
    for part in path.split(".")[:-1]:
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        else:
            return False
    return isinstance(target, dict | list)


def _set(document: dict[str, Any], path: str, value: str) -> None:
    try:
        apply_setting(document, f"{path}={value}")
    except InputError as error:
        raise InputError(f"--vary {path}", error.problem, error.mend) from error


def _point(scenario: Scenario, policies: Sequence[Policy], values: Mapping[str, str], seed: int | None) -> Point:
    from ..sim.engine import simulate

    settings = {path: parse_value(value) for path, value in values.items()}
    seed = scenario.seed if seed is None else seed
    outcomes = [_outcome(scenario, policy, seed) for policy in policies]
    found = [(value, policy) for value, policy in zip(outcomes, policies, strict=True) if isinstance(value, float)]
    if not found:
        return Point(settings=settings, infeasible=str(outcomes[0]))
    value, policy = max(found, key=lambda each: each[0])  # of equals the first
    summary, record = simulate(scenario, policy, seed=seed).summary, describe(policy)
    times = summary.step_time_s
    return Point(
        settings=settings,
        policy=record.name,
        parameters=record.parameters,
        objective_value=value,
        throughput_samples_per_s=summary.throughput_samples_per_s,
        step_time_s={"p10": times.p10, "p50": times.p50, "p90": times.p90},
        cost_usd_per_million_samples=summary.cost_usd_per_million_samples,
        energy_j_per_step=summary.energy_j_per_step,
        lower_bound_step_time_s=summary.lower_bound_step_time_s,
        gap_to_bound=summary.gap_to_bound,
    )


def _outcome(scenario: Scenario, policy: Policy, seed: int) -> float | str:
    """The objective of a policy by the engine, from as many launches as a search takes; or why it has none."""
    from ..sim.engine import objective_value
    from ..sim.plan import PlanError

    try:
        return objective_value(scenario, policy, seed=seed, launches=scenario.sampling.search_launches)
    except PlanError:
        raise  # an invalid plan is the policy's bug, and no property of the point
    except InputError as error:
        return str(error)


def _by_objective(point: Point) -> tuple[float, float]:
    assert point.objective_value is not None
    return -point.objective_value, point.cost_usd_per_million_samples or math.inf


def _settings(point: Point) -> str:
    return ", ".join(f"{path} = {value}" for path, value in point.settings.items())


def _why(point: Point, objective: str, of: int) -> str:
    """The figure that the objective is about, as words."""
    value = point.objective_value
    assert value is not None
    figure = {
        "throughput": f"the highest throughput, {value:,.6g} samples/s",
        "step_time_p90": f"the least p90 step time, {-value:.6g} s",
        "cost": f"the least objective, {-value:.6g} USD per million samples",
        "energy": f"the least energy, {-value:.6g} J per million samples",
        "memory_headroom": f"the most memory left, {value:.1%} on the fullest device",
    }[objective]
    return f"{figure}, of {of} feasible point{'' if of == 1 else 's'}"


def _usd(point: Point) -> str:
    return f"{point.cost_usd_per_million_samples:.4g} USD per million samples"
