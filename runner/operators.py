"""calibrate_operators(): time single operators on this host's lanes, for predictions of models that never ran on them.

The grids are the same for every model and are fixed here; the passes that the framework's surplus is fitted to are of
small models with sizes of their own. Nothing of a scenario's model or plans enters, but its dtype and its lanes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from ..results.errors import InputError, WorkerFailedError
from ..results.store import write_text, written_utc
from ..sim.checking import validate
from ..sim.operators import LayerCalls, OperatorGrid, OperatorTable, Surplus, estimate
from ..sim.spec import parse_file
from ..sim.workload import Facts, Spec
from .calibrate import Report
from .devices import NamedLane, fingerprint
from .gauge import beyond_noise
from .launch import LaunchResult, Task, require_torch, run_group

MOST_FLOPS = 0.4e9
"""Larger operators are not measured: they reach the rate of the largest that are."""
MOST_ELEMENTS = 2**21
WIDTHS = (16, 64, 192, 512, 1280)
FLAT = (64, 1024, 8192, 65536, 262144, 2**20, 2**21)
SECONDS = 55.0
"""What measuring takes, about; the slowest lane decides."""
TIMEOUT_S = 60.0
FORMER, VERSION = 1, 2
"""Of the file of tables. 2: passes are medians over more rounds."""
ROUNDS, STEPS = 2, 5
"""Operators are timed in so many rounds, and the shortest time counts: neighbours lengthen, never shorten.
Each small model runs so many steps a round."""
PASS_ROUNDS = 6
"""Of the small models: their medians say how fast a lane is over all, and a host changes within seconds."""
GAUGE_LAUNCHES = 2
"""Fresh processes that run all of them, so many rounds in each, where only the present speed is asked for."""

ANEW = "run `steelyard calibrate --operators --again`"
"""The mend for tables that are not good for this machine or this version."""

PRODUCTS = ("mm nn", "mm nt", "mm tn", "addmm nn", "addmm nt")
ROWWISE = ("layer_norm", "layer_norm backward", "softmax", "softmax backward", "mean", "sum rows")
FLAT_KINDS = (
    "add", "add_", "add scalar", "mul", "mul scalar", "div", "pow", "rsqrt", "cos", "tanh", "tanh_backward", "gelu",
    "gelu_backward", "silu", "silu_backward", "clone", "clone strided", "fill", "where", "cat",
)  # fmt: skip
OPTIMIZERS = ("sgd", "momentum", "adamw")

VOCABULARY, LABELS = 509, 3
REFERENCES: tuple[tuple[dict[str, Any], int, int], ...] = (
    ({"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}, 1, 8),
    ({"model_type": "bert", "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 320}, 7, 24),
    ({"model_type": "bert", "hidden_size": 320, "num_attention_heads": 5, "intermediate_size": 1200}, 9, 40),
    ({"model_type": "gpt2", "n_embd": 80, "n_head": 5}, 3, 20),
    ({"model_type": "gpt2", "n_embd": 240, "n_head": 6}, 10, 44),
    ({"model_type": "llama", "hidden_size": 112, "num_attention_heads": 7, "intermediate_size": 304}, 5, 18),
    ({"model_type": "llama", "hidden_size": 288, "num_attention_heads": 9, "intermediate_size": 800}, 6, 52),
)
"""Small models (configuration, samples, tokens) that the surplus of a pass is fitted to; two layers each."""
DEPTH = {"bert": "num_hidden_layers", "gpt2": "n_layer", "llama": "num_hidden_layers"}


@dataclass(frozen=True)
class Grid:
    """The points of one kind of operator that are measured."""

    kind: str
    axes: tuple[tuple[int, ...], ...]
    powers: tuple[int, ...]
    scale: float = 0.0
    """FLOPs per unit of work; 0: work counts elements."""

    @property
    def points(self) -> list[tuple[int, ...]]:
        """All points, the last axis fastest."""
        return list(itertools.product(*self.axes))

    def measured(self, point: Sequence[int]) -> bool:
        """Whether a point is small enough to be measured."""
        work: int = math.prod(size**power for size, power in zip(point, self.powers, strict=True))
        return self.scale * work <= MOST_FLOPS if self.scale else work <= MOST_ELEMENTS


def grids() -> list[Grid]:
    """Everything that is measured: sizes that rise about fourfold, whatever the model."""
    optimizers = ((4, 32, 128), (2**13, 2**16, 2**19, 2**21))
    return [
        *(Grid(kind, ((4, 32, 192, 1024, 4096), WIDTHS, WIDTHS), (1, 1, 1), 2.0) for kind in PRODUCTS),
        Grid("bmm", ((2, 16, 128), (16, 64, 256), (16, 64, 256), (16, 64, 256)), (1, 1, 1, 1), 2.0),
        Grid("attention", ((2, 16, 128), (8, 32, 128, 384), (16, 32, 64, 128)), (1, 2, 1), 4.0),
        Grid("attention backward", ((2, 16, 128), (8, 32, 128, 384), (16, 32, 64, 128)), (1, 2, 1), 8.0),
        *(Grid(kind, ((8, 64, 512, 4096), (8, 64, 256, 1024)), (1, 1)) for kind in ROWWISE),
        *(
            Grid(kind, ((8, 64, 512, 4096), (16, 64, 256, 1024)), (1, 1))
            for kind in ("embedding", "embedding backward")
        ),
        *(Grid(kind, (FLAT,), (1,)) for kind in FLAT_KINDS),
        Grid("view", ((64, 128),), (1,)),
        *(Grid(f"optimizer {name}", optimizers, (0, 1)) for name in OPTIMIZERS),
    ]


class OperatorFile(Spec):
    """Tables of operators on disk: what was measured of each lane, and on which hardware."""

    schema_version: int
    created_utc: str = ""
    fingerprint: Facts
    tables: dict[str, OperatorTable] = Field(min_length=1)


def calibrate_operators(
    lanes: Sequence[NamedLane],
    path: Path,
    *,
    dtype: str = "fp32",
    force: bool = False,
    again: bool = False,
    report: Report = lambda line: None,
) -> dict[str, OperatorTable]:
    """The tables of some lanes: read where they were measured on this host before, else measured, all lanes at once.

    Args:
        lanes: of the scenario's cluster.
        path: of the file of tables.
        dtype: of the operators.
        force: use tables of another machine.
        again: measure although there is a file. One of a former version is measured anew in any case.
        report: gets lines for people.

    Raises:
        InputError: torch is not installed, or the file is damaged or of another machine.
        WorkerFailedError: a lane died while it was measured.
    """
    if path.is_file() and not again and not _outdated(path):
        found = read_tables(path, force=force)
        if set(found) == {lane.name for lane in lanes}:
            return found
    require_torch()
    report(
        f"timing {sum(len(_small(grid)) for grid in grids())} operators on {len(lanes)} lanes: about {SECONDS:.0f} s"
    )
    tables = measure_tables(lanes, dtype)
    write_tables(path, tables)
    return tables


def operators_timer(
    runs: Path, *, again: bool, notes: list[str] | None = None, report: Report = lambda line: None
) -> Callable[[Sequence[NamedLane]], None]:
    """Times the operators on the lanes that it is given: for the calibrated predictions of models that never ran there.

    Args:
        runs: the folder of runs.
        again: as for :func:`calibrate_operators`.
        notes: gets a line where a lane dies meanwhile, and the caller goes on without such predictions; None: what it
            raises goes through.
        report: gets lines for people.
    """

    def before(lanes: Sequence[NamedLane]) -> None:
        try:
            calibrate_operators(lanes, tables_path(runs, lanes, "fp32"), again=again, report=report)
        except WorkerFailedError as error:
            if notes is None:
                raise
            notes.append(f"no calibrated prediction: {error}")

    return before


def measure_tables(lanes: Sequence[NamedLane], dtype: str) -> dict[str, OperatorTable]:
    """Measure the tables of some lanes in one launch."""
    tasks = operator_tasks(dtype)
    launch = run_group(lanes, tasks, {}, timeout_s=TIMEOUT_S)
    captured = [reference_calls(*each) for each in REFERENCES]
    return {lane.name: build_table(launch, rank, lane.repeat, dtype, captured) for rank, lane in enumerate(lanes)}


def operator_tasks(dtype: str) -> list[Task]:
    """In each round one task per grid, and the small models in between: as often before a grid as after it."""
    timed: list[Task] = [
        {
            "op": "operators",
            "dtype": dtype,
            "points": [{"kind": grid.kind, "sizes": list(point)} for point in _small(grid)],
        }
        for grid in grids()
    ]
    passes, half = pass_tasks(dtype), len(timed) // 2
    return ROUNDS * (passes + timed[:half] + passes + timed[half:] + passes)


def pass_tasks(dtype: str) -> list[Task]:
    """One task per small model."""
    return [
        {
            "op": "reference",
            "dtype": dtype,
            "model": reference_config(config),
            "labels": LABELS,
            "vocabulary": VOCABULARY,
            "samples": samples,
            "tokens": tokens,
            "steps": STEPS,
        }
        for config, samples, tokens in REFERENCES
    ]


def at_present_speed(
    lanes: Sequence[NamedLane], tables: Mapping[str, OperatorTable]
) -> tuple[dict[str, OperatorTable], list[str]]:
    """The tables with the lanes as fast as they are now, by passes of the same small models, and a note on each change.

    A host that others use was seen to be 15 % slower half an hour later. No scenario's model runs for this.

    Args:
        lanes: of the scenario's cluster, all at once.
        tables: theirs; those without the seconds of their passes stay as they are, and a note says so.

    Raises:
        WorkerFailedError: a lane died meanwhile.
    """
    told = {name: table.passes_s for name, table in tables.items() if len(table.passes_s) == len(REFERENCES)}
    untold = [
        f"operators on {name} are not gauged: their tables do not say how, {ANEW}"
        for name in tables
        if name not in told
    ]
    if not told:
        return dict(tables), untold
    tasks = PASS_ROUNDS // GAUGE_LAUNCHES * pass_tasks(next(iter(tables.values())).dtype)
    launches = [run_group(lanes, tasks, {}, timeout_s=TIMEOUT_S) for _ in range(GAUGE_LAUNCHES)]
    factors = {
        lane.name: median(now / then for now, then in zip(passes_s(launches, rank), told[lane.name], strict=True))
        for rank, lane in enumerate(lanes)
        if lane.name in told
    }
    scaling, notes = beyond_noise(factors, "operators on {} take", ANEW)
    return {name: table.scaled(scaling.get(name, 1.0)) for name, table in tables.items()}, [*notes, *untold]


def passes_s(launches: Sequence[LaunchResult], rank: int) -> list[float]:
    """A lane's seconds of each small model, forward and backward: medians of the rounds."""
    return [forward + backward for forward, backward in _passes(launches, rank)]


