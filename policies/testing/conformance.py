"""check_policy(): a policy against its contract, on scenarios that Hypothesis makes and makes smaller."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ...sim.spec import Scenario
from ...sim.view import Policy
from .form import check_form
from .pasts import Past
from .rules import BrokenError, check_scenario
from .strategies import pasts, policies, scenarios
from .worlds import scenario_toml


class ConformanceError(AssertionError):
    """A policy broke a rule; ``scenario_toml`` reproduces it.

    Attributes:
        problem: which rule, and how.
        policy: the policy with the parameters that broke it.
        scenario_toml: the smallest scenario that was found; empty where the rule is about the class alone.
    """

    def __init__(self, problem: str, policy: object, scenario_toml: str = "") -> None:
        self.problem = problem
        self.policy = policy
        self.scenario_toml = scenario_toml
        shown = f"\n\nA scenario that shows it (save it as scenario.toml):\n\n{scenario_toml}" if scenario_toml else ""
        super().__init__(f"{policy}: {problem}{shown}")


def check_policy(
    policy: Policy | type,
    *,
    max_examples: int = 100,
    seed: int = 0,
    unit_free: bool = False,
) -> None:
    """Hold a policy against its contract on generated scenarios.

    For the class: a frozen dataclass with ``name``, a one-sentence docstring, typed fields, defaults within their
    ranges, that can be pickled. For every scenario, and all parameters within their ranges (of an instance: its own):

    - the plan passes ``Plan.check``, or :class:`~steelyard.sim.plan.Infeasible` says why. Where the devices have room
      there must be a plan, but for a batch of fewer samples than there are devices with room (a policy may insist that
      each of them works), and for an objective with a floor or a budget. A class that says
      ``rigid: ClassVar[bool] = True`` lays out one shape, and may find it not to fit;
    - the same view gives the same plan, from an equal policy too, and nothing the policy saw is changed;
    - other names and another order of nodes and devices change neither which kinds of device do how much, nor the
      simulated step time without noise;
    - asked again with the plan so far and measured steps, also after the loss of a device, it keeps to the same rules:
      a policy that learns nothing from the past may answer as at the start.

    Args:
        policy: a class, or an instance whose parameters shall be kept.
        max_examples: scenarios to try.
        seed: of the generated scenarios; equal seeds try the same ones within a process.
        unit_free: check too that a world in which everything takes four times as long gets the same plan, give or
            take a sample per device (rounding). Not every policy has to: one may weigh seconds against dollars.

    Raises:
        ConformanceError: the rule that was broken, with the smallest counter-example that was found.
    """
    kind = policy if isinstance(policy, type) else type(policy)
    try:
        check_form(kind)
    except BrokenError as broken:
        raise ConformanceError(str(broken), kind.__name__) from broken.__cause__
    drawn = policies(kind) if isinstance(policy, type) else st.just(policy)
    last: list[ConformanceError] = []

    def example(scenario: Scenario, one: Policy, order: int, past: Past | None) -> None:
        text = scenario_toml(scenario)  # before the policy has seen it, and perhaps changed it
        try:
            check_scenario(scenario, one, order=order, past=past, unit_free=unit_free)
        except BrokenError as broken:
            last[:] = [ConformanceError(str(broken), one, text)]
            last[0].__cause__ = broken.__cause__
            raise

    run = given(scenario=scenarios(), one=drawn, order=st.integers(0, 2**16), past=st.none() | pasts())(example)
    try:
        _configured(run, max_examples, seed)()
    except Exception:
        if last:  # the last failure is the smallest: Hypothesis ends with it
            raise last[0] from last[0].__cause__
        raise


def _configured(run: Any, max_examples: int, number: int) -> Any:
    """The same examples each time, no database, one failure, and no time limits: hosts stall."""
    phases = (Phase.generate, Phase.target, Phase.shrink)
    profile = settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    return seed(number)(profile(run))
