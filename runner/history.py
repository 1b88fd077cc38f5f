"""remember(): add a replay's prediction errors to the history of its folder of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..results.compare import Comparison, compare
from ..results.history import FILE, Entry, append, host_digest
from ..results.record import Run
from ..results.store import written_utc


def remember(runs: Sequence[Run], folder: Path, study: str) -> list[Entry]:
    """Compare a replay's runs and add one line per fidelity to ``history.jsonl``.

    Args:
        runs: predicted and measured.
        folder: of all runs; the history lies in it.
        study: name of the replay's own folder.
    """
    measured = next((run for run in runs if run.manifest.kind == "measured"), None)
    if measured is None:
        return []
    found = entries(compare(runs), measured, study)
    append(folder / FILE, found)
    return found


def entries(comparison: Comparison, measured: Run, study: str) -> list[Entry]:
    """One line per fidelity of a comparison; ``measured`` tells of host and code."""
    told = measured.manifest.provenance
    code = told.get("code", {})
    commit = str(code.get("git_sha") or code.get("version") or "")[:10]
    return [
        Entry(
            date_utc=written_utc(),
            study=study,
            scenario=comparison.scenario,
            host=host_digest(told.get("host", {})),
            **each.model_dump(),
            regret_percent=comparison.regret_percent if each.fidelity == comparison.fidelity else None,
            noise_floor_percent=comparison.noise_floor_percent,
            busy=comparison.busy,
            code=commit + ("+" if code.get("git_dirty") else ""),
        )
        for each in comparison.fidelities
    ]
