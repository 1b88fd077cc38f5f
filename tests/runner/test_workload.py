"""A configuration becomes layers: against closed forms, against torch's own counter, and against the real module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner import workload
from steelyard.runner.families import settle
from steelyard.runner.polynomial import BATCHES
from steelyard.runner.workload import build_model, main, model_from_config, model_text, save_model
from steelyard.sim.workload import Layer, Model, Operator, at

TINY: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {"model_type": "bert", **TINY, "intermediate_size": 64, "max_position_embeddings": 64}
GPT2 = {"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "model_type": "llama",
    **TINY,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
ALBERT = {"model_type": "albert", **TINY, "embedding_size": 16, "intermediate_size": 64}
VIT = {"model_type": "vit", **TINY, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
T5 = {"model_type": "t5", "vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
FAMILIES = [BERT, GPT2, LLAMA, DISTILBERT, ALBERT, VIT, T5]


def family(config: dict[str, Any]) -> str:
    return str(config["model_type"])


def tiny_model(config: dict[str, Any]) -> Model:
    return _described(json.dumps(config))


@cache
def _described(text: str) -> Model:
    return model_from_config(json.loads(text))


def flops(operators: Iterable[Operator], tokens: int) -> float:
    return sum(at(each.flops, tokens) for each in operators)


def blocks(model: Model) -> list[Layer]:
    return model.layers[1:-1]


@pytest.mark.parametrize("config", FAMILIES, ids=family)
def test_parameters_are_those_of_the_real_module(config: dict[str, Any]) -> None:
    real = build_model(tiny_model(config).config, labels=2, seed=0)
    counted = tiny_model(config)
    assert sum(layer.parameters for layer in counted.layers) == sum(each.numel() for each in real.parameters())
    assert all(layer.trainable_parameters == layer.parameters for layer in counted.layers)


@pytest.mark.parametrize("config", [BERT, GPT2, LLAMA, DISTILBERT], ids=family)
@pytest.mark.parametrize("tokens", [8, 40])
def test_flops_equal_what_torch_counts_on_the_real_module(config: dict[str, Any], tokens: int) -> None:
    """Real weights, a real forward and backward pass with attention written out, counted by FlopCounterMode: equal.

    Lengths at which the model was not measured, so that this holds for the polynomials too.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counted = tiny_model(config)
    real: Any = build_model(counted.config, labels=2, seed=0)
    real.set_attn_implementation("eager")
    ids = torch.ones(3, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        logits = real(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long))
    with FlopCounterMode(display=False) as backward:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
    mine = [
        sum(3 * flops(part, tokens) for part in each)
        for each in zip(*((a.forward, a.backward) for a in counted.layers), strict=True)
    ]
    assert mine[0] == pytest.approx(forward.get_total_flops(), rel=1e-12)
    assert mine[1] == pytest.approx(backward.get_total_flops(), rel=1e-12)


def test_gpt_block_is_the_closed_form() -> None:
    """24 s h^2 + 4 s^2 h FLOPs forward for one sample, twice that backward, 12 h^2 + 13 h parameters (exact)."""
    hidden, tokens = 32, 40
    for block in blocks(tiny_model(GPT2)):
        assert block.forward_flops(tokens) == 24 * tokens * hidden**2 + 4 * tokens**2 * hidden
        assert block.backward_flops(tokens) == 2 * block.forward_flops(tokens)
        assert block.parameters == 12 * hidden**2 + 13 * hidden


def test_llama_block_is_the_closed_form() -> None:
    """Per token 2 [h^2 (2 + 2 kv/heads) + 3 h f] + 4 s h, all s^2 pairs counted; the rotary embedding is outside."""
    hidden, inner, tokens = 32, 80, 40
    per_token = 2 * (hidden**2 * (2 + 2 * 2 / 4) + 3 * hidden * inner) + 4 * tokens * hidden
    for block in blocks(tiny_model(LLAMA)):
        assert block.forward_flops(tokens) == per_token * tokens


MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}


def test_only_the_experts_that_the_router_chooses_count() -> None:
    """MoE: 2 of 8 experts of 3 h f each, and the router (physics, compute)."""
    hidden, inner, tokens = 32, 80, 40
    dense, sparse = (blocks(tiny_model(each))[0].forward_flops(tokens) for each in (LLAMA, MIXTRAL))
    assert sparse - dense == tokens * 2 * (3 * hidden * inner + hidden * 8)


