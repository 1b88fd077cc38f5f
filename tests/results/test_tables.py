"""Text of tables: units, signs, dashes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.compare import compare, plan_row
from steelyard.results.record import Run
from steelyard.results.tables import (
    facts,
    gaps,
    headlines,
    ledger_table,
    milliseconds,
    path_text,
    percent,
    plan_table,
    provenance_table,
    short_name,
    table_rows,
)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.04, "0.0 %"), (-0.04, "0.0 %"), (1.25, "+1.2 %"), (-3.0, "-3.0 %")]
)
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.3456, "12346"), (0.123456, "123.5"), (0.0123456, "12.35"), (0.0012345, "1.234"), (0, "0.000")],
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@given(st.floats(1e-3, 1e3))
def test_milliseconds_keep_three_digits(seconds: float) -> None:
    assert float(milliseconds(seconds)) == pytest.approx(1e3 * seconds, rel=1e-3)


def test_one_row_per_plan_with_the_same_columns(study: list[Run]) -> None:
    comparison = compare(study)
    rows = plan_table(comparison)
    assert len(rows) == len(comparison.plans)
    assert len({tuple(row) for row in rows}) == 1
    assert rows[0]["policy"].startswith("makespan leave_out=True")
    assert rows[0]["samples"] == "25+7"
    assert rows[-1]["policy"] == "uniform, again (A/A twin)"
    full = table_rows(comparison.plans)
    assert len({tuple(row) for row in full}) == 1
    for short, long in zip(rows, full, strict=True):
        assert short["predicted ms (p10-p90)"] == f"{long['p50 ms']} ({long['p10 ms']}-{long['p90 ms']})"
        assert short["measured ms (80 %)"].startswith(long["measured ms"])
        assert short["error"] == long["error"]
        # A terminal of 80 characters holds the figures beside a name of 12 and the padding between columns.
        assert sum(len(value) for name, value in short.items() if name != "policy") <= 55
        assert float(long["gap to bound"].removesuffix(" %")) == pytest.approx(float(short["gap %"]), abs=0.5)


def test_the_gap_is_that_of_what_was_measured(study: list[Run]) -> None:
    """Of what was predicted, where nobody measured; and by the bound of all plans, where some plan is no split."""
    rows = compare(study).plans
    measured = [100 * (row.measured.median_s / row.lower_bound_step_time_s - 1) for row in rows if row.measured]
    assert gaps(rows) == pytest.approx(measured)
    alone = [row.model_copy(update={"measured": None}) for row in rows]
    assert gaps(alone) == pytest.approx([100 * (row.predicted.p50_s / row.lower_bound_step_time_s - 1) for row in rows])
    apart = [row.model_copy(update={"work_bound_step_time_s": row.lower_bound_step_time_s / 2}) for row in alone]
    assert gaps(apart) == gaps(alone)
    cut = apart[0].model_copy(update={"lower_bound_step_time_s": apart[0].work_bound_step_time_s})
    step_s, bound_s = apart[1].predicted.p50_s, apart[1].lower_bound_step_time_s / 2
    assert gaps([cut, *apart[1:]])[1] == pytest.approx(100 * (step_s / bound_s - 1))
    assert gaps([alone[0].model_copy(update={"lower_bound_step_time_s": 0.0})]) == [None]


def test_simulated_rows_have_no_measured_columns(study: list[Run]) -> None:
    simulated = [plan_row(run) for run in study if run.manifest.kind == "simulated"]
    assert "measured ms" not in table_rows(simulated)[0]
    mixed = table_rows([*simulated, *compare(study).plans])
    assert mixed[0]["measured ms"] == mixed[0]["error"] == "-"
    assert mixed[-1]["measured ms"] != "-"


def test_facts_and_headlines_say_the_same(study: list[Run]) -> None:
    comparison = compare(study)
    found = facts(comparison)
    lines = headlines(comparison)
    assert [name for name, _, _ in found] == [line.partition(":")[0] for line in lines[: len(found)]]
    assert lines[len(found) :] == [f"note: {note}" for note in comparison.notes]
    nothing = comparison.model_copy(update={"kendall_tau": None, "regret_percent": None, "noise_floor_percent": None})
    assert [value for name, value, _ in facts(nothing) if name in ("rank agreement", "regret", "noise floor")] == [
        "-"
    ] * 3


def test_ledger_rows_sum_to_the_step(study: list[Run]) -> None:
    for row in ledger_table(study[:2]):
        parts = [float(value) for name, value in row.items() if name.endswith(" ms") and name != "step ms"]
        assert sum(parts) == pytest.approx(float(row["step ms"]), abs=0.2)
        assert "bubble ms" not in row


def test_provenance_is_flat_and_leaves_out_what_is_not_known(study: list[Run]) -> None:
    found = dict(provenance_table(study[1]))
    assert found["contention.drift_percent.left"] == "1.0"
    assert found["kind"] == "measured"
    assert found["prediction sha256"] == "0" * 64
    assert "prediction sha256" not in dict(provenance_table(study[0]))


def test_names_in_figures_are_short(study: list[Run]) -> None:
    row = plan_row(study[0]).model_copy(update={"label": "x" * 200})
    assert len(short_name(row)) < 50
    many = row.model_copy(update={"plan": {str(number): 1 for number in range(100)}})
    assert short_name(many).endswith("on 100 devices")


def test_the_path_is_told_by_its_main_causes() -> None:
    """Three of them at most, and none below a hundredth of the step."""
    seconds = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    assert path_text({"step_s": 10.0, "by_cause": seconds}) == "40 % a, 30 % b, 20 % c"
    assert path_text({"step_s": 10.0, "by_cause": {"a": 9.96, "b": 0.04}}) == "100 % a"
