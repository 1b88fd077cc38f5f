"""Steps: the step times of many devices at once, as arrays; devices of one kind share a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .curve import Curve, Line

if TYPE_CHECKING:
    from .view import DeviceView

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
NO_LIMIT = 2**53
ROW = 2**40
"""Distance of two rows in the one sorted list that the sizes of all curves are looked up in."""
TOLERANCE = 1e-12


class Times(Protocol):
    """Seconds against samples, one row per kind of device; 0 samples take none."""

    @property
    def row_of(self) -> Ints:
        """Per device, its row; every row has a device."""
        ...

    @property
    def capacity(self) -> Ints:
        """Per row, the most samples of a device."""
        ...

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """Seconds of some rows, each for its own number of samples."""
        ...

    @property
    def rising(self) -> bool:
        """Whether it is certain that no row ever takes less time for more samples."""
        ...


@dataclass(frozen=True, eq=False)
class Kinds:
    """The figures of unlike devices, one row each, as arrays."""

    devices: Sequence[DeviceView]
    """One of each kind."""
    forward: Parts
    backward: Parts
    optimizer_s: Floats
    largest: Ints
    """Samples of the largest micro-batch."""
    capacity: Ints

    @classmethod
    def of(cls, devices: Sequence[DeviceView]) -> Kinds:
        """From one device of each kind."""
        limits = [device.largest_micro_batch or NO_LIMIT for device in devices]
        return cls(
            devices=devices,
            forward=Parts.of([device.cost.forward for device in devices]),
            backward=Parts.of([device.cost.backward for device in devices]),
            optimizer_s=np.array([device.cost.optimizer_s for device in devices]),
            largest=np.array(limits, dtype=np.int64),
            capacity=np.array([device.capacity for device in devices], dtype=np.int64),
        )

    def compute_s(self, rows: Ints, samples: Ints) -> Floats:
        """Forward and backward of one micro-batch."""
        return self.forward.at(rows, samples) + self.backward.at(rows, samples)

    def step_s(self, rows: Ints, samples: Ints) -> Floats:
        """:meth:`DeviceView.step_s`: the same figures to the last bit."""
        largest = self.largest[rows]
        if (samples <= largest).all():
            seconds = self.compute_s(rows, samples)
        else:
            count = np.maximum(-(-samples // largest), 1)
            size = samples // count
            over = samples - size * count
            seconds = (count - over) * self.compute_s(rows, size)
            uneven = np.flatnonzero(over)
            if len(uneven):  # first the larger micro-batches, as DeviceView.step_s adds them
                more = over[uneven] * self.compute_s(rows[uneven], size[uneven] + 1)
                seconds[uneven] = more + seconds[uneven]
        return np.where(samples > 0, seconds + self.optimizer_s[rows], 0.0)

    @cached_property
    def rising(self) -> Flags:
        """Per row, whether it is certain that more samples never take less time.

        A micro-batch never takes less with more samples. One more micro-batch never makes a step shorter if none has a
        better rate than the largest: all together then take at least as long as full ones with as many samples.
        """
        found = self.forward.rising & self.backward.rising
        cut = found & (self.capacity > self.largest) & ~(self.forward.straight & self.backward.straight)
        for row in np.flatnonzero(cut).tolist():
            found[row] = self._best_when_full(row)
        return found

    def _best_when_full(self, row: int) -> bool:
        """Between two sizes time is affine, so time over size is least at one of the two."""
        largest = int(self.largest[row])
        sizes = {*self.forward.turns(row), *self.backward.turns(row), 1}
        tried = np.array([size for size in sizes if 1 <= size < largest] + [largest])
        seconds = self.compute_s(np.full(len(tried), row), tried)
        return bool((seconds >= seconds[-1] / largest * tried * (1 - TOLERANCE)).all())


class Steps:
    """:meth:`DeviceView.step_s` of many devices, row by row at once; some of them can be had :meth:`among` all."""

    def __init__(self, devices: Sequence[DeviceView], batch: int) -> None:
        numbers: dict[tuple[object, ...], int] = {}
        rows = [numbers.setdefault(_key(device), len(numbers)) for device in devices]
        examples: dict[int, DeviceView] = {}
        for row, device in zip(rows, devices, strict=True):
            examples.setdefault(row, device)
        self.kinds = Kinds.of(list(examples.values()))
        self._take(np.arange(len(examples)), np.array(rows, dtype=np.int64), batch)

    def _take(self, index: Ints, row_of: Ints, batch: int) -> None:
        self.index = index
        """Per row, its number in :attr:`kinds`."""
        self.row_of = row_of
        self.batch = batch
        self.capacity = np.minimum(self.kinds.capacity[index], batch)

    def among(self, places: Ints) -> Steps:
        """Those of some of the devices, in this order."""
        rows = self.row_of[places]
        used = np.zeros(len(self.index), dtype=bool)
        used[rows] = True
        found = Steps.__new__(Steps)
        found.kinds = self.kinds
        found._take(self.index[used], (np.cumsum(used) - 1)[rows], self.batch)
        return found

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`Times`."""
        return self.kinds.step_s(self.index[rows], samples)

    @property
    def rising(self) -> bool:
        """See :class:`Times`."""
        return bool(self.kinds.rising[self.index].all())


