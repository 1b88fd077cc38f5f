"""simulate(): what whole scenarios come to, the same bytes everywhere, and order statistics of measured noise."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import REGISTRY, make_policy
from steelyard.results.errors import InputError
from steelyard.results.ledger import quantiles, step_times
from steelyard.results.record import LEDGER_LINES, Run
from steelyard.results.store import write_run
from steelyard.sim import cost, engine, memory
from steelyard.sim.bounds import lower_bound_s, work_bound_s
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Link, Profile, Switch
from steelyard.sim.plan import Plan
from steelyard.sim.running import Factors, Launch
from steelyard.sim.spec import Sampling, Scenario, scenario_from
from steelyard.sim.view import Fixed, View
from steelyard.sim.workload import TensorSplit

Document = dict[str, Any]


def fixed(scenario: Scenario, samples: dict[str, int]) -> Fixed:
    return Fixed(Plan.data_parallel(scenario.workload, samples))


def with_workload(scenario: Scenario, **changes: object) -> Scenario:
    return scenario.model_copy(update={"workload": scenario.workload.model_copy(update=changes)})


@pytest.mark.parametrize("name", REGISTRY)
def test_every_policy_runs(scenario: Scenario, name: str) -> None:
    run = engine.simulate(scenario, make_policy(name))
    Plan.parse(run.plan).check(scenario)
    assert run.summary.steps == 72  # eight launches of ten steps, the first of each a lead-in
    assert run.summary.fidelity == "profiled"
    assert run.summary.gap_to_bound > 0


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("samples", [{"fast": 24, "slow": 8}, {"fast": 16, "slow": 16}, {"fast": 32}, {"slow": 32}])
def test_ledgers_sum_to_the_step(make_document: Callable[..., Document], noisy: bool, samples: dict[str, int]) -> None:
    scenario = scenario_from(make_document(noisy))
    summary = engine.simulate(scenario, fixed(scenario, samples)).summary
    for name, ledger in summary.devices.items():
        assert ledger.total_s() == pytest.approx(summary.step_time_s.mean, rel=1e-9)
        assert all(getattr(ledger, line) >= 0 for line in LEDGER_LINES)
        assert ledger.samples == samples.get(name, 0)
        if name not in samples:
            assert ledger.idle_s == pytest.approx(summary.step_time_s.mean)


@given(fast=st.integers(0, 32))
def test_step_is_at_least_the_bound_for_every_split(quiet_scenario: Scenario, fast: int) -> None:
    policy = fixed(quiet_scenario, {"fast": fast, "slow": 32 - fast})
    step_s = -engine.objective_value(_p90(quiet_scenario), policy, seed=0, launches=1)
    assert step_s >= lower_bound_s(View.of(quiet_scenario)) * (1 - 1e-9)


def _p90(scenario: Scenario) -> Scenario:
    objective = scenario.objective.model_copy(update={"metric": "step_time_p90"})
    return scenario.model_copy(update={"objective": objective})


@settings(max_examples=30)
@given(fast=st.integers(1, 31), largest=st.sampled_from([None, 1, 3, 8]))
def test_summary_is_the_closed_form_without_noise(quiet_scenario: Scenario, fast: int, largest: int | None) -> None:
    scenario = with_workload(quiet_scenario, max_micro_batch=largest)
    samples = {"fast": fast, "slow": 32 - fast}
    summary = engine.simulate(scenario, fixed(scenario, samples)).summary
    busy = max(view.step_s(samples[view.name]) for view in View.of(scenario).devices)
    sync_s = View.of(scenario).sync_s(["fast", "slow"])
    times = summary.step_time_s
    assert [times.mean, times.p10, times.p50, times.p90] == pytest.approx([busy + sync_s] * 4, rel=1e-9)
    assert summary.throughput_samples_per_s == pytest.approx(32 / (busy + sync_s), rel=1e-9)
    assert summary.launches == 1


@settings(max_examples=30)
@given(
    fast=st.integers(0, 32), names=st.permutations(["a", "zebra", "\N{GREEK SMALL LETTER LAMDA}1"]), swap=st.booleans()
)
def test_renaming_and_reordering_devices_changes_nothing(
    make_document: Callable[..., Document], fast: int, names: list[str], swap: bool
) -> None:
    document = make_document(noisy=False)
    before = scenario_from(document)
    devices = document["cluster"]["nodes"][0]["devices"]
    for device, name in zip(devices, names, strict=False):
        device["name"] = name
    document["cluster"]["collectives"][0]["devices"] = names[:2]
    if swap:
        devices.reverse()
    after = scenario_from(document)
    first = engine.simulate(before, fixed(before, {"fast": fast, "slow": 32 - fast})).summary
    second = engine.simulate(after, fixed(after, {names[1]: 32 - fast, names[0]: fast})).summary
    assert second.step_time_s == first.step_time_s
    assert [second.devices[names[0]], second.devices[names[1]]] == [first.devices["fast"], first.devices["slow"]]


def test_events_tell_the_same_steps_as_the_summary(scenario: Scenario) -> None:
    run = engine.simulate(scenario, make_policy("makespan"))
    times = [each for launch_times in step_times(run.events).values() for each in launch_times]
    assert quantiles(times) == run.summary.step_time_s


def test_a_plan_by_hand_runs_where_no_policy_finds_one(make_document: Callable[..., Document]) -> None:
    """Micro-batches that only the plan's author cut: not the bound of uncut batches holds, but that of all plans."""
    document = make_document(noisy=False)
    workload = scenario_from(document).workload
    for device in document["cluster"]["nodes"][0]["devices"]:
        device["memory_gib"] = cost.peak_memory_bytes(workload, 8) * 1.01 / 2**30
    scenario = scenario_from(document)
    whole = Plan.data_parallel(workload.model_copy(update={"max_micro_batch": 8}), {"fast": 24, "slow": 8})
    summary = engine.simulate(scenario, Fixed(whole)).summary
    assert lower_bound_s(View.of(scenario)) == math.inf
    assert 0 < summary.lower_bound_step_time_s == work_bound_s(scenario) <= summary.step_time_s.p50


