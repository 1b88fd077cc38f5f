"""Where the catalog's figures are from: what each entry must say, and how many of them nobody looked up."""

from __future__ import annotations

from ..results.errors import InputError
from .device import Device, Link

NO_FIGURE = {"name", "summary", "ranges", "source"}
"""Keys of a catalog entry that are no figures."""
RECALLED = "recalled"
"""How the source of a figure starts that was written down from memory."""


def figures(entry: Device | Link) -> list[str]:
    """Names of the figures that an entry gives itself, as its ``source`` names them: ``max_w``, ``peak_tflops.fp16``.

    What it leaves to the default is no figure of the entry; a table of numbers (an efficiency) is one figure.
    """
    names: list[str] = []
    for key, value in entry:
        if key not in entry.model_fields_set or key in NO_FIGURE:
            continue
        names += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
    return names


def check_sources(entry: Device | Link) -> None:
    """Refuse an entry of the catalog whose figures do not all say where they are from.

    For entries as they stand in the catalog: what a scenario overrides is the user's own and needs no source.

    Raises:
        InputError: names the first figure without a source, or the first source of something that is no figure.
    """
    kind, given = ("device" if isinstance(entry, Device) else "link"), figures(entry)
    where = f"catalog {kind} {entry.name}: source"
    for name in given:
        if not entry.source.get(name, "").strip():
            raise InputError(where, f"{name} has none", f'add "{name}" = "an address", or "{RECALLED}"')
    for name in entry.source:
        if name not in given:
            raise InputError(where, f"{name} is no figure of the entry", "name a figure as the entry writes it")


def recalled_figures() -> tuple[int, int]:
    """How many figures of the shipped devices and links were written down from memory, and how many there are."""
    from .spec import load_device, load_link, shipped_names  # spec checks what it loads with this module

    devices = [load_device(name).source for name in shipped_names("catalog/devices")]
    links = [load_link(name).source for name in shipped_names("catalog/links")]
    texts = [text for source in devices + links for text in source.values()]
    return sum(text.startswith(RECALLED) for text in texts), len(texts)
