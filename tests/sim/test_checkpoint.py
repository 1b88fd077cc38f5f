"""Checkpoints against Daly (2006) and the exact optimum; what failures leave in theory, against its own limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim import checkpoint
from steelyard.sim.checkpoint import Job, best_interval_s, daly_interval_s, expected_share, expected_wall_s
from steelyard.sim.spec import Scenario, scenario_from

seconds = st.floats(0.1, 1e4)
rates = st.floats(1e-9, 1e-1)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    steps = draw(st.integers(1, 300))
    every = draw(st.integers(1, steps))
    times = {name: draw(seconds) for name in ("step_s", "checkpoint_s", "restart_s", "wait_s")}
    return Job(steps=steps, every=every, noticed=draw(st.booleans()), **times)


# Daly


@given(seconds, seconds, seconds, seconds, st.integers(1, 1000))
def test_expected_wall_is_dalys_formula(
    interval_s: float, save_s: float, restart_s: float, mtbf_s: float, count: int
) -> None:
    """M e^(R/M) (e^((tau+d)/M) - 1) T/tau, as it is printed; where that overflows, infinite or as large."""
    wall_s = expected_wall_s(count * interval_s, interval_s, save_s, restart_s, mtbf_s)
    exponent = (restart_s + interval_s + save_s) / mtbf_s
    if exponent < 600:
        printed = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + save_s) / mtbf_s) * count
        assert wall_s == pytest.approx(printed, rel=1e-9)
    else:
        assert wall_s > 1e200


def test_without_failures_only_the_checkpoints_are_left() -> None:
    assert expected_wall_s(1e6, 1e3, 10.0, 300.0, 1e30) == pytest.approx(1e6 * 1.01, rel=1e-12)


@given(st.floats(1e-12, 100.0), st.floats(1.0, 1e9))
def test_best_interval_is_the_exact_optimum(part: float, mtbf_s: float) -> None:
    """Where the derivative of (e^((tau+d)/M) - 1)/tau is zero, (1 - z) e^z = e^(-d/M) with z = tau/M.

    Its solution is z = 1 + W(-e^(-1-d/M)), W Lambert's; 2 d M below d/M = 1e-6, where that rounds. A search by value
    finds a flat maximum to the root of what rounding leaves of it: 1e-4 of z, and 1 % below d/M = 1e-6.
    """
    from scipy.special import lambertw

    found = best_interval_s(part * mtbf_s, mtbf_s)
    exact = 1 + float(lambertw(-math.exp(-1 - part)).real) if part > 1e-6 else math.sqrt(2 * part)
    assert found == pytest.approx(mtbf_s * exact, rel=1e-4 if part > 1e-6 else 1e-2)


@pytest.mark.parametrize(("part", "within"), [(1e-6, 1e-4), (1e-4, 1e-4), (1e-2, 1e-3), (0.1, 0.01), (0.5, 0.02)])
def test_best_interval_is_dalys_within_a_tolerance(part: float, within: float) -> None:
    """His series is cut after the third term: the error grows with d/M, to 2 % at d = M/2."""
    assert daly_interval_s(part, 1.0) == pytest.approx(best_interval_s(part, 1.0), rel=within)


def test_where_a_checkpoint_takes_two_mtbf_daly_gives_the_mtbf() -> None:
    assert daly_interval_s(2.0, 1.0) == daly_interval_s(5.0, 1.0) == 1.0
    assert best_interval_s(5.0, 1.0) == pytest.approx(1.0, rel=0.01)


# The expected share


@given(jobs(), rates)
def test_without_preemptions_the_share_is_dalys(job: Job, failing: float) -> None:
    work_s = job.every * job.step_s
    wall_s = expected_wall_s(work_s, work_s, job.checkpoint_s, job.restart_s, 1 / failing)
    assert expected_share(job, failing, 0.0) == pytest.approx(work_s / wall_s, rel=1e-9, abs=1e-300)


@given(jobs(), rates, rates)
def test_the_share_falls_with_every_evil(job: Job, failing: float, preempting: float) -> None:
    share = expected_share(job, failing, preempting)
    assert 0 <= share <= 1
    worse = [
        expected_share(replace(job, restart_s=job.restart_s * 2), failing, preempting),
        expected_share(replace(job, wait_s=job.wait_s * 2), failing, preempting),
        expected_share(replace(job, checkpoint_s=job.checkpoint_s * 2), failing, preempting),
        expected_share(replace(job, noticed=False), failing, preempting),
        expected_share(job, failing * 2, preempting),
        expected_share(replace(job, noticed=False), failing, preempting * 2),
    ]
    assert all(each <= share * (1 + 1e-9) for each in worse)


@given(jobs(), rates, rates, st.floats(1e-3, 1e3))
def test_all_times_scaled_leave_the_share(job: Job, failing: float, preempting: float, factor: float) -> None:
    times = {name: getattr(job, name) * factor for name in ("step_s", "checkpoint_s", "restart_s", "wait_s")}
    scaled = expected_share(replace(job, **times), failing / factor, preempting / factor)
    assert scaled == pytest.approx(expected_share(job, failing, preempting), rel=1e-6, abs=1e-300)


def test_a_notice_saves_the_steps_before_it() -> None:
    """By hand, M = 1: up to 3 steps of 1 between checkpoints of 0.5, every failure noticed.

    A gap g keeps 3 floor(g/3.5) + min(3, floor(x - 0.5)) where x = g mod 3.5 is at least 0.5; summed over e^-g.
    """
    job = Job(steps=100, step_s=1.0, every=3, checkpoint_s=0.5, restart_s=0.0, noticed=True)
    width = 1e-3
    places = [(number + 0.5) * width for number in range(40_000)]
    kept = [3 * (g // 3.5) + min(3.0, max(0.0, (g % 3.5 - 0.5) // 1.0)) for g in places]
    by_hand = sum(math.exp(-g) * width * steps for g, steps in zip(places, kept, strict=True))
    assert expected_share(job, 0.0, 1.0) == pytest.approx(by_hand, rel=1e-3)


@given(jobs(), rates, rates)
def test_best_number_of_steps_is_the_best_of_all(job: Job, failing: float, preempting: float) -> None:
    """Restart and wait leave the order of the intervals; here they are none, so that no share underflows to 0."""
    job = replace(job, restart_s=0.0, wait_s=0.0)
    shares = {
        every: expected_share(replace(job, every=every), failing, preempting) for every in range(1, int(job.steps) + 1)
    }
    best = checkpoint.best_every(job, failing, preempting)
    assert shares[int(best)] >= max(shares.values()) * (1 - 1e-9)


# Scenarios


@pytest.fixture
def document(make_document: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return make_document()


def job(document: dict[str, Any], failing: float = 1e-6, step_s: float = 2.0, **faults: Any) -> Job:
    return checkpoint.job_of(scenario_from({**document, "faults": faults}), step_s, failing, 0.0)


@pytest.mark.parametrize(
    ("dtype", "optimizer", "each"),
    [("fp32", "adamw", 12), ("bf16", "adamw", 14), ("fp32", "sgd", 4), ("fp16", "sgd", 6)],
)
def test_a_checkpoint_holds_all_but_the_gradients(
    document: dict[str, Any], dtype: str, optimizer: str, each: int
) -> None:
    """Bytes per parameter: weights, fp32 master weights of 16-bit training, two fp32 states of AdamW."""
    document["workload"] |= {"dtype": dtype, "optimizer": optimizer}
    scenario = scenario_from({**document, "faults": {"storage_gb_per_s": 0.5}})
    size = each * scenario.workload.parameters
    assert checkpoint.checkpoint_bytes(scenario.workload) == size
    assert checkpoint.checkpoint_s(scenario) == pytest.approx(size / 0.5e9)


def test_a_given_checkpoint_and_interval_are_taken(document: dict[str, Any]) -> None:
    given_ = job(document, checkpoint_s=30.0, checkpoint_interval_s=601.0, work_hours=1.0)
    assert (given_.steps, given_.every, given_.checkpoint_s) == (1800, 300, 30.0)
    assert job(document, checkpoint_interval_s=1e9, work_hours=1.0).every == 1800
    assert job(document, checkpoint_interval_s=1e-9, work_hours=1.0).every == 1


def test_the_best_interval_is_in_whole_steps(document: dict[str, Any]) -> None:
    """Daly: 346 s at d = 0.06 s, M = 10^6 s."""
    found = job(document, checkpoint_s=0.06)
    assert found.every == round(daly_interval_s(0.06, 1e6) / 2.0) == 173
    assert job(document, checkpoint_s=0.06, step_s=1e5).every == 1
    assert job(document, checkpoint_s=0.06, step_s=1e9).steps == 1


def test_what_cannot_fail_writes_no_checkpoint(document: dict[str, Any]) -> None:
    never = job(document, failing=0.0, checkpoint_s=30.0)
    assert not never.saving
    assert never.checkpoint_s == 0.0
    asked = job(document, failing=0.0, checkpoint_s=30.0, checkpoint_interval_s=300.0)
    assert asked.saving
    assert expected_share(asked, 0.0, 0.0) == pytest.approx(300 / 330)


def test_a_notice_counts_where_a_checkpoint_fits(document: dict[str, Any]) -> None:
    for notice_s, save_s in itertools.product((0.0, 29.0, 30.0), (30.0, 1.0)):
        assert job(document, preemption_notice_s=notice_s, checkpoint_s=save_s).noticed == (notice_s >= save_s)


def test_a_scenario_without_faults_has_their_defaults(scenario: Scenario) -> None:
    assert checkpoint.checkpoint_s(scenario) == checkpoint.checkpoint_bytes(scenario.workload) / 2e9
