"""The validation itself: what made the data is found again, held-out rows stay out, and the document is whole."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from steelyard.results.errors import InputError
from steelyard.runner.validate import validate
from steelyard.runner.validation import steps
from steelyard.runner.validation.cases import Calibration, World, predict
from steelyard.runner.validation.fit import case_of, constant_mfu, fit, free_parameters, least_squares_baseline, step_s
from steelyard.runner.validation.rows import StepRow, read_rows
from steelyard.runner.validation.scores import figures, outliers

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PLAIN = "a100_training_steps.csv"
HEAD = (
    "cluster,global_batch,micro_batch,hidden,heads,layers,sequence_length,"
    "tensor_parallel,data_parallel,pipeline_parallel,step_time_s"
)
TRUE = Calibration(compute_best=0.7, compute_half_us=25.0, memory_best=0.8, dispatch_us=60.0, logit_accesses=50.0)
PLANS = ((1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 1), (4, 1, 1), (1, 1, 4), (2, 2, 2))
MODELS = ((512, 8, 8), (2048, 16, 4))


def rows_text(times: Sequence[float] | None = None) -> list[str]:
    """Rows of several plans for two models at three micro-batch sizes."""
    found = []
    for hidden, heads, layers in MODELS:
        for t, d, p in PLANS:
            for micro_batch in (1, 4, 16):
                batch = 4 * micro_batch * d
                found.append(f'"node, 8x A100",{batch},{micro_batch},{hidden},{heads},{layers},512,{t},{d},{p}')
    seconds = times or [1.0] * len(found)
    return [f"{text},{each!r}" for text, each in zip(found, seconds, strict=True)]


def write(folder: Path, times: Sequence[float] | None = None) -> Path:
    path = folder / "steps.csv"
    path.write_text("\n".join([HEAD, *rows_text(times)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements that the engine made under a calibration that the fit does not know."""
    made = tmp_path_factory.mktemp("data")
    times = [predict(row, TRUE, World()) for row in read_rows(write(made))]
    write(made, times)
    return made


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[StepRow]:
    return read_rows(folder / "steps.csv")


def test_the_closed_form_follows_the_engine(rows: list[StepRow]) -> None:
    for row in rows:
        assert step_s(case_of(row, World()), TRUE, {}) == pytest.approx(row.step_time_s, rel=0.02)


def test_the_fit_finds_what_made_the_data(rows: list[StepRow]) -> None:
    cases = [case_of(row, World()) for row in rows]
    found = fit(cases)
    assert free_parameters(cases) == list(asdict(TRUE))[:5]
    errors = [math.log(step_s(case, found, {}) / case.row.step_time_s) for case in cases]
    assert max(map(abs, errors)) < 0.02
    assert found.compute_best == pytest.approx(TRUE.compute_best, rel=0.1)
    assert found.dispatch_us == pytest.approx(TRUE.dispatch_us, rel=0.1)


def test_one_outlier_does_not_move_the_fit(rows: list[StepRow]) -> None:
    cases = [case_of(row, World()) for row in rows]
    wrong = replace(cases[0], row=replace(cases[0].row, step_time_s=10 * cases[0].row.step_time_s))
    plain, moved = fit(cases[1:]), fit([wrong, *cases[1:]])
    for case in cases[1:]:
        assert step_s(case, moved, {}) == pytest.approx(step_s(case, plain, {}), rel=0.03)


def test_baselines_fit_what_they_can(rows: list[StepRow]) -> None:
    """All rows three times as slow: every baseline says three times as much."""
    cases = [case_of(row, World()) for row in rows]
    slower = [replace(case, row=replace(case.row, step_time_s=3 * case.row.step_time_s)) for case in cases]
    for baseline in (constant_mfu, least_squares_baseline):
        fast, slow = baseline(cases), baseline(slower)
        assert slow(cases[0]) == pytest.approx(3 * fast(cases[0]), rel=1e-6)
        assert fast(cases[0]) > 0


def test_folds_hold_each_row_out_once(rows: list[StepRow]) -> None:
    cases = [case_of(row, World()) for row in rows]
    splits = dict(steps._splits(cases, 0))
    assert list(splits) == ["5-fold", "leave-one-model-out"]
    for folds in splits.values():
        assert sorted(index for fold in folds for index in fold) == list(range(len(rows)))
    by_model = splits["leave-one-model-out"]
    assert [{cases[index].row.model for index in fold} for fold in by_model] == [
        {model} for model in dict.fromkeys(case.row.model for case in cases)
    ]
    assert dict(steps._splits(cases, 0)) == splits
    assert dict(steps._splits(cases, 1))["5-fold"] != splits["5-fold"]


