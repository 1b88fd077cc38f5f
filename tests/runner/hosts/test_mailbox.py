"""Letters over a store: what is taken is what was put, whole, or an error."""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.hosts.mailbox import PIECE, DamagedError, Store, put, put_words, take, take_words

pytest.importorskip("torch", reason="stores need the runner extra")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def new_store() -> Store:
    store: Store = importlib.import_module("torch.distributed").HashStore()
    return store


@given(st.binary(max_size=4096))
def test_bytes_arrive_as_they_were_sent(data: bytes) -> None:
    store = new_store()
    put(store, "key", data)
    assert take(store, "key", 1.0) == data


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_long_letters_go_in_pieces(size: int) -> None:
    store = new_store()
    data = bytes(number % 251 for number in range(size))
    put(store, "key", data)
    assert take(store, "key", 1.0) == data


@given(JSON)
def test_words_arrive_as_they_were_sent(words: Any) -> None:
    store = new_store()
    put_words(store, "key", words)
    assert take_words(store, "key", 1.0) == words


def test_what_was_changed_on_the_way_is_refused() -> None:
    store = new_store()
    put(store, "key", b"truth")
    store.set("key/0", "fiction")
    with pytest.raises(DamagedError):
        take(store, "key", 1.0)


def test_a_letter_that_does_not_come_is_an_error() -> None:
    store = new_store()
    with pytest.raises(RuntimeError):
        take(store, "key", 0.1)
    with pytest.raises(RuntimeError):
        store.wait(["key"], timedelta(seconds=0.1))
