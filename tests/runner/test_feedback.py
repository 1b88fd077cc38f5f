"""Feedback: runs of lanes that are slower than their tables teach the tables so; nobody judges by what it taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from steelyard.results.compare import Comparison, compare
from steelyard.results.errors import InputError
from steelyard.results.record import Run
from steelyard.results.tables import plan_table
from steelyard.runner.calibrations import (
    Calibration,
    latest_calibration,
    read_calibration,
    refined_path,
    write_calibration,
)
from steelyard.runner.feedback import crowded_lanes, refine, run_residuals
from steelyard.sim.device import Cluster, ProfilePoint
from steelyard.sim.disturbances import slowed
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.residuals import Key
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Fixed

TRUE_FACTOR = 1.12
SPLITS = ((30, 0), (22, 8), (19, 11), (16, 14), (25, 5))


@pytest.fixture(scope="module")
def quiet(tiny_scenario: Scenario) -> Scenario:
    """The tiny scenario with five simulated launches that differ by half a percent."""
    (node,) = tiny_scenario.cluster.nodes
    spread = [-0.006, -0.004, -0.002, 0.0, 0.002, 0.004, 0.006]
    devices = []
    for device in node.devices:
        assert device.profile is not None
        profile = device.profile.model_copy(update={"step_residuals": [0.0], "launch_residuals": spread})
        devices.append(device.model_copy(update={"profile": profile}))
    cluster = tiny_scenario.cluster.model_copy(update={"nodes": [node.model_copy(update={"devices": devices})]})
    sampling = tiny_scenario.sampling.model_copy(update={"launches": 5, "steps": 4})
    return tiny_scenario.model_copy(update={"cluster": cluster, "sampling": sampling})


@pytest.fixture(scope="module")
def runs(quiet: Scenario) -> list[Run]:
    return measured(quiet)


@pytest.fixture(scope="module")
def calibration(quiet: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tmp_path_factory.mktemp("tables") / "tables.toml"
    made = Calibration(quiet.cluster, quiet.workload.key, path, reused=False, contended_percent=0.0)
    write_calibration(made)
    return made


def slower(scenario: Scenario, factor: float) -> Scenario:
    """The same lanes, their forward passes so many times as long as the tables say."""
    (node,) = scenario.cluster.nodes
    devices = []
    for device in node.devices:
        assert device.profile is not None
        points = [point.model_copy(update={"forward_s": factor * point.forward_s}) for point in device.profile.points]
        devices.append(device.model_copy(update={"profile": device.profile.model_copy(update={"points": points})}))
    nodes = [node.model_copy(update={"devices": devices})]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def plan(scenario: Scenario, split: tuple[int, int]) -> Fixed:
    layers = len(scenario.workload.layers)
    names = [device.name for device in scenario.cluster.devices]
    return Fixed(
        Plan(
            pipelines=[
                Pipeline(stages=[Stage(first=0, last=layers, replicas=[Replica(devices=[name])])], micro_batches=[size])
                for name, size in zip(names, split, strict=True)
                if size
            ]
        )
    )


def measured(scenario: Scenario, factor: float = TRUE_FACTOR, seed: int = 0) -> list[Run]:
    """Runs as a replay would leave them, by the engine on lanes that are slower than their tables say."""
    runs = []
    for number, split in enumerate(SPLITS):
        truth = simulate(slower(scenario, factor), plan(scenario, split), seed=seed + number, label=f"{split}")
        prediction = simulate(scenario, plan(scenario, split), seed=seed + number, label=f"{split}")
        manifest = truth.manifest.model_copy(
            update={
                "kind": "measured",
                "run_id": f"measured-{seed}-{number}",
                "predicted_run_id": prediction.manifest.run_id,
                "prediction_sha256": f"study-{seed}",
                "scenario": prediction.manifest.scenario,
            }
        )
        runs += [prediction, replace(truth, manifest=manifest)]
    return runs


def test_the_speed_of_a_day_is_no_bias(quiet: Scenario, runs: list[Run], calibration: Calibration) -> None:
    """Runs of a day on which all lanes took 1.3 times as long, as their gauge found, teach what others do."""
    names = [device.name for device in quiet.cluster.devices]
    slow_day = quiet.model_copy(update={"cluster": slowed(quiet.cluster, dict.fromkeys(names, 1.3))})
    found = refine(calibration, measured(slow_day), quiet.workload).biases
    for key, bias in refine(calibration, runs, quiet.workload).biases.items():
        assert found[key].bias == pytest.approx(bias.bias, abs=1e-3)


def test_refined_tables_know_what_they_were_multiplied_by(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    """Each point over its factor is the point as measured, which the gauge is held against."""
    once = refine(calibration, runs, quiet.workload).calibration
    for device in once.cluster.devices:
        original = quiet.cluster.by_name[device.name].profile
        assert device.profile is not None
        assert original is not None
        assert device.profile.forward_factor > 1.05
        for point, measured_point in zip(device.profile.points, original.points, strict=True):
            assert point.forward_s / device.profile.forward_factor == pytest.approx(measured_point.forward_s)
            assert point.backward_s / device.profile.backward_factor == pytest.approx(measured_point.backward_s)


def test_what_all_runs_show_is_learned_and_only_that(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    found = refine(calibration, runs, quiet.workload)
    for key, bias in found.biases.items():
        expected = TRUE_FACTOR if key.kind == "forward" else 1.0
        assert bias.factor == pytest.approx(expected, abs=0.03), key
    for old, new in zip(calibration.cluster.devices, found.calibration.cluster.devices, strict=True):
        assert old.profile is not None
        assert new.profile is not None
        factor = found.biases[Key(old.name, "forward")].factor
        assert [each.forward_s for each in new.profile.points] == pytest.approx(
            [factor * each.forward_s for each in old.profile.points]
        )
    assert set(found.calibration.feedback["runs"]) == {f"measured-0-{number}" for number in range(len(SPLITS))}


def test_refined_tables_predict_runs_that_they_never_saw_better(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    refined = refine(calibration, runs, quiet.workload).calibration
    better = quiet.model_copy(update={"cluster": refined.cluster})
    fresh = plan(quiet, (27, 3))
    truth = simulate(slower(quiet, TRUE_FACTOR), fresh, seed=99).summary.step_time_s.p50
    before = abs(simulate(quiet, fresh, seed=99).summary.step_time_s.p50 / truth - 1)
    after = abs(simulate(better, fresh, seed=99).summary.step_time_s.p50 / truth - 1)
    assert after < before / 2


def test_refined_tables_lie_beside_their_base_and_only_belong_to_it(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    refined = refine(calibration, runs, quiet.workload).calibration
    assert latest_calibration(calibration.path).cluster == calibration.cluster
    write_calibration(refined)
    assert refined.path == refined_path(calibration.path)
    assert latest_calibration(calibration.path).cluster == refined.cluster
    assert read_calibration(refined.path).feedback == refined.feedback
    again = replace(calibration, cluster=slower(quiet, 2.0).cluster)
    write_calibration(again)
    assert latest_calibration(calibration.path).cluster == again.cluster
    write_calibration(calibration)
    refined.path.unlink()


def by_tables(runs: list[Run], cluster: Cluster) -> list[Run]:
    """The runs as if some tables had predicted them."""
    judged = []
    for run in runs:
        scenario = {**run.manifest.scenario, "cluster": cluster.model_dump(mode="json")}
        judged.append(replace(run, manifest=run.manifest.model_copy(update={"scenario": scenario})))
    return judged


def fit_notes(comparison: Comparison) -> list[str]:
    return [note for note in comparison.notes if "are those of a fit" in note]


def test_runs_that_taught_the_tables_cannot_judge_them_unnoticed(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    cluster = refine(calibration, runs, quiet.workload).calibration.cluster
    assert not fit_notes(compare(runs))
    assert len(fit_notes(compare(by_tables(runs, cluster)))) == 1
    by_id_alone = cluster.model_copy(update={"fitted_plans": []})  # as files of earlier versions have it
    assert len(fit_notes(compare(by_tables(runs, by_id_alone)))) == 1


def test_a_plan_that_taught_the_tables_is_no_stranger_when_it_is_measured_again(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    """Other run ids, other launches, three of five plans the same: each of these is marked, and no other."""
    cluster = refine(calibration, runs[:6], quiet.workload).calibration.cluster
    taught = {run.manifest.plan_sha256 for run in runs[:6]}
    again = by_tables(measured(quiet, seed=50), cluster)
    assert not {run.manifest.run_id for run in again} & set(cluster.fitted_from)
    found = compare(again)
    assert {row.plan_sha256 for row in found.plans if row.in_sample} == taught
    assert ["3 of these 5 plans" in note for note in fit_notes(found)] == [True]
    errors = {row["error"].endswith("(fit)") for row in plan_table(found)}
    assert errors == {True, False}
    strangers = [run for run in again if run.manifest.plan_sha256 not in taught]
    assert not fit_notes(compare(strangers))


def test_a_lane_that_has_no_other_sizes_is_taught_nothing_by_a_run(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    """Two sizes beside the run's own predict nothing in a replay, and so its passes are not held against them."""
    device = calibration.cluster.by_name["full"]
    assert device.profile is not None
    few = [replace_size(point, size) for point, size in zip(device.profile.points[:3], (30, 40, 50), strict=True)]
    cluster = with_points(calibration.cluster, "full", few)
    (alone,) = [run for run in runs if run.manifest.kind == "measured" and run.manifest.label == f"{SPLITS[0]}"]
    assert crowded_lanes(alone, cluster) == ["full"]
    told = {each.key.kind for each in run_residuals(alone, cluster, quiet.workload)}
    assert told == {"optimizer"}
    more = with_points(calibration.cluster, "full", [*few, replace_size(few[-1], 60)])
    assert crowded_lanes(alone, more) == []
    assert {"forward", "backward"} < {each.key.kind for each in run_residuals(alone, more, quiet.workload)}
    found = refine(replace(calibration, cluster=cluster), runs, quiet.workload)
    assert found.document()["crowded"] == {"full": 1}
    assert [row["lane"] for row in found.rows() if row["kind"] == "left out"] == ["full"]