def test_validation_of_a_folder(folder: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    output = tmp_path / "deep" / "validation.json"
    report = validate(folder, output=output, console=Console(file=text, width=200))
    assert json.loads(output.read_text(encoding="utf-8")) == report
    assert {score["split"] for score in report["scores"]} == {"5-fold", "leave-one-model-out"}
    for score in report["scores"]:
        assert score["model"]["mape"] < 3
        assert score["model"]["mape"] < min(each["mape"] for each in score["baselines"].values())
        assert score["model"]["regret"] < 3
        assert len(score["outliers"]) == 5
    assert "steelyard" in text.getvalue()
    assert "constant MFU" in text.getvalue()
    assert f"{report['catalog']['recalled']} of {report['catalog']['figures']} figures" in text.getvalue()


def test_folders_without_measurements(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no measurements"):
        validate(tmp_path, output=None)
    with pytest.raises(InputError, match="is no folder"):
        validate(tmp_path / "missing", output=None)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_a_profiled_plan_is_predicted_from_its_profile(tmp_path: Path) -> None:
    for file in SHARED.iterdir():
        if file.name != PLAIN:  # many rows, none of them profiled
            (tmp_path / file.name).symlink_to(file)
    profiled, world = steps.read_cases(tmp_path)
    assert all(case.profiled for case in profiled)
    assert len(profiled) == 15
    assert free_parameters(profiled) == ["network/opt350_gh200_steps"]
    fitted = fit(profiled)
    found = figures([predict(case.row, fitted, world) for case in profiled[:3]], [1.0] * 3)
    assert found.worst > 0
    assert [case.row.line for case in profiled if case.suspect] == [14]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_published_measurements() -> None:
    """Better than both baselines on the same rows; step times of one node and of GH200 within their aims."""
    report = validate(SHARED, output=None)
    scores = {(score["data"], score["split"]): score for score in report["scores"]}
    for score in report["scores"]:
        if score["data"].startswith(("step time", "peak memory")):
            assert score["model"]["mape"] < min(each["mape"] for each in score["baselines"].values())
    assert scores["step time, one node, 8x A100", "5-fold"]["model"]["mape"] < 7
    assert scores["step time, one node, 8x A100", "leave-one-model-out"]["model"]["mape"] < 9
    assert scores["step time, one node, 8x A100", "5-fold"]["model"]["regret"] < 3
    assert scores["step time, opt350_gh200_steps", "leave-one-out"]["model"]["mape"] < 8
    assert scores["peak memory, opt350_gh200_steps", "leave-one-out"]["model"]["mape"] < 6


# Figures


def test_figures_by_hand() -> None:
    found = figures([1.1, 1.8, 4.0], [1.0, 2.0, 4.0], ["a", "a", "b"])
    assert found.mape == pytest.approx(20 / 3)
    assert found.median == pytest.approx(10)
    assert found.worst == found.p90 == pytest.approx(10)
    assert found.bias == pytest.approx(0, abs=1e-9)
    assert found.tau == 1.0
    assert found.regret == 0.0


def test_regret_is_what_the_wrong_pick_costs() -> None:
    found = figures([2.0, 1.0, 5.0], [1.0, 1.5, 9.0], ["a", "a", "b"])
    assert found.regret == pytest.approx(50)
    assert found.tau == -1.0


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_perfect_predictions(times: list[float]) -> None:
    found = figures(times, times, [0] * len(times))
    assert (found.mape, found.worst) == (0, 0)
    assert found.regret in (None, 0)
    assert found.tau in (None, 1)


def test_groups_of_one_have_no_ranking() -> None:
    found = figures([1.0, 2.0], [1.0, 2.0], ["a", "b"])
    assert found.tau is found.regret is None


def test_outliers_are_the_worst_first() -> None:
    listed = outliers([1.0, 2.0, 3.0], [1.0, 1.0, 4.0], [{"line": number} for number in range(3)])
    assert [each["line"] for each in listed] == [1, 2, 0]
    assert listed[0]["error_percent"] == pytest.approx(100)
