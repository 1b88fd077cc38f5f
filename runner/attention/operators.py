"""What attention over operators is held against: rules of list scheduling, the exact placement, the best known one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...policies import make_policy
from ...policies._base import canonical
from ...policies.exact_schedule import best_timetable
from ...policies.graphs import plan_of, tasks_of
from ...policies.list_schedules import in_order
from ...policies.tasks import Tasks, Timetable
from ...results.ledger import quantiles
from ...sim.engine import run_launches, step_durations
from ...sim.memory import BUFFERS
from ...sim.noise import stream
from ...sim.plan import Infeasible, Plan, PlanError, micro_batches
from ...sim.schedule import Kind
from ...sim.spec import Scenario
from ...sim.times import layer_times
from ...sim.view import Policy, View
from ...sim.workload import at

EXACT_PLACEMENT = "exact (branch and bound)"
BEST_KNOWN = "best known"
RULES = ("place-single", "m-topo", "m-etf", "heft")
BASES = ("heft", "attention-operators", "m-etf", "m-topo")
"""HEFT is what training compares with; where it has no plan, another."""
WITHIN = 1e-4
"""The exact placement may be slower than the best by this share of a step."""
BEGINNINGS, MOVES = 3, 3000
"""Plans from which the search for the best known placement begins, and changes that it tries from each."""


def operator_contestants(tuned: dict[str, Any]) -> dict[str, Policy]:
    """What is compared, by the label of its row.

    Args:
        tuned: parameters of attention-operators that were looked for on training graphs.
    """
    return {
        **{name: make_policy(name) for name in RULES},
        "attention-operators, one head": make_policy("attention-operators", {"heads": 1, "rounds": 1}),
        "attention-operators": make_policy("attention-operators"),
        "attention-operators, tuned": make_policy("attention-operators", tuned),
    }


def cutting_contestants(tuned: dict[str, Any]) -> dict[str, Policy]:
    """The same policy where it may cut the batch into micro-batches, which no other does without need."""
    return {
        "attention-operators, tuned, micro-batches": make_policy("attention-operators", {**tuned, "micro_batches": 64})
    }


def step_s(scenario: Scenario, plan: Plan) -> float:
    """Simulated seconds of a plan's step; infinite where it is not valid."""
    try:
        plan.check(scenario)
    except PlanError:
        return math.inf
    done = run_launches(scenario, plan, seed=scenario.seed, launches=1, record=False)
    return quantiles(step_durations(done)).p50


@dataclass(frozen=True)
class _Bench:
    """A view's layers as tasks, and what a timetable of them is worth by the engine."""

    view: View
    sizes: list[int]
    scenario: Scenario
    known: dict[str, float] = field(default_factory=dict)
    """Simulated steps by the digest of the plan."""

    @classmethod
    def of(cls, view: View) -> _Bench:
        """With the micro-batches that the workload's limit asks for."""
        scenario = Scenario(name="graph", cluster=view.cluster, workload=view.workload, seed=view.seed)
        return cls(canonical(view), micro_batches(view.global_batch, view.workload.max_micro_batch), scenario)

    def plan(self, table: Timetable) -> Plan:
        """What the policies make of a timetable."""
        return plan_of(self.view, table, "gpipe", self.sizes)

    def step_s(self, plan: Plan) -> float:
        """Its simulated step."""
        if plan.sha256 not in self.known:
            self.known[plan.sha256] = step_s(self.scenario, plan)
        return self.known[plan.sha256]

    def changed(self, plan: Plan, draws: np.random.Generator) -> Plan:
        """What :func:`improved` makes of a plan, with its micro-batches."""
        kind: Kind = "accumulate" if plan.schedule == "accumulate" else "gpipe"
        sizes = plan.pipelines[0].micro_batches
        table = table_of(self.view, tasks_of(self.view, kind, sizes), plan)
        return plan_of(self.view, improved(table, draws, MOVES), kind, sizes)

    def best(self, policies: Sequence[Policy]) -> list[Plan]:
        """The plans of those that have one, the fastest first."""
        found: dict[str, Plan] = {}
        for policy in policies:
            try:
                plan = policy.allocate(self.view)
            except Infeasible:
                continue
            found.setdefault(plan.sha256, plan)
        return sorted(found.values(), key=self.step_s)


