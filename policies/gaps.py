"""Gaps: the exact min-max split where more samples may take less time, so that what ends within T has gaps.

Then the numbers of samples that a device ends within T are a set and no longer all from 0 to some number, and whether T
is enough for the batch is a subset sum over the devices: solved over bits, one integer as the set of all reachable
sums. T itself is one of the values of the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..sim.steps import Flags, Floats, Times

MOST_ENTRIES = 4_000_000
"""Kinds of devices times batch: what tables of all times may hold."""
Spans = list[tuple[int, int]]
"""Runs of numbers of samples, first and last."""


def fits(times: Times, batch: int) -> bool:
    """Whether tables of all the times stay within :data:`MOST_ENTRIES`."""
    return len(times.capacity) * batch <= MOST_ENTRIES


def min_max(times: Times, batch: int, least: int) -> list[int]:
    """Samples per device with the least maximum of the times; the batch must fit.

    Args:
        times: of the devices that take part.
        batch: samples in all.
        least: samples that each device must have.
    """
    tables = [_table(times, row) for row in range(len(times.capacity))]
    places = [np.flatnonzero(times.row_of == row).tolist() for row in range(len(tables))]
    values = np.unique(np.concatenate(tables))
    at_least = _hull_s(tables, [len(here) for here in places], batch, least)
    first = int(np.searchsorted(values, at_least))
    found = _split(places, tables, float(values[first]), batch, least)
    low, high = first, first
    while found is None:  # ever larger steps up, then halving back
        low, high = high, min(high + max(1, 2 * (high - first)), len(values) - 1)
        found = _split(places, tables, float(values[high]), batch, least)
    while high - low > 1:
        middle = (low + high) // 2
        better = _split(places, tables, float(values[middle]), batch, least)
        low, high, found = (low, middle, better) if better is not None else (middle, high, found)
    return found


def _table(times: Times, row: int) -> Floats:
    """Times of 0 and more samples of a device, up to its capacity."""
    samples = np.arange(int(times.capacity[row]) + 1)
    return times.at(np.full(len(samples), row), samples)


def _hull_s(tables: Sequence[Floats], copies: Sequence[int], batch: int, least: int) -> float:
    """A time that no split goes below: each device may have any number up to the most that it ends within it."""
    # From the right, the least time of this many samples or more never falls.
    sooner = [np.minimum.accumulate(table[::-1])[::-1] for table in tables]
    floor = max(float(table[least]) for table in sooner)
    moments = np.concatenate([table[least + 1 :] for table in sooner])
    weights = np.repeat(copies, [len(table) - 1 - least for table in tables])
    left = batch - least * sum(copies)
    if left <= 0:
        return floor
    order = np.argsort(moments, kind="stable")
    place = int(np.searchsorted(np.cumsum(weights[order]), left))
    return max(floor, float(moments[order[place]]))


def _split(
    places: Sequence[Sequence[int]], tables: Sequence[Floats], seconds: float, batch: int, least: int
) -> list[int] | None:
    """A split in which every device ends within a time; None where there is none."""
    mask = (1 << (batch + 1)) - 1
    reached, kinds = [1], []
    for here, table in zip(places, tables, strict=True):
        spans = _spans(table <= seconds, least)
        if not spans:
            return None
        kinds.append(_Alike(spans, mask))
        reached.append(_sums(reached[-1], kinds[-1].sums(len(here)).spans) & mask)
    if not reached[-1] >> batch & 1:
        return None
    given, left = [0] * sum(map(len, places)), batch
    for here, alike, before in reversed(list(zip(places, kinds, reached[:-1], strict=True))):
        together = _largest(before, alike.sums(len(here)).spans, left)
        left -= together
        for place, samples in zip(here, alike.dealt(len(here), together), strict=True):
            given[place] = samples
    return given


class _Reached(NamedTuple):
    """A set of sums, as bits and as runs."""

    bits: int
    spans: Spans


class _Alike:
    """What any number of devices of one kind reach together: each number from its two halves."""

    def __init__(self, spans: Spans, mask: int) -> None:
        self._mask = mask
        self._sums = {1: _Reached(_sums(1, spans) & mask, spans)}

    def sums(self, devices: int) -> _Reached:
        """Of so many devices."""
        if devices not in self._sums:
            half = devices // 2
            bits = _sums(self.sums(devices - half).bits, self.sums(half).spans) & self._mask
            self._sums[devices] = _Reached(bits, _spans(_flags(bits), 0))
        return self._sums[devices]

    def dealt(self, devices: int, samples: int) -> list[int]:
        """How so many devices share a sum that they reach."""
        if devices == 1:
            return [samples]
        half = devices // 2
        part = _largest(self.sums(devices - half).bits, self.sums(half).spans, samples)
        return self.dealt(devices - half, samples - part) + self.dealt(half, part)


def _flags(bits: int) -> Flags:
    """The bits one by one, the least first."""
    packed = np.frombuffer(bits.to_bytes(bits.bit_length() // 8 + 1, "little"), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little").astype(np.bool_)


def _spans(within: Flags, least: int) -> Spans:
    edges = np.diff(np.concatenate([[False], within[least:], [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(a) + least, int(b) - 1 + least) for a, b in zip(starts, ends, strict=True)]


def _sums(reached: int, spans: Spans) -> int:
    """Bits of all sums of a reached one and a number of the spans."""
    found = 0
    for first, last in spans:
        smeared, width, length = reached, 1, last - first + 1
        while width < length:  # by doubling: each bit becomes a run of `length` bits
            step = min(width, length - width)
            smeared |= smeared << step
            width += step
        found |= smeared << first
    return found


def _largest(reached: int, spans: Spans, total: int) -> int:
    """The largest number of the spans that leaves a reached sum of the total."""
    for first, last in reversed(spans):
        if first > total:
            continue
        top = min(last, total)
        window = reached >> (total - top) & ((1 << (top - first + 1)) - 1)
        if window:
            return top - ((window & -window).bit_length() - 1)
    raise AssertionError("a reached sum has a way to it")
