"""Effort: time goes where a decision needs it, the budget holds, and the scenario's launches come first."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.effort import (
    LEAST_TARGET,
    MOST_TARGET,
    MOST_TIMES,
    Effort,
    Rules,
    Seen,
    half_width_percent,
    launch_s,
    needs,
    next_effort,
    next_turn,
    targets,
)

RULES = Rules(launches=5, rounds=3, steps=4, warmup=2)


@st.composite
def studies(draw: st.DrawFn, launches: st.SearchStrategy[int] = st.integers(0, 6)) -> list[Seen]:  # noqa: B008 - pure
    """Plans with some launches behind them."""
    count = draw(launches)
    plans = []
    for _ in range(draw(st.integers(1, 5))):
        level = draw(st.floats(0.005, 0.5))
        steps = st.tuples(*[st.floats(0.9 * level, 1.1 * level)] * 4)
        plans.append(Seen(level, tuple(draw(steps) for _ in range(count))))
    return plans


@given(plans=studies(), left=st.floats(0.0, 1e4), overhead=st.floats(0.0, 20.0))
def test_what_is_planned_fits_the_budget_and_gives_every_plan_its_share(
    plans: list[Seen], left: float, overhead: float
) -> None:
    effort = next_effort(plans, RULES, left_s=left, overhead_s=overhead)
    if effort.over:
        assert effort.reason
        return
    assert len(effort.steps) == len(plans)
    assert all(1 <= steps <= MOST_TIMES * RULES.steps for steps in effort.steps)
    done = len(plans[0].launches)
    if set(effort.steps) != {1}:  # a launch of single steps goes ahead where it is the first, whatever it takes
        to_come = max(1, RULES.launches - done)
        assert overhead + launch_s(plans, RULES, effort.steps) <= max(left / to_come, left) + 1e-9
        if done < RULES.launches:
            assert overhead + launch_s(plans, RULES, effort.steps) <= left / to_come + 1e-9


@given(plans=studies(), overhead=st.floats(0.0, 20.0))
def test_without_a_budget_the_scenario_is_done_to_the_letter(plans: list[Seen], overhead: float) -> None:
    effort = next_effort(plans, RULES, left_s=None, overhead_s=overhead)
    wanted = (RULES.steps,) * len(plans) if len(plans[0].launches) < RULES.launches else ()
    assert effort.steps == wanted


@given(plans=studies(st.integers(0, 4)), overhead=st.floats(0.0, 20.0))
def test_the_scenarios_launches_come_before_any_stop_that_is_not_the_budgets(
    plans: list[Seen], overhead: float
) -> None:
    assert not next_effort(plans, RULES, left_s=1e9, overhead_s=overhead).over


@given(plans=studies(st.just(0)))
def test_the_first_launch_is_made_whatever_the_budget(plans: list[Seen]) -> None:
    assert next_effort(plans, RULES, left_s=-1.0, overhead_s=8.0).steps == (1,) * len(plans)


@given(plans=studies(), left=st.floats(1.0, 1e4))
def test_equal_questions_have_equal_answers(plans: list[Seen], left: float) -> None:
    first, again = (next_effort(plans, RULES, left_s=left, overhead_s=3.0) for _ in range(2))
    assert first == again


@given(plans=studies(st.integers(2, 6)))
def test_targets_are_bounded_and_a_twin_is_not_to_be_told_from_its_original(plans: list[Seen]) -> None:
    assert all(LEAST_TARGET <= target <= MOST_TARGET for target in targets(plans))
    assert targets([plans[0], replace(plans[0])]) == [MOST_TARGET, MOST_TARGET]


def sampled(source: random.Random, level: float, spread: float, launches: int = 3) -> Seen:
    return Seen(level, tuple(tuple(level * source.gauss(1.0, spread) for _ in range(12)) for _ in range(launches)))


def test_the_noisy_plan_near_the_top_gets_more_than_the_quiet_one_far_off() -> None:
    source = random.Random(3)
    plans = [sampled(source, 0.100, 0.05), sampled(source, 0.102, 0.05), sampled(source, 0.200, 0.002)]
    effort = next_effort(plans, RULES, left_s=2 * (8 + launch_s(plans, RULES, (4, 4, 4))), overhead_s=8.0)
    near, other, far = effort.steps
    assert min(near, other) > far


def test_one_launch_tells_nothing_of_the_next() -> None:
    assert half_width_percent([[1.0, 1.1]]) == math.inf
    assert half_width_percent([[1.0], [1.0], [1.0]]) == 0.0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Student's t of launch medians: 80 % of the time, for normal launches."""
    source = random.Random(11)
    inside = 0
    for _ in range(1000):
        launches = [[source.gauss(1.0, 0.03)] for _ in range(5)]
        middle = sum(each[0] for each in launches) / 5
        # The half-width is stated relative to the median; the mean is what Student's interval is about.
        half = half_width_percent(launches) / 100 * sorted(each[0] for each in launches)[2]
        inside += abs(middle - 1.0) <= half
    assert inside / 1000 == pytest.approx(0.8, abs=0.05)