def test_experts_read_every_weight_once_and_keep_only_activations() -> None:
    """A kernel per product of all experts: weights once per micro-batch, nothing kept that grows with their size."""
    block = blocks(tiny_model(MIXTRAL))[0]
    experts, attention, router = 8 * 3 * 32 * 80, 2 * 32 * 32 + 2 * 32 * 16, 8 * 32
    products = next(each for each in block.forward if each.kind == "matmul")
    assert products.weight_elements == experts + attention + router
    assert at(block.activation_elements, 1) < 2 * at(blocks(tiny_model(LLAMA))[0].activation_elements, 1) + 12 * 80


def test_a_family_with_attention_classes_of_its_own_is_counted_as_written() -> None:
    """Falcon: the scores are kept and moved; the FLOPs of a block are the closed form all the same."""
    config = {"model_type": "falcon", **TINY, "new_decoder_architecture": False, "multi_query": False, "bias": False}
    for block in blocks(tiny_model(config)):
        assert block.forward_flops(40) == 24 * 40 * 32**2 + 4 * 40**2 * 32
        assert len(block.activation_elements) == 3


def test_activations_follow_korthikanti_without_dropout_and_with_fused_attention() -> None:
    """Korthikanti et al. 2022, table 2, less masks (no dropout) and scores (fused): 16 s h elements a layer.

    Norm inputs 2, q k v 3, attention's input and output 2, the MLP's 1 + 4 + 4; beside them one sum per row and head
    and the statistics of two norms. A fused GELU is assumed, as BERT's is.
    """
    hidden, heads, tokens = 32, 4, 40
    config = {**BERT, "intermediate_size": 4 * hidden}
    for block in blocks(tiny_model(config)):
        assert at(block.activation_elements, tokens) == tokens * (16 * hidden + heads + 4)
        assert at(block.output_elements, tokens) == tokens * hidden


