"""Published measurements of training steps: the rows of a CSV file, read.

Columns that every row needs: ``global_batch``, ``micro_batch``, ``data_parallel``, ``pipeline_parallel``,
``tensor_parallel`` and ``step_time_s``. The model is ``hidden``, ``heads``, ``layers`` and ``sequence_length``
(optional: ``vocabulary``, ``kv_heads``, ``feed_forward``, ``gated``), or the one of the layer profiles in the same
folder. Optional:

- ``gpu_types``: a catalog name or a common one (``A100-40``, ``V100-16``); several with ``;`` between stages and ``|``
  between pipelines, also for ``tensor_parallel``: ``A100-40;V100-16`` is a first stage on A100 and a second on V100.
  Without it the text of ``cluster``, or else the file's name, says which GPU.
- ``layers_per_stage``: ``5;7;7;7``, the embedding and the head counted; equal numbers of blocks by default.
- ``cluster``: a label. Rows of one label share what is fitted to a cluster; ``8x A100`` and ``4x HDR`` in it say how
  many GPUs and adapters a machine has.
- ``gpus_per_node``, ``nics`` and ``network`` (a catalog link) say it as columns.
- ``recompute`` (none, selective, full), ``schedule``, ``zero``, ``dtype``, ``attention`` (eager or fused).
- ``gradient_all_reduce_s`` and ``max_memory_bytes`` are scored too.

What is not said is as in Megatron-LM of 2022: fp16, 1F1B, attention that is not fused, and full recomputation (none
for a model that was profiled).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...results.errors import InputError
from ...sim import spec
from ...sim.decoder import decoder
from ...sim.device import Device
from ...sim.workload import Model
from .collectives import has_columns

NEEDED = ("global_batch", "micro_batch", "data_parallel", "pipeline_parallel", "tensor_parallel", "step_time_s")
VOCABULARY = 50_304
"""GPT-2's 50,257 tokens, made a multiple of 128, as Megatron-LM does."""

COMMON_NAMES = {
    "A100": "nvidia-a100-sxm-80gb",
    "A100-40": "nvidia-a100-sxm-40gb",
    "A100-80": "nvidia-a100-sxm-80gb",
    "V100": "nvidia-v100-sxm-16gb",
    "V100-16": "nvidia-v100-sxm-16gb",
    "V100-32": "nvidia-v100-sxm-32gb",
    "GH-96": "nvidia-gh200",
    "GH200": "nvidia-gh200",
    "H100": "nvidia-h100-sxm",
    "H200": "nvidia-h200-sxm",
    "B200": "nvidia-b200",
    "TITAN-RTX": "nvidia-titan-rtx",
    "RTX-2080": "nvidia-rtx-2080-ti",
    "RTX-3090": "nvidia-rtx-3090",
    "RTX-4090": "nvidia-rtx-4090",
    "P100": "nvidia-p100-sxm-16gb",
    "L40S": "nvidia-l40s",
    "A40": "nvidia-a40",
    "A10": "nvidia-a10",
    "L4": "nvidia-l4",
    "T4": "nvidia-t4",
    "K80": "nvidia-k80",
    "MI250X": "amd-mi250x",
    "MI300X": "amd-mi300x",
}
"""What papers call the devices of the catalog."""
INNER_LINKS = {
    "nvidia-p100-sxm-16gb": "nvlink-2",
    "nvidia-v100-sxm-16gb": "nvlink-2",
    "nvidia-v100-sxm-32gb": "nvlink-2",
    "nvidia-a100-sxm-40gb": "nvlink-3",
    "nvidia-a100-sxm-80gb": "nvlink-3",
    "nvidia-h100-sxm": "nvlink-4",
    "nvidia-h200-sxm": "nvlink-4",
    "nvidia-gh200": "nvlink-4",
    "nvidia-b200": "nvlink-5",
    "nvidia-gb200": "nvlink-5",
    "amd-mi250x": "infinity-fabric-mi250x",
    "amd-mi300x": "infinity-fabric-mi300x",
    "nvidia-l40s": "pcie-4",
    "nvidia-rtx-3090": "pcie-4",
    "nvidia-rtx-4090": "pcie-4",
    "nvidia-a100-pcie-80gb": "pcie-4",
    "nvidia-a40": "pcie-4",
    "nvidia-a10": "pcie-4",
    "nvidia-l4": "pcie-4",
    "nvidia-h100-pcie": "pcie-5",
}
"""The link inside a machine; PCIe 3 for a device that is not here."""
PER_NODE = {"nvidia-gh200": 4, "nvidia-gb200": 4}
"""Devices of a machine; 8 for a device that is not here."""
MODELS: dict[str, dict[str, Any]] = {
    "OPT-350M": {"layers": 24, "hidden": 1024, "heads": 16, "vocabulary": 50_272},
    "OPT-1.3B": {"layers": 24, "hidden": 2048, "heads": 32, "vocabulary": 50_272},
    "GPT-NEO-2.7B": {"layers": 32, "hidden": 2560, "heads": 20, "vocabulary": 50_257},
    "GPT2-XL": {"layers": 48, "hidden": 1600, "heads": 25, "vocabulary": 50_257},
    "LLAMA-7B": {
        "layers": 32, "hidden": 4096, "heads": 32, "vocabulary": 32_000, "feed_forward": 11_008, "gated": True,
        "tied": False,
    },
}  # fmt: skip
"""Recalled numbers of models that profiles name."""


