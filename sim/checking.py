"""Checking: input against a model; a violation becomes one line that names the field and the mend."""

from __future__ import annotations

import difflib
import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..results.errors import InputError

S = TypeVar("S", bound=BaseModel)


def validate(model: type[S], data: object, where: str, *, prefix: str = "") -> S:
    """Validate input against a model; the first violation becomes an :class:`InputError` with path and mend.

    Args:
        model: what the data should be.
        data: parsed from a file, or anything else.
        where: names the whole, for a violation that has no path.
        prefix: put before the path of every violation (``cluster.nodes.0.`` or ``file.json: ``).
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _input_error(model, error, where, prefix) from error
    except (OverflowError, RecursionError) as error:
        raise InputError(where, f"cannot be read: {first_line(error)}", "a number or a nesting is too large") from error


def shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    try:
        text = reprlib.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a deep nesting
        text = f"{type(value).__name__} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


MUST_BE = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text like {pattern}",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}
"""What a value must be, by pydantic's name of the violation."""


def _input_error(model: type[BaseModel], error: ValidationError, where: str, prefix: str) -> InputError:
    found = error.errors(include_url=False)
    # A misspelt key is also a missing one: the name that the user wrote says more.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    path = prefix + ".".join(map(_part, first["loc"])) if first["loc"] else prefix.rstrip(".: ") or where
    kind, value, context = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "extra_forbidden":
        return InputError(path, "unknown key", _near_key(model, first["loc"]))
    if kind == "missing":
        return InputError(path, "is missing", MISSING.get(str(first["loc"][-1]), f"add {first['loc'][-1]} = ..."))
    if kind == "value_error" and isinstance(context["error"], InputError):  # it names its own path
        own: InputError = context["error"]
        return InputError(prefix + own.path, own.problem, own.mend)
    if kind == "value_error":
        problem, _, mend = str(context["error"]).partition("; ")
        return InputError(path, problem, mend)
    if kind == "literal_error":
        return InputError(path, f"is {shown(value)}", f"one of {context['expected']}")
    if kind in ("too_short", "too_long"):
        least, most = context.get("min_length"), context.get("max_length")
        mend = f"must have at least {least}" if least is not None else f"must have at most {most}"
        return InputError(path, f"has {context['actual_length']} entries", mend)
    if kind == "float_type" and isinstance(value, int) and not isinstance(value, bool):
        return InputError(path, f"is {shown(value)}", "must be a smaller number")
    if kind in MUST_BE:
        quoted = ", without quotes" if isinstance(value, str) and MUST_BE[kind].endswith("number") else ""
        return InputError(path, f"is {shown(value)}", f"must be {MUST_BE[kind].format(**context)}{quoted}")
    return InputError(path, first["msg"][:1].lower() + first["msg"][1:], f"it is {shown(value)}")


def _part(key: str | int) -> str:
    """A key as a path shows it: the user's own may be empty or endless."""
    return str(key)[:60] or "''"


MISSING = {
    "model": "name one of `steelyard list models`, or a model file beside the scenario",
    "cluster": "add [cluster], or start from `steelyard init`",
    "workload": "add [workload], or start from `steelyard init`",
    "nodes": 'add [[cluster.nodes]] with devices and a link, or lanes = "auto"',
}
"""Mends for missing keys that are more than a value to type in."""


def _near_key(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    known = _fields_at(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1])[:200], known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(known)}" if known else "remove it"


def _fields_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Field names of the model at a place within another, as far as plain annotations tell."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        info = getattr(current, "model_fields", {}).get(part)
        current = _inner_model(info.annotation) if info is not None else None
    return sorted(getattr(current, "model_fields", {}))


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_inner_model(each) for each in getattr(annotation, "__args__", ())]
    return next((each for each in inner if each is not None), None)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to a length that fits a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
