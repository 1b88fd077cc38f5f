"""Workload: a transformers configuration becomes a Model, without a download; and the real module for a worker.

What is counted, and the conventions behind it:

- FLOPs are those of products (matrix products, convolutions, attention), a multiply-add as 2, attention over all s^2
  pairs, no recomputation: the convention of model FLOPs utilisation. Other operators count 0 FLOPs and are priced by
  the elements that they move.
- Attention is one fused kernel that keeps no score matrix, as torch's scaled_dot_product_attention is on the devices we
  know; a family without transformers' attention interface is counted as it is written.
- Dropout is 0.
- Images, sound and time series have a fixed size, so that their costs are constants: they do not grow with the tokens.
- A layer's tensor split is that of :mod:`.division`; shares that change with the length (attention that keeps its
  scores) are taken at :data:`REFERENCE_TOKENS` tokens.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..results.store import write_text
from ..sim.noise import stream
from ..sim.spec import parse_file
from ..sim.workload import Layer, Model, Operator, TensorSplit, at
from .families import (
    TASKS,
    TRAINED,
    assemble,
    config_data,
    heads,
    is_file,
    lengths_of,
    make_inputs,
    make_loss,
    plain,
    refused,
    settle,
    whole_numbers,
)
from .polynomial import BATCHES, per_sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from .meter import Count, Part

REFERENCE_TOKENS = 1024
"""Length at which a share is taken that changes with the length."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def model_from_config(
    config: str | Path | Mapping[str, Any] | PreTrainedConfig,
    *,
    name: str | None = None,
    task: str | None = None,
    summary: str = "",
    source: str = "",
) -> Model:
    """Describe a model as layers of operators, from its configuration alone.

    Args:
        config: a transformers model type (its default configuration), a configuration file (JSON with ``model_type``),
            its content, or a configuration object.
        name: of the model; by default the model type, or the file's name.
        task: ``sequence-classification`` (of texts, images or sound; a family without a classification head gets the
            bare model and one linear layer over the mean of its tokens), ``causal-lm``, ``seq2seq-lm`` (an encoder and
            a decoder, each of so many tokens; or of speech), ``segmentation`` (images to masks) or ``forecast`` (time
            series). By default what the configuration says under ``task``, else the first.
        summary: one sentence for lists.
        source: where the configuration is from.

    Raises:
        InputError: unknown model type, not a configuration, or a family whose inputs are unknown.
    """
    data = config_data(config)
    told = data.pop("task", TASKS[0])
    task = told if task is None else task
    if task not in TASKS:
        raise InputError("task", f"{task!r} is unknown", f"one of {', '.join(TASKS)}")
    if name is None:
        name = Path(str(config)).stem if is_file(config) else str(data["model_type"])
    settled = settle(data)
    layers = _layers(measure_passes(settled, task), heads(settled))
    return Model(name=name, summary=summary, source=source, config=plain(settled, task), layers=layers)


def plain_config(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What :attr:`Model.config` holds of a configuration."""
    return plain(settle(config_data(config)), task)


def build_model(config: Mapping[str, Any], *, labels: int, seed: int, dropout: float = 0.0) -> torch.nn.Module:
    """The real module for a worker: random weights, fp32, on the CPU; it answers with ``.logits``.

    Equal arguments give equal weights in every process, whatever instruction sets it may use: torch's own random
    numbers differ between those, so the values are numpy's. What the family initialises to zero stays zero, and so do
    vectors (biases, norms) as they are.

    Args:
        config: :attr:`Model.config`, or any transformers configuration with a ``model_type``.
        labels: number of classes.
        seed: of the weights.
        dropout: probability of every dropout that the family has.
    """
    import torch

    data = config_data(config)
    if (task := data.pop("task", TASKS[0])) not in TRAINED:
        raise InputError("workload.model", f"is a {task} model", f"lanes train {' or '.join(TRAINED)}")
    settled = settle(data, labels, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = assemble(settled, task)
    deviation = float(getattr(settled, "initializer_range", None) or 0.02)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.any():
                draws = deviation * stream(seed, "weights", path).standard_normal(
                    tuple(parameter.shape), dtype="float32"
                )
                parameter.copy_(torch.from_numpy(draws) * (parameter != 0))  # the padding token's row stays zero
    model.train()
    return model


def is_model_file(path: Path) -> bool:
    """Whether a JSON file holds a described model (layers), not a configuration that is still to be described."""
    return "layers" in (document := parse_file(path)) and "model_type" not in document


def model_text(model: Model) -> str:
    """A model in the catalog's format: JSON, a line for each layer or run of equal layers."""
    document = model.model_dump(mode="json", exclude={"layers"})
    layers = ",\n".join(json.dumps(layer, separators=(",", ":"), allow_nan=False) for layer in _folded(model.layers))
    head = json.dumps(document, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{head},\n "layers": [\n{layers}\n]}}\n'