def _key(device: DeviceView) -> tuple[object, ...]:
    """Curves by identity: those of one kind of device are one object, and hashing a long one takes longer."""
    cost = device.cost
    forward, backward = cost.forward, cost.backward
    return (
        forward if isinstance(forward, Line) else id(forward),
        backward if isinstance(backward, Line) else id(backward),
        cost.optimizer_s,
        tuple((point.blocked_s, point.extra_s) for point in cost.waking),
        device.capacity,
        device.largest_micro_batch,
    )


@dataclass(frozen=True, eq=False)
class Parts:
    """``part.at(samples)`` of many forward or backward parts at once."""

    straight: Flags
    """Per row, whether it is a line."""
    fixed_s: Floats
    per_sample_s: Floats
    bent: Bent | None
    """The curves; None where all are lines. A line has a row of zeros."""

    @classmethod
    def of(cls, parts: Sequence[Line | Curve]) -> Parts:
        """From the parts of all rows."""
        straight = np.array([isinstance(part, Line) for part in parts])
        flat = Curve((1, 2), (0.0, 0.0))
        return cls(
            straight=straight,
            fixed_s=np.array([part.fixed_s if isinstance(part, Line) else 0.0 for part in parts]),
            per_sample_s=np.array([part.per_sample_s if isinstance(part, Line) else 0.0 for part in parts]),
            bent=None if straight.all() else Bent.of([part if isinstance(part, Curve) else flat for part in parts]),
        )

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """Seconds of some rows, each for its own number of samples."""
        if self.bent is not None and not self.straight.any():
            return self.bent.at(rows, samples)
        lines: Floats = self.fixed_s[rows] + self.per_sample_s[rows] * samples
        return lines if self.bent is None else np.where(self.straight[rows], lines, self.bent.at(rows, samples))

    @property
    def rising(self) -> Flags:
        """Per row, whether more samples never take less time."""
        lines = (self.per_sample_s >= 0) & (self.fixed_s >= 0)
        return lines if self.bent is None else np.where(self.straight, lines, self.bent.rising)

    def turns(self, row: int) -> Sequence[int]:
        """The sizes between which a row is affine."""
        return () if self.bent is None or self.straight[row] else self.bent.turns(row)


@dataclass(frozen=True, eq=False)
class Bent:
    """Many curves; where all have the same sizes, these are looked up once."""

    starts: Ints
    """Per curve, where its seconds begin."""
    lengths: Ints
    sizes: Ints
    """Of all curves in a row, or where they are the same, once."""
    seconds: Floats
    keys: Ints | None
    """What sizes are looked up in; None where they are the same."""
    least: Floats
    """Seconds that no size goes below."""

    @classmethod
    def of(cls, parts: Sequence[Curve]) -> Bent:
        """From curves of any sizes."""
        same = all(part.sizes == parts[0].sizes for part in parts)
        lengths = np.array([len(part.sizes) for part in parts])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        seconds = np.fromiter(chain.from_iterable(part.seconds for part in parts), np.float64, int(lengths.sum()))
        found = parts[0].sizes if same else chain.from_iterable(part.sizes for part in parts)
        sizes = np.fromiter(found, np.int64, len(parts[0].sizes) if same else len(seconds))
        keys = None if same else np.minimum(sizes, ROW - 1) + np.repeat(np.arange(len(parts)), lengths) * ROW
        return cls(starts, lengths, sizes, seconds, keys, np.minimum.reduceat(seconds, starts) * 1e-3)

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """:meth:`Curve.at` of some rows, each for its own number of samples."""
        start = self.starts[rows]
        if self.keys is None:
            high = np.minimum(np.maximum(np.searchsorted(self.sizes, samples), 1), len(self.sizes) - 1)
            x0, x1, place = self.sizes[high - 1], self.sizes[high], start + high
        else:
            index = np.searchsorted(self.keys, rows * ROW + samples) - start
            place = start + np.minimum(np.maximum(index, 1), self.lengths[rows] - 1)
            x0, x1 = self.sizes[place - 1], self.sizes[place]
        y0, y1 = self.seconds[place - 1], self.seconds[place]
        between = np.maximum(y0 + (y1 - y0) * (samples - x0) / (x1 - x0), self.least[rows])
        found: Floats = np.where(samples == x1, y1, between)
        return found

    @property
    def rising(self) -> Flags:
        """Per row, whether its seconds never fall."""
        falls = np.append(np.diff(self.seconds) < 0, False)
        falls[self.starts[1:] - 1] = False
        return ~np.logical_or.reduceat(falls, self.starts)

    def turns(self, row: int) -> list[int]:
        """The sizes of a curve, and those around the one below which it stays at its floor."""
        start, length = self.starts[row], self.lengths[row]
        sizes = self.sizes if self.keys is None else self.sizes[start : start + length]
        first, second = self.seconds[start : start + 2].tolist()
        rise = (second - first) / int(sizes[1] - sizes[0])
        if rise <= 0:
            return [*sizes.tolist(), 1]
        size = int(max(int(sizes[0]) - (first - float(self.least[row])) / rise, 1))
        return [*sizes.tolist(), size, size + 1]