def test_activations_are_what_the_real_module_keeps() -> None:
    """All storages that autograd saves in a real forward pass with torch's fused attention, weights left out.

    The real pass keeps the attention mask and copies of token ids too, hence the tolerance.
    """
    import torch

    config, tokens, samples = {**BERT, "hidden_size": 64, "intermediate_size": 256}, 40, 3
    counted = tiny_model(config)
    real = build_model(counted.config, labels=2, seed=0)
    storages = {each.untyped_storage()._cdata for each in real.parameters()}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (key := tensor.untyped_storage()._cdata) not in storages:
            storages.add(key)
            kept.append(tensor)
        return tensor

    ids = torch.ones(samples, tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum()
    measured = sum(each.untyped_storage().nbytes() for each in kept) / 4
    assert samples * sum(at(layer.activation_elements, tokens) for layer in counted.layers) == pytest.approx(
        measured, rel=0.1
    )


def test_the_embedding_needs_no_input_gradient_and_reads_only_the_rows_it_looks_up() -> None:
    embeddings = tiny_model(BERT).layers[0]
    assert embeddings.name == "embeddings"
    assert flops(embeddings.backward, 16) == 0
    lookup = next(each for each in embeddings.forward if each.kind == "embedding")
    assert lookup.weight_elements < BERT["vocab_size"]
    assert at(lookup.elements, 16) >= 3 * 16 * BERT["hidden_size"]


def test_weights_are_read_once_per_micro_batch() -> None:
    for block in blocks(tiny_model(BERT)):
        products = next(each for each in block.forward if each.kind == "matmul")
        biases_and_weights = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 32 + 64
        assert products.weight_elements == biases_and_weights
        gradients = next(each for each in block.backward if each.kind == "matmul")
        assert gradients.weight_elements == 2 * (4 * 32 * 32 + 2 * 32 * 64)  # weights read, their gradients written


@pytest.mark.parametrize("config", [BERT, GPT2, LLAMA], ids=family)
def test_polynomials_hold_at_a_length_that_was_not_measured(config: dict[str, Any]) -> None:
    """Exactly; but positions, made once for a whole micro-batch, are charged to each of its samples."""
    samples, tokens = BATCHES[0], 40
    counted = workload.measure_passes(settle(dict(config)), "sequence-classification", (tokens,))
    for index, layer in enumerate(tiny_model(config).layers):
        part = counted[samples, tokens][index]
        assert at(layer.output_elements, tokens) * samples == part.output
        for direction, operators in (("forward", layer.forward), ("backward", layer.backward)):
            assert {op.kind for op in operators} == {kind for way, kind in part.counts if way == direction}
            for op in operators:
                count = part.counts[direction, op.kind]  # type: ignore[index]  # a Literal
                assert (op.kernels, samples * at(op.flops, tokens)) == (count.kernels, count.flops)
                elements = samples * at(op.elements, tokens) + op.weight_elements
                assert count.elements <= elements <= (samples if layer.name == "embeddings" else 1.1) * count.elements


def test_blocks_of_one_kind_are_equal() -> None:
    """The rotary embedding that all share is kept where it was made, not by the first block that reads it."""
    model = tiny_model({**LLAMA, "num_hidden_layers": 3})
    assert [layer.name for layer in model.layers] == ["embeddings", *(f"model.layers.{i}" for i in range(3)), "head"]
    first, second, third = (layer.model_copy(update={"name": ""}) for layer in blocks(model))
    assert first == second == third
    assert at(model.layers[0].activation_elements, 40) == 40 * (1 + 2 * 32 / 4)  # a token's number, cosines and sines


def test_tied_parameters_count_once() -> None:
    """A language model's head that is its embedding table: counted with the embeddings, named at the head."""
    tied = model_from_config({**GPT2, "tie_word_embeddings": True}, task="causal-lm")
    assert tied.layers[-1].tied_with == "embeddings"
    untied = model_from_config({**GPT2, "tie_word_embeddings": False}, task="causal-lm")
    assert untied.layers[-1].tied_with is None
    table = 97 * 32
    total = [sum(layer.parameters for layer in each.layers) for each in (untied, tied)]
    assert total[0] - total[1] == table


def test_a_block_that_is_called_again_is_tied_to_its_first_call() -> None:
    layers = tiny_model(ALBERT).layers
    again = [layer for layer in layers if "call 2" in layer.name]
    assert again
    assert all(layer.parameters == 0 and layer.tied_with for layer in again)


def test_a_decoder_block_is_fed_by_the_encoder_too() -> None:
    model = tiny_model(T5)
    names = [layer.name for layer in model.layers]
    fed = [layer.inputs for layer in model.layers if "decoder" in layer.name and layer.inputs]
    assert fed
    assert all(name in names for each in fed if each for name in each)
    assert any(len(each) == 2 for each in fed if each)


def test_head_flops_of_a_language_model() -> None:
    """2 s h V forward (physics: the head)."""
    head = model_from_config({**GPT2, "tie_word_embeddings": True}, task="causal-lm").layers[-1]
    assert head.forward_flops(40) == 2 * 40 * 32 * 97


def test_build_model_repeats_in_other_processes_and_with_other_instruction_sets() -> None:
    """The weights that two lanes of different caps build must be the same bytes."""
    script = (
        "import hashlib, json, sys\n"
        "from steelyard.runner.workload import build_model\n"
        "model = build_model(json.loads(sys.argv[1]), labels=2, seed=5)\n"
        "parts = [each.detach().numpy().tobytes() for each in model.parameters()]\n"
        "print(hashlib.sha256(b''.join(parts)).hexdigest())"
    )
    digests = set()
    for extra in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "ATEN_CPU_CAPABILITY": "default"}):
        command = [sys.executable, "-W", "ignore", "-c", script, json.dumps(BERT)]
        done = subprocess.run(command, env={**os.environ, **extra}, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_build_model_depends_on_the_seed_and_leaves_torchs_own_stream_alone() -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, other = (build_model(BERT, labels=3, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.rand(1), expected)
    pairs = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_build_model_answers_with_logits_of_so_many_labels_and_has_no_dropout() -> None:
    import torch

    model = build_model({**BERT, "hidden_dropout_prob": 0.5}, labels=3, seed=0)
    ids = torch.arange(1, 17).reshape(2, 8)
    mask = torch.ones_like(ids)
    first, second = (model(input_ids=ids, attention_mask=mask).logits for _ in range(2))
    assert model.training
    assert first.shape == (2, 3)
    assert torch.equal(first, second)


def test_padding_does_not_change_a_text() -> None:
    """The mask reaches the model: what stands under mask 0 must not matter."""
    import torch

    model = build_model(BERT, labels=2, seed=0)
    ids = torch.arange(1, 9).reshape(1, 8)
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = (padded != 0).long()
    short = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    long = model(input_ids=padded, attention_mask=mask).logits
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


def test_a_saved_model_reads_back_equal(tmp_path: Path) -> None:
    from steelyard.sim.spec import parse_file

    model = tiny_model(LLAMA)
    assert Model.model_validate(parse_file(save_model(model, tmp_path / "m.json"))) == model


def test_equal_layers_are_written_once() -> None:
    deep = tiny_model({**LLAMA, "num_hidden_layers": 12})
    document = json.loads(model_text(deep))
    assert [(each["name"], each.get("repeat")) for each in document["layers"]] == [
        ("embeddings", None),
        ("model.layers.{}", 12),
        ("head", None),
    ]
    assert Model.model_validate(document) == deep


NAMES = st.sampled_from(
    ["a.0", "a.1", "a.2", "b.0.c.0", "b.0.c.1", "b.1.c.0", "b.1.c.1", "0", "1", "{}.0", "{}.1", "x"]
)


@given(st.lists(st.tuples(NAMES, st.integers(0, 1)), min_size=1, max_size=8, unique_by=lambda each: each[0]))
def test_any_model_reads_back_equal(layers: list[tuple[str, int]]) -> None:
    empty: dict[str, Any] = {"forward": [], "backward": [], "activation_elements": [0.0], "output_elements": [1.0]}
    made = [Layer(name=name, parameters=size, trainable_parameters=size, **empty) for name, size in layers]
    model = Model(name="m", layers=made)
    assert Model.model_validate(json.loads(model_text(model))) == model


def test_configurations_come_as_type_file_table_or_object(tmp_path: Path) -> None:
    from transformers import AutoConfig

    file = tmp_path / "config.json"
    file.write_text(json.dumps(BERT))
    rest = {key: value for key, value in BERT.items() if key != "model_type"}
    made = [model_from_config(each) for each in (str(file), file, BERT, AutoConfig.for_model("bert", **rest))]
    assert all(each.layers == made[0].layers for each in made)
    assert [each.name for each in made] == ["config", "config", "bert", "bert"]
    assert model_from_config(made[0].config).layers == made[0].layers


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"hidden_size": 8}, "model_type"),
        ("no-such-family", "no-such-family"),
        ({**BERT, "hidden_size": "wide"}, "bert"),
        ({**BERT, "num_attention_heads": 5}, "bert"),
        ({**BERT, "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({**BERT, "num_hidden_layers": "many"}, "bert"),
        ({**BERT, "hidden_size": 10**30}, "bert"),
        ({**BERT, "num_labels": 10**12}, "num_labels"),
        ({**BERT, "max_position_embeddings": 4}, "max_position_embeddings"),
        ({"model_type": "perceiver"}, "reads inputs"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(config: Any, field: str) -> None:
    with pytest.raises(InputError) as caught:
        model_from_config(config)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
)


def described_or_refused(config: dict[str, Any]) -> str:
    try:
        return model_from_config(config).name
    except InputError as error:
        return str(error)


@settings(max_examples=40)
@given(
    changes=st.dictionaries(st.sampled_from([*BERT, "hidden_act", "num_labels", "pad_token_id", ""]), JUNK, max_size=3)
)
def test_junk_is_described_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    outcome = described_or_refused({**BERT, **changes})
    assert outcome
    assert "\n" not in outcome


def test_keys_that_would_fetch_or_run_code_are_left_out() -> None:
    foreign = {"auto_map": {"AutoConfig": "x.Y"}, "_attn_implementation": "someone/kernels", "quantization_config": {}}
    assert model_from_config({**BERT, **foreign}).layers == tiny_model(BERT).layers


def test_a_translation_model_is_described_but_not_built() -> None:
    described = model_from_config({**T5}, task="seq2seq-lm")
    with pytest.raises(InputError, match="lanes train sequence-classification or causal-lm"):
        build_model(described.config, labels=2, seed=0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BERT))
    out = tmp_path / "mine.json"
    assert main([str(config), str(out)]) == 0
    assert workload.is_model_file(out)
    assert not workload.is_model_file(config)
    assert json.loads(out.read_text())["name"] == "mine"
    assert main(["nonsense"]) == 2
    assert main(["no-such-family", str(tmp_path / "x.json")]) == 2
    assert not (tmp_path / "x.json").exists()
    assert "no-such-family" in capsys.readouterr().err
