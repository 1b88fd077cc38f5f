"""The command line: exit codes, one document on stdout, one line per mistake, and nothing written by what failed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from steelyard.policies import DEFAULTS, make_policy
from steelyard.results.store import read_run
from steelyard.runner.cli import run
from steelyard.sim.plan import Plan
from steelyard.sim.spec import MAX_INPUT_BYTES, load_scenario, simulated_names
from steelyard.sim.view import View

SHIPPED = "mixed-gpus"
QUICK = ["--set", "sampling.launches=2", "--set", "sampling.steps=3", "--set", "sampling.search_launches=1"]
HEAVY = ("torch", "transformers", "optuna", "pandas", "matplotlib", "scipy", "sklearn", "simpy")


class Answer(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """The one document on stdout; anything beside it is an error of the parser."""
        return json.loads(self.out)


Call = Callable[..., Answer]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the current folder: each test has its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call() -> Call:
    return invoke


def invoke(*words: str) -> Answer:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two simulated runs; tests that change one make it anew."""
    runs = tmp_path_factory.mktemp("simulated") / "runs"
    assert invoke("simulate", SHIPPED, "-p", "uniform,makespan", *QUICK, "--runs", str(runs)).code == 0
    return runs


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with what it holds."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(answer: Answer) -> str:
    """The one line of a command that was given bad input."""
    assert answer.code == 2, answer
    assert answer.out == ""
    lines = answer.err.strip().splitlines()
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("steelyard: ")
    assert "Traceback" not in answer.err
    return lines[0]


# ---- every verb on what is shipped ----


@pytest.mark.parametrize("name", simulated_names())
def test_check_accepts_what_is_shipped(name: str, call: Call) -> None:
    answer = call("check", name, "--json")
    assert answer.code == 0
    assert answer.document()["name"] == name
    assert answer.document()["parameters"] > 0
    assert answer.err  # the table


def test_check_judges_a_plan(tmp_path: Path, call: Call) -> None:
    scenario = load_scenario(SHIPPED)
    plan = make_policy("uniform").allocate(View.of(scenario)).document()
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    assert call("check", SHIPPED, "--plan", str(file), "--json").document()["plan_valid"] is True
    plan["pipelines"][0]["micro_batches"] = [1]  # type: ignore[index]  # a document of plain JSON
    file.write_text(json.dumps(plan))
    assert "batch" in refused(call("check", SHIPPED, "--plan", str(file)))


def test_schema_is_json_schema_and_accepts_the_resolved_scenario(call: Call) -> None:
    answer = call("check", "--schema")
    schema = answer.document()
    assert answer.code == 0
    assert {"cluster", "workload"} <= set(schema["required"])
    assert schema["additionalProperties"] is False
    resolved = load_scenario(SHIPPED).model_dump(mode="json")
    assert set(schema["required"]) <= set(resolved) <= set(schema["properties"])
    for reference in re.findall(r'"\$ref": "#/\$defs/([^"]+)"', answer.out):
        assert reference in schema["$defs"]


def test_simulate_writes_a_run_per_policy(tmp_path: Path, call: Call) -> None:
    answer = call("simulate", SHIPPED, *QUICK, "--json")
    assert answer.code == 0
    runs = answer.document()["runs"]
    assert {each["label"] for each in runs} == set(DEFAULTS)
    for each in runs:
        stored = read_run(tmp_path / each["folder"])
        assert stored.manifest.run_id == each["run_id"]
        assert stored.summary.model_dump(mode="json") == each["summary"]
        assert sum(line.samples for line in stored.summary.devices.values()) == 256
    assert "uniform" in answer.err


def test_simulate_is_repeatable_and_the_seed_counts(call: Call) -> None:
    words = ["simulate", SHIPPED, "-p", "makespan", *QUICK, "--json"]
    first, again, other = call(*words), call(*words), call(*words, "--seed", "5")
    assert first.out == again.out
    (a,), (b,) = first.document()["runs"], other.document()["runs"]
    assert a["run_id"] != b["run_id"]
    assert a["plan"] == b["plan"]


