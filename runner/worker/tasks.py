"""All tasks by name: a new family is a module with a ``TASKS`` table and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import balancing, course, operators, proof, saving, speed, timing, training
from .member import Member

Operation = Callable[[Member, dict[str, Any]], dict[str, Any]]
"""Takes the member and its task, and gives back something JSON can hold."""

FAMILIES: tuple[Mapping[str, Operation], ...] = (
    course.TASKS,
    proof.TASKS,
    speed.TASKS,
    timing.TASKS,
    training.TASKS,
    saving.TASKS,
    balancing.TASKS,
    operators.TASKS,
)

TASKS: dict[str, Operation] = {name: operation for family in FAMILIES for name, operation in family.items()}
