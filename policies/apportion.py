"""Apportion: the integer split of a batch whose slowest device finishes as early as any split allows.

For times that never fall with the samples, the split that deals sample by sample to whoever finishes earliest with the
next one is exact (an exchange argument). It is found without dealing: the time T at which the devices together just
hold the batch is bracketed, counting for each kind of device how many samples end within T, until few samples are left,
and these are sorted. For times that do fall (measured ones: two halves of a batch can be cheaper than a whole that
no longer fits a cache) see :mod:`.gaps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..sim.steps import Floats, Ints, Times
from . import gaps

FEW = 64
FEW_ROWS = 32
"""Of so few, several samples each are tried at once: it takes no longer."""
NEXT, AROUND = np.array([0, 1]), np.array([-512, -64, -8, -1, 0, 1, 2, 9, 65, 513])
"""What is tried, beside a guess."""
PACES = 24
"""Halvings of a time that is but a guess."""


def min_max(
    times: Times, batch: int, least: int = 0, within: float = math.inf, ladder: Ladder | None = None
) -> list[int] | None:
    """Samples per device with the least maximum of the times; None where the batch does not fit.

    Exact where times never fall; where they may, exact as long as kinds of devices times batch is at most
    :data:`.gaps.MOST_ENTRIES`, beyond that a valid split that may be longer than need be. Ties go to earlier devices.

    Args:
        times: of the devices that take part.
        batch: samples in all.
        least: samples that each device must have.
        within: seconds; None too where times never fall and the best split takes longer.
        ladder: of these times, for whoever asks more than once.
    """
    copies = np.bincount(times.row_of, minlength=len(times.capacity))
    devices = len(times.row_of)
    if not least * devices <= batch <= int(copies @ times.capacity) or int(times.capacity.min()) < least:
        return None
    if not times.rising and gaps.fits(times, batch):
        return gaps.min_max(times, batch, least)
    search = _Search(ladder or Ladder(times), copies, batch, np.full(len(copies), least, dtype=np.int64))
    if not search.ends_within(within):
        return None
    search.narrow()
    found: list[int] = search.dealt().tolist()
    return found


class Ladder:
    """The times at powers of two: between two of them most times are nearly straight."""

    def __init__(self, times: Times) -> None:
        self.times = times
        self.rows = np.arange(len(times.capacity))
        steps = np.append(0, 2 ** np.arange(int(times.capacity.max()).bit_length()))
        self.sizes: Ints = np.minimum(np.append(steps, times.capacity.max())[None, :], times.capacity[:, None])
        shape = self.sizes.shape
        found = times.at(np.repeat(self.rows, shape[1]), self.sizes.ravel()).reshape(shape)
        self.seconds: Floats = np.maximum.accumulate(found, axis=1)
        """(rows, sizes)."""

    def most_within(self, seconds: float, low: Ints | None = None, high: Ints | None = None) -> Ints:
        """Per row, the most samples that end within a time, of those from ``low`` (taken to do so) to ``high``.

        Tried where a straight line has it: between powers of two, then in what is left of that, every other time in
        the middle.
        """
        below, above, guess = self._around(seconds)
        low = below if low is None else np.maximum(low, below)
        high = np.maximum(above if high is None else np.minimum(high, above), low)
        rows, straight = np.flatnonzero(low < high), True
        while len(rows):
            around = AROUND if len(rows) <= FEW_ROWS else NEXT
            least, most = low[rows], high[rows]
            tried = np.minimum(
                np.maximum(np.minimum(guess[rows], most - 1)[:, None] + around, least[:, None]), most[:, None]
            )
            found = self.times.at(np.repeat(rows, len(around)), tried.ravel()).reshape(tried.shape)
            over = (found > seconds) & (tried > least[:, None])
            first, any_over = over.argmax(axis=1), over.any(axis=1)
            every = np.arange(len(rows))
            below = np.where(any_over, tried[every, first - 1], tried[:, -1])
            low[rows] = np.where(any_over & (first == 0), least, below)
            high[rows] = np.where(any_over, tried[every, first] - 1, most)
            rows, straight = rows[low[rows] < high[rows]], not straight
            guess = (low + high) // 2
            if straight and len(rows):
                guess[rows] = self._between(rows, low, high, seconds)
        return low

    def _around(self, seconds: float) -> tuple[Ints, Ints, Ints]:
        """Per row, the sizes of the ladder around a time, and where a straight line between them has it."""
        last = self.sizes.shape[1] - 1
        place = np.minimum((self.seconds <= seconds).sum(axis=1), last)
        below, above = self.sizes[self.rows, place - 1], self.sizes[self.rows, place]
        first, then = self.seconds[self.rows, place - 1], self.seconds[self.rows, place]
        part = np.minimum((seconds - first) / np.where(then > first, then - first, 1.0), 1.0)
        # Beyond the last size: a row whose capacity ends in time. It is tried, since the ladder itself was evened out.
        return below, above, below + (part * (above - below)).astype(np.int64)

    def _between(self, rows: Ints, low: Ints, high: Ints, seconds: float) -> Ints:
        """Where a straight line through both ends of what is left has a time."""
        ends = self.times.at(np.concatenate([rows, rows]), np.concatenate([low[rows], high[rows]])).reshape(2, -1)
        part = (seconds - ends[0]) / np.where(ends[1] > ends[0], ends[1] - ends[0], 1.0)
        width = high[rows] - low[rows]
        found: Ints = low[rows] + (np.minimum(np.maximum(part, 0.0), 1.0) * width).astype(np.int64)
        return found

    def time_of(self, copies: Ints, total: int) -> float:
        """About the time in which so many samples end together: by straight lines over the ladder."""
        low, high = 0.0, float(self.seconds[:, -1].max())
        for _ in range(PACES):
            middle = (low + high) / 2
            if float(copies @ self._around(middle)[2]) < total:
                low = middle
            else:
                high = middle
        return high


@dataclass
class _Bracket:
    """A time, and how many samples end within it, per row and together."""

    seconds: float
    counts: Ints
    total: int


class _Search:
    """Brackets the time of the best split: fewer samples than the batch end within ``low``, enough within ``high``."""

    def __init__(self, ladder: Ladder, copies: Ints, batch: int, least: Ints) -> None:
        self.times, self.copies, self.batch = ladder.times, copies, batch
        self.ladder, times = ladder, ladder.times
        self.low = _Bracket(0.0, least, int(copies @ least))
        high = times.capacity
        self.high = _Bracket(float(self.ladder.seconds[:, -1].max()), high, int(copies @ high))
        self.few = max(FEW, 2 * int(copies.sum()))

    def ends_within(self, seconds: float) -> bool:
        """Whether any split takes no longer, as far as times never fall."""
        if self.times.rising and seconds < self.high.seconds:
            self._try(seconds)
            return self.low.seconds < seconds
        return True

    def narrow(self) -> None:
        """Until few samples are left between the two, or no time is."""
        if self.high.total - self.low.total <= self.few or self.low.total >= self.batch:
            return
        seconds, aim = self.ladder.time_of(self.copies, self.batch - self.few // 4), -1
        while self.high.total - self.low.total > self.few and self.low.total < self.batch:
            if not self.low.seconds < seconds < self.high.seconds:
                seconds = (self.low.seconds + self.high.seconds) / 2
                if not self.low.seconds < seconds < self.high.seconds:
                    return
            before = self.high.total - self.low.total
            self._try(seconds)
            aim = 1 if self.low.seconds == seconds else -1
            halved = 2 * (self.high.total - self.low.total) <= before
            seconds = self._between(aim) if halved else (self.low.seconds + self.high.seconds) / 2

    def _between(self, aim: int) -> float:
        """Where a straight line through both ends has a little less than the batch, or a little more."""
        goal = self.batch + aim * self.few / 4
        part = (goal - self.low.total) / (self.high.total - self.low.total)
        return self.low.seconds + min(max(part, 0.0), 1.0) * (self.high.seconds - self.low.seconds)

    def _try(self, seconds: float) -> None:
        counts = self.ladder.most_within(seconds, self.low.counts, self.high.counts)
        tried = _Bracket(seconds, counts, int(self.copies @ counts))
        if tried.total < self.batch:
            self.low = tried
        else:
            self.high = tried

    def dealt(self) -> Ints:
        """What surely is dealt, and of the rest what ends first; equal times in the order of the devices."""
        rows = self.times.row_of
        given = self.low.counts[rows]
        left = self.batch - self.low.total
        if self.high.total - self.low.total > self.few:  # all that is left ends at the same moment
            room = (self.high.counts - self.low.counts)[rows]
            before = np.cumsum(room) - room
            given += np.minimum(np.maximum(left - before, 0), room)
            return given
        np.add.at(given, self._first(left), 1)
        return given

    def _first(self, count: int) -> Ints:
        """Places of the devices that finish first with one more sample, as often as they do."""
        spans = (self.high.counts - self.low.counts)[self.times.row_of]
        places = np.repeat(np.arange(len(spans)), spans)
        numbers = np.arange(len(places)) - np.repeat(np.cumsum(spans) - spans, spans)
        rows = self.times.row_of[places]
        seconds = self.times.at(rows, self.low.counts[rows] + 1 + numbers)
        # Places are in order, and within a place the numbers: a stable sort leaves equal times so.
        found: Ints = places[np.argsort(seconds, kind="stable")[:count]]
        return found
