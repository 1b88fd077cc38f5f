"""What is shipped or at hand, one entry each: name, a sentence, where it is from, its parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..sim.spec import parse_toml, shipped_names, shipped_text

KINDS = ("policies", "scenarios", "devices", "links", "models", "runs")


def listing(what: str, runs: Path) -> list[dict[str, Any]]:
    """The entries of a kind.

    Raises:
        InputError: there is no such kind, or the runs are in no folder.
    """
    if what == "policies":
        return [_policy(name) for name in _registry()]
    if what == "scenarios":
        return [_data(what, name) for name in shipped_names("scenarios")]
    if what in ("devices", "links"):
        return [_data(f"catalog/{what}", name) for name in shipped_names(f"catalog/{what}")]
    if what == "models":
        return [_model(name) for name in shipped_names("catalog/models")]
    if what == "runs":
        if runs.exists() and not runs.is_dir():
            raise InputError(str(runs), "is not a folder", "give the folder that runs are written to")
        return [_run(path) for path in sorted(runs.glob("**/manifest.json")) if not path.parent.name.startswith(".")]
    raise InputError("list", f"{what!r} is unknown", f"one of {', '.join(KINDS)}")


def more(entry: Mapping[str, Any]) -> dict[str, str]:
    """What a table says of an entry beside name, summary and source: a policy's parameters, ranges and defaults."""
    described = entry["parameters"]
    return {"parameters": "\n".join(map(_spoken, described))} if isinstance(described, list) else {}


def _spoken(parameter: Mapping[str, Any]) -> str:
    """A parameter in a line: its default, and what a search may try."""
    line = f"{parameter['name']} = {_value(parameter['default'])}"
    if "options" in parameter:
        return f"{line}: {', '.join(map(_value, parameter['options']))}"
    if "low" in parameter:
        return f"{line}: {parameter['low']:g} to {parameter['high']:g}{', logarithmic' * parameter['log']}"
    return f"{line}, not searched"


def _value(value: Any) -> str:
    """A value as ``--policy`` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _registry() -> dict[str, str]:
    from ..policies import REGISTRY

    return REGISTRY


def _policy(name: str) -> dict[str, Any]:
    from ..policies import parameters, policy_class
    from ..policies._base import Choice, Range

    kind = policy_class(name)
    described = []
    for each in parameters(kind):
        entry: dict[str, Any] = {"name": each.name, "type": each.type.__name__, "default": each.default}
        if isinstance(each.space, Range):
            entry.update(low=each.space.low, high=each.space.high, log=each.space.log)
        elif isinstance(each.space, Choice):
            entry["options"] = list(each.space.options)
        described.append(entry)
    summary = (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    return {"name": name, "summary": summary, "source": getattr(kind, "source", ""), "parameters": described}


def _data(folder: str, name: str) -> dict[str, Any]:
    document = parse_toml(shipped_text(folder, name), name)
    source = document.pop("source", "")
    if isinstance(source, dict):
        source = "; ".join(f"{key}: {value}" for key, value in source.items())
    summary = document.pop("summary", "") or name
    document.pop("name", None)
    return {"name": name, "summary": summary, "source": source, "parameters": document}


def _model(name: str) -> dict[str, Any]:
    from ..sim.spec import load_model

    model = load_model(name)
    parameters = {"layers": len(model.layers), "parameters": sum(layer.parameters for layer in model.layers)}
    return {"name": name, "summary": model.summary, "source": model.source, "parameters": parameters}


def _run(path: Path) -> dict[str, Any]:
    """A run from its manifest alone; one that cannot be read is listed as such, not hidden."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        label, kind, scenario = manifest["label"], manifest["kind"], manifest["scenario"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"name": str(path.parent), "summary": f"cannot be read: {error}", "source": "", "parameters": {}}
    return {
        "name": str(path.parent),
        "summary": f"{kind}: {label} on {scenario}",
        "source": manifest.get("model_version", ""),
        "parameters": manifest.get("policy", {}).get("parameters", {}),
    }
