"""Run folders: round trips, damage of every kind, and writes that are cut short."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from steelyard.results.errors import InputError
from steelyard.results.record import Run
from steelyard.results.store import (
    FILES,
    code_provenance,
    find_runs,
    read_json,
    read_run,
    read_text,
    slug,
    whole_folder,
    write_run,
    write_text,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Each example writes into a folder of its own name, so that sharing tmp_path does no harm.
shared_tmp_path = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(study: list[Run], tmp_path: Path) -> Path:
    return write_run(study[1], tmp_path / "run")


def equal(one: Run, other: Run) -> bool:
    assert_frame_equal(one.events, other.events, check_exact=True)
    return (one.manifest, one.plan, one.summary, one.decisions) == (
        other.manifest,
        other.plan,
        other.summary,
        other.decisions,
    )


@given(st.text(max_size=200))
def test_a_slug_is_a_part_of_a_file_name_and_its_own_slug_but_for_where_it_was_cut(label: str) -> None:
    found = slug(label)
    assert len(found) <= 48
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert slug(found) == found.strip("-")


def test_round_trip(study: list[Run], tmp_path: Path) -> None:
    for number, run in enumerate(study):
        assert equal(read_run(write_run(run, tmp_path / str(number))), run)


@shared_tmp_path
@given(
    decisions=st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=3), provenance=values, label=st.text()
)
def test_round_trip_of_any_text(
    study: list[Run], tmp_path: Path, decisions: list[dict[str, Any]], provenance: Any, label: str
) -> None:
    manifest = study[0].manifest.model_copy(update={"provenance": {"x": provenance}, "label": label})
    run = dataclasses.replace(study[0], manifest=manifest, decisions=decisions)
    try:
        label.encode()
    except UnicodeEncodeError:
        return
    assert equal(read_run(write_run(run, tmp_path / "any")), run)


def test_equal_runs_give_equal_bytes(study: list[Run], tmp_path: Path) -> None:
    first, second = write_run(study[0], tmp_path / "a"), write_run(study[0], tmp_path / "b")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_run_is_replaced_whole(study: list[Run], tmp_path: Path) -> None:
    write_run(study[0], tmp_path / "run")
    write_run(study[2], tmp_path / "run")
    assert equal(read_run(tmp_path / "run"), study[2])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read_run(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_torn_file_is_named(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    if name == "decisions.jsonl":
        content = b'{"step": 1, "plan": {}}\n{"step": 2}'
        share = 0.4 if share == 0.0 else share
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read_run(folder)


JUNK = [b"null", b"[]", b"3", b"[" * 100_000, b'{"schema_version": 1}', b"NaN", b"9" * 5000, b"\xff\xfe"]


def refusal(folder: Path) -> InputError | None:
    """What reading a run folder ends in; anything but an InputError is a crash and fails the test."""
    try:
        read_run(folder)
    except InputError as error:
        return error
    return None


@shared_tmp_path
@given(name=st.sampled_from(FILES), junk=st.binary(max_size=60) | st.sampled_from(JUNK))
def test_junk_is_refused_by_name(study: list[Run], tmp_path: Path, name: str, junk: bytes) -> None:
    folder = write_run(study[0], tmp_path / "junk")
    (folder / name).write_bytes(junk)
    error = refusal(folder)
    if error is not None:
        assert name in error.path
    elif name == "plan.json":  # a table: whether it is a plan, the simulator judges
        assert isinstance(json.loads(junk), dict)
    else:
        assert name == "decisions.jsonl"
        assert all(isinstance(json.loads(line), dict) for line in junk.decode().splitlines() if line)


@shared_tmp_path
@example(place=0.9852934460248534, bit=1, name="events.parquet")  # integers of more bits than the reader knows
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(FILES))
def test_a_flipped_bit_never_crashes(study: list[Run], tmp_path: Path, place: float, bit: int, name: str) -> None:
    folder = write_run(study[0], tmp_path / "flipped")
    content = bytearray((folder / name).read_bytes())
    if content:
        content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(bytes(content))
    error = refusal(folder)
    assert error is None or name in error.path


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_major_version_is_refused(folder: Path, version: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": version}))
    with pytest.raises(InputError, match="schema_version"):
        read_run(folder)


def test_unknown_fields_are_kept(folder: Path) -> None:
    for name in ("manifest.json", "summary.json"):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**data, "of_a_newer_minor_version": [1, 2]}))
    run = read_run(folder)
    again = read_run(write_run(run, folder.parent / "again"))
    assert again.manifest.model_dump()["of_a_newer_minor_version"] == [1, 2]
    assert again.summary.model_dump()["of_a_newer_minor_version"] == [1, 2]


def test_a_wrong_field_is_named_by_its_path(folder: Path) -> None:
    data = json.loads((folder / "summary.json").read_text())
    data["step_time_s"]["p50"] = "fast"
    (folder / "summary.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"summary\.json: step_time_s\.p50"):
        read_run(folder)


def test_a_missing_column_is_named(folder: Path, study: list[Run]) -> None:
    study[0].events.drop(columns="kind").to_parquet(folder / "events.parquet")
    with pytest.raises(InputError, match=r"events\.parquet: kind"):
        read_run(folder)


def test_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(InputError, match="is not a run folder"):
            read_run(path)


def test_a_failed_write_leaves_nothing(study: list[Run], tmp_path: Path) -> None:
    unwritable = dataclasses.replace(study[0], decisions=[{"view": object()}])
    with pytest.raises(TypeError):
        write_run(unwritable, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_run(study: list[Run], tmp_path: Path) -> None:
    write_run(study[0], tmp_path / "run")
    with pytest.raises(TypeError):
        write_run(dataclasses.replace(study[2], decisions=[{"view": object()}]), tmp_path / "run")
    assert equal(read_run(tmp_path / "run"), study[0])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


WRITER = """
import itertools, sys
from pathlib import Path
from steelyard.results.store import read_run, write_run
run = read_run(Path(sys.argv[1]))
print("ready", flush=True)
for number in itertools.count():
    write_run(run, Path(sys.argv[2]) / f"run-{number % 3}")