@dataclass(frozen=True, slots=True)
class ModelNumbers:
    """What makes a decoder, hashable."""

    hidden: int
    heads: int
    layers: int
    sequence_length: int
    vocabulary: int = VOCABULARY
    kv_heads: int | None = None
    feed_forward: int | None = None
    gated: bool = False
    tied: bool = True
    scores_kept: bool = True
    name: str = "decoder"

    def model(self, **changes: Any) -> Model:
        """The model as layers of operators."""
        numbers = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return decoder(**{**numbers, **changes})


@dataclass(frozen=True, slots=True)
class StepRow:
    """One measured training step."""

    line: int
    cluster: str
    model: ModelNumbers
    types: tuple[tuple[str, ...], ...]
    """Catalog names per stage and pipeline."""
    degrees: tuple[tuple[int, ...], ...]
    """Tensor-parallel degree per stage and pipeline."""
    layers: tuple[int, ...]
    """Layers per stage, the embedding and the head counted."""
    micro_batch: int
    global_batch: int
    step_time_s: float
    gradient_all_reduce_s: float | None = None
    max_memory_bytes: float | None = None
    per_node: int | None = None
    nics: int | None = None
    network: str = "infiniband-200"
    recompute: str = "full"
    schedule: str = "1f1b"
    zero: int = 0
    dtype: str = "fp16"
    shown: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def pipelines(self) -> int:
        """Data-parallel degree."""
        return len(self.types[0])

    @property
    def stages(self) -> int:
        """Stages of each pipeline."""
        return len(self.types)

    @property
    def devices(self) -> int:
        """GPUs in use."""
        return sum(sum(each) for each in self.degrees)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each pipeline."""
        return self.global_batch // self.pipelines // self.micro_batch

    @property
    def question(self) -> tuple[object, ...]:
        """Rows with the same one compete: plans for the same work on as many GPUs."""
        return self.cluster, self.model, self.devices, self.global_batch


def read_rows(path: Path, model: ModelNumbers | None = None) -> list[StepRow]:
    """The rows of a file.

    Args:
        path: of the CSV file.
        model: of rows that do not name theirs.

    Raises:
        InputError: no such file, a column that is missing, or a value that is wrong, by line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    return [_row(path, number, record, model) for number, record in enumerate(records, start=2)]


def has_steps(path: Path) -> bool:
    """Whether a CSV file holds training steps: all the columns that are needed."""
    return has_columns(path, set(NEEDED))