def save_model(model: Model, path: Path) -> Path:
    """Write a model in the catalog's format and return the path."""
    write_text(path, model_text(model))
    return path


def measure_passes(
    config: PreTrainedConfig, task: str, lengths: Sequence[int] | None = None
) -> dict[tuple[int, int], list[Part]]:
    """Count a training pass for each of ``BATCHES`` and each sequence length; keys are (samples, tokens).

    Args:
        config: as :func:`settle` leaves it.
        task: one of :data:`TASKS`.
        lengths: tokens per sample; by default three, as a quadratic needs (one where the size is fixed).
    """
    from .kernels import NAME

    try:
        return _passes(config, task, NAME, lengths)
    except InputError:  # a family with attention classes of its own does not know ours: as it is written, then
        return _passes(config, task, "eager", lengths)


def _passes(
    config: PreTrainedConfig, task: str, attention: str, lengths: Sequence[int] | None
) -> dict[tuple[int, int], list[Part]]:
    import torch

    from . import meter
    from .division import Division

    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    experts = {each for key in EXPERTS for each in whole_numbers(config, key)}
    with torch.device("meta"):
        model: Any = assemble(config, task, attention).train()
        if lengths is None:
            reads_tokens = model.main_input_name == "input_ids" or task == "seq2seq-lm"
            lengths = lengths_of(config) if reads_tokens else (0,)
        try:
            return {
                (samples, tokens): meter.measure(
                    model,
                    make_inputs(model, config, task, samples, tokens),
                    make_loss(task, config),
                    Division(model, vocabulary, experts),
                )
                for samples, tokens in itertools.product(BATCHES, lengths)
            }
        except InputError:
            raise
        except Exception as error:  # a family whose path depends on its data cannot be counted without any
            raise refused(config.model_type, error) from error


def _layers(passes: Mapping[tuple[int, int], list[Part]], heads: int) -> list[Layer]:
    """One layer per part, its quantities as polynomials in the tokens."""
    first = next(iter(passes.values()))
    names = [part.name for part in first]
    assert all([part.name for part in parts] == names for parts in passes.values()), (
        "the length changed the model's path"
    )
    return [_layer({key: parts[index] for key, parts in passes.items()}, heads) for index in range(len(first))]


def _layer(series: Mapping[tuple[int, int], Part], heads: int) -> Layer:
    part = next(iter(series.values()))
    scores = _polynomial(series, lambda each: each.scores_kept)
    tensor = _tensor_split(series, heads)
    return Layer(
        name=part.name,
        parameters=part.parameters,
        trainable_parameters=part.trainable,
        forward=_operators(series, "forward", tensor is not None),
        backward=_operators(series, "backward", tensor is not None),
        activation_elements=_polynomial(series, lambda each: each.kept),
        selective_elements=scores,
        selective_flops=_polynomial(series, lambda each: each.scores_flops) if any(scores) else [0.0],
        output_elements=_polynomial(series, lambda each: each.output),
        inputs=part.inputs,
        tied_with=part.tied_with,
        tensor=tensor,
    )


