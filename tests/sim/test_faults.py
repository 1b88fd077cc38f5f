"""Runs with failures against an independent loop, step by step, and against Daly's formula by many runs."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim import faults
from steelyard.sim.checkpoint import Job, daly_interval_s, expected_share, expected_wall_s
from steelyard.sim.faults import Clock, Failures, Goodput, Outcome
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, scenario_from

Document = dict[str, Any]
FAULTS: Document = {"checkpoint_s": 20.0, "restart_s": 60.0, "preemption_wait_s": 120.0, "work_hours": 20.0, "runs": 50}


def failures(times: list[float], preempted: list[bool] | None = None) -> Failures:
    return Failures(np.array(times, dtype=float), np.array(preempted or [False] * len(times), dtype=bool))


class Loop:
    """The rules of the module's docstring, one step after the other, for one run."""

    def __init__(self, job: Job, stops: list[tuple[float, bool]]) -> None:
        self.job, self.stops = job, stops
        self.now = self.useful_s = 0.0
        self.lost = dict.fromkeys(faults.CAUSES, 0.0)

    def spend(self, seconds: float, cause: str) -> bool:
        """Pass time; False when a failure comes first."""
        end = min(self.now + seconds, self.stops[0][0])
        self.lost[cause] += end - self.now
        whole, self.now = end == self.now + seconds, end
        return whole

    def run(self) -> Outcome | None:
        saved, back, up = 0, 0.0, True
        while True:
            while up and saved < self.job.steps:
                done, up = self.segment(int(self.job.steps) - saved)
                saved += done
            if saved == self.job.steps:
                return Outcome(self.useful_s, tuple(self.lost.values()), finished=True)
            self.now, preempted = self.stops.pop(0)
            if not self.stops:
                return None  # the last is no failure, but the end of what is known
            back = self.now + self.job.wait_s if preempted else back
            up = self.spend(max(0.0, back - self.now), "waiting_for_spot")
            up = up and self.spend(self.job.restart_s, "restart")

    def segment(self, left: int) -> tuple[int, bool]:
        """Steps until the next checkpoint, and it; the steps that were saved, and whether the job is still up."""
        job, (failure, preempted) = self.job, self.stops[0]
        done = 0
        warned = failure - job.checkpoint_s if job.noticed and preempted else math.inf
        while done < min(left, job.every):
            if self.now <= warned < self.now + job.step_s:
                self.spend(warned - self.now, "recompute")
                break
            if not self.spend(job.step_s, "recompute"):
                return 0, False
            done += 1
        early = done < min(left, job.every)
        before = self.lost["checkpoint"]
        if not self.spend(job.checkpoint_s, "checkpoint") and not early:
            self.lost["recompute"] += self.lost["checkpoint"] - before
            self.lost["checkpoint"] = before
            return 0, False
        self.useful_s += done * job.step_s
        self.lost["recompute"] -= done * job.step_s
        return done, not early


@st.composite
def histories(draw: st.DrawFn) -> tuple[Job, list[tuple[float, bool]]]:
    """Whole seconds for the job and halves between them for failures: all sums are exact and nothing ties."""
    steps = draw(st.integers(1, 40))
    job = Job(
        steps=steps,
        step_s=draw(st.integers(1, 5)),
        every=draw(st.integers(1, steps)),
        checkpoint_s=draw(st.integers(0, 6)),
        restart_s=draw(st.integers(0, 9)),
        wait_s=draw(st.integers(0, 9)),
        noticed=draw(st.booleans()),
    )
    places = sorted(draw(st.sets(st.integers(0, 400), max_size=40)))
    return job, [(place + 0.5, draw(st.booleans())) for place in places]


@given(histories())
def test_gaps_add_up_to_what_a_loop_finds(history: tuple[Job, list[tuple[float, bool]]]) -> None:
    job, stops = history
    horizon_s = 500.25
    found = faults.run_one(job, failures([time for time, _ in stops], [spot for _, spot in stops]), horizon_s)
    expected = Loop(job, [*stops, (horizon_s, False)]).run()
    assert found == expected


