"""Rows of measured steps: what a file may leave out, mixed machines, and every mistake by its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from steelyard.results.errors import InputError
from steelyard.runner.validation.cases import Calibration, World, plan_of, predict, scenario_of
from steelyard.runner.validation.rows import COMMON_NAMES, INNER_LINKS, ModelNumbers, StepRow, has_steps, read_rows
from steelyard.sim.spec import load_device, load_link

HEAD = (
    "cluster,global_batch,micro_batch,hidden,heads,layers,sequence_length,"
    "tensor_parallel,data_parallel,pipeline_parallel,step_time_s"
)
ROW = '"one node, 8x A100",8,2,256,4,6,128,2,2,2,0.5'
MODEL = ModelNumbers(hidden=256, heads=4, layers=6, sequence_length=128)


def written(folder: Path, head: str = HEAD, *rows: str, name: str = "steps.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([head, *(rows or (ROW,))]) + "\n", encoding="utf-8")
    return path


def one(folder: Path, head: str = HEAD, row: str = ROW, model: ModelNumbers | None = None) -> StepRow:
    return read_rows(written(folder, head, row), model)[0]


def test_a_row_and_what_it_leaves_out(tmp_path: Path) -> None:
    row = one(tmp_path)
    assert row.types == (("nvidia-a100-sxm-80gb",) * 2,) * 2
    assert row.degrees == ((2, 2), (2, 2))
    assert row.layers == (4, 4)
    assert (row.devices, row.stages, row.pipelines, row.micro_batches) == (8, 2, 2, 2)
    assert (row.dtype, row.recompute, row.schedule, row.per_node) == ("fp16", "full", "1f1b", 8)
    assert row.model == MODEL


def test_ranks_are_in_megatrons_order(tmp_path: Path) -> None:
    """Tensor parallel side by side, then data parallel, then the pipeline."""
    plan = plan_of(one(tmp_path))
    numbers = [
        [[int(name.rpartition("/")[2]) for name in stage.replicas[0].devices] for stage in pipeline.stages]
        for pipeline in plan.pipelines
    ]
    assert numbers == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_the_plan_is_valid(tmp_path: Path) -> None:
    row = one(tmp_path)
    plan_of(row).check(scenario_of(row, Calibration(), World()))


def test_adapters_and_machines_are_read_from_the_cluster(tmp_path: Path) -> None:
    label = '"8x A100 per node, 4x HDR InfiniBand",32,1,256,4,6,128,2,8,1,0.5'
    row = one(tmp_path, row=label)
    nodes = scenario_of(row, Calibration(), World()).cluster.nodes
    assert [len(node.devices) for node in nodes] == [8, 8]
    assert {node.nics for node in nodes} == {4}


def test_stages_may_differ_in_device_degree_and_layers(tmp_path: Path) -> None:
    head = HEAD + ",gpu_types,layers_per_stage,network"
    row = one(tmp_path, head, '"mixed",8,2,256,4,6,128,4;2,1,2,0.5,A100-40;V100-16,6;2,ethernet-100g')
    assert row.types == (("nvidia-a100-sxm-40gb",), ("nvidia-v100-sxm-16gb",))
    scenario, plan = scenario_of(row, Calibration(), World()), plan_of(row)
    plan.check(scenario)
    assert [len(stage.replicas[0].devices) for stage in plan.pipelines[0].stages] == [4, 2]
    assert [(stage.first, stage.last) for stage in plan.pipelines[0].stages] == [(0, 6), (6, 8)]
    assert [node.devices[0].name.partition("/")[0] for node in scenario.cluster.nodes] == [
        "nvidia-a100-sxm-40gb", "nvidia-v100-sxm-16gb",
    ]  # fmt: skip
    assert predict(row, Calibration(), World()) > 0


def test_pipelines_may_differ_in_device(tmp_path: Path) -> None:
    head = HEAD + ",gpu_types"
    row = one(tmp_path, head, '"mixed",8,2,256,4,6,128,1,2,1,0.5,A100-40|T4')
    assert row.types == (("nvidia-a100-sxm-40gb", "nvidia-t4"),)
    slow = predict(row, Calibration(), World())
    fast = predict(one(tmp_path, head, '"mixed",8,2,256,4,6,128,1,2,1,0.5,A100-40'), Calibration(), World())
    assert slow > fast  # the all-reduce waits for the slower pipeline


def test_the_files_name_may_say_which_device(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD, '"ours",8,2,256,4,6,128,2,2,2,0.5', name="steps_h100.csv")
    assert read_rows(path)[0].types[0][0] == "nvidia-h100-sxm"


def test_a_profiled_model_needs_no_columns(tmp_path: Path) -> None:
    head = "gpu_types,global_batch,micro_batch,tensor_parallel,data_parallel,pipeline_parallel,step_time_s"
    row = one(tmp_path, head, "T4,8,2,2,2,2,0.5", MODEL)
    assert row.model == MODEL
    assert row.recompute == "none"


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        (HEAD, ROW.replace("0.5", ""), r"^steps\.csv: line 2: has no step_time_s"),
        (HEAD, ROW.replace("0.5", "-1"), r"line 2: step_time_s: is -1\.0 \(must be above 0\)"),
        (HEAD, ROW.replace("0.5", "nan"), r"line 2: step_time_s: is nan"),
        (HEAD, ROW.replace("0.5", "soon"), r"line 2: cannot be read: could not convert"),
        (HEAD, ROW.replace(",8,2,", ",7,2,"), r"global_batch: is 7, not a multiple of micro_batch x data_parallel"),
        (HEAD, ROW.replace("A100", "machine"), r"steps\.csv: does not say which GPU \(add a column gpu_types\)"),
        (HEAD + ",layers_per_stage", ROW + ",3;4", r"layers_per_stage: holds 7 layers, the model has 8"),
        (HEAD + ",gpu_types", ROW + ",A100;T4;T4", r"line 2: cannot be read: 'A100;T4;T4' does not fit 2 stages"),
        (HEAD + ",gpu_types", ROW + ",A1000", r"device: 'A1000' is not in the catalog"),
    ],
)  # fmt: skip
def test_mistakes_have_their_line(tmp_path: Path, head: str, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        one(tmp_path, head, row)


def test_a_model_must_be_known(tmp_path: Path) -> None:
    head = "gpu_types,global_batch,micro_batch,tensor_parallel,data_parallel,pipeline_parallel,step_time_s"
    with pytest.raises(InputError, match="names no model"):
        one(tmp_path, head, "T4,8,2,2,2,2,0.5")


def test_other_files_hold_no_steps(tmp_path: Path) -> None:
    assert has_steps(written(tmp_path))
    assert not has_steps(written(tmp_path, "ranks,bytes,time_us", "2,8,1", name="other.csv"))
    empty = tmp_path / "empty.csv"
    empty.write_text("", encoding="utf-8")
    assert not has_steps(empty)


@pytest.mark.parametrize("name", sorted(COMMON_NAMES))
def test_common_names_are_in_the_catalog(name: str) -> None:
    device = load_device(COMMON_NAMES[name]).name
    assert load_link(INNER_LINKS.get(device, "pcie-3")).bandwidth > 0
