"""The shipped models: configurations with their sources, from which the catalog's files are written.

Deep models are traced with :data:`TRACED` blocks, one of which then stands for all: a test holds that against the trace
of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..sim.workload import Layer, Model
from .workload import model_from_config, plain_config, save_model

TRACED = 2
"""Blocks of a model that is traced in place of a deep one."""


class Entry(NamedTuple):
    """One shipped model."""

    summary: str
    source: str
    config: dict[str, Any]
    task: str = "sequence-classification"
    depth: str | None = None
    """Key of the configuration that says how many equal blocks there are; None: all are traced."""


def _gpt2(layers: int, heads: int, hidden: int, positions: int = 1024) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": hidden, "n_positions": positions}


def _llama(layers: int, heads: int, hidden: int, inner: int, positions: int = 8192) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
    }


BERT_SOURCE = "github.com/google-research/bert README.md (Devlin et al. 2019); the rest as transformers' BertConfig"
GPT2_SOURCE = "github.com/karpathy/nanoGPT model.py, from_pretrained (Radford et al. 2019); GPT2Config for the rest"
LLAMA_SOURCE = (
    "github.com/pytorch/torchtitan torchtitan/models/llama3/__init__.py; vocabulary and positions recalled from Meta"
)

CATALOG: dict[str, Entry] = {
    "bert-tiny-text": Entry(
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
    "gpt2-tiny-text": Entry(
        "GPT-2 language model of 1 M parameters for short texts: for lanes",
        "sized for the suite of replays",
        {**_gpt2(4, 4, 128, 64), "vocab_size": 2048, "bos_token_id": None, "eos_token_id": None},
        "causal-lm",
    ),
    "llama-tiny-text": Entry(
        "Llama language model of 1 M parameters for short texts: for lanes",
        "sized for the suite of replays",
        {
            **_llama(4, 4, 128, 344, 64),
            "vocab_size": 2048,
            "num_key_value_heads": 2,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "causal-lm",
    ),
    "bert-base": Entry(
        "BERT base sequence classifier (12 layers, hidden 768)",
        BERT_SOURCE,
        {"model_type": "bert"},
        depth="num_hidden_layers",
    ),
    "bert-large": Entry(
        "BERT large sequence classifier (24 layers, hidden 1024)",
        BERT_SOURCE,
        {
            "model_type": "bert",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        depth="num_hidden_layers",
    ),
    "gpt2": Entry(
        "GPT-2 small with a sequence-classification head (12 layers, hidden 768)",
        "Radford et al. 2019, as transformers' default GPT2Config",
        {"model_type": "gpt2"},
        depth="n_layer",
    ),
    "gpt2-small": Entry(
        "GPT-2 small language model (124 M parameters)", GPT2_SOURCE, _gpt2(12, 12, 768), "causal-lm", "n_layer"
    ),
    "gpt2-medium": Entry(
        "GPT-2 medium language model (355 M parameters)", GPT2_SOURCE, _gpt2(24, 16, 1024), "causal-lm", "n_layer"
    ),
    "gpt2-large": Entry(
        "GPT-2 large language model (774 M parameters)", GPT2_SOURCE, _gpt2(36, 20, 1280), "causal-lm", "n_layer"
    ),
    "gpt2-xl": Entry(
        "GPT-2 XL language model (1.56 B parameters)", GPT2_SOURCE, _gpt2(48, 25, 1600), "causal-lm", "n_layer"
    ),
    "gpt-3-175b": Entry(
        "GPT-3 language model of 175 B parameters, its sparse attention layers counted as dense",
        "github.com/saforem2/Megatron-DeepSpeed gpt-sizes.sh (Brown et al. 2020); GPT2Config for the rest",
        _gpt2(96, 96, 12_288, 2048),
        "causal-lm",
        "n_layer",
    ),
    "opt-350m": Entry(
        "OPT language model of 350 M parameters (embeddings of 512, projected to 1024; norms after)",
        "huggingface.co/sartajbhuvaji/facebook-opt-350m-chat config.json, of facebook/opt-350m (Zhang et al. 2022)",
        {
            "model_type": "opt",
            "vocab_size": 50_272,
            "hidden_size": 1024,
            "word_embed_proj_dim": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "ffn_dim": 4096,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": False,
        },
        "causal-lm",
        "num_hidden_layers",
    ),
    "llama-3-8b": Entry(
        "Llama 3 8B language model (32 layers, hidden 4096, grouped-query attention)",
        LLAMA_SOURCE,
        _llama(32, 32, 4096, 14_336),
        "causal-lm",
        "num_hidden_layers",
    ),
    "llama-3-70b": Entry(
        "Llama 3 70B language model (80 layers, hidden 8192, grouped-query attention)",
        LLAMA_SOURCE,
        _llama(80, 64, 8192, 28_672),
        "causal-lm",
        "num_hidden_layers",
    ),
    "llama-3-405b": Entry(
        "Llama 3.1 405B language model (126 layers, hidden 16384, grouped-query attention)",
        LLAMA_SOURCE,
        _llama(126, 128, 16_384, 53_248, 131_072),
        "causal-lm",
        "num_hidden_layers",
    ),
    "mixtral-8x7b": Entry(
        "Mixtral 8x7B language model: a mixture of 8 experts, 2 per token (32 layers, hidden 4096)",
        "github.com/keras-team/keras-hub keras_hub/src/models/mixtral/README.md (Jiang et al. 2024)",
        {
            "model_type": "mixtral",
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14_336,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32_768,
        },
        "causal-lm",
        "num_hidden_layers",
    ),
    "t5-base": Entry(
        "T5 base encoder-decoder language model (12 + 12 layers, hidden 768), as many tokens in as out",
        "huggingface.co/google-t5/t5-base config.json (Raffel et al. 2020)",
        {"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "seq2seq-lm",
    ),
    "whisper-small": Entry(
        "Whisper small, speech to text: 30 s of sound in, so many tokens out (12 + 12 layers, hidden 768)",
        "github.com/k2-fsa/sherpa-onnx scripts/whisper/model-info.md (Radford et al. 2022); WhisperConfig for the rest",
        {
            "model_type": "whisper",
            "vocab_size": 51_865,
            "d_model": 768,
            "num_mel_bins": 80,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
            "max_source_positions": 1500,
            "max_target_positions": 448,
        },
        "seq2seq-lm",
    ),
    "wav2vec2-base": Entry(
        "wav2vec 2.0 base sound classifier: 10 s of sound (12 layers, hidden 768)",
        "Baevski et al. 2020, as transformers' default Wav2Vec2Config",
        {"model_type": "wav2vec2"},
    ),
    "vit-base": Entry(
        "ViT-B/16 image classifier: 224 x 224 pixels, 1000 classes (12 layers, hidden 768)",
        "github.com/google-research/vision_transformer vit_jax/configs/models.py, ViT-B_16 (Dosovitskiy et al. 2021)",
        {
            "model_type": "vit",
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "image_size": 224,
            "patch_size": 16,
            "num_labels": 1000,
        },
        depth="num_hidden_layers",
    ),
    "segformer-b0": Entry(
        "SegFormer-B0 image segmentation: 512 x 512 pixels, 150 classes (ADE20K)",
        "github.com/NVlabs/SegFormer local_configs/segformer/B0/segformer.b0.512x512.ade.160k.py (Xie et al. 2021); "
        "SegformerConfig for the rest",
        {"model_type": "segformer", "image_size": 512, "num_labels": 150, "decoder_hidden_size": 256},
        "segmentation",
    ),
    "patchtst-weather": Entry(
        "PatchTST time-series forecast: 336 steps of 21 channels in, 96 out (3 layers, hidden 128)",
        "github.com/yuqinie98/PatchTST PatchTST_supervised/scripts/PatchTST/weather.sh (Nie et al. 2023)",
        {
            "model_type": "patchtst",
            "num_input_channels": 21,
            "context_length": 336,
            "prediction_length": 96,
            "patch_length": 16,
            "patch_stride": 8,
            "d_model": 128,
            "num_attention_heads": 16,
            "num_hidden_layers": 3,
            "ffn_dim": 256,
        },
        "forecast",
    ),
}
"""Shipped models by name."""


def regenerate_catalog(folder: Path, names: Iterable[str] = tuple(CATALOG)) -> list[Path]:
    """Write the shipped models anew into a folder; the same library versions give the same bytes."""
    return [save_model(describe(name, CATALOG[name]), folder / f"{name}.json") for name in names]


def describe(name: str, entry: Entry) -> Model:
    """The model of one entry."""
    config, depth = entry.config, entry.depth
    shallow = config if depth is None else {**config, depth: TRACED}
    model = model_from_config(shallow, name=name, task=entry.task, summary=entry.summary, source=entry.source)
    if depth is None:
        return model
    whole = plain_config(config, entry.task)
    return model.model_copy(update={"config": whole, "layers": deepened(model.layers, whole[depth])})


def deepened(layers: list[Layer], blocks: int) -> list[Layer]:
    """Layers of a deeper model, of so many blocks, from those of one that has equal blocks between two ends.

    Raises:
        ValueError: the blocks are not equal.
    """
    first, *between, last = layers
    kinds = [each.model_copy(update={"name": ""}) for each in between]
    if any(each != kinds[0] for each in kinds) or not between[0].name.endswith(".0"):
        raise ValueError("the blocks differ: trace them all")
    stem = between[0].name.removesuffix("0")
    return [first, *(between[0].model_copy(update={"name": f"{stem}{n}"}) for n in range(blocks)), last]
