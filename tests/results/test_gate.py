"""The gate: exit codes 0, 3 and 4, exactness of simulated figures, significance and size of measured ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steelyard.results.errors import InputError
from steelyard.results.gate import Baseline, change_interval_percent, figures, gate, read_baseline
from steelyard.results.record import Run

HOST = {"cpu": "a processor", "cores": 2, "python": "3.11"}


def simulated(study: list[Run]) -> list[Run]:
    return [run for run in study if run.manifest.kind == "simulated"]


def measured(study: list[Run], **provenance: Any) -> list[Run]:
    runs = [run for run in study if run.manifest.kind == "measured"]
    return [with_provenance(run, {"host": HOST, **provenance}) for run in runs]


def with_provenance(run: Run, provenance: dict[str, Any]) -> Run:
    return dataclasses.replace(run, manifest=run.manifest.model_copy(update={"provenance": provenance}))


def with_summary(run: Run, **fields: Any) -> Run:
    return dataclasses.replace(run, summary=run.summary.model_copy(update=fields))


def slower(run: Run, factor: float) -> Run:
    return with_summary(
        run, launch_median_step_time_s=[each * factor for each in run.summary.launch_median_step_time_s]
    )


def test_same_runs_pass(study: list[Run], tmp_path: Path) -> None:
    baseline = tmp_path / "baselines" / "tiny.json"
    runs = [*simulated(study), *measured(study)]
    assert gate(runs, baseline, update=True).exit_code == 0
    result = gate(runs, baseline)
    assert (result.exit_code, result.verdict) == (0, "passed")
    assert len(result.checks) == len(runs)


def test_the_baseline_says_what_code_and_machine_it_is_from(study: list[Run], tmp_path: Path) -> None:
    baseline = tmp_path / "b.json"
    gate(measured(study), baseline, update=True)
    found = read_baseline(baseline)
    assert {"version", "git_sha"} <= found.code.keys()
    assert found.machine["system"]
    assert all(entry.machine["cpu"] == "a processor" for entry in found.runs.values())
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_no_baseline_is_inconclusive(study: list[Run], tmp_path: Path) -> None:
    result = gate(simulated(study), tmp_path / "none.json")
    assert (result.exit_code, result.verdict) == (4, "inconclusive")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("factor", "verdict"), [(0.999999, "worse"), (1.000001, "better")])
def test_a_simulated_figure_must_repeat(study: list[Run], tmp_path: Path, factor: float, verdict: str) -> None:
    baseline = tmp_path / "b.json"
    runs = simulated(study)
    gate(runs, baseline, update=True)
    throughput = runs[0].summary.throughput_samples_per_s * factor
    result = gate([with_summary(runs[0], throughput_samples_per_s=throughput), *runs[1:]], baseline)
    assert result.exit_code == 3
    failed = [check for check in result.checks if check.failed]
    assert [(check.metric, check.verdict) for check in failed] == [("throughput_samples_per_s", verdict)]
    assert failed[0].change_percent == pytest.approx(100 * (factor - 1))


def test_rounding_of_another_library_is_no_change(study: list[Run], tmp_path: Path) -> None:
    runs = simulated(study)
    gate(runs, tmp_path / "b.json", update=True)
    nearly = with_summary(runs[0], throughput_samples_per_s=runs[0].summary.throughput_samples_per_s * (1 + 1e-12))
    assert gate([nearly, *runs[1:]], tmp_path / "b.json").exit_code == 0


def test_another_plan_under_the_same_name_fails(study: list[Run], tmp_path: Path) -> None:
    runs = simulated(study)
    gate(runs, tmp_path / "b.json", update=True)
    manifest = runs[0].manifest.model_copy(update={"plan_sha256": "f" * 64})
    result = gate([dataclasses.replace(runs[0], manifest=manifest), *runs[1:]], tmp_path / "b.json")
    assert result.exit_code == 3
    assert [check.metric for check in result.checks if check.failed] == ["plan"]


def test_a_figure_that_went_missing_fails(study: list[Run], tmp_path: Path) -> None:
    runs = simulated(study)
    gate(runs, tmp_path / "b.json", update=True)
    assert gate([with_summary(runs[0], mfu=None), *runs[1:]], tmp_path / "b.json").exit_code == 3


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.03, 0), (1.2, 3), (0.8, 0)])
def test_a_measured_run_fails_when_slower_by_enough(study: list[Run], tmp_path: Path, factor: float, code: int) -> None:
    runs = measured(study)
    gate(runs, tmp_path / "b.json", update=True)
    assert gate([slower(run, factor) for run in runs], tmp_path / "b.json").exit_code == code


def test_a_slow_down_within_the_noise_is_none(study: list[Run], tmp_path: Path) -> None:
    # Medians up by 10 %, launches spread by a factor of three: large enough, and not significant.
    run = measured(study)[0]
    gate([with_summary(run, launch_median_step_time_s=[1.0, 2.0, 3.0])], tmp_path / "b.json", update=True)
    result = gate([with_summary(run, launch_median_step_time_s=[1.1, 2.2, 3.3])], tmp_path / "b.json")
    assert (result.exit_code, result.checks[0].verdict) == (0, "same")
    assert result.checks[0].change_percent == pytest.approx(10.0)


def test_a_busy_host_is_no_regression(study: list[Run], tmp_path: Path) -> None:
    gate(measured(study), tmp_path / "b.json", update=True)
    busy = [slower(run, 1.5) for run in measured(study, contention={"busy": True})]
    assert gate(busy, tmp_path / "b.json").exit_code == 4


def test_another_machine_is_inconclusive(study: list[Run], tmp_path: Path) -> None:
    runs = measured(study)
    gate(runs, tmp_path / "b.json", update=True)
    elsewhere = [with_provenance(slower(run, 2), {"host": {**HOST, "cpu": "another"}}) for run in runs]
    assert gate(elsewhere, tmp_path / "b.json").exit_code == 4
    newer = [with_provenance(run, {"host": {**HOST, "python": "3.14"}}) for run in runs]
    assert gate(newer, tmp_path / "b.json").exit_code == 0


def test_one_launch_tells_nothing(study: list[Run], tmp_path: Path) -> None:
    run = with_summary(measured(study)[0], launch_median_step_time_s=[1.0])
    gate([run], tmp_path / "b.json", update=True)
    assert gate([run], tmp_path / "b.json").exit_code == 4


def test_a_new_run_is_inconclusive_and_a_missing_one_noted(study: list[Run], tmp_path: Path) -> None:
    runs = simulated(study)
    gate(runs[:2], tmp_path / "b.json", update=True)
    assert gate(runs[:3], tmp_path / "b.json").exit_code == 4
    fewer = gate(runs[:1], tmp_path / "b.json")
    assert fewer.exit_code == 0
    assert len(fewer.notes) == 1


def test_failure_outweighs_what_cannot_be_judged(study: list[Run], tmp_path: Path) -> None:
    runs = simulated(study)
    gate(runs[:1], tmp_path / "b.json", update=True)
    assert gate([with_summary(runs[0], goodput=0.5), runs[1]], tmp_path / "b.json").exit_code == 3


def test_tolerance_on_the_prediction_error(
    study: list[Run], make_study: Callable[..., list[Run]], tmp_path: Path
) -> None:
    gate(simulated(study), tmp_path / "b.json", update=True)
    gate(study, tmp_path / "all.json", update=True)
    assert gate(study, tmp_path / "all.json", tolerance_percent=1e-6).exit_code == 3
    within = gate(study, tmp_path / "all.json", tolerance_percent=50.0)
    assert within.checks[0].verdict == "same"
    assert gate(simulated(study), tmp_path / "b.json", tolerance_percent=50.0).exit_code == 4
    busy = gate(make_study(busy=True), tmp_path / "none.json", tolerance_percent=1e-6)
    assert busy.exit_code == 4


def test_no_run_and_two_of_one_name_are_refused(study: list[Run], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are none"):
        gate([], tmp_path / "b.json", update=True)
    with pytest.raises(InputError, match="two are named"):
        gate([study[0], study[0]], tmp_path / "b.json", update=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema_version": 2, "runs": {}}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "runs": 3}',
    ],
)
def test_a_damaged_baseline_is_refused_by_name(study: list[Run], tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match=r"b\.json"):
        gate(simulated(study), tmp_path / "b.json")


def test_a_baseline_survives_its_file(study: list[Run], tmp_path: Path) -> None:
    gate(simulated(study), tmp_path / "b.json", update=True)
    found = read_baseline(tmp_path / "b.json")
    assert Baseline.model_validate(json.loads(found.model_dump_json())) == found
    assert {entry.plan_sha256 for entry in found.runs.values()} == {
        run.manifest.plan_sha256 for run in simulated(study)
    }
    assert all(entry.figures for entry in found.runs.values())


def test_figures_cover_times_rates_and_ledgers(study: list[Run]) -> None:
    found = figures(study[0])
    assert {
        "step_time_s.p50",
        "throughput_samples_per_s",
        "devices.left.compute_s",
        "median_interval_s.low",
    } <= found.keys()


def test_interval_of_the_change_by_hand() -> None:
    assert change_interval_percent([1.0, 1.0], [1.5, 1.5]) == (pytest.approx(50.0), pytest.approx(50.0))
    low, high = change_interval_percent([1.0, 2.0], [1.0, 2.0])
    assert low == pytest.approx(-50.0)
    assert high == pytest.approx(100.0)
