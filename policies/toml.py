"""Plain documents as TOML text: the standard library reads TOML and does not write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Mapping[str, Any]) -> str:
    """TOML text that ``tomllib`` reads back as the same document; None is left out, as TOML has none.

    Raises:
        TypeError: a value that TOML cannot hold.
    """
    return "\n".join(_table(document, ())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table: its plain values first, then its tables, then its lists of tables."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lists = {key: value for key, value in table.items() if _is_list_of_tables(value)}
    for key, value in table.items():
        if key not in inner and key not in lists and value is not None:
            yield f"{_key(key)} = {value_text(value)}"
    for key, value in inner.items():
        yield from ("", f"[{'.'.join(map(_key, (*path, key)))}]")
        yield from _table(value, (*path, key))
    for key, entries in lists.items():
        for entry in entries:
            yield from ("", f"[[{'.'.join(map(_key, (*path, key)))}]]")
            yield from _table(entry, (*path, key))


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else _text(key)


def value_text(value: Any) -> str:
    """One value as TOML text.

    Raises:
        TypeError: a value that TOML cannot hold, or that this project has no use for (dates).
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # the shortest text that reads back as the same number; inf and nan are TOML's words too
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(value_text(each) for each in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {value_text(v)}" for k, v in value.items() if v is not None) + "}"
    raise TypeError(f"TOML holds no {type(value).__name__}")


def _text(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but TOML refuses a bare DEL and has no surrogate pairs."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
