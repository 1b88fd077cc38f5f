"""The page: whole, self-contained, escaped, and saying what was measured and how."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from steelyard.results.compare import compare
from steelyard.results.errors import InputError
from steelyard.results.record import Run
from steelyard.results.report import headlines, report
from steelyard.results.tables import table_rows

VOID = {"meta", "img", "br", "link"}
EVIL = '<script>alert("x")</script> & $title'


class Page(HTMLParser):
    """Checks that tags nest, and gathers text, links and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def folder(study: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(study, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_the_page_stands_alone(page: Page, folder: Path) -> None:
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    text = (folder / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_has_its_parts(page: Page) -> None:
    for title in ("How good the prediction was", "Plans", "Where the time went", "What is not validated", "Provenance"):
        assert title in page.text
    assert page.tags.count("h1") == 1
    assert page.tags.count("figure") == page.tags.count("figcaption") == len(page.sources)
    assert "profiled" in page.text
    assert "busy:" not in page.text


def test_the_page_shows_every_plan_and_figure(study: list[Run], page: Page) -> None:
    comparison = compare(study)
    for row in table_rows(comparison.plans):
        for cell in row.values():
            assert cell in page.text
    assert f"{comparison.mape_percent:.1f} %" in page.text
    assert "not judged" in page.text
    for run in study:
        assert run.manifest.plan_sha256 in page.text
        assert run.manifest.run_id in page.text


def test_figures_and_trace_lie_beside_the_page(folder: Path, page: Page) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"scatter.png", "throughput.png", "timeline-pick.png", "timeline-uniform.png", "ledger-pick.png"} <= names
    assert len(names) == len(page.sources)
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {path.name for path in folder.iterdir()} == {"report.html", "trace.json", "figures"}


def test_simulated_runs_alone(study: list[Run], tmp_path: Path) -> None:
    simulated = [run for run in study if run.manifest.kind == "simulated"]
    page = Page(report(simulated, tmp_path).read_text())
    assert "Nothing was measured" in page.text
    assert "measured ms" not in page.text
    assert "How good" not in page.text
    assert not (tmp_path / "figures" / "scatter.png").exists()
    assert (tmp_path / "figures" / "timeline-pick.png").exists()


def test_a_busy_host_is_marked(make_study: Callable[..., list[Run]], tmp_path: Path) -> None:
    runs = make_study(busy=True)
    keep = [run for run in runs if run.manifest.label == "makespan"]
    page = Page(report(keep, tmp_path).read_text())
    assert "The host was busy:" in page.text
    assert "2 to 2 % of a plan's compute segments were disturbed" in page.text
    assert "than its table says" not in page.text  # 1 % and 0.5 % are no news
    assert any(line.startswith("the host was busy") for line in headlines(compare(runs)))


def evil(run: Run) -> Run:
    """A run whose every free text is hostile."""
    policy = run.manifest.policy.model_copy(update={"name": EVIL, "parameters": {EVIL: EVIL}})
    fields: dict[str, Any] = {
        "label": EVIL,
        "policy": policy,
        "notes": [EVIL],
        "scenario": {**run.manifest.scenario, "name": EVIL},
        "provenance": {EVIL: {EVIL: [EVIL]}, "contention": {"busy": True, "drift_percent": {EVIL: -9.0}}},
    }
    devices = {f"{name} {EVIL}": ledger for name, ledger in run.summary.devices.items()}
    events = run.events.assign(device=run.events["device"] + f" {EVIL}")
    summary = run.summary.model_copy(update={"devices": devices})
    return dataclasses.replace(run, manifest=run.manifest.model_copy(update=fields), summary=summary, events=events)


def test_all_text_is_escaped(study: list[Run], tmp_path: Path) -> None:
    page = Page(report([evil(run) for run in study[:2]], tmp_path).read_text())
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 8


def test_drift_is_told_by_device(study: list[Run], tmp_path: Path) -> None:
    contention = {"busy": True, "contended_percent": 3, "drift_percent": {"left": 12.2, "right": -7.8, "junk": "x"}}
    manifest = study[1].manifest.model_copy(update={"provenance": {"contention": contention}, "notes": ["a remark"]})
    page = Page(report([study[0], dataclasses.replace(study[1], manifest=manifest)], tmp_path).read_text())
    assert "left ran 12 % slower than its table says; right ran 8 % faster than its table says." in page.text
    assert page.text.count("a remark") == 1


def test_equal_runs_give_equal_pages(study: list[Run], tmp_path: Path) -> None:
    pages = [report(study[:2], tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_nothing_is_written_of_what_is_refused(study: list[Run], tmp_path: Path) -> None:
    for runs in ([], [study[1]]):
        with pytest.raises(InputError):
            report(runs, tmp_path)
    assert list(tmp_path.iterdir()) == []
