"""Apportion: the integer split of a batch whose slowest device finishes as early as any split allows.

For times that never fall with the samples, the split that deals sample by sample to whoever finishes earliest with the
next one is exact (an exchange argument). It is found without dealing: the time T at which the devices together just
hold the batch is bracketed, counting for each kind of device how many samples end within T, until few samples are left,
and these are sorted. For times that do fall (measured ones: two halves of a batch can be cheaper than a whole that
no longer fits a cache) see :mod:`.gaps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import gaps
from .curves import Floats, Ints, Times

FEW = 64


def min_max(times: Times, batch: int, least: int = 0) -> list[int] | None:
    """Samples per device with the least maximum of the times; None where the batch does not fit.

    Exact where times never fall; where they may, exact as long as kinds of devices times batch is at most
    :data:`.gaps.MOST_ENTRIES`, beyond that a valid split that may be longer than need be. Ties go to earlier devices.

    Args:
        times: of the devices that take part.
        batch: samples in all.
        least: samples that each device must have.
    """
    copies = np.array([len(places) for places in times.members], dtype=np.int64)
    devices = int(copies.sum())
    if not least * devices <= batch <= int(copies @ times.capacity) or int(times.capacity.min()) < least:
        return None
    if not times.rising and gaps.fits(times, batch):
        return gaps.min_max(times, batch, least)
    search = _Search(times, copies, batch, np.full(len(copies), least, dtype=np.int64))
    search.narrow()
    return search.dealt()


@dataclass
class _Bracket:
    """A time, and how many samples end within it, per row and together."""

    seconds: float
    counts: Ints
    total: int


class _Search:
    """Brackets the time of the best split: fewer samples than the batch end within ``low``, enough within ``high``."""

    def __init__(self, times: Times, copies: Ints, batch: int, least: Ints) -> None:
        self.times, self.copies, self.batch = times, copies, batch
        self.rows = np.arange(len(copies))
        self.low = _Bracket(0.0, least, int(copies @ least))
        high = times.capacity
        self.high = _Bracket(float(times.at(self.rows, high).max()), high, int(copies @ high))
        self.few = max(FEW, 2 * int(copies.sum()))

    def narrow(self) -> None:
        """Until few samples are left between the two, or no time is."""
        seconds, aim = self._guess(), 1
        while self.high.total - self.low.total > self.few and self.low.total < self.batch:
            if not self.low.seconds < seconds < self.high.seconds:
                seconds = (self.low.seconds + self.high.seconds) / 2
                if not self.low.seconds < seconds < self.high.seconds:
                    return
            before = self.high.total - self.low.total
            self._try(seconds)
            aim = -aim
            halved = 2 * (self.high.total - self.low.total) <= before
            seconds = self._between(aim) if halved else (self.low.seconds + self.high.seconds) / 2

    def _guess(self) -> float:
        """The batch over the speed of all at equal shares."""
        share = np.clip(self.batch // int(self.copies.sum()), 1, np.maximum(self.times.capacity, 1))
        speeds = share / np.maximum(self.times.at(self.rows, share), 1e-300)
        return self.batch / float(self.copies @ speeds)

    def _between(self, aim: int) -> float:
        """Where a straight line through both ends has a little less than the batch, or a little more."""
        goal = self.batch + aim * self.few / 4
        part = (goal - self.low.total) / (self.high.total - self.low.total)
        return self.low.seconds + min(max(part, 0.02), 0.98) * (self.high.seconds - self.low.seconds)

    def _try(self, seconds: float) -> None:
        counts = self._within(seconds)
        tried = _Bracket(seconds, counts, int(self.copies @ counts))
        if tried.total < self.batch:
            self.low = tried
        else:
            self.high = tried

    def _within(self, seconds: float) -> Ints:
        """Per row, the most samples that end within a time: by interpolation and halving in turn."""
        low, high = self.low.counts.copy(), self.high.counts.copy()
        spread = self.high.seconds - self.low.seconds
        part: Floats | float = (seconds - self.low.seconds) / spread
        turn = 0
        while True:
            open_ = np.flatnonzero(low < high)
            if not len(open_):
                return low
            width = high[open_] - low[open_]
            guess = low[open_] + np.minimum((part * width).astype(np.int64), width - 1)
            both = self.times.at(np.tile(open_, 2), np.concatenate([guess, guess + 1])).reshape(2, -1)
            here, next_ = both <= seconds
            low[open_] = np.where(next_, guess + 1, np.where(here, np.maximum(guess, low[open_]), low[open_]))
            high[open_] = np.where(next_, high[open_], np.where(here, guess, np.maximum(guess - 1, low[open_])))
            part = self._part(open_, low, high, seconds) if turn % 2 == 0 else 0.5
            turn += 1

    def _part(self, rows: Ints, low: Ints, high: Ints, seconds: float) -> Floats | float:
        """Where in its bracket each row that is still open should be tried, by a straight line through its ends."""
        rows = rows[low[rows] < high[rows]]
        if not len(rows):
            return 0.5
        ends = self.times.at(np.tile(rows, 2), np.concatenate([low[rows], high[rows]])).reshape(2, -1)
        rise = np.where(ends[1] > ends[0], ends[1] - ends[0], 1.0)
        found: Floats = np.clip((seconds - ends[0]) / rise, 0.0, 1.0)
        return found

    def dealt(self) -> list[int]:
        """What surely is dealt, and of the rest what ends first; equal times in the order of the devices."""
        given = [0] * int(self.copies.sum())
        for places, count in zip(self.times.members, self.low.counts.tolist(), strict=True):
            for place in places:
                given[place] = count
        left = self.batch - self.low.total
        if self.high.total - self.low.total > self.few:  # all that is left ends at the same moment
            self._fill(given, left)
        else:
            for place in self._first(left):
                given[place] += 1
        return given

    def _fill(self, given: list[int], left: int) -> None:
        room = (self.high.counts - self.low.counts).tolist()
        of = {place: room[row] for row, places in enumerate(self.times.members) for place in places}
        for place in sorted(of):
            given[place] += min(left, of[place])
            left -= min(left, of[place])

    def _first(self, count: int) -> Sequence[int]:
        """Places of the devices that finish first with one more sample, as often as they do."""
        spans = self.high.counts - self.low.counts
        rows = np.repeat(self.rows, spans)
        steps = np.arange(len(rows)) - np.repeat(np.cumsum(spans) - spans, spans)
        seconds = self.times.at(rows, self.low.counts[rows] + 1 + steps)
        each = self.copies[rows]
        places = np.concatenate([self.times.members[row] for row in rows.tolist()]) if len(rows) else np.zeros(0)
        moments, numbers = np.repeat(seconds, each), np.repeat(steps, each)
        order = np.lexsort((numbers, places, moments))
        found: list[int] = places[order[:count]].tolist()
        return found
