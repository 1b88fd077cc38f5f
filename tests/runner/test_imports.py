"""Logs that training left behind become measured runs: real ones, made here, and the ways in which they can be bad."""

from __future__ import annotations

import gzip
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import policy_from_text
from steelyard.results.compare import compare
from steelyard.results.errors import InputError
from steelyard.results.gate import gate
from steelyard.results.ledger import step_times
from steelyard.results.store import find_runs, read_run, write_run
from steelyard.runner.cli import run
from steelyard.runner.imports.logs import Expected, Launch, read_csv, read_megatron
from steelyard.runner.imports.runs import AFTER, UNDIVIDED, Imported, import_runs, read_logs
from steelyard.runner.imports.traces import read_trace, union, without
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed, View, allocate, describe

BATCH = 32
EXPECTED = Expected(global_batch=BATCH)
SECONDS = st.floats(1e-6, 1e4)


def train(steps: int) -> list[float]:
    """Real step times of a real, small training, in seconds."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    samples, times = torch.randn(BATCH, 64), []
    for _ in range(steps):
        begin = time.perf_counter()
        model(samples).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
    return times


def megatron_lines(times: Sequence[float], every: int = 1, first: int = 0) -> str:
    """What Megatron-LM prints of some times per iteration: see the source named in ``logs.ELAPSED``."""
    lines = ["using world size: 2, data-parallel size: 2", "training ..."]
    for index, seconds in enumerate(times, 1):
        iteration = first + index * every
        lines.append(
            f" [2026-11-27 17:00:{index % 60:02d}] iteration {iteration:8d}/{1000:8d} |"
            f" consumed samples: {iteration * BATCH:12d} |"
            f" elapsed time per iteration (ms): {1e3 * seconds:.1f} |"
            f" throughput per GPU (TFLOP/s/GPU): {123.4:.1f} | learning rate: {1e-4:.6E} |"
            f" global batch size: {BATCH:5d} | lm loss: {7.5:.6E} | loss scale: {1.0:.1f} |"
            f" number of skipped iterations: {0:3d} | number of nan iterations: {0:3d} |"
        )
    return "\n".join(lines) + "\n"


def imported(scenario: Scenario, files: Sequence[Path], runs: Path, **more: Any) -> Imported:
    policy = policy_from_text("makespan")
    plan = allocate(policy, View.of(scenario), scenario)
    named = {"policy": describe(policy), "label": "makespan", **more}
    return import_runs(files, scenario, plan, runs, **named)


def seconds_of(launches: Sequence[Launch]) -> list[list[float]]:
    return [[step.seconds for step in launch.steps] for launch in launches]


# ---- what is read ----


@given(st.lists(st.lists(SECONDS, min_size=1, max_size=5), min_size=1, max_size=4), st.sampled_from(("s", "ms", "us")))
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, times: list[list[float]], unit: str) -> None:
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    rows = [f"{n},{i},{scale * each!r}" for n, launch in enumerate(times) for i, each in enumerate(launch)]
    path = tmp_path_factory.mktemp("csv") / "steps.csv"
    path.write_text("\n".join([f"launch,step,step_time_{unit}", *rows]) + "\n")
    for found, wanted in zip(seconds_of(read_csv(path, EXPECTED)), times, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.sampled_from((1, 10)))
def test_megatron_round_trip(tmp_path_factory: pytest.TempPathFactory, tenths: list[int], every: int) -> None:
    """To the tenth of a millisecond that the log has; a second start of the training is a second launch."""
    path = tmp_path_factory.mktemp("log") / "train.log"
    times = [each * 1e-4 for each in tenths]
    path.write_text(megatron_lines(times, every) + megatron_lines(times[:2], every))
    first, second = read_megatron(path, EXPECTED)
    assert [step.seconds for step in first.steps] == pytest.approx(times)
    assert [step.seconds for step in second.steps] == pytest.approx(times[:2])
    averaged = any("mean of 10 iterations" in note for note in first.notes)
    assert averaged == (every == 10 and len(times) > 1)


GENUINE = {
    # Megatron-LM with time stamps and throughput: NVIDIA/Megatron-LM, issue 756.
    "stamped": (
        " [2024-04-06 02:59:3{0}] iteration       4{0}/     100 | consumed samples:         55{0}4 |"
        " elapsed time per iteration (ms): {1} | throughput per GPU (TFLOP/s/GPU): 239.8 |"
        " learning rate: 8.600000E-06 | global batch size:   128 | lm loss: 1.500000E+00 |"
        " load_balancing_loss: 1.000000E+00 | loss scale: 1.0 | grad norm: 1.000 | num zeros: 0.0 |"
        " number of skipped iterations:   0 | number of nan iterations:   0 |",
        128,
        (5444.9, 5533.8, 5718.6),
    ),
    # An older one, without: epfLLM/Megatron-LLM, issue 11.
    "older": (
        " iteration      12{0}/  250000 | consumed samples:       12{0}976 |"
        " elapsed time per iteration (ms): {1} | learning rate: 9.300E-06 | global batch size:  1024 |"
        " lm loss: 2.500000E+00 | loss scale: 1.0 | grad norm: 0.200 |"
        " number of skipped iterations:   0 | number of nan iterations:   0 |",
        1024,
        (86545.2, 87871.6, 89474.8, 89075.2, 89692.9),
    ),
}
"""Lines as trainings of others left them: fields, their order, widths and the times per iteration are theirs."""


@pytest.mark.parametrize(("line", "batch", "times"), GENUINE.values(), ids=GENUINE)
def test_lines_of_logs_of_others_are_read(tmp_path: Path, line: str, batch: int, times: tuple[float, ...]) -> None:
    lines = [line.format(number, elapsed) for number, elapsed in enumerate(times, 2)]
    noise = ["[Rank 0] (after 2 iterations) memory (MB) | allocated: 1.0", "time (ms) | forward-compute: 10.0 |"]
    log = tmp_path / "train.log"
    log.write_text("\n".join([lines[0], *noise, *lines[1:]]) + "\n")
    (launch,) = read_megatron(log, Expected(global_batch=batch))
    assert [step.seconds for step in launch.steps] == pytest.approx([1e-3 * each for each in times])
    assert launch.notes == ()
    with pytest.raises(InputError, match=f"global batch size is {batch}"):
        read_megatron(log, Expected(global_batch=batch + 1))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "step,seconds\n1,2\n", "line 1: has no column with the step time"),
        ("a.csv", "step_time_s,step_time_ms\n1,2\n", "line 1: has 2 columns with the step time"),
        ("a.csv", "step_time_ms,loss\n1,2\n", "line 1: 'loss' is no column"),
        ("a.csv", "step,step,step_time_s\n1,1,2\n", "line 1: names a column twice"),
        ("a.csv", "step_time_ms\n1.5\n-3\n", "line 3: step_time_ms is '-3' (a number above 0)"),
        ("a.csv", "step_time_ms\n1.5\nnan\n", "line 3: step_time_ms is 'nan'"),
        ("a.csv", "step_time_ms\n1.5\n\n2,3\n", "line 4: has 2 values, the header 1"),
        ("a.csv", "step,step_time_ms\n4,1.5\n4,1.5\n", "line 3: step 4 follows step 4"),
        ("a.csv", "step,step_time_ms\nx,1.5\n", "line 2: step is 'x'"),
        ("a.csv", 'step_time_ms\n"1', "is not CSV"),
        ("a.csv", "step_time_ms\n", "has no step"),
        ("a.log", "nothing\n", "has no line with 'elapsed time per iteration (ms):'"),
        ("a.log", "x\n elapsed time per iteration (ms): 3.0 |\n", "line 2: has a time and no iteration"),
        (
            "a.log",
            " iteration 1/ 9 | elapsed time per iteration (ms): x | global batch size: 32 |",
            "line 1: elapsed time per iteration (ms) is 'x'",
        ),
        (
            "a.log",
            " iteration 1/ 9 | elapsed time per iteration (ms): 3.0 | global batch size: 64 |",
            "line 1: global batch size is 64, the scenario's 32",
        ),
        ("a.json", "{", "is no trace"),
        ("a.json", "[]", "has no list traceEvents"),
        ("a.json", '{"traceEvents": []}', "has no ProfilerStep# event"),
        (
            "a.json",
            '{"traceEvents": [{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "ts": "x", "dur": 1}]}',
            "has ts 'x' and dur 1",
        ),
        ("a.json.gz", "no gzip", "is no trace"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(
    scenario: Scenario, tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        imported(scenario, [path], tmp_path / "runs")
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "runs").exists()


# ---- what becomes of it ----


def test_real_step_times_by_csv_and_by_log_are_the_same_run(scenario: Scenario, tmp_path: Path) -> None:
    launches = [train(8), train(8)]
    files = []
    for number, times in enumerate(launches):
        table, log = tmp_path / f"{number}.csv", tmp_path / f"{number}.log"
        table.write_text("step_time_s\n" + "".join(f"{each!r}\n" for each in times))
        log.write_text(megatron_lines([1000 * each for each in times]))  # the log has a tenth of a millisecond
        files.append((table, log))
    by_table = imported(scenario, [table for table, _ in files], tmp_path / "a", warmup=2)
    by_log = imported(scenario, [log for _, log in files], tmp_path / "b", warmup=2)
    measured = by_table.measured
    found = step_times(measured.events)
    for number, times in enumerate(launches):
        assert found[number] == pytest.approx(times[2:])
    assert measured.summary.step_time_s.p50 == pytest.approx(
        statistics.median([t for own in launches for t in own[2:]])
    )
    slow = by_log.measured.summary.step_time_s
    assert slow.p50 / 1000 == pytest.approx(measured.summary.step_time_s.p50, abs=1e-7)
    for line in measured.summary.devices.values():
        assert line.total_s() == pytest.approx(measured.summary.step_time_s.mean)
    sha = hashlib.sha256(files[0][0].read_bytes()).hexdigest()
    assert measured.manifest.provenance["imported"][0] == f"imported from 0.csv sha256 {sha}"
    assert {AFTER, UNDIVIDED, "the first 2 steps of each launch are left out as warm-up"} <= {*measured.manifest.notes}
    assert measured.summary.energy_j_per_step is None


def test_compare_and_gate_take_it(scenario: Scenario, tmp_path: Path) -> None:
    def once(name: str, factor: float) -> Imported:
        files = []
        for number in range(4):
            path = tmp_path / f"{name}-{number}.csv"
            path.write_text("step_time_ms\n" + "".join(f"{factor * (20 + number / 10 + n / 9)}\n" for n in range(9)))
            files.append(path)
        return imported(scenario, files, tmp_path / name)

    usual, slow = once("usual", 1.0), once("slow", 1.3)
    comparison = compare([read_run(folder) for folder in find_runs([usual.folder])])
    assert comparison.plans[0].measured is not None
    assert comparison.plans[0].measured.median_s == pytest.approx(20.7e-3, rel=0.02)
    assert AFTER in comparison.notes
    baseline = tmp_path / "baseline.json"
    assert gate(usual.runs, baseline, update=True).exit_code == 0
    assert gate(usual.runs, baseline).exit_code == 0
    judged = gate(slow.runs, baseline)
    assert judged.exit_code == 3
    assert [check.metric for check in judged.checks if check.failed] == ["median step time"]


def test_a_prediction_that_was_made_before_is_kept(scenario: Scenario, tmp_path: Path) -> None:
    plan = allocate(policy_from_text("makespan"), View.of(scenario), scenario)
    before = simulate(scenario, Fixed(plan))
    folder = write_run(before, tmp_path / "before")
    path = tmp_path / "steps.csv"
    path.write_text("step_time_ms\n" + "20\n" * 6)
    found = imported(scenario, [path], tmp_path / "runs", prediction=folder)
    assert found.predicted.manifest.run_id == before.manifest.run_id == found.measured.manifest.predicted_run_id
    assert AFTER not in found.measured.manifest.notes
    assert any("given at import" in note for note in found.measured.manifest.notes)
    other = Plan.data_parallel(scenario.workload, {"fast": 16, "slow": 16})
    with pytest.raises(InputError, match="predicts another plan"):
        import_runs(
            [path], scenario, other, tmp_path / "x", policy=describe(Fixed(other)), label="x", prediction=folder
        )
    with pytest.raises(InputError, match="it was measured"):
        imported(scenario, [path], tmp_path / "x", prediction=found.folder / "01-measured")
    (tmp_path / "predictions.json").write_text(json.dumps({"sha256": "0", "predictions": []}))
    with pytest.raises(InputError, match="does not have the sha256"):
        imported(scenario, [path], tmp_path / "x", prediction=folder)


def test_too_few_steps_are_refused(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("step_time_ms\n1\n2\n3\n")
    with pytest.raises(InputError, match="has 3 steps, and the first 3 of a launch are left out"):
        imported(scenario, [path], tmp_path / "runs")
    assert imported(scenario, [path], tmp_path / "runs", warmup=0).measured.summary.steps == 3


# ---- traces ----


TRAINING = """
import sys
import torch
from torch.profiler import ProfilerActivity, profile, schedule