def test_without_json_the_table_is_on_stdout_and_stderr_is_empty(call: Call) -> None:
    answer = call("simulate", SHIPPED, "-p", "uniform", *QUICK)
    assert "uniform" in answer.out
    assert answer.err == ""


def test_search_finds_and_writes_a_policy_that_simulate_takes(tmp_path: Path, call: Call) -> None:
    answer = call("search", SHIPPED, "--trials", "16", "--workers", "0", *QUICK, "--json")
    assert answer.code == 0
    found = answer.document()
    assert found["search_trials"] == len(found["trials"]) == 16
    assert found["search_trials_per_s"] > 0
    assert found["best"]["value"] == max(each["value"] for each in found["trials"] if each["value"] is not None)
    assert (tmp_path / "best.toml").is_file()
    taken = call("simulate", SHIPPED, "-p", "best.toml", *QUICK, "--json").document()["runs"]
    assert taken[0]["label"].startswith(found["best"]["policy"])


def test_whatif_sweeps_the_full_grid(call: Call) -> None:
    vary = ["--vary", "workload.global_batch=64,128", "--vary", "seed=1,2"]
    answer = call("whatif", SHIPPED, *vary, "-p", "uniform,makespan", *QUICK, "--json")
    assert answer.code == 0
    document = answer.document()
    assert len(document["points"]) == 4
    assert {each["settings"]["workload.global_batch"] for each in document["points"]} == {64, 128}
    assert all(each["throughput_samples_per_s"] > 0 for each in document["points"])
    assert document["recommendation"]


def test_gate_passes_fails_and_is_inconclusive(simulated: Path, tmp_path: Path, call: Call) -> None:
    baseline = tmp_path / "baseline.json"
    words = ["gate", str(simulated), "--baseline", str(baseline), "--json"]
    missing = call(*words)
    assert missing.code == 4
    assert missing.document()["verdict"] == "inconclusive"
    assert not baseline.exists()
    assert call(*words, "--update-baseline").code == 0
    assert call(*words).code == 0
    slower = json.loads(baseline.read_text())
    for entry in slower["runs"].values():
        entry["figures"]["throughput_samples_per_s"] *= 1.5
    baseline.write_text(json.dumps(slower))
    before = baseline.read_bytes()
    failed = call(*words)
    assert failed.code == 3
    assert failed.document()["exit_code"] == 3
    assert baseline.read_bytes() == before


def test_show_and_report_read_what_was_simulated(simulated: Path, tmp_path: Path, call: Call) -> None:
    shown = call("show", str(simulated), "--json")
    assert {each["manifest"]["label"] for each in shown.document()} == {"uniform", "makespan"}
    assert "ms of the mean step" in shown.err
    answer = call("report", str(simulated), "--out", str(tmp_path / "report"), "--json")
    assert answer.code == 0
    page = Path(answer.document()["report"]).read_text()
    assert "makespan" in page
    assert not re.search(r'(src|href)="https?:', page)  # works offline


def test_compare_is_inconclusive_where_nothing_was_measured(simulated: Path, call: Call) -> None:
    answer = call("compare", str(simulated), "--json")
    assert answer.code == 4
    assert answer.out == ""
    (line,) = answer.err.strip().splitlines()
    assert "measured" in line


@pytest.mark.parametrize("what", ["policies", "scenarios", "devices", "links", "models"])
def test_list_describes_every_entry(what: str, call: Call) -> None:
    answer = call("list", what, "--json")
    assert answer.code == 0
    entries = answer.document()
    assert entries
    assert len({each["name"] for each in entries}) == len(entries)
    for each in entries:
        assert {"name", "summary", "source", "parameters"} <= set(each)
        assert each["name"]
        assert "\n" not in each["summary"]
        assert len(re.findall(r"[.!?](?:\s|$)", each["summary"])) <= 1, each["summary"]
        assert each["summary"].strip()
        assert each["source"].strip(), each["name"]


