"""What is written as TOML is read back as the same document."""

from __future__ import annotations

import tomllib
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies.toml import to_toml, value_text

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(keys, values, max_size=4))
def test_a_document_survives(document: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(document)) == document


@given(plain)
def test_a_value_survives(value: Any) -> None:
    assert tomllib.loads(f"x = {value_text(value)}")["x"] == value


def test_none_is_left_out() -> None:
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None}, "d": 1})) == {"b": {}, "d": 1}


@pytest.mark.parametrize("value", [date(2020, 1, 1), object(), b"bytes", {1, 2}])
def test_what_toml_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        to_toml({"x": value})