def test_energy_and_cost_count_the_devices_in_use(quiet_scenario: Scenario) -> None:
    summary = engine.simulate(quiet_scenario, fixed(quiet_scenario, {"fast": 32})).summary
    step_s = summary.step_time_s.p50
    assert summary.energy_j_per_step == pytest.approx(50.0 * step_s)  # one device, never idle
    assert summary.cost_usd_per_million_samples == pytest.approx(0.1 / 3600 * step_s / 32 * 1e6)


def test_mfu_is_the_share_of_the_peak_of_all_devices(quiet_scenario: Scenario) -> None:
    summary = engine.simulate(quiet_scenario, fixed(quiet_scenario, {"fast": 24, "slow": 8})).summary
    flops = 32 * quiet_scenario.workload.flops_per_sample / summary.step_time_s.p50
    assert summary.mfu == pytest.approx(flops / (1e12 + 1e12 / 3))


@pytest.mark.parametrize("metric", ["throughput", "step_time_p90", "cost", "energy"])
def test_objectives_prefer_what_their_summary_prefers(quiet_scenario: Scenario, metric: str) -> None:
    objective = quiet_scenario.objective.model_copy(update={"metric": metric})
    scenario = quiet_scenario.model_copy(update={"objective": objective})
    fast, slow = fixed(scenario, {"fast": 32}), fixed(scenario, {"slow": 32})
    assert engine.objective_value(scenario, fast, seed=0, launches=1) > engine.objective_value(
        scenario, slow, seed=0, launches=1
    )


@pytest.mark.parametrize(("metric", "field"), [("cost", "price_usd_per_hour"), ("energy", "max_w")])
def test_objective_without_its_figures_is_refused(
    make_document: Callable[..., Document], metric: str, field: str
) -> None:
    document = make_document()
    document["objective"] = {"metric": metric}
    del document["cluster"]["nodes"][0]["devices"][1][field]
    scenario = scenario_from(document)
    with pytest.raises(InputError, match=rf"^objective\.metric: {metric} needs"):
        engine.objective_value(scenario, make_policy("uniform"), seed=0, launches=1)


def test_negative_seed_and_endless_sampling_are_refused(scenario: Scenario) -> None:
    with pytest.raises(InputError, match=r"^seed: "):
        engine.simulate(scenario, make_policy("uniform"), seed=-1)
    sampling = scenario.sampling.model_copy(update={"launches": 100_000, "steps": 1_000_000})
    with pytest.raises(InputError, match=r"^sampling: asks for \d+ events"):
        engine.simulate(scenario.model_copy(update={"sampling": sampling}), make_policy("uniform"))


