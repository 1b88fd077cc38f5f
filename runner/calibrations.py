"""Calibrations on disk: where they lie, and whether they are of this workload and of this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from ..results.errors import InputError
from ..results.record import digest
from ..results.store import write_text, written_utc
from ..sim.checking import validate
from ..sim.device import Cluster
from ..sim.spec import inside, parse_file
from ..sim.workload import Facts, Name, NonNegative, Spec, Workload
from .declared import LaneFile, declared
from .hosts.machines import current, further_lanes, study_fingerprint


@dataclass(frozen=True)
class Calibration:
    """Measured tables of one workload on the lanes of one host."""

    cluster: Cluster
    workload: str
    """Key of the workload that ran."""
    path: Path
    reused: bool
    contended_percent: float
    """Share of the compute segments that something else on the host disturbed."""
    feedback: dict[str, Any] = field(default_factory=dict)
    """Of refined tables: their base's digest, the runs with their digests, the factors, the held-out errors."""


class CalibrationFile(Spec):
    """Tables on disk, in the catalog's format."""

    schema_version: int
    workload: Name
    created_utc: str = ""
    contended_percent: NonNegative = 0.0
    feedback: Facts = Field(default_factory=dict)
    cluster: Cluster


def calibration_path(document: dict[str, Any], folder: Path | None, runs: Path, workload: Workload) -> Path:
    """Where the tables of a scenario lie: the file it names, else one per kind of lanes and workload."""
    cluster = document.get("cluster")
    named = cluster.get("calibration") if isinstance(cluster, dict) else None
    if isinstance(named, str):
        return inside(folder, named, "cluster.calibration")
    return runs / "calibrations" / f"{_lanes_name(declared(document, folder))}-{workload.key}.toml"


def write_calibration(calibration: Calibration) -> None:
    """Write the tables in the catalog's format, with the fingerprint of the hardware they belong to."""
    import tomli_w

    document = {
        "schema_version": 1,
        "workload": calibration.workload,
        "created_utc": written_utc(),
        "contended_percent": calibration.contended_percent,
        "feedback": calibration.feedback,
        "cluster": calibration.cluster.model_dump(mode="json", exclude_none=True),
    }
    write_text(calibration.path, tomli_w.dumps(document))


def read_calibration(path: Path) -> Calibration:
    """Read tables back.

    Raises:
        InputError: missing, damaged, or of another version.
    """
    document = parse_file(path)
    if document.get("schema_version") != 1 or not isinstance(document.get("workload"), str):
        raise InputError(str(path), "is not a calibration of this version", "run `steelyard calibrate --again`")
    found = validate(CalibrationFile, document, str(path), prefix=f"{path}: ")
    return Calibration(
        cluster=found.cluster,
        workload=found.workload,
        path=path,
        reused=True,
        contended_percent=found.contended_percent,
        feedback=found.feedback,
    )


def refined_path(path: Path) -> Path:
    """Where tables lie that were refined by measured runs: beside those they were made from."""
    return path.with_suffix(".refined.toml")


def latest_calibration(path: Path) -> Calibration:
    """The tables at a path, or the refined ones beside them if these were made from the very tables at the path.

    Raises:
        InputError: a file is missing, damaged, or of another version.
    """
    base = read_calibration(path)
    if not refined_path(path).is_file():
        return base
    refined = read_calibration(refined_path(path))
    return refined if refined.feedback.get("base") == base_digest(base) else base


def base_digest(calibration: Calibration) -> str:
    """What refined tables know their base by: fields that a later version adds change nothing while they are unused."""
    return digest(calibration.cluster.model_dump(mode="json", exclude_defaults=True))


def check_workload(calibration: Calibration, workload: Workload) -> None:
    """Compare what ran when the tables were made with what is to run.

    Raises:
        InputError: they differ.
    """
    if calibration.workload != workload.key:
        raise InputError(
            str(calibration.path),
            "was measured with another workload",
            "run `steelyard calibrate --again` to replace it, or name another file",
        )


def check_fingerprint(calibration: Calibration, force: bool) -> list[str]:
    """Compare the tables' fingerprint with this host's.

    Returns:
        A note for the run's record where they differ and ``force`` is given, else nothing.

    Raises:
        InputError: they differ.
    """
    here, there = study_fingerprint(), calibration.cluster.fingerprint
    differing = sorted(key for key in here if here[key] != there.get(key))
    if not differing:
        return []
    key = differing[0]
    what = f"{key} is {here[key]!r} here, {there.get(key)!r} there"
    if force:
        return [f"calibration of another machine used by --force: {what}"]
    raise InputError(
        str(calibration.path),
        f"was measured on another machine: {what}",
        "run `steelyard calibrate --again`, or add --force to use it all the same",
    )


def _lanes_name(by_hand: tuple[str, LaneFile] | None) -> str:
    """What the lanes add to the name of their tables: a file that was edited, or another of that name, has its own."""
    if by_hand is None:
        return "auto" if current.get() is None else f"auto-{len(further_lanes()) + 1}-machines"
    name, found = by_hand
    return f"{name}-{digest(found.model_dump(mode='json'))[:8]}"
