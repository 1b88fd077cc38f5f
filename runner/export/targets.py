"""Targets: the frameworks that a plan can be exported to, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...results.errors import InputError
from ...sim.plan import Plan
from ...sim.spec import Scenario
from . import deepspeed, fsdp, megatron, torchtitan
from .shape import Problem, Shape, canonical


@dataclass(frozen=True, kw_only=True)
class Target:
    """A framework: what it cannot be told of a plan, the files that tell it the rest, and the way back."""

    name: str
    source: str
    """The version whose sources were read."""
    problems_of: Callable[[Plan, Scenario], Iterable[Problem]]
    unfit: Callable[[Scenario], Iterable[Problem]]
    """What of the model cannot be said, whatever the plan."""
    files: Callable[[Shape, Scenario], dict[str, str]]
    """File names and texts; a pure function of shape and scenario."""
    read: Callable[[Mapping[str, str], int], Shape]
    """The shape that files tell, given the number of layers."""
    notes: Callable[[Scenario], list[str]]

    def problems(self, plan: Plan, scenario: Scenario) -> list[Problem]:
        """What of a plan cannot be said; empty: all of it can.

        Raises:
            InputError: no plan of this workload can be said.
        """
        return list(self.problems_of(canonical(plan), scenario))

    def import_plan(self, texts: Mapping[str, str], scenario: Scenario) -> Plan:
        """The plan that files tell, in canonical form.

        Raises:
            InputError: the files are not those that :attr:`files` writes.
        """
        return self.read(texts, len(scenario.workload.layers)).plan()


TARGETS: dict[str, Target] = {
    module.NAME: Target(
        name=module.NAME,
        source=module.SOURCE,
        problems_of=module.problems,
        unfit=module.unfit,
        files=module.files,
        read=module.read,
        notes=module.notes,
    )
    for module in (megatron, torchtitan, deepspeed, fsdp)
}


def target_of(name: str) -> Target:
    """A target by its name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in TARGETS:
        raise InputError("--to", f"{name!r} is no target", f"one of {', '.join(TARGETS)}")
    return TARGETS[name]
