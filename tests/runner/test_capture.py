"""Capture: the kernels of a model that never runs are those that its description counts, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from steelyard.results.errors import InputError
from steelyard.runner.capture import capture
from steelyard.runner.fidelity import at_calibrated, at_datasheet, captured_calls, sizes_of
from steelyard.runner.operators import (
    REFERENCES,
    Grid,
    PassWork,
    fit_surplus,
    grids,
    left_out,
    operator_tasks,
    read_tables,
    reference_calls,
    write_tables,
)
from steelyard.runner.workload import model_from_config
from steelyard.sim.cost import device_cost
from steelyard.sim.operators import Call, LayerCalls, OperatorGrid, OperatorTable, call_s
from steelyard.sim.spec import Scenario, load_model
from steelyard.sim.workload import Workload

TOLERANCE = 0.01
"""Products and attention are counted alike on both ways; families differ in what they compute beside them."""
FAMILIES: list[dict[str, Any]] = [
    {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    {"model_type": "roberta", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0},
    {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1},
    {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
]

CATALOG = ("bert-base", "gpt2", "llama-tiny-text", "opt-350m", "patchtst-weather", "segformer-b0", "t5-base")
"""A model of each family that can be captured: a classifier, language models, convolutions, time series."""


def workload(config: dict[str, Any]) -> Workload:
    model = model_from_config({**config, "vocab_size": 128})
    return Workload(model=model, global_batch=16, sequence_length=16)


def flops(calls: tuple[Call, ...]) -> float:
    return sum(call.flops * call.times for call in calls)


def table() -> OperatorTable:
    """Every kind that is measured, at made-up times."""

    def made(grid: Grid) -> OperatorGrid:
        seconds = [1e-6 + 1e-9 * sum(point) for point in grid.points]
        axes = [[float(size) for size in axis] for axis in grid.axes]
        return OperatorGrid(kind=grid.kind, axes=axes, powers=list(grid.powers), seconds=seconds)

    return OperatorTable(dtype="fp32", grids=[made(grid) for grid in grids()])


@pytest.mark.parametrize("config", FAMILIES, ids=lambda each: str(each["model_type"]))
def test_captured_layers_and_flops_are_those_of_the_description(config: dict[str, Any]) -> None:
    described = workload(config)
    layers = capture(described, [4])[4]
    assert [layer.name for layer in layers] == [layer.name for layer in described.layers]
    for found, layer in zip(layers, described.layers, strict=True):
        assert flops(found.forward) == pytest.approx(4 * layer.forward_flops(16), rel=TOLERANCE, abs=1)
        assert flops(found.backward) == pytest.approx(4 * layer.backward_flops(16), rel=TOLERANCE, abs=1)
        assert found.trainable == layer.trainable_parameters


@pytest.mark.parametrize("config", [FAMILIES[0], FAMILIES[3], FAMILIES[4]], ids=lambda each: str(each["model_type"]))
def test_what_the_common_families_run_is_measured_and_not_guessed(config: dict[str, Any]) -> None:
    calls = [call for layer in capture(workload(config), [4])[4] for call in (*layer.forward, *layer.backward)]
    assert [call for call in calls if call_s(table(), call)[1] == "guessed"] == []


def test_a_larger_micro_batch_is_more_work_in_equal_calls() -> None:
    small, large = capture(workload(FAMILIES[0]), [2, 6]).values()
    for a, b in zip(small, large, strict=True):
        assert flops(b.forward) == 3 * flops(a.forward)
        assert sum(call.times for call in a.backward) == sum(call.times for call in b.backward)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOG)
def test_the_catalogs_models_are_captured_with_the_flops_of_their_descriptions(name: str) -> None:
    described = Workload(model=load_model(name), global_batch=4, sequence_length=64)
    layers = capture(described, [2])[2]
    assert [layer.name for layer in layers] == [layer.name for layer in described.layers]
    for found, layer in zip(layers, described.layers, strict=True):
        assert flops(found.forward) == pytest.approx(2 * layer.forward_flops(64), rel=TOLERANCE, abs=1)
        assert flops(found.backward) == pytest.approx(2 * layer.backward_flops(64), rel=TOLERANCE, abs=1)


def test_a_model_whose_path_depends_on_its_data_is_refused_with_the_reason() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = model_from_config({"model_type": "vit", "image_size": 32, "patch_size": 16, **small})
    with pytest.raises(InputError, match="vit"):
        capture(Workload(model=model, global_batch=4, sequence_length=16), [2])


def test_tables_of_operators_survive_their_file(tmp_path: Path) -> None:
    tables = {"full": table(), "sse": table()}
    write_tables(tmp_path / "operators.toml", tables)
    assert read_tables(tmp_path / "operators.toml") == tables


def test_a_calibrated_prediction_does_not_change_when_the_model_is_profiled(tiny_scenario: Scenario) -> None:
    """The scenario of lanes has profiles, and all-reduces as in the model's steps; without, the same is predicted."""
    tables = {device.name: table() for device in tiny_scenario.cluster.devices}

    def bare(scenario: Scenario) -> Scenario:
        (node,) = scenario.cluster.nodes
        devices = [device.model_copy(update={"profile": None}) for device in node.devices]
        cluster = scenario.cluster.model_copy(update={"nodes": [node.model_copy(update={"devices": devices})]})
        return scenario.model_copy(update={"cluster": cluster})

    captured = captured_calls(tiny_scenario.workload, [1, 8])
    within = [table.within_steps(1.5) for table in tiny_scenario.cluster.collectives]
    stepped = tiny_scenario.cluster.model_copy(update={"collectives": within})
    profiled = tiny_scenario.model_copy(update={"cluster": stepped})
    made = [at_calibrated(each, tables, captured) for each in (profiled, bare(tiny_scenario))]
    assert made[0].cluster == made[1].cluster
    cost = device_cost(made[0].cluster.devices[0], made[0].workload)
    assert cost.fidelity == "calibrated"
    assert at_datasheet(tiny_scenario).cluster == at_datasheet(bare(tiny_scenario)).cluster