# Plans of other shapes


def four_pipelines(build: Any) -> tuple[Scenario, Plan]:
    """Two pipelines of two groups of two, and two alone, all behind one thin uplink; every rate another."""
    devices = [
        build.device(
            f"d{n:02}",
            [1.0, 0.5, 2.0],
            [2.0, 1.0, 3.0],
            degrees=(1, 2),
            slowdown=1 + n // 4 / 8,
            max_w=100.0,
            idle_w=20.0,
        )
        for n in range(10)
    ]
    uplink = Link(name="uplink", latency_us=1000.0, bandwidth_gb_per_s=0.5)
    scenario = build.scenario(
        devices,
        batch=20,
        per_node=2,
        layers=[{"tensor": TensorSplit(divisor=2, forward_elements=[[1e7]], backward_elements=[[1e7]])}] * 3,
        parameters=10**8,
        outputs=1e8,
        gb_per_s=2.0,
        nodes=[{"switch": f"rack{number % 2}"} for number in range(5)],
        cluster={"switches": [Switch(name=f"rack{number}", uplink=uplink) for number in range(2)]},
        sampling=Sampling(steps=6),
    )
    deep = [build.pipeline([0, 2, 3], [[f"d{n:02}", f"d{n + 1:02}"] for n in (k, k + 2)], [2, 2, 2]) for k in (0, 4)]
    flat = [build.pipeline([0, 3], [f"d{n:02}"], [2, 2]) for n in (8, 9)]
    return scenario, Plan(pipelines=[*deep, *flat], schedule="1f1b", bucket_mib=1.0)


def test_a_run_of_pipelines_adds_up(build: Any) -> None:
    """Step time, samples, ledgers, memory, energy and bound of one summary say the same."""
    scenario, plan = four_pipelines(build)
    run = engine.simulate(scenario, Fixed(plan))
    summary = run.summary
    step_s = summary.step_time_s.mean
    assert summary.steps == 5
    assert summary.throughput_samples_per_s == pytest.approx(20 / step_s)
    assert {name: ledger.samples for name, ledger in summary.devices.items()} == plan.samples()
    peaks = memory.peak(scenario.workload, plan)
    for name, ledger in summary.devices.items():
        assert ledger.total_s() == pytest.approx(step_s, rel=1e-9)
        assert ledger.peak_memory_bytes == pytest.approx(peaks[name].total)
    assert 0 < summary.lower_bound_step_time_s < step_s
    assert summary.gap_to_bound == pytest.approx(step_s / summary.lower_bound_step_time_s - 1)
    times = [each for launch_times in step_times(run.events).values() for each in launch_times]
    assert quantiles(times).p50 == pytest.approx(summary.step_time_s.p50, rel=1e-9)
    alone = [20.0 * step_s * 10, 100.0 * step_s * 10]
    assert alone[0] < (summary.energy_j_per_step or 0.0) < alone[1]


def test_a_folded_run_says_the_same_of_every_device(build: Any) -> None:
    """Eight equal pipelines are simulated as one; each device of the others has the ledger of its image."""
    devices = [build.device(f"d{n:02}", [1.0, 1.0], [2.0, 2.0]) for n in range(16)]
    scenario = build.scenario(
        devices, batch=32, parameters=10**9, outputs=1e8, gb_per_s=1.0, sampling=Sampling(steps=4)
    )
    pipelines = [build.pipeline([0, 1, 2], [f"d{2 * n:02}", f"d{2 * n + 1:02}"], [1] * 4) for n in range(8)]
    summary = engine.simulate(scenario, Fixed(Plan(pipelines=pipelines, schedule="1f1b"))).summary
    for number, name in enumerate(sorted(summary.devices)):
        assert summary.devices[name] == summary.devices[f"d{number % 2:02}"]
        assert summary.devices[name].samples == 4
    assert summary.devices["d00"].compute_s == pytest.approx(12.0)