def test_listed_policies_can_be_made_from_their_parameters(call: Call) -> None:
    for each in call("list", "policies", "--json").document():
        defaults = {parameter["name"]: parameter["default"] for parameter in each["parameters"]}
        assert make_policy(each["name"], defaults) == make_policy(each["name"])


def test_list_runs_names_a_damaged_one(simulated: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "manifest.json").write_text("{")
    (entry,) = call("list", "runs", "--json").document()
    assert "cannot be read" in entry["summary"]
    assert len(call("list", "runs", "--runs", str(simulated), "--json").document()) == 2


# ---- init ----


def test_init_writes_a_scenario_that_checks_and_never_overwrites(tmp_path: Path, call: Call) -> None:
    assert call("init", "mine.toml").code == 0
    assert call("check", "mine.toml").code == 0
    before = content(tmp_path)
    assert "mine.toml" in refused(call("init", "mine.toml"))
    assert content(tmp_path) == before


def test_init_with_a_model_writes_both_or_neither(tmp_path: Path, call: Call) -> None:
    from transformers import BertConfig

    own = tmp_path / "config"
    own.mkdir()
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (own / "small.json").write_text(json.dumps({**BertConfig(**config).to_dict(), "model_type": "bert"}))
    (tmp_path / "small.json").write_text("{}")
    before = content(tmp_path)
    assert "small.json" in refused(call("init", "mine.toml", "--model", "config/small.json"))
    assert content(tmp_path) == before
    (tmp_path / "small.json").unlink()
    assert call("init", "mine.toml", "--model", "config/small.json").code == 0
    assert call("check", "mine.toml", "--json").document()["parameters"] > 0


