"""Relaxation: a linear programme that every plan satisfies, and the bound on the step time that its dual proves.

Unknown are T, the samples of each layer that each kind of device works on, and the shares of each layer's states that
it holds and updates; least is T. Every layer of every sample is done somewhere, every layer is updated at least once
(ZeRO) by whoever holds it, no kind of device works longer than T on each of its devices, and the states fit. Whoever
works on a layer has its weights whole for a while, or its part of them in a tensor-parallel group: kinds of devices
with less memory than that are left out of that layer. Communication, activations and waiting are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .noise import Floats

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Relaxation:
    """Figures by kind of device (rows) and class of layers (columns)."""

    batch: int
    pass_s: Floats
    """Least seconds per sample of a layer; infinite where a kind of device cannot hold its weights."""
    update_s: Floats
    """Least seconds of a layer's update."""
    state_bytes: Floats
    """Per class: states of one layer."""
    layers: Floats
    """Per class: how many layers it has."""
    devices: Floats
    """Per kind: how many devices it has."""
    memory_bytes: Floats
    """Per kind: memory of one device."""

    def bound_s(self) -> float:
        """A time that no plan goes below, the largest that the programme proves (to the solver's precision)."""
        busy, full = self._prices() if len(self.devices) > 1 else (np.ones(1), np.zeros(1))
        return self.proved_s(busy, full)

    def proved_s(self, busy: Floats, full: Floats) -> float:
        """What prices prove, whichever they are: weak duality.

        Args:
            busy: per kind, the price of a second of one of its devices (not all zero).
            full: per kind, the price of a byte of its memory, in the same unit.
        """
        worth = float(busy @ self.devices)
        able = np.isfinite(self.pass_s)
        passes = np.min(np.where(able, busy[:, None] * np.where(able, self.pass_s, 0.0), np.inf), axis=0)
        updates = np.min(busy[:, None] * self.update_s + full[:, None] * self.state_bytes, axis=0)
        held = float(full @ (self.devices * self.memory_bytes))
        return float(self.layers @ (self.batch * passes + updates) - held) / worth

    def _prices(self) -> tuple[Floats, Floats]:
        """The dual values of time and memory at the optimum, by HiGHS; equal prices of time where it finds none."""
        from scipy.optimize import linprog  # slow to import

        kinds, classes = self.pass_s.shape
        # Units of about 1: the solver's tolerances are absolute.
        second = max(float(np.min(self.pass_s, axis=0) @ self.layers) * self.batch, 1e-30)
        byte = max(float(self.state_bytes @ self.layers), 1.0)
        limits, deals = self._limits(second, byte), self._deals()
        room = np.concatenate([np.zeros(kinds), self.devices * self.memory_bytes / byte])
        most = np.concatenate([np.isfinite(self.pass_s).ravel().astype(float), np.ones(kinds * classes), [np.inf]])
        goal = np.zeros(len(most))
        goal[-1] = 1.0
        ranges = [(0.0, each) for each in most.tolist()]
        found = linprog(goal, limits, room, deals, np.ones(2 * classes), bounds=ranges, method="highs")
        if found.status != 0:  # the states fit nowhere: nothing but the work is left to bound
            return np.ones(kinds), np.zeros(kinds)
        prices = np.maximum(-found.ineqlin.marginals, 0.0)
        return prices[:kinds], prices[kinds:] * second / byte

    def _limits(self, second: float, byte: float) -> Floats:
        """Rows: the time of each kind, its memory. Columns: shares of passes, shares of updates, T."""
        kinds, classes = self.pass_s.shape
        entries = kinds * classes
        passes = np.where(np.isfinite(self.pass_s), self.pass_s, 0.0) * self.batch * self.layers / second
        found = np.zeros((2 * kinds, 2 * entries + 1))
        for kind in range(kinds):
            own = slice(kind * classes, (kind + 1) * classes)
            other = slice(entries + own.start, entries + own.stop)
            found[kind, own], found[kind, other] = passes[kind], self.update_s[kind] * self.layers / second
            found[kind, -1] = -self.devices[kind]
            found[kinds + kind, other] = self.state_bytes * self.layers / byte
        return found

    def _deals(self) -> Floats:
        """Rows: all of each class is worked on, and updated; the columns are those of the limits."""
        kinds, classes = self.pass_s.shape
        each = np.tile(np.eye(classes), kinds)
        nothing = np.zeros_like(each)
        found: Floats = np.block([[each, nothing, np.zeros((classes, 1))], [nothing, each, np.zeros((classes, 1))]])
        return found
