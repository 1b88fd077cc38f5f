"""The history of prediction error: lines are added, never lost or mixed, and read back as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from steelyard.results.errors import InputError
from steelyard.results.fidelities import score, scores
from steelyard.results.history import FILE, Entry, append, history_rows, read
from steelyard.results.history_plots import history_figure
from steelyard.results.plots import save


def entry(**changes: object) -> Entry:
    return Entry.model_validate(
        {
            "date_utc": "2026-01-02T03:04:05+00:00",
            "study": "replay-1",
            "scenario": "demo",
            "host": "0123abcd",
            "fidelity": "profiled",
            "plans": 7,
            "mean_error_percent": -1.5,
            "mape_percent": 2.0,
            "worst_error_percent": 4.0,
            **changes,
        }
    )


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    entries = [entry(study=f"replay-{number}", kendall_tau=0.9) for number in range(5)]
    for each in entries:
        append(tmp_path / "deep" / FILE, [each])
    assert read(tmp_path / "deep" / FILE) == entries


def test_replays_that_end_together_do_not_mix_their_lines(tmp_path: Path) -> None:
    groups = [[entry(study=f"{number}", fidelity=name) for name in ("a" * 200, "b")] for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda group: append(tmp_path / FILE, group), groups))
    found = read(tmp_path / FILE)
    assert sorted(each.study for each in found) == sorted(each.study for group in groups for each in group)
    assert [each.study for each in found[::2]] == [each.study for each in found[1::2]]


def test_a_line_without_its_end_spoils_no_other(tmp_path: Path) -> None:
    append(tmp_path / FILE, [entry()])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"torn')
    append(tmp_path / FILE, [entry(study="next")])
    with pytest.raises(InputError, match="line 2: is damaged"):
        read(tmp_path / FILE)
    kept = [line for line in (tmp_path / FILE).read_text().splitlines() if "torn" not in line]
    (tmp_path / FILE).write_text("\n".join(kept) + "\n")
    assert [each.study for each in read(tmp_path / FILE)] == ["replay-1", "next"]


def test_no_history_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / FILE)
    with pytest.raises(InputError, match="empty"):
        history_figure([])


def test_the_table_has_a_row_per_line_and_the_figure_is_a_picture(tmp_path: Path) -> None:
    entries = [
        entry(study=f"replay-{number}", fidelity=name, busy=number == 1, noise_floor_percent=1.0)
        for number in range(3)
        for name in ("datasheet", "calibrated", "profiled")
    ]
    rows = history_rows(entries)
    assert len(rows) == 9
    assert rows[0]["tau"] == "-"
    assert save(history_figure(entries), tmp_path / "h.png").read_bytes()[:4] == b"\x89PNG"


def test_a_perfect_fidelity_has_no_error_and_full_rank_agreement() -> None:
    found = score("profiled", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0)
    assert (found.mape_percent, found.worst_error_percent, found.kendall_tau) == (0.0, 0.0, 1.0)


def test_a_fidelity_that_missed_a_plan_is_not_scored() -> None:
    at = [{"datasheet": 2.0, "profiled": 1.0}, {"profiled": 2.2}]
    assert [(each.fidelity, each.plans) for each in scores(at, [1.0, 2.0], 0.0)] == [("profiled", 2)]
    assert scores(at, [1.0, 2.0], 0.0)[0].mape_percent == pytest.approx(5.0)
