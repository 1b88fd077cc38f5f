"""Layer profiles on file: both formats, what a scenario may refer to, and every mistake by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim import cost, layer_profiles
from steelyard.sim.device import LayerPoint, LayerProfile
from steelyard.sim.spec import Scenario, load_device, scenario_from
from steelyard.sim.workload import Workload

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "opt350_layer_profiles.json"

seconds = st.floats(0, 1e3)


@st.composite
def profiles(draw: st.DrawFn) -> LayerProfile:
    layers = draw(st.integers(1, 5))
    column = st.lists(seconds, min_size=layers, max_size=layers)
    sizes = st.tuples(st.integers(1, 64), st.sampled_from([1, 2, 4]))
    points = [
        LayerPoint(
            micro_batch=size,
            tensor_degree=degree,
            forward_s=draw(column),
            backward_s=draw(column),
            optimizer_s=draw(column),
        )
        for size, degree in draw(st.lists(sizes, min_size=1, max_size=4, unique=True))
    ]
    return LayerProfile(model=draw(st.text(min_size=1, max_size=20)), sequence_length=128, dtype="fp16", points=points)


@given(found=st.dictionaries(st.text(min_size=1, max_size=10), profiles(), min_size=1, max_size=3))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, found: dict[str, LayerProfile]) -> None:
    path = tmp_path_factory.mktemp("profiles") / "own.json"
    layer_profiles.save(path, found)
    assert layer_profiles.load(path) == found


def published(**changes: Any) -> dict[str, Any]:
    """Two layers on one device, in the imported format."""
    document = {
        "model": "tiny",
        "sequence_length": 64,
        "unit": "ms",
        "per_layer": ["forward", "backward", "update"],
        "profiles": {"A100-40": {"micro_batch=2,tensor_parallel=4": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}},
    }
    return {**document, **changes}


def write(folder: Path, document: Any, name: str = "profiles.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_published_file_is_imported(tmp_path: Path) -> None:
    found = layer_profiles.load(write(tmp_path, published()))["A100-40"]
    point = found.points[0]
    assert (found.model, found.sequence_length, found.dtype) == ("tiny", 64, "fp32")
    assert (point.micro_batch, point.tensor_degree) == (2, 4)
    assert point.forward_s == pytest.approx([1e-3, 4e-3])
    assert point.backward_s == pytest.approx([2e-3, 5e-3])
    assert point.optimizer_s == pytest.approx([3e-3, 6e-3])


def test_order_unit_and_dtype_are_those_of_the_file(tmp_path: Path) -> None:
    changed = published(unit="s", dtype="fp16", per_layer=["update", "backward", "forward"])
    found = layer_profiles.load(write(tmp_path, changed))["A100-40"]
    assert found.dtype == "fp16"
    assert found.points[0].optimizer_s == [1.0, 4.0]
    assert found.points[0].forward_s == [3.0, 6.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profiles": {}}, r"profiles\.json: profiles: is missing or empty"),
        ({"unit": "hours"}, r"unit: is 'hours' \(one of s, ms\)"),
        ({"per_layer": ["forward"]}, r"per_layer: is \['forward'\] \(must hold forward, backward, update\)"),
        ({"profiles": {"A": []}}, r"profiles\.A: is not a table"),
        ({"profiles": {"A": {"nothing": [[1, 2, 3]]}}}, r"profiles\.A\.nothing: names no sizes"),
        ({"profiles": {"A": {"micro_batch=1": [[1, 2]]}}}, r"A\.micro_batch=1: is not a list of layers"),
        ({"profiles": {"A": {"micro_batch=1": [["x", 2, 3]]}}}, r"A\.micro_batch=1: holds what is no number"),
        ({"profiles": {"A": {"micro_batch=1": [[-1, 2, 3]]}}}, r"profiles\.A\.points\.0\.forward_s\.0: is -0\.001"),
        ({"profiles": {"A": {"micro_batch=0": [[1, 2, 3]]}}}, r"points\.0\.micro_batch: is 0 \(must be at least 1\)"),
        ({"sequence_length": "long"}, r"sequence_length: is 'long'"),
    ],
)
def test_mistakes_have_their_path(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_profiles.load(write(tmp_path, published(**changes)))


def test_a_scenario_names_a_file_or_one_of_its_profiles(tmp_path: Path) -> None:
    two = published()
    two["profiles"]["V100-16"] = two["profiles"]["A100-40"]
    write(tmp_path, published(), "one.json")
    write(tmp_path, two, "two.json")
    assert layer_profiles.resolve(tmp_path, "one.json", "here").model == "tiny"
    assert layer_profiles.resolve(tmp_path, "two.json#V100-16", "here").model == "tiny"
    with pytest.raises(InputError, match=r"^here: two\.json has 2 profiles \(add #name; known: A100-40, V100-16\)"):
        layer_profiles.resolve(tmp_path, "two.json", "here")
    with pytest.raises(InputError, match=r"^here: 'H100' is no profile of two\.json"):
        layer_profiles.resolve(tmp_path, "two.json#H100", "here")
    with pytest.raises(InputError, match=r"^here: .* leaves the folder"):
        layer_profiles.resolve(tmp_path / "sub", "../one.json", "here")


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_published_profiles() -> None:
    """Seven GPU types, 26 layers each; the embedding has almost no backward pass."""
    found = layer_profiles.load(SHARED)
    assert len(found) == 7
    for each in found.values():
        assert all(len(point.forward_s) == 26 for point in each.points)
        assert all(point.backward_s[0] < point.backward_s[1] for point in each.points)
    faster, slower = (sum(found[name].points[0].forward_s) for name in ("GH-96", "V100-16"))
    assert faster < slower


def test_a_profile_serves_its_model_only() -> None:
    point = LayerPoint(micro_batch=1, forward_s=[1.0], backward_s=[1.0], optimizer_s=[1.0])
    profile = LayerProfile(model="x", sequence_length=8, dtype="fp16", points=[point])
    device = load_device("nvidia-t4").model_copy(update={"layer_profile": profile})
    workload = _workload("y")
    assert cost.layer_profile_of(device, workload) is None
    assert cost.layer_profile_of(device, _workload("x")) is profile
    assert cost.layer_profile_of(device, _workload("X")) is profile


def test_a_scenario_whose_profile_is_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its owner would get datasheet times and not know."""
    profile = LayerProfile(
        model="x",
        sequence_length=8,
        dtype="fp16",
        points=[LayerPoint(micro_batch=1, forward_s=[1.0], backward_s=[1.0], optimizer_s=[1.0])],
    )
    layer_profiles.save(tmp_path / "measured.json", {"x": profile})
    device = {"device": "nvidia-t4", "name": "one", "layer_profile": "measured.json"}

    def scenario(name: str) -> Scenario:
        node = {"name": "box", "link": "pcie-3", "devices": [device]}
        document = {"name": "s", "cluster": {"nodes": [node]}, "workload": _workload(name).model_dump(mode="json")}
        return scenario_from(document, tmp_path)

    assert cost.device_cost(scenario("x").cluster.devices[0], _workload("x")).fidelity == "profiled"
    with pytest.raises(InputError, match="one: layer_profile: was measured of x, 1 layers, 8, fp16, the workload is y"):
        scenario("y")


def _workload(name: str) -> Workload:
    layer = {
        "name": "only", "parameters": 1, "trainable_parameters": 1, "forward": [], "backward": [],
        "activation_elements": [0.0], "output_elements": [0.0],
    }  # fmt: skip
    document = {"model": {"name": name, "layers": [layer]}, "global_batch": 1, "sequence_length": 8, "dtype": "fp16"}
    return Workload.model_validate(document)
