"""The cache of encoded samples: made once, checked before it is used, another one for another tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from steelyard.results.errors import InputError
from steelyard.runner import texts
from steelyard.runner.data import training_data
from steelyard.sim.spec import Training
from steelyard.sim.workload import Workload

RANDOM = Training(data="random")


def test_samples_are_made_once(tiny_workload: Workload, tmp_path: Path) -> None:
    path, labels = training_data(tiny_workload, RANDOM, tmp_path)
    before = path.stat()
    assert training_data(tiny_workload, RANDOM, tmp_path) == (path, labels)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert texts.Encoded.load(path).ids.shape[1] == tiny_workload.sequence_length


def test_a_damaged_cache_is_named_before_a_worker_reads_it(tiny_workload: Workload, tmp_path: Path) -> None:
    path, _ = training_data(tiny_workload, RANDOM, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="remove it") as caught:
        training_data(tiny_workload, RANDOM, tmp_path)
    assert str(path) in str(caught.value)
    path.unlink()
    assert training_data(tiny_workload, RANDOM, tmp_path)[0] == path


def test_another_tokenizer_is_another_file(
    tiny_workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are not read here: what matters is which file is asked for."""
    encoded = texts.random_encoded(128, tiny_workload.sequence_length, 2, 20, seed=0)
    monkeypatch.setattr(texts, "load_texts", lambda held_out, seed: None)
    monkeypatch.setattr(texts, "encode", lambda *_: encoded)
    found = set()
    for version in ("1.0", "2.0"):
        monkeypatch.setattr(texts, "tokenizers_version", lambda version=version: version)
        found.add(training_data(tiny_workload, Training(), tmp_path)[0])
    assert len(found) == 2
