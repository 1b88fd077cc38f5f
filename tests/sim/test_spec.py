"""Loading scenarios: good files load; anything else is one line that names the field and the mend."""

from __future__ import annotations

import functools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim import checking, spec
from steelyard.sim.device import Cluster, Device
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, apply_setting, load_scenario, scenario_from

Document = dict[str, Any]
Make = Callable[..., Document]
DEVICE = "cluster.nodes.0.devices.0"


def parent_of(document: Any, path: str) -> tuple[Any, Any]:
    """The list or table that holds a place, and its key there."""
    *parents, last = path.split(".")
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    return document, int(last) if isinstance(document, list) else last


def put(document: Any, path: str, value: object) -> Any:
    target, key = parent_of(document, path)
    target[key] = value
    return document


def places(document: Any, path: str = "") -> Iterator[str]:
    """Every path of a document, leaves and tables."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        here = f"{path}.{key}".lstrip(".")
        yield here
        if isinstance(value, dict | list):
            yield from places(value, here)


def checked(error: InputError) -> str:
    """The line of a refusal, which names a path and a problem and can be printed."""
    assert str(error).isprintable()
    assert error.path
    assert error.problem
    return str(error)


def outcome(load: Callable[[], object]) -> str | None:
    """The message of the refusal, one printable line; None where it loads. Any other exception fails the test."""
    try:
        loaded = load()
    except InputError as error:
        return checked(error)
    assert isinstance(loaded, Scenario)
    json.dumps(loaded.model_dump(mode="json"), allow_nan=False)  # what loads can be recorded
    return None


# Good input


def test_a_document_round_trips(scenario: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "scenario.json"
    file.write_text(scenario.model_dump_json())
    assert load_scenario(file) == scenario
    assert scenario_from(scenario.model_dump(mode="json")) == scenario
    assert pickle.loads(pickle.dumps(scenario)) == scenario


def test_counts_become_numbered_devices(make_document: Make) -> None:
    document = make_document()
    del document["cluster"]["collectives"]
    node = document["cluster"]["nodes"][0]
    node["devices"][0]["count"] = 2
    node["count"] = 2
    document["cluster"]["network"] = {"name": "lan", "latency_us": 10.0, "bandwidth_gb_per_s": 1.0}
    names = [device.name for device in scenario_from(document).cluster.devices]
    own = ["fast-0", "fast-1", "slow"]
    assert names == [f"host-0/{name}" for name in own] + [f"host-1/{name}" for name in own]


def test_nodes_without_names_are_numbered(make_document: Make) -> None:
    document = make_document()
    del document["cluster"]["nodes"][0]["name"]
    assert scenario_from(document).cluster.nodes[0].name == "node0"


def test_what_is_loaded_cannot_be_changed(scenario: Scenario) -> None:
    with pytest.raises(ValueError, match="frozen"):
        scenario.seed = 3  # type: ignore[misc]


def test_a_changed_copy_forgets_what_was_cached(scenario: Scenario) -> None:
    workload = scenario.workload
    before = workload.flops_per_sample
    assert workload.model_copy(update={"sequence_length": 64}).flops_per_sample == 2 * before
    cluster = scenario.cluster
    assert len(cluster.devices) == 2
    node = cluster.nodes[0].model_copy(update={"devices": cluster.nodes[0].devices[:1]})
    assert len(cluster.model_copy(update={"nodes": [node]}).devices) == 1


# Messages


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (f"{DEVICE}.memory_gb", 4, "memory_gb: unknown key (did you mean memory_gib?)"),
        (f"{DEVICE}.bandwidth", 4, "bandwidth: unknown key (did you mean memory_bandwidth_gb_per_s?)"),
        (f"{DEVICE}.memory_gib", 0, "memory_gib: is 0 (must be greater than 0"),
        (f"{DEVICE}.memory_gib", -3.5, "memory_gib: is -3.5 (must be greater than 0"),
        (f"{DEVICE}.memory_gib", float("nan"), "memory_gib: is nan (must be a finite number)"),
        (f"{DEVICE}.memory_gib", float("inf"), "memory_gib: is inf (must be a finite number)"),
        (f"{DEVICE}.memory_gib", "16", "memory_gib: is '16' (must be a number, without quotes)"),
        (f"{DEVICE}.memory_gib", True, "memory_gib: is True (must be a number)"),
        (f"{DEVICE}.memory_gib", 10**400, "(must be a smaller number)"),
        (f"{DEVICE}.peak_tflops", {}, f"{DEVICE}: peak_tflops is empty (name at least one dtype"),
        (f"{DEVICE}.peak_tflops.fp32", 0, "peak_tflops.fp32: is 0 (must be greater than 0"),
        (f"{DEVICE}.overhead_gib", 4.0, "overhead_gib leaves no memory (it must be less than memory_gib)"),
        (f"{DEVICE}.profile.points", [], "profile.points: has 0 entries (must have at least 2)"),
        (f"{DEVICE}.profile.points.1.micro_batch", 1, "profile: two points have the same micro_batch (keep one)"),
        (f"{DEVICE}.profile.step_residuals.0", -1.0, "step_residuals.0: is -1.0 (must be greater than -1"),
        (f"{DEVICE}.name", "", f"{DEVICE}.name: is ''"),
        (f"{DEVICE}.name", "slow", "cluster: two devices are named 'slow' (give each entry its own name)"),
        (f"{DEVICE}.count", 0, f"{DEVICE}.count: is 0 (must be a whole number from 1)"),
        (f"{DEVICE}.count", 10**9, f"{DEVICE}.count: makes more than 100000 devices"),
        (DEVICE, "no-such-device", f"{DEVICE}.device: 'no-such-device' is not in the catalog"),
        ("cluster.nodes.0.link", "no-such-link", "cluster.nodes.0.link: 'no-such-link' is not in the catalog"),
        ("cluster.nodes.0.devices", [], "cluster.nodes.0.devices: has 0 entries (must have at least 1)"),
        ("cluster.nodes.0.count", 2, "cluster: several nodes need a network link (add [cluster.network])"),
        ("cluster.nodes", {}, "cluster.nodes: is {} (must be a list)"),
        ("cluster.collectives.0.devices", ["fast", "x"], "cluster: a collective table names 'x'"),
        (
            "cluster.lanes",
            "auto",
            "cluster.lanes: the lanes of this host are not calibrated (run `steelyard calibrate`",
        ),
        ("cluster.fingerprint", {"x": float("nan")}, "cluster.fingerprint: holds a value that JSON does not have"),
        ("workload.global_batch", 0, "workload.global_batch: is 0 (must be at least 1)"),
        ("workload.global_batch", 2.5, "workload.global_batch: is 2.5 (must be a whole number)"),
        ("workload.global_batch", True, "workload.global_batch: is True (must be a whole number)"),
        ("workload.global_batch", 10**30, "must be at most 16777216"),
        ("workload.batch", 3, "workload.batch: unknown key (did you mean global_batch?)"),
        ("workload.dtype", "float32", "workload.dtype: is 'float32' (one of 'fp64', 'fp32'"),
        ("workload.model", "no-such-model", "workload.model: 'no-such-model' is not in the catalog"),
        ("workload.model", "model.json", "workload.model: 'model.json' is a path, a shipped scenario has no folder"),
        ("objective", "cost", "objective: is 'cost' (must be a table)"),
        ("schema_version", 2, "schema_version: is 2 (must be at most 1)"),
        ("schema_version", True, "schema_version: is True"),
        ("seed", -1, "seed: is -1 (must be at least 0)"),
        ("sampling", {"steps": 0}, "sampling.steps: is 0 (must be at least 1)"),
        ("\x1b[31mred\n", 1, "unknown key"),
    ],
)
def test_messages_name_the_field_and_the_mend(make_document: Make, path: str, value: object, says: str) -> None:
    line = outcome(lambda: scenario_from(put(make_document(), path, value)))
    assert line is not None
    assert says in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("workload.model", "workload.model: is missing (name one of `steelyard list models`"),
        ("workload", "workload: is missing (add [workload]"),
        ("cluster", "cluster: is missing (add [cluster]"),
        ("cluster.nodes", "cluster.nodes: is missing (add [[cluster.nodes]]"),
        ("name", "name: is missing (add name = ...)"),
        (f"{DEVICE}.memory_gib", f"{DEVICE}.memory_gib: is missing (add memory_gib = ...)"),
    ],
)
def test_missing_fields(make_document: Make, path: str, says: str) -> None:
    document = make_document()
    target, key = parent_of(document, path)
    del target[key]
    line = outcome(lambda: scenario_from(document))
    assert line is not None
    assert line.startswith(says)


def test_a_misspelt_unit_is_told_and_not_the_missing_field(make_document: Make) -> None:
    document = make_document()
    device = document["cluster"]["nodes"][0]["devices"][1]
    device["memory_gb"] = device.pop("memory_gib")
    assert outcome(lambda: scenario_from(document)) == (
        "cluster.nodes.0.devices.1.memory_gb: unknown key (did you mean memory_gib?)"
    )


def test_the_path_is_the_one_that_was_written_and_not_where_counting_put_it(make_document: Make) -> None:
    document = make_document()
    nodes = document["cluster"]["nodes"]
    nodes[0]["devices"][0]["count"] = 100
    nodes[0]["devices"][1]["memory_gib"] = -1
    line = outcome(lambda: scenario_from(document))
    assert line is not None
    assert line.startswith("cluster.nodes.0.devices.1.memory_gib: is -1")


@pytest.mark.parametrize("exponent", [400, 5000])
def test_numbers_too_large_for_anything(make_document: Make, exponent: int) -> None:
    for path in (f"{DEVICE}.memory_gib", "seed", f"{DEVICE}.count", "workload.model", "name", "objective.metric"):
        document = {**make_document(), "objective": {}}
        line = outcome(functools.partial(scenario_from, put(document, path, 10**exponent)))
        assert line is not None
        assert len(line) < 300


def test_a_key_of_any_length(make_document: Make) -> None:
    line = outcome(lambda: scenario_from(put(make_document(), "x" * 5000, 1)))
    assert line is not None
    assert "unknown key" in line
    assert len(line) < 400


# --set


def test_settings_override_any_field(scenario: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "scenario.json"
    file.write_text(scenario.model_dump_json())
    settings = [
        "workload.global_batch=64",
        f"{DEVICE}.memory_gib = 2.5",
        "objective.metric=cost",
        'name="other"',
        "cluster.nodes.0.devices.1.profile.step_residuals=[0.0, 0.5]",
        "sampling.steps=3",
    ]
    loaded = load_scenario(file, settings)
    assert loaded.workload.global_batch == 64
    assert loaded.cluster.devices[0].memory_gib == 2.5
    assert loaded.objective.metric == "cost"
    assert loaded.name == "other"
    assert loaded.cluster.devices[1].profile is not None
    assert loaded.cluster.devices[1].profile.step_residuals == [0.0, 0.5]
    assert loaded.sampling.steps == 3


def test_settings_make_the_tables_they_need(make_document: Make) -> None:
    document = make_document()
    apply_setting(document, "replay.launches=2")
    assert scenario_from(document).replay.launches == 2


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("workload.global_batch", "is not key=value"),
        ("=3", "is not key=value"),
        ("a..b=3", "is not key=value"),
        ("cluster.nodes.7.name=x", "7 is no entry of a list of 1"),
        ("cluster.nodes.first.name=x", "first is no entry of a list of 1"),
        ("cluster.nodes.\N{SUPERSCRIPT TWO}.name=x", "is no entry of a list of 1"),
        (f"cluster.nodes.{'9' * 50}.name=x", "is no entry of a list of 1"),
        ("cluster.nodes.-1.name=x", "-1 is no entry of a list of 1"),
        ("name.first=x", "name is not a table"),
        ("name.first.second=x", "there is no table that holds first"),
    ],
)
def test_settings_that_lead_nowhere(make_document: Make, setting: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_setting(make_document(), setting)
    assert str(caught.value).startswith("--set ")
    assert says in str(caught.value)


def test_a_misspelt_setting_is_an_unknown_key(make_document: Make) -> None:
    document = make_document()
    apply_setting(document, "workload.gobal_batch=3")
    assert outcome(lambda: scenario_from(document)) == (
        "workload.gobal_batch: unknown key (did you mean global_batch?)"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("cost", "cost"),
        ('"3"', "3"),
        ("1\nx = 2", "1\nx = 2"),
    ],
)
def test_values_are_in_the_notation_of_toml(text: str, value: object) -> None:
    parsed = spec.parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
@example("9" * 5000)
@example("[" * 10_000)
def test_any_text_is_a_value(text: str) -> None:
    spec.parse_value(text)


@given(setting=st.one_of(st.text(), st.from_regex(r"\A[a-z0-9.]{0,30}=[0-9a-z\[\]\"]{0,5}\Z")))
def test_any_setting_applies_or_is_refused(make_document: Make, setting: str) -> None:
    document = make_document()

    def load() -> Scenario:
        apply_setting(document, setting)
        return scenario_from(document)

    outcome(load)


# Junk


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "fast", "../x.json", "/etc/passwd", "\ud800", "nan", "1", "bert-base"]),
    st.dates(),
)
keys = st.one_of(
    st.text(max_size=6), st.sampled_from(["cluster", "nodes", "devices", "count", "name", "model", "link"])
)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


@given(junk)
def test_junk_is_refused(document: Any) -> None:
    assert outcome(lambda: scenario_from(document)) is not None


@given(cluster=junk, workload=junk, nodes=st.lists(junk, max_size=3))
def test_junk_under_known_keys_is_refused(cluster: Any, workload: Any, nodes: list[Any]) -> None:
    assert outcome(lambda: scenario_from({"cluster": cluster, "workload": workload})) is not None
    assert outcome(lambda: scenario_from({"cluster": {"nodes": nodes}, "workload": {"model": workload}})) is not None


@given(data=st.data(), value=junk, key=st.text(max_size=5))
def test_a_valid_document_with_one_place_spoilt(make_document: Make, data: st.DataObject, value: Any, key: str) -> None:
    document = make_document()
    path = data.draw(st.sampled_from(sorted(places(document))))
    target, last = parent_of(document, path)
    change = data.draw(st.sampled_from(["replace", "delete", "add"]))
    if change == "replace":
        target[last] = value
    elif change == "delete":
        del target[last]
    elif isinstance(target, dict):
        target[key] = value
    outcome(lambda: scenario_from(document))


@given(st.binary(max_size=300), st.sampled_from([".toml", ".json", ""]))
def test_files_of_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str) -> None:
    file = tmp_path_factory.getbasetemp() / f"junk{ending}"
    file.write_bytes(content)
    assert outcome(lambda: load_scenario(file)) is not None


@given(st.one_of(st.text(), st.just("x" * 5000), st.just("\0"), st.just("."), st.just("/dev/zero")))
def test_any_name_of_a_scenario(name: str) -> None:
    if name not in spec.shipped_names("scenarios"):
        assert outcome(lambda: load_scenario(name)) is not None


HURTFUL = {
    "deep list.json": "[" * 100_000,
    "deep table.json": '{"a":' * 100_000,
    "deep list.toml": "a = " + "[" * 100_000,
    "deep key.toml": ".".join(["a"] * 3_000) + " = 1",
    "deep key of the cluster.toml": "cluster." + ".".join(["a"] * 3_000) + " = 1",
    "deep key in a free table.toml": "[cluster.fingerprint]\n" + ".".join(["a"] * 3_000) + " = 1",
    "integer.toml": "seed = " + "9" * 5000,
    "hexadecimal.toml": "seed = 0x" + "f" * 20_000,
    "hexadecimal count.toml": "cluster.nodes = [{count = 0x" + "f" * 20_000 + "}]",
    "integer.json": '{"seed": ' + "9" * 5000 + "}",
    "infinity.json": '{"seed": 1e999}',
    "nan.json": '{"seed": NaN}',
    "nan.toml": "seed = nan",
    "list.json": "[]",
    "null.json": "null",
    "date.toml": "name = 1979-05-27",
    "surrogate.json": r'{"name": "\ud800"}',
    "surrogate key.json": r'{"\ud800": 1}',
    "twice.toml": "name = 1\nname = 2",
    "empty.toml": "",
}


@pytest.mark.parametrize("name", HURTFUL)
def test_files_made_to_hurt(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(HURTFUL[name])
    assert outcome(lambda: load_scenario(file)) is not None


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_file_of_100_mb_is_refused_by_its_size(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"huge.{ending}"
    with file.open("wb") as handle:
        handle.truncate(100 * 10**6)  # sparse: takes no room on the disk
    line = outcome(lambda: load_scenario(file))
    assert line is not None
    assert "is 100 MB long (at most 17 MB are read)" in line


# Paths


def with_model(make_document: Make, folder: Path, model: str) -> Path:
    file = folder / "scenario.json"
    file.write_text(json.dumps(put(make_document(), "workload.model", model)))
    return file


def test_a_model_file_beside_the_scenario_is_read(make_document: Make, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own.json").write_text(json.dumps(make_document()["workload"]["model"]))
    loaded = load_scenario(with_model(make_document, tmp_path, "models/own.json"))
    assert loaded == scenario_from(make_document())


@pytest.mark.parametrize("how", ["up", "absolute", "link", "loop"])
def test_paths_do_not_climb_out(make_document: Make, tmp_path: Path, how: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(make_document()["workload"]["model"]))
    names = {"up": "../outside.json", "absolute": str(outside), "link": "link.json", "loop": "loop.json"}
    (inside / "link.json").symlink_to(outside)
    (inside / "loop.json").symlink_to("loop.json")
    line = outcome(lambda: load_scenario(with_model(make_document, inside, names[how])))
    assert line is not None
    assert line.startswith("workload.model: ")
    assert "leaves the folder" in line or "is not a usable path" in line


@pytest.mark.parametrize("name", ["x" * 5000, "no\0name", "folder", "missing", "a/../missing", "\N{SNOWMAN}"])
def test_model_files_that_are_none(make_document: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    line = outcome(lambda: load_scenario(with_model(make_document, tmp_path, f"{name}.json")))
    assert line is not None
    assert len(line) < 400


def test_mistakes_in_a_model_file_name_the_file(make_document: Make, tmp_path: Path) -> None:
    model = make_document()["workload"]["model"]
    (tmp_path / "own.json").write_text(json.dumps(put(model, "layers.1.forward.0.kind", "matmull")))
    line = outcome(lambda: load_scenario(with_model(make_document, tmp_path, "own.json")))
    assert line is not None
    assert line.startswith("own.json: layers.1.forward.0.kind: is 'matmull' (one of 'matmul'")


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads everything")
def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "closed.toml"
    file.write_text("")
    file.chmod(0)
    assert outcome(lambda: load_scenario(file)) is not None


def test_near_names_of_scenarios_are_suggested() -> None:
    name = spec.shipped_names("scenarios")[0]
    assert f"did you mean {name}?" in (outcome(lambda: load_scenario(f"{name}x")) or "")


# Size


def test_a_large_cluster_loads(make_document: Make) -> None:
    document = make_document()
    del document["cluster"]["collectives"]
    document["cluster"]["nodes"][0]["devices"][0]["count"] = 20_000
    loaded = scenario_from(document)
    assert len(loaded.cluster.devices) == 20_001
    document["cluster"]["nodes"][0]["devices"][1]["name"] = "fast-7"
    assert outcome(lambda: scenario_from(document)) is not None


def test_the_schema_of_a_scenario_is_json() -> None:
    schema = json.loads(json.dumps(Scenario.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert {"cluster", "workload"} <= set(schema["required"])


@given(junk)
def test_junk_is_no_plan_and_no_device(document: Any) -> None:
    for load in (
        Plan.parse,
        lambda data: checking.validate(Device, data, "device"),
        lambda d: checking.validate(Cluster, d, "c"),
    ):
        with pytest.raises(InputError) as caught:
            load(document)
        assert str(caught.value).isprintable()
