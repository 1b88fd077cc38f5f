"""The article's linear cost: its worked example with the arithmetic mended, and the vertex that it leads to."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies.linear_cost import LinearCost, linear_cost, vertex
from steelyard.policies.makespan import Makespan
from steelyard.policies.testing import scenarios
from steelyard.sim.engine import objective_value
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import Scenario
from steelyard.sim.view import View

D = 1.0
T, M = (2 * D, 4 * D), (D, 2 * D)
"""The article's two devices: compute time and memory time."""


def test_the_sums_of_the_worked_example() -> None:
    """T_1 + M_1 = 2D + D = 3D (the article has another sum), and T_2 + M_2 = 4D + 2D = 6D."""
    assert linear_cost([1, 0], T, M) == pytest.approx(3 * D)
    assert linear_cost([0, 1], T, M) == pytest.approx(6 * D)


def test_the_articles_shares_are_not_the_minimum() -> None:
    """The shares (0.2, 0.8) costs 0.2 x 3D + 0.8 x 6D = 5.4D; the vertex (1, 0) costs 3D."""
    assert linear_cost([0.2, 0.8], T, M) == pytest.approx(5.4 * D)
    assert linear_cost([1.0, 0.0], T, M) < linear_cost([0.2, 0.8], T, M)


def test_the_coefficient_of_the_weighted_cost() -> None:
    """C' scales T_k by beta_k: with beta_1 = 0.2 the coefficient of alpha_1 is 0.2 x 2D + D = 1.4D, and not 0.4D."""
    beta = (0.2, 0.8)
    weighted = [b * t for b, t in zip(beta, T, strict=True)]
    assert linear_cost([1, 0], weighted, M) == pytest.approx(1.4 * D)
    assert linear_cost([0, 1], weighted, M) == pytest.approx(0.8 * 4 * D + 2 * D)


@given(st.floats(0, 1))
def test_no_point_of_the_simplex_is_below_the_vertex(share: float) -> None:
    assert linear_cost([share, 1 - share], T, M) >= linear_cost([1.0, 0.0], T, M)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.integers(0, 10**6))
def test_the_minimum_of_a_linear_cost_is_a_vertex(costs: list[float], seed: int) -> None:
    """Against random points of the simplex, in any number of dimensions."""
    draws = random.Random(seed)
    weights = [draws.expovariate(1.0) for _ in costs]
    point = [weight / sum(weights) for weight in weights]
    assert linear_cost(point, costs, [0.0] * len(costs)) >= min(costs) - 1e-9


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20)), min_size=1, max_size=5), st.integers(0, 40))
def test_with_caps_no_exchange_of_a_sample_makes_it_cheaper(devices: list[tuple[float, int]], batch: int) -> None:
    costs, limits = [cost for cost, _ in devices], [limit for _, limit in devices]
    batch = min(batch, sum(limits))
    split = vertex(costs, batch, limits)
    assert sum(split) == batch
    for giver, taker in ((i, j) for i in range(len(costs)) for j in range(len(costs))):
        if split[giver] > 0 and split[taker] < limits[taker]:
            assert costs[taker] >= costs[giver]


def test_one_device_does_it_all_and_the_others_idle(quiet_scenario: Scenario) -> None:
    """What is wrong with the cost: its optimum is slower than the min-max split, by the engine."""
    view = View.of(quiet_scenario)
    assert LinearCost().allocate(view).split() == {"fast": 32}
    vertex_value = objective_value(quiet_scenario, LinearCost(), seed=0, launches=1)
    assert vertex_value < objective_value(quiet_scenario, Makespan(), seed=0, launches=1)


@settings(max_examples=40)
@given(scenarios(), st.floats(0, 4))
def test_at_most_one_device_is_neither_full_nor_idle(scenario: Scenario, weight: float) -> None:
    view = View.of(scenario)
    try:
        split = LinearCost(memory_weight=weight).allocate(view).split()
    except Infeasible:
        return
    between = [d for d in view.devices if 0 < split.get(d.name, 0) < d.capacity]
    assert len(between) <= 1