def _passes(launches: Sequence[LaunchResult], rank: int) -> list[list[float]]:
    """The same in two parts."""
    times = [
        (answer["forward_s"], answer["backward_s"]) for launch in launches for _, answer in launch.of("reference", rank)
    ]
    by_model = [times[number :: len(REFERENCES)] for number in range(len(REFERENCES))]
    return [[median(each) for each in zip(*own, strict=True)] for own in by_model]


def shortest(rounds: Iterable[Sequence[float]]) -> list[float]:
    """The shortest time of each point over the rounds."""
    return [min(each) for each in zip(*rounds, strict=True)]


def reference_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A small model's whole configuration: two layers, a small vocabulary."""
    special = {"bos_token_id": 1, "eos_token_id": 2} if config["model_type"] != "bert" else {}
    return {**config, **special, "vocab_size": VOCABULARY, "num_labels": LABELS, DEPTH[config["model_type"]]: 2}


def reference_calls(config: Mapping[str, Any], samples: int, tokens: int) -> list[LayerCalls]:
    """The kernels of a small model's pass."""
    from .capture import capture_config

    return capture_config(reference_config(config), [samples], tokens)[samples]


def build_table(
    launch: LaunchResult, rank: int, repeat: int, dtype: str, captured: Sequence[Sequence[LayerCalls]]
) -> OperatorTable:
    """One lane's table from what its worker measured; a lane that repeats its passes takes so many times as long."""
    chosen, answers = grids(), [answer["seconds"] for _, answer in launch.of("operators", rank)]
    measured = [_grid(grid, shortest(answers[number :: len(chosen)])) for number, grid in enumerate(chosen)]
    bare = OperatorTable(dtype=dtype, grids=measured)  # type: ignore[arg-type]  # pydantic checks the name
    forward = [PassWork.of(bare, [layer.forward for layer in each]) for each in captured]
    backward = [PassWork.of(bare, [layer.backward for layer in each]) for each in captured]
    seconds_f, seconds_b = zip(*_passes([launch], rank), strict=True)
    residuals = [
        (m_f + m_b) / (f + b) - 1
        for m_f, m_b, f, b in zip(
            seconds_f, seconds_b, left_out(forward, seconds_f), left_out(backward, seconds_b), strict=True
        )
    ]
    return bare.model_copy(
        update={
            "forward": _repeated(fit_surplus(forward, seconds_f), repeat),
            "backward": _repeated(fit_surplus(backward, seconds_b), repeat),
            "residuals": residuals,
            "passes_s": passes_s([launch], rank),
        }
    )


