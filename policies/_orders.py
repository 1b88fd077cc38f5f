"""Orders and cuts: the exact dynamic programme that lays the layers of a model over devices, stage by stage.

What is minimised over a set of orders of devices is the closed-form step of a pipeline of ``m`` micro-batches,

    sum of the stages' seconds + (m - 1) x the largest load of a stage

(:meth:`Chain.stage` says what a stage adds and loads). The programme goes from the last stage to the first, since what
a stage keeps in memory depends on the number of stages behind it. It takes the least sum under a limit of the load;
limits fall from where they can still matter to the least that any cut has, so nothing better is passed over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..sim.noise import Floats
from ._stages import NOBODY, ROUNDING, Chain

EVERY = slice(None)
AT_ONCE = 4_000_000
"""Numbers in one array of the programme; more are taken in parts."""


class Cut(NamedTuple):
    """Who does what: labels of the stages in the order of the layers, and their bounds."""

    order: tuple[int, ...]
    bounds: tuple[int, ...]
    sum_s: float
    load_s: float

    def step_s(self, micro_batches: int) -> float:
        """The closed-form step, without the optimizer."""
        return self.sum_s + (micro_batches - 1) * self.load_s


@dataclass(frozen=True, eq=False)
class Move:
    """One more stage in front: from some rows of a level to rows of the next."""

    came: NDArray[np.intp]
    goes: NDArray[np.intp]
    label: int
    behind: int
    """Label of the stage behind the new one."""


class Orders(NamedTuple):
    """Orders of devices as a graph: levels are numbers of stages, rows are what is used up, moves add a stage."""

    moves: tuple[tuple[Move, ...], ...]
    rows: tuple[int, ...]
    """Of each level; the first has one."""
    least: int
    """Fewest stages that a pipeline may have."""

    def work(self, layers: int) -> int:
        """Sums that the programme takes, about."""
        return sum(len(move.came) for level in self.moves for move in level) * (layers + 1) ** 2


def along(order: Sequence[int]) -> Orders:
    """One order of labels, the first stage first; every one has a stage."""
    zero = np.zeros(1, dtype=np.intp)
    backward = [*reversed(order)]
    behind = [NOBODY, *backward[:-1]]
    moves = tuple((Move(zero, zero, label, next_),) for label, next_ in zip(backward, behind, strict=True))
    return Orders(moves, (1,) * (len(order) + 1), len(order))


def every_order(counts: Sequence[int], most: int, *, apart: bool, least: int = 1) -> Orders:
    """All orders of all subsets of devices.

    Args:
        counts: devices of each label.
        most: stages.
        apart: whether it matters which label is behind a stage (messages differ).
        least: stages.
    """
    level: dict[tuple[tuple[int, ...], int], int] = {(tuple(counts), NOBODY): 0}
    moves, rows = [], [1]
    for _ in range(min(most, sum(counts))):
        following: dict[tuple[tuple[int, ...], int], int] = {}
        found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for (left, behind), row in level.items():
            for label in (each for each, count in enumerate(left) if count):
                rest = tuple(count - (each == label) for each, count in enumerate(left))
                goes = following.setdefault((rest, label if apart else 0), len(following))
                pairs = found.setdefault((label, behind), ([], []))
                pairs[0].append(row)
                pairs[1].append(goes)
        moves.append(tuple(Move(np.array(came), np.array(goes), *key) for key, (came, goes) in sorted(found.items())))
        rows.append(len(following))
        level = following
    return Orders(tuple(moves), tuple(rows), least)


def states(counts: Sequence[int], *, apart: bool) -> int:
    """About how many moves :func:`every_order` makes."""
    subsets = 1
    for count in counts:
        subsets *= count + 1
    return subsets * len(counts) * (len(counts) if apart else 1)


def best_cuts(chain: Chain, orders: Orders, below: float = math.inf) -> list[Cut]:
    """Cuts that no other one beats in both sum and load, as far as the closed-form step needs them; the best first.

    Empty where nothing fits into memory, or where bounds say that no step is shorter than ``below``.
    """
    more = chain.count - 1
    highest = (below * (1 + ROUNDING) - chain.least_sum_s) / more if more else np.inf
    fastest = _least(chain, orders, highest, by_load=False)
    if fastest is None:
        return []
    found = [fastest]
    least = _least(chain, orders, highest, by_load=True)
    assert least is not None, "what fits has a least load"
    if fastest.sum_s + more * least.load_s > below:
        return []
    tight = _least(chain, orders, least.load_s * (1 + ROUNDING), by_load=False)
    if tight is not None:
        found.append(tight)
    best = min(cut.step_s(chain.count) for cut in found)
    at_load, limit = fastest, _before(fastest.load_s)
    while more and (best - (at_load.sum_s + more * least.load_s)) > ROUNDING * best:
        limit = min(limit, (best - at_load.sum_s) / more)
        cut = _least(chain, orders, limit, by_load=False)
        if cut is None:
            break
        found.append(cut)
        best = min(best, cut.step_s(chain.count))
        at_load, limit = cut, _before(cut.load_s)
    return sorted(dict.fromkeys(found), key=lambda cut: (cut.step_s(chain.count), cut.load_s, len(cut.order), cut))


def _before(load_s: float) -> float:
    return load_s * (1 - ROUNDING)


def _least(chain: Chain, orders: Orders, limit: float, *, by_load: bool) -> Cut | None:
    """The cut of least sum (or largest load) among those whose loads keep a limit; None where there is none."""
    start = np.full((1, chain.layers + 1), np.inf)
    start[0, -1] = 0.0
    values = [start]
    for level, moves in enumerate(orders.moves):
        following = np.full((orders.rows[level + 1], chain.layers + 1), np.inf)
        for move in moves:
            block = _block(chain, move, level, limit, by_load=by_load)
            if len(block):
                front = _front(chain, values[-1][move.came], block, by_load)
                following[move.goes] = np.minimum(following[move.goes], front)
        values.append(following)
    ends = [(float(values[level][:, 0].min()), level) for level in range(orders.least, len(values))]
    best, level = min(ends)
    if not np.isfinite(best):
        return None
    return _traced(chain, orders, values, level, limit=limit, by_load=by_load)


def _block(chain: Chain, move: Move, level: int, limit: float, *, by_load: bool, first: int | slice = EVERY) -> Floats:
    """What a new stage takes, by its number of layers and its first one; infinite where it does not fit or is too slow.

    As many rows as it may have layers at most, be it for its load or for memory.
    """
    spans, fits = chain.spans(move.label, move.behind), chain.fits_spans(move.label, level)
    within = np.flatnonzero(spans.least_load[: len(fits)] <= limit)
    most = int(within[-1]) + 1 if len(within) else 0
    wanted = spans.load if by_load else spans.adds
    allowed = fits[:most, first] & (spans.load[:most, first] <= limit)
    return np.where(allowed, wanted[:most, first], np.inf)


def _front(chain: Chain, rows: Floats, block: Floats, by_load: bool) -> Floats:
    """Per row and first layer of the stage in front, the least over the layer where it ends."""
    join, ends = np.maximum if by_load else np.add, chain.ends[: len(block)]
    part = max(1, AT_ONCE // block.size)
    found = [join(rows[low : low + part][:, ends], block).min(axis=1) for low in range(0, len(rows), part)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _traced(chain: Chain, orders: Orders, values: Sequence[Floats], level: int, *, limit: float, by_load: bool) -> Cut:
    """The stages of the best row of a level, from the first on."""
    row, first = int(values[level][:, 0].argmin()), 0
    order: list[int] = []
    bounds, total, most = [0], 0.0, 0.0
    while level:
        move, came, last = _came_from(chain, orders, values, (level, row, first), limit=limit, by_load=by_load)
        adds, load = chain.stage(move.label, move.behind)
        total, most = total + float(adds[first, last]), max(most, float(load[first, last]))
        order.append(move.label)
        bounds.append(last)
        level, row, first = level - 1, came, last
    return Cut(tuple(order), tuple(bounds), total, most)


def _came_from(
    chain: Chain,
    orders: Orders,
    values: Sequence[Floats],
    place: tuple[int, int, int],
    *,
    limit: float,
    by_load: bool,
) -> tuple[Move, int, int]:
    """The move that gave a value, the row that it came from, and where its stage ends."""
    level, row, first = place
    join = np.maximum if by_load else np.add
    for move in orders.moves[level - 1]:
        for came in move.came[move.goes == row].tolist():
            column = _block(chain, move, level - 1, limit, by_load=by_load, first=first)
            ends = join(values[level - 1][came, chain.ends[: len(column), first]], column)
            if len(ends) and ends.min() == values[level][row, first]:
                return move, came, first + 1 + int(ends.argmin())
    raise AssertionError("a value of the programme that no move gives")


# Every cut


def sequences(counts: Sequence[int], stages: int) -> Iterator[tuple[int, ...]]:
    """All orders of so many devices, by label."""
    if not stages:
        yield ()
        return
    for label, count in enumerate(counts):
        if count:
            rest = [each - (number == label) for number, each in enumerate(counts)]
            yield from ((label, *tail) for tail in sequences(rest, stages - 1))


def count_sequences(counts: Sequence[int], stages: int) -> int:
    """How many orders there are: of the exponential generating function of the multiset, times ``stages`` factorial."""
    ways = Counter({0: 1})
    for count in counts:
        following: Counter[int] = Counter()
        for used, number in ways.items():
            for more in range(min(count, stages - used) + 1):
                # choose which of the places taken so far are of this label
                following[used + more] += number * math.comb(used + more, more)
        ways = following
    return ways[stages]
