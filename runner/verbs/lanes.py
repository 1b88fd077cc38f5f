"""This host's lanes: list them, measure a workload or single operators on them, refine what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...results.errors import InputError
from .inputs import open_document, read_runs
from .options import RUNS, Force, Json, RunsFolder, ScenarioArgument, Settings
from .output import emit, say, tabulate, terminal


def devices(
    lanes: Annotated[Path | None, typer.Option(help="Lane file (TOML) instead of what this host suggests.")] = None,
    as_json: Json = False,
) -> None:
    """List the lanes that this host can offer as torch devices: verified and measured."""
    from ..declared import read_lanes
    from ..devices import default_lanes, fingerprint
    from ..isolation.capabilities import capability_rows
    from ..launch import require_torch

    require_torch()
    chosen, offers = default_lanes(read_lanes(lanes) if lanes is not None else ())
    full = max(offer.training_rate for offer in offers)
    rows = [offer.row(full) for offer in offers]
    document = {"host": fingerprint(), "lanes": rows, "default_cluster": [lane.name for lane in chosen]}
    document["capabilities"] = capabilities = capability_rows(offers)
    shown = [
        {
            "lane": row["name"],
            "offered": row["offered"],
            "device": row["summary"],
            "GFLOP/s": row["product_gflop_per_s"],
            "GB/s": row["copy_gb_per_s"],
            "ratio to full": row["ratio_to_full"],
            "why": row["reason"],
        }
        for row in rows
    ]
    emit(document, as_json, shown, f"default cluster: {', '.join(lane.name for lane in chosen)}")
    can = [{"lanes may ask for": row["title"], "here": row["available"], "why": row["reason"]} for row in capabilities]
    tabulate(as_json, can, "capabilities")


def calibrate(
    scenario: ScenarioArgument = "demo",
    settings: Settings = [],
    again: Annotated[bool, typer.Option("--again", help="Measure although there is a calibration.")] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="Time operators instead: for models that never ran here.")
    ] = False,
    from_runs: Annotated[
        list[Path],
        typer.Option("--from-runs", help="Measure nothing: refine the tables by measured runs.", metavar="RUN"),
    ] = [],
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Measure this host's lanes for a scenario's workload; reuse what was measured on this machine before."""
    from ..show import progress

    document, folder = open_document(scenario, settings)
    if operators:
        return time_operators(document, folder, runs, again=again, force=force, as_json=as_json)
    if from_runs:
        return feed_back(document, folder, runs, from_runs, as_json=as_json)
    from ..calibrate import calibrate as measure
    from ..calibrations import check_fingerprint

    console = terminal()
    with progress(console, "calibrating") as tick:
        found = measure(document, folder, runs, again=again, force=force, report=console.print, tick=tick)
    if found.reused:
        say(check_fingerprint(found, force))
    answer = {
        "path": str(found.path),
        "reused": found.reused,
        "contended_percent": found.contended_percent,
        "cluster": found.cluster.model_dump(mode="json", exclude_none=True),
    }
    emit(answer, as_json, _profile_rows(found.cluster), f"{'reused' if found.reused else 'wrote'} {found.path}")
    return None


def _profile_rows(cluster: Any) -> list[dict[str, Any]]:
    """The times of each lane at each size of micro-batch."""
    return [
        {
            "lane": device.name,
            "micro-batch": point.micro_batch,
            "forward ms": 1e3 * point.forward_s,
            "backward ms": 1e3 * point.backward_s,
        }
        for device in cluster.devices
        for point in (device.profile.points if device.profile else [])
    ]


def time_operators(
    document: dict[str, Any],
    folder: Path | None,
    runs: Path,
    *,
    again: bool,
    force: bool,
    as_json: bool,
) -> None:
    """``calibrate --operators``: time the operators on the lanes of a scenario and print what was found."""
    from ..calibrate import scenario_lanes
    from ..operators import calibrate_operators, tables_path
    from ..resolving import workload_of

    report = terminal().print
    lanes = scenario_lanes(document, folder, runs, report)
    workload = workload_of(document, folder)
    path = tables_path(runs, lanes, workload.dtype)
    tables = calibrate_operators(lanes, path, dtype=workload.dtype, again=again, force=force, report=report)
    for name, table in tables.items():
        report(surplus_line(name, table))
    answer = {"path": str(path), "tables": {name: table.model_dump(mode="json") for name, table in tables.items()}}
    emit(answer, as_json, operator_rows(tables), f"operators in {path}")


def operator_rows(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per lane and kind, how many points were measured, and the shortest and the longest of them."""
    rows = []
    for name, table in tables.items():
        for grid in table.grids:
            seconds = [each for each in grid.seconds if each > 0]
            rows.append(
                {
                    "lane": name,
                    "operator": grid.kind,
                    "points": len(seconds),
                    "shortest us": 1e6 * min(seconds),
                    "longest ms": 1e3 * max(seconds),
                }
            )
    return rows


def surplus_line(lane: str, table: Any) -> str:
    """What passes take beside their kernels on a lane, and how far the small models are from what the others tell."""
    told = [
        f"{name} {1e6 * each.call_s:.1f} us a call and {each.factor:.2f} x the kernels"
        for name, each in (("forward", table.forward), ("backward", table.backward))
    ]
    off = [100 * abs(each) for each in table.residuals]
    judged = f"a small model that is left out is {sum(off) / len(off):.1f} % off, at worst {max(off):.1f} %"
    return f"  {lane}: {', '.join(told)}; {judged}"


def feed_back(
    document: dict[str, Any], folder: Path | None, runs: Path, measured: list[Path], *, as_json: bool
) -> None:
    """``calibrate --from-runs``: refine a scenario's tables by what replays measured, and say how far to trust it.

    Raises:
        InputError: no run was measured, or not of this workload on these lanes.
    """
    from ..calibrations import calibration_path, read_calibration, write_calibration
    from ..feedback import refine
    from ..resolving import workload_of

    cluster = document.get("cluster")
    if isinstance(cluster, dict) and "lanes" not in cluster:
        return feed_back_outside(document, folder, runs, measured, as_json=as_json)
    workload = workload_of(document, folder)
    path = calibration_path(document, folder, runs, workload)
    if not path.is_file():
        raise InputError(str(path), "does not exist", "run `steelyard calibrate` first")
    found = refine(read_calibration(path), read_runs(measured), workload)
    write_calibration(found.calibration)
    emit(found.document(), as_json, found.rows(), f"wrote {found.calibration.path}")
    return None


def feed_back_outside(
    document: dict[str, Any], folder: Path | None, runs: Path, measured: list[Path], *, as_json: bool
) -> None:
    """The same for a cluster elsewhere: a scenario whose devices and links are as imported runs have them.

    Raises:
        InputError: no run was measured, or not of this workload on this cluster.
    """
    from ...results.store import slug, to_json, write_text
    from ...sim.spec import scenario_from
    from ..outside import refine_outside

    scenario = scenario_from(document, folder)
    found = refine_outside(scenario, read_runs(measured))
    path = runs / "calibrations" / f"{slug(scenario.name)}.refined.json"
    write_text(path, to_json(found.scenario.model_dump(mode="json", exclude_none=True)))
    emit({"path": str(path), **found.document()}, as_json, found.rows(), f"wrote {path}")
