"""study(): policies on one scenario under the noise of several seeds: who is best, by how much, and is it luck."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..results.errors import InputError
from ..results.gap import bounds_s, gap_percent
from ..results.record import Summary
from ..results.significance import LEVEL, ROUNDING, Standing, least_p, standings
from ..sim.plan import Infeasible
from ..sim.spec import Scenario
from ..sim.view import Policy, describe

Progress = Callable[[int, int], None]
MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One policy over all seeds."""

    standing: Standing
    """Of its throughput in samples per second."""
    throughputs: tuple[float, ...]
    gap_percent: float | None
    """How far its median step is above the bound, mean over the seeds; all policies by one kind of bound."""
    cost_usd_per_million_samples: float | None


@dataclass(frozen=True, kw_only=True)
class Study:
    """The policies in order, the best first; those without a plan, with the reason."""

    scenario: str
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    infeasible: dict[str, str]

    @property
    def seeds_matter(self) -> bool:
        """Whether any policy's throughput differs from seed to seed."""
        return any(each.standing.interval[0] < each.standing.interval[1] for each in self.entries)

    def document(self) -> dict[str, Any]:
        """The study as a JSON document."""
        return {
            "scenario": self.scenario,
            "seeds": list(self.seeds),
            "seeds_matter": self.seeds_matter,
            "policies": [_entry_document(each) for each in self.entries],
            "infeasible": self.infeasible,
            "notes": self.notes(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A table for people: a row per policy, the best first; those without a plan last."""
        rows = [_row(place, each, self.seeds_matter) for place, each in enumerate(self.entries, start=1)]
        blank = dict.fromkeys(rows[0] if rows else ("rank", "policy", "verdict"))
        return rows + [{**blank, "policy": name, "verdict": f"no plan: {why}"} for name, why in self.infeasible.items()]

    def notes(self) -> list[str]:
        """What must be known to read the table."""
        if not self.entries:
            return ["no policy has a plan"]
        if not self.seeds_matter:
            return ["the scenario is deterministic for these plans: seeds change nothing, and one would do"]
        count = len(self.seeds)
        lines = [
            f"95 % intervals of the mean over {count} seeds; the test is Wilcoxon's signed-rank, Holm's correction"
        ]
        if least_p(count) * max(len(self.entries) - 1, 1) >= LEVEL:
            lines.append(f"{count} seeds are too few to tell {len(self.entries)} policies apart at the 5 % level")
        return lines


def study(
    scenario: Scenario,
    policies: Sequence[Policy],
    *,
    seeds: int,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Study:
    """Simulate every policy with every seed; equal seeds mean equal noise, so that policies compare in pairs.

    Args:
        scenario: what the policies are tried on.
        policies: each with a label of its own.
        seeds: how many, from the first one upwards.
        seed: the first; the scenario's by default.
        progress: called with policies done and policies in all.

    Raises:
        InputError: no seed, too many, no policy, or two with one label.
        Infeasible: the only policy has no plan; of several, that is put down.
        PlanError: a policy's plan breaks a rule.
    """
    first = scenario.seed if seed is None else seed
    numbers = tuple(range(first, first + seeds))
    labels = [describe(policy).label() for policy in policies]
    _check(labels, seeds)
    found: dict[str, list[Summary]] = {}
    infeasible: dict[str, str] = {}
    for place, (label, policy) in enumerate(zip(labels, policies, strict=True), start=1):
        try:
            found[label] = _summaries(scenario, policy, numbers)
        except Infeasible as error:
            if len(policies) == 1:
                raise
            infeasible[label] = str(error)
        if progress is not None:
            progress(place, len(policies))
    return Study(scenario=scenario.name, seeds=numbers, entries=_entries(found), infeasible=infeasible)


def _check(labels: Sequence[str], seeds: int) -> None:
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError("--seeds", f"is {seeds}", f"from 1 to {MOST_SEEDS}")
    if not labels:
        raise InputError("--policy", "names none", "give at least one")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError("--policy", f"names {twice} twice", "name each once")


def _summaries(scenario: Scenario, policy: Policy, numbers: Sequence[int]) -> list[Summary]:
    """What comes of a policy with every seed."""
    from ..sim.engine import simulate

    return [simulate(scenario, policy, seed=number).summary for number in numbers]


def _entries(found: dict[str, list[Summary]]) -> tuple[Entry, ...]:
    values = {label: [each.throughput_samples_per_s for each in summaries] for label, summaries in found.items()}
    everything = [each for summaries in found.values() for each in summaries]
    bounds = iter(bounds_s(everything))
    gaps = {
        label: _mean([gap_percent(each.step_time_s.p50, next(bounds)) for each in summaries])
        for label, summaries in found.items()
    }
    return tuple(
        Entry(
            standing=standing,
            throughputs=tuple(values[standing.name]),
            gap_percent=gaps[standing.name],
            cost_usd_per_million_samples=_mean([each.cost_usd_per_million_samples for each in found[standing.name]]),
        )
        for standing in standings(values)
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where one is not known."""
    known = [each for each in values if each is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _row(place: int, each: Entry, seeds_matter: bool) -> dict[str, Any]:
    standing = each.standing
    low, high = standing.interval
    return {
        "rank": place,
        "policy": standing.name,
        "samples/s": standing.mean,
        "95 % interval": f"{low:.4g} - {high:.4g}" if seeds_matter else None,
        "mean rank": standing.rank,
        "behind best %": standing.behind_percent,
        "gap to bound %": each.gap_percent,
        "p": standing.p_value,
        "verdict": _verdict(place, standing),
    }


def _verdict(place: int, standing: Standing) -> str:
    if place == 1:
        return "best"
    if abs(standing.behind_percent) < 100 * ROUNDING:
        return "as fast"
    if standing.differs is None:
        return "slower, and no seed changes it"
    return "slower" if standing.differs else "may be luck"


def _entry_document(each: Entry) -> dict[str, Any]:
    own = asdict(each)
    standing = own.pop("standing")
    return {
        "policy": standing.pop("name"),
        "throughput_samples_per_s": standing.pop("mean"),
        "interval_95_samples_per_s": list(standing.pop("interval")),
        "mean_rank": standing.pop("rank"),
        "differs_from_best": each.standing.differs,
        **standing,
        "gap_to_bound_percent": own["gap_percent"],
        "cost_usd_per_million_samples": own["cost_usd_per_million_samples"],
        "throughput_by_seed": list(each.throughputs),
    }
