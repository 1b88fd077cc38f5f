"""Attention that places the operators of a graph: one after the other, on devices as they are by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from ..sim import cost
from ..sim.estimate import Estimator
from ..sim.noise import Floats, stream
from ..sim.plan import Infeasible, Plan, micro_batches
from ..sim.schedule import Kind
from ..sim.view import View
from ._base import Choice, Range, canonical
from .attention import Weight
from .graphs import KINDS, placements
from .operator_keys import FEATURES, KEYS, OperatorKeys, Placing, Sight, Way
from .tasks import NoRoomError, Tasks, Timetable

Positive = Annotated[float, Range(0, 4)]
CLOSELY = 4
"""Plans that are estimated as the engine would do them; the others only by their timetables."""
LOOKS = 2_000_000
"""Looks of an operator at a device, over all walks: for more there are fewer heads."""
CLOSED = -1.0
"""Room of a device that a head does not see."""


class Look(NamedTuple):
    """What tells a head from the others."""

    devices: int
    """It sees so many of the fastest."""
    draw: int | None = None
    """Number of its draw from the softmax; None: it takes the best."""


@dataclass(frozen=True, kw_only=True)
class AttentionOperators:
    """Operators of a graph, one after the other, attend to devices: by when they end there, what follows, and room.

    A device that is full is masked. Some heads take the device with the highest score, each among fewer of the
    fastest; others draw from the softmax. Each walks several rounds: the next one knows where the readers were. The
    plan with the least estimated step is taken. Alone, ``finish`` with ``gaps`` is HEFT; ``start`` in the order
    ``ready`` is m-ETF.
    """

    name: ClassVar[str] = "attention-operators"
    source: ClassVar[str] = (
        "the project's own: pointing with masks (Vinyals et al. 2015, arXiv 1506.03134) over what list schedules look "
        "at (HEFT: Topcuoglu et al. 2002; the way ahead as in PEFT: Arabnejad, Barbosa 2014, recalled)"
    )
    rigid: ClassVar[bool] = True

    finish: Positive = 1.0
    """Weight of how early the operator ends on a device."""
    ahead: Positive = 1.0
    """Weight of how early all that is behind the operator can end then."""
    start: Weight = 0.0
    """Weight of how early the operator begins."""
    speed: Weight = 0.0
    """Weight of the key log(1 / the operator's time on the device)."""
    moved: Weight = 0.0
    """Weight of how short the transfers to the device are."""
    memory: Weight = 0.0
    """Weight of the key log(share of the device's memory that is left)."""
    load: Positive = 1.0
    """Weight of how little a device has to do: counts where micro-batches follow each other."""
    urgent: Weight = 0.0
    """Added to the weight of the speed, times log(longest way through the operator / longest of all)."""
    large: Weight = 0.0
    """Added to the weight of the speed, times log(the operator's time / the mean)."""
    talkative: Weight = 0.0
    """Added to the weight of the transfers, times log(1 + the operator's messages / its time)."""
    order: Annotated[str, Choice("rank", "ready")] = "rank"
    """``rank``: the operator with the longest way behind it is next. ``ready``: all that can go attend at once."""
    rank: Positive = 1.0
    """In the order ``ready``: weight of how long the way behind an operator is."""
    gaps: Annotated[bool, Choice(True, False)] = True
    """Whether an operator may go before others, where a device waits for long enough."""
    temperature: Annotated[float, Range(0.05, 1.0, log=True)] = 0.25
    """Of the softmax that the drawing heads draw from."""
    rounds: Annotated[int, Range(1, 4)] = 2
    """Walks of a head: in each but the first, the way behind an operator is that of the walk before."""
    heads: Annotated[int, Range(1, 32)] = 16
    """Walks over the operators at most."""
    micro_batches: Annotated[int, Range(1, 64, log=True)] = 1
    """Most parts that each micro-batch of the workload is cut into: twice as many as long as steps get shorter."""

    def allocate(self, view: View) -> Plan:
        """The placement, and the order in which devices take their layers.

        Raises:
            Infeasible: to no head's walk there is a device for each layer.
        """
        view = canonical(view)
        estimator, refusal = Estimator(view), None
        best: tuple[float, Plan] | None = None
        for kinds in (KINDS[:1], KINDS[1:]) if self.micro_batches > 1 else (KINDS,):
            for sizes in self._cuts(view, kinds):
                try:
                    found = self._placed(view, estimator, sizes, kinds)
                except Infeasible as reason:  # smaller micro-batches may take less memory
                    refusal = refusal or reason
                    continue
                if best is not None and found[0] >= best[0] and kinds[0] == "gpipe":
                    break  # shorter ones fill the devices no better
                best = min(best or found, found, key=lambda each: each[0])
        if best is None:
            assert refusal is not None, "there is one way at least to cut the batch"
            raise refusal
        return best[1]

    def _cuts(self, view: View, kinds: Sequence[Kind]) -> Iterator[list[int]]:
        """Sizes of micro-batches: as the workload's limit cuts the batch, and each in two, four, ... parts.

        One after the other, they serve nothing but memory.
        """
        largest = max(micro_batches(view.global_batch, view.workload.max_micro_batch))
        devices = [view.cluster.by_name[device.name] for device in view.devices]
        tight = any(cost.largest_micro_batch(view.workload, device) < view.global_batch for device in devices)
        if kinds[0] == "gpipe" or tight:
            for power in range(self.micro_batches.bit_length()):
                if 2**power <= largest:
                    yield micro_batches(view.global_batch, -(-largest // 2**power))

    def _placed(self, view: View, estimator: Estimator, sizes: list[int], kinds: Sequence[Kind]) -> tuple[float, Plan]:
        """The least estimated step, and its plan, of those heads' plans whose timetables are the shortest."""
        walks = _Walks(self, view.seed)
        found = placements(view, [partial(walks.placed, look) for look in self._looks(view)], sizes, kinds)
        plans: dict[str, Plan] = {}
        for placement in sorted(found, key=lambda each: each.table.step_s):
            if len(plans) < CLOSELY:
                plans.setdefault(placement.plan.sha256, placement.plan)
        return min(((estimator.of(plan).step_s, plan) for plan in plans.values()), key=lambda each: each[0])

    def _looks(self, view: View) -> Iterator[Look]:
        """The heads: over all devices, over half of them, a quarter, ..., and then the drawing ones."""
        devices = len(view.devices)
        heads = max(1, min(self.heads, LOOKS // (self.rounds * devices * len(view.workload.layers))))
        fewer = [Look(devices)]
        while fewer[-1].devices > 1:
            fewer.append(Look(fewer[-1].devices // 2))
        yield from fewer[:heads]
        for number in range(heads - len(fewer)):
            yield Look(devices, number)

    @property
    def query(self) -> Floats:
        """(features, keys): what makes an operator's query of its features."""
        weights = np.zeros((len(FEATURES), len(KEYS)))
        weights[0] = [getattr(self, key) for key in KEYS]
        weights[FEATURES.index("urgency"), KEYS.index("speed")] = self.urgent
        weights[FEATURES.index("work"), KEYS.index("speed")] = self.large
        weights[FEATURES.index("volume"), KEYS.index("moved")] = self.talkative
        return weights


@dataclass(frozen=True)
class _Walks:
    """Walks over the operators by one policy; what they see of a graph is made once."""

    policy: AttentionOperators
    seed: int
    known: dict[Callable[..., float], OperatorKeys] = field(default_factory=dict)
    """By the transfers, which are the same when tasks are placed again with less room."""

    def placed(self, look: Look, tasks: Tasks) -> Timetable:
        """The shortest timetable of a head's rounds.

        Raises:
            NoRoomError: in the first round, an operator finds no open device.
        """
        if tasks.transfer_s not in self.known:
            self.known[tasks.transfer_s] = OperatorKeys(tasks)
        keys = self.known[tasks.transfer_s]
        room = [each if number < look.devices else CLOSED for number, each in enumerate(tasks.room)]
        seen, noise = replace(tasks, room=room), self._noise(look, keys)
        best = self._walked(keys, seen, keys.expected(look.devices), noise)
        last = best
        for _ in range(self.policy.rounds - 1):
            try:
                last = self._walked(keys, seen, keys.known(last), noise)
            except NoRoomError:  # in another order, an operator came too late
                break
            best = min(best, last, key=lambda table: table.step_s)
        return best

    def _noise(self, look: Look, keys: OperatorKeys) -> Floats:
        """(operators, devices): the highest sum of score and this is a draw from the softmax (Gumbel 1954)."""
        if look.draw is None:
            return np.zeros_like(keys.seconds)
        drawn = stream(self.seed, AttentionOperators.name, look.draw).gumbel(size=keys.seconds.shape)
        return np.asarray(self.policy.temperature * drawn, dtype=np.float64)

    def _walked(self, keys: OperatorKeys, tasks: Tasks, way: Way, noise: Floats) -> Timetable:
        """All operators, one after the other."""
        policy, placing = self.policy, Placing(tasks)
        queries = keys.features @ policy.query
        for ready in _turns(tasks, way, by_rank=policy.order == "rank"):
            rows = sorted(ready)
            sight = Sight(keys, placing, rows, way, gaps=policy.gaps)
            scores = sight.scores(queries[rows]) + noise[rows]
            row, device = divmod(int(scores.argmax()), scores.shape[1])
            if not np.isfinite(scores[row, device]):
                raise NoRoomError(rows[row])
            placing.put(rows[row], device, float(sight.starts[row, device]))
            ready.discard(rows[row])
        return placing.table


def _turns(tasks: Tasks, way: Way, *, by_rank: bool) -> Iterator[set[int]]:
    """The operators that attend at once, turn by turn; whoever asks takes one of them out.

    By rank, it is one at a time. Else it is all whose inputs are placed: those that are taken out.
    """
    if by_rank:
        for task in sorted(range(tasks.count), key=lambda each: (-way.ranks[each], each)):
            yield {task}
        return
    missing = [len(set(inputs)) for inputs in tasks.inputs]
    ready = {task for task in range(tasks.count) if not missing[task]}
    while ready:
        before = set(ready)
        yield ready
        for reader in {reader for task in before - ready for reader in tasks.readers[task]}:
            missing[reader] -= 1
            if not missing[reader]:
                ready.add(reader)
