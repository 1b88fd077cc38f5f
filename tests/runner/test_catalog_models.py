"""The shipped models: what the code writes, and as large as their makers say."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from steelyard.runner.catalog import CATALOG, Entry, deepened, describe, regenerate_catalog
from steelyard.runner.workload import model_from_config
from steelyard.sim.spec import load_model, shipped_names
from steelyard.sim.workload import Layer, Workload

PUBLISHED = {
    "bert-base": 110e6,
    "bert-large": 336e6,
    "gpt2": 124e6,
    "gpt2-small": 124e6,
    "gpt2-medium": 355e6,
    "gpt2-large": 774e6,
    "gpt2-xl": 1558e6,
    "gpt-3-175b": 175e9,
    "llama-3-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "llama-3-405b": 405.9e9,
    "mixtral-8x7b": 46.7e9,
    "t5-base": 223e6,
    "whisper-small": 244e6,
    "wav2vec2-base": 95e6,
    "vit-base": 86.6e6,
}
"""Parameters as papers and model cards give them (mostly recalled; OPT-350M, SegFormer and PatchTST: none at hand)."""


def file_size(name: str) -> int:
    return len(files("steelyard.sim").joinpath("catalog", "models", f"{name}.json").read_bytes())


def forward_flops(layers: list[Layer], tokens: int) -> float:
    return sum(layer.forward_flops(tokens) for layer in layers)


def test_every_shipped_model_is_described_here() -> None:
    assert shipped_names("catalog/models") == sorted(CATALOG)


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_catalog_is_what_the_code_writes(name: str, tmp_path: Path) -> None:
    (path,) = regenerate_catalog(tmp_path, [name])
    shipped = files("steelyard.sim").joinpath("catalog", "models", f"{name}.json")
    assert path.read_bytes() == shipped.read_bytes()


def test_the_catalog_is_small() -> None:
    assert sum(map(file_size, CATALOG)) < 400_000


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameters_are_the_published_ones(name: str, parameters: float) -> None:
    assert sum(layer.parameters for layer in load_model(name).layers) == pytest.approx(parameters, rel=0.01)


def test_the_demo_model_is_small() -> None:
    assert 1e6 < sum(layer.parameters for layer in load_model("bert-tiny-text").layers) <= 5e6


@pytest.mark.parametrize(
    ("name", "layers", "hidden"),
    [("gpt2-small", 12, 768), ("gpt2-xl", 48, 1600), ("gpt-3-175b", 96, 12_288), ("opt-350m", 24, 1024)],
)
def test_gpt_blocks_are_the_closed_form(name: str, layers: int, hidden: int) -> None:
    """24 s h^2 + 4 s^2 h FLOPs forward per sample and block (physics, compute)."""
    blocks = load_model(name).layers[1:-1]
    assert len(blocks) == layers
    for block in blocks:
        assert block.forward_flops(512) == 24 * 512 * hidden**2 + 4 * 512**2 * hidden


@pytest.mark.parametrize(("name", "layers", "hidden"), [("gpt2-xl", 48, 1600), ("gpt-3-175b", 96, 12_288)])
def test_training_flops_are_megatrons(name: str, layers: int, hidden: int) -> None:
    """72 s L h^2 (1 + s/6h + V/12Lh) per sample, forward and backward (Narayanan et al. 2021, no recomputation)."""
    tokens, vocabulary = 1024, 50_257
    workload = Workload(model=load_model(name), global_batch=1, sequence_length=tokens)
    ratio = 1 + tokens / (6 * hidden) + vocabulary / (12 * layers * hidden)
    assert workload.flops_per_sample == pytest.approx(72 * tokens * layers * hidden**2 * ratio, rel=1e-9)


def test_a_mixture_computes_its_chosen_experts_only() -> None:
    """Mixtral: 12.9 B of 46.7 B parameters work on a token (its model card); 2 FLOPs each, less the embedding table."""
    layers = load_model("mixtral-8x7b").layers
    attention = 32 * 4 * 4096 * 1  # of one token with itself
    active = (forward_flops(layers, 1) - attention) / 2 + 32_000 * 4096
    assert active == pytest.approx(12.9e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gigaflops", "tolerance"),
    [("vit-base", 2 * 17.5, 0.02), ("segformer-b0", 2 * 8.4, 0.06), ("whisper-small", None, 0.0)],
)
def test_models_of_images_and_sound_have_constant_costs(name: str, gigaflops: float | None, tolerance: float) -> None:
    """ViT-B/16: 17.5 G multiply-adds at 224 pixels; SegFormer-B0: 8.4 G at 512 (both recalled from their papers)."""
    model = load_model(name)
    encoder = model.layers if gigaflops else [each for each in model.layers if "encoder" in each.name]
    assert {len(op.flops) for layer in encoder for op in layer.forward} == {1}
    if gigaflops:
        assert forward_flops(model.layers, 1) == pytest.approx(gigaflops * 1e9, rel=tolerance)


TINY_GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_head": 4, "n_positions": 64}
TINY: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
DEEP = {
    "gpt2": Entry("", "", {**TINY_GPT2, "n_layer": 5}, "causal-lm", "n_layer"),
    "bert": Entry("", "", {"model_type": "bert", **TINY, "num_hidden_layers": 4}, depth="num_hidden_layers"),
    "vit": Entry(
        "",
        "",
        {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 5, "image_size": 32},
        depth="num_hidden_layers",
    ),
    **{
        family: Entry("", "", {"model_type": family, **TINY, "num_hidden_layers": 6}, "causal-lm", "num_hidden_layers")
        for family in ("llama", "mixtral", "opt")
    },
}


@pytest.mark.parametrize("family", DEEP)
def test_a_deep_model_from_a_few_blocks_is_the_deep_model(family: str) -> None:
    entry = DEEP[family]
    config = {**entry.config, "num_key_value_heads": 2} if family in ("llama", "mixtral") else entry.config
    short = describe(family, entry._replace(config=config))
    assert short == model_from_config(config, name=family, task=entry.task)


def test_blocks_that_differ_are_not_repeated() -> None:
    layers = load_model("t5-base").layers
    with pytest.raises(ValueError, match="differ"):
        deepened(layers, 24)


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_a_source_and_a_task_stand_in_every_model(name: str) -> None:
    model = load_model(name)
    assert model.source
    assert model.summary
    assert model.config["task"] == CATALOG[name].task
    assert json.dumps(model.config)
