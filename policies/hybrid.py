"""The hybrid planner: data x pipeline x tensor parallelism over unlike devices, with memory, money and energy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim import footprint
from ..sim.estimate import Estimate, Estimator
from ..sim.plan import Infeasible, Plan, PlanError
from ..sim.spec import Scenario
from ..sim.view import Policy, View
from ._base import Range
from ._moves import changes, rebucketed
from .aims import OBJECTIVE, Aim, aimed
from .attention_operators import AttentionOperators
from .candidates import Candidates, Rough
from .cannikin import Cannikin
from .cephalo import Cephalo
from .chunks import interleaved
from .cuts import CutExact
from .fleet import Fleet, plan_of
from .layouts import Layouts
from .makespan import Makespan
from .poplar import Poplar
from .shapes import Foundry


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Search pipelines of like and of unlike devices, their cuts, micro-batches, recomputation and sharding together.

    A kind's devices form pipelines of their own (each dealt what it gets done in time), or pipelines over two kinds in
    which the faster holds more layers. Thousands of fleets are compared by a rough estimate, the best ones by a close
    one (:mod:`steelyard.sim.estimate`), and the winner is improved by moving samples and layers.
    """

    name: ClassVar[str] = "hybrid"
    source: ClassVar[str] = "the hybrid planner; min-max cuts by bisection, fleets by enumeration with dominance"

    keep: Annotated[int, Range(1, 32, log=True)] = 8
    """Pipelines of each kind that are combined."""
    closely: Annotated[int, Range(1, 64, log=True)] = 16
    """Fleets that are looked at closely."""
    moves: Annotated[int, Range(0, 200)] = 24
    """Changes of the best plan that are tried."""
    aim: Annotated[str, Aim()] = OBJECTIVE
    """What the plan is to be best at; by default what the scenario's objective says."""

    def allocate(self, view: View) -> Plan:
        """The plan with the best estimated objective among those looked at closely.

        Raises:
            Infeasible: nothing fits in memory, nothing found keeps the objective's floor and budget, or the objective
                is none of :data:`.aims.KNOWN`.
        """
        view = aimed(view, self.aim)
        judge = Judge(view)
        foundry = Foundry(view)
        spare = judge.saves or bool(view.objective.most_cost_usd_per_million_samples)
        candidates = Candidates(foundry, keep=self.keep, spare=spare)
        found = self._closely(judge, candidates, foundry)
        found += _bucketed(judge, sorted(filter(judge.admits, found), key=judge.rank)[:SPLIT])
        best = improved(judge, best_of(judge, foundry, found), self.moves)
        return min([best, *_bucketed(judge, [best])], key=judge.rank)[0]

    def _closely(self, judge: Judge, candidates: Candidates, foundry: Foundry) -> list[Judged]:
        """The fleets with the best rough estimates as plans, with their close ones."""
        found = [(plan, judge.estimator.of(plan)) for plan in _plain_splits(judge)]
        for zeros in ((0, 1), (2,), (3,)):
            rough = [each for zero in zeros for each in candidates.fleets(zero)]
            for fleet in _leading(judge, rough, self.closely):
                dealt = fleet.deal(judge.view.global_batch)
                for spread in (False, True) if any(len(shape.stages) > 1 for shape, _ in fleet.lines) else (False,):
                    plan = plan_of(foundry, fleet, dealt, spread=spread)
                    if judge.fits(plan):
                        found.append((plan, judge.estimator.of(plan)))
            if found:  # sharding more than needed only adds communication
                break
        best_s = min((each.step_s for _, each in found), default=math.inf)
        found += looked_at(judge, Layouts(foundry, DEEPEST), best_s, max(1, (REGULAR // len(judge.view.devices)) ** 2))
        return found + _in_chunks(judge, foundry, found)


FEW = 64
"""Devices up to which the exact split may leave some out: beyond, it costs more than the rest of the search."""
FEWEST = 3
"""Devices up to which the exact cut of one pipeline is weighed as well."""
SOME = 16
"""Devices up to which branches of a graph are placed side by side: one copy of a model keeps no larger cluster busy."""
REGULAR = 2048
"""Layouts of equal pipelines whose layers are cut: the square of this over the number of devices, at most."""
HOPELESS = 1.3
"""Layouts that seem to take so many times the best step are not looked at closely."""
SPLIT = 4
"""Plans that are tried with several runs of layers per device, and with other messages of gradients."""
DEEPEST = 16
"""Stages of equal pipelines that are tried."""
Judged = tuple[Plan, Estimate]
"""A valid plan and what it is thought to take."""


class Judge:
    """What an objective makes of plans, by their close estimates."""

    def __init__(self, view: View) -> None:
        self.view, self.objective = view, view.objective
        self.estimator = Estimator(view)
        self.scenario = Scenario(name="planned", cluster=view.cluster, workload=view.workload)
        self.saves = self.objective.metric in ("cost", "energy")
        self.bounded = bool(self.objective.most_cost_usd_per_million_samples)
        """Whether a quicker plan may be refused for its price."""

    def fits(self, plan: Plan) -> bool:
        """Whether the plan is valid; what a shape takes is estimated where layers skip stages or states are shared."""
        try:
            plan.check(self.scenario)
        except PlanError:
            return False
        return True

    def allows(self, estimate: Estimate) -> bool:
        """Whether an estimate keeps the floor and the budget."""
        floor, most = self.objective.least_throughput_samples_per_s, self.objective.most_cost_usd_per_million_samples
        rate = self.view.global_batch / estimate.step_s
        paid = estimate.usd_per_million_samples
        return (floor is None or rate >= floor) and (most is None or (paid is not None and paid <= most))

    def order(self, estimate: Estimate) -> tuple[float, float]:
        """Smaller is better; the step time decides between equals."""
        measured = {"cost": estimate.usd_per_million_samples, "energy": estimate.energy_j}
        value = measured.get(self.objective.metric, estimate.step_s)
        return (math.inf if value is None else value), estimate.step_s

    def admits(self, judged: Judged) -> bool:
        """See :meth:`allows`."""
        return self.allows(judged[1])

    def rank(self, judged: Judged) -> tuple[float, float]:
        """See :meth:`order`."""
        return self.order(judged[1])

    def roughly(self, rough: Rough) -> tuple[bool, float, float]:
        """The same of a rough estimate; what seems to break a bound comes last."""
        floor, most = self.objective.least_throughput_samples_per_s, self.objective.most_cost_usd_per_million_samples
        slow = floor is not None and self.view.global_batch / rough.step_s < 1.02 * floor
        dear = most is not None and rough.usd_per_hour * rough.step_s / 3600 / self.view.global_batch * 1e6 > most
        weight = {"cost": rough.usd_per_hour, "energy": rough.watts}.get(self.objective.metric, 1.0)
        return slow or dear, weight * rough.step_s, rough.step_s

    def refusal(self, found: Sequence[Estimate]) -> Infeasible:
        """Why no plan that was found is allowed."""
        batch = self.view.global_batch
        fastest = max(batch / each.step_s for each in found)
        paid = [each.usd_per_million_samples for each in found if each.usd_per_million_samples is not None]
        least = f"{min(paid):.6g} USD per million samples" if paid else "an unknown cost, for lack of prices"
        problem = (
            f"no plan was found that keeps its bounds: the fastest has {fastest:.6g} samples/s, the cheapest {least}"
        )
        return Infeasible("objective", problem, "lower the floor, raise the budget, or add devices")


def _plain_splits(judge: Judge) -> Iterator[Plan]:
    """Plans of simpler policies that are good of their kind: whatever else is found has to beat them."""
    few = len(judge.view.devices) <= FEW
    simple: list[Policy] = [Makespan(leave_out=few)]
    if few:
        simple += [Cannikin(), Poplar(), Cephalo()]
    if len(judge.view.devices) <= FEWEST:
        simple.append(CutExact())
    if len(judge.view.devices) <= SOME and footprint.branches(judge.view.workload):
        simple.append(AttentionOperators())
    for policy in simple:
        try:
            plan = policy.allocate(judge.view)
        except Infeasible:
            continue
        if judge.fits(plan):
            yield plan


def _in_chunks(judge: Judge, foundry: Foundry, found: Sequence[Judged]) -> list[Judged]:
    """The best plans of several stages, interleaved."""
    deep = [each for each in found if judge.allows(each[1]) and len(each[0].pipelines[0].stages) > 1]
    best = sorted(deep, key=lambda each: judge.order(each[1]))[:SPLIT]
    plans = [plan for flat, _ in best for plan in interleaved(foundry, flat, judge.fits)]
    return [(plan, judge.estimator.of(plan)) for plan in plans]


def _bucketed(judge: Judge, found: Sequence[Judged]) -> list[Judged]:
    """Plans with smaller messages of gradients: the last one, which nothing hides, is shorter then."""
    plans = [other for plan, _ in found for other in rebucketed(plan)]
    judged = [(plan, judge.estimator.of(plan)) for plan in plans if not plan.zero or judge.fits(plan)]
    return list(filter(judge.admits, judged))


def _leading(judge: Judge, rough: Iterable[Rough], count: int) -> Iterator[Fleet]:
    """The best fleets by their rough estimates."""
    ranked = sorted(rough, key=judge.roughly)
    yield from (each.fleet for each in ranked[:count])


def improved(judge: Judge, best: Judged, moves: int) -> Judged:
    """A plan after changes that help, as long as tries last: of micro-batches, of one cut, or of samples."""
    while moves > 0:
        before = best
        for plan in changes(best[0]):
            if moves <= 0:
                break
            moves -= 1
            if judge.fits(plan):
                estimate = judge.estimator.of(plan)
                if judge.allows(estimate) and judge.order(estimate) < judge.order(best[1]):
                    best = plan, estimate
                    break
        if best is before:
            break
    return best


def looked_at(judge: Judge, layouts: Layouts, best_s: float = math.inf, most: int = 0) -> list[Judged]:
    """Layouts as plans, with their close estimates; with throughput for objective, none that cannot be the best.

    Args:
        judge: estimates.
        layouts: all of them.
        best_s: the step that they have to beat.
        most: so many at most, those with the least floors; 0: all.
    """
    prunes = not (judge.saves or judge.bounded)
    best_s, seen = best_s if prunes else math.inf, list[Judged]()
    for layout in layouts.within(best_s, most):
        if most and layout.about_s > HOPELESS * best_s:
            break
        if layout.least_s >= best_s:
            continue
        plan = layout.plan()
        if judge.fits(plan):
            seen.append((plan, judge.estimator.of(plan)))
            best_s = min(best_s, seen[-1][1].step_s) if prunes else best_s
    return seen


def best_of(judge: Judge, foundry: Foundry, found: Sequence[Judged]) -> Judged:
    """The best of some plans by their estimates.

    Raises:
        Infeasible: there are none, for lack of memory; or none keeps the objective's floor and budget.
    """
    if not found:
        raise nothing_fits(judge.view, foundry)
    allowed = [each for each in found if judge.allows(each[1])]
    if not allowed:
        raise judge.refusal([estimate for _, estimate in found])
    return min(allowed, key=lambda each: judge.order(each[1]))


def nothing_fits(view: View, foundry: Foundry) -> Infeasible:
    """Why there is no plan: what is missing on the device with the most memory."""
    most = max(foundry.kinds, key=lambda kind: kind.device.memory_bytes)
    total = sum(kind.count * kind.device.memory_bytes for kind in foundry.kinds)
    states = view.workload.state_bytes
    problem = (
        f"fits nowhere with a sample of activations: its states take {states / 2**30:.4g} GiB, the devices have "
        f"{total / 2**30:.4g} GiB, the largest ({most.device.name}) {most.device.memory_bytes / 2**30:.4g} GiB"
    )
    return Infeasible("workload.model", problem, "use a smaller model, more devices, or more memory")
