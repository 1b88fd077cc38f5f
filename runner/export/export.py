"""export(): a plan, wanted for a scenario, as files of a framework, with what they cannot say and what that costs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...results.errors import InputError
from ...results.record import PolicyRecord
from ...results.store import code_provenance, read_run, to_json, whole_folder
from ...sim.plan import Plan
from ...sim.spec import Scenario, scenario_from
from .nearest import nearest, step_s
from .shape import Problem, Shape, canonical
from .targets import Target

REPORT, PLAN = "export.json", "plan.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export comes to: the files, and how far the plan in them is from the one that was wanted."""

    target: str
    source: str
    wanted: Plan
    plan: Plan
    problems: list[Problem]
    """What the framework cannot be told of the wanted plan; empty: it can be told all of it."""
    unfit: list[Problem]
    """What it cannot be told of the model, whatever the plan."""
    changed: list[str]
    wanted_step_s: float
    step_s: float
    files: dict[str, str]
    notes: list[str]

    @property
    def loss_percent(self) -> float:
        """How much longer a step of the exported plan takes in simulation; below 0: it is faster."""
        return 100 * (self.step_s / self.wanted_step_s - 1)

    @property
    def not_expressible(self) -> list[Problem]:
        """All that it cannot be told; empty: it runs exactly what is wanted."""
        return [*self.unfit, *self.problems]

    def document(self) -> dict[str, Any]:
        """All but the files' texts, as ``export.json`` holds it."""
        return {
            "schema_version": 1,
            "target": self.target,
            "sources_read": self.source,
            "exact": not self.not_expressible,
            "not_expressible": [problem._asdict() for problem in self.not_expressible],
            "changed": self.changed,
            "wanted_plan_sha256": self.wanted.sha256,
            "wanted_step_time_s": self.wanted_step_s,
            "plan_sha256": self.plan.sha256,
            "step_time_s": self.step_s,
            "loss_percent": self.loss_percent,
            "files": sorted(self.files),
            "notes": self.notes,
        }


def export(plan: Plan, scenario: Scenario, target: Target) -> Exported:
    """The files with which a framework runs a plan, or the nearest one that it can be told.

    Raises:
        InputError: it can run no plan of the workload, or none that is like this one.
        PlanError: the plan breaks a rule of the scenario.
    """
    plan.check(scenario)
    wanted_s = step_s(scenario, plan)
    problems = target.problems(plan, scenario)
    if problems:
        close = nearest(plan, scenario, target)
        chosen, changed, seconds = close.plan, close.changed, close.step_s
    else:
        chosen, changed, seconds = canonical(plan), [], wanted_s
    shape = Shape.of(chosen)
    return Exported(
        target=target.name,
        source=target.source,
        wanted=plan,
        plan=chosen,
        problems=problems,
        unfit=list(target.unfit(scenario)),
        changed=changed,
        wanted_step_s=wanted_s,
        step_s=seconds,
        files=target.files(shape, scenario),
        notes=target.notes(scenario),
    )


def write(found: Exported, folder: Path) -> Path:
    """Write the files, the plan and the report into a new folder: all of them or none.

    Raises:
        InputError: the folder exists, or there is no room for it.
    """
    if folder.exists():
        raise InputError(str(folder), "exists", "choose another folder with --out, or remove it")
    report = {**found.document(), "code": code_provenance()}
    with whole_folder(folder) as place:
        for name, text in found.files.items():
            (place / name).write_text(text, encoding="utf-8")
        (place / PLAN).write_text(to_json(found.plan.document()), encoding="utf-8")
        (place / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return folder


def planned_run(folder: Path) -> tuple[Plan, Scenario, PolicyRecord]:
    """Plan, scenario and policy of a run folder.

    Raises:
        InputError: it is no run folder.
    """
    run = read_run(folder)
    return Plan.parse(run.plan), scenario_from(run.manifest.scenario), run.manifest.policy
