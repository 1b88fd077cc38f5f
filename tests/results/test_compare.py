"""compare(): a perfect prediction, values by hand, invariances, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.compare import Comparison, compare, plan_row, weakest
from steelyard.results.errors import InputError
from steelyard.results.ledger import step_times
from steelyard.results.record import Run
from steelyard.sim.engine import simulate
from steelyard.sim.spec import Scenario

PERCENTS = (
    "mape_percent",
    "worst_error_percent",
    "worst_signed_error_percent",
    "mean_error_percent",
    "regret_percent",
    "coverage_percent",
    "noise_floor_percent",
    "interval_width_percent",
    "kendall_tau",
    "speedup_over_uniform",
)


def figures(comparison: Comparison) -> dict[str, Any]:
    return {name: getattr(comparison, name) for name in PERCENTS}


def without_twin(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.manifest.twin_of is None]


def changed(run: Run, **fields: Any) -> Run:
    return dataclasses.replace(run, manifest=run.manifest.model_copy(update=fields))


def test_a_perfect_prediction(study: list[Run], as_measured: Callable[..., Run]) -> None:
    predictions = [run for run in study if run.manifest.kind == "simulated"]
    perfect = [*predictions, *(as_measured(run, run) for run in predictions)]
    found = compare(perfect)
    assert found.mape_percent == pytest.approx(0, abs=1e-9)
    assert found.worst_error_percent == pytest.approx(0, abs=1e-9)
    assert found.kendall_tau == 1.0
    assert found.regret_percent == pytest.approx(0, abs=1e-9)
    assert found.picked == found.measured_best == "makespan"


def test_without_noise_the_measurement_is_the_prediction(quiet_study: list[Run]) -> None:
    found = compare(quiet_study)
    assert found.mape_percent == pytest.approx(0, abs=1e-9)
    assert found.coverage_percent == 100
    assert found.noise_floor_percent == 0
    assert found.interval_width_percent == pytest.approx(0, abs=1e-9)


def test_errors_by_hand(study: list[Run]) -> None:
    found = compare(study)
    own = [row for row in found.plans if row.twin_of is None]
    by_id = {run.manifest.run_id: run for run in study}
    for run in study:
        if run.manifest.kind == "simulated":
            continue
        row = next(row for row in found.plans if row.label == run.manifest.label)
        prediction = by_id[run.manifest.predicted_run_id or ""]
        middle = statistics.median([each for times in step_times(run.events).values() for each in times])
        assert row.error_percent == pytest.approx(100 * (prediction.summary.step_time_s.p50 / middle - 1))
        assert row.measured is not None
        assert row.measured.median_s == middle == pytest.approx(run.summary.step_time_s.p50)
        assert row.measured.launch_medians_s == pytest.approx(run.summary.launch_median_step_time_s)
        assert sum(row.plan.values()) == 32
    errors = [row.error_percent for row in own if row.error_percent is not None]
    assert found.mape_percent == pytest.approx(statistics.mean(map(abs, errors)))
    assert found.mean_error_percent == pytest.approx(statistics.mean(errors))
    assert found.worst_error_percent == pytest.approx(max(map(abs, errors)))
    assert abs(found.worst_signed_error_percent) == found.worst_error_percent


def test_twin_gives_the_noise_floor_and_nothing_else(study: list[Run]) -> None:
    found, alone = compare(study), compare(without_twin(study))
    rows = {row.label: row for row in found.plans}
    twin, original = rows["uniform (again)"].measured, rows["uniform"].measured
    assert twin is not None
    assert original is not None
    assert found.noise_floor_percent == pytest.approx(100 * abs(twin.median_s / original.median_s - 1))
    assert alone.noise_floor_percent is None
    assert any("noise floor" in note for note in alone.notes)
    assert len(found.plans) == len(alone.plans) + 1
    for name in ("mape_percent", "worst_error_percent", "regret_percent", "coverage_percent", "speedup_over_uniform"):
        assert getattr(found, name) == getattr(alone, name)


def test_coverage_is_of_launch_medians(study: list[Run]) -> None:
    found = compare(study)
    inside = total = 0
    for row in found.plans:
        if row.twin_of is None and row.measured is not None:
            low, high = row.predicted.interval_s
            inside += sum(low <= each <= high for each in row.measured.launch_medians_s)
            total += len(row.measured.launch_medians_s)
    assert (found.coverage_count, found.coverage_percent) == (total, pytest.approx(100 * inside / total))


def test_coverage_is_judged_from_fifty_observations(study: list[Run], as_measured: Callable[..., Run]) -> None:
    few = compare(study)
    assert (few.coverage_judged, few.coverage_p_value) == (False, None)
    assert any("not judged" in note for note in few.notes)
    extra = []
    for number in range(4):
        for run in without_twin(study):
            if run.manifest.kind == "measured":
                extra.append(changed(run, label=f"{run.manifest.label} {number}"))
    many = compare([*study, *extra])
    assert many.coverage_count >= 50
    assert many.coverage_judged
    assert many.coverage_p_value is not None
    assert 0 <= many.coverage_p_value <= 1


def test_speed_up_is_of_the_pick(study: list[Run]) -> None:
    found = compare(study)
    rows = {row.label: row.measured for row in found.plans}
    uniform, picked = rows["uniform"], rows[found.picked]
    assert uniform is not None
    assert picked is not None
    assert found.speedup_over_uniform == pytest.approx(uniform.median_s / picked.median_s)
    rest = [run for run in study if run.manifest.policy.name != "uniform"]
    assert compare(rest).speedup_over_uniform is None


def with_factors(run: Run, factors: Any) -> Run:
    return changed(run, provenance={"contention": {"drift_factors": factors}})


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_drift_is_divided_out_of_what_was_measured(quiet_study: list[Run], factor: float) -> None:
    found = compare([with_factors(run, [factor] * len(step_times(run.events))) for run in quiet_study])
    assert found.mape_percent == pytest.approx(0, abs=1e-9)  # predictions are exact here, and stay what they are
    assert found.steadied is not None
    assert found.steadied.plans == sum(row.twin_of is None for row in found.plans)
    assert found.steadied.mean_error_percent == pytest.approx(100 * (factor - 1))
    assert found.steadied.mape_percent == pytest.approx(abs(100 * (factor - 1)))
    assert found.steadied.balance_error_percent == pytest.approx(found.steadied.mean_error_percent)
    assert found.steadied.coverage_percent == (100 if abs(factor - 1) < 1e-9 else 0)


def test_each_launch_has_its_own_drift(study: list[Run]) -> None:
    """With the noise of every launch called drift, nothing of it is left."""

    def explained(run: Run, prediction: Run) -> Run:
        medians = [statistics.median(times) for _, times in sorted(step_times(run.events).items())]
        return with_factors(run, [each / prediction.summary.step_time_s.p50 for each in medians])

    by_id = {run.manifest.run_id: run for run in study}
    runs = [
        explained(run, by_id[run.manifest.predicted_run_id]) if run.manifest.predicted_run_id else run for run in study
    ]
    found = compare(runs)
    assert found.steadied is not None
    assert found.steadied.coverage_percent == 100
    assert found.coverage_percent < 100
    assert found.steadied.mape_percent < found.mape_percent


def test_what_was_written_down_before_a_launch_goes_before_what_is_known_after_it(quiet_study: list[Run]) -> None:
    def with_both(run: Run) -> Run:
        count = len(step_times(run.events))
        told = {"drift_factors": [1.3] * count, "foretold_factors": [1.1] * count}
        return changed(run, provenance={"contention": told})

    found = compare([with_both(run) for run in quiet_study]).steadied
    assert found is not None
    assert found.foretold
    assert found.mean_error_percent == pytest.approx(10)
    after = compare([with_factors(run, [1.3] * len(step_times(run.events))) for run in quiet_study]).steadied
    assert after is not None
    assert not after.foretold


@pytest.mark.parametrize("factors", [None, [], "x", [1.0], [0.0] * 100, ["a"] * 100])
def test_what_was_not_gauged_in_every_launch_is_not_steadied(study: list[Run], factors: Any) -> None:
    assert compare([with_factors(run, factors) for run in study]).steadied is None


def test_busy_is_told(study: list[Run], make_study: Callable[..., list[Run]]) -> None:
    assert not compare(study).busy
    busy = compare(make_study(busy=True))
    assert busy.busy
    assert all(row.busy for row in busy.plans)


@settings(max_examples=8)
@given(factor=st.floats(min_value=1e-3, max_value=1e3))
def test_the_unit_of_time_does_not_matter(
    factor: float, study: list[Run], with_times_scaled: Callable[[Run, float], Run]
) -> None:
    before = figures(compare(study))
    after = figures(compare([with_times_scaled(run, factor) for run in study]))
    assert after == pytest.approx(before, rel=1e-6, abs=1e-6)


@settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_the_order_of_runs_does_not_matter(study: list[Run], order: random.Random) -> None:
    shuffled = list(study)
    order.shuffle(shuffled)
    assert compare(shuffled) == compare(study)


def test_equal_seeds_give_equal_bytes(study: list[Run]) -> None:
    assert compare(study, seed=4).model_dump_json() == compare(study, seed=4).model_dump_json()
    assert compare(study, seed=4).plans != compare(study, seed=5).plans


def test_the_document_is_json_and_has_what_the_demo_prints(study: list[Run]) -> None:
    found = compare(study)
    document = json.loads(json.dumps(found.model_dump(mode="json"), allow_nan=False))
    assert Comparison.model_validate(document) == found
    assert set(PERCENTS) <= document.keys()
    for row in document["plans"]:
        assert {"policy", "parameters", "plan", "predicted", "measured", "error_percent"} <= row.keys()
        assert {"p10_s", "p50_s", "p90_s", "interval_s"} <= row["predicted"].keys()
        assert {"median_s", "interval_s"} <= row["measured"].keys()


def test_a_single_launch_has_no_regret(quiet_study: list[Run]) -> None:
    found = compare(quiet_study)
    assert found.launches == 1
    assert found.regret_percent is None
    assert any("regret" in note for note in found.notes)


def test_plans_as_close_as_the_noise_have_no_rank(study: list[Run]) -> None:
    chosen = [run for run in study if run.manifest.label in ("uniform", "uniform (again)")]
    found = compare(chosen)
    assert (found.kendall_tau, found.kendall_pairs, found.kendall_pairs_total) == (None, 0, 0)
    assert any("rank" in note for note in found.notes)


def test_simulated_runs_that_nobody_measured_are_left_out(study: list[Run], scenario: Scenario) -> None:
    extra = simulate(scenario, make_policy("throughput"), seed=9)
    assert compare([*study, extra]) == compare(study)


def test_refuses_runs_of_which_none_was_measured(study: list[Run]) -> None:
    with pytest.raises(InputError, match="none of them was measured"):
        compare([run for run in study if run.manifest.kind == "simulated"])
    with pytest.raises(InputError, match="none of them was measured"):
        compare([])


def test_refuses_a_measurement_without_its_prediction(study: list[Run]) -> None:
    with pytest.raises(InputError, match="prediction is not among"):
        compare([run for run in study if run.manifest.kind == "measured"])
    with pytest.raises(InputError, match="prediction is not among"):
        compare([changed(run, predicted_run_id=None) if run.manifest.kind == "measured" else run for run in study])


def test_refuses_runs_of_other_workloads(study: list[Run]) -> None:
    other = {**study[0].manifest.scenario, "workload": {"model": "another"}}
    mixed = [*study[:2], *(changed(run, scenario=other, label="else") for run in study[2:4])]
    with pytest.raises(InputError, match="different workloads"):
        compare(mixed)


def test_refuses_two_runs_of_one_label(study: list[Run]) -> None:
    with pytest.raises(InputError, match="two measured runs are named"):
        compare([*study, study[1]])


def test_refuses_a_twin_alone(study: list[Run]) -> None:
    with pytest.raises(InputError, match="twin alone"):
        compare([study[0], study[-1]])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_times_that_are_none(study: list[Run], value: float) -> None:
    times = study[0].summary.step_time_s.model_copy(update={"p50": value})
    broken = dataclasses.replace(study[0], summary=study[0].summary.model_copy(update={"step_time_s": times}))
    with pytest.raises(InputError, match="a time is above 0"):
        compare([broken, *study[1:]])


def test_refuses_a_run_without_events(study: list[Run]) -> None:
    empty = dataclasses.replace(study[1], events=study[1].events.iloc[:0])
    with pytest.raises(InputError, match="no measured step"):
        compare([study[0], empty])


def test_junk_in_provenance_is_no_news(study: list[Run]) -> None:
    for junk in (None, 3, "busy", [], {"drift_percent": "x"}, {"drift_percent": {"left": "fast"}}):
        runs = [changed(run, provenance={"contention": junk}) for run in study]
        assert compare(runs).mape_percent == compare(study).mape_percent


def test_row_of_a_simulated_run_has_no_measured_side(study: list[Run]) -> None:
    row = plan_row(study[0])
    assert row.measured is None
    assert row.error_percent is None
    assert row.global_batch == 32


def test_weakest_fidelity() -> None:
    assert weakest(["profiled", "datasheet"]) == "datasheet"
    assert weakest(["profiled", "calibrated"]) == "calibrated"
    assert weakest(["profiled"]) == "profiled"
