"""The exact min-max split of a batch over unequal devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ..sim.plan import Plan
from ..sim.steps import Ints
from ..sim.view import View
from ._base import Choice, canonical, capacities
from .apportion import Ladder, min_max
from .overlap import Overlapped, Overlaps
from .participants import sets_of
from .ranking import ranks


@dataclass(frozen=True, kw_only=True)
class Makespan:
    """Split the batch so that the step is as short as any integer split makes it, within memory."""

    name: ClassVar[str] = "makespan"
    source: ClassVar[str] = "min-max apportionment: the next sample goes to whoever finishes earliest with it"

    leave_out: Annotated[bool, Choice(False, True)] = True
    """Compare sets of participants too: the all-reduce changes with them."""
    overlap: Annotated[bool, Choice(False, True)] = True
    """Reckon with gradients that are synchronised beside the backward pass, where devices can; else all after it."""

    def allocate(self, view: View) -> Plan:
        """The split with the least step, which is the simulated one without noise.

        Exact for each set of participants (see :func:`.apportion.min_max`); over all sets where these are few (see
        :func:`.participants.sets_of`), beyond that over sets of the k fastest and sets of whole machines. Input
        pipelines of machines are not reckoned with.
        """
        view = canonical(view)
        capacities(view)
        overlaps = Overlaps(view, Plan.model_fields["bucket_mib"].default if self.overlap else None)
        if not self.leave_out:
            split = min_max(overlaps.among(np.arange(len(view.devices))), view.global_batch)
            assert split is not None, "capacities() has judged"
            return view.plan(split)
        return view.plan(_Comparison(overlaps).best(sets_of(view)))


class _Comparison:
    """Finds the best split of all sets; most sets are known to be no better before their collectives are priced."""

    def __init__(self, overlaps: Overlaps) -> None:
        self._overlaps, self._view = overlaps, overlaps.view
        self._batch = self._view.global_batch
        nodes = self._view.cluster.node_of
        self._machine = np.array([nodes[device.name] for device in self._view.devices])
        self._seconds = float("inf")
        self._found: list[tuple[Ints, list[int]]] = []
        """Sets and splits that take equally long."""
        self._ladders: tuple[Ladder, Ladder] | None = None
        self._alone: Ints | None = None
        """Per device, the samples that it ends within the best time so far, if nothing is sent."""
        self._together: Ints | None = None
        """The same with as little as any set of several machines sends."""

    def best(self, sets: Sequence[Ints]) -> list[int]:
        """Samples of every device."""
        everybody = np.arange(len(self._view.devices))
        times = self._overlaps.among(everybody)
        split = np.array(min_max(times, self._batch))
        if split.all():
            self._keep(everybody, times, split)
        else:  # a set of all may be too large for the batch
            sets = [np.flatnonzero(split), *sets]
        tried = {tuple(chosen.tolist()) for chosen, _ in self._found}
        for chosen in sets:
            key = tuple(chosen.tolist())
            if key not in tried and not self._too_slow(chosen):
                self._try(chosen)
            tried.add(key)
        return self._dealt()

    def _try(self, chosen: Ints) -> None:
        """Compare the best split in which each of a set has a sample, if there is one."""
        times = self._overlaps.among(chosen)
        split = min_max(times, self._batch, least=1, within=self._seconds)
        if split is not None:
            self._keep(chosen, times, np.array(split))

    def _keep(self, chosen: Ints, times: Overlapped, split: Ints) -> None:
        seconds = float(times.at(times.row_of, split).max())
        if seconds < self._seconds:
            self._seconds, self._found = seconds, []
            self._learn()
        if seconds == self._seconds:
            self._found.append((chosen, split.tolist()))

    def _too_slow(self, chosen: Ints) -> bool:
        """Whether a set cannot be as fast as the best so far, whatever its links are."""
        if self._alone is None or self._together is None:
            return False
        if int(self._alone[chosen].sum()) < self._batch:
            return True
        apart = (self._machine[chosen] != self._machine[chosen[0]]).any()
        return bool(apart and int(self._together[chosen].sum()) < self._batch)

    def _learn(self) -> None:
        """What each device can do within the best time, as a bound."""
        steps = self._view.steps
        if not steps.rising:
            return
        if self._ladders is None:
            alone = Ladder(steps)
            most = alone.most_within(self._seconds)[steps.row_of]
            # So many devices at least: no fewer of those that do the most reach the batch.
            least = 1 + int(np.searchsorted(np.cumsum(np.sort(most)[::-1]), self._batch))
            self._ladders = alone, Ladder(self._overlaps.floor(least))
        self._alone, self._together = (each.most_within(self._seconds)[steps.row_of] for each in self._ladders)

    def _dealt(self) -> list[int]:
        """The samples of the best set; equal times are decided by what the devices are, not by their places."""
        chosen, split = self._found[0]
        if len(self._found) > 1:
            numbers = ranks(self._view)
            chosen, split = min(self._found, key=lambda each: ([numbers[place] for place in each[0]], each[1]))
        samples = np.zeros(len(self._view.devices), dtype=np.int64)
        samples[chosen] = split
        found: list[int] = samples.tolist()
        return found
