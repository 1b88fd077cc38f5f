"""Layer profiles on file: times of each layer of a model on several devices; our own format, and an importer.

Our own format is a JSON object ``{"schema_version": 1, "profiles": {name: LayerProfile}}``. A
:class:`~steelyard.sim.device.LayerProfile` has ``model``, ``sequence_length``, ``dtype``, ``tensor_collectives``
(whether the times hold the collectives of the tensor-parallel group), ``source``, and ``points``: per micro-batch size
and tensor degree, the lists ``forward_s``, ``backward_s`` and ``optimizer_s`` with one entry per layer. :func:`save`
writes it.

Imported as well is what Sailor (Strati et al., SOSP'25) publishes, as one object: ``model``, ``sequence_length``,
``unit`` ("s" or "ms"), ``per_layer`` (the order of the three times) and ``profiles``: per GPU type, ``"micro_batch=1,
tensor_parallel=2"`` to a list of the layers' times. It says nothing of a dtype: ``dtype`` may be added to the object.

A scenario's device names a profile: ``layer_profile = "file.json"`` (a file with one) or ``"file.json#name"``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from .checking import shown, validate
from .device import LayerProfile
from .spec import inside, parse_file

FIELDS = {"forward": "forward_s", "backward": "backward_s", "update": "optimizer_s"}
SECONDS = {"s": 1.0, "ms": 1e-3}


def load(path: Path) -> dict[str, LayerProfile]:
    """The profiles of a file by their names.

    Raises:
        InputError: not JSON, not one of the two formats, or a profile that is wrong, by its path.
    """
    document = parse_file(path)
    profiles = document.get("profiles")
    if not isinstance(profiles, dict) or not profiles:
        raise InputError(f"{path.name}: profiles", "is missing or empty", "name at least one device's profile")
    if "per_layer" in document:
        profiles = {name: _imported(document, name, found, path.name) for name, found in profiles.items()}
    return {
        name: validate(LayerProfile, found, f"{path.name}: profiles.{name}", prefix=f"{path.name}: profiles.{name}.")
        for name, found in profiles.items()
    }


def resolve(folder: Path | None, reference: str, field: str) -> LayerProfile:
    """The profile that a scenario refers to: ``file.json`` or ``file.json#name``, beside the scenario.

    Args:
        folder: of the scenario; its files only.
        reference: file, and the name of the profile where the file has several.
        field: where the reference stands, for the error.

    Raises:
        InputError: a path out of the folder, no such file or profile, several profiles and none named.
    """
    name, _, wanted = reference.partition("#")
    profiles = load(inside(folder, name, field))
    if not wanted and len(profiles) == 1:
        return next(iter(profiles.values()))
    if wanted not in profiles:
        known = ", ".join(sorted(profiles)[:8])
        problem = f"{shown(wanted)} is no profile of {name}" if wanted else f"{name} has {len(profiles)} profiles"
        raise InputError(field, problem, f"add #name; known: {known}")
    return profiles[wanted]


def save(path: Path, profiles: Mapping[str, LayerProfile]) -> None:
    """Write profiles in our own format; :func:`load` reads them."""
    found = {name: profile.model_dump(mode="json") for name, profile in profiles.items()}
    path.write_text(json.dumps({"schema_version": 1, "profiles": found}, indent=1) + "\n", encoding="utf-8")


def _imported(document: Mapping[str, Any], name: str, found: Any, where: str) -> dict[str, Any]:
    """A profile of the imported format as a document of our own."""
    here = f"{where}: profiles.{name}"
    order = document["per_layer"]
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(FIELDS):
        raise InputError(f"{where}: per_layer", f"is {shown(order)}", f"must hold {', '.join(FIELDS)}")
    scale = SECONDS.get(document.get("unit", "s"))
    if scale is None:
        raise InputError(f"{where}: unit", f"is {shown(document['unit'])}", "one of s, ms")
    if not isinstance(found, dict):
        raise InputError(here, "is not a table", "it holds a list of layers per micro-batch and degree")
    return {
        "model": document.get("model", ""),
        "sequence_length": document.get("sequence_length"),
        "dtype": document.get("dtype", "fp32"),
        "points": [_point(key, layers, order, scale, here) for key, layers in found.items()],
        "source": str(document.get("source", where)),
    }


def _point(key: str, layers: Any, order: list[str], scale: float, where: str) -> dict[str, Any]:
    here = f"{where}.{key}"
    sizes = _sizes(key, here)
    if not isinstance(layers, list) or not all(isinstance(each, list) and len(each) == len(order) for each in layers):
        raise InputError(here, "is not a list of layers", f"each layer has {len(order)} times: {', '.join(order)}")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for each in layers for value in each):
        raise InputError(here, "holds what is no number", "times are numbers")
    columns = {FIELDS[name]: [each[place] * scale for each in layers] for place, name in enumerate(order)}
    return {**sizes, **columns}


def _sizes(key: str, where: str) -> dict[str, int]:
    """``micro_batch=4,tensor_parallel=2`` as fields of a point."""
    parts = dict(part.partition("=")[::2] for part in key.split(","))
    try:
        return {"micro_batch": int(parts["micro_batch"]), "tensor_degree": int(parts.get("tensor_parallel", "1"))}
    except (KeyError, ValueError) as error:
        raise InputError(where, "names no sizes", "write micro_batch=4,tensor_parallel=2") from error