def test_a_datasheet_holds_nothing_that_was_measured(tiny_scenario: Scenario) -> None:
    sheet = at_datasheet(tiny_scenario)
    assert sheet.cluster.collectives == []
    for device in sheet.cluster.devices:
        assert device.profile is None
        assert device_cost(device, sheet.workload).fidelity == "datasheet"


def test_tables_of_another_dtype_or_lane_are_refused(tiny_scenario: Scenario) -> None:
    captured = captured_calls(tiny_scenario.workload, [1, 2])
    half = {device.name: table().model_copy(update={"dtype": "bf16"}) for device in tiny_scenario.cluster.devices}
    with pytest.raises(InputError, match="are bf16, not fp32"):
        at_calibrated(tiny_scenario, half, captured)
    with pytest.raises(InputError, match="are missing"):
        at_calibrated(tiny_scenario, {}, captured)


def test_sizes_span_those_of_the_plans() -> None:
    assert sizes_of([]) == [1, 2]


def test_no_grid_is_a_models_own_and_every_grid_has_a_measured_corner() -> None:
    for grid in grids():
        assert grid.measured(grid.points[0])
        assert [kind["kind"] for task in operator_tasks("fp32") for kind in task.get("points", ())].count(grid.kind) > 0


def test_the_surplus_of_made_up_passes_is_found_again() -> None:
    rows = [PassWork(calls, seconds) for calls, seconds in ((100, 1e-3), (150, 2e-2), (300, 5e-3), (90, 4e-2))]
    measured = [7e-6 * row.calls + 1.2 * row.seconds for row in rows]
    found = fit_surplus(rows, measured)
    assert (found.call_s, found.factor) == (pytest.approx(7e-6), pytest.approx(1.2))
    assert left_out(rows, measured) == pytest.approx(measured)


def test_the_small_models_can_be_captured() -> None:
    layers: list[LayerCalls] = reference_calls(*REFERENCES[0])
    assert sum(call.times for layer in layers for call in layer.forward) > 50