def _row(path: Path, line: int, record: Mapping[str, str | None], model: ModelNumbers | None) -> StepRow:
    where = f"{path.name}: line {line}"
    found = {name: value.strip() for name, value in record.items() if name and value and value.strip()}
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise InputError(where, f"has no {missing[0]}", "fill it in")
    try:
        row = _parsed(path, line, found, model)
    except (ValueError, KeyError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(where, f"cannot be read: {error}", "compare it with the columns' description") from error
    _check(row, where)
    return row


def _parsed(path: Path, line: int, found: Mapping[str, str], model: ModelNumbers | None) -> StepRow:
    cluster = found.get("cluster", path.stem)
    numbers = _model(found, model, f"{path.name}: line {line}")
    stages, pipelines = int(found["pipeline_parallel"]), int(found["data_parallel"])
    types = _per_place(found.get("gpu_types") or named_in(cluster, path), stages, pipelines)
    profiled = "hidden" not in found
    return StepRow(
        line=line,
        cluster=cluster,
        model=numbers,
        types=tuple(tuple(catalog_name(each) for each in stage) for stage in types),
        degrees=tuple(
            tuple(int(each) for each in stage) for stage in _per_place(found["tensor_parallel"], stages, pipelines)
        ),
        layers=_layers(found.get("layers_per_stage"), numbers.layers, stages),
        micro_batch=int(found["micro_batch"]),
        global_batch=int(found["global_batch"]),
        step_time_s=float(found["step_time_s"]),
        gradient_all_reduce_s=_number(found.get("gradient_all_reduce_s")),
        max_memory_bytes=_number(found.get("max_memory_bytes")),
        per_node=_whole(found.get("gpus_per_node")) or _counted(r"(\d+)x?\s*x\s*[A-Z]+\d+", cluster),
        nics=_whole(found.get("nics")) or _counted(r"(\d+)\s*x\s*[HNE]DR", cluster),
        network=found.get("network", "infiniband-200"),
        recompute=found.get("recompute", "none" if profiled else "full"),
        schedule=found.get("schedule", "1f1b"),
        zero=int(found.get("zero", "0")),
        dtype=found.get("dtype", "fp16"),
        shown=dict(found),
    )


def catalog_name(name: str) -> str:
    """The catalog's name of a device that a paper names."""
    known = COMMON_NAMES.get(name.upper(), name)
    return device_of(known).name


def _check(row: StepRow, where: str) -> None:
    if not 0 < row.step_time_s < math.inf:
        raise InputError(f"{where}: step_time_s", f"is {row.step_time_s}", "must be above 0")
    if row.micro_batch < 1 or row.micro_batches * row.micro_batch * row.pipelines != row.global_batch:
        problem = f"is {row.global_batch}, not a multiple of micro_batch x data_parallel"
        raise InputError(f"{where}: global_batch", problem, "correct one of the three")
    if any(count < 1 for count in row.layers) or sum(row.layers) != row.model.layers + 2:
        problem = f"holds {sum(row.layers)} layers, the model has {row.model.layers + 2} with embedding and head"
        raise InputError(f"{where}: layers_per_stage", problem, "each is in one stage")


def _model(found: Mapping[str, str], given: ModelNumbers | None, where: str) -> ModelNumbers:
    if "hidden" not in found:
        if given is None:
            raise InputError(where, "names no model", "add hidden, heads, layers, sequence_length or a layer profile")
        return given
    return ModelNumbers(
        hidden=int(found["hidden"]),
        heads=int(found["heads"]),
        layers=int(found["layers"]),
        sequence_length=int(found["sequence_length"]),
        vocabulary=int(found.get("vocabulary", VOCABULARY)),
        kv_heads=_whole(found.get("kv_heads")),
        feed_forward=_whole(found.get("feed_forward")),
        gated=found.get("gated", "").lower() in ("1", "true", "yes"),
        scores_kept=found.get("attention", "eager") != "fused",
    )


def _layers(text: str | None, blocks: int, stages: int) -> tuple[int, ...]:
    if text:
        return tuple(int(each) for each in text.split(";"))
    cuts = [blocks * stage // stages for stage in range(stages + 1)]
    counts = [high - low for low, high in pairwise(cuts)]
    counts[0] += 1
    counts[-1] += 1
    return tuple(counts)


def _per_place(text: str, stages: int, pipelines: int) -> list[list[str]]:
    """``a;b`` per stage and ``a|b`` per pipeline; one value stands for all."""
    parts = [part.split("|") for part in text.split(";")]
    parts = parts * stages if len(parts) == 1 else parts
    full = [part * pipelines if len(part) == 1 else part for part in parts]
    if len(full) != stages or any(len(part) != pipelines for part in full):
        raise ValueError(f"{text!r} does not fit {stages} stages of {pipelines} pipelines")
    return [[each.strip() for each in part] for part in full]


def named_in(cluster: str, path: Path) -> str:
    """The device that a text names: the longest of the names in it."""
    for text in (cluster.upper(), path.stem.upper()):
        held = [name for name in COMMON_NAMES if re.search(rf"(?<![A-Z0-9]){re.escape(name)}(?![A-Z0-9])", text)]
        if not held:
            held = [name for name in COMMON_NAMES if name in re.split(r"[^A-Z0-9-]+", text)]
        if held:
            return max(held, key=len)
    raise InputError(path.name, "does not say which GPU", "add a column gpu_types")


def _counted(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None


def _whole(text: str | None) -> int | None:
    return int(text) if text else None


def _number(text: str | None) -> float | None:
    return float(text) if text else None


@lru_cache(maxsize=256)
def device_of(name: str) -> Device:
    """A catalog device."""
    return spec.load_device(name)


def per_node_of(row: StepRow, name: str) -> int:
    """Devices of one machine."""
    return row.per_node or PER_NODE.get(name, 8)


def kinds(rows: Sequence[StepRow]) -> set[str]:
    """Catalog names of all devices that rows use."""
    return {name for row in rows for stage in row.types for name in stage}
