"""Models of speech, masks and time series: their inputs and losses, against the real modules."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from steelyard.results.errors import InputError
from steelyard.runner import families
from steelyard.runner.workload import model_from_config
from steelyard.sim.workload import Model, at

T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_heads": 4,
}
WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 20,
    "max_target_positions": 64,
}
SEGFORMER: dict[str, Any] = {
    "model_type": "segformer",
    "image_size": 64,
    "num_labels": 5,
    "hidden_sizes": [8, 16, 20, 32],
    "num_attention_heads": [1, 2, 5, 8],
    "decoder_hidden_size": 16,
}
PATCHTST: dict[str, Any] = {
    "model_type": "patchtst",
    "num_input_channels": 3,
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 4,
    "patch_stride": 4,
    "d_model": 16,
    "num_attention_heads": 4,
    "ffn_dim": 32,
}
WAV2VEC2: dict[str, Any] = {
    "model_type": "wav2vec2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_stride": [40, 32],
    "conv_kernel": [40, 32],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MODELS = [
    (T5, "seq2seq-lm"),
    (WHISPER, "seq2seq-lm"),
    (SEGFORMER, "segmentation"),
    (PATCHTST, "forecast"),
    (WAV2VEC2, "sequence-classification"),
]


NO_INPUT_GRADIENT = {"segformer": 2 * 16 * 16 * 8 * 3 * 7 * 7, "wav2vec2": 0}
"""FLOPs per sample of layers that need no gradient of their input (wav2vec 2.0 asks for one of the sound, too)."""


def described(config: dict[str, Any], task: str) -> Model:
    return _described(json.dumps(config), task)


@cache
def _described(text: str, task: str) -> Model:
    return model_from_config(json.loads(text), task=task)


@pytest.mark.parametrize(("config", "task"), MODELS, ids=[str(config["model_type"]) for config, _ in MODELS])
def test_flops_and_parameters_are_those_of_the_real_module(config: dict[str, Any], task: str) -> None:
    """Real weights, inputs and loss; attention written out; torch's own counter of FLOPs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    settled, tokens = families.settle(dict(config)), 24
    real: Any = families.assemble(settled, task, "eager")
    inputs = families.make_inputs(real, settled, task, 2, tokens)
    inputs = {key: torch.rand_like(each) if each.is_floating_point() else each for key, each in inputs.items()}
    with FlopCounterMode(display=False) as forward:
        output = real(**inputs)
    with FlopCounterMode(display=False) as backward:
        (output.prediction_outputs if task == "forecast" else output.logits).sum().backward()
    model = described(config, task)
    forward_flops, backward_flops = (
        2 * sum(getattr(layer, name)(tokens) for layer in model.layers) for name in ("forward_flops", "backward_flops")
    )
    assert forward_flops == pytest.approx(forward.get_total_flops(), rel=1e-12)
    if config in (SEGFORMER, WAV2VEC2):  # torch counts the gradient of a grouped convolution as that of a dense one
        assert backward_flops == pytest.approx(2 * forward_flops - 2 * NO_INPUT_GRADIENT[config["model_type"]])
    else:
        assert backward_flops == pytest.approx(backward.get_total_flops(), rel=1e-12)
    assert sum(layer.parameters for layer in model.layers) == sum(each.numel() for each in real.parameters())


def test_speech_costs_a_constant_in_the_encoder_and_grows_in_the_decoder() -> None:
    model = described(WHISPER, "seq2seq-lm")
    for layer in model.layers:
        grows = layer.forward_flops(48) > layer.forward_flops(24)
        assert grows == (layer.name == "head" or "decoder.layers" in layer.name), layer.name


@pytest.mark.parametrize("config", [T5, WHISPER], ids=["t5", "whisper"])
def test_what_every_decoder_block_reads_is_the_encoders_end(config: dict[str, Any]) -> None:
    model = described(config, "seq2seq-lm")
    names = [layer.name for layer in model.layers]
    blocks = [layer for layer in model.layers if "decoder." in layer.name]
    end = names[names.index("decoder embeddings") - 1]
    assert [layer.inputs for layer in blocks] == [
        [end, before] for before in ("decoder embeddings", *(layer.name for layer in blocks[:-1]))
    ]
    size = 20 * 32 if config is WHISPER else 24 * 32
    assert at(next(layer.output_elements for layer in model.layers if layer.name == end), 24) == size


def test_the_head_of_a_segmentation_reads_every_stage() -> None:
    """A skip edge from each stage, with its feature map; the scores are made at a quarter of the image's size."""
    *stages, head = described(SEGFORMER, "segmentation").layers
    assert head.inputs == [layer.name for layer in stages]
    assert [layer.output_elements for layer in stages] == [[8.0 * 256], [16.0 * 64], [20.0 * 16], [32.0 * 4]]
    assert head.output_elements == [5.0 * 16 * 16]
    loss = next(each for each in head.forward if each.kind == "loss")
    assert loss.elements[0] >= 2 * 5 * 64 * 64  # the loss is over the pixels of the image


def test_a_family_that_does_not_do_a_task_is_refused_in_one_line() -> None:
    for task in ("segmentation", "forecast", "seq2seq-lm"):
        with pytest.raises(InputError) as caught:
            model_from_config("bert", task=task)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="one of"):
        model_from_config("bert", task="poetry")


def test_the_number_of_labels_is_kept_and_their_names_are_not() -> None:
    config = described(SEGFORMER, "segmentation").config
    assert config["num_labels"] == 5
    assert "id2label" not in config


@pytest.mark.parametrize(("config", "task"), MODELS, ids=[str(config["model_type"]) for config, _ in MODELS])
def test_the_configuration_that_a_model_keeps_describes_it_again(config: dict[str, Any], task: str) -> None:
    """The task stands in it."""
    model = described(config, task)
    assert model_from_config(model.config).layers == model.layers