@given(histories(), st.data())
def test_an_interval_that_was_not_saved_is_done_again(
    history: tuple[Job, list[tuple[float, bool]]], data: st.DataObject
) -> None:
    """The first failure finds checkpoints missing: the run is so many intervals longer, if nothing fails later."""
    job, stops = history
    job = replace(job, noticed=False)
    first = failures([stops[0][0]]) if stops else failures([])
    plain = faults.run_one(job, first, 1e6)
    assert faults.run_one(job, first, 1e6, np.zeros(len(first.times), dtype=int)) == plain
    if plain is None or not stops or stops[0][0] > job.steps * job.step_s:
        return
    missing = data.draw(st.integers(0, int(stops[0][0] // job.segment_s)))
    found = faults.run_one(job, first, 1e6, np.array([missing]))
    assert found is not None
    assert found.useful_s == plain.useful_s
    assert found.wall_s == plain.wall_s + missing * job.segment_s
    assert found.lost_s[0] == plain.lost_s[0] + missing * job.segment_s


@given(histories())
def test_a_notice_never_makes_a_run_longer(history: tuple[Job, list[tuple[float, bool]]]) -> None:
    job, stops = history
    seen = failures([time for time, _ in stops], [spot for _, spot in stops])
    with_notice, without = (faults.run_one(replace(job, noticed=each), seen, 1e6) for each in (True, False))
    assert with_notice is not None
    assert without is not None
    assert with_notice.wall_s <= without.wall_s
    assert with_notice.useful_s == without.useful_s == job.steps * job.step_s


def test_by_hand() -> None:
    """Ten steps of 1 s, a checkpoint of 1 s after every 4; a failure at 7.5 s and another while restarting.

    Saved at 5, failed at 7.5 (2.5 in vain), restart broken off at 8, begun anew, up at 11; 4 + 1 + 2 + 1 s more.
    """
    job = Job(steps=10, step_s=1.0, every=4, checkpoint_s=1.0, restart_s=3.0)
    outcome = faults.run_one(job, failures([7.5, 8.0]), 100.0)
    assert outcome == Outcome(10.0, (2.5, 3.5, 3.0, 0.0), finished=True)
    assert outcome.wall_s == 19.0


def test_a_run_is_not_through_before_what_is_known() -> None:
    job = Job(steps=10, step_s=1.0, every=5, checkpoint_s=1.0, restart_s=0.0)
    assert faults.run_one(job, failures([]), 11.9) is None
    assert faults.run_one(job, failures([]), 12.0) is not None


# The law of large numbers: exponential gaps against the formulas


def simulate(job: Job, clocks: list[Clock], runs: int = 400) -> list[Outcome]:
    return faults.run_all(job, clocks, span_s=2 * job.steps * job.step_s, runs=runs, seed=3)


@pytest.mark.parametrize(
    ("mtbf_s", "save_s", "restart_s", "every"),
    [(1e5, 60.0, 300.0, 300), (4000.0, 60.0, 300.0, 60), (1000.0, 100.0, 500.0, 50), (300.0, 30.0, 0.0, 5)],
)
def test_mean_wall_time_is_dalys(mtbf_s: float, save_s: float, restart_s: float, every: int) -> None:
    """400 runs of 3,000 steps of 10 s: their mean is within 4 standard errors of the formula, exact for such a job."""
    job = Job(steps=3000, step_s=10.0, every=every, checkpoint_s=save_s, restart_s=restart_s)
    walls = [outcome.wall_s for outcome in simulate(job, [Clock("device", "any", 1 / mtbf_s)])]
    expected = expected_wall_s(30_000.0, every * 10.0, save_s, restart_s, mtbf_s)
    error = statistics.stdev(walls) / math.sqrt(len(walls))
    assert abs(statistics.mean(walls) - expected) < 4 * error
    assert error < 0.02 * expected


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize("every", [5, 60])
def test_share_with_preemptions_is_the_expected_one(noticed: bool, every: int) -> None:
    """Useful over all time of 200 runs with some 40 failures and 120 preemptions each, within 4 standard errors.

    The error is that of a ratio; 0.2 % is for the ends of the runs, which an endless one does not have.
    """
    job = Job(12_000, 10.0, every, 30.0, 200.0, wait_s=300.0, noticed=noticed)
    clocks = [Clock("node", "n", 1 / 4000), *(Clock("preemption", f"d{number}", 1 / 6000) for number in range(4))]
    outcomes = simulate(job, clocks, runs=200)
    useful, wall = [each.useful_s for each in outcomes], [each.wall_s for each in outcomes]
    ratio = sum(useful) / sum(wall)
    error = statistics.stdev(u - ratio * w for u, w in zip(useful, wall, strict=True)) * math.sqrt(200) / sum(wall)
    assert abs(ratio - expected_share(job, 1 / 4000, 4 / 6000)) < 4 * error + 2e-3 * ratio


def test_the_simulated_best_interval_is_dalys() -> None:
    """The same failures, intervals a factor of two apart around Daly's 1,094 s: his gives the shortest runs.

    Twice or half of it costs 1.4 % in theory; the difference between two intervals has a standard error of 0.1 %.
    """
    best = round(daly_interval_s(60.0, 10_000.0) / 10.0)
    walls = {}
    for every in (best // 4, best // 2, best, best * 2, best * 4):
        job = Job(steps=20_000, step_s=10.0, every=every, checkpoint_s=60.0, restart_s=120.0)
        walls[every] = statistics.mean(each.wall_s for each in simulate(job, [Clock("device", "any", 1e-4)], runs=200))
    assert min(walls, key=walls.__getitem__) == best


def test_many_clocks_are_one() -> None:
    """Failures of 40 devices together: as many as of one that fails 40 times as often, and gaps as long (KS test)."""
    from scipy.stats import kstest

    clocks = [Clock("device", f"d{number}", 1e-3) for number in range(40)]
    drawn = faults.draw(clocks, 0.0, 1000.0, part=0, runs=50, seed=5)
    assert abs(sum(len(each.times) for each in drawn) - 2000) < 4 * math.sqrt(2000)
    gaps = np.concatenate([np.diff(each.times) for each in drawn])
    assert kstest(gaps, "expon", args=(0, 25.0)).pvalue > 0.01


def test_failures_of_a_part_lie_in_it_in_order() -> None:
    clocks = [Clock("device", "a", 1e-2), Clock("preemption", "a", 1e-2)]
    for drawn in faults.draw(clocks, 500.0, 250.0, part=1, runs=20, seed=5):
        assert (np.diff(drawn.times) >= 0).all()
        assert ((drawn.times >= 500.0) & (drawn.times <= 750.0)).all()


def test_a_hopeless_run_is_given_up() -> None:
    """A checkpoint is never finished in 3 s: no useful time, and no endless loop."""
    job = Job(steps=1000, step_s=10.0, every=10, checkpoint_s=60.0, restart_s=120.0)
    outcomes = faults.run_all(job, [Clock("device", "any", 1 / 3)], span_s=3000.0, runs=3, seed=1)
    assert not any(each.finished for each in outcomes)
    assert all(each.share == 0.0 for each in outcomes)
    assert all(each.wall_s == pytest.approx(3.0 * faults.ENOUGH_FAILURES, rel=1.0) for each in outcomes)


# Whole scenarios


@pytest.fixture
def document(make_document: Callable[..., Document]) -> Document:
    return make_document() | {"faults": dict(FAULTS)}


def devices(document: Document) -> list[Document]:
    found: list[Document] = document["cluster"]["nodes"][0]["devices"]
    return found


def judge(document: Document, *names: str, step_s: float = 10.0, seed: int = 0) -> Goodput:
    scenario = scenario_from(document)
    found = faults.goodput(scenario, plan_for(scenario, *names), step_s=step_s, seed=seed)
    assert found is not None
    return found


def plan_for(scenario: Scenario, *names: str) -> Plan:
    return Plan.data_parallel(scenario.workload, dict.fromkeys(names or ("fast", "slow"), 16))


def test_without_faults_there_is_no_goodput(scenario: Scenario) -> None:
    assert faults.goodput(scenario, plan_for(scenario), step_s=1.0, seed=0) is None


def test_what_cannot_fail_loses_nothing(document: Document) -> None:
    found = judge(document)
    assert (found.share, found.interval, found.expected_share) == (1.0, (1.0, 1.0), 1.0)
    assert (found.mtbf_s, found.checkpoint_interval_s, found.failures_per_day) == (None, None, 0.0)
    assert found.lost_s == dict.fromkeys(faults.CAUSES, 0.0)
    assert found.wall_s == 72_000.0


def test_checkpoints_that_nobody_needs_still_cost(document: Document) -> None:
    document["faults"]["checkpoint_interval_s"] = 200.0
    found = judge(document)
    assert found.share == pytest.approx(200 / 220)
    assert found.lost_s["checkpoint"] == 72_000 / 200 * 20


def test_rates_add_up(document: Document) -> None:
    """Fast 100 h, slow 50 h as the faults say, the machine 100 h, slow preempted every 25 h: 0.08 an hour."""
    document["faults"] |= {"device_mtbf_hours": 50.0, "node_mtbf_hours": 1e9}
    document["cluster"]["nodes"][0]["mtbf_hours"] = 100.0
    devices(document)[0]["mtbf_hours"] = 100.0
    devices(document)[1]["preemptions_per_hour"] = 0.04
    both, fast = judge(document), judge(document, "fast")
    assert both.mtbf_s == pytest.approx(3600 / 0.08)
    assert both.failures_per_day == pytest.approx(24 * 0.08)
    assert fast.mtbf_s == pytest.approx(3600 / 0.02)
    assert fast.lost_s["waiting_for_spot"] == 0.0
    assert both.lost_s["waiting_for_spot"] > 0.0


def test_the_anchor(document: Document) -> None:
    """16,384 devices of 50,000 h: 425 failures in 54 days, where 419 were reported (recalled: physics of failures)."""
    document["faults"]["device_mtbf_hours"] = 2 * 50_000 / 16_384
    assert judge(document).failures_per_day * 54 == pytest.approx(419, rel=0.02)


def test_share_and_losses_make_up_the_run(document: Document) -> None:
    devices(document)[1]["preemptions_per_hour"] = 0.5
    document["faults"]["device_mtbf_hours"] = 4.0
    found = judge(document)
    assert all(found.lost_s[cause] > 0 for cause in faults.CAUSES)
    assert found.wall_s == pytest.approx(72_000 + sum(found.lost_s.values()))
    assert found.interval[0] < found.share < found.interval[1]
    assert found.share == pytest.approx(found.expected_share, rel=0.05)
    assert found.given_up == 0.0
    assert found.checkpoint_interval_s is not None
    assert found.checkpoint_interval_s % 10.0 == 0.0


def clock_times(document: Document, names: list[str]) -> list[set[float]]:
    clocks = faults.clocks_of(scenario_from(document), set(names))
    return [set(each.times.tolist()) for each in faults.draw(clocks, 0.0, 1e6, part=0, runs=20, seed=9)]


def test_plans_meet_the_same_failures(document: Document) -> None:
    """What stops a plan on ``fast`` stops one on both; so do the failures of ``slow``, and the machine's are shared."""
    document["faults"] |= {"device_mtbf_hours": 30.0, "node_mtbf_hours": 90.0}
    fast, slow, both = (clock_times(document, names) for names in (["fast"], ["slow"], ["fast", "slow"]))
    assert [one | other for one, other in zip(fast, slow, strict=True)] == both
    shared = sum(len(one & other) for one, other in zip(fast, slow, strict=True))
    assert 0 < shared < sum(map(len, fast))


def test_a_device_more_changes_nothing_for_the_others(document: Document) -> None:
    document["faults"]["device_mtbf_hours"] = 30.0
    before = clock_times(document, ["fast"])
    devices(document).append(devices(document)[0] | {"name": "third"})
    assert clock_times(document, ["fast"]) == before


def test_the_order_of_devices_and_machines_changes_nothing(document: Document) -> None:
    document["faults"] |= {"device_mtbf_hours": 10.0, "node_mtbf_hours": 30.0}
    devices(document)[1]["preemptions_per_hour"] = 0.3
    other = {**document["cluster"]["nodes"][0], "name": "other", "devices": [devices(document)[0] | {"name": "third"}]}
    document["cluster"] |= {"network": "ethernet-10g", "nodes": [*document["cluster"]["nodes"], other]}
    turned = {**document["cluster"], "nodes": document["cluster"]["nodes"][::-1]}
    turned["nodes"] = [{**node, "devices": node["devices"][::-1]} for node in turned["nodes"]]
    assert judge(document, "fast", "third") == judge({**document, "cluster": turned}, "third", "fast")


def test_machines_of_one_name_fail_apart(document: Document) -> None:
    document["faults"]["node_mtbf_hours"] = 10.0
    twin = {**document["cluster"]["nodes"][0], "devices": [devices(document)[0] | {"name": "third"}]}
    document["cluster"] |= {"network": "ethernet-10g", "nodes": [*document["cluster"]["nodes"], twin]}
    one, other = clock_times(document, ["fast"]), clock_times(document, ["third"])
    assert sum(map(len, one)) > 0
    assert not any(a & b for a, b in zip(one, other, strict=True))


@given(st.floats(0.01, 100.0))
def test_all_times_scaled_leave_the_shares(make_document: Callable[..., Document], factor: float) -> None:
    document = make_document() | {"faults": {**FAULTS, "device_mtbf_hours": 5.0, "runs": 5}}
    devices(document)[1]["preemptions_per_hour"] = 0.5
    scaled = make_document() | {"faults": {key: factor * value for key, value in document["faults"].items()}}
    scaled["faults"]["runs"] = 5
    devices(scaled)[1]["preemptions_per_hour"] = 0.5 / factor
    before, after = judge(document), judge(scaled, step_s=10.0 * factor)
    assert after.share == pytest.approx(before.share, rel=1e-9)
    assert after.interval == pytest.approx(before.interval, rel=1e-9)
    assert after.wall_s == pytest.approx(factor * before.wall_s, rel=1e-9)
    assert after.lost_s == pytest.approx({key: factor * value for key, value in before.lost_s.items()}, rel=1e-6)


PROGRAM = """
import json, sys
from steelyard.sim import faults
from steelyard.sim.plan import Plan
from steelyard.sim.spec import scenario_from
scenario = scenario_from(json.load(sys.stdin))
print(faults.goodput(scenario, Plan.data_parallel(scenario.workload, {"fast": 16, "slow": 16}), step_s=10.0, seed=4))
"""


def test_another_process_finds_the_same(document: Document) -> None:
    import json

    document["faults"]["device_mtbf_hours"] = 5.0
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(document), capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == repr(judge(document, seed=4)), result.stderr
    assert judge(document, seed=5).share != judge(document, seed=4).share


def test_figures_are_plain_numbers(document: Document) -> None:
    """They go into a JSON record."""
    import json

    document["faults"]["device_mtbf_hours"] = 5.0
    assert json.loads(json.dumps(dataclasses.asdict(judge(document)), allow_nan=False))["share"] < 1


# Bad input, and figures at the edge of what a scenario may say


@pytest.mark.parametrize(
    "extreme",
    [
        {"device_mtbf_hours": 1e-15},
        {"device_mtbf_hours": 1e30},
        {"device_mtbf_hours": 1.0, "restart_s": 1e30},
        {"device_mtbf_hours": 1.0, "checkpoint_s": 1e30},
        {"device_mtbf_hours": 1.0, "checkpoint_s": 1e-30},
        {"device_mtbf_hours": 1.0, "checkpoint_interval_s": 1e30},
        {"device_mtbf_hours": 1.0, "work_hours": 1e30},
        {"device_mtbf_hours": 1.0, "work_hours": 1e-30},
    ],
)
@pytest.mark.parametrize("step_s", [1e-12, 10.0, 1e12])
def test_extreme_figures_give_a_share(document: Document, extreme: Document, step_s: float) -> None:
    found = judge({**document, "faults": {**FAULTS, "runs": 2, **extreme}}, step_s=step_s)
    assert 0 <= found.share <= 1
    assert 0 <= found.expected_share <= 1
    assert all(0 <= seconds < math.inf for seconds in (found.wall_s, *found.lost_s.values()))


@pytest.mark.parametrize(
    ("wrong", "path"),
    [({"runs": 100_000, "device_mtbf_hours": 0.01}, "faults.runs"), ({"device_mtbf_hours": 1e-30}, "faults")],
)
def test_too_many_failures_are_an_error(document: Document, wrong: Document, path: str) -> None:
    with pytest.raises(InputError) as caught:
        judge({**document, "faults": {**FAULTS, **wrong}})
    assert caught.value.path == path
    assert caught.value.mend
