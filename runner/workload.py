"""Workload: a transformers configuration becomes a Model, without a download; and the real module for a worker.

What is counted, and the conventions behind it:

- FLOPs are those of products (matrix products, convolutions, attention), a multiply-add as 2, attention over all s^2
  pairs, no recomputation: the convention of model FLOPs utilisation. Other operators count 0 FLOPs and are priced by
  the elements that they move.
- Attention is one fused kernel that keeps no score matrix, as torch's scaled_dot_product_attention is on the devices we
  know; a family without transformers' attention interface is counted as it is written.
- Dropout is 0.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..results.store import write_text
from ..sim.noise import stream
from ..sim.spec import parse_file
from ..sim.workload import Layer, Model, Operator
from .polynomial import BATCHES, per_sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from .meter import Part

LONGEST = 96
MAX_LAYERS = 1000
MAX_LABELS = 10_000
IMAGE_SIZE = 224
"""Pixels a side where the configuration takes images of any size."""
NOT_OURS = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "_name_or_path", "dtype")
"""Keys of a configuration that would run foreign code, download, or change the arithmetic."""
TASKS = ("sequence-classification", "causal-lm")

CATALOG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-tiny-text": (
        "BERT sequence classifier of 2 M parameters for short texts: the demo's model",
        "sized for the demo",
        {
            "model_type": "bert",
            "vocab_size": 8192,
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 64,
        },
    ),
    "bert-base": (
        "BERT base sequence classifier (12 layers, hidden 768)",
        "Devlin et al. 2019, as transformers' default BertConfig",
        {"model_type": "bert"},
    ),
    "gpt2": (
        "GPT-2 small with a sequence-classification head (12 layers, hidden 768)",
        "Radford et al. 2019, as transformers' default GPT2Config",
        {"model_type": "gpt2"},
    ),
    "llama-3-8b": (
        "Llama 3 8B language model (32 layers, hidden 4096, grouped-query attention)",
        "recalled from Meta's published configuration",
        {
            "model_type": "llama",
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14_336,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
    ),
}
"""Shipped models: summary, source, configuration."""
CATALOG_TASKS = {"llama-3-8b": "causal-lm"}


def model_from_config(
    config: str | Path | Mapping[str, Any] | PreTrainedConfig,
    *,
    name: str | None = None,
    task: str = "sequence-classification",
    summary: str = "",
    source: str = "",
) -> Model:
    """Describe a model as layers of operators, from its configuration alone.

    Args:
        config: a transformers model type (its default configuration), a configuration file (JSON with ``model_type``),
            its content, or a configuration object.
        name: of the model; by default the model type, or the file's name.
        task: ``sequence-classification`` or ``causal-lm``; a family without a classification head gets the bare model
            and one linear layer over the mean of its tokens.
        summary: one sentence for lists.
        source: where the configuration is from.

    Raises:
        InputError: unknown model type, not a configuration, or a family whose inputs are neither tokens nor images.
    """
    if task not in TASKS:
        raise InputError("task", f"{task!r} is unknown", f"one of {', '.join(TASKS)}")
    data = config_data(config)
    if name is None:
        name = Path(str(config)).stem if _is_file(config) else str(data["model_type"])
    data.pop("task", None)
    settled = _settle(data)
    layers = _layers(measure_passes(settled, task))
    return Model(name=name, summary=summary, source=source, config={**_plain(settled), "task": task}, layers=layers)


def config_data(config: str | Path | Mapping[str, Any] | PreTrainedConfig) -> dict[str, Any]:
    """The configuration as a table that has a ``model_type``, less the keys that are :data:`NOT_OURS`."""
    if isinstance(config, Mapping):
        data = dict(config)
    elif _is_file(config):
        data = parse_file(Path(config))
    elif isinstance(config, (str, Path)):
        data = {"model_type": str(config)}
    else:
        data = {"model_type": config.model_type, **config.to_diff_dict()}
    if not isinstance(data.get("model_type"), str):
        raise InputError("model_type", "is missing", "a configuration names its family, for example bert")
    return {key: value for key, value in data.items() if key not in NOT_OURS}


def build_model(config: Mapping[str, Any], *, labels: int, seed: int) -> torch.nn.Module:
    """The real module for a worker: random weights, dropout 0, fp32, on the CPU; it answers with ``.logits``.

    Equal arguments give equal weights in every process, whatever instruction sets it may use: torch's own random
    numbers differ between those, so the values are numpy's. What the family initialises to zero stays zero, and so do
    vectors (biases, norms) as they are.

    Args:
        config: :attr:`Model.config`, or any transformers configuration with a ``model_type``.
        labels: number of classes.
        seed: of the weights.
    """
    import torch

    data = config_data(config)
    if (task := data.pop("task", TASKS[0])) != TASKS[0]:
        raise InputError("workload.model", f"is a {task} model", "only sequence classifiers train in this version")
    settled = _settle(data, labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _assemble(settled, TASKS[0])
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
    """A model in the catalog's format: JSON, one layer a line."""
    document = model.model_dump(mode="json")
    layers = ",\n".join(json.dumps(layer, separators=(",", ":"), allow_nan=False) for layer in document.pop("layers"))
    head = json.dumps(document, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{head},\n "layers": [\n{layers}\n]}}\n'


