"""Letters between machines over the store that they share: bytes with a digest, JSON where it is words; no pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

PIECE = 2**20
"""Bytes of one value in the store."""


class Store(Protocol):
    """What is needed of the stores of ``torch.distributed``, which have no types of their own."""

    def set(self, key: str, value: str | bytes, /) -> None:
        """Leave a value under a key."""
        ...

    def get(self, key: str, /) -> bytes:
        """The value under a key, once there is one."""
        ...

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which starts at 0; its value."""
        ...

    def wait(self, keys: Sequence[str], timeout: timedelta, /) -> None:
        """Wait until the keys have values."""
        ...

    def check(self, keys: Sequence[str], /) -> bool:
        """Whether the keys have values."""
        ...


class DamagedError(Exception):
    """A letter is not what was sent."""


def put(store: Store, key: str, data: bytes) -> None:
    """Leave bytes under a key; the key itself comes last, so a letter is whole or absent."""
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
    for number, piece in enumerate(pieces):
        store.set(f"{key}/{number}", piece)
    store.set(key, json.dumps([len(pieces), hashlib.sha256(data).hexdigest()]))


def take(store: Store, key: str, timeout_s: float) -> bytes:
    """The bytes under a key, once they are there.

    Raises:
        torch.distributed.DistError: not within the time, or the store is gone.
        DamagedError: they are not what was sent.
    """
    store.wait([key], timedelta(seconds=timeout_s))
    count, digest = json.loads(store.get(key))
    data = b"".join(bytes(store.get(f"{key}/{number}")) for number in range(count))
    if hashlib.sha256(data).hexdigest() != digest:
        raise DamagedError(f"{key}: {len(data)} bytes are not those that were sent")
    return data


def put_words(store: Store, key: str, words: Any) -> None:
    """Leave something that JSON can hold."""
    put(store, key, json.dumps(words).encode())


def take_words(store: Store, key: str, timeout_s: float) -> Any:
    """What was left with :func:`put_words`; raises as :func:`take` does."""
    return json.loads(take(store, key, timeout_s))
