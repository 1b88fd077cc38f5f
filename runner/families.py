"""Families: what transformers knows of a kind of model: its configuration, module, inputs and loss for a task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..sim.spec import parse_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

TASKS = ("sequence-classification", "causal-lm", "seq2seq-lm", "segmentation", "forecast")
TRAINED = TASKS[:2]
"""What lanes train: a class per text, or the next token."""
LONGEST = 96
"""Tokens of the longest pass that is counted."""
MAX_LAYERS = 1000
MAX_LABELS = 10_000
IMAGE_SIZE = 224
"""Pixels a side where the configuration takes images of any size."""
SOUND_SAMPLES = 160_000
"""Samples of a wave form where the configuration takes any length: ten seconds at 16 kHz."""
NOT_OURS = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "_name_or_path", "dtype")
"""Keys of a configuration that would run foreign code, download, or change the arithmetic."""
HEADS = ("num_attention_heads", "num_key_value_heads", "encoder_attention_heads", "decoder_attention_heads")


def config_data(config: str | Path | Mapping[str, Any] | PreTrainedConfig) -> dict[str, Any]:
    """The configuration as a table that has a ``model_type``, less the keys that are :data:`NOT_OURS`."""
    if isinstance(config, Mapping):
        data = dict(config)
    elif is_file(config):
        data = parse_file(Path(config))
    elif isinstance(config, (str, Path)):
        data = {"model_type": str(config)}
    else:
        data = {"model_type": config.model_type, **config.to_diff_dict()}
    if not isinstance(data.get("model_type"), str):
        raise InputError("model_type", "is missing", "a configuration names its family, for example bert")
    return {key: value for key, value in data.items() if key not in NOT_OURS}


def settle(data: dict[str, Any], labels: int | None = None, dropout: float = 0.0) -> PreTrainedConfig:
    """A configuration object for training: no dropout but what is asked for, no cache of keys and values; pad token 0.

    ``dropout`` is for elements only: paths and layers that are left out at random stay in.
    """
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
                    setattr(each, key, dropout if "dropout" in key else 0.0)
                elif key == "apply_spec_augment":  # masks drawn at random, as dropout is
                    setattr(each, key, False)
        if labels is not None:
            config.num_labels = labels
        config.use_cache = False
        config.pad_token_id = 0
    except Exception as error:  # configurations of 300 families raise whatever they like over a bad value
        raise refused(data["model_type"], error) from error
    return config


def plain(config: PreTrainedConfig, task: str) -> dict[str, Any]:
    """What a settled configuration says beyond its family's defaults, without the library's version."""
    try:
        data: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict(), allow_nan=False))
    except ValueError as error:  # an infinite number
        raise refused(config.model_type, error) from error
    labels = data.pop("id2label", None)
    for key in ("transformers_version", "architectures", "label2id", *NOT_OURS):
        data.pop(key, None)
    if labels is not None:  # their number is all that the work depends on
        data["num_labels"] = len(labels)
    return {**dict(sorted({**data, "model_type": config.model_type}.items())), "task": task}


def heads(config: PreTrainedConfig) -> int:
    """The greatest number that divides all numbers of attention heads; 0 if the configuration names none."""
    return math.gcd(*(number for key in HEADS for number in whole_numbers(config, key)))


def whole_numbers(config: PreTrainedConfig, key: str) -> list[int]:
    """What a configuration and those inside it say under a key: whole numbers, or lists of them."""
    found = [getattr(each, key, None) for each in (config, *_parts_of(config))]
    each_of = [value if isinstance(value, Sequence) else [value] for value in found]
    return [number for numbers in each_of for number in numbers if isinstance(number, int) and number > 0]


def assemble(config: PreTrainedConfig, task: str, attention: str | None = None) -> torch.nn.Module:
    """The module of a configuration, on the current default device, in fp32.

    Args:
        config: as :func:`settle` leaves it.
        task: one of :data:`TASKS`.
        attention: to count a pass, the name of an attention that transformers knows; the experts are then ours.
    """
    import torch
    import transformers

    options: dict[str, Any] = {"dtype": torch.float32}
    if attention is not None:
        from . import kernels

        kernels.register()
        options["attn_implementation"] = attention
        options["experts_implementation"] = kernels.NAME
    family = _family(config, task)
    try:
        make = getattr(family, "_from_config", None) or partial(family.from_config, trust_remote_code=False)
        model: torch.nn.Module = make(config, **options)
    except Exception as error:  # see settle
        raise refused(config.model_type, error) from error
    return _with_head(model, config) if family is transformers.AutoModel else model


def make_inputs(model: Any, config: Any, task: str, samples: int, tokens: int) -> dict[str, Any]:
    """Empty inputs of a micro-batch, on the current default device.

    Raises:
        InputError: the family reads something that is not known.
    """
    import torch

    ids = torch.zeros(samples, tokens, dtype=torch.long)
    made: dict[str, Any] = {"decoder_input_ids": ids} if task == "seq2seq-lm" else {}
    name = model.main_input_name
    if name == "input_ids":
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **made}
    shapes: dict[str, Any] = {
        "pixel_values": lambda: (config.num_channels, *_image_size(config)),
        "input_features": lambda: (config.num_mel_bins, 2 * config.max_source_positions),
        "input_values": lambda: (SOUND_SAMPLES,),
        "past_values": lambda: (config.context_length, config.num_input_channels),
    }
    if name not in shapes:
        known = ", ".join(("input_ids", *shapes))
        raise InputError("model_type", f"{config.model_type} reads {name}", f"known inputs are {known}")
    return {name: torch.zeros(samples, *shapes[name]()), **made}


def make_loss(task: str, config: Any) -> Callable[[Any], torch.Tensor]:
    """A function from a model's output to the loss of a task."""
    import torch
    from torch.nn.functional import cross_entropy, interpolate, mse_loss

    def loss(output: Any) -> torch.Tensor:
        if task == "forecast":
            return mse_loss(output.prediction_outputs, torch.empty_like(output.prediction_outputs))
        logits = output.logits
        if task == "segmentation":  # the class of every pixel, the scores enlarged to the image
            logits = interpolate(logits, size=tuple(_image_size(config)), mode="bilinear", align_corners=False)
        elif task != TASKS[0]:
            logits = logits.flatten(0, 1)
        return cross_entropy(logits, torch.empty(logits.shape[0], *logits.shape[2:], dtype=torch.long))

    return loss