# ---- bad input: one line, exit code 2, nothing written ----


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["simulate", "no-such"], "no-such"),
        (["simulate", "mixed-gpu"], "mixed-gpus"),
        (["simulate", SHIPPED, "-p", "unifrom"], "uniform"),
        (["simulate", SHIPPED, "-p", "throughput:gamma=9"], "gamma"),
        (["simulate", SHIPPED, "-p", "throughput:gama=1"], "gamma"),
        (["simulate", SHIPPED, "-p", "no_such_module:Mine"], "no_such_module"),
        (["simulate", SHIPPED, "-p", "absent.toml"], "absent.toml"),
        (["simulate", SHIPPED, "--seed", "-1"], "seed"),
        (["simulate", SHIPPED, "--set", "workload.global_batch"], "--set"),
        (["simulate", SHIPPED, "--set", "=1"], "--set"),
        (["simulate", SHIPPED, "--set", "workload..batch=1"], "--set"),
        (["simulate", SHIPPED, "--set", "workload.global_batch=0"], "workload.global_batch"),
        (["simulate", SHIPPED, "--set", "workload.global_batch=2.5"], "workload.global_batch"),
        (["simulate", SHIPPED, "--set", "workload.globl_batch=8"], "global_batch"),
        (["simulate", SHIPPED, "--set", "cluster.nodes.7.name=x"], "--set"),
        (["simulate", SHIPPED, "--set", "cluster.nodes.0.devices.0.memory_gib=nan"], "memory_gib"),
        (["simulate", SHIPPED, "--set", "cluster.nodes.0.devices.0.memory_gib=-1"], "memory_gib"),
        (["simulate", SHIPPED, "--set", "workload.model=../model.json"], "workload.model"),
        (["simulate", "demo"], "steelyard calibrate"),
        (["check", "demo", "--set", "cluster.colour=red"], "cluster.colour"),
        (["check", "demo", "--set", "cluster.colour=red"], "known here: calibration, hosts, lanes"),
        (["check", "demo", "--set", "cluster.calibratoin=x.toml"], "did you mean calibration?"),
        (["check", SHIPPED, "--set", "cluster.lanes=auto"], "cluster.network: unknown key"),
        (["simulate", SHIPPED, "--set", "workload.global_batch=1"], "1 samples cannot give every one of 2 devices"),
        (["simulate", SHIPPED, "-p", "makespan,uniform", "--set", "workload.global_batch=1"], "cannot give every one"),
        (["search", SHIPPED, "-p", "throughput:gamma=1"], "give throughput"),
        (["search", SHIPPED, "-p", "best.toml"], "best.toml"),
        (["train", "demo"], "steelyard calibrate"),
        (["replay", SHIPPED], "lane"),
        (["replay", SHIPPED, "--plan", "absent.json"], "absent.json"),
        (["replay", "small", "--suite", "--plan", "absent.json"], "--suite"),
        (["replay", "demo", "--budget", "soon"], "--budget"),
        (["replay", "demo", "--budget", "-5s"], "--budget"),
        (["calibrate", SHIPPED], "cluster.lanes"),
        (["calibrate", "demo", "--set", "calibration.launches=0"], "calibration.launches"),
        (["calibrate", "demo", "--set", "workload.global_batch=-3"], "workload.global_batch"),
        (["devices", "--lanes", "absent.toml"], "absent.toml"),
        (["search", SHIPPED, "--trials", "0"], "trials"),
        (["search", SHIPPED, "--sampler", "magic"], "sampler"),
        (["whatif", SHIPPED, "--vary", "workload.global_batch"], "vary"),
        (["whatif", SHIPPED], "vary"),
        (["compare", "absent"], "absent"),
        (["show", "absent"], "absent"),
        (["report", "absent"], "absent"),
        (["gate", "absent", "--baseline", "b.json"], "absent"),
        (["list", "wishes"], "wishes"),
        (["init", "x.toml", "--from", "absent"], "absent"),
        (["check"], "SCENARIO"),
        (["fly"], "fly"),
        (["simulate", SHIPPED, "--fly"], "--fly"),
        (["show"], "RUN"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(words: list[str], named: str, tmp_path: Path, call: Call) -> None:
    assert named.lower() in refused(call(*words)).lower()
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", SHIPPED, "-p", "uniform", "--runs", "taken"],
        ["simulate", SHIPPED, "-p", "uniform", "--runs", "taken/runs"],
        ["search", SHIPPED, "--trials", "8", "--runs", "taken", *QUICK],
        ["search", SHIPPED, "--trials", "8", "-o", "taken/best.toml", "--storage", "sqlite://", *QUICK],
        ["init", "taken/x.toml"],
        ["list", "runs", "--runs", "taken"],
    ],
)
def test_a_place_that_cannot_be_written_is_named(words: list[str], tmp_path: Path, call: Call) -> None:
    (tmp_path / "taken").write_text("a file, and no folder")
    assert "taken" in refused(call(*words))
    assert content(tmp_path) == {"taken": b"a file, and no folder"}


def test_a_file_of_100_mb_is_refused_before_it_is_read(tmp_path: Path, call: Call) -> None:
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(100 * 10**6)
    assert MAX_INPUT_BYTES < 100 * 10**6
    for words in (
        ["check", "huge.toml"],
        ["simulate", SHIPPED, "-p", "huge.toml"],
        ["devices", "--lanes", "huge.toml"],
    ):
        line = refused(call(*words))
        assert "huge.toml" in line
        assert "100 MB" in line
    assert [file.name for file in tmp_path.iterdir()] == ["huge.toml"]


