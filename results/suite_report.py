"""What a suite came to, as lines of text and as one page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .agreement import LEAST_LAUNCHES
from .criteria import SHARED_PERCENT, SHARED_TIMES, Criterion
from .page import PAGE, bullets, section, table
from .pooled import CaseResult, SuiteResult
from .store import write_text
from .tables import percent, table_rows


def suite_report(result: SuiteResult, folder: Path) -> Path:
    """Write ``report.html`` about a suite into its folder, and return the path.

    Figures of single plans and steps are in the cases' own folders: ``steelyard report`` of one makes its page.
    """
    sections = [section("Verdict", bullets(lines(result.document())))]
    if result.cases:
        sections.append(section("Cases", table(case_rows(result), "Each case, judged within itself")))
    for case in result.cases:
        if case.comparison is not None:
            about = f"{case.lanes} lanes; {case.folder}"
            sections.append(section(case.name, table(table_rows(case.comparison.plans), about)))
    page = PAGE.substitute(
        title=escape(f"Steelyard: suite {result.suite}"),
        lead=escape(measured_line(result.document())),
        busy="",
        sections="\n".join(sections),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def case_rows(result: SuiteResult) -> list[dict[str, str]]:
    """One row of text per case."""
    return [_case_row(case) for case in result.cases]


def _case_row(case: CaseResult) -> dict[str, str]:
    found = case.comparison
    if found is None:
        why = "FAILED" if case.failed else "skipped"
        return {"case": case.name, "plans": "0", "error": "-", "worst": "-", "floor": "-", "host": why}
    return {
        "case": case.name,
        "plans": str(len(case.rows)),
        "error": f"{percent(found.mean_error_percent)}, absolute {percent(found.mape_percent, sign=False)}",
        "worst": percent(found.worst_signed_error_percent),
        "floor": percent(found.noise_floor_percent, sign=False),
        "host": "busy" if found.busy else "quiet",
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """The verdict of a suite's document as lines of text: what was measured, aims, then what was not."""
    found = [
        f"{each['what']}: {'-' if each['value'] is None else format(each['value'], '.3g')} "
        f"({each['limit']}; {Criterion.model_validate(each).verdict()})"
        for each in document["criteria"]
    ]
    busy = ["the host was busy or noisy: read the errors with that in mind"] if document.get("busy") else []
    counted = [measured_line(document), *shared_lines(document)]
    failed = [f"FAILED: {what}: {why}" for what, why in document["failed"].items()]
    skipped = [f"skipped: {what}: {why}" for what, why in document["skipped"].items()]
    return [*counted, *busy, *found, *failed, *skipped, *(f"note: {note}" for note in document["notes"])]


def measured_line(document: Mapping[str, Any]) -> str:
    """How many of a suite's cases were measured, which were not, and whether that is enough to judge."""
    done = [case["name"] for case in document["cases"] if case["comparison"] is not None]
    left = [name for name in document["asked"] if name not in done]
    line = f"{len(done)} of {len(document['asked'])} cases measured"
    if left:
        line += f"; not measured: {', '.join(left)}"
    if done and not document.get("judged"):
        fewest = min(case["comparison"]["launches"] for case in document["cases"] if case["comparison"] is not None)
        line += f"; no aim is judged: the fewest launches of a case are {fewest}, it takes {LEAST_LAUNCHES}"
    return line


def shared_lines(document: Mapping[str, Any]) -> list[str]:
    """The figures of the cases whose lanes share a core, which are judged apart."""
    found = document["shared_cores"]
    if found is None:
        return ["no case of lanes that share a core was measured"]
    floor, tau = found["noise_floor_percent"], found["kendall_tau"]
    limit = "no noise floor, no limit" if floor is None else f"at most {SHARED_TIMES * floor + SHARED_PERCENT:.1f} %"
    steady = found.get("steadied") or {}
    told = ""
    if steady.get("foretold"):
        told = f"; predicted between each launch's gauge and its plans {steady['mape_percent']:.1f} %, which is judged"
    signed, worst = found["mean_error_percent"], found["worst_signed_error_percent"]
    return [
        f"lanes that share a core, judged apart: {found['cases']} cases, {found['plan_count']} plans: mean absolute "
        f"error {found['mape_percent']:.1f} % ({limit}: {SHARED_TIMES:g} x their own noise floor plus "
        f"{SHARED_PERCENT:g} %){told}; signed {signed:+.1f} %, worst {worst:+.1f} % "
        f"({found['worst_plan']}), tau {'-' if tau is None else f'{tau:.2f}'}, noise floor "
        f"{'-' if floor is None else f'{floor:.1f} %'}, coverage {found['coverage_percent']:.0f} %"
    ]
