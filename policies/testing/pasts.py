"""Pasts: what a policy has seen of its plan when it is asked again; devices are slow, and one may be lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...sim.disturbances import Rebalance
from ...sim.plan import Plan
from ...sim.spec import Scenario
from ...sim.view import View
from .generator import Choices
from .worlds import renamed_plan

FACTORS = (1.0, 1.5, 3.0, 0.5)
STEPS_LEFT = 50


@dataclass(frozen=True)
class Past:
    """Steps of a plan in any scenario: how many, how slow the devices are in turn, whether the first one is lost."""

    steps: int
    factors: tuple[float, ...]
    lost: bool

    def __str__(self) -> str:
        """What happened, in a few words."""
        slow = ", ".join(f"{factor:g}" for factor in self.factors)
        return f"{self.steps} steps, times x {slow} in turn{', the first device lost' * self.lost}"


@dataclass(frozen=True)
class Memory:
    """The past of one plan on one cluster: who is gone, the plan so far, the measured steps."""

    gone: frozenset[str]
    plan: Plan
    history: tuple[dict[str, Any], ...]

    def renamed(self, names: Mapping[str, str]) -> Memory:
        """The same past, its devices under other names."""
        steps = tuple(
            {**each, "devices": {names[name]: entry for name, entry in each["devices"].items()}}
            for each in self.history
        )
        return Memory(frozenset(names[name] for name in self.gone), renamed_plan(self.plan, names), steps)

    def view(self, scenario: Scenario) -> View:
        """What a policy sees that is asked again."""
        rules = Rebalance()
        return dataclasses.replace(
            View.of(scenario, gone=self.gone),
            current=self.plan,
            steps_left=STEPS_LEFT,
            rebalance=rules,
            changes_left=rules.at_most,
            history=self.history,
        )


def make_past(choices: Choices) -> Past:
    """A past of one to four steps."""
    factors = tuple(choices.pick(FACTORS) for _ in range(choices.whole(1, 3)))
    return Past(choices.whole(1, 4), factors, choices.pick((False, False, True)))


def remember(scenario: Scenario, plan: Plan, past: Past) -> Memory | None:
    """What is known once a plan has run for a while; None where no device would be left.

    Times are the estimates, times the factor of each device.
    """
    views, samples = View.of(scenario).devices, plan.samples()
    if past.lost and len(views) == 1:
        return None
    factor_of = {each.name: past.factors[place % len(past.factors)] for place, each in enumerate(views)}
    busy = {each.name: factor_of[each.name] * each.step_s(samples[each.name]) for each in views if each.name in samples}
    longest = max(busy.values())
    devices = {
        name: {"samples": samples[name], "compute_s": seconds, "wait_s": longest - seconds}
        for name, seconds in busy.items()
    }
    sync_s = 0.1 * longest
    entry = {"step_s": longest + sync_s, "sync_s": sync_s, "devices": devices}
    gone = frozenset([views[0].name] if past.lost else [])
    return Memory(gone, plan, tuple({"step": step, **entry} for step in range(past.steps)))