@pytest.mark.no_cover
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.binary(max_size=60))
@example("name = 1")
@example("[[[[")
@example(b"\xff\xfe")
@example("a = 1e999")
@example("cluster = {nodes = [{devices = [{}]}]}")
def test_junk_in_a_scenario_file_is_one_line(tmp_path: Path, junk: str | bytes) -> None:
    file = tmp_path / "junk.toml"
    file.write_bytes(junk if isinstance(junk, bytes) else junk.encode("utf-8", "surrogatepass"))
    refused(invoke("check", "junk.toml"))


@pytest.mark.no_cover
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
@example("a.b.c")
@example("cluster.nodes.-1.name=x")
@example("cluster.nodes.0=[")
@example("name=[[[[")
@example("summary=\x1b[2J")
def test_junk_in_a_setting_is_one_line_or_valid(junk: str) -> None:
    answer = invoke("check", SHIPPED, f"--set={junk}", "--json")
    if answer.code == 0:
        assert answer.document()["name"]
    else:
        refused(answer)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "summary.json", "events.parquet", "decisions.jsonl"])
@pytest.mark.parametrize("harm", ["missing", "cut", "junk"])
def test_a_corrupt_run_folder_is_refused(name: str, harm: str, simulated: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "runs" / "copy"
    shutil.copytree(next(simulated.iterdir()), folder)
    file = folder / name
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        if not (data := file.read_bytes()):
            pytest.skip("the file is empty")
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(b"\x00\xff junk")
    before = content(tmp_path)
    for verb in ("show", "report", "compare"):
        refused(call(verb, str(folder)))
    refused(call("gate", str(folder), "--baseline", "b.json"))
    assert content(tmp_path) == before


# ---- a policy of the user's own, and Ctrl-C ----


def test_a_policy_beside_the_command_needs_no_change_here(tmp_path: Path, call: Call) -> None:
    (tmp_path / "own_policy.py").write_text(
        "from dataclasses import dataclass\n"
        "from steelyard.sim.plan import Plan\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class OnlyFirst:\n"
        '    """Everything on the first device."""\n'
        "    def allocate(self, view):\n"
        "        first = view.devices[0].name\n"
        "        return Plan.data_parallel(view.workload, {first: view.workload.global_batch})\n"
    )
    (own,) = call("simulate", SHIPPED, "-p", "own_policy:OnlyFirst", *QUICK, "--json").document()["runs"]
    assert own["label"] == "own_policy:OnlyFirst"
    assert Plan.parse(own["plan"]).split() == {"a100": 256}


def test_a_policy_that_returns_no_plan_is_named_and_nothing_is_written(tmp_path: Path, call: Call) -> None:
    source = "class Loose:\n    def allocate(self, view):\n        return {'a100': 256}\n"
    (tmp_path / "loose_policy.py").write_text(source)
    line = refused(call("simulate", SHIPPED, "-p", "makespan,loose_policy:Loose", *QUICK))
    assert "loose_policy:Loose" in line
    assert "dict" in line
    assert not (tmp_path / "runs").exists()


def test_sigterm_ends_with_130_and_leaves_no_temporary_folder(tmp_path: Path) -> None:
    """The real command: ended while a run folder is being written."""
    (tmp_path / "terminated_policy.py").write_text(
        "import os, signal\n"
        "from steelyard.policies.makespan import Makespan\n"
        "class Late(Makespan):\n"
        "    name = 'late'\n"
        "    def allocate(self, view):\n"
        "        from steelyard.results import store\n"
        "        writes = store.to_json\n"
        "        def to_json(value):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "            return writes(value)\n"
        "        store.to_json = to_json\n"
        "        return super().allocate(view)\n"
    )
    command = Path(sys.executable).with_name("steelyard")
    words = [command, "simulate", SHIPPED, "-p", "terminated_policy:Late", *QUICK]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_another_policy_or_sampler_is_another_study(tmp_path: Path, call: Call) -> None:
    words = ["search", SHIPPED, "--trials", "3", "--workers", "0", *QUICK]
    for more in (["-p", "makespan"], ["-p", "throughput"], ["-p", "throughput", "--sampler", "random"]):
        assert call(*words, *more).code == 0
    assert call(*words, "-p", "throughput").code == 0  # the same search again: the same file
    assert len(list((tmp_path / "runs" / "studies").glob("*.journal"))) == 3


def test_ctrl_c_ends_with_130_and_keeps_what_is_complete(tmp_path: Path, call: Call) -> None:
    (tmp_path / "interrupting_policy.py").write_text(
        "import os, signal\n"
        "class Late:\n"
        "    def allocate(self, view):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        raise AssertionError('the signal was ignored')\n"
    )
    answer = call("simulate", SHIPPED, "-p", "uniform,interrupting_policy:Late", *QUICK)
    assert answer.code == 130
    assert answer.out == ""
    assert len(answer.err.strip().splitlines()) == 1
    (kept,) = (tmp_path / "runs").iterdir()
    assert read_run(kept).manifest.label == "uniform"


def when_written(folder: Path, process: subprocess.Popen[str]) -> Path:
    """The journal in a folder, once it holds some trials."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        journal = next(folder.glob("*.journal"), None)
        if journal is not None and journal.stat().st_size > 20_000:
            return journal
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate(timeout=30))


def test_interrupted_search_leaves_no_process_and_resumes(tmp_path: Path) -> None:
    """The real command, the real signal; the same command again ends as if nothing had been."""
    words = [sys.executable, "-m", "steelyard.runner.cli", "search", SHIPPED, "--trials", "100000", "--workers", "1"]
    process = subprocess.Popen([*words, *QUICK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = when_written(tmp_path / "runs" / "studies", process)
    own = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    _, children = psutil.wait_procs(own, timeout=10)
    assert process.returncode == 130, err
    assert not children
    assert "Traceback" not in err
    assert not (tmp_path / "best.toml").exists()
    done = journal.stat().st_size
    answer = invoke("search", SHIPPED, "--trials", "48", "--workers", "0", *QUICK, "--json")
    assert answer.code == 0
    assert answer.document()["search_trials"] >= 48
    assert list(journal.parent.glob("*.journal")) == [journal]
    assert journal.stat().st_size >= done


# ---- the road over real lanes ----


@pytest.fixture
def folder(calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose lanes are calibrated, as the current one."""
    monkeypatch.chdir(calibrated)
    return calibrated


@pytest.mark.slow
def test_from_calibration_to_report(folder: Path, call: Call) -> None:
    reused = call("calibrate", "tiny.toml", "--json").document()
    assert reused["reused"]
    assert call("search", "tiny.toml", "--trials", "16", "--workers", "0", *QUICK).code == 0
    replayed = call("replay", "tiny.toml", "-p", "uniform,flops,best.toml", "--json")
    assert replayed.code == 0
    document = replayed.document()
    assert document["fidelity"] == "profiled"
    assert document["launches"] == 2
    assert document["noise_floor_percent"] is not None
    assert "sha256" in replayed.err  # written before the first launch, and said so
    assert replayed.err.index("sha256") < replayed.err.index("launch 1 of 2")
    study = document["folder"]
    for key in ("mape_percent", "worst_error_percent", "kendall_tau", "regret_percent", "plans"):
        assert call("compare", study, "--json").document()[key] == document[key]
    assert call("report", study, "--json").document()["report"] == str(Path(study) / "report.html")
    assert len(call("show", study, "--json").document()) == 2 * len(document["plans"]) - 1  # the twin has no second
    baseline = ["gate", study, "--baseline", "baseline.json", "--json"]
    assert call(*baseline).code == 4
    assert call(*baseline, "--update-baseline").code == 0
    assert call(*baseline).code in (0, 4)  # the same figures; inconclusive where the host was busy
    assert any(study in entry["name"] for entry in call("list", "runs", "--json").document())


@pytest.mark.slow
def test_tables_of_another_machine_take_force_and_the_run_says_so(folder: Path, call: Call) -> None:
    (tables,) = (folder / "runs" / "calibrations").glob("*.toml")
    text, count = re.subn(r"(?m)^cpu = .*$", 'cpu = "Another Processor"', tables.read_text())
    assert count == 1
    tables.write_text(text)
    before = content(folder)
    for verb in ("simulate", "search", "replay", "train", "calibrate"):
        line = refused_with_remarks(call(verb, "tiny.toml"))
        assert "Another Processor" in line
        assert "--force" in line
    assert content(folder) == before
    searched = call("search", "tiny.toml", "-p", "makespan", "--trials", "2", "--workers", "0", "--force", *QUICK)
    assert "Another Processor" in searched.err
    forced = call("simulate", "tiny.toml", "-p", "uniform", "--force", *QUICK, "--json")
    assert forced.code == 0
    assert "Another Processor" in forced.err
    (made,) = forced.document()["runs"]
    assert any("Another Processor" in note for note in read_run(folder / made["folder"]).manifest.notes)


def refused_with_remarks(answer: Answer) -> str:
    """The last line of a command that had said what it was doing before it found the mistake."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    return answer.err.strip().splitlines()[-1]


@pytest.mark.slow
def test_devices_lists_what_was_measured(call: Call) -> None:
    answer = call("devices", "--json")
    assert answer.code == 0
    document = answer.document()
    offered = {each["name"] for each in document["lanes"] if each["offered"]}
    assert set(document["default_cluster"]) <= offered
    assert len(document["default_cluster"]) >= 2
    for each in document["lanes"]:
        assert {"name", "summary", "source", "parameters", "reason", "ratio_to_full"} <= set(each)
        assert each["product_gflop_per_s"] > 0
    can = {each["name"]: each for each in document["capabilities"]}
    assert set(can) == {
        *("affinity", "instruction_caps", "cpu_quota", "memory_limit"),
        *("namespaces", "link_rate", "link_latency", "cuda"),
    }
    assert all(each["reason"] for each in can.values()), "what is not to be had says why"


# ---- what is imported ----


@pytest.mark.parametrize(
    "words",
    [["--help"], ["simulate", "--help"], *(["list", what, "--json"] for what in ("policies", "scenarios", "devices"))],
)
def test_quick_verbs_import_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from steelyard.runner.cli import run\n"
        "code = run(sys.argv[2:])\n"
        "found = [name for name in sys.argv[1].split(',') if name in sys.modules]\n"
        "sys.exit(f'imported: {found}' if found else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(HEAVY), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "--json" in words:
        assert json.loads(done.stdout)


def test_heavy_imports_would_be_seen() -> None:
    """The test above can fail: a simulation imports what listing must not."""
    program = "import sys; from steelyard.runner.cli import run; run(sys.argv[1:]); sys.exit('simpy' in sys.modules)"
    words = [sys.executable, "-c", program, "simulate", SHIPPED, "-p", "uniform", *QUICK]
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 1


def test_the_installed_command_ends_with_the_code(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("steelyard")
    done = subprocess.run([command, "check", "absent"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("steelyard: absent")


def test_without_torch_the_simulator_works_and_lanes_say_what_to_install(tmp_path: Path) -> None:
    """A bare install: the runner extra is hidden from the process."""
    program = (
        "import sys, importlib.util as util\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in hidden:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "real, hidden = util.find_spec, ('torch', 'transformers')\n"
        "util.find_spec = lambda name, package=None: None if name in hidden else real(name, package)\n"
        "from steelyard.runner.cli import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    for words, code, said in (
        (["simulate", SHIPPED, "-p", "makespan", *QUICK], 0, ""),
        (["devices"], 2, "pip install 'steelyard[runner]'"),
        (["init", "x.toml", "--model", "bert"], 2, "pip install 'steelyard[runner]'"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        assert said in done.stderr
    assert not (tmp_path / "x.toml").exists()