@given(every=st.integers(1, 5), steps=st.integers(1, 12))
def test_local_sgd_is_counted_in_whole_rounds(every: int, steps: int) -> None:
    whole = engine.whole_rounds(steps, every)
    assert whole >= steps or every == 1
    assert whole == steps if every == 1 else (whole - 1) % every == 0
    ends = [float(number) for number in range(1, whole + 1)]
    assert engine.step_durations([Launch(ends=ends)], every) == [1.0] * max(1, (whole - 1) // every)


# Repeatability


def folder_digest(run: Run, folder: Path) -> str:
    """Digest of the files that a run is made of (the manifest apart: it may tell of its circumstances)."""
    write_run(run, folder)
    names = ["events.parquet", "summary.json", "plan.json"]
    content = b"".join((folder / name).read_bytes() for name in names)
    return hashlib.sha256(content + run.manifest.run_id.encode()).hexdigest()


CHILD = """
import json, sys
from pathlib import Path
from steelyard.policies import make_policy
from steelyard.results.store import write_run
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import load_scenario
from steelyard.sim.view import Fixed
for scenario, plan, folder in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    policy = make_policy("attention") if plan == "attention" else Fixed(Plan.parse(json.loads(Path(plan).read_text())))
    run = simulate(load_scenario(scenario), policy)
    write_run(run, Path(folder))
    print(run.manifest.run_id)
"""


def test_same_inputs_same_bytes_in_another_process(scenario: Scenario, build: Any, tmp_path: Path) -> None:
    """Under any hash seed; a noisy data-parallel run, and one of pipelines, groups and shared links without noise."""
    hybrid, plan = four_pipelines(build)
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(plan.model_dump_json())
    runs = [engine.simulate(scenario, make_policy("attention")), engine.simulate(hybrid, Fixed(plan))]
    arguments: list[str] = []
    for number, each in enumerate((scenario, hybrid)):
        file = tmp_path / f"scenario{number}.json"
        file.write_text(each.model_dump_json())
        arguments += [str(file), str(plan_file) if number else "attention", "{place}" + str(number)]
        expected = folder_digest(runs[number], tmp_path / f"here{number}")
        policy = Fixed(plan) if number else make_policy("attention")
        assert folder_digest(engine.simulate(each, policy), tmp_path / f"again{number}") == expected
    for seed in ("1", "2"):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, *(each.format(place=tmp_path / seed) for each in arguments)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stdout.split() == [run.manifest.run_id for run in runs]
        for number in range(2):
            for name in ("events.parquet", "summary.json", "plan.json"):
                there, here = Path(f"{tmp_path / seed}{number}") / name, tmp_path / f"here{number}" / name
                assert there.read_bytes() == here.read_bytes(), name


def test_the_seed_decides(scenario: Scenario) -> None:
    policy = make_policy("uniform")
    first, second, third = (engine.simulate(scenario, policy, seed=seed) for seed in (1, 2, 1))
    assert first.summary == third.summary
    assert first.summary != second.summary
    assert first.manifest.run_id == third.manifest.run_id != second.manifest.run_id


# Noise


def test_quantiles_are_in_order_and_the_interval_holds_the_median(scenario: Scenario) -> None:
    for name in REGISTRY:
        summary = engine.simulate(scenario, make_policy(name)).summary
        times = summary.step_time_s
        low, high = summary.median_interval_s
        assert times.p10 < times.p50 < times.p90
        assert low <= statistics.median(summary.launch_median_step_time_s) <= high


def test_more_launches_do_not_move_or_narrow_the_spread(scenario: Scenario) -> None:
    """p10 to p90 is the spread of a step, not the error of a mean: it does not shrink with the number of launches."""
    widths, medians = [], []
    for launches in (40, 640):
        sampling = scenario.sampling.model_copy(update={"launches": launches})
        noisier = scenario.model_copy(update={"sampling": sampling})
        times = engine.simulate(noisier, fixed(noisier, {"fast": 24, "slow": 8})).summary.step_time_s
        widths.append(times.p90 - times.p10)
        medians.append(times.p50)
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
    assert medians[1] == pytest.approx(medians[0], rel=0.01)


def test_all_policies_meet_the_same_noise(scenario: Scenario) -> None:
    """A device's factors do not depend on its share, nor on who else works; a longer run begins like a shorter one."""
    both = draw(scenario, {"fast": 24, "slow": 8})
    other = draw(scenario, {"fast": 8, "slow": 24})
    alone = draw(scenario, {"fast": 32})
    longer = draw(scenario, {"fast": 24, "slow": 8}, launches=9)
    assert both == other == longer[:3]
    assert [each.compute["fast"] for each in alone] == [each.compute["fast"] for each in both]
    assert [each.optimizer["fast"] for each in alone] == [each.optimizer["fast"] for each in both]
    assert both[0].compute["fast"] != both[0].compute["slow"]


def draw(scenario: Scenario, samples: dict[str, int], launches: int = 3) -> list[Factors]:
    program = compile_plan(scenario, Plan.data_parallel(scenario.workload, samples), apart=True)
    return engine.draw_noise(scenario, program, steps=10, launches=launches, seed=5)


def gaussian_lanes(make_document: Callable[..., Document], scales: tuple[float, float], sigma: float) -> Scenario:
    """Two lanes whose compute segments scatter as a Gaussian; optimizer and links take next to no time."""
    document = make_document(noisy=False)
    normal = statistics.NormalDist(0.0, sigma)
    residuals = [normal.inv_cdf((rank + 0.5) / 999) for rank in range(999)]
    for device, scale in zip(document["cluster"]["nodes"][0]["devices"], scales, strict=True):
        profile = device["profile"]
        profile["points"] = [
            {"micro_batch": size, "forward_s": scale * size, "backward_s": scale * size} for size in (1, 16, 32)
        ]
        profile["optimizer_s"] = 1e-9
        profile["step_residuals"] = residuals
    for point in document["cluster"]["collectives"][0]["points"]:
        point["seconds"] = 1e-9
    document["sampling"] = {"launches": 40, "steps": 500}
    return scenario_from(document)


@pytest.mark.parametrize("ratio", [1.0, 1.05])
def test_mean_step_of_two_noisy_lanes_follows_clark(make_document: Callable[..., Document], ratio: float) -> None:
    """E max of two independent Gaussians (Clark 1961): mu1 Phi(a) + mu2 Phi(-a) + theta phi(a).

    theta^2 = s1^2 + s2^2, a = (mu1 - mu2)/theta; equal lanes: mu + 0.564 sigma. The standard error of the mean of
    19,960 steps is about sigma / 140; four of them are allowed.
    """
    sigma = 0.05
    scenario = gaussian_lanes(make_document, (1.0, ratio), sigma)
    mean = engine.simulate(scenario, fixed(scenario, {"fast": 16, "slow": 16})).summary.step_time_s.mean
    mu1, mu2 = 32.0, 32.0 * ratio
    theta = math.hypot(mu1 * sigma, mu2 * sigma)
    normal = statistics.NormalDist()
    a = (mu1 - mu2) / theta
    clark = mu1 * normal.cdf(a) + mu2 * normal.cdf(-a) + theta * normal.pdf(a)
    if ratio == 1.0:
        assert (clark / 32 - 1) / sigma == pytest.approx(0.564, abs=1e-3)
    assert mean == pytest.approx(clark, abs=4 * 32 * sigma / 140)
    assert mean > max(mu1, mu2) + 10 * 32 * sigma / 140  # a prediction built on means would be optimistic


def test_noise_free_scenarios_are_simulated_once(quiet_scenario: Scenario) -> None:
    plan = Plan.data_parallel(quiet_scenario.workload, {"fast": 24, "slow": 8})
    assert len(engine.run_launches(quiet_scenario, plan, seed=0, launches=50, record=False)) == 1


def test_datasheet_devices_say_so(make_document: Callable[..., Document]) -> None:
    document = make_document()
    del document["cluster"]["nodes"][0]["devices"][1]["profile"]
    scenario = scenario_from(document)
    assert engine.simulate(scenario, fixed(scenario, {"fast": 24, "slow": 8})).summary.fidelity == "datasheet"
    assert engine.simulate(scenario, fixed(scenario, {"fast": 32})).summary.fidelity == "profiled"


def test_a_profile_of_another_workload_does_not_count(scenario: Scenario) -> None:
    assert isinstance(scenario.cluster.devices[0].profile, Profile)
    longer = with_workload(scenario, sequence_length=64)
    assert engine.simulate(longer, fixed(longer, {"fast": 32})).summary.fidelity == "datasheet"
