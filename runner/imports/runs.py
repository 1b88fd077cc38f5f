"""import_runs(): step times that were measured elsewhere as a measured run beside its prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results.errors import InputError
from ...results.ledger import ledgers, quantiles, step_times
from ...results.metrics import bootstrap_interval
from ...results.record import SCHEMA_VERSION, Manifest, PolicyRecord, Run, Summary, digest, event_frame
from ...results.store import code_provenance, read_json, read_run, slug, whole_folder, write_run, written_utc
from ...sim import cost
from ...sim.bounds import bound_s
from ...sim.engine import simulate
from ...sim.plan import Plan
from ...sim.spec import Scenario
from ...sim.summary import summarise
from ...sim.view import Fixed
from ..export.ranks import rank_map
from ..export.shape import Shape, irregular
from .logs import Expected, Format, Launch, Reader, read_csv, read_megatron
from .traces import merged, read_trace

if TYPE_CHECKING:
    import pandas as pd

WARMUP = 3
"""First steps of each launch that are left out where nobody says how many."""
READERS: dict[str, Reader] = {"csv": read_csv, "megatron": read_megatron, "torch": read_trace}
AFTER = "predicted after the measurement: made at import, from nothing of it"
UNDIVIDED = "step times alone were imported: idle_s of the ledgers is time that nobody has divided"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The folder of an import, and the two runs in it."""

    folder: Path
    predicted: Run
    measured: Run

    @property
    def runs(self) -> list[Run]:
        """Prediction and measurement."""
        return [self.predicted, self.measured]


def read_logs(files: Sequence[Path], scenario: Scenario, kind: Format | None = None) -> list[Launch]:
    """The launches of some files, in their order; traces of the ranks of one start are one launch.

    Raises:
        InputError: a file cannot be read, with its line where it has lines.
    """
    expected = Expected(global_batch=scenario.workload.global_batch)
    found = [launch for file in files for launch in READERS[kind or guess(file)](file, expected)]
    return merged(found)


def guess(path: Path) -> Format:
    """The format of a file by its name."""
    if path.suffix == ".csv":
        return "csv"
    return "torch" if path.name.endswith((".json", ".json.gz")) else "megatron"


def settled(launches: Sequence[Launch], warmup: int) -> list[Launch]:
    """The launches with a step before the first that counts (the last of those left out) in front.

    Raises:
        InputError: a launch has no step that counts.
    """
    for launch in launches:
        if len(launch.steps) <= warmup:
            told = f"has {len(launch.steps)} steps, and the first {warmup} of a launch are left out"
            raise InputError(launch.source, told, "import more steps, or give --warmup")
    return [replace(launch, steps=launch.steps[max(0, warmup - 1) :]) for launch in launches]


def import_runs(
    files: Sequence[Path],
    scenario: Scenario,
    plan: Plan,
    runs: Path,
    *,
    policy: PolicyRecord,
    label: str,
    kind: Format | None = None,
    warmup: int = WARMUP,
    prediction: Path | None = None,
    twin_of: str | None = None,
    folder: Path | None = None,
) -> Imported:
    """Turn logs and traces of a plan's training into a measured run, and write it beside its prediction.

    Args:
        files: one or more; the launches of all of them make one run.
        scenario: what ran: devices, links, workload.
        plan: how it was divided.
        runs: folder of runs; gets a folder for the import.
        policy: who made the plan.
        label: of the run, in tables and for the gate.
        kind: format of the files; by their names if None.
        warmup: first steps of each launch that do not count.
        prediction: folder of the simulated run that predicted it. None: it is predicted now, and the run says so.
        twin_of: label of the run that this repeats (A/A).
        folder: gets the two runs, in place of one in ``runs``; it must not exist.

    Raises:
        InputError: the folder exists, a file cannot be read, too few steps, or the prediction is of another plan or
            workload.
        PlanError: the plan breaks a rule of the scenario.
    """
    plan.check(scenario)
    if folder is not None and folder.exists():
        raise InputError(str(folder), "exists", "choose another folder, or remove it")
    launches = settled(read_logs(files, scenario, kind), warmup)
    predicted, sealed, notes = _prediction(scenario, plan, policy, label, prediction)
    sources = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    told = [note for launch in launches for note in launch.notes]
    rule = f"the first {warmup} steps of each launch are left out as warm-up"
    undivided = [] if any(step.spans for launch in launches for step in launch.steps) else [UNDIVIDED]
    notes = list(dict.fromkeys([*notes, rule, *told, *undivided]))
    lead = warmup > 0
    measured = _measured(scenario, plan, policy, label, launches, lead=lead, notes=notes)
    manifest = measured.manifest.model_copy(
        update={
            "run_id": digest([predicted.manifest.run_id, sources, label])[:16],
            "predicted_run_id": predicted.manifest.run_id,
            "prediction_sha256": sealed,
            "twin_of": twin_of,
            "provenance": _provenance(sources, launches),
        }
    )
    measured = replace(measured, manifest=manifest)
    folder = folder or runs / f"import-{slug(label)}-{manifest.run_id[:8]}"
    with whole_folder(folder) as place:
        write_run(predicted, place / "00-predicted")
        write_run(measured, place / "01-measured")
    return Imported(folder=folder, predicted=predicted, measured=measured)


def _provenance(sources: dict[str, str], launches: Sequence[Launch]) -> dict[str, Any]:
    return {
        "imported": [f"imported from {Path(name).name} sha256 {sha}" for name, sha in sources.items()],
        "launches": [launch.source for launch in launches],
        "written_utc": written_utc(),
        "code": code_provenance(),
    }


