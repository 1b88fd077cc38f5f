"""Records: canonical JSON, digests, labels, event frames."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.results.record import (
    EVENT_COLUMNS,
    LEDGER_LINES,
    LEDGER_OF_KIND,
    DeviceLedger,
    Manifest,
    PolicyRecord,
    Run,
    canonical_json,
    digest,
    event_frame,
)

keys = st.text(max_size=5)


@given(st.dictionaries(keys, st.integers() | keys, min_size=1))
def test_digest_does_not_depend_on_the_order_of_keys(table: dict[str, object]) -> None:
    backwards = dict(reversed(list(table.items())))
    assert digest(table) == digest(backwards)
    assert json.loads(canonical_json(table)) == table
    assert digest({**table, "one more key": 1}) != digest(table)


def test_what_is_no_number_has_no_digest() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            digest([value])


def test_labels_name_the_parameters() -> None:
    assert PolicyRecord(name="uniform").label() == "uniform"
    assert PolicyRecord(name="throughput", parameters={"gamma": 1.23456, "on": True}).label() == (
        "throughput(gamma=1.23, on=true)"
    )


def test_event_frames_have_the_schema() -> None:
    row = (0, 0, 1, "left", 0, -1, -1, "wait", 0.5, 1.5, 1)
    for rows in ([], [row], [dict(zip(EVENT_COLUMNS, row, strict=True))]):
        frame = event_frame(rows)
        assert list(frame.columns) == list(EVENT_COLUMNS)
        assert len(frame) == len(rows)
        for column, kind in EVENT_COLUMNS.items():
            assert frame[column].dtype == kind


def test_every_kind_counts_towards_a_line_of_the_ledger() -> None:
    assert set(LEDGER_OF_KIND.values()) | {"idle_s"} == set(LEDGER_LINES)
    assert set(LEDGER_LINES) <= DeviceLedger.model_fields.keys()


@given(st.lists(st.floats(0, 1e6), min_size=len(LEDGER_LINES), max_size=len(LEDGER_LINES)))
def test_a_ledger_sums_its_lines(values: list[float]) -> None:
    ledger = DeviceLedger(**dict(zip(LEDGER_LINES, values, strict=True)))
    assert ledger.total_s() == pytest.approx(sum(values))
    assert 0 <= ledger.utilisation() <= 1


def test_an_empty_ledger_is_not_busy() -> None:
    assert DeviceLedger().utilisation() == 0


def test_a_manifest_says_what_predicted_it(study: list[Run]) -> None:
    assert study[1].manifest.predicted_run_id == study[0].manifest.run_id
    again = Manifest.model_validate_json(study[1].manifest.model_dump_json())
    assert again == study[1].manifest
    assert study[0].manifest.predicted_run_id is None


@given(st.text(), st.text(), st.text())
def test_an_input_error_is_one_printable_line(path: str, problem: str, mend: str) -> None:
    line = str(InputError(path, problem, mend))
    assert line.isprintable()
    assert str(InputError("a.b", "is 3", "use 4")) == "a.b: is 3 (use 4)"
