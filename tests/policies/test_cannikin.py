"""Cannikin: optimal for the simulated step with overlap, and equal where nothing overlaps to the plain optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from steelyard.policies.cannikin import Cannikin
from steelyard.policies.makespan import Makespan
from steelyard.policies.overlap import Overlaps, buckets
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, load_scenario
from steelyard.sim.view import Fixed, View


@dataclass(frozen=True)
class Shown:
    """A scenario without noise, and what its steps take."""

    scenario: Scenario

    @property
    def view(self) -> View:
        return View.of(self.scenario)

    def step_s(self, plan: Plan) -> float:
        return simulate(self.scenario, Fixed(plan)).summary.step_time_s.p50

    def split(self, first: int, bucket_mib: float) -> Plan:
        plan = self.view.plan([first, self.view.global_batch - first])
        return plan.model_copy(update={"bucket_mib": bucket_mib})


@pytest.fixture(params=["mixed-gpus", "old-and-new", "two-gpus-one-box"])
def shown(request: Any) -> Shown:
    return Shown(load_scenario(request.param))


@pytest.mark.parametrize("bucket_mib", [25.0, 100.0])
def test_no_split_of_two_devices_is_faster_when_simulated(shown: Shown, bucket_mib: float) -> None:
    policy = Cannikin(bucket_mib=bucket_mib)
    plan = policy.allocate(shown.view)
    best, batch = shown.step_s(plan), shown.view.global_batch
    first = plan.split()[shown.view.devices[0].name]
    near = {*range(max(1, first - 4), min(batch, first + 5)), *range(1, batch, max(1, batch // 16))}
    assert best <= min(shown.step_s(shown.split(each, bucket_mib)) for each in near) * (1 + 1e-9)


def test_what_is_minimised_is_the_simulated_step(shown: Shown) -> None:
    """The estimate per device, its maximum over the devices, and the engine."""
    times = Overlaps(shown.view, 25.0).among(np.array([0, 1]))
    batch = shown.view.global_batch
    for first in (batch // 4, batch // 2, 3 * batch // 4):
        each = times.at(times.row_of, np.array([first, batch - first]))
        assert shown.step_s(shown.split(first, 25.0)) == pytest.approx(each.max(), rel=1e-9)


def test_both_kinds_of_bottleneck_end_together() -> None:
    """The paper's optimality condition: where both devices could still trade a sample, their times are equal to one.

    On mixed-gpus the slow device computes for longer than its communication, and the other way round.
    """
    view = View.of(load_scenario("mixed-gpus"))
    split = Cannikin().allocate(view).split()
    times = Overlaps(view, 25.0).among(np.array([0, 1]))
    samples = np.array([split[device.name] for device in view.devices])
    here, more = times.at(times.row_of, samples), times.at(times.row_of, samples + 1)
    for place in range(2):  # a sample more ends later than the step does: nobody can take one
        assert more[place] >= here.max() * (1 - 1e-9)


def test_without_overlap_it_is_the_plain_optimum() -> None:
    scenario = load_scenario("mixed-gpus")
    nodes = [
        node.model_copy(update={"devices": [device.model_copy(update={"overlaps": False}) for device in node.devices]})
        for node in scenario.cluster.nodes
    ]
    view = View.of(scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})}))
    assert Cannikin().allocate(view).split() == Makespan(leave_out=False).allocate(view).split()


def test_overlap_changes_the_split() -> None:
    shown = Shown(load_scenario("mixed-gpus"))
    plain = Makespan(leave_out=False, overlap=False).allocate(shown.view)
    plan = Cannikin().allocate(shown.view)
    assert plan.split() != plain.split()
    assert shown.step_s(plan) < shown.step_s(plain.model_copy(update={"bucket_mib": 25.0}))


@pytest.mark.parametrize("bucket_mib", [1.0, 25.0, 1000.0])
def test_buckets_hold_all_gradients_once(shown: Shown, bucket_mib: float) -> None:
    found = buckets(shown.view.workload, bucket_mib)
    assert sum(size for _, size in found) == pytest.approx(shown.view.workload.gradient_bytes)
    assert all(size >= bucket_mib * 2**20 for _, size in found[:-1])
    firsts = [first for first, _ in found]
    assert firsts == sorted(firsts, reverse=True)
    assert firsts[-1] == 0