# ---- the prediction ----


def _prediction(
    scenario: Scenario, plan: Plan, policy: PolicyRecord, label: str, given: Path | None
) -> tuple[Run, str, list[str]]:
    """The prediction, its digest, and what to note about when it was made."""
    if given is None:
        run = simulate(scenario, Fixed(plan, policy), label=label)
        manifest = run.manifest.model_copy(update={"notes": [AFTER], "provenance": {"code": code_provenance()}})
        run = replace(run, manifest=manifest)
        return run, seal(run), [AFTER]
    run = read_run(given)
    if run.manifest.kind != "simulated":
        raise InputError(str(given), "is no prediction: it was measured", "give the folder of a simulated run")
    if run.manifest.plan_sha256 != plan.sha256:
        raise InputError(str(given), "predicts another plan", "give the plan that it predicts, or its own prediction")
    own, other = scenario.workload.model_dump(mode="json"), run.manifest.scenario.get("workload")
    if own != other or sorted(run.summary.devices) != sorted(scenario.cluster.by_name):
        raise InputError(str(given), "predicts another workload or cluster", "give the scenario that it predicts")
    sealed = _study_seal(given) or seal(run)
    return run, sealed, [f"predicted by run {run.manifest.run_id}, sha256 {sealed}, given at import"]


def seal(run: Run) -> str:
    """Digest of a prediction: which run it is, and its figures."""
    return digest([run.manifest.run_id, run.summary.model_dump(mode="json")])


def _study_seal(folder: Path) -> str | None:
    """The digest of the study that a prediction is part of: what its predictions.json was sealed with."""
    file = folder.resolve().parent / "predictions.json"
    if not file.is_file():
        return None
    document = read_json(file)
    lines = document.get("predictions") if isinstance(document, dict) else None
    if lines is None or digest(lines) != document.get("sha256"):
        raise InputError(str(file), "does not have the sha256 that it names", "it was changed since; predict again")
    return str(document["sha256"])


# ---- the measurement ----


def _measured(
    scenario: Scenario,
    plan: Plan,
    policy: PolicyRecord,
    label: str,
    launches: Sequence[Launch],
    *,
    lead: bool,
    notes: Sequence[str],
) -> Run:
    of = {name: index for index, pipeline in enumerate(plan.pipelines) for name in pipeline.devices}
    ranks = [(name, of[name]) for name in rank_devices(plan, scenario)]
    rows = [row for number, launch in enumerate(launches) for row in _rows(launch, number, ranks, lead=lead)]
    events = event_frame(rows)
    summary = _summary(scenario, plan, events)
    if UNDIVIDED in notes:  # idle power would be taken for the whole step
        unknown = {"energy_j_per_step": None, "carbon_kg_per_million_samples": None}
        summary = summary.model_copy(update={**unknown, "critical_path": "not known: step times alone were imported"})
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        run_id="",
        kind="measured",
        label=label,
        scenario=scenario.model_dump(mode="json"),
        policy=policy,
        plan_sha256=plan.sha256,
        seed=scenario.seed,
        model_version=cost.MODEL_VERSION,
        notes=list(notes),
    )
    return Run(manifest=manifest, plan=plan.document(), summary=summary, events=events)


def _summary(scenario: Scenario, plan: Plan, events: pd.DataFrame) -> Summary:
    """What the events of some launches come to."""
    times = step_times(events)
    names = [device.name for device in scenario.cluster.devices]
    samples = plan.samples()
    lines = {
        name: ledger.model_copy(update={"samples": samples.get(name, 0)})
        for name, ledger in ledgers(events, names).items()
    }
    return summarise(
        scenario,
        step_time=quantiles([seconds for each in times.values() for seconds in each]),
        launch_medians=[quantiles(times[launch]).p50 for launch in sorted(times)],
        devices=lines,
        bound_s=bound_s(scenario, plan),
        steps=sum(map(len, times.values())),
        fidelity="measured",
        median_interval_s=bootstrap_interval(list(times.values()), scenario.seed),
    )


def rank_devices(plan: Plan, scenario: Scenario) -> list[str]:
    """The device of each rank: as an exported plan numbers them, else in the order of the plan."""
    if not list(irregular(plan)):
        return [rank.device for rank in rank_map(Shape.of(plan), scenario.cluster)]
    return [name for pipeline in plan.pipelines for name in pipeline.devices]


def _rows(launch: Launch, number: int, ranks: Sequence[tuple[str, int]], *, lead: bool) -> list[Row]:
    """Events of one launch: its steps without a pause, the first of them a lead-in (of no length if none was kept)."""
    strange = next((s.rank for step in launch.steps for s in step.spans if not 0 <= s.rank < len(ranks)), None)
    if strange is not None:
        raise InputError(launch.source, f"is of rank {strange}, the plan has {len(ranks)} ranks", "name its plan")
    steps = launch.steps if lead else (None, *launch.steps)
    rows: list[Row] = []
    begin = 0.0
    for index, step in enumerate(steps):
        end = begin + (step.seconds if step is not None else 0.0)
        common = {"launch": number, "round": 0, "step": index, "multiplicity": 1, "stage": -1, "micro_batch": -1}
        spans = step.spans if step is not None else ()
        for rank, (device, pipeline) in enumerate(ranks):
            here = {**common, "device": device, "pipeline": pipeline}
            rows.append({**here, "kind": "step", "start_s": begin, "end_s": end})
            rows += [
                {**here, "kind": span.kind, "start_s": begin + span.start_s, "end_s": min(end, begin + span.end_s)}
                for span in spans
                if span.rank == rank
            ]
        begin = end
    return rows
