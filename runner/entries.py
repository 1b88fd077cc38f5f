"""Entries: the plans that are replayed, each with its label, the policy that made it, and its prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..results.record import PolicyRecord, Run
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Policy, View, allocate, describe
from ..sim.workload import Workload
from .execution import division
from .held_out import sizes_in
from .launch import Task
from .protocol import Subject, spread_out
from .runnable import refuse_lanes


@dataclass(frozen=True)
class Entry:
    """One plan to run: its label, the policy that made it, and the prediction once that is written."""

    label: str
    record: PolicyRecord
    plan: Plan
    prediction: Run | None = None
    twin_of: str | None = None
    gradient_error: float | None = None
    """Distance of its gradient from a single process's, by norm over the whole vector, as a share; None: not proven."""
    exact_gradient_error: float | None = None
    """The same in fp64, where fp32 alone did not prove it."""

    def division(self, workload: Workload, names: Sequence[str]) -> Task:
        """What the workers are told of the plan: sizes by rank where it is plain data parallelism, else a program.

        Raises:
            PlanError: torch cannot run it.
        """
        return division(self.plan, workload, names)

    @property
    def predicted_s(self) -> float:
        """Predicted median of a step, in seconds."""
        assert self.prediction is not None, "asked before the plan was simulated"
        return self.prediction.summary.step_time_s.p50


def distinct_entries(scenario: Scenario, policies: Sequence[Policy]) -> tuple[list[Entry], list[str]]:
    """One entry per different plan, in the order of the policies, and a note for each plan that came up again."""
    entries: dict[str, Entry] = {}
    notes = []
    view, names = View.of(scenario), [device.name for device in scenario.cluster.devices]
    for policy in policies:
        plan = allocate(policy, view, scenario)
        refuse_lanes(scenario, division(plan, scenario.workload, names))
        record = describe(policy)
        label = unused_label(record.label(), {entry.label for entry in entries.values()})
        first = entries.setdefault(plan.sha256, Entry(label, record, plan))
        if first.record != record:
            notes.append(f"{record.label()} makes the same plan as {first.label}: measured once")
    return list(entries.values()), notes


def unused_label(label: str, used: set[str]) -> str:
    """The label, numbered where another plan has it: parameters that differ may look alike when rounded."""
    numbered = (f"{label} #{number}" for number in itertools.count(2))
    return label if label not in used else next(each for each in numbered if each not in used)


def plans_of(entries: Iterable[Entry]) -> list[Plan]:
    """The plans of some entries."""
    return [entry.plan for entry in entries]


def subjects_of(scenario: Scenario, entries: Sequence[Entry]) -> list[Subject]:
    """What the workers are told of each plan, and how long a step of it is expected to take."""
    names = [device.name for device in scenario.cluster.devices]
    return [
        Subject(entry.division(scenario.workload, names), entry.predicted_s, sorted(sizes_in([entry.plan])))
        for entry in entries
    ]


def twins(entries: Sequence[Entry], count: int) -> list[Entry]:
    """The A/A twins: plans measured a second time as if they were others, the one predicted to be fastest first."""
    chosen = [entries[index] for index in spread_out([entry.predicted_s for entry in entries], count)]
    return [replace(each, label=f"{each.label} (twin)", twin_of=each.label) for each in chosen]