def lengths_of(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Three lengths in tokens at which to count a pass, as a quadratic needs."""
    most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or LONGEST)
    longest = min(LONGEST, most) if most > 0 else LONGEST  # -1: any length
    if longest < 8:
        raise InputError(
            "max_position_embeddings", f"is {longest}", "at least 8 tokens are needed to see how costs grow"
        )
    return longest // 4, longest // 2, longest


def _family(config: PreTrainedConfig, task: str) -> Any:
    """The class of transformers that makes models of a configuration for a task."""
    import transformers as library

    classes: dict[str, tuple[Any, ...]] = {
        "sequence-classification": (
            library.AutoModelForSequenceClassification,
            library.AutoModelForImageClassification,
            library.AutoModelForAudioClassification,
        ),
        "causal-lm": (library.AutoModelForCausalLM,),
        "seq2seq-lm": (library.AutoModelForSeq2SeqLM, library.AutoModelForSpeechSeq2Seq),
        "segmentation": (library.AutoModelForSemanticSegmentation,),
    }
    if task == "forecast":  # the automatic class knows few of them
        name = type(config).__name__.replace("Config", "ForPrediction")
        return getattr(library, name, library.AutoModelForTimeSeriesPrediction)
    if task != TASKS[0]:
        return next((each for each in classes[task] if type(config) in each._model_mapping), classes[task][0])
    if getattr(config, "is_encoder_decoder", False):
        return library.AutoModel
    return next((each for each in classes[task] if type(config) in each._model_mapping), library.AutoModel)


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


def _image_size(config: Any) -> Sequence[int]:
    given = getattr(config, "image_size", None) or IMAGE_SIZE
    return given if isinstance(given, Sequence) else (given, given)


def _parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Configurations inside a configuration (an encoder's, a vision tower's)."""
    return [getattr(config, key) for key in config.sub_configs if getattr(config, key, None) is not None]


def is_file(config: object) -> bool:
    """Whether a configuration is given as a file."""
    return isinstance(config, Path) or (isinstance(config, str) and config.endswith(".json"))


def refused(model_type: str, error: Exception) -> InputError:
    """What to raise when transformers cannot make a model of a configuration."""
    lines = str(error).splitlines() or [type(error).__name__]
    known = isinstance(error, ValueError) and "Unrecognized model identifier" in lines[0]
    problem = "is no model type of transformers" if known else f"cannot be built: {lines[0][:200]}"
    return InputError(f"model_type {model_type!r}", problem, "check the configuration")