def replace_size(point: ProfilePoint, size: int) -> ProfilePoint:
    return point.model_copy(update={"micro_batch": size})


def with_points(cluster: Cluster, name: str, points: list[ProfilePoint]) -> Cluster:
    (node,) = cluster.nodes
    devices = []
    for device in node.devices:
        assert device.profile is not None
        profile = device.profile.model_copy(update={"points": points})
        devices.append(device.model_copy(update={"profile": profile}) if device.name == name else device)
    return cluster.model_copy(update={"nodes": [node.model_copy(update={"devices": devices})]})


def test_too_few_runs_or_those_of_other_lanes_are_refused(
    quiet: Scenario, runs: list[Run], calibration: Calibration
) -> None:
    with pytest.raises(InputError, match="3 are needed"):
        refine(calibration, runs[:4], quiet.workload)
    other = replace(calibration, cluster=calibration.cluster.model_copy(update={"fingerprint": {"cpu": "another"}}))
    with pytest.raises(InputError, match="another machine"):
        refine(other, runs, quiet.workload)


def test_nothing_measured_is_refused_before_anything_is_written(
    quiet: Scenario, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="0 measured plans"):
        refine(replace(calibration, path=tmp_path / "x.toml"), [], quiet.workload)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("told", "plan"),
    [
        ({"rebalance": {"every_steps": 3}}, {}),
        ({"disturbances": [{"kind": "slowdown", "device": "full", "from_step": 0, "factor": 3.0}]}, {}),
        ({}, {"zero": 2}),
        ({}, {"recompute": "full"}),
    ],
)
def test_passes_that_hold_more_than_the_tables_teach_nothing(
    quiet: Scenario, runs: list[Run], calibration: Calibration, told: dict[str, Any], plan: dict[str, Any]
) -> None:
    """A lane slowed on purpose, weights gathered within the passes, or layers computed twice are not its slowness."""

    def other(run: Run) -> Run:
        scenario = {**run.manifest.scenario, **told}
        pipelines = [
            {**each, "stages": [{**each["stages"][0], "recompute": plan.get("recompute", "none")}]}
            for each in run.plan["pipelines"]
        ]
        changed = {**run.plan, "pipelines": pipelines, "zero": plan.get("zero", 0)}
        return replace(run, plan=changed, manifest=run.manifest.model_copy(update={"scenario": scenario}))

    assert all(list(run_residuals(run, calibration.cluster, quiet.workload)) for run in runs)
    assert not any(list(run_residuals(other(run), calibration.cluster, quiet.workload)) for run in runs)