def save_model(model: Model, path: Path) -> Path:
    """Write a model in the catalog's format and return the path."""
    write_text(path, model_text(model))
    return path


def regenerate_catalog(folder: Path, names: Iterable[str] = tuple(CATALOG)) -> list[Path]:
    """Write the shipped models anew into a folder; the same library versions give the same bytes."""
    paths = []
    for name in names:
        summary, source, config = CATALOG[name]
        task = CATALOG_TASKS.get(name, TASKS[0])
        model = model_from_config(config, name=name, task=task, summary=summary, source=source)
        paths.append(save_model(model, folder / f"{name}.json"))
    return paths


def measure_passes(
    config: PreTrainedConfig, task: str, lengths: Sequence[int] | None = None
) -> dict[tuple[int, int], list[Part]]:
    """Count a training pass for each of ``BATCHES`` and each sequence length; keys are (samples, tokens).

    Args:
        config: as :func:`_settle` leaves it.
        task: one of :data:`TASKS`.
        lengths: tokens per sample; by default three, as a quadratic needs (one for images, whose size is fixed).
    """
    from . import meter

    meter.register()
    try:
        return _passes(config, task, meter.ATTENTION, lengths)
    except InputError:  # a family with attention classes of its own does not know ours: as it is written, then
        return _passes(config, task, "eager", lengths)


def _passes(
    config: PreTrainedConfig, task: str, attention: str, lengths: Sequence[int] | None
) -> dict[tuple[int, int], list[Part]]:
    import torch

    from . import meter

    with torch.device("meta"):
        model: Any = _assemble(config, task, attention).train()
        if lengths is None:
            lengths = _lengths(config) if model.main_input_name == "input_ids" else (0,)
        loss = _loss(task)
        try:
            return {
                (samples, tokens): meter.measure(model, _inputs(model, config, samples, tokens), loss)
                for samples, tokens in itertools.product(BATCHES, lengths)
            }
        except InputError:
            raise
        except Exception as error:  # a family whose path depends on its data cannot be counted without any
            raise _refused(config.model_type, error) from error


def _settle(data: dict[str, Any], labels: int | None = None) -> PreTrainedConfig:
    """A configuration object for training: no dropout, no cache of keys and values; padding is token 0."""
    from transformers import AutoConfig

    rest = {key: value for key, value in data.items() if key != "model_type"}
    for key, value in rest.items():
        limit = MAX_LABELS if key == "num_labels" else MAX_LAYERS if "layer" in key else None
        if limit is not None and isinstance(value, int) and value > limit:
            raise InputError(key, f"is {value}, over {limit}", "describe a smaller model")
    try:
        config = AutoConfig.for_model(data["model_type"], **rest)
        for each in (config, *_parts_of(config)):
            for key, value in list(vars(each).items()):
                if "drop" in key and isinstance(value, float):
                    setattr(each, key, 0.0)
        if labels is not None:
            config.num_labels = labels
        config.use_cache = False
        config.pad_token_id = 0
    except Exception as error:  # configurations of 300 families raise whatever they like over a bad value
        raise _refused(data["model_type"], error) from error
    return config