@dataclass(frozen=True)
class PassWork:
    """What a pass is made of: so many calls, and the sum of their kernels' times."""

    calls: int
    seconds: float

    @classmethod
    def of(cls, table: OperatorTable, layers: Sequence[Any]) -> PassWork:
        """The sum over all layers' calls of one direction."""
        found = estimate(table, itertools.chain.from_iterable(layers))
        return cls(found.calls, found.seconds)


def fit_surplus(rows: Sequence[PassWork], seconds: Sequence[float]) -> Surplus:
    """Seconds a call and a factor on the kernels that come closest to measured passes, in relative least squares."""
    import numpy as np
    from scipy.optimize import nnls

    measured = np.asarray(seconds)
    matrix = np.array([[row.calls, row.seconds] for row in rows]) / measured[:, None]
    (call_s, factor), _ = nnls(matrix, np.ones(len(rows)))
    return Surplus(call_s=float(call_s), factor=max(float(factor), 1e-3))


def left_out(rows: Sequence[PassWork], seconds: Sequence[float]) -> list[float]:
    """Each pass as predicted by the surplus that is fitted to the others."""
    found = []
    for out, row in enumerate(rows):
        fit = fit_surplus([*rows[:out], *rows[out + 1 :]], [*seconds[:out], *seconds[out + 1 :]])
        found.append(fit.call_s * row.calls + fit.factor * row.seconds)
    return found


