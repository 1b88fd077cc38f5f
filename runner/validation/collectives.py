"""The network's tables against NCCL all-reduces that others measured: unseen sizes, unseen numbers of ranks.

What is scored is :meth:`Network.collective` over a cluster that holds the tables, as in any prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...results.errors import InputError
from ...sim.device import Cluster, CollectivePoint, CollectiveTable, Node
from ...sim.network import Network
from ...sim.spec import load_device, load_link
from .scores import Figures, Score, figures, outliers

COLUMNS = {"ranks", "bytes", "time_us"}
"""What makes a CSV file one of measured all-reduces."""
LARGE = 1_000_000
"""Bytes from which a collective is about bandwidth."""
NETWORK, CONSTANT, LEAST_SQUARES = "network", "constant bus bandwidth", "non-negative least squares"
PER_NODE = 8
NODES = 16


class Row(NamedTuple):
    """One measured all-reduce."""

    ranks: int
    size: int
    """Bytes on each rank."""
    seconds: float


Predictor = Callable[[Row], float]
Fit = Callable[[Sequence[Row]], Predictor]


def read_rows(path: Path) -> list[Row]:
    """Read measured all-reduces from columns ``ranks``, ``bytes`` and ``time_us``; rows of a single rank are left out.

    Raises:
        InputError: the file cannot be read, a column lacks, or a value is no positive number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_row(path, number, record) for number, record in enumerate(csv.DictReader(file), start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            path.name, f"cannot be read: {error}", "give a CSV file with ranks, bytes and time_us"
        ) from error
    return [row for row in rows if row.ranks > 1]


def _row(path: Path, number: int, record: dict[str, str]) -> Row:
    try:
        row = Row(int(record["ranks"]), int(record["bytes"]), float(record["time_us"]) * 1e-6)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path.name}: line {number}", f"{error}", "needs numbers for ranks, bytes, time_us"
        ) from error
    if row.ranks < 1 or row.size < 1 or not 0 < row.seconds < float("inf"):
        raise InputError(f"{path.name}: line {number}", f"holds {row}", "all three must be above 0")
    return row