model, samples = torch.nn.Linear(128, 128), torch.randn(256, 128)
wanted = schedule(wait=0, warmup=1, active=int(sys.argv[2]), repeat=1)
save = lambda profiler: profiler.export_chrome_trace(sys.argv[1])
with profile(activities=[ProfilerActivity.CPU], schedule=wanted, on_trace_ready=save) as profiler:
    for _ in range(int(sys.argv[2]) + 1):
        model(samples).square().mean().backward()
        profiler.step()
"""


def profiled(path: Path, steps: int) -> None:
    """Train under torch.profiler, in a process of its own: the profiler and what the tests have loaded may crash."""
    subprocess.run([sys.executable, "-c", TRAINING, str(path), str(steps)], check=True, capture_output=True)


def test_a_real_trace(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    profiled(path, 5)
    launch = read_trace(path, EXPECTED)[0]
    marks = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"].startswith("ProfilerStep#")]
    assert sorted(step.seconds for step in launch.steps) == pytest.approx(
        sorted(1e-6 * mark["dur"] for mark in marks), abs=1e-8
    )
    assert len(launch.steps) == 5
    for step in launch.steps:
        assert step.spans
        assert all(0 <= span.start_s <= span.end_s <= step.seconds * (1 + 1e-9) for span in step.spans)
    packed = tmp_path / "trace.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert seconds_of(read_trace(packed, EXPECTED)) == seconds_of([launch])
    run = imported(scenario, [path], tmp_path / "runs", warmup=1).measured
    first = next(ledger for ledger in run.summary.devices.values() if ledger.compute_s)
    assert first.total_s() == pytest.approx(run.summary.step_time_s.mean)
    assert UNDIVIDED not in run.manifest.notes


def trace(rank: int, kernels: Sequence[tuple[str, float, float]], steps: int = 2) -> dict[str, Any]:
    """A trace of a GPU with steps of 100 us, each with the same kernels."""
    events = []
    for number in range(steps):
        at = 1000.0 + 100 * number
        events.append({"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{number}", "ts": at, "dur": 100})
        events.append({"ph": "X", "cat": "gpu_user_annotation", "name": f"ProfilerStep#{number}", "ts": at, "dur": 90})
        events += [{"ph": "X", "cat": "kernel", "name": n, "ts": at + b, "dur": e - b} for n, b, e in kernels]
    return {"traceEvents": events, "distributedInfo": {"rank": rank}}


def test_ranks_of_one_start_are_one_launch(scenario: Scenario, tmp_path: Path) -> None:
    work = [("gemm", 0, 40), ("gemm", 30, 60), ("ncclDevKernel_AllReduce", 50, 80)]
    files = []
    for start in range(2):
        for rank, kernels in enumerate((work, [("gemm", 0, 30), ("ncclDevKernel_AllReduce", 30, 80)])):
            path = tmp_path / f"{start}-{rank}.json"
            path.write_text(json.dumps(trace(rank, kernels)))
            files.append(path)
    launches = read_logs(files, scenario)
    assert [launch.source for launch in launches] == ["0-0.json + 0-1.json", "1-0.json + 1-1.json"]
    run = imported(scenario, files, tmp_path / "runs", warmup=0).measured
    ledgers = [ledger for _, ledger in sorted(run.summary.devices.items())]
    # The part of a collective that runs beside compute costs nothing: only what is exposed counts.
    assert [ledger.compute_s for ledger in ledgers] == pytest.approx([60e-6, 30e-6])
    assert [ledger.communication_s for ledger in ledgers] == pytest.approx([20e-6, 50e-6])
    assert [ledger.idle_s for ledger in ledgers] == pytest.approx([20e-6, 20e-6])
    stray = tmp_path / "stray.json"
    stray.write_text(json.dumps(trace(7, work)))
    with pytest.raises(InputError, match="is of rank 7, the plan has 2 ranks"):
        imported(scenario, [stray], tmp_path / "x", warmup=0)


@given(*[st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda p: tuple(sorted(p))), max_size=8)] * 2)
def test_intervals_are_sets_of_moments(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> None:
    def moments(intervals: Sequence[tuple[float, float]]) -> set[float]:
        return {each + 0.5 for start, end in intervals for each in range(int(start), int(end))}

    assert moments(union(some)) == moments(some)
    left = without(union(some), union(others))
    assert moments(left) == moments(some) - moments(others)
    assert sum(end - start for start, end in left) == len(moments(left))  # counted once


# ---- the command ----


def test_the_verb(make_document: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "lanes.json"
    scenario.write_text(json.dumps(make_document()))
    steps, runs = tmp_path / "steps.csv", ["--runs", str(tmp_path / "runs")]
    steps.write_text("launch,step_time_ms\n" + "a,20\n" * 5 + "b,21\n" * 5)
    assert run(["simulate", str(scenario), "-p", "makespan", "--json", *runs]) == 0
    predicted = json.loads(capsys.readouterr().out)["runs"][0]["folder"]
    assert run(["import", str(steps), "--prediction", predicted, "--json", *runs]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["summary"]["launch_median_step_time_s"] == pytest.approx([0.020, 0.021])
    assert run(["compare", answer["folder"]]) == 0
    baseline = ["--baseline", str(tmp_path / "b.json")]
    assert run(["gate", answer["folder"], *baseline, "--update-baseline"]) == 0
    assert run(["gate", answer["folder"], *baseline]) == 0
    capsys.readouterr()
    for arguments, said in (
        ([str(steps)], "--out: is missing (step times need --scenario, or --prediction)"),
        ([str(steps), "--scenario", str(scenario)], "PLAN: is not named, or twice"),
        ([str(steps), "--prediction", predicted, "--format", "xml"], "--format: 'xml' is no format"),
        ([str(steps), "--prediction", predicted, "-o", str(tmp_path)], "exists (choose another folder"),
    ):
        assert run(["import", *arguments, *runs]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