@dataclass(frozen=True)
class ExactPlacement:
    """The fastest placement by the engine, within :data:`WITHIN`, of graphs of some ten operators in one micro-batch.

    Branch and bound below bounds that the engine keeps to: no transfer is faster than alone on its links, the backward
    pass goes each way back, and whoever begins a way has updates to do. Whatever those bounds leave is simulated. Equal
    devices of a machine are taken to be exchangeable: machines have one adapter.
    """

    others: tuple[Policy, ...]
    """Their plans are beaten, or equalled."""
    proofs: dict[str, bool] = field(default_factory=dict)
    """By the workload, whether the search came to its end."""

    def allocate(self, view: View) -> Plan:
        """The placement.

        Raises:
            Infeasible: there is none.
        """
        made = _Bench.of(view)
        begin = made.best(self.others)
        tasks = least_tasks(made.view, made.sizes)
        places = [(view.cluster.kinds[each.name], view.cluster.node_of[each.name]) for each in made.view.devices]
        known = made.step_s(begin[0]) if begin else math.inf
        found = best_timetable(
            tasks,
            lambda table: made.step_s(made.plan(table)),
            fits=Rooms.of(made.view, tasks, made.sizes),
            updates=updates_s(made.view),
            known=known,
            within=WITHIN,
            alike=[places.index(place) for place in places],
        )
        self.proofs[view.workload.text] = found.proven
        if found.table is not None:
            return made.plan(found.table)
        if not begin:
            raise Infeasible("workload.model", "there is no placement", "use a smaller batch or more memory")
        return begin[0]


def least_tasks(view: View, sizes: Sequence[int]) -> Tasks:
    """Tasks that take no longer, and no more room, than the engine lets the layers of a single micro-batch take."""
    workload = view.workload
    models = [workload.model.model_copy(update={"layers": [layer]}) for layer in workload.layers]
    apart = [workload.model_copy(update={"model": model}) for model in models]
    room = [each.state_bytes + sizes[0] * each.activation_bytes_per_sample for each in apart]
    return replace(tasks_of(view, "gpipe", sizes, updates=False), sizes=[each * (1 - 1e-12) for each in room])


def updates_s(view: View) -> list[list[float]]:
    """Per layer and device of a view, the seconds of its part of the update.

    A device does all of its updates between the last backward pass of a step and the first forward pass of the next;
    so a step takes at least any way forth and back, and the updates of the device that the way begins on.
    """
    devices = [view.cluster.by_name[device.name] for device in view.devices]
    columns = [layer_times(device, view.workload, view.global_batch).optimizer_s for device in devices]
    found: list[list[float]] = np.column_stack(columns).tolist()
    return found


