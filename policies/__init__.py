"""Policies: who gets how much of the work. The registry, and policies from text."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..sim.spec import Scenario, parse_file, parse_value
from ..sim.view import Policy
from ._base import Choice, Parameter, Range, canonical, capacities, parameters, round_shares, searchable

REGISTRY: dict[str, str] = {
    "uniform": "steelyard.policies.proportional:Uniform",
    "flops": "steelyard.policies.proportional:Flops",
    "throughput": "steelyard.policies.proportional:Throughput",
    "proportional": "steelyard.policies.proportional:Proportional",
    "linear-cost": "steelyard.policies.linear_cost:LinearCost",
    "makespan": "steelyard.policies.makespan:Makespan",
    "poplar": "steelyard.policies.poplar:Poplar",
    "cephalo": "steelyard.policies.cephalo:Cephalo",
    "cannikin": "steelyard.policies.cannikin:Cannikin",
    "attention": "steelyard.policies.attention:Attention",
    "attention-heads": "steelyard.policies.attention_heads:AttentionHeads",
    "attention-trained": "steelyard.policies.attention_trained:AttentionTrained",
    "attention-layers": "steelyard.policies.attention_layers:AttentionLayers",
    "attention-operators": "steelyard.policies.attention_operators:AttentionOperators",
    "attention-adaptive": "steelyard.policies.attention_adaptive:AttentionAdaptive",
    "grid": "steelyard.policies.grid:Grid",
    "hybrid": "steelyard.policies.hybrid:Hybrid",
    "amp": "steelyard.policies.amp:Amp",
    "sailor": "steelyard.policies.sailor:Sailor",
    "cut-uniform": "steelyard.policies.cuts:CutUniform",
    "cut-flops": "steelyard.policies.cuts:CutFlops",
    "cut-exact": "steelyard.policies.cuts:CutExact",
    "pipedream": "steelyard.policies.pipedream:PipeDream",
    "place-single": "steelyard.policies.placement:PlaceSingle",
    "m-topo": "steelyard.policies.placement:Topological",
    "m-etf": "steelyard.policies.placement:EarliestTask",
    "heft": "steelyard.policies.placement:EarliestFinish",
    "makespan-adaptive": "steelyard.policies.makespan_adaptive:MakespanAdaptive",
    "lb-bsp": "steelyard.policies.lb_bsp:LbBsp",
    "cannikin-online": "steelyard.policies.cannikin_online:CannikinOnline",
    "malleus": "steelyard.policies.malleus:Malleus",
    "stealing": "steelyard.policies.stealing:Stealing",
}
"""Name -> class. A new policy is one new file and one line here."""
DEFAULTS: tuple[str, ...] = ("uniform", "flops", "throughput", "linear-cost", "makespan", "attention")
"""What is tried where nobody names a policy: data-parallel plans, which the lanes of a host can run too."""

__all__ = [
    "DEFAULTS",
    "REGISTRY",
    "Choice",
    "Range",
    "canonical",
    "capacities",
    "make_policy",
    "names_for",
    "parameters",
    "policies_for",
    "policy_class",
    "policy_from_text",
    "round_shares",
    "searchable",
]


def policy_class(name: str) -> type:
    """The class of a registered name, or of ``package.module:Class``.

    Raises:
        InputError: unknown name; the module or class cannot be imported.
    """
    target = REGISTRY.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(REGISTRY)}, or package.module:Class"
        raise InputError("policy", f"{name!r} is unknown", hint)
    module_name, _, class_name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's own policy lies where the command is run
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(
            "policy", f"cannot import {module_name!r}: {error}", "check the name and the folder"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not callable(getattr(found, "allocate", None)):
        raise InputError("policy", f"{module_name} has no policy class {class_name!r}", "a class with allocate(view)")
    return found


def make_policy(name: str, values: Mapping[str, Any] | None = None) -> Policy:
    """A policy with some of its parameters set.

    Raises:
        InputError: unknown policy or parameter, a value of the wrong type or out of range.
    """
    kind = policy_class(name)
    known = {each.name: each for each in parameters(kind)}
    checked = {}
    for key, value in (values or {}).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            raise InputError(f"policy.{name}.{key}", "unknown parameter", hint)
        checked[key] = _checked(known[key], value, f"policy.{name}.{key}")
    policy: Policy = kind(**checked)
    return policy


def policies_for(scenario: Scenario, texts: Sequence[str] = ()) -> list[Policy]:
    """The policies of some texts; without any, those that the scenario names; else the :data:`DEFAULTS`.

    Raises:
        InputError: see :func:`policy_from_text`.
    """
    return [policy_from_text(text) for text in texts or scenario.policies or DEFAULTS]


def names_for(scenarios: Sequence[Scenario]) -> list[str]:
    """What to search where nobody names a policy: those that the scenarios name, without their settings.

    ``hybrid`` goes with ``grid``, whose defaults have no plan where a model has to be divided. Without names the
    :data:`DEFAULTS`.
    """
    named = [_parted(text)[0] for scenario in scenarios for text in scenario.policies if not text.endswith(".toml")]
    with_planner = [*named, *(["hybrid"] if "grid" in named else [])]
    return list(dict.fromkeys(with_planner)) or list(DEFAULTS)


def policy_from_text(text: str) -> Policy:
    """A policy from text.

    ``name``, ``name(key=value, key=value)`` (as a run's label has it), ``name:key=value:key=value``, ``module:Class``
    (with parameters too), or the path of a ``best.toml``.

    Raises:
        InputError: see :func:`make_policy`.
    """
    if text.endswith(".toml"):
        return _from_file(Path(text))
    name, settings = _parted(text)
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(
                f"policy.{name}", f"{setting.strip()!r} is not key=value", "write name(key=value, key=value)"
            )
        values[key.strip()] = parse_value(value.strip())
    return make_policy(name, values)


def _parted(text: str) -> tuple[str, list[str]]:
    """A policy's name and its settings, each ``key=value``."""
    outer, bracket, inner = text.partition("(")
    if bracket:
        if not inner.rstrip().endswith(")"):
            raise InputError("policy", f"{text!r} has no closing parenthesis", "write name(key=value, key=value)")
        return outer.strip(), [part for part in inner.rstrip()[:-1].split(",") if part.strip()]
    parts = text.split(":")
    return ":".join(part for part in parts if "=" not in part), [part for part in parts if "=" in part]


def _from_file(file: Path) -> Policy:
    document = parse_file(file)
    entry = document.get("policy")
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError(f"{file}: policy", "has no name", "`steelyard search` writes such a file")
    values = entry.get("parameters", {})
    if not isinstance(values, dict):
        raise InputError(f"{file}: policy.parameters", "is not a table", "`steelyard search` writes such a file")
    return make_policy(entry["name"], values)


def _checked(parameter: Parameter, value: Any, path: str) -> Any:
    space = parameter.space
    if isinstance(space, Choice):
        if not any(value == option and type(value) is type(option) for option in space.options):
            raise InputError(path, f"is {value!r}", f"one of {', '.join(map(str, space.options))}")
        return value
    if isinstance(space, Range):
        if isinstance(value, bool) or not isinstance(value, int | float) or not space.low <= value <= space.high:
            raise InputError(path, f"is {value!r}", f"a number from {space.low:g} to {space.high:g}")
        if parameter.type is int and not isinstance(value, int):
            raise InputError(path, f"is {value!r}", f"a whole number from {space.low:g} to {space.high:g}")
        return float(value) if parameter.type is float else value
    if not isinstance(value, parameter.type):
        raise InputError(path, f"is {value!r}", f"takes {parameter.type.__name__}")
    return value