def tables_path(runs: Path, lanes: Sequence[NamedLane], dtype: str) -> Path:
    """Where the tables of some lanes lie."""
    from ..results.record import digest

    return (
        runs / "calibrations" / f"operators-{digest([lane.model_dump(mode='json') for lane in lanes])[:8]}-{dtype}.toml"
    )


def _outdated(path: Path) -> bool:
    """Whether tables were measured on this machine by a former version."""
    document = parse_file(path)
    return document.get("schema_version") == FORMER and document.get("fingerprint") == fingerprint()


def write_tables(path: Path, tables: Mapping[str, OperatorTable]) -> None:
    """Write tables with the fingerprint of the hardware that they belong to."""
    import tomli_w

    document = {
        "schema_version": VERSION,
        "created_utc": written_utc(),
        "fingerprint": fingerprint(),
        "tables": {name: table.model_dump(mode="json") for name, table in tables.items()},
    }
    write_text(path, tomli_w.dumps(document))


def read_tables(path: Path, *, force: bool = False) -> dict[str, OperatorTable]:
    """Read tables back.

    Raises:
        InputError: damaged, of another version, or of another machine (unless ``force``).
    """
    document = parse_file(path)
    if document.get("schema_version") != VERSION:
        raise InputError(str(path), "is not a table of operators of this version", ANEW)
    found = validate(OperatorFile, document, str(path), prefix=f"{path}: ")
    here = fingerprint()
    differing = sorted(key for key in here if here[key] != found.fingerprint.get(key))
    if differing and not force:
        key = differing[0]
        what = f"{key} is {here[key]!r} here, {found.fingerprint.get(key)!r} there"
        raise InputError(str(path), f"was measured on another machine: {what}", ANEW)
    return found.tables


def _small(grid: Grid) -> list[tuple[int, ...]]:
    return [point for point in grid.points if grid.measured(point)]


def _grid(grid: Grid, seconds: Sequence[float]) -> OperatorGrid:
    rest = iter(seconds)
    return OperatorGrid(
        kind=grid.kind,
        axes=[[float(size) for size in axis] for axis in grid.axes],
        powers=list(grid.powers),
        seconds=[next(rest) if grid.measured(point) else 0.0 for point in grid.points],
    )


def _repeated(surplus: Surplus, repeat: int) -> Surplus:
    return Surplus(call_s=repeat * surplus.call_s, factor=repeat * surplus.factor)