def fit_tables(rows: Iterable[Row], *, backend: str, per_node: int, source: str = "") -> list[CollectiveTable]:
    """Tables of all-reduces for a cluster's ``collectives``, one per number of ranks.

    Args:
        rows: measured; of several of one size and number of ranks the lowest tenth counts, since noise only adds.
        backend: library that was measured, ``nccl`` or ``gloo``.
        per_node: devices of one machine that took part.
        source: where the figures are from.

    Raises:
        InputError: fewer than two sizes of some number of ranks.
    """
    seconds: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        seconds.setdefault(row.ranks, {}).setdefault(row.size, []).append(row.seconds)
    for ranks, sizes in seconds.items():
        if len(sizes) < 2:
            raise InputError("rows", f"{ranks} ranks were measured at one size only", "a table takes two")
    return [
        CollectiveTable(
            backend=backend,
            ranks=ranks,
            nodes=-(-ranks // per_node),
            points=[CollectivePoint(bytes=size, seconds=_low(sizes[size])) for size in sorted(sizes)],
            source=source,
        )
        for ranks, sizes in sorted(seconds.items())
    ]


def _low(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 10]


def measured_cluster() -> Cluster:
    """What the data set was measured on: 16 machines with 8 A100, NVLink inside, an InfiniBand adapter per GPU."""
    device = load_device("nvidia-a100-sxm-40gb")
    nodes = [
        Node(
            name=f"node-{number}",
            devices=[device.model_copy(update={"name": f"{number}-{place}"}) for place in range(PER_NODE)],
            link=load_link("nvlink-3"),
            nics=PER_NODE,
        )
        for number in range(NODES)
    ]
    return Cluster(nodes=nodes, network=load_link("infiniband-200"))


def validate(folder: Path) -> list[Score]:
    """Score the tables' interpolation on each file of all-reduces in a folder; empty when there is none.

    Rows are held out by size (where their number of ranks was measured at smaller and larger ones too), and by number
    of ranks (all of them, so the fewest and the most are extrapolated).
    """
    return [score for path in files(folder) for score in _validate(path)]


def files(folder: Path) -> list[Path]:
    """The files of a folder that hold measured all-reduces, by their columns."""
    return [path for path in sorted(folder.glob("*.csv")) if has_columns(path, COLUMNS)]


def has_columns(path: Path, columns: set[str]) -> bool:
    """Whether the first line of a CSV file names these columns, among others."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return columns <= set(next(csv.reader(file), []))


def _validate(path: Path) -> list[Score]:
    rows = read_rows(path)
    inner = [row for row in rows if _inner(row, rows)]
    by_size, by_ranks = _held_out(rows, lambda row: row.size), _held_out(rows, lambda row: row.ranks)
    # From 1 MB the baselines get the benefit of a fit to such rows alone.
    by_large_size = {**_held_out(_large(rows), lambda row: row.size), NETWORK: by_size[NETWORK]}
    by_large_ranks = {**_held_out(_large(rows), lambda row: row.ranks), NETWORK: by_ranks[NETWORK]}
    extrapolated = [f"{min(rows).ranks} and {max(rows).ranks} ranks are extrapolated"]
    return [
        _score(path.name, "leave-one-size-out", inner, by_size, _size_notes(rows, inner)),
        _score(path.name, "leave-one-size-out, from 1 MB", _large(inner), by_large_size, []),
        _score(path.name, "leave-one-size-out, smallest and largest included", rows, by_size, []),
        _score(path.name, "leave-one-rank-count-out", rows, by_ranks, extrapolated),
        _score(path.name, "leave-one-rank-count-out, from 1 MB", _large(rows), by_large_ranks, extrapolated),
    ]


def product(cluster: Cluster) -> Fit:
    """The product's own prediction: the cluster's network with tables of the training rows."""
    names = [device.name for device in cluster.devices]

    def fit(rows: Sequence[Row]) -> Predictor:
        tables = fit_tables(rows, backend=cluster.backend, per_node=PER_NODE)
        network = Network(cluster.model_copy(update={"collectives": tables}))
        return lambda row: network.collective("all_reduce", names[: row.ranks], row.size).alone_s

    return fit


def constant_bandwidth(rows: Sequence[Row]) -> Predictor:
    """Baseline: all moves at one bus bandwidth, the best one in relative least squares."""
    shares = np.array([_moved(row) / row.seconds for row in rows])
    per_byte = float(shares.sum() / (shares @ shares))
    return lambda row: per_byte * _moved(row)


def least_squares(cluster: Cluster) -> Fit:
    """Baseline: non-negative least squares with relative weights on a launch and the formula's latency and bytes."""
    names = [device.name for device in cluster.devices]
    formula = Network(cluster)

    def features(row: Row) -> list[float]:
        latency = formula.collective("all_reduce", names[: row.ranks], 0).alone_s
        # Apart for one machine and for several, as the tables are.
        parts = [1e-6, latency, _moved(row) * 1e-12]
        return parts + [0.0] * 3 if row.ranks <= PER_NODE else [0.0] * 3 + parts

    def fit(rows: Sequence[Row]) -> Predictor:
        from scipy.optimize import nnls

        table = np.array([features(row) for row in rows]) / np.array([[row.seconds] for row in rows])
        scale = table.max(axis=0)
        scale[scale == 0] = 1.0
        solution, _ = nnls(table / scale, np.ones(len(rows)))
        weights = solution / scale
        return lambda row: float(np.dot(weights, features(row)))

    return fit


def _moved(row: Row) -> float:
    """Bytes that a ring sends over each link."""
    return 2 * (row.ranks - 1) / row.ranks * row.size


def _held_out(rows: Sequence[Row], key: Callable[[Row], int]) -> dict[str, dict[Row, float]]:
    """Each row's prediction by each method from the rows that differ from it in the key."""
    cluster = measured_cluster()
    methods = {
        NETWORK: product(cluster),
        CONSTANT: constant_bandwidth,
        LEAST_SQUARES: least_squares(cluster),
    }
    predicted: dict[str, dict[Row, float]] = {name: {} for name in methods}
    for value in sorted({key(row) for row in rows}):
        training = [row for row in rows if key(row) != value]
        for name, fit in methods.items():
            predict = fit(training)
            predicted[name].update({row: predict(row) for row in rows if key(row) == value})
    return predicted


def _score(
    data: str, split: str, rows: Sequence[Row], predicted: dict[str, dict[Row, float]], notes: list[str]
) -> Score:
    measured = [row.seconds for row in rows]

    def judged(name: str) -> Figures:
        # Seconds per byte, so that the sizes of one number of ranks compete: which bucket is worth sending?
        # One constant bandwidth has no opinion on that.
        sizes = [row.size for row in rows]
        guesses = [predicted[name][row] / row.size for row in rows]
        truths = [value / size for value, size in zip(measured, sizes, strict=True)]
        return figures(guesses, truths, None if name == CONSTANT else [row.ranks for row in rows])

    described = [{"ranks": row.ranks, "bytes": row.size, "seconds": row.seconds} for row in rows]
    return Score(
        data=data,
        split=split,
        rows=len(rows),
        model=judged(NETWORK),
        baselines={name: judged(name) for name in predicted if name != NETWORK},
        outliers=outliers([predicted[NETWORK][row] for row in rows], measured, described),
        notes=notes,
    )


def _inner(row: Row, rows: Sequence[Row]) -> bool:
    sizes = [other.size for other in rows if other.ranks == row.ranks]
    return min(sizes) < row.size < max(sizes)


def _large(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.size >= LARGE]


def _size_notes(rows: Sequence[Row], inner: Sequence[Row]) -> list[str]:
    spikes = sum(
        any(other.ranks == row.ranks and other.size > row.size and 1.2 * other.seconds < row.seconds for other in rows)
        for row in rows
    )
    return [
        f"{len(rows) - len(inner)} rows are the smallest or largest of their number of ranks: scored apart",
        f"{spikes} rows took over 1.2 x as long as some larger message of as many ranks; none was dropped",
    ]
