"""The checkpoint store: whatever happens to its bytes, a damaged checkpoint is never loaded and the one before is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.checkpoint import (
    MANIFEST,
    SEAL,
    Checkpoint,
    DamagedError,
    Manifest,
    Part,
    Store,
    proven,
    shared_states,
    write_durably,
)

FILES = {
    "state-0.safetensors": bytes(range(256)) * 3,
    "random-0.safetensors": b"random 0",
    "random-1.safetensors": b"random 1",
    "losses.safetensors": b"losses",
}
NAMES = (*FILES, MANIFEST, SEAL)


def save(store: Store, step: int, tag: bytes = b"") -> Path:
    place = store.partial(step)
    place.mkdir(parents=True)
    stored = {name: write_durably(place / name, data + tag) for name, data in FILES.items()}
    parts = [
        Part(rank=rank, lane=lane, state="state-0.safetensors", random=f"random-{rank}.safetensors")
        for rank, lane in enumerate(("full", "sse"))
    ]
    return store.commit(
        Manifest(
            step=step,
            next_sample=30 * step,
            scenario_sha256="a" * 64,
            plan_sha256="b" * 64,
            data_sha256="c" * 64,
            parts=parts,
            losses="losses.safetensors",
            files=stored,
        )
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("original"))
    save(store, 10, b"older")
    save(store, 20, b"newer")
    return store.folder


@pytest.fixture(scope="module")
def fresh(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    place = tmp_path_factory.mktemp("copies") / "checkpoints"

    def copy() -> Store:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, place)
        return Store(place)

    return copy


def newest(store: Store) -> Checkpoint:
    found, _ = store.newest()
    assert found is not None
    return found


def test_what_was_written_is_read_back(original: Path) -> None:
    found = newest(Store(original))
    assert (found.manifest.step, found.manifest.next_sample) == (20, 600)
    for name, data in FILES.items():
        assert found.read(name) == data + b"newer"


def test_the_seal_is_what_sha256sum_checks(original: Path) -> None:
    digest, name = (original / "step-00000020" / SEAL).read_text().split()
    assert hashlib.sha256((original / "step-00000020" / name).read_bytes()).hexdigest() == digest


@given(name=st.sampled_from(NAMES), at=st.integers(0), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_and_the_one_before_is_loaded(
    fresh: Callable[[], Store], name: str, at: int, bit: int
) -> None:
    store = fresh()
    file = store.folder / "step-00000020" / name
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 1 << bit
    file.write_bytes(data)
    found, reasons = store.newest()
    assert found is not None
    assert found.manifest.step == 10
    assert len(reasons) == 1
    assert "step-00000020" in reasons[0]
    with pytest.raises(DamagedError):
        proven(store.folder / "step-00000020")


@given(name=st.sampled_from(NAMES), length=st.integers(0))
def test_a_file_cut_short_anywhere_is_never_loaded(fresh: Callable[[], Store], name: str, length: int) -> None:
    store = fresh()
    file = store.folder / "step-00000020" / name
    data = file.read_bytes()
    file.write_bytes(data[: length % len(data)])
    assert newest(store).manifest.step == 10


@given(name=st.sampled_from(NAMES), more=st.binary(min_size=1, max_size=20))
def test_a_file_that_grew_is_never_loaded(fresh: Callable[[], Store], name: str, more: bytes) -> None:
    store = fresh()
    with (store.folder / "step-00000020" / name).open("ab") as file:
        file.write(more)
    assert newest(store).manifest.step == 10


@given(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES))
def test_files_of_another_checkpoint_are_never_loaded(fresh: Callable[[], Store], name: str, other: str) -> None:
    """Whole files in the wrong place: of the older checkpoint, or of another role."""
    store = fresh()
    target, source = store.folder / "step-00000020" / name, store.folder / "step-00000010" / other
    target.write_bytes(source.read_bytes())
    assert newest(store).manifest.step == 10


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_never_loaded(fresh: Callable[[], Store], name: str) -> None:
    store = fresh()
    (store.folder / "step-00000020" / name).unlink()
    assert newest(store).manifest.step == 10
    (store.folder / "step-00000010" / name).unlink()
    found, reasons = store.newest()
    assert found is None
    assert len(reasons) == 2


def test_a_checkpoint_under_another_ones_name_is_never_loaded(fresh: Callable[[], Store]) -> None:
    store = fresh()
    (store.folder / "step-00000020").rename(store.folder / "step-00000030")
    found, reasons = store.newest()
    assert found is not None
    assert found.manifest.step == 10
    assert "holds step 20" in reasons[0]


def test_a_file_that_changes_after_the_proof_is_not_handed_out(fresh: Callable[[], Store]) -> None:
    found = newest(fresh())
    (found.folder / "losses.safetensors").write_bytes(b"losses" + b"newer"[::-1])
    with pytest.raises(DamagedError, match="losses"):
        found.read("losses.safetensors")


@pytest.mark.parametrize("written", range(len(FILES) + 1))
def test_an_interrupted_writer_leaves_no_checkpoint(fresh: Callable[[], Store], written: int) -> None:
    """However many files were there when it was killed: what has no name is not loaded, and the next start sweeps."""
    store = fresh()
    place = store.partial(30)
    place.mkdir()
    for name, data in list(FILES.items())[:written]:
        write_durably(place / name, data)
    assert newest(store).manifest.step == 20
    store.sweep()
    assert not list(store.folder.glob(".*"))
    assert newest(store).manifest.step == 20


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        save(store, step)
    assert store.steps() == [15, 20]


def test_a_damaged_one_is_replaced_when_its_steps_are_done_again(fresh: Callable[[], Store]) -> None:
    store = fresh()
    (store.folder / "step-00000020" / MANIFEST).write_text("{}")
    save(store, 20, b"again")
    assert newest(store).read("losses.safetensors") == b"lossesagain"
    assert not list(store.folder.glob(".*"))


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").newest() == (None, [])


def test_replicas_of_equal_bytes_are_written_once() -> None:
    assert shared_states([b"a", b"b", b"a", b"b"]) == [0, 1, 0, 1]