"""


@pytest.mark.parametrize("delay_s", [0.02, 0.05])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_in_the_middle_a_run_is_whole_or_absent(folder: Path, tmp_path: Path, delay_s: float) -> None:
    target = tmp_path / "runs"
    target.mkdir()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(target)], stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(delay_s)  # any moment will do: the assertion holds at each
        os.kill(writer.pid, signal.SIGKILL)
    expected = read_run(folder)
    for place in target.iterdir():
        if not place.name.startswith("."):
            assert equal(read_run(place), expected)


def test_runs_are_found_once_and_in_order(study: list[Run], tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_run(study[0], tmp_path / "study" / name)
    (tmp_path / "study" / ".half").mkdir()
    (tmp_path / "study" / ".half" / "manifest.json").write_text("{}")
    inside = [tmp_path / "study" / "a", tmp_path / "study" / "b"]
    assert find_runs([tmp_path / "study"]) == inside
    assert find_runs([inside[1], tmp_path / "study", inside[1]]) == [inside[1], inside[0]]


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run folder"):
        find_runs([tmp_path])
    with pytest.raises(InputError, match="is not a folder"):
        find_runs([tmp_path / "none"])


def test_text_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one")
    write_text(path, "two é")
    assert read_text(path) == "two é"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert read_text(path) == "two é"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_long_missing_and_binary_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(InputError, match="no such file"):
        read_text(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="MB"):
        read_text(path, limit=99)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_text(path)
    with pytest.raises(InputError, match="file"):
        read_json(path)


def test_unreadable_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a":' * 20_000)
    with pytest.raises(InputError, match="damaged or half written"):
        read_json(path)


def test_whole_folder_is_readable_by_others(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "made") as place:
        (place / "x").write_text("x")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_the_code_says_its_version() -> None:
    assert code_provenance()["version"] not in ("", None)


def test_a_folder_in_the_place_of_a_file_is_a_mistake_and_stays(tmp_path: Path) -> None:
    (tmp_path / "best.toml").mkdir()
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_text(tmp_path / "best.toml", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["best.toml"]