def _parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Configurations inside a configuration (an encoder's, a vision tower's)."""
    return [getattr(config, key) for key in config.sub_configs if getattr(config, key, None) is not None]


def _assemble(config: PreTrainedConfig, task: str, attention: str | None = None) -> torch.nn.Module:
    """The module of a configuration, on the current default device, in fp32."""
    import torch
    import transformers

    options: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}
    if attention is not None:
        options["attn_implementation"] = attention
        options["experts_implementation"] = "batched_mm"  # the one that multiplies what the router chose, in any dtype
    family: Any = transformers.AutoModel
    if task == "causal-lm":
        family = transformers.AutoModelForCausalLM
    elif not getattr(config, "is_encoder_decoder", False):
        heads = (transformers.AutoModelForSequenceClassification, transformers.AutoModelForImageClassification)
        family = next((each for each in heads if type(config) in each._model_mapping), family)
    try:
        model: torch.nn.Module = family.from_config(config, **options)
    except Exception as error:  # see _settle
        raise _refused(config.model_type, error) from error
    return _with_head(model, config) if family is transformers.AutoModel else model


def _with_head(base: Any, config: Any) -> torch.nn.Module:
    """A bare model with one linear layer over the mean of its last hidden states."""
    from types import SimpleNamespace

    from torch import Tensor, nn

    class Classifier(nn.Module):
        main_input_name = base.main_input_name

        def __init__(self) -> None:
            super().__init__()
            self.base = base
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)

        def forward(self, **inputs: Tensor) -> SimpleNamespace:
            if getattr(config, "is_encoder_decoder", False):
                inputs.setdefault("decoder_input_ids", inputs["input_ids"])
            return SimpleNamespace(logits=self.classifier(self.base(**inputs).last_hidden_state.mean(1)))

    return Classifier()


def _inputs(model: Any, config: PreTrainedConfig, samples: int, tokens: int) -> dict[str, Any]:
    import torch

    if model.main_input_name == "input_ids":
        ids = torch.zeros(samples, tokens, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.main_input_name == "pixel_values":
        given = getattr(config, "image_size", None) or IMAGE_SIZE
        size = given if isinstance(given, Sequence) else (given, given)
        return {"pixel_values": torch.zeros(samples, config.num_channels, *size)}
    raise InputError(
        "model_type", f"{config.model_type} reads {model.main_input_name}", "only tokens and images are known"
    )


def _loss(task: str) -> Any:
    import torch
    from torch.nn.functional import cross_entropy

    def loss(output: Any) -> torch.Tensor:
        logits = output.logits.flatten(0, 1) if task == "causal-lm" else output.logits
        return cross_entropy(logits, torch.empty(len(logits), dtype=torch.long))

    return loss


def _lengths(config: PreTrainedConfig) -> tuple[int, int, int]:
    most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or LONGEST)
    longest = min(LONGEST, most) if most > 0 else LONGEST  # -1: any length
    if longest < 8:
        raise InputError(
            "max_position_embeddings", f"is {longest}", "at least 8 tokens are needed to see how costs grow"
        )
    return longest // 4, longest // 2, longest


def _layers(passes: Mapping[tuple[int, int], list[Part]]) -> list[Layer]:
    """One layer per part, its quantities as polynomials in the tokens."""
    first = next(iter(passes.values()))
    names = [part.name for part in first]
    assert all([part.name for part in parts] == names for parts in passes.values()), (
        "the length changed the model's path"
    )
    layers = []
    for index, part in enumerate(first):
        series = {key: parts[index] for key, parts in passes.items()}
        layers.append(
            Layer(
                name=part.name,
                parameters=part.parameters,
                trainable_parameters=part.trainable,
                forward=_operators(series, "forward"),
                backward=_operators(series, "backward"),
                activation_elements=per_sample({key: each.kept for key, each in series.items()})[0],
                output_elements=per_sample({key: each.output for key, each in series.items()})[0],
                inputs=_feeding(first, index),
                tied_with=part.tied_with,
            )
        )
    return layers


def _feeding(parts: Sequence[Part], index: int) -> list[str] | None:
    """Names of the layers that feed a decoder block: the one before it, and the encoder's end; else None (a chain)."""
    if "decoder" not in parts[index].list_name:
        return None
    start = next(i for i, part in enumerate(parts) if part.list_name == parts[index].list_name)
    if not any("encoder" in part.list_name for part in parts[:start]):
        return None
    return list(dict.fromkeys([parts[index - 1].name, parts[start - 1].name]))


def _operators(series: Mapping[tuple[int, int], Part], direction: str) -> list[Operator]:
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
            )
        )
    return operators


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """What a settled configuration says beyond its family's defaults, without the library's version."""
    data: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict()))
    for key in ("transformers_version", "architectures", *NOT_OURS):
        data.pop(key, None)
    return dict(sorted({**data, "model_type": config.model_type}.items()))


def _is_file(config: object) -> bool:
    return isinstance(config, Path) or (isinstance(config, str) and config.endswith(".json"))


def _refused(model_type: str, error: Exception) -> InputError:
    lines = str(error).splitlines() or [type(error).__name__]
    known = isinstance(error, ValueError) and "Unrecognized model identifier" in lines[0]
    problem = "is no model type of transformers" if known else f"cannot be built: {lines[0][:200]}"
    return InputError(f"model_type {model_type!r}", problem, "check the configuration")


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a model, or with ``--catalog FOLDER`` write the shipped ones anew.

    Usage: ``python -m steelyard.runner.workload CONFIG OUT.json`` (CONFIG as for :func:`model_from_config`).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(given) != 2:
            raise InputError("arguments", "must be CONFIG OUT.json, or --catalog FOLDER")
        if given[0] == "--catalog":
            regenerate_catalog(Path(given[1]))
        else:
            save_model(model_from_config(given[0], name=Path(given[1]).stem), Path(given[1]))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
