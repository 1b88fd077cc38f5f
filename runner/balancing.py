"""Balancing: a training whose policy is asked again under way, about steps that have not been trained yet.

The questions are those of replays whose plans may change (:mod:`.course`), between the same chunks of steps as the
checkpoints. What a plan is changed to is written down before any worker hears of it, so that whoever goes on after a
fault goes on with it. What the policy has seen lives as long as the driver: after a kill it begins to see anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..policies import make_policy
from ..results.errors import InputError
from ..sim.adaptive import is_adaptive
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Policy
from .course import Answering, Course
from .launch import Task
from .live import Listen
from .places import new_place
from .training_folder import About

Told = Callable[[int, Plan, Task], Task]
"""Gets a step, the plan from there on, and what the workers are told of that; gives what they are told in all."""


def asks_again(scenario: Scenario, policy: Policy) -> bool:
    """Whether a policy is asked again while a scenario is trained."""
    return scenario.rebalance is not None and scenario.rebalance.at_most > 0 and is_adaptive(policy)


def course_of(scenario: Scenario, policy: Policy) -> Course:
    """A training as a run whose plan may change: as many steps as it has."""
    sampling = scenario.sampling.model_copy(update={"steps": scenario.training.steps})
    found = Course(scenario.model_copy(update={"sampling": sampling, "disturbances": []}), policy)
    found.changes_left = scenario.rebalance.at_most if scenario.rebalance is not None else 0
    return found


@dataclass(frozen=True)
class Balancing:
    """The questions of one training, over all of its launches."""

    course: Course

    @classmethod
    def of(cls, about: About, policy: Policy | None) -> Self | None:
        """That of a training; None where its policy is not asked again.

        Args:
            about: the training.
            policy: its policy; None: made anew from its name and parameters.

        Raises:
            InputError: the policy is none that this version knows by its name.
        """
        if not about.adapts:
            return None
        try:
            policy = make_policy(about.policy.name, about.policy.parameters) if policy is None else policy
        except InputError as error:
            problem = "is asked again while it trains, and is none that is known here"
            raise InputError(f"policy {about.policy.name}", problem, "name it with --policy") from error
        return cls(course_of(about.scenario, policy))

    @property
    def points(self) -> list[int]:
        """Steps before which the policy is asked, where it may change its plan once more."""
        return self.course.points if self.course.changes_left else []

    @contextmanager
    def questions(self, step: int, about: About, told: Told) -> Iterator[tuple[Path, Listen]]:
        """For one launch: where the workers lay their questions down, and what must hear their lines.

        Args:
            step: that the launch begins with; what was seen of later ones is forgotten, as they are done again.
            about: the training by then.
            told: is asked before any answer.
        """
        self.course.go_on(step, about.divided, changes=about.plan_changes)
        place = new_place()
        try:
            yield place, Answering(self.course, place, len(self.course.names), told).hear
        finally:
            shutil.rmtree(place, ignore_errors=True)
