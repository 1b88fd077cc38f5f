"""Followed: one complete launch of a run whose plan may change, and what disturbed and slowed its lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Fixed
from .condition import stolen_percent
from .course import Course
from .launch import LaunchResult
from .protocol import Measurement


@dataclass(frozen=True)
class Followed:
    """One complete launch: which contender's, how the driver followed it, and what the workers measured."""

    index: int
    course: Course
    launch: LaunchResult

    def document(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {
            "index": self.index,
            "number": self.course.number,
            "plans": [[first, plan.document()] for first, plan in self.course.plans],
            "history": self.course.history,
            "decisions": self.course.decisions,
            "tasks": list(self.launch.tasks),
            "answers": self.launch.answers,
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any], scenario: Scenario) -> Self:
        """What :meth:`document` gave."""
        plans = [(int(first), Plan.parse(plan)) for first, plan in document["plans"]]
        course = Course(
            scenario,
            Fixed(plans[0][1]),  # it has been asked
            number=document["number"],
            plans=plans,
            history=document["history"],
            decisions=document["decisions"],
        )
        return cls(document["index"], course, LaunchResult(document["tasks"], document["answers"]))


def circumstances(measurement: Measurement, followed: Sequence[Followed]) -> dict[str, Any]:
    """How a run was measured, what disturbed it, how lanes were slowed, and whether the host changed meanwhile."""
    before, after = measurement.before, measurement.after
    stolen = stolen_percent(before, after) if after else None
    contended = contended_percent(followed)
    reasons = measurement.busy_reasons(contended)
    return {
        "contention": {"busy": bool(reasons), "reasons": reasons, "contended_percent": contended},
        "slowed_by": slowed_by(followed),
        "protocol": {
            "launches": len(followed),
            "reason": measurement.reason,
            "before": before,
            "after": after,
            "stolen_percent": stolen,
        },
    }


def contended_percent(followed: Sequence[Followed]) -> float:
    """Percent of the lanes' compute segments that something else on the host disturbed; lanes count alike."""
    answers = [own[0] for each in followed for own in each.launch.answers]
    shares: list[float] = [answer.get("contended", 0.0) for answer in answers if any(answer["steps"])]
    return 100 * sum(shares) / len(shares)


def slowed_by(followed: Sequence[Followed]) -> dict[str, list[str]]:
    """Lanes that were slowed, and by which means: ``quota`` of processor time, ``loop`` that keeps it busy."""
    found: dict[str, set[str]] = {}
    for each in followed:
        for name, (answer,) in zip(each.course.names, each.launch.answers, strict=True):
            if means := answer.get("slowed_by"):
                found.setdefault(name, set()).update(means)
    return {name: sorted(means) for name, means in found.items()}


def slowing_notes(followed: Sequence[Followed]) -> list[str]:
    """What a reader must know of lanes that were not slowed by a quota."""
    looped = [name for name, means in slowed_by(followed).items() if "loop" in means]
    how = "by a loop that kept the processor busy: no quota of its time could be had for that"
    return [f"{', '.join(looped)}: slowed {how}"] if looped else []
