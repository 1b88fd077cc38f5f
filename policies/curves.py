"""Curves: the step times of many devices at once, as arrays; devices of one kind share a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..sim.curve import Curve, Line
from ..sim.view import DeviceView

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_LIMIT = 2**53
ROW = 2**40
"""Distance of two rows in the one sorted list that the sizes of all curves are looked up in."""
TOLERANCE = 1e-12


class Times(Protocol):
    """Seconds against samples, one row per kind of device; 0 samples take none."""

    @property
    def members(self) -> Sequence[Sequence[int]]:
        """Per row, the places of its devices."""
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


class Given:
    """Times by one function per row, which takes an array of samples (1 and more) and never falls."""

    rising = True

    def __init__(
        self,
        functions: Sequence[Callable[[Ints], Floats]],
        members: Sequence[Sequence[int]],
        capacity: Sequence[int],
    ) -> None:
        self.members = members
        self.capacity = np.array(capacity, dtype=np.int64)
        self._functions = functions

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`Times`."""
        found = np.zeros(len(rows))
        for row in np.unique(rows):
            here = (rows == row) & (samples > 0)
            if here.any():
                found[here] = self._functions[row](samples[here])
        return found


class Steps:
    """:meth:`DeviceView.step_s` of many devices: the same figures to the last bit, row by row at once."""

    def __init__(self, devices: Sequence[DeviceView], batch: int) -> None:
        rows: dict[tuple[object, ...], list[int]] = {}
        for place, device in enumerate(devices):
            cost = device.cost
            key = (
                _key(cost.forward),
                _key(cost.backward),
                cost.optimizer_s,
                device.capacity,
                device.largest_micro_batch,
            )
            rows.setdefault(key, []).append(place)
        self.members = list(rows.values())
        self._devices = [devices[places[0]] for places in self.members]
        self.capacity = np.array([min(device.capacity, batch) for device in self._devices], dtype=np.int64)
        limits = [device.largest_micro_batch or NO_LIMIT for device in self._devices]
        self._largest = np.array(limits, dtype=np.int64)
        self._forward = curves([device.cost.forward for device in self._devices])
        self._backward = curves([device.cost.backward for device in self._devices])
        self._optimizer_s = np.array([device.cost.optimizer_s for device in self._devices])

    def at(self, rows: Ints, samples: Ints) -> Floats:
        """See :class:`Times`."""
        count = np.maximum(-(-samples // self._largest[rows]), 1)
        size = samples // count
        over = samples - size * count
        seconds = (count - over) * self._compute_s(rows, size)
        uneven = np.flatnonzero(over)
        if len(uneven):  # first the larger micro-batches, as DeviceView.step_s adds them
            seconds[uneven] = over[uneven] * self._compute_s(rows[uneven], size[uneven] + 1) + seconds[uneven]
        return np.where(samples > 0, seconds + self._optimizer_s[rows], 0.0)

    def _compute_s(self, rows: Ints, samples: Ints) -> Floats:
        return self._forward(rows, samples) + self._backward(rows, samples)

    @property
    def rising(self) -> bool:
        """See :class:`Times`.

        A micro-batch never takes less with more samples. One more micro-batch never makes a step shorter if none has a
        better rate than the largest: all together then take at least as long as full ones with as many samples.
        """
        return all(map(_rises, self._devices))


def _key(part: Line | Curve) -> object:
    """Curves by identity: those of one kind of device are one object, and hashing a long one takes longer."""
    return part if isinstance(part, Line) else id(part)


def _rises(device: DeviceView) -> bool:
    parts = (device.cost.forward, device.cost.backward)
    if not all(_never_falls(part) for part in parts):
        return False
    largest = device.largest_micro_batch
    if largest is None or device.capacity <= largest or all(isinstance(part, Line) for part in parts):
        return True
    # Between two sizes time is affine, so time over size is least at one of the two.
    sizes = {size for part in parts if isinstance(part, Curve) for size in (*part.sizes, *_floor_ends(part))} | {1}
    rate = device.cost.compute_s(largest) / largest
    return all(device.cost.compute_s(size) >= rate * size * (1 - TOLERANCE) for size in sizes if 1 <= size < largest)


def _floor_ends(part: Curve) -> tuple[int, int]:
    """The sizes around the one below which a curve that is continued downwards stays at its floor."""
    rise = (part.seconds[1] - part.seconds[0]) / (part.sizes[1] - part.sizes[0])
    if rise <= 0:
        return 1, 1
    size = int(max(part.sizes[0] - (part.seconds[0] - min(part.seconds) * 1e-3) / rise, 1))
    return size, size + 1


def _never_falls(part: Line | Curve) -> bool:
    if isinstance(part, Line):
        return part.per_sample_s >= 0 and part.fixed_s >= 0
    return all(low <= high for low, high in zip(part.seconds, part.seconds[1:], strict=False))


def curves(parts: Sequence[Line | Curve]) -> Callable[[Ints, Ints], Floats]:
    """``part.at(samples)`` of many parts at once: a function of rows and samples."""
    lines = np.array([isinstance(part, Line) for part in parts])
    fixed = np.array([part.fixed_s if isinstance(part, Line) else 0.0 for part in parts])
    per_sample = np.array([part.per_sample_s if isinstance(part, Line) else 0.0 for part in parts])

    def straight(rows: Ints, samples: Ints) -> Floats:
        found: Floats = fixed[rows] + per_sample[rows] * samples
        return found

    if lines.all():
        return straight
    bent = _bent([part if isinstance(part, Curve) else Curve((1, 2), (0.0, 0.0)) for part in parts])
    if not lines.any():
        return bent
    return lambda rows, samples: np.where(lines[rows], straight(rows, samples), bent(rows, samples))


def _bent(parts: Sequence[Curve]) -> Callable[[Ints, Ints], Floats]:
    lengths = np.array([len(part.sizes) for part in parts])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sizes = np.array([size for part in parts for size in part.sizes], dtype=np.int64)
    seconds = np.array([value for part in parts for value in part.seconds])
    least = np.array([min(part.seconds) * 1e-3 for part in parts])
    keys = np.minimum(sizes, ROW - 1) + np.repeat(np.arange(len(parts)), lengths) * ROW

    def at(rows: Ints, samples: Ints) -> Floats:
        start = starts[rows]
        index = np.searchsorted(keys, rows * ROW + samples) - start
        high = start + np.clip(index, 1, lengths[rows] - 1)
        x0, x1, y0, y1 = sizes[high - 1], sizes[high], seconds[high - 1], seconds[high]
        between = np.maximum(y0 + (y1 - y0) * (samples - x0) / (x1 - x0), least[rows])
        found: Floats = np.where(samples == x1, y1, between)
        return found

    return at
