"""The command line for plans: policies with parameters, plan files, what tables tell of them, and mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from steelyard.policies import make_policy
from steelyard.runner.cli import run
from steelyard.runner.show import ledger_rows, run_rows
from steelyard.sim import spec
from steelyard.sim.engine import simulate
from steelyard.sim.spec import load_scenario
from steelyard.sim.view import View

SMALL = "two-gpus-one-box"
QUICK = ["--set", "sampling.launches=1", "--set", "sampling.steps=2"]


class Answer(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the current folder; tables are as wide as a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")


def call(*words: str) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    return Answer(code, out.getvalue(), err.getvalue())


def runs_of(*words: str) -> list[dict[str, Any]]:
    answer = call("simulate", SMALL, *words, *QUICK, "--json")
    assert answer.code == 0, answer.err
    found: list[dict[str, Any]] = json.loads(answer.out)["runs"]
    return found


def refused(*words: str) -> str:
    """The one line of a command that was given bad input; nothing is written."""
    before = sorted(Path.cwd().rglob("*"))
    answer = call(*words)
    assert answer.code == 2, answer
    assert answer.out == ""
    (line,) = answer.err.strip().splitlines()
    assert sorted(Path.cwd().rglob("*")) == before
    return line


def plan_file(name: str = "plan.json", **changes: Any) -> Path:
    """A valid plan for the small scenario, in two stages, with changes."""
    plan = make_policy("grid", {"data": 1, "pipeline": 2, "micro_batch": 8}).allocate(View.of(load_scenario(SMALL)))
    file = Path(name)
    file.write_text(json.dumps({**plan.document(), **changes}))
    return file


def model_file(**changes: Any) -> str:
    """A scenario whose model lies beside it, with changes to the model."""
    model = spec.load_model("bert-tiny-text").model_dump(mode="json")
    Path("model.json").write_text(json.dumps({**model, **changes}))
    text = spec.shipped_text("scenarios", SMALL)
    Path("scenario.toml").write_text(re.sub(r'(?m)^model = ".*"', 'model = "model.json"', text))
    return "scenario.toml"


# ---- policies and plans ----


@pytest.mark.parametrize("text", ["grid(data=1, pipeline=2,micro_batch=4)", "grid:data=1:pipeline=2:micro_batch=4"])
def test_a_policy_takes_parameters_in_either_notation(text: str) -> None:
    first, second = runs_of("-p", f"uniform,{text}")
    assert first["label"] == "uniform"
    assert second["label"] == "grid(data=1, pipeline=2, micro_batch=4)"
    assert [len(pipeline["stages"]) for pipeline in second["plan"]["pipelines"]] == [2]


def test_a_label_can_be_given_back_as_a_policy() -> None:
    (first,) = runs_of("-p", "grid(data=1, pipeline=2, schedule=gpipe, zero=1, recompute=full)")
    (again,) = runs_of("-p", first["label"])
    assert again["run_id"] == first["run_id"]


def test_without_a_policy_the_scenario_says_which() -> None:
    scenario = load_scenario(SMALL)
    labels = [each["label"].replace(" ", "") for each in runs_of()]
    assert labels == [text.replace(" ", "") for text in scenario.policies]


def test_whatif_takes_the_policies_of_the_scenario() -> None:
    answer = call("whatif", SMALL, "--vary", "workload.global_batch=32", *QUICK, "--json")
    assert answer.code == 0
    (point,) = json.loads(answer.out)["points"]
    assert point["policy"].partition("(")[0] in {text.partition("(")[0] for text in load_scenario(SMALL).policies}


def test_a_plan_file_is_simulated_as_it_is() -> None:
    one, other = plan_file("one.json"), plan_file("other.json", schedule="1f1b")
    found = runs_of("--plan", str(one), "--plan", str(other))
    assert [each["label"] for each in found] == ["fixed(plan=one.json)", "fixed(plan=other.json)"]
    assert found[0]["plan"] == json.loads(one.read_text())
    beside = runs_of("--plan", str(one), "-p", "uniform")
    assert [each["label"] for each in beside] == ["uniform", "fixed(plan=one.json)"]


def test_the_plan_of_a_run_gives_the_same_figures() -> None:
    (first,) = runs_of("-p", "grid(data=1, pipeline=2, micro_batch=4)")
    (again,) = runs_of("--plan", str(Path(first["folder"]) / "plan.json"))
    assert again["summary"] == first["summary"]


# ---- what is shown ----


def test_tables_name_fidelity_memory_and_what_binds() -> None:
    answer = call("simulate", SMALL, "-p", "uniform", *QUICK)
    assert "datasheet, 100 % guessed" in answer.out
    assert "peak GiB" in answer.out
    assert "device rtx-3090: forward and backward; half of it would save" in answer.out
    assert "goodput" not in answer.out  # nothing can fail here
    assert "p10-p90" not in answer.out  # and nothing varies


def test_failures_show_goodput_and_what_they_cost() -> None:
    faults = "faults={device_mtbf_hours=50.0,runs=20,work_hours=48.0}"
    answer = call("simulate", SMALL, "-p", "uniform", "--set", faults, *QUICK)
    assert answer.code == 0, answer.err
    for told in ("goodput %", "with failures", "checkpoint every h", "restart"):
        assert told in answer.out


def test_money_energy_and_carbon_are_shown_where_they_are_known() -> None:
    answer = call("simulate", "h100-box", "-p", "grid(tensor=8)", *QUICK)
    for told in ("usd/M samples", "J/step", "kg CO2/M samples"):
        assert told in answer.out
    assert "usd/M" not in call("simulate", SMALL, "-p", "uniform", *QUICK).out


def test_show_tells_where_the_input_pipeline_limits() -> None:
    assert call("simulate", "image-input", "-p", "uniform", *QUICK).code == 0
    shown = call("show", "runs")
    assert re.search(r"│ input +│", shown.out) or " input " in shown.out
    assert "input pipeline of server; half of it would save" in shown.out


def test_a_thousand_devices_take_a_few_rows() -> None:
    scenario = load_scenario("failures-at-scale", ["sampling.steps=2", "faults.runs=1"])
    done = simulate(scenario, make_policy("grid", {"tensor": 8, "pipeline": 16, "zero": 1, "recompute": "full"}))
    assert len(done.summary.devices) == 1024
    rows = ledger_rows([done])
    assert 16 <= len(rows) <= 24
    counts = [int(str(row["device"]).partition(" x ")[0]) for row in rows]
    assert sum(counts) == 1024
    (row,) = run_rows([done])
    assert row["samples"].startswith("1024 x dgx-*/h100-*=")


def test_a_report_of_a_large_cluster_can_be_read() -> None:
    from steelyard.results.report import report

    scenario = load_scenario("tpu-pod", ["sampling.steps=2"])
    done = simulate(scenario, make_policy("grid", {"tensor": 4, "pipeline": 4, "zero": 1, "recompute": "full"}))
    page = report([done], Path("report")).read_text()
    assert "x chip-*" in page
    assert len(re.findall(r"<tr>", page)) < 200
    trace = json.loads(Path("report/trace.json").read_text())
    assert 0 < sum(event["name"] == "thread_name" for event in trace["traceEvents"]) <= 256


# ---- mistakes ----


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ("grid(pipeline=2", "no closing parenthesis"),
        ("grid(pipeline)", "'pipeline' is not key=value"),
        ("grid(pipelines=2)", "did you mean pipeline?"),
        ("grid(tensor=5000)", "from 1 to 256"),
        ("grid(schedule=zigzag)", "one of 1f1b, gpipe, interleaved"),
        ("grid(tensor=3)", "1 x 1 x 3 are 3 devices, there are 2"),
        ("grid(data=1, pipeline=27)", "are 27 devices, there are 2"),
        ("grid(data=4)", "4 x 1 x 1 are 4 devices"),
        ("gird(pipeline=2)", "did you mean grid?"),
    ],
)
def test_a_wrong_grid_is_one_line(policy: str, named: str) -> None:
    assert named in refused("simulate", SMALL, "-p", policy)


def test_an_impossible_tensor_parallel_degree_is_refused() -> None:
    line = refused("simulate", "llama-70b", "-p", "grid(tensor=16, pipeline=4, micro_batch=1)")
    assert "policy.grid.tensor: is 16" in line
    assert "use a divisor" in line
    devices = [f"dgx-{node}/h100-{number}" for node in range(2) for number in range(8)]
    layers = len(spec.load_model("llama-3-70b").layers)
    stage = {"first": 0, "last": layers, "replicas": [{"devices": devices}]}
    Path("wide.json").write_text(json.dumps({"pipelines": [{"stages": [stage], "micro_batches": [1] * 128}]}))
    line = refused("simulate", "llama-70b", "--plan", "wide.json")
    assert "pipelines.0.stages.0.replicas.0.devices: are 16" in line
    assert "has 8 parts" in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("pipelines.0.stages.0.replicas.0.devices", ["gpu-of-somebody-else"]), "is no device of the cluster"),
        (("pipelines.0.stages.0.last", 99), "pipelines.0.stages"),
        (("pipelines.0.micro_batches", [1]), "the global batch is 64"),
        (("pipelines.0.micro_batches", [10**400]), "pipelines.0.micro_batches.0"),
        (("pipelines.0.stages.0.first", -1), "must be at least 0"),
        (("shedule", "1f1b"), "did you mean schedule?"),
        (("zero", 4), "must be at most 3"),
    ],
)
def test_a_plan_that_does_not_belong_is_refused(change: tuple[str, Any], named: str) -> None:
    file = plan_file()
    document = json.loads(file.read_text())
    path, value = change
    target: Any = document
    *way, last = path.split(".")
    for part in way:
        target = target[int(part)] if part.isdigit() else target[part]
    target[last] = value
    file.write_text(json.dumps(document))
    assert named in refused("simulate", SMALL, "--plan", str(file))
    assert named in refused("check", SMALL, "--plan", str(file))


def test_a_plan_that_is_no_plan_is_refused() -> None:
    Path("list.json").write_text("[]")
    assert "is not a table" in refused("simulate", SMALL, "--plan", "list.json")
    assert "absent.json" in refused("simulate", SMALL, "--plan", "absent.json")


def test_a_model_without_layers_is_refused() -> None:
    assert "model.json: layers: has 0 entries" in refused("simulate", model_file(layers=[]))


def test_switches_in_a_circle_are_refused() -> None:
    uplink = '{name="up",latency_us=1.0,bandwidth_gb_per_s=1.0}'
    switches = f'cluster.switches=[{{name="a",parent="b",uplink={uplink}}},{{name="b",parent="a",uplink={uplink}}}]'
    assert "form a circle" in refused("check", SMALL, "--set", switches)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("workload.global_batch=9007199254740993", "workload.global_batch"),
        ("workload.sequence_length=9007199254740993", "workload.sequence_length"),
        ("workload.sequence_length=1e400", "workload.sequence_length"),
        ("cluster.nodes.0.devices.0.memory_gib=1e31", "memory_gib"),
        ("cluster.nodes.0.devices.0.memory_gib=1e400", "memory_gib"),
        ("cluster.nodes.0.devices.0.peak_tflops.bf16=1e-300", "peak_tflops.bf16"),
        ("cluster.nodes.0.devices.0.count=1000000", "count"),
        ("cluster.nodes.0.count=1000000", "count"),
        ("cluster.nodes.0.link={name='x',latency_us=0.0,bandwidth_gb_per_s=1.0,efficiency=1e-320}", "efficiency"),
        (f"workload.global_batch={'9' * 5000}", "workload.global_batch"),
    ],
)
def test_sizes_that_overflow_are_refused(setting: str, named: str) -> None:
    assert named in refused("simulate", SMALL, "-p", "uniform", "--set", setting)


def test_the_largest_sizes_that_are_taken_do_not_overflow() -> None:
    most = {
        "workload.sequence_length": 2**53,
        "cluster.nodes.0.devices.0.memory_gib": 1e30,
        "cluster.nodes.0.devices.1.memory_gib": 1e30,
        "cluster.nodes.0.devices.0.slowdown": 1e30,
        "cluster.nodes.0.devices.0.max_w": 1e30,
        "cluster.nodes.0.devices.0.price_usd_per_hour": 1e30,
        "cluster.nodes.0.devices.0.peak_tflops.bf16": 1e-30,
        "cluster.nodes.0.link": '{name="x",latency_us=1e30,bandwidth_gb_per_s=1e-30,efficiency=1e-30}',
        "energy.carbon_kg_per_kwh": 1e30,
    }
    settings = [word for key, value in most.items() for word in ("--set", f"{key}={value}")]
    for policy in ("uniform", "grid(data=1, pipeline=2, micro_batch=4)"):
        assert runs_of("-p", policy, *settings)[0]["summary"]["step_time_s"]["p50"] > 1e30


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped catalog and scenarios, which the commands read in its place."""
    copy = tmp_path / "data"
    with resources.as_file(resources.files("steelyard.sim")) as shipped:
        for folder in ("catalog", "scenarios"):
            shutil.copytree(Path(str(shipped)) / folder, copy / folder)
    monkeypatch.setattr(spec, "_data", lambda name: copy / name)
    return copy / "catalog"


@pytest.mark.parametrize(("folder", "entry"), [("devices", "nvidia-rtx-4090"), ("links", "pcie-4")])
def test_a_catalog_entry_without_a_source_is_refused(folder: str, entry: str, catalog: Path) -> None:
    file = catalog / folder / f"{entry}.toml"
    file.write_text(file.read_text().partition("[source]")[0])
    line = refused("check", SMALL)
    assert f"{entry}: source" in line
    assert "has none" in line


def test_a_catalog_model_without_a_source_is_refused(catalog: Path) -> None:
    file = catalog / "models" / "gpt2-medium.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "source": ""}))
    assert "catalog model gpt2-medium: source: is missing" in refused("check", SMALL)
