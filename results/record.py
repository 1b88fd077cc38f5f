"""Run: the record of one execution, simulated or measured, in one schema.

Records tolerate fields that they do not know (a newer minor version wrote them); an unknown major version is refused
by :mod:`steelyard.results.store`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

Kind = Literal["simulated", "measured"]
Fidelity = Literal["datasheet", "calibrated", "profiled", "measured"]

EVENT_COLUMNS: dict[str, str] = {
    "launch": "int64",
    "round": "int64",
    "step": "int64",
    "device": "str",
    "pipeline": "int64",
    "stage": "int64",
    "micro_batch": "int64",
    "kind": "str",
    "start_s": "float64",
    "end_s": "float64",
    "multiplicity": "int64",
}
"""Columns of ``events.parquet``: one row per interval of a role.

``stage`` and ``micro_batch`` are -1 where they mean nothing. The steps of one (launch, round) follow each other without
a pause; its first step is the lead-in that fills the overlap between steps, and is not counted. Times start at 0 in
each launch.
"""

LEDGER_OF_KIND: dict[str, str] = {
    "forward": "compute_s",
    "backward": "compute_s",
    "compute": "compute_s",
    "optimizer": "optimizer_s",
    "communication": "communication_s",
    "wait": "wait_s",
    "input": "input_s",
    "bubble": "bubble_s",
    "rebalance": "rebalance_s",
    "checkpoint": "checkpoint_s",
}
"""The ledger line that each kind of event counts towards; time under no event is ``idle_s``.

``compute`` is forward and backward where nobody told them apart (an imported trace).
"""


class Record(BaseModel):
    """Base of what is read back from disk: unknown fields are kept, not refused."""

    model_config = ConfigDict(extra="allow")


class Quantiles(Record):
    """Mean and 10th, 50th, 90th percentile of a quantity over the steps of a run."""

    mean: float
    p10: float
    p50: float
    p90: float


class DeviceLedger(Record):
    """Where one device's mean step went, in seconds; the ``*_s`` lines sum to the mean step time."""

    compute_s: float = 0.0
    optimizer_s: float = 0.0
    communication_s: float = 0.0
    wait_s: float = 0.0
    input_s: float = 0.0
    """Waiting for the input pipeline."""
    bubble_s: float = 0.0
    rebalance_s: float = 0.0
    checkpoint_s: float = 0.0
    idle_s: float = 0.0
    samples: int = 0
    peak_memory_bytes: float | None = None

    def total_s(self) -> float:
        """Sum of all lines: the mean step time."""
        return sum(float(getattr(self, line)) for line in LEDGER_LINES)

    def utilisation(self) -> float:
        """Share of the step spent computing (forward, backward, optimizer)."""
        total = self.total_s()
        return (self.compute_s + self.optimizer_s) / total if total > 0 else 0.0


class Recovery(Record):
    """What a run whose lane was slowed down regains of the best throughput that it could then have."""

    last_change: int
    """The step in which the devices' speeds changed for the last time."""
    optimum_s: float
    """Seconds of a step of the best data-parallel split at the speeds from then on, by the tables, without noise."""
    step_s: float
    """Median seconds of the steps after those that a policy has to recover."""
    share_percent: float
    """The optimum's seconds over these: of its throughput, what the run has."""


LEDGER_LINES: tuple[str, ...] = (*dict.fromkeys(LEDGER_OF_KIND.values()), "idle_s")


class Summary(Record):
    """What a run came to: the same keys for both executors, the unit in each name."""

    fidelity: Fidelity
    guessed_share: float = 0.0
    """Of the seconds of work, the share that comes from datasheets alone."""
    steps: int
    launches: int
    step_time_s: Quantiles
    median_interval_s: tuple[float, float]
    """80 % interval of the median step time: of a fresh launch (simulated), bootstrapped over launches (measured)."""
    launch_median_step_time_s: list[float] = Field(default_factory=list)
    launch_intervals_s: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Predictions that are to be measured: by the steps of a launch, 80 % interval of the median of a fresh one."""
    steadied_intervals_s: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """The same of a launch whose lanes' speed is known when it begins."""
    throughput_samples_per_s: float
    tokens_per_s: float
    mfu: float | None = None
    goodput: float = 1.0
    """Useful time over wall time of a long run with the scenario's faults."""
    faults: dict[str, Any] | None = None
    """What the faults cost, in the terms of :class:`steelyard.sim.faults.Goodput`."""
    energy_j_per_step: float | None = None
    carbon_kg_per_million_samples: float | None = None
    cost_usd_per_million_samples: float | None = None
    lower_bound_step_time_s: float
    gap_to_bound: float
    """(p50 step time - bound) / bound; a data-parallel plan has the bound of such plans, another that of all."""
    split_bound_step_time_s: float | None = None
    """Measured runs: the least step of any data-parallel split with its all-reduce, by the lanes' tables, no noise."""
    recovery: Recovery | None = None
    """Replays in which a lane is slowed down: what is regained."""
    work_bound_step_time_s: float | None = None
    """Simulated runs: the bound of all plans, by which data-parallel and other plans compare."""
    critical_path: str
    """What binds, in one line."""
    binding: dict[str, Any] | None = None
    """Of a simulated step without noise, in the terms of :class:`steelyard.sim.bottleneck.Bottleneck`: path (None: it
    is long), its seconds by cause, what is gained when a cause takes half as long. None where nobody looked into it."""
    devices: dict[str, DeviceLedger]


class PolicyRecord(Record):
    """Which policy made the plan: its name, every parameter, and the hash of its source."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    """What the parameters are where nobody sets them."""
    source_sha256: str = ""

    def label(self) -> str:
        """One line for tables: the name, and the parameters that are not at their defaults."""
        changed = {key: value for key, value in self.parameters.items() if value != self.defaults.get(key)}
        inner = ", ".join(f"{key}={_short(value)}" for key, value in changed.items())
        return f"{self.name}({inner})" if inner else self.name


class Manifest(Record):
    """How a run came to be: inputs that decide it, and the circumstances it was made in."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    kind: Kind
    label: str
    scenario: dict[str, Any]
    policy: PolicyRecord
    plan_sha256: str
    seed: int
    model_version: str
    complete: bool = True
    predicted_run_id: str | None = None
    """Measured runs: ``run_id`` of the simulated run that predicted this one."""
    prediction_sha256: str | None = None
    """Measured runs: digest of the prediction that was on disk before a plan ran."""
    twin_of: str | None = None
    """Measured runs: label of the run of which this is the A/A repetition."""
    predicted_at: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Simulated runs of a replay: what other fidelities said of the plan: ``p50_s``, ``interval_s``,
    ``guessed_share``."""
    notes: list[str] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Code version, host, devices, library versions, affinity, threads; never part of the run's identity."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of one plan: manifest, plan, summary, and the events behind the summary."""

    manifest: Manifest
    plan: dict[str, Any]
    summary: Summary
    events: pd.DataFrame
    decisions: list[dict[str, Any]] = field(default_factory=list)


def event_frame(rows: Sequence[Mapping[str, Any]] | Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Event rows (mappings, or tuples in column order) as a frame with the schema's columns and types."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(EVENT_COLUMNS))
    return frame.astype(EVENT_COLUMNS)


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN; what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _short(value: object) -> str:
    """A value as ``--policy`` takes it, numbers cut to three digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)
