"""Which parameters matter; and the study's file as Optuna's own tools read it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import search_importance
from steelyard.policies.search import SearchResult, search
from steelyard.policies.search_importance import EVALUATORS, check_evaluator, importances
from steelyard.results.errors import InputError
from steelyard.sim.spec import Scenario, scenario_from


@pytest.fixture(scope="module")
def small(make_document: Callable[..., dict[str, Any]]) -> Scenario:
    return scenario_from({**make_document(), "sampling": {"launches": 2, "steps": 4, "search_launches": 1}})


@pytest.fixture(scope="module")
def searched(small: Scenario) -> SearchResult:
    return search(small, policies=["throughput", "attention", "makespan"], trials=80, seed=1, workers=0)


def test_an_evaluator_that_is_unknown_or_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^importance: 'guess' is unknown"):
        check_evaluator("guess")
    monkeypatch.setattr(search_importance, "find_spec", lambda name: None)
    check_evaluator("ped-anova")
    with pytest.raises(InputError, match="pip install scikit-learn"):
        check_evaluator("fanova")


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_importances_are_shares_largest_first_and_repeat(evaluator: str, small: Scenario) -> None:
    if evaluator != "ped-anova":
        pytest.importorskip("sklearn")
    result = search(small, policies=["attention"], trials=48, seed=1, sampler="random", workers=0)
    found = importances(result, evaluator)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) == {f"attention.{key}" for key in ("peak", "speed", "bandwidth", "memory", "temperature")}
    assert importances(result, evaluator) == found


def test_a_parameter_that_does_nothing_matters_least(small: Scenario) -> None:
    """Both devices have the same memory bandwidth: a weight on it changes nothing."""
    pytest.importorskip("sklearn")
    result = search(small, policies=["attention"], trials=96, seed=1, sampler="qmc", workers=0)
    found = importances(result, "mdi")
    assert found["attention.bandwidth"] < found["attention.speed"]
    assert found["attention.bandwidth"] < found["attention.peak"]


def test_several_policies_and_objectives_have_importances_too(searched: SearchResult, small: Scenario) -> None:
    found = importances(searched)
    assert {"policy", "throughput.gamma", "attention.speed"} <= set(found)
    assert "fixed policy" not in found
    pareto = search(small, policies=["attention"], objectives=["throughput", "energy"], trials=40, workers=0)
    assert sum(importances(pareto).values()) == pytest.approx(1)


def test_few_trials_say_nothing_and_wishes_are_checked(
    searched: SearchResult, small: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert importances(search(small, policies=["attention"], trials=9, workers=0)) == {}
    with pytest.raises(InputError, match="unknown"):
        importances(searched, "guess")
    monkeypatch.setattr(search_importance, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        importances(searched, "fanova")


def test_optuna_reads_the_study_as_it_is(small: Scenario, tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal, database = tmp_path / "s.journal", f"sqlite:///{tmp_path / 's.db'}"
    for place in (journal, database):
        result = search(small, trials=20, seed=1, workers=0, storage=place)
        storage = JournalStorage(JournalFileBackend(str(journal))) if place is journal else database
        study = optuna.load_study(study_name="steelyard", storage=storage)
        assert study.best_value == result.value
        assert [trial.number for trial in study.trials] == list(range(20))


def test_a_limit_is_a_constraint_of_optunas_and_objectives_are_its_directions(small: Scenario, tmp_path: Path) -> None:
    import optuna

    database = f"sqlite:///{tmp_path / 's.db'}"
    objective = small.objective.model_copy(update={"least_throughput_samples_per_s": 400.0})
    asked = small.model_copy(update={"objective": objective})
    result = search(asked, objectives=["throughput", "cost"], trials=20, workers=0, storage=database)
    study = optuna.load_study(study_name="steelyard", storage=database)
    assert len(study.directions) == 2
    missed = {trial.number for trial in study.trials if any(each > 0 for each in trial.constraints.values())}
    assert missed == {row.number for row in result.trials if row.violation > 0}
    assert missed
    assert {trial.values[0] for trial in study.best_trials} == {row.values[0] for row in result.front}


@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed")
@pytest.mark.parametrize("place", ["s.journal", "sqlite:///s.db"])
def test_optuna_dashboard_serves_the_study(place: str, small: Scenario, tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path / 's.db'}" if "://" in place else str(tmp_path / place)
    search(small, trials=12, workers=0, storage=where)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", where, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            page = _fetch(process, f"http://127.0.0.1:{port}/api/studies")
        finally:
            process.terminate()
    assert b'"study_name": "steelyard"' in page or b'"study_name":"steelyard"' in page


def _fetch(process: subprocess.Popen[bytes], address: str) -> bytes:
    """What the server says, once it is up."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the dashboard ended")