@dataclass(frozen=True)
class Rooms:
    """Whether devices may hold the tasks that they were given: no plan takes less than is counted here."""

    tasks: Tasks
    outputs: Sequence[float]
    """Bytes of each task's output."""
    buffers: Sequence[float]
    """Bytes of each task's output, or of its gradient, in receive buffers."""

    @classmethod
    def of(cls, view: View, tasks: Tasks, sizes: Sequence[int]) -> Rooms:
        """For a single micro-batch."""
        workload = view.workload
        outputs = [
            at(layer.output_elements, workload.sequence_length) * workload.element_bytes * sizes[0] * (1 - 1e-12)
            for layer in workload.layers
        ]
        return cls(tasks, outputs, [BUFFERS * each for each in outputs])

    def __call__(self, devices: Sequence[int], task: int) -> bool:
        """Whether the devices may hold their tasks, whose room the task that came last takes a part of."""
        touched = {devices[task], *(devices[source] for source in self.tasks.inputs[task])}
        return all(self._least(devices, device) <= self.tasks.room[device] for device in touched)

    def _least(self, devices: Sequence[int], device: int) -> float:
        """Bytes that a device holds at least: states, activations, outputs for later stages, the largest buffers."""
        held, largest = 0.0, 0.0
        for task in (each for each, own in enumerate(devices) if own == device):
            readers = [devices[reader] for reader in self.tasks.readers[task]]
            away = {each for each in readers if each not in (device, -1)}
            buffers = self.buffers[task] * len(away)
            buffers += sum(self.buffers[source] for source in self.tasks.inputs[task] if devices[source] != device)
            kept = len(readers) > 1 and device not in readers and -1 not in readers
            held += self.tasks.sizes[task] + self.outputs[task] * kept
            largest = max(largest, buffers)
        return held + largest


@dataclass(frozen=True)
class BestKnown:
    """The fastest of some policies' plans, and of what changes of single operators make of the best of them."""

    others: tuple[Policy, ...]

    def allocate(self, view: View) -> Plan:
        """The placement.

        Raises:
            Infeasible: none of the policies has one.
        """
        made = _Bench.of(view)
        begin = made.best(self.others)
        if not begin:
            raise Infeasible("workload.model", "no policy has a placement", "use a smaller batch or more memory")
        draws = stream(view.seed, "best known", view.workload.key)
        return min([*begin, *(made.changed(plan, draws) for plan in begin[:BEGINNINGS])], key=made.step_s)


def table_of(view: View, tasks: Tasks, plan: Plan) -> Timetable:
    """The timetable of a plan of one pipeline of whole devices."""
    pipeline, places = plan.pipelines[0], {device.name: number for number, device in enumerate(view.devices)}
    order = range(len(pipeline.stages)) if pipeline.order is None else pipeline.order
    stages = [pipeline.stages[number] for number in order]
    where = {layer: places[s.replicas[0].devices[0]] for s in stages for layer in range(s.first, s.last)}
    return in_order(tasks, [where[layer] for layer in range(tasks.count)], list(where))


def improved(table: Timetable, draws: np.random.Generator, moves: int) -> Timetable:
    """A timetable after so many changes at random, of which those stay that make no step longer.

    An operator goes to another device with room for it, or to another place in the order that its edges allow.
    """
    tasks, best = table.tasks, table
    devices, sequence = list(table.device), table.sequence
    for _ in range(moves):
        task, change = int(draws.integers(tasks.count)), _moved if draws.integers(2) else _reordered
        tried = change(tasks, devices, sequence, task, draws)
        if tried is None:
            continue
        found = in_order(tasks, *tried)
        if found.step_s <= best.step_s and min(found.left) >= 0:
            best, (devices, sequence) = found, tried
    return best


Tried = tuple[list[int], list[int]]
Change = Callable[[Tasks, list[int], list[int], int, np.random.Generator], Tried | None]


def _moved(
    tasks: Tasks, devices: list[int], sequence: list[int], task: int, draws: np.random.Generator
) -> Tried | None:
    """Another device."""
    there = int(draws.integers(len(tasks.devices)))
    return None if there == devices[task] else ([*devices[:task], there, *devices[task + 1 :]], sequence)


def _reordered(
    tasks: Tasks, devices: list[int], sequence: list[int], task: int, draws: np.random.Generator
) -> Tried | None:
    """Another place between those that feed the operator and those that read it."""
    others = [each for each in sequence if each != task]
    places = {each: number for number, each in enumerate(others)}
    first = max((places[source] + 1 for source in tasks.inputs[task]), default=0)
    last = min((places[reader] for reader in tasks.readers[task]), default=len(others))
    place = int(draws.integers(first, last + 1))
    return devices, [*others[:place], task, *others[place:]]