def simulated(levels: list[float], spread: float, budget_s: float, seed: int) -> tuple[list[Seen], float, Effort]:
    """A whole measurement of plans whose steps and launches are noisy, by the clock of its own steps."""
    source = random.Random(seed)
    plans, spent = [Seen(level) for level in levels], 0.0
    while True:
        effort = next_effort(plans, RULES, left_s=budget_s - spent, overhead_s=5.0)
        if effort.over:
            return plans, spent, effort
        luck = source.gauss(1.0, spread / 4)
        launches = [
            tuple(level * luck * source.gauss(1.0, spread) for _ in range(RULES.rounds * steps))
            for level, steps in zip(levels, effort.steps, strict=True)
        ]
        spent += 5.0 + launch_s(plans, RULES, effort.steps)
        plans = [replace(plan, launches=(*plan.launches, own)) for plan, own in zip(plans, launches, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_quiet_plans_stop_early_and_noisy_ones_use_the_budget(seed: int) -> None:
    levels = [0.05, 0.06, 0.09]
    quiet, spent, effort = simulated(levels, 0.004, 600.0, seed)
    assert "known" in effort.reason
    assert len(quiet[0].launches) >= RULES.launches
    assert spent < 200
    assert max(needs(quiet)) <= 1
    noisy, spent, effort = simulated(levels, 0.3, 150.0, seed)
    assert len(noisy[0].launches) >= RULES.launches
    assert 100 < spent <= 150 * 1.1  # what a step takes is known only roughly before it was measured
    assert not effort.steps


@pytest.mark.parametrize("budget", [6.0, 12.0, 20.0])
def test_a_budget_for_fewer_launches_makes_fewer(budget: float) -> None:
    plans, spent, effort = simulated([0.05, 0.06], 0.01, budget, 0)
    assert 1 <= len(plans[0].launches) < RULES.launches
    assert "budget" in effort.reason
    assert spent <= budget + 6.0


@st.composite
def followed(draw: st.DrawFn) -> list[Seen]:
    """Policies with some whole runs behind them, made in turns."""
    levels = draw(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=5))
    whole, rest = draw(st.integers(0, 8)), draw(st.integers(0, len(levels) - 1))
    means = [st.tuples(st.floats(0.9 * level, 1.1 * level)) for level in levels]
    counts = [whole + (index < rest) for index in range(len(levels))]
    return [
        Seen(level, tuple(draw(own) for _ in range(n))) for level, own, n in zip(levels, means, counts, strict=True)
    ]


@given(
    runs=followed(), launches=st.integers(1, 6), left=st.none() | st.floats(-10.0, 100.0), run_s=st.floats(0.1, 50.0)
)
def test_whole_runs_are_made_in_turns_and_a_further_one_fits_the_budget(
    runs: list[Seen], launches: int, left: float | None, run_s: float
) -> None:
    turn, counts = next_turn(runs, launches, left_s=left, run_s=run_s), [len(each.launches) for each in runs]
    if turn.index is None:
        assert turn.reason
        assert min(counts) >= 1
        assert min(counts) >= launches or (left is not None and left < run_s)
        return
    if min(counts) < launches:
        assert turn.index == counts.index(min(counts))
    else:
        assert left is not None
        assert counts[turn.index] < MOST_TIMES * launches
        others = [need for need, count in zip(needs(runs), counts, strict=True) if count < MOST_TIMES * launches]
        assert needs(runs)[turn.index] == max(others) > 1
    assert not min(counts) or left is None or run_s <= left