def _tensor_split(series: Mapping[tuple[int, int], Part], heads: int) -> TensorSplit | None:
    """How the layer divides; None where that is not known: something strange in it, or no heads to count."""
    part = next(iter(series.values()))
    if part.strange or not heads:
        return None
    kept, divided = (_polynomial(series, value) for value in (lambda each: each.kept, lambda each: each.divided_kept))
    return TensorSplit(
        divisor=math.gcd(heads, *part.widths),
        forward_elements=_polynomials([each.reduced for each in series.values()], list(series)),
        backward_elements=_polynomials([[*each.gathered.values()] for each in series.values()], list(series)),
        divided_activations=_share(at(divided, REFERENCE_TOKENS), at(kept, REFERENCE_TOKENS)),
        divided_parameters=_share(part.divided_parameters, part.parameters),
    )


def _operators(series: Mapping[tuple[int, int], Part], direction: str, divided: bool) -> list[Operator]:
    kinds = sorted({kind for part in series.values() for where, kind in part.counts if where == direction})
    operators = []
    for kind in kinds:
        counts = {key: part.counts[direction, kind] for key, part in series.items()}  # type: ignore[index]  # a Literal
        elements, once = per_sample({key: each.elements for key, each in counts.items()})
        operators.append(
            Operator(
                kind=kind,  # type: ignore[arg-type]  # one of meter's kinds; pydantic checks
                kernels=max(each.kernels for each in counts.values()),
                flops=per_sample({key: each.flops for key, each in counts.items()})[0],
                elements=elements,
                weight_elements=once,
                divided=_divided(counts) if divided else 1.0,
            )
        )
    return operators


def _divided(counts: Mapping[tuple[int, int], Count]) -> float:
    """The divided share of an operator's FLOPs, or of its traffic where it has none."""
    few = [counts[key].flops for key in counts]
    names = ("divided_flops", "flops") if any(few) else ("divided_elements", "elements")
    series = [per_sample({key: getattr(each, name) for key, each in counts.items()}) for name in names]
    part, whole = (at(polynomial, REFERENCE_TOKENS) + once for polynomial, once in series)
    return min(1.0, _share(part, whole))


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 1.0


def _polynomial(series: Mapping[tuple[int, int], Part], value: Callable[[Part], int]) -> list[float]:
    return per_sample({key: value(each) for key, each in series.items()})[0]


def _polynomials(rows: Sequence[Sequence[int]], keys: Sequence[tuple[int, int]]) -> list[list[float]]:
    """One polynomial per column, of values that were measured at some (samples, tokens)."""
    return [per_sample(dict(zip(keys, column, strict=True)))[0] for column in zip(*rows, strict=True)]


def _folded(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Layers as tables; a run that differs only by a number in the name, from 0, as one table with ``repeat``."""
    found: list[dict[str, Any]] = []
    for layer in layers:
        table = layer.model_dump(mode="json", exclude_defaults=True)
        joined = _joined(found[-1], table) if found else None
        if joined is None:
            found.append(table)
        else:
            found[-1] = joined
    return found


def _joined(run: dict[str, Any], table: dict[str, Any]) -> dict[str, Any] | None:
    """A run of layers with one more, or None if that is another kind of layer."""
    count = run.get("repeat", 1)
    name = run["name"] if "repeat" in run else re.sub(r"(.*(?:^|\.))0(?=\.|$)", r"\1{}", run["name"])
    if "{" in name.replace("{}", "", 1) or table["name"] != name.replace("{}", str(count)):
        return None
    joined = {"name": name, "repeat": count + 1, **{key: value for key, value in table.items() if key != "name"}}
    return joined if {**run, "name": name, "repeat": count + 1} == joined else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a model, or with ``--catalog FOLDER`` write the shipped ones anew.

    Usage: ``python -m steelyard.runner.workload CONFIG OUT.json`` (CONFIG as for :func:`model_from_config`).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(given) != 2:
            raise InputError("arguments", "must be CONFIG OUT.json, or --catalog FOLDER")
        if given[0] == "--catalog":
            from .catalog import regenerate_catalog

            regenerate_catalog(Path(given[1]))
        else:
            save_model(model_from_config(given[0], name=Path(given[1]).stem), Path(given[1]))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
