"""Every sampler repeats: across a kill anywhere in its journal, and whoever evaluates; and moves what it can move."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import search_samplers
from steelyard.policies.search import Space, search
from steelyard.policies.search_samplers import NEEDS, SAMPLERS, SEVERAL
from steelyard.policies.search_space import LEVELS
from steelyard.results.errors import InputError
from steelyard.sim.spec import Scenario, scenario_from

NAMES = ["attention", "throughput", "makespan"]
TRIALS = {"gp": 18}
"""Enough for two batches of the sampler's own; a Gaussian process takes a second for each trial."""


@pytest.fixture(scope="module")
def small(make_document: Callable[..., dict[str, Any]]) -> Scenario:
    return scenario_from({**make_document(), "sampling": {"launches": 2, "steps": 4, "search_launches": 1}})


def _installed(sampler: str) -> None:
    package = NEEDS.get(sampler)
    if package is not None and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=[pytest.mark.slow] if name == "gp" else []) for name in SAMPLERS[1:]]
)
def test_a_journal_cut_anywhere_resumes_to_the_same_table(sampler: str, small: Scenario, tmp_path: Path) -> None:
    _installed(sampler)
    arguments: dict[str, Any] = {"policies": NAMES, "trials": TRIALS.get(sampler, 44), "seed": 3, "workers": 0}
    arguments["objectives"] = ("throughput", "cost") if sampler in SEVERAL else ()
    full = tmp_path / "full.log"
    whole = search(small, sampler=sampler, storage=full, **arguments)
    assert search(small, sampler=sampler, **arguments).trials == whole.trials, "storage does not matter"
    content, draws = full.read_bytes(), random.Random(sampler)
    for number in range(2 if sampler == "gp" else 3):
        storage = tmp_path / f"cut{number}.log"
        # In the latter half: there the sampler draws by itself.
        storage.write_bytes(content[: draws.randrange(len(content) // 2, len(content))])
        resumed = search(small, sampler=sampler, storage=storage, **arguments)
        assert resumed.trials == whole.trials, f"cut {number}"


@pytest.mark.parametrize("sampler", ["random", "nsgaii", "qmc", "cmaes"])
def test_the_seed_matters_and_settings_differ(sampler: str, small: Scenario) -> None:
    _installed(sampler)
    first, second = (
        search(small, policies=["attention"], trials=24, seed=seed, sampler=sampler, workers=0) for seed in (1, 2)
    )
    tried = [json.dumps(row.parameters) for row in first.trials]
    assert len(set(tried)) == len(tried), "numbers that are drawn anew differ"
    assert [row.parameters for row in second.trials[1:]] != [row.parameters for row in first.trials[1:]]


def test_cmaes_narrows_down(small: Scenario) -> None:
    """Its later trials are better than draws at random, on the one policy that it can move well."""
    _installed("cmaes")
    means = {}
    for sampler in ("random", "cmaes"):
        values = []
        for seed in range(3):
            result = search(small, policies=["attention"], trials=64, seed=seed, sampler=sampler, workers=0)
            values += [row.value for row in result.trials[-16:] if row.value is not None]
        means[sampler] = sum(values) / len(values)
    assert means["cmaes"] > means["random"]


def test_nsga_iii_is_for_several_objectives(small: Scenario) -> None:
    with pytest.raises(InputError, match="several objectives"):
        search(small, trials=8, sampler="nsgaiii", workers=0)


def test_a_grid_is_every_setting_once_and_holds_the_ends(small: Scenario) -> None:
    """Of ranges so many levels; of choices all: counted by hand."""
    result = search(small, policies=["proportional", "uniform"], trials=1000, sampler="grid", workers=0)
    tried = [(row.policy, json.dumps(row.parameters, sort_keys=True)) for row in result.trials]
    assert len(set(tried)) == len(tried)
    figures = {row.parameters["figure"] for row in result.trials if row.policy == "proportional"}
    assert len(tried) == 1 + LEVELS * len(figures), "the default is a point of the grid"
    gammas = sorted({row.parameters["gamma"] for row in result.trials if row.policy == "proportional"})
    assert gammas == [0.0, 0.5, 1.0, 1.5, 2.0]
    part = search(small, policies=["proportional", "uniform"], trials=9, seed=8, sampler="grid", workers=0)
    assert [row.parameters for row in part.trials] == [row.parameters for row in result.trials[:9]], "no seed in it"
    assert len({row.parameters.get("figure") for row in part.trials}) > 2, "a part is spread over the whole"


def test_a_grid_of_too_many_points_is_refused(small: Scenario) -> None:
    with pytest.raises(InputError, match=r"a grid would have [\d,]+ points"):
        search(small, policies=["attention-heads"], trials=8, sampler="grid", workers=0)


def test_a_joint_trial_carries_all_parameters_and_tells_its_own(small: Scenario) -> None:
    space = Space.of(NAMES, joint=True)
    result = search(small, policies=NAMES, trials=20, sampler="qmc", workers=0)
    for trial, row in zip(result.history, result.trials, strict=True):
        assert space.distributions.keys() <= trial.params.keys()
        assert row.parameters.keys() == space.parameters[row.policy].keys()
    assert len({row.policy for row in result.trials[len(space.fixed) :]}) > 1


def test_a_sobol_sequence_fills_the_square_evenly(small: Scenario) -> None:
    """Of 2^k points in order, each half of every range holds half: the first ones are defaults, so one may miss."""
    result = search(small, policies=["throughput"], trials=32, sampler="qmc", workers=0)
    gammas = [row.parameters["gamma"] for row in result.trials[1:]]
    assert abs(sum(gamma < 1 for gamma in gammas) - 16) <= 1


def test_a_package_that_is_missing_is_named_with_the_line_to_type(
    small: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_samplers, "find_spec", lambda name: None)
    for sampler, package in NEEDS.items():
        with pytest.raises(InputError, match=f"pip install {package}"):
            search(small, trials=8, sampler=sampler, workers=0)


def test_cmaes_wants_numbers(small: Scenario) -> None:
    _installed("cmaes")
    with pytest.raises(InputError, match="range of numbers"):
        search(small, policies=["makespan"], trials=4, sampler="cmaes", workers=0)
