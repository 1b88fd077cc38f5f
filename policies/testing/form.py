"""Form: what can be said of a policy class without a scenario."""

from __future__ import annotations

import dataclasses
import math
import pickle

from .._base import Choice, Parameter, Range, parameters
from .rules import BrokenError

PLAIN = (int, float, str, bool)


def check_form(kind: type) -> None:
    """A frozen dataclass with a name, a docstring, typed fields with defaults in range, that can be pickled.

    Raises:
        BrokenError: the first of these that does not hold.
    """
    _require(dataclasses.is_dataclass(kind), "is no dataclass")
    frozen: bool = vars(kind)["__dataclass_params__"].frozen if "__dataclass_params__" in vars(kind) else False
    _require(frozen, "is not frozen: @dataclass(frozen=True, kw_only=True)")
    name = getattr(kind, "name", None)
    _require(isinstance(name, str) and bool(name), 'has no name: name: ClassVar[str] = "..."')
    _require(callable(getattr(kind, "allocate", None)), "has no method allocate(view)")
    summary = (kind.__doc__ or "").strip().splitlines()
    said = bool(summary) and not summary[0].startswith(f"{kind.__name__}(")
    _require(said, "has no docstring that says what it does")
    for parameter in parameters(kind):
        _check_parameter(parameter)
    _check_pickles(kind())


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise BrokenError(problem)


def _check_pickles(made: object) -> None:
    """A search sends policies to other processes."""
    try:
        again = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BrokenError(f"cannot be pickled: {error}") from error
    _require(again == made, "is not the same after pickling")


def _check_parameter(parameter: Parameter) -> None:
    space, default = parameter.space, parameter.default
    what = f"parameter {parameter.name}"
    _require(default is not None, f"{what} has no default")
    if isinstance(space, Choice):
        _require(default in space.options, f"{what}: the default {default!r} is not among its choices")
        return
    _require(parameter.type in PLAIN, f"{what} is of type {parameter.type}; int, float, str or bool can be recorded")
    wrong = f"{what}: the default {default!r} is no {parameter.type.__name__}"
    _require(isinstance(default, parameter.type | int), wrong)
    if isinstance(space, Range):
        _require(math.isfinite(space.low) and math.isfinite(space.high), f"{what}: its range is not finite")
        _require(space.low <= default <= space.high, f"{what}: the default {default!r} is outside of its range")
        _require(not space.log or space.low > 0, f"{what}: a logarithmic range starts above 0")
