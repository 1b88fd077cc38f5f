"""exhaust(): very many seeded scenarios, each given to some policies in turn: the rules that need no simulation."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ...results.errors import InputError
from ...sim.noise import stream
from ...sim.spec import Scenario, scenario_from
from ...sim.view import Policy
from .. import policy_class
from .._base import Choice, Parameter, Range, parameters
from .generator import make_scenario, spoil
from .pasts import make_past, remember
from .rules import BrokenError, judged
from .worlds import scenario_toml

T = TypeVar("T")
Progress = Callable[[int, int], None]
CHUNK = 250
"""Scenarios per task: what a worker has cached goes with it."""
SPOILED = 20
"""Of so many scenarios, one on average is tried with a link that carries nothing too."""
SPOILT = "(a spoiled scenario)"
"""Stands for a policy where a spoiled scenario was not refused as it should be."""
SHOWN = 3
"""Counter-examples that are kept of each policy."""


@dataclass
class Tally:
    """What came of it, per policy; ``invalid`` holds a count of answers that break a rule."""

    scenarios: int = 0
    spoiled: int = 0
    """Scenarios that were tried with a link of no bandwidth too, and refused in one clear line."""
    plans: Counter[str] = field(default_factory=Counter)
    infeasible: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)
    broken: list[dict[str, Any]] = field(default_factory=list)
    """The first counter-examples: name, policy, problem, scenario as TOML."""

    def add(self, other: Tally) -> None:
        """Take another tally in."""
        self.scenarios += other.scenarios
        self.spoiled += other.spoiled
        for name in ("plans", "infeasible", "invalid"):
            getattr(self, name).update(getattr(other, name))
        for each in other.broken:
            self.show(each)

    def show(self, counter_example: dict[str, Any]) -> None:
        """Keep a counter-example, unless there are enough of its policy."""
        if sum(each["name"] == counter_example["name"] for each in self.broken) < SHOWN:
            self.broken.append(counter_example)

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("plans", "infeasible", "invalid")}
        answers = {f"{name}_total": sum(each.values()) for name, each in counts.items()}
        return {"scenarios": self.scenarios, "spoiled": self.spoiled, **answers, **counts, "broken": self.broken}


class Seeded:
    """Choices of a random stream."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def pick(self, options: Sequence[T]) -> T:
        """One of some options."""
        return options[int(self._random.integers(len(options)))]

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self._random.integers(low, high + 1))

    def real(self, low: float, high: float) -> float:
        """A number, both ends included."""
        return float(self._random.uniform(low, high))


def exhaust(
    names: Sequence[str],
    *,
    scenarios: int,
    each: int = 1,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Tally:
    """Ask policies for plans of seeded scenarios, at the start and with a past, and judge every answer.

    Scenario number n of a seed is always the same, and so is what is asked of it: a part can be repeated alone.

    Args:
        names: of policies, as :func:`~steelyard.policies.policy_class` takes them.
        scenarios: how many.
        each: policies that get each scenario; they take turns.
        seed: of scenarios, parameters and pasts.
        workers: processes; 1: this one.
        progress: called with scenarios done and scenarios in all.
    """
    tasks = [
        (tuple(names), min(each, len(names)), seed, first, min(first + CHUNK, scenarios))
        for first in range(0, scenarios, CHUNK)
    ]
    total = Tally()
    for part in _parts(tasks, workers):
        total.add(part)
        if progress is not None:
            progress(total.scenarios, scenarios)
    return total


Task = tuple[tuple[str, ...], int, int, int, int]


def _parts(tasks: Sequence[Task], workers: int) -> Iterator[Tally]:
    """The tallies of the tasks, in order."""
    if workers < 2:
        yield from map(_part, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=40) as pool:
        yield from pool.imap(_part, tasks)


def _part(task: Task) -> Tally:
    """Some scenarios in a row."""
    names, each, seed, first, last = task
    tally = Tally()
    for number in range(first, last):
        scenario = make_scenario(Seeded(stream(seed, "scenario", number)))
        tally.scenarios += 1
        chance = Seeded(stream(seed, "spoiled", number))
        if chance.whole(1, SPOILED) == 1:
            _refuse(tally, scenario, chance)
        for turn in range(each):
            name = names[(number * each + turn) % len(names)]
            _ask(tally, name, scenario, Seeded(stream(seed, "policy", number, turn)))
    return tally


def _refuse(tally: Tally, scenario: Scenario, choices: Seeded) -> None:
    """A scenario with a link of no bandwidth: an input error in one line that names the figure."""
    document, path = spoil(choices, scenario)
    try:
        scenario_from(document)
        problem = "was accepted"
    except InputError as error:
        if error.path == path and "\n" not in str(error):
            tally.spoiled += 1
            return
        problem = f"is told as {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no clear line
        problem = f"raised {type(error).__name__}: {error}"
    tally.invalid[SPOILT] += 1
    shown = {"name": SPOILT, "policy": SPOILT, "problem": f"{path} without bandwidth {problem}"}
    tally.show({**shown, "scenario_toml": scenario_toml(scenario)})


def _ask(tally: Tally, name: str, scenario: Scenario, choices: Seeded) -> None:
    """One policy with one scenario, and every fourth time once more with a past."""
    policy = make_policy_at_random(policy_class(name), choices)
    try:
        plan = judged(policy, scenario)
        memory = remember(scenario, plan, make_past(choices)) if plan and choices.whole(0, 3) == 0 else None
        if memory is not None:
            judged(policy, scenario, memory.view(scenario), " when asked with a past")
    except BrokenError as broken:
        tally.invalid[name] += 1
        text = scenario_toml(scenario)
        tally.show({"name": name, "policy": repr(policy), "problem": str(broken), "scenario_toml": text})
        return
    (tally.infeasible if plan is None else tally.plans)[name] += 1


def make_policy_at_random(kind: type, choices: Seeded) -> Policy:
    """A policy of a class: one in three as it is by default, else with searchable parameters within their ranges."""
    spaces = [] if choices.whole(0, 2) == 0 else [each for each in parameters(kind) if each.space is not None]
    policy: Policy = kind(**{each.name: _value(each, choices) for each in spaces})
    return policy


def _value(parameter: Parameter, choices: Seeded) -> Any:
    """A value in a parameter's range, in its scale; one time in four an end of it."""
    space = parameter.space
    if isinstance(space, Choice):
        return choices.pick(space.options)
    assert isinstance(space, Range), "only parameters with a range are drawn"
    low, high = space.low, space.high
    if choices.whole(0, 3) == 0:
        value = choices.pick((low, high))
    elif space.log:
        value = min(max(float(np.exp(choices.real(float(np.log(low)), float(np.log(high))))), low), high)
    else:
        value = choices.real(low, high)
    return round(value) if parameter.type is int else float(value)
