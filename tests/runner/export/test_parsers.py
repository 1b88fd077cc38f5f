"""The frameworks' own parsers on what is written for them: those that are installed (none is needed for Steelyard)."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import tomllib
from pathlib import Path

import pytest
from steelyard.runner.export.shape import Shape
from steelyard.runner.export.targets import TARGETS
from steelyard.sim.spec import Scenario

from .conftest import BATCH


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def piped(eight: Scenario) -> Shape:
    """Two pipelines of two stages on two devices each, cut 5 + 9."""
    names = [device.name for device in eight.cluster.devices]
    groups = tuple(
        tuple(tuple(names[4 * data + 2 * worker : 4 * data + 2 * worker + 2]) for worker in range(2))
        for data in range(2)
    )
    return Shape(groups=groups, cuts=(0, 5, 14), sizes=((3,) * 4,) * 2, schedule="1f1b", sequence_parallel=True, zero=1)


@pytest.mark.skipif(not installed("megatron.core"), reason="megatron-core is not installed")
@pytest.mark.parametrize("cuts", [(0, 5, 14), (0, 1, 14), (0, 13, 14), (0, 7, 14)])
def test_megatron_core_reads_the_layout(piped: Shape, eight: Scenario, cuts: tuple[int, ...]) -> None:
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
    from steelyard.runner.export.frame import layout
    from steelyard.runner.export.megatron import _layout_text

    letters = {LayerType.embedding: "E", LayerType.decoder: "t", LayerType.loss: "L"}
    wanted = layout(cuts)
    read = PipelineParallelLayerLayout.parse_str_to_list(_layout_text(wanted))
    assert ["".join(letters[each] for each in stage) for stage in read] == wanted


def job_config() -> Path | None:
    """The file with torchtitan's configuration classes, which need none of what the package imports."""
    found = importlib.util.find_spec("torchtitan")
    places = found.submodule_search_locations if found is not None else None
    file = Path(next(iter(places))) / "config" / "job_config.py" if places else None
    return file if file is not None and file.is_file() else None


@pytest.mark.skipif(job_config() is None, reason="torchtitan 0.2 is not installed")
def test_torchtitan_has_every_key_and_value_that_is_written(piped: Shape, eight: Scenario) -> None:
    """By the text of its configuration classes: importing them would import all that it trains with."""
    file = job_config()
    assert file is not None
    classes = {
        each.name: {
            field.target.id: field.annotation
            for field in each.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for each in ast.parse(file.read_text()).body
        if isinstance(each, ast.ClassDef)
    }
    shape = dataclasses.replace(piped, zero=3, recompute="selective")
    config = tomllib.loads(TARGETS["torchtitan"].files(shape, eight)["job.toml"])
    for section, values in config.items():
        fields = classes[ast.unparse(classes["JobConfig"][section])]
        for key, value in values.items():
            hint = ast.unparse(fields[key])
            if hint.startswith("Literal"):
                assert value in ast.literal_eval(hint.removeprefix("Literal")), (section, key, value)
            else:
                assert hint.startswith(type(value).__name__), (section, key, value, hint)


@pytest.mark.skipif(not installed("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_takes_the_configuration(piped: Shape, eight: Scenario) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    # Without a process group its world is one rank: one pipeline of one stage has the batch that it expects then.
    name = eight.cluster.devices[0].name
    shape = Shape(groups=(((name,),),), cuts=(0, 14), sizes=((3,) * 8,), zero=2)
    config = json.loads(TARGETS["deepspeed"].files(shape, eight)["ds_config.json"])
    assert DeepSpeedConfig(config).train_batch_size == BATCH
