"""Residuals: a bias that is there is found, one that is not is left alone, and intervals hold on data not seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.residuals import Key, Residual, fit_biases, held_out

LANES = ("full", "sse")
KINDS = ("forward", "backward", "optimizer", "communication")


def drawn(
    bias: float, *, seed: int, runs: int = 8, launches: int = 5, run_sd: float = 0.01, launch_sd: float = 0.01
) -> list[Residual]:
    """Residuals of every lane and kind; each run has an offset of its own, and each launch."""
    random = np.random.default_rng(seed)
    return [
        Residual(Key(lane, kind), f"run {run}", f"launch {launch}", bias + offset + float(random.normal(0, launch_sd)))
        for lane in LANES
        for kind in KINDS
        for run in range(runs)
        for offset in [float(random.normal(0, run_sd))]
        for launch in range(launches)
    ]


@given(bias=st.floats(-0.2, 0.2).filter(lambda each: abs(each) > 0.03), seed=st.integers(0, 50))
def test_a_bias_that_all_runs_share_is_found(bias: float, seed: int) -> None:
    for found in fit_biases(drawn(bias, seed=seed)).values():
        assert found.bias == pytest.approx(bias, abs=0.025)
        assert found.factor == pytest.approx(math.exp(found.bias))


@given(seed=st.integers(0, 200))
def test_shrinking_never_goes_beyond_what_was_seen_nor_past_none(seed: int) -> None:
    for found in fit_biases(drawn(0.0, seed=seed, runs=3, run_sd=0.05)).values():
        assert abs(found.bias) <= abs(found.raw) + 1e-12
        assert found.bias * found.raw >= 0


def test_noise_without_a_bias_changes_little() -> None:
    shrunk = [abs(each.bias) for seed in range(40) for each in fit_biases(drawn(0.0, seed=seed)).values()]
    raw = [abs(each.raw) for seed in range(40) for each in fit_biases(drawn(0.0, seed=seed)).values()]
    assert sum(shrunk) < 0.5 * sum(raw)


def test_intervals_hold_on_launches_of_runs_that_were_not_seen() -> None:
    judged = [held_out(drawn(0.05, seed=seed)) for seed in range(20)]
    counts = [each.observations for each in judged if each is not None]
    covered = sum(each.covered * each.observations for each in judged if each is not None) / sum(counts)
    assert len(counts) == 20
    assert 0.75 <= covered <= 0.95


def test_correction_helps_where_there_is_a_bias_on_data_that_was_held_out() -> None:
    judged = held_out(drawn(0.08, seed=1))
    assert judged is not None
    assert judged.after < judged.before / 3


def test_what_is_judged_was_neither_in_the_run_nor_in_the_launch_that_was_fitted() -> None:
    """One launch is far off in every run: seen by itself it would be explained, so leaving the run alone out leaks."""
    shifted = [
        each._replace(value=each.value + (0.5 if each.launch == "launch 0" else 0.0)) for each in drawn(0.0, seed=3)
    ]
    odd = [each for each in shifted if each.launch == "launch 0"]
    others = fit_biases(each for each in shifted if each.launch != "launch 0")
    judged = held_out(shifted)
    assert judged is not None
    assert min(abs(each.value - others[each.key].bias) for each in odd) > 0.4
    assert judged.after >= 0.4 * len(odd) / len(shifted)


def test_one_run_teaches_nothing() -> None:
    assert fit_biases(drawn(0.1, seed=0, runs=1)) == {}
    assert held_out(drawn(0.1, seed=0, runs=2)) is None
