"""Space: what a search tries: policies, each with its own parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..results.record import digest
from ..sim.view import describe
from . import REGISTRY, make_policy, policy_class
from ._base import Choice, Parameter, Range, parameters, searchable
from .aims import AIM, Aim, aims_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

FEW = 16
"""A policy with at most so many settings is tried with all of them."""
LEVELS = 5
"""Values of a range that a grid has."""
MOST = 100_000
"""Points that a grid may have."""


@dataclass(frozen=True)
class Space:
    """The search space: policies, each with its own parameters.

    A policy with a few settings only is tried with each of them, once; the sampler chooses among the others. It would
    come back to a good one without parameters again and again, and learn nothing.

    Samplers that want the same parameters in every trial get a joint space: each trial then carries the parameters of
    all policies, and those of its own count (dormant ones are passed on, as genes are).
    """

    policies: tuple[str, ...]
    parameters: dict[str, Mapping[str, Parameter]]
    joint: bool = False
    grid: bool = False
    """Whether the first trials are all points of every policy's grid."""

    @classmethod
    def of(cls, names: Sequence[str], *, joint: bool = False, grid: bool = False, metrics: Sequence[str] = ()) -> Space:
        """The space over some policies; a name that is given twice counts once.

        Planners that follow an objective are tried with each of ``metrics`` that can be planned for: what one of them
        makes best is not what makes another best.

        Raises:
            InputError: no name, an unknown one, or a grid of more than :data:`MOST` points.
        """
        chosen = tuple(dict.fromkeys(names))
        if not chosen:
            raise InputError("policies", "are none", f"known: {', '.join(REGISTRY)}")
        return cls(chosen, {name: _searched(policy_class(name), metrics) for name in chosen}, joint, grid)._checked()

    def _checked(self) -> Space:
        if self.grid:
            count = sum(math.prod(len(_levels(each)) for each in found.values()) for found in self.parameters.values())
            if count > MOST:
                raise InputError("sampler", f"a grid would have {count:,} points", "name fewer policies, or use tpe")
        return self

    @cached_property
    def settings(self) -> dict[str, list[dict[str, Any]]]:
        """All settings of each policy that has only a few."""
        found = {}
        for name in self.policies:
            spaces = {key: each.space for key, each in self.parameters[name].items()}
            options = {key: space.options for key, space in spaces.items() if isinstance(space, Choice)}
            if len(options) == len(spaces) and math.prod(map(len, options.values())) <= FEW:
                found[name] = [dict(zip(options, point, strict=True)) for point in itertools.product(*options.values())]
        return found

    @cached_property
    def open(self) -> tuple[str, ...]:
        """The policies that have more settings than are tried one by one."""
        return tuple(name for name in self.policies if name not in self.settings)

    @cached_property
    def fixed(self) -> list[tuple[str, dict[str, Any]]]:
        """The first trials: every policy's default, its other aims, and all settings of those that have a few."""
        defaults = [(name, self.defaults(name)) for name in self.policies]
        rest = [(name, {**values, AIM: aim}) for name, values in defaults for aim in self._aims(name)]
        rest += [(name, point) for name, points in self.settings.items() for point in points]
        if self.grid:
            rest += self._points()
        return list({repr((name, sorted(values.items()))): (name, values) for name, values in defaults + rest}.values())

    def _points(self) -> list[tuple[str, dict[str, Any]]]:
        """All points of the policies' grids, in an order that looks drawn: a part of them is spread over the whole."""
        found = []
        for name in self.open:
            levels = {key: _levels(each) for key, each in self.parameters[name].items()}
            found += [(name, dict(zip(levels, point, strict=True))) for point in itertools.product(*levels.values())]
        return sorted(found, key=digest)

    def _aims(self, name: str) -> tuple[str, ...]:
        """What a planner can be told to plan for."""
        found = self.parameters[name].get(AIM)
        return found.space.options if found is not None and isinstance(found.space, Choice) else ()

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What a trial of a joint space draws, by Optuna's names; what has one value only is not drawn."""
        from optuna.distributions import CategoricalDistribution

        named = {
            f"{name}.{key}": _distribution(each)
            for name in self.policies
            for key, each in self.parameters[name].items()
        }
        found = {"policy": CategoricalDistribution(self.policies), **named}
        return {name: each for name, each in found.items() if not each.single()}

    def suggest(self, trial: Trial, before: Callable[[str], None] = lambda purpose: None) -> tuple[str, dict[str, Any]]:
        """The policy of a trial and its parameters; ``before`` is called before each draw, with what is drawn."""
        before("policy")
        name = self._suggest_policy(trial)
        drawn: dict[str, dict[str, Any]] = {}
        for policy in self.policies if self.joint else (name,):
            drawn[policy] = {}
            for key, parameter in self.parameters[policy].items():
                before(f"{policy}.{key}" if self.joint else key)
                drawn[policy][key] = _suggest_value(trial, f"{policy}.{key}", parameter)
        return name, drawn[name]

    def enqueue(self, study: Study, number: int) -> None:
        """Let Optuna's next trial be one of the first."""
        name, values = self.fixed[number]
        point = {each: self.defaults(each) for each in self.policies} if self.joint else {}
        point[name] = values
        choice = {"policy" if name in self._drawn else "fixed policy": name}
        named = {f"{each}.{key}": value for each, values in point.items() for key, value in values.items()}
        study.enqueue_trial({**choice, **named})

    def policy_of(self, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The policy of a trial and its parameters, from Optuna's."""
        name = str(params.get("policy") or params["fixed policy"])
        start = f"{name}."
        return name, {key.removeprefix(start): value for key, value in params.items() if key.startswith(start)}

    def digest(self) -> str:
        """Changes with the policies, their parameters, ranges, defaults, or their source."""
        parts = [
            [name, describe(make_policy(name)).source_sha256, [repr(each) for each in parameters(policy_class(name))]]
            for name in self.policies
        ]
        return digest(parts)

    @property
    def _drawn(self) -> tuple[str, ...]:
        """The policies among which the sampler chooses."""
        return self.policies if self.joint else self.open

    def defaults(self, name: str) -> dict[str, Any]:
        """The first setting that is tried of a policy."""
        return {key: each.default for key, each in self.parameters[name].items()}

    def _suggest_policy(self, trial: Trial) -> str:
        if trial.number < len(self.fixed) and self.fixed[trial.number][0] not in self._drawn:
            return str(trial.suggest_categorical("fixed policy", self.policies))
        return str(trial.suggest_categorical("policy", self._drawn))


def _searched(policy: type, metrics: Sequence[str]) -> Mapping[str, Parameter]:
    """The parameters that are tried; of an aim only what the search is about."""
    found = searchable(policy)
    narrowed = {key: aims_of(each, metrics) if isinstance(each.space, Aim) else each for key, each in found.items()}
    return {key: each for key, each in narrowed.items() if each is not None}


def _levels(parameter: Parameter) -> tuple[Any, ...]:
    """The values of a parameter that a grid has: choices, few whole numbers, else so many from end to end."""
    space = parameter.space
    if isinstance(space, Choice):
        return space.options
    assert isinstance(space, Range), "searchable() gives only parameters with a range"
    if parameter.type is int and space.high - space.low < LEVELS:
        return tuple(range(int(space.low), int(space.high) + 1))
    shares = [place / (LEVELS - 1) for place in range(LEVELS)]
    if space.log:
        values = [space.low * (space.high / space.low) ** share for share in shares]
    else:
        values = [space.low + (space.high - space.low) * share for share in shares]
    values[-1] = space.high  # not a rounding above it
    return tuple(dict.fromkeys(map(round, values))) if parameter.type is int else tuple(map(float, values))


def _suggest_value(trial: Trial, name: str, parameter: Parameter) -> Any:
    space = parameter.space
    if isinstance(space, Choice):
        return trial.suggest_categorical(name, space.options)
    assert isinstance(space, Range), "searchable() gives only parameters with a range"
    if parameter.type is int:
        return trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.log)


def _distribution(parameter: Parameter) -> BaseDistribution:
    """What :func:`_suggest_value` draws from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = parameter.space
    if isinstance(space, Choice):
        return CategoricalDistribution(space.options)
    assert isinstance(space, Range), "searchable() gives only parameters with a range"
    if parameter.type is int:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)
