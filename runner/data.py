"""The samples that lanes train on: encoded once by the driver, read by every worker."""

from __future__ import annotations

from pathlib import Path

from ..results.errors import InputError
from ..results.record import digest
from ..sim.spec import Training
from ..sim.workload import Workload

RANDOM_SAMPLES = 2048


def training_data(workload: Workload, training: Training, cache: Path) -> tuple[Path, int]:
    """The file of encoded samples for a workload, made if it is not in the cache, and the number of labels.

    The file holds the arrays of :class:`~steelyard.runner.texts.Encoded`.

    Raises:
        InputError: the configuration has no vocabulary, the texts are not installed, or the cached file is damaged.
    """
    from .texts import LABELS, Encoded, encode, load_texts, random_encoded, tokenizers_version

    vocabulary = workload.model.config.get("vocab_size")
    if not isinstance(vocabulary, int):
        raise InputError("workload.model", "has no vocab_size, so it cannot read texts", "use a text model on lanes")
    maker = None if training.data == "random" else tokenizers_version()
    name = digest([vocabulary, workload.sequence_length, training.data, training.held_out, maker])[:16]
    path = cache / "data" / f"{training.data}-{name}.npz"
    if path.is_file():
        Encoded.load(path)  # a damaged file is named here, and not by a worker that dies of it
        return path, len(LABELS)
    if training.data == "random":
        encoded = random_encoded(vocabulary, workload.sequence_length, len(LABELS), RANDOM_SAMPLES, seed=0)
    else:
        encoded = encode(load_texts(training.held_out, seed=0), vocabulary, workload.sequence_length)
    return encoded.save(path), len(LABELS)
